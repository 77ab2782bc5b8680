"""Files that were changed at random: each is read, or refused with a ConfigError of one line per problem."""

import copy
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from run_folders import manifest_of

from langext import artifacts, spec
from langext.artifacts import Manifest, Model
from langext.data import readers
from langext.errors import ConfigError
from langext.exports import delta
from langext.models import loading
from langext.pipeline.plan import Pipeline

FUZZ = settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "30")), deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
PIECES = st.sampled_from([b"[", b"{", b": ", b"&a", b"*a", b"\n", b"\xff", b"\\ud83d", b"9" * 5000, b"0x" + b"f" * 5000])
YAML = (Path(__file__).parent.parent / "pipelines" / "quickstart.yaml").read_bytes()
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**400), 10**400) | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def damaged(draw: Any, content: bytes) -> bytes:
    """`content` with some bytes replaced, left out or added."""
    result = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(0, len(result) - 1)))
        length = draw(st.sampled_from([0, 1, 3, 40]))
        result[at : at + length] = draw(st.binary(max_size=6) | PIECES)
    return bytes(result)


@st.composite
def changed(draw: Any, value: Any) -> Any:
    """A JSON value in which one part is another value, or gone."""
    whole = {"": copy.deepcopy(value)}
    node, key = whole, ""
    while isinstance(node[key], dict | list) and node[key] and draw(st.integers(0, 3)):
        node = node[key]
        key = draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
    if draw(st.booleans()) and key != "":
        del node[key]
    else:
        node[key] = draw(VALUES)
    return whole.get("")


def read_or_refused(read: Callable[[], Any]) -> None:
    try:
        read()
    except ConfigError as error:
        assert len(str(error)) < 8000 and not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", str(error))


@FUZZ
@given(damaged(YAML))
def test_pipelines(tmp_path, content):
    path = tmp_path / "p.yaml"
    path.write_bytes(content)
    read_or_refused(lambda: spec.load(path, Pipeline))


ENTRIES = [{"id": i, "text": f"le petit chat n\u00b0 {i}", "more": [1, {}]} for i in range(4)]
JSONL = b"".join(json.dumps(entry).encode() + b"\n" for entry in ENTRIES)


@FUZZ
@given(damaged(JSONL))
def test_lines_of_json(tmp_path, content):
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)

    def read() -> None:
        for document in readers.TextReader(
            {"a.jsonl": path}, ["text"], None, division="blocks", encoding="utf-8", label="a", sizes={"a.jsonl": 1}
        ).run():
            assert document.text.encode().decode() == document.text

    read_or_refused(read)


MANIFEST = manifest_of().model_dump(mode="json")
MODEL = {
    "base": "/x", "method": {"name": "lora"}, "tokenizer": None,
    "earlier": [{"method": {"name": "neutral_residues", "width": 3}, "delta": "a.safetensors", "language": "fra_Latn"}],
}  # fmt: skip
DELTA = {
    "format": "langext delta 1", "base": {"name": "x", "public": False, "commit": None, "weights": "abc"},
    "language": "fra_Latn", "original_languages": ["eng_Latn"], "method": {"name": "lora"}, "earlier": [],
    "history": {"training": None, "afterwards": []}, "files": {"delta.safetensors": "abc"},
}  # fmt: skip
READERS: dict[str, tuple[Any, Callable[[Path], Any]]] = {
    "manifest.json": (MANIFEST, lambda path: artifacts.read_as(path, Manifest)),
    "model.json": (MODEL, lambda path: loading.read_record(Model(path.parent))),
    "delta.json": (DELTA, lambda path: delta.read(path.parent)),
}


@pytest.mark.parametrize("name", READERS)
@FUZZ
@given(data=st.data())
def test_records(tmp_path, name, data):
    value, read = READERS[name]
    path = tmp_path / name
    content = json.dumps(value).encode()
    path.write_bytes(data.draw(damaged(content) | changed(value).map(lambda other: json.dumps(other).encode())))
    read_or_refused(lambda: read(path))


def test_the_records_themselves_are_read(tmp_path):
    """Otherwise the tests above could be refusing everything."""
    for name, (value, read) in READERS.items():
        (tmp_path / name).write_text(json.dumps(value))
        if name == "delta.json":
            with pytest.raises(ConfigError, match="delta.safetensors"):  # which is not there
                read(tmp_path / name)
        else:
            read(tmp_path / name)
