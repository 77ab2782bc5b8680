"""How much memory an export takes: a generated Llama of 3 GB, exported and verified as on a machine where it does not fit.

    python benchmarks/export_memory.py --method neutral_residues

Sampled every 20 ms: the memory that a process has to have (RssAnon of /proc/<pid>/status; mapped files are not counted, for the
system can drop those pages whenever it needs them), of the process that exports and of the fresh one that verifies. The limit
is 1.3 times the largest file of weights and the embeddings, and what Python with torch and transformers takes by itself is
part of it. Linux only.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from cases import method
from toy import make_tokenizer

from langext.artifacts import Model
from langext.exports import write
from langext.exports.modelcard import Card
from langext.methods import Full, extended
from langext.models import loading
from langext.summaries import History, Training

WIDTH, VOCABULARY = 2048, 32000
METHODS: dict[str, dict[str, Any]] = {
    "neutral_residues": {"name": "neutral_residues", "gate": "hard_sigmoid"},
    "lora": {"name": "lora", "rank": 16},
    "full": {"name": "full"},
    "expansion_blocks": {"name": "expansion_blocks"},
}
TEXTS = ["The small cat sleeps in the house with a dog. " * 4, "Le petit chat dort dans la maison avec un chien. " * 4]
CARD = Card(
    languages=("fra_Latn", "eng_Latn"), base="generated", licence=None, licence_id=None, public=None, base_public=False,
    base_architecture="LlamaForCausalLM", method=Full(name="full"), funnel=[], base_scores=None, model_scores=None,
    history=History(training=Training(tokens=0, steps=0, shares={}, epochs={}), afterwards=[]),
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", choices=METHODS, default="neutral_residues")
    parser.add_argument("--layers", type=int, default=27, help="of 0.1 GB each")
    parser.add_argument("--export", metavar="FOLDER", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.export:
        export(Path(asked.export), asked.method)
        return
    with tempfile.TemporaryDirectory(prefix="langext-export-memory-") as folder:
        measure(asked, Path(folder))


def measure(asked: Any, root: Path) -> None:
    generate = [sys.executable, "-c", f"import export_memory as e; e.generate({str(root)!r}, {asked.method!r}, {asked.layers})"]
    subprocess.run(generate, check=True, cwd=Path(__file__).parent)
    started = time.monotonic()
    command = [sys.executable, __file__, "--export", str(root), "--method", asked.method]
    exporter = subprocess.Popen(command)
    peaks = {"exports": 0, "verifies": 0}
    while exporter.poll() is None:
        peaks["exports"] = max(peaks["exports"], anonymous(exporter.pid))
        try:
            children = psutil.Process(exporter.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            break
        peaks["verifies"] = max([peaks["verifies"], *(anonymous(child.pid) for child in children)])
        time.sleep(0.02)
    if exporter.wait():
        sys.exit("the export failed")
    took = time.monotonic() - started
    files = {path: path.stat().st_size for path in (root / "out").glob("*.safetensors")}
    embeddings = 2 * 2 * WIDTH * VOCABULARY
    limit = 1.3 * (max(files.values()) + embeddings)
    print(f"{asked.method}: {sum(files.values()) / 1e9:.2f} GB in {len(files)} files, exported and verified in {took:.0f} s")
    print(f"largest file {max(files.values()) / 1e9:.2f} GB, embeddings and head {embeddings / 1e9:.2f} GB")
    print(f"limit {limit / 1e9:.2f} GB")
    for name, peak in peaks.items():
        print(f"peak of the process that {name}: {peak / 1e9:.2f} GB ({peak / limit:.0%} of the limit)")
    if max(peaks.values()) > limit:
        sys.exit("above the limit")


def anonymous(pid: int) -> int:
    """Bytes of memory that no file backs."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return 1024 * next((int(line.split()[1]) for line in lines if line.startswith("RssAnon")), 0)


def generate(folder: str, name: str, num_layers: int) -> None:
    """A base, and a delta whose weights are not zero."""
    from transformers import LlamaConfig, LlamaForCausalLM

    root = Path(folder)
    config = LlamaConfig(
        hidden_size=WIDTH, intermediate_size=5632, num_hidden_layers=num_layers, num_attention_heads=16, vocab_size=VOCABULARY,
        num_key_value_heads=16, tie_word_embeddings=False, dtype=torch.bfloat16,
    )  # fmt: skip
    torch.set_default_dtype(torch.bfloat16)
    LlamaForCausalLM(config).save_pretrained(root / "base", max_shard_size="1GB")
    make_tokenizer().save_pretrained(root / "base")
    live = extended.build(loading.load_base(root / "base", torch.bfloat16), make_tokenizer(), method(METHODS[name]))
    delta = {name: tensor + 0.01 * torch.randn(tensor.shape) for name, tensor in live.delta().items()}
    (root / "model").mkdir()
    loading.save_delta(root / "model", {name: tensor.float() for name, tensor in delta.items()})
    loading.write_record(root / "model", loading.Record(root / "base", live.method))


def export(root: Path, name: str) -> None:
    write.available = lambda: 0  # as on a machine that cannot hold it
    write.write(Model(root / "model"), root / "out", "auto", TEXTS, CARD)


if __name__ == "__main__":
    main()
