"""The commands say what is so: of text that is not there, of numbers that are not reached, of settings that do nothing."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import spm
from toy import ENGLISH, FRENCH, GERMAN, make_tokenizer, sentences, write_jsonl

from tokenizer_tools.__main__ import main

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base with text of three languages, and files without text."""
    path = tmp_path_factory.mktemp("commands")
    make_tokenizer().save_pretrained(path / "base")
    for code, words, number in (("fr", FRENCH, 400), ("en", ENGLISH, 200), ("de", GERMAN, 100), ("one", FRENCH, 1)):
        write_jsonl(path / f"{code}.jsonl", sentences(words, number, 3))
    write_jsonl(path / "blank.jsonl", ["", " \n"])
    (path / "empty.jsonl").touch()
    return path


def text(folder: Path, *codes: str) -> list[str]:
    return [word for code in codes for word in ("--text", f"{code}={folder / f'{code}.jsonl'}")]


def run(capsys: Capture, *words: object) -> Any:
    """What a command prints, and what it says beside."""
    assert main([str(word) for word in words]) == 0
    return capsys.readouterr()


def refused(capsys: Capture, *words: object) -> str:
    """What is said of a command that is refused, in one line beside warnings."""
    assert main([str(word) for word in words]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning: ")]
    assert len(said) == 1
    return said[0]


def test_a_picture_shows_how_languages_are_written_with_a_curve_and_without(folder: Path, capsys: Capture) -> None:
    drawn = {}
    for new in ("fr", "en"):
        path = folder / f"{new}.svg"
        run(capsys, "audit", folder / "base", *text(folder, "fr", "en"), "--new", new, "--picture", path)
        drawn[new] = path.read_text(encoding="utf-8")
        assert "Tokens per word" in drawn[new] and "Bytes per token" in drawn[new]
    assert "New language" in drawn["fr"] and "New language" not in drawn["en"]


def test_an_audit_of_one_document_is_a_table_without_advice(folder: Path, capsys: Capture) -> None:
    said = run(capsys, "audit", folder / "base", *text(folder, "one")).out
    assert "tokens/word" in said and "one: no advice: the new language: one document is too little" in said
    found = json.loads(run(capsys, "audit", folder / "base", *text(folder, "one"), "--json").out)
    assert found["new_tokens"] is None and found["curve"] == [] and found["languages"]["one"]["documents"] == 1


def test_without_text_of_an_original_language_nothing_is_said_of_it(folder: Path, capsys: Capture) -> None:
    said = run(capsys, "audit", folder / "base", *text(folder, "fr")).out
    assert "fr: extend by" in said and "unseen original" not in said and "100.00%" not in said
    found = json.loads(run(capsys, "audit", folder / "base", *text(folder, "fr"), "--json").out)
    assert found["curve"] and {(point["identical"], point["original_tokens"]) for point in found["curve"]} == {(None, None)}


def test_a_curve_has_a_figure_for_each_file(folder: Path, capsys: Capture) -> None:
    """German is kept apart and English is not, so they must not be as one."""
    german, english = (folder / f"{code}.jsonl" for code in ("de", "en"))
    command = ["curve", folder / "base", *text(folder, "fr"), "--protect", german, "--unseen", german, "--unseen", english]
    found = json.loads(run(capsys, *command, "--min-count", 2, "--json").out)["fr"][-1]
    assert {name: each["documents"] for name, each in found["kept"].items()} == {str(german): 100, str(english): 200}
    assert found["kept"][str(german)]["same"] == 100 > found["kept"][str(english)]["same"]
    assert found["identical"] == sum(each["same"] for each in found["kept"].values()) / 300
    drawn = folder / "curve.svg"
    said = run(capsys, *command, "--min-count", 2, "--picture", drawn).out
    assert f"documents as before: {german}" in said and f"original tokens: {english}" in said
    assert "fr unprotected: en.jsonl" in drawn.read_text(encoding="utf-8")


@pytest.mark.parametrize("file", ["empty", "blank"])
def test_files_without_text_are_refused(folder: Path, capsys: Capture, file: str) -> None:
    """Documents without text protect nothing, and a share of them is no figure."""
    nothing = folder / f"{file}.jsonl"
    grow = ["extend", folder / "base", *text(folder, "fr"), "--new", "fr", "--new-tokens", 5, "--out", folder / "x"]
    for words in (
        ["curve", folder / "base", *text(folder, "fr"), "--protect", folder / "en.jsonl", "--unseen", nothing],
        [*grow, "--protect", nothing],
        [*grow, "--text", f"en={nothing}"],
        ["audit", folder / "base", "--text", f"en={nothing}"],
    ):
        said = refused(capsys, *words)
        assert "no documents with text" in said and (str(nothing) in said or "en: " in said)
    assert not (folder / "x").exists()


def test_empty_documents_are_not_counted_as_protected(folder: Path, capsys: Capture) -> None:
    write_jsonl(folder / "some.jsonl", ["", "the dog", "", " "])
    grow = ["extend", folder / "base", *text(folder, "fr"), "--new", "fr", "--new-tokens", 5, "--out"]
    said = run(capsys, *grow, folder / "few", "--text", f"en={folder / 'some.jsonl'}")
    assert "warning: only 1 protected documents" in said.err
    assert "warning: no code is protected, only text of languages" in said.err and "--protect FILE adds some" in said.err
    said = run(capsys, *grow, folder / "code", *text(folder, "en"), "--protect", folder / "some.jsonl")
    assert "only 201 protected" in said.err and "no code" not in said.err
    assert "code" not in run(capsys, *grow, folder / "free", "--unprotected").err


def test_a_number_that_is_not_reached_and_a_setting_that_does_nothing_are_told(folder: Path, capsys: Capture) -> None:
    grow = ["extend", folder / "base", *text(folder, "fr", "en"), "--new", "fr", "--out"]
    said = run(capsys, *grow, folder / "most", "--new-tokens", 99_999)
    number = len(json.loads((folder / "most" / "new_tokens.json").read_text()))
    assert f"only {number:,} of 99,999 tokens: nothing else that may become one occurs 10 times" in said.err
    assert "only" not in run(capsys, *grow, folder / "all", "--new-tokens", 5).err.replace("only text", "").replace(
        "only 200", ""
    )
    said = refused(capsys, *grow, folder / "x", "--reuse-slots", "--new-tokens", 5)
    assert "--reuse-slots: " in said and "has no reserved token that is free" in said
    for number in ("1", "0", "-5", "many"):
        said = refused(capsys, *grow, folder / "x", f"--min-count={number}", "--new-tokens", 5)
        assert f"--min-count: expected a number from 2 on, got {number!r}" in said
    assert not (folder / "x").exists()


def test_other_forms_of_tokenizers_are_named_as_langext_does(folder: Path, capsys: Capture, tmp_path: Path) -> None:
    (tmp_path / "tekken").mkdir()
    (tmp_path / "tekken" / "tekken.json").write_text("{}")
    (tmp_path / "tiktoken").mkdir()
    ranks = [base64.b64encode(bytes([byte])).decode() + f" {byte}\n" for byte in range(256)]
    (tmp_path / "tiktoken" / "tokenizer.model").write_text("".join(ranks))
    for name in ("tekken", "tiktoken"):
        said = refused(capsys, "audit", tmp_path / name, *text(folder, "fr"))
        assert name in said and "of the same model in Hugging Face form" in said
    spm.write(tmp_path / "renamed", "llama2")
    (tmp_path / "renamed" / "tokenizer.model").rename(tmp_path / "renamed" / "spiece.model")
    said = refused(capsys, "audit", tmp_path / "renamed", *text(folder, "fr"))
    assert "spiece.model is called tokenizer.model where it is read" in said
