"""What is printed while something takes long."""

import time

import pytest
import torch
from lm_eval.models import huggingface
from toy import FRENCH, documents
from transformers import AutoModelForCausalLM, AutoTokenizer

from langext import console
from langext.evaluation import bpb, harness, kl
from langext.methods.extended import LiveModel


@pytest.fixture
def impatient(monkeypatch):
    """Everything takes long."""
    for module in (console, bpb):
        monkeypatch.setattr(module, "SILENCE_SECONDS", 0.0)


def test_a_bar_of_a_library_becomes_lines(capsys, impatient):
    bar = console.Lines(total=4, desc="Downloading bytes", unit="B", bar_format="{bar}", disable=None)
    bar.update(1)
    bar.last_print_t -= 2  # tqdm looks at the clock once a second
    bar.update(1)
    bar.close()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("  downloading bytes:  50%, ETA ")
    assert list(console.Lines([1, 2], desc="x")) == [1, 2]
    assert capsys.readouterr().err == ""


def test_a_bar_that_knows_no_total_says_nothing(capsys, impatient):
    with console.Lines(desc="x") as bar:
        bar.update(5)
        bar.refresh()
    assert capsys.readouterr().out == ""


def test_short_work_is_silent(capsys):
    with console.Lines(total=2) as bar:
        bar.update(2)
        bar.refresh()
    with console.waiting("pip"):
        pass
    assert list(console.told("x", [1, 2])) == [1, 2]
    assert capsys.readouterr().out == ""


def test_waiting_is_told_as_long_as_it_lasts(capsys, monkeypatch):
    monkeypatch.setattr(console, "SILENCE_SECONDS", 0.02)
    with console.waiting("pip install"):
        time.sleep(0.15)
    lines = capsys.readouterr().out.splitlines()
    assert lines and set(lines) == {"  pip install: 0 s so far"}
    time.sleep(0.05)
    assert capsys.readouterr().out == ""


def test_measuring_tells_how_far_it_is(capsys, impatient, pico):
    """bits per byte, KL and lm-eval, each with the name of what is measured."""
    net = AutoModelForCausalLM.from_pretrained(pico, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(pico)
    texts = documents(FRENCH, 3, 1)
    bpb.measure(net, tokenizer, texts, batch_tokens=64, label="fra_Latn/book")
    kl.BaseKL(net, tokenizer, texts, label="fra_Latn")
    items = [{"query": "le chat", "choices": ["est", "noir"], "gold": 0, "gap": " "}] * 2
    harness.Harness(LiveModel(net, tokenizer), 1).items("mine", items)
    assert huggingface.tqdm.keywords["label"] == "mine: "  # pyright: ignore[reportFunctionMemberAccess]
    said = capsys.readouterr().out
    assert "  fra_Latn/book:" in said and "  fra_Latn: " in said and "ETA" in said
    quiet = (bpb.measure(net, tokenizer, texts), kl.BaseKL(net, tokenizer, texts))
    assert quiet and capsys.readouterr().out == ""
