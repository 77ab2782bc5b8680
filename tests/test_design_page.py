"""docs/design.md is true: a toy method, stage and gate, added to a copy of langext word by word as the page says, work."""

import json
import re
import shutil
from pathlib import Path

from forks import langext
from ruamel.yaml import YAML
from toy import FRENCH, documents, write_jsonl

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
RUN = """
  - uses: count
  - {uses: extend, method: {name: %s}}
  - {uses: train, steps: 2, sequence_length: 64, batch_sequences: 2, lr: 1e-2, original_frac: 0, eval_bytes: 2000,
     precision: fp32, runtime: {micro_batch: 2}}
  - {uses: export, format: %s}
"""


def block(before: str) -> str:
    """The first piece of Python after a text of the page."""
    found = re.search(r"```python\n(.*?)```", PAGE[PAGE.index(before) :], re.DOTALL)
    assert found is not None
    return found[1]


def add(path: Path, after: str, line: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count(after) == 1, (path, after)
    path.write_text(text.replace(after, after + line), encoding="utf-8")


def test_what_the_page_adds_works(tmp_path, pico, lid, texts):
    package = tmp_path / "copy" / "langext"
    shutil.copytree(ROOT / "langext", package)
    (package / "methods" / "bias.py").write_text(block("`langext/methods/bias.py`"))
    (package / "stages" / "count.py").write_text(block("`langext/stages/count.py`"))
    methods, stages = package / "methods" / "__init__.py", package / "stages" / "__init__.py"
    add(methods, "from langext.methods.adapter import Adapter\n", "from langext.methods.bias import BiasOnly\n")
    add(methods, "    NeutralResidues | ", "BiasOnly | ")
    add(stages, "from langext.stages.base import Stage\n", "from langext.stages.count import Count\n")
    add(stages, "    Filter\n", "    | Count\n")
    (package / "data" / "filters" / "shouting.py").write_text(block("`langext/data/filters/shouting.py`"))
    filters = package / "data" / "filters" / "__init__.py"
    add(filters, "from langext.data.filters.length import Length\n", "from langext.data.filters.shouting import Shouting\n")
    add(filters, "    Length\n", "    | Shouting\n")
    gates = package / "methods" / "gates.py"
    add(gates, 'GateName = Literal["relu", ', '"softplus", ')
    add(gates, "GATES: dict[GateName, Gate] = {\n", block("In `langext/methods/gates.py`"))
    add(package / "exports" / "modeling_neutral_residue.py", "GATES = {\n", block("and in `langext/exports/modeling"))
    shouted = [text.upper() for text in documents(FRENCH, 9, 7)]
    gated = "neutral_residues, gate: softplus, width: 16, local_loss: none"
    for method, form in (("bias", "delta"), (gated, "remote")):
        source = {"language": "fr", "path": str(texts / "fr.jsonl.gz"), "name": "book"}
        loud = {
            "language": "fr",
            "path": str(write_jsonl(tmp_path / "loud.jsonl", [*shouted, "la pluie dort sous la forêt"])),
        }
        spec = {"name": "toy", "language": "fr", "base_model": str(pico)}
        first = {"uses": "filter", "lid_model": str(lid), "threshold": 0.3, "heldout_frac": 0.2, "sources": [source, loud],
                 "filters": [{"name": "shouting"}]}  # fmt: skip
        stages_ = YAML(typ="safe", pure=True).load(RUN % (method, form))
        file, out = tmp_path / "toy.yaml", tmp_path / method.split(",")[0]
        YAML(typ="safe", pure=True).dump(spec | {"stages": [first, *stages_]}, file)
        done = langext("run", str(file), "--out", str(out), package=package.parent)
        assert done.returncode == 0, done.stdout + done.stderr
        text = json.loads((out / "01-filter" / "manifest.json").read_text())["summary"]["funnel"]
        assert [row["dropped"].get("shouting", 0) for row in text] == [0, 9]
        counted = json.loads((out / "02-count" / "manifest.json").read_text())["summary"]
        assert counted["of"] == "count" and counted["words"] > 100
        exported = json.loads((out / "05-export" / "checkpoint" / "export.json").read_text())
        assert exported["format"] == form and exported["greedy_equal"] == exported["texts"]


def test_every_file_that_the_page_names_is_there():
    section = PAGE[PAGE.index("## Twelve changes") : PAGE.index("### A method")]
    named = re.findall(r"`((?:methods|stages|exports|training|data|report|evaluation|architectures)/[\w./]*)`", section)
    assert len(named) > 15
    for name in named:
        assert (ROOT / "langext" / name).exists(), name
    rooms = PAGE[PAGE.index("## The rooms") : PAGE.index("## Twelve changes")]
    for room in re.findall(r"^\d  (\w+) ", rooms, re.MULTILINE):
        assert (ROOT / "langext" / room).is_dir() or (ROOT / "langext" / f"{room}.py").is_file() or room == "artifacts", room
