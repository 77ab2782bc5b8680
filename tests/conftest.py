"""What the tests share: a pico model, a language identifier and texts, as files."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before torch and DeepSpeed are imported: two tests run at a time, on two cores, and none of them on a GPU.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("LANGEXT_BUGS", tempfile.mkdtemp(prefix="bugs-"))

from toy import ENGLISH, FRENCH, documents, make_llama, make_tokenizer, sentences, write_fasttext, write_jsonl

BUGS = Path(os.environ["LANGEXT_BUGS"])
"""Where langext saves the traceback of an error that it does not know."""
LONGEST = ("test_sequence", "test_resume", "test_end_to_end", "test_interrupted", "test_exports", "test_sweep", "test_delta")
"""Files that take minutes: begun first, so that no process is left with one of them alone at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first."""
    order = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


@pytest.fixture(autouse=True)
def no_bug() -> Iterator[None]:
    """Fails a test in which langext has met an error that it does not know."""
    yield
    found = [path.read_text() for path in sorted(BUGS.iterdir())]
    for path in BUGS.iterdir():
        path.unlink()
    assert not found, found[0]


@pytest.fixture(scope="session")
def pico(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pico Llama with its tokenizer, as a Hugging Face folder."""
    folder = tmp_path_factory.mktemp("pico")
    tokenizer = make_tokenizer()
    make_llama(len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def lid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fastText model that tells the toy French from the toy English."""
    return write_fasttext(tmp_path_factory.mktemp("lid") / "lid.bin", {"fr": FRENCH, "en": ENGLISH})


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """fr.jsonl.gz, en.jsonl.gz, code.jsonl.gz and other.txt (English of another seed)."""
    folder = tmp_path_factory.mktemp("texts")
    write_jsonl(folder / "fr.jsonl.gz", documents(FRENCH, 150, 4) + documents(ENGLISH, 10, 5))
    write_jsonl(folder / "en.jsonl.gz", documents(ENGLISH, 150, 6))
    lines = [f"def {a}_{b}({c}):\n    return {a} + {c}  # {d}" for a, b, c, d in zip(*[iter(ENGLISH * 60)] * 4, strict=False)]
    write_jsonl(folder / "code.jsonl.gz", ["\n\n\n".join(lines[i : i + 6]) for i in range(0, len(lines), 6)])
    (folder / "other.txt").write_text("\n\n".join(sentences(ENGLISH, 30, 7)), encoding="utf-8")
    return folder
