"""How long extended models take to read and write text of the original language, beside their base.

    langext fetch quickstart
    python benchmarks/inference_speed.py --run runs/quickstart

The base, our own module and the export with its own code (`remote`) take turns in one process; medians of seconds of CPU, so
that other programs on the machine count little. The model is the trained one of a finished run, on its held-out English; with
`--open` one that is not trained, with blocks of double width in the upper half of the layers and gates that are open on the
stated shares of the tokens. Reading: 256 tokens of each text at once. Writing: 32 tokens after 64.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from calibrated import method, open_on, tokens_of
from pydantic import TypeAdapter

READ, PROMPT, WRITE = 256, 64, 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="a finished run of the quickstart")
    parser.add_argument("--open", type=float, nargs="+", default=[None], help="shares of open gates of an untrained model")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="float32")
    asked = parser.parse_args()
    dtype = getattr(torch, asked.dtype)
    print("| model | gates open on | reading, tokens per CPU second | x base's time | writing | x base's time |")
    print("| --- | --- | --- | --- | --- | --- |")
    for share in asked.open:
        with tempfile.TemporaryDirectory() as folder:
            nets, ids, opened = models(asked, share, dtype, Path(folder))
            times: dict[str, list[tuple[float, float]]] = {name: [] for name in nets}
            for _ in range(asked.rounds + 1):
                for name, net in nets.items():
                    times[name].append((clock(net, ids, 0), clock(net, ids[:, :PROMPT], WRITE)))
        base = medians(times["base"])
        for name, found in times.items():
            read, write = medians(found)
            cells = [
                f"{ids.numel() / read:.0f}",
                f"{read / base[0]:.3f}",
                f"{len(ids) * WRITE / write:.0f}",
                f"{write / base[1]:.3f}",
            ]
            print("|", " | ".join([name, "-" if name == "base" else f"{opened:.2%}", *cells]), "|", flush=True)


def medians(found: list[tuple[float, float]]) -> list[float]:
    """Of reading and of writing, without the first round."""
    return [statistics.median(pair[k] for pair in found[1:]) for k in (0, 1)]


def models(asked: Any, share: float | None, dtype: torch.dtype, folder: Path) -> tuple[dict[str, Any], torch.Tensor, float]:
    """The three models, the (B, T) English ids that they read, and the share of (layer, token) pairs with an open gate."""
    from transformers import AutoModelForCausalLM

    from langext.exports import remote
    from langext.methods import AnyMethod, extended
    from langext.models import loading

    source = loading.read_record(loading.Model(asked.run / "base")).base
    tokenizer = loading.load_tokenizer(source)
    ids = tokens_of(asked.run, "eng_Latn", (asked.batch, READ), tokenizer, split="valid")
    if share is None:
        live = loading.load(loading.Model(next(asked.run.glob("[0-9][0-9]-train"))), torch.float32)
    else:
        live = extended.build(
            loading.load_base(source, torch.float32), tokenizer, TypeAdapter(AnyMethod).validate_python(method(30))
        )
        open_on(live, ids, share)
        for block in live.method.extensions(live.net):  # small: a block that ran wild would open other gates
            torch.nn.init.normal_(block.down_proj.weight, std=1e-3)
    remote.write(live.net, folder)
    own: Any = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=dtype).eval()
    nets = {"base": loading.load_base(source, dtype), "module": live.net.to(dtype).eval(), "remote": own}
    with torch.no_grad():
        live.net(input_ids=ids)
    opened = torch.stack([block.gate_BT for block in live.method.extensions(live.net)]).float().mean()
    return nets, ids, float(opened)


@torch.no_grad()
def clock(net: Any, rows: torch.Tensor, write: int) -> float:
    """CPU seconds of one pass, or of writing so many tokens."""
    start = time.process_time()
    if write:
        mask = torch.ones_like(rows)
        net.generate(rows, attention_mask=mask, max_new_tokens=write, min_new_tokens=write, do_sample=False, pad_token_id=0)
    else:
        net(input_ids=rows)
    return time.process_time() - start


if __name__ == "__main__":
    main()
