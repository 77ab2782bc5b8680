"""How fast an export runs beside its base, on text of both languages.

    python benchmarks/serving_speed.py runs/quickstart/base/model runs/quickstart/06-export/checkpoint \\
        --texts eng_Latn=english.txt fra_Latn=french.txt

Transformers, bf16, one process; base and exports take turns in every round, medians over rounds. Reading: 256 tokens of each
text at once. Writing: 32 tokens after the first 64. Ratios are an export's time over the base's: 1.05 is 5 % slower.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

READ, PROMPT, WRITE = 256, 64, 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("exports", type=Path, nargs="+")
    parser.add_argument("--texts", nargs="+", required=True, metavar="NAME=FILE", help="a plain text file of each language")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--trust-remote-code", action="store_true", help="run the code that lies in an export's folder")
    asked = parser.parse_args()
    folders = [asked.base, *asked.exports]
    more = {"trust_remote_code": asked.trust_remote_code, "dtype": torch.bfloat16}
    nets = [AutoModelForCausalLM.from_pretrained(folder, **more).to(asked.device).eval() for folder in folders]
    tokenizer = AutoTokenizer.from_pretrained(asked.exports[0], trust_remote_code=asked.trust_remote_code)
    print("| model | text | batch | reading, tokens/s | x base's time | writing, tokens/s | x base's time |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for named in asked.texts:
        name, _, path = named.partition("=")
        ids = tokenizer(Path(path).read_text(encoding="utf-8"), add_special_tokens=False, return_tensors="pt").input_ids[0]
        for batch in asked.batches:
            rows = ids[: batch * READ].reshape(batch, READ).to(asked.device)
            times: list[list[tuple[float, float]]] = [[] for _ in nets]
            for _ in range(asked.rounds + 1):
                for i, net in enumerate(nets):
                    times[i].append((clock(net, rows, 0), clock(net, rows[:, :PROMPT], WRITE)))
            medians = [tuple(statistics.median(t[k] for t in found[1:]) for k in (0, 1)) for found in times]
            for folder, (read, write) in zip(folders, medians, strict=True):
                cells = [f"{batch * READ / read:.0f}", f"{read / medians[0][0]:.2f}"]
                cells += [f"{batch * WRITE / write:.0f}", f"{write / medians[0][1]:.2f}"]
                print("|", " | ".join([folder.parent.name + "/" + folder.name, name, str(batch), *cells]), "|", flush=True)


@torch.no_grad()
def clock(net: Any, rows: torch.Tensor, write: int) -> float:
    """Seconds of one pass, or of writing so many tokens."""
    if rows.is_cuda:
        torch.cuda.synchronize()
    start = time.monotonic()
    if write:
        mask = torch.ones_like(rows)
        net.generate(rows, attention_mask=mask, max_new_tokens=write, min_new_tokens=write, do_sample=False, pad_token_id=0)
    else:
        net(input_ids=rows)
    if rows.is_cuda:
        torch.cuda.synchronize()
    return time.monotonic() - start


if __name__ == "__main__":
    main()
