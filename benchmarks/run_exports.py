"""Every export of finished runs: size, and how far each is from the trained model in each program that loads it.

    python benchmarks/run_exports.py runs/quickstart runs/paper --out exports --runners transformers4,vllm

`serving.py` does this for pico models of every family and kind of export, this for finished runs on held-out text. Columns:
megabytes of weights; largest logit difference to the trained model in float32, in this transformers; largest difference of a
log-probability in the programs of `langext export --verify`; in llama.cpp KL per token to the checkpoint, and what the
precision costs in perplexity on the next tokens of the text. The base's rows are the same for the unextended base.
"""

import argparse
import math
from pathlib import Path
from typing import Any

import torch

from langext.artifacts import JOB, Corpus, Job, Model, finished, read_as, read_json
from langext.cli import export
from langext.errors import ConfigError, RunFailed
from langext.exports import runners, verify, write
from langext.exports.formats import GGUF
from langext.exports.gguf import check, file
from langext.models import loading

PRECISIONS = ("f32", "bf16", "q8_0")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for the exports; what is there already is not made again"
    )
    parser.add_argument("--runners", help="as for langext export --verify; programs that run an export's own code")
    asked = parser.parse_args()
    programs = runners.interpreters(asked.runners, runners.environments()) if asked.runners else {}
    print("| run | format | class | MB | this transformers | other programs | llama.cpp, KL | perplexity |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
    base(asked.runs[0], asked.out / "base")
    for run in asked.runs:
        for form in ("native", "remote", "gguf", "delta"):
            one(run, form, asked.out / f"{run.name}-{form}", programs if form in ("native", "remote") else {})


def one(run: Path, form: str, out: Path, programs: dict[str, str]) -> None:
    if not out.exists():
        try:
            export.from_run(run, out, form, GGUF(PRECISIONS), programs)
        except (ConfigError, RunFailed) as error:
            row(run.name, form, "", "", f"not possible: {str(error).split('; possible')[0]}", "", "", "")
            return
    record = read_json(out / "export.json")
    exact = f"{record['max_abs_difference']:.1e}"
    if form == "gguf":
        for file in record["files"]:
            llama(run.name, f"gguf {file['precision']}", record["loads_as"], exact, file)
        return
    others = ", ".join(f"{found['version']}: {found['max_abs_logprob_difference']:.1e}" for found in record["runners"])
    row(run.name, form, record["loads_as"], megabytes(out), exact, others, "", "")


def base(run: Path, out: Path) -> None:
    """The unextended base, written and compared the same way."""
    model = Model(run / "base")
    folder = loading.read_record(model).base
    out.mkdir(parents=True, exist_ok=True)
    net = loading.load_base(folder, torch.float32)
    expected = verify.expect(net, loading.load_tokenizer(folder), passages(run), out / "logits")
    for precision in PRECISIONS:
        path = out / f"{precision}.gguf"
        file.write(folder, path, precision)
        figures = check.run([check.job(out / "job", path, expected)])[0]
        llama("base", f"gguf {precision}", type(net).__name__, "", figures | {"bytes": path.stat().st_size})


def llama(run: str, form: str, name: str, exact: str, figures: dict[str, Any]) -> None:
    cost = math.exp(figures["next_token_nats"] - figures["next_token_nats_of_checkpoint"]) - 1
    kl = f"{figures['kl_per_token_nats']:.1e}"
    row(run, form, name, f"{figures['bytes'] / 1e6:.1f}", exact, "", kl, f"{100 * cost:+.2f} %")


def passages(run: Path) -> list[str]:
    stages = finished(run)
    job = read_as(stages[0][0] / JOB, Job)
    corpus = next(Corpus(path) for path, manifest in stages if manifest.kind == "Corpus")
    return write.verification_texts(corpus, (job.language, *job.original_languages))


def megabytes(folder: Path) -> str:
    return f"{sum(path.stat().st_size for path in folder.rglob('*.safetensors')) / 1e6:.1f}"


def row(*cells: str) -> None:
    print("|", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
