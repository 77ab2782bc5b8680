"""GGUF files of an export: written, run in llama.cpp where that is installed, and compared with their checkpoint."""

import importlib.util
import json
import tempfile
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from langext.console import warn
from langext.exports import verify
from langext.exports.gguf import file, reload
from langext.spec import RunFailed
from langext.summaries import ExportSummary, GGUFFile

if TYPE_CHECKING:
    from langext.exports.formats import GGUF, Precision

RUNNER = "xllamacpp"
TOP = 512
"""Tokens whose log-probabilities are compared at a position: llama.cpp's likeliest ones."""
MAX_KL = {"f32": 1e-3, "f16": 1e-3, "bf16": 1e-2, "q8_0": 5e-2}
"""KL per token in nats that passes, by precision. SmolLM2-135M, unextended, measures 7e-6 with f32, 1e-4 with bf16 and 5e-3
with q8_0; a wrong rope, order of rows or router measures whole units."""


def write(stock: Path, out: Path, expected: verify.Expected, asked: "GGUF", title: str) -> list[GGUFFile]:
    """Write model-<precision>.gguf for each precision asked for, and a Modelfile for the first. One record for each file.

    Raises RunFailed when llama.cpp computes something else than the checkpoint in `stock`. Without the runner the files are
    written all the same, with a warning, and recorded as not verified.
    """
    records = []
    runs = importlib.util.find_spec(RUNNER) is not None
    if not runs:
        warn(f"the GGUF files are not run in llama.cpp: {RUNNER} is not installed (pip install 'langext[gguf]')")
    for precision in asked.precisions:
        path = out / f"model-{precision}.gguf"
        file.write(stock, path, precision, asked.pre, title)
        compared = compare(path, precision, expected) if runs else {}
        size = path.stat().st_size
        records.append(GGUFFile(file=path.name, bytes=size, precision=precision, verified=runs, **compared))
    (out / "Modelfile").write_text(f"FROM ./{records[0].file}\n", encoding="utf-8")
    return records


def job(scratch: Path, path: Path, expected: verify.Expected) -> Path:
    """The job of running a GGUF file."""
    texts = [unicodedata.normalize("NFC", text) for text in expected.texts]  # which llama.cpp leaves to others
    longest = max(map(len, expected.greedy))
    return verify.prepare(scratch, expected, file=str(path), texts=texts, whole=expected.whole, top=TOP, new_tokens=longest)


def run(jobs: list[Path]) -> list[dict[str, Any]]:
    """Run the files of these jobs in llama.cpp; see `verify.run`."""
    return verify.run(jobs, reload.__file__)


def compare(path: Path, precision: "Precision", expected: verify.Expected) -> dict[str, Any]:
    """Run a GGUF file in a process of its own. Raises RunFailed when it differs; returns the figures otherwise."""
    with tempfile.TemporaryDirectory() as scratch:
        (figures,) = run([job(Path(scratch), path, expected)])
    problems = []
    if figures["tokenized_equal"] < figures["texts"]:
        differ = figures["texts"] - figures["tokenized_equal"]
        problems.append(f"llama.cpp splits {differ} of {figures['texts']} passages into other tokens")
    if figures["clear_agreement"] < figures["clear_positions"]:
        problems.append("another token is the likeliest where the checkpoint is sure")
    if not abs(figures["kl_per_token_nats"]) <= MAX_KL[precision]:
        problems.append(f"KL is above {MAX_KL[precision]} nats per token")
    if problems:
        raise RunFailed(f"{path.name} was not kept: {'; '.join(problems)}: {json.dumps(figures)}")
    return figures


def lines(record: ExportSummary) -> list[str]:
    """What to say about the GGUF files of an export; [] when there are none."""
    said = []
    for made in record.files:
        compared = "not run in llama.cpp"
        if made.verified:
            compared = (
                f"in llama.cpp KL {made.kl_per_token_nats:.1e} to the checkpoint, same top token {made.top1_agreement:.0%}, "
                f"same greedy text {made.greedy_equal}/{made.texts}"
            )
        said.append(f"  {made.file}: {made.bytes / 1e6:,.1f} MB, {compared}")
    return said
