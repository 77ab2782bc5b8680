"""Every family, method and gate: what it exports to, and how far that is from the trained model in each program that loads it.

    python benchmarks/exports.py --transformers4 /path/to/python

Pico models of every family with every method, their new weights far from where they started. The columns: the export's format
and class; largest logit difference to the trained model, in float32, in this transformers and in the one that the given
interpreter has (4.57 is what it is for; `pip install torch transformers==4.57.6` into a fresh venv); KL of llama.cpp with a
float32 GGUF file, and the same for its 8-bit file. The rows "base" are the family unextended: what llama.cpp itself differs by.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from cases import CASES, calibrate, exports, label, method, stir
from toy import FAMILIES, make_base, make_tokenizer

from langext.errors import ConfigError
from langext.exports import checkpoint, targets, verify
from langext.exports.gguf import check, file
from langext.methods import extended
from langext.models import loading

TEXTS = ["The small cat sleeps in the house with a dog. 123 " * 4, "Le petit chat dort déjà dans la forêt. " * 4]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--transformers4", metavar="PYTHON", help="interpreter of a venv with transformers 4.57")
    parser.add_argument("--families", nargs="*", default=list(FAMILIES), choices=FAMILIES)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="langext-exports-") as folder:
        show(asked, Path(folder))


def show(asked: Any, root: Path) -> None:
    tokenizer, rows = make_tokenizer(), []
    for family in asked.families:
        make_base(family, len(tokenizer)).save_pretrained(root / family / "source")
        tokenizer.save_pretrained(root / family / "source")
        for i, case in enumerate([None, *filter(exports, CASES)]):
            rows.append(export(root / family / str(i), root / family / "source", family, case, tokenizer))
    jobs = [row["job"] for row in rows]
    five = verify.run(jobs)
    four = verify.run(jobs, python=asked.transformers4) if asked.transformers4 else [None] * len(rows)
    ran = iter(check.run([job for row in rows for job in row["gguf"].values() if isinstance(job, Path)]))
    print("| family | method | format | class | transformers 5 | 4.57 | llama.cpp f32 | q8_0 |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for row, new, old in zip(rows, five, four, strict=True):
        cells = [f"KL {next(ran)['kl_per_token_nats']:.1e}" if isinstance(job, Path) else job for job in row["gguf"].values()]
        before = "-" if old is None else f"{old['max_abs_difference']:.1e}"
        shown = [row["family"], row["method"], row["form"], new["loads_as"].removesuffix("ForCausalLM")]
        print("|", " | ".join([*shown, f"{new['max_abs_difference']:.1e}", before, *cells]), "|", flush=True)


def export(out: Path, source: Path, family: str, case: Any, tokenizer: Any) -> dict[str, Any]:
    """Write one checkpoint and its GGUF files, and the jobs that load them."""
    torch.manual_seed(3)
    net = loading.load_base(source, torch.float32)
    live = calibrate(extended.build(net, tokenizer, method(case or {"name": "full"})))
    if case is not None:
        stir(live)
    form = targets.choose(loading.load_config(source), live.methods, "auto")
    merged = case is not None and case["name"] in ("lora", "selective_lora")  # then its weights are rounded
    compared = live.methods[-1].fold(net).model(whole=True, rounded=True) if merged else net.eval()
    expected = verify.expect(compared, tokenizer, TEXTS, out / "logits")
    folder = out / "checkpoint"
    folder.mkdir(parents=True)
    checkpoint.save(live, live.methods[-1].fold(live.net) if targets.TARGETS[form].folds else None, folder)
    files: dict[str, Any] = {}
    for precision in ("f32", "q8_0"):
        path = out / f"{precision}.gguf"
        try:
            if form == "remote":
                raise ConfigError("remote code")
            file.write(folder, path, precision)
            files[precision] = check.job(out / precision, path, expected)
        except ConfigError as error:
            files[precision] = f"no: {str(error).removeprefix('GGUF: ')}"
    job = verify.job(out / "job", folder, expected, own_code=targets.TARGETS[form].own_code)
    return {"family": family, "method": label(case) if case else "base", "form": form, "gguf": files, "job": job}


if __name__ == "__main__":
    main()
