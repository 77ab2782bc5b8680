"""Text as token ids: made once for a text and a tokenizer, shared by runs, and free to be deleted."""

import fcntl
import shutil
import threading

import pytest
from run_folders import manifest_of
from toy import FRENCH, documents, make_tokenizer, write_jsonl

from langext.artifacts import Corpus, list_files, write_json
from langext.data import tokens
from langext.errors import RunFailed

CODES = ["fra_Latn", "eng_Latn"]


@pytest.fixture
def corpus(tmp_path):
    root = tmp_path / "01-filter"
    write_jsonl(root / "documents" / "train" / "fra_Latn" / "book.00000.jsonl.gz", documents(FRENCH, 9, 1))
    write_json(root / "manifest.json", manifest_of(files=list_files(root)))
    return Corpus(root)


@pytest.fixture
def tokenizer(tmp_path):
    made = make_tokenizer()
    made.save_pretrained(tmp_path / "tokenizer")
    made.name_or_path = str(tmp_path / "tokenizer")
    return made


def test_they_are_made_once(tmp_path, corpus, tokenizer):
    tokens.tokenise(tmp_path / "tokens", corpus, tokenizer, CODES)
    files = tokens.token_files(tmp_path / "tokens", corpus, tokenizer, CODES)
    assert list(files) == ["fra_Latn/book"] and len(files["fra_Latn/book"].starts) == 9
    assert files["fra_Latn/book"].tokens[0] == tokenizer.eos_token_id == files["fra_Latn/book"].tokens[-1]
    made = tokens.folder_of(tmp_path / "tokens", corpus, tokenizer) / "fra_Latn" / "book" / "tokens.bin"
    stamp = made.stat().st_mtime_ns
    tokens.tokenise(tmp_path / "tokens", corpus, tokenizer, CODES)
    assert made.stat().st_mtime_ns == stamp
    (made.parent / "done.json").unlink()  # as after a kill
    tokens.tokenise(tmp_path / "tokens", corpus, tokenizer, CODES)
    assert made.stat().st_mtime_ns > stamp


def test_other_text_and_other_ids_have_a_folder_of_their_own(tmp_path, corpus, tokenizer):
    first = tokens.folder_of(tmp_path, corpus, tokenizer)
    path = tmp_path / "tokenizer" / "tokenizer.json"
    path.write_text(path.read_text() + " ")
    second = tokens.folder_of(tmp_path, corpus, tokenizer)
    write_jsonl(corpus.path / "documents" / "train" / "fra_Latn" / "more.00000.jsonl.gz", ["texte"])
    write_json(corpus.path / "manifest.json", manifest_of(files=list_files(corpus.path)))
    assert len({first, second, tokens.folder_of(tmp_path, corpus, tokenizer)}) == 3


def test_deleted_ones_are_missed(tmp_path, corpus, tokenizer):
    tokens.tokenise(tmp_path / "tokens", corpus, tokenizer, CODES)
    shutil.rmtree(tmp_path / "tokens")
    with pytest.raises(RunFailed, match="deleted while they were needed"):
        tokens.token_files(tmp_path / "tokens", corpus, tokenizer, CODES)


def test_a_second_run_waits_for_the_first(tmp_path, corpus, tokenizer, capsys):
    folder = tokens.folder_of(tmp_path / "tokens", corpus, tokenizer)
    folder.mkdir(parents=True)
    with (folder / tokens.LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        second = threading.Thread(target=tokens.tokenise, args=(tmp_path / "tokens", corpus, tokenizer, CODES))
        second.start()
        second.join(timeout=0.5)
        assert second.is_alive() and not (folder / "fra_Latn").exists()
    second.join(timeout=30)
    assert "waiting for another run" in capsys.readouterr().out
    assert tokens.token_files(tmp_path / "tokens", corpus, tokenizer, CODES)
