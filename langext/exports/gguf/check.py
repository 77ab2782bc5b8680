"""Write the GGUF files of an export, run them in llama.cpp, and compare them with the checkpoint they are made from.

The one rule: a file that was run and differs is not kept; a file that could not be run is recorded as not verified.
"""

import importlib.util
import json
import sys
import tempfile
import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gguf import GGUFReader

from langext.console import warn
from langext.errors import RunFailed
from langext.export_summary import ExportSummary, GGUFFile
from langext.exports import checkpoint, verify
from langext.exports.formats import Order
from langext.exports.gguf import file, reload

if TYPE_CHECKING:
    from langext.exports.formats import GGUF, Precision

RUNNER = "xllamacpp"
"""The Python package that runs llama.cpp: https://github.com/xorbitsai/xllamacpp"""
TOP = 512
"""Number of tokens whose log-probabilities are compared at a position: those that llama.cpp finds most likely."""
MAX_KL = {"f32": 1e-3, "f16": 1e-3, "bf16": 1e-2, "q8_0": 5e-2}
"""Precision -> largest KL in nats per token that passes. SmolLM2-135M, without an extension, measures 7e-6 with f32, 1e-4 with
bf16 and 5e-3 with q8_0; a wrong rope, a wrong order of rows or a wrong router measures 1 or more."""


def export(order: Order) -> dict[str, Any]:
    """Write a checkpoint folder, which is no part of the export, and convert it. Returns the fields of ExportSummary."""
    stored = order.scratch / "checkpoint"
    stored.mkdir()
    compared = checkpoint.write(replace(order, out=stored))
    return compared | {"files": write(stored, order.out, order.expected, order.gguf, order.title)}


def write(stock: Path, out: Path, expected: verify.Expected, asked: "GGUF", title: str) -> list[GGUFFile]:
    """Convert the checkpoint folder `stock` to model-<precision>.gguf in `out`, one file for each precision asked for.

    Also writes a Modelfile, with which Ollama loads the first file. Returns one record for each file. Raises RunFailed when
    llama.cpp computes something else than the checkpoint. Where the runner is not installed, the files are written with a
    warning and recorded as not verified.
    """
    records = []
    runs = importlib.util.find_spec(RUNNER) is not None
    if not runs:
        warn(f"the GGUF files are not run in llama.cpp: {RUNNER} is not installed (pip install '.[gguf]' in langext's folder)")
    for precision in asked.precisions:
        path = out / f"model-{precision}.gguf"
        file.write(stock, path, precision, asked.pre, title)
        compared = compare(path, precision, expected) if runs else {}
        size = path.stat().st_size
        records.append(GGUFFile(file=path.name, bytes=size, precision=precision, verified=runs, **compared))
    (out / "Modelfile").write_text(f"FROM ./{records[0].file}\n", encoding="utf-8")
    return records


def job(scratch: Path, path: Path, expected: verify.Expected) -> Path:
    """Write the job of running a GGUF file for `run`; return the job file."""
    # llama.cpp does not apply a tokenizer's Unicode normalization, so its texts are normalized beforehand.
    texts = [unicodedata.normalize("NFC", text) for text in expected.texts]
    longest = max(map(len, expected.greedy))
    return verify.prepare(
        scratch,
        expected,
        file=str(path),
        texts=texts,
        whole=expected.whole,
        top=TOP,
        new_tokens=longest,
        context=_context(path),
    )


def _context(path: Path) -> int:
    """Number of positions of the model in a GGUF file: llama.cpp takes no longer context, whatever it is asked for."""
    reader = GGUFReader(path)
    name, length = reader.get_field("general.architecture"), None
    if name is not None:
        length = reader.get_field(f"{name.contents()}.context_length")
    assert length is not None, "`file.write` has written both"
    return int(length.contents())


def run(jobs: list[Path], python: str = sys.executable) -> list[dict[str, Any]]:
    """Run the GGUF files of these jobs in llama.cpp, as `verify.run` does with other exports."""
    return verify.run(jobs, reload.__file__, python)


def compare(path: Path, precision: "Precision", expected: verify.Expected) -> dict[str, Any]:
    """Run a GGUF file in a fresh process and compare it with what is expected.

    Returns the fields of `GGUFFile` that describe the comparison. Raises RunFailed when the file differs or does not load.
    """
    with tempfile.TemporaryDirectory() as scratch:
        (figures,) = run([job(Path(scratch), path, expected)])
    problems = []
    if figures["tokenized_equal"] < figures["texts"]:
        differ = figures["texts"] - figures["tokenized_equal"]
        problems.append(f"llama.cpp splits {differ} of {figures['texts']} passages into other tokens")
    if figures["clear_agreement"] < figures["clear_positions"]:
        problems.append("llama.cpp finds another token most likely at a position where the checkpoint is sure")
    if not abs(figures["kl_per_token_nats"]) <= MAX_KL[precision]:  # `> MAX_KL` would let nan pass
        problems.append(f"KL is above {MAX_KL[precision]} nats per token")
    if problems:
        raise RunFailed(f"{path.name} was not kept: {'; '.join(problems)}: {json.dumps(figures)}")
    return figures


def lines(record: ExportSummary) -> list[str]:
    """Describe the GGUF files of an export, one line of text for each; [] when there are none."""
    described = []
    for made in record.files:
        compared = "not run in llama.cpp"
        if made.verified:
            compared = (
                f"in llama.cpp KL {made.kl_per_token_nats:.1e} to the checkpoint, same top token {made.top1_agreement:.0%}, "
                f"same greedy text {made.greedy_equal}/{made.texts}"
            )
        described.append(f"  {made.file}: {made.bytes / 1e6:,.1f} MB, {compared}")
    return described
