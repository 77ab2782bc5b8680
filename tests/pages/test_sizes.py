"""The computed figures of docs/sizing.md and docs/cookbook.md are those of `langext plan`."""

import re
from pathlib import Path

import pytest
import sizes
from pydantic import TypeAdapter

from langext.methods import AnyMethod
from langext.training import flops

DOCS = Path(__file__).parent.parent.parent / "docs"
SIZING, COOKBOOK = ((DOCS / name).read_text(encoding="utf-8") for name in ("sizing.md", "cookbook.md"))
ROWS = re.findall(r"^\| (\S+) \| `(\{.*?\})` \| (.*) \|$", SIZING, flags=re.MULTILINE)
PIPELINES = sorted(path.stem for path in (sizes.ROOT / "pipelines" / "cookbook").glob("*.yaml"))


@pytest.mark.parametrize(("base", "method", "figures"), ROWS, ids=[f"{base} {method}" for base, method, _ in ROWS])
def test_the_sizing_table(base, method, figures):
    from ruamel.yaml import YAML

    of = TypeAdapter(AnyMethod).validate_python(YAML(typ="safe", pure=True).load(method))
    peak = flops.peak("NVIDIA H100 80GB HBM3")
    assert peak is not None
    assert figures == sizes.sizing(base, of, 0.4 * peak)


def test_the_table_has_rows():
    assert len(ROWS) >= 6 and len(PIPELINES) >= 5


@pytest.mark.parametrize("name", PIPELINES)
def test_the_cookbook(name):
    section = COOKBOOK[COOKBOOK.index(f"pipelines/cookbook/{name}.yaml") :]
    assert sizes.cookbook(name) in section.split("\n## ")[0]
