"""The report only reads, escapes what it reads, and calls noise noise."""

import json
from pathlib import Path

import pytest

from langext import report
from langext.artifacts import write_json
from langext.spec import ConfigError

EVIL = "<script>alert('x')</script> & <b>"


def bits(value, count=50):
    each = [value * 100 + (i % 7) for i in range(count)]
    return {
        "value": value,
        "stderr": 0.05,
        "bytes": 100 * count,
        "passages": count,
        "bits_each": each,
        "bytes_each": [100] * count,
    }


def stage(root: Path, number: int, name: str, uses: str, kind: str, inputs=None, summary=None) -> Path:
    folder = root / f"{number:02d}-{name}"
    folder.mkdir(parents=True)
    write_json(folder / "job.json", {"language": "fra_Latn", "original_languages": ["eng_Latn"]})
    manifest = {
        "stage": {"uses": uses}, "kind": kind, "inputs": inputs or {}, "summary": summary or {}, "seconds": 3.0,
        "peak_memory_bytes": 10**9, "device": "CPU", "fingerprint": "abc", "started": 1.7e9, "seed": 1,
    }  # fmt: skip
    write_json(folder / "manifest.json", manifest)
    return folder


@pytest.fixture
def run(tmp_path):
    funnel = [{
        "language": "fra_Latn", "domain": EVIL, "documents_read": 9, "judged": 9, "dropped": {"language_en": 2},
        "train_documents": 5, "valid_documents": 2, "train_bytes": 1000, "valid_bytes": 400,
    }]  # fmt: skip
    stage(tmp_path, 1, "filter", "filter", "Corpus", summary={"funnel": funnel})
    for number, name, model, french, english in ((2, "evaluate_base", "base", 2.0, 1.0), (4, "evaluate", "train", 1.5, 1.0001)):
        folder = stage(tmp_path, number, name, "evaluate", "Scores", {"model": {"stage": model}})
        found = {"fra_Latn/book": bits(french), "eng_Latn/news": bits(english)}
        found["eng_Latn/news"]["bits_each"] = [
            b + (i % 3 - 1) * number for i, b in enumerate(found["eng_Latn/news"]["bits_each"])
        ]
        tasks = {"continuation_fra_Latn": {"acc": {"value": 0.5, "stderr": 0.06, "items": 60}}}
        samples = [{"language": "fra_Latn", "prompt": EVIL, "text": f"{name} {EVIL}"}]
        scores = {"format": "langext scores 2", "bits_per_byte": found, "tasks": tasks, "samples": samples}
        write_json(folder / "scores.json", scores)
    train = {"tokens": 100, "steps": 2, "seconds": 3.0, "shares": {"fra_Latn": 1.0}, "epochs": {"fra_Latn": 1.0}}
    train |= {"kl_to_base": 0.0123, "dead_layers": [4, 7], "weights": {"active_blocks": 3.0}}
    folder = stage(tmp_path, 3, "train", "train", "Model", {"model": {"stage": "extend"}}, train)
    rows = [
        {
            "step": s,
            "kind": "eval",
            "tokens": 50 * s,
            "figures": {"fra_Latn/book": {"bits_per_byte": 2 - s, "open": [0.5, 0.1]}},
        }
        for s in (0, 1)
    ] + [{"step": 1, "kind": "train", "figures": {"loss/fra_Latn": 3.0}}]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def test_nothing_from_the_data_becomes_markup(run):
    page = report.build(run).read_text()
    assert "<script" not in page and "&lt;script&gt;" in page
    assert "http://" not in page.replace("http://www.w3.org", "") and "<link" not in page


def test_headline_tells_learning_from_noise(run):
    lines = report.headline(run, report.build(run))
    assert "learned: French, book" in lines and "-25.0%" in lines
    assert "kept: English, news" in lines and "no change beyond noise" in lines


def test_forgetting_is_called_forgetting(run):
    path = run / "04-evaluate" / "scores.json"
    scores = json.loads(path.read_text())
    scores["bits_per_byte"]["eng_Latn/news"] = bits(1.2)
    path.write_text(json.dumps(scores))
    assert "forgotten: English, news" in report.headline(run, run)


def test_sections_are_there(run):
    page = report.build(run).read_text()
    for part in (
        "Learning curves", "Gates", "Before and after", "Samples", "language_en", "continuation_fra_Latn",
        "0.0123 nats per token", "layers 4, 7 are closed", "active blocks: 3",
    ):  # fmt: skip
        assert part in page


def test_an_unfinished_run_is_reported_as_far_as_it_is(tmp_path):
    stage(tmp_path, 1, "filter", "filter", "Corpus", summary={"funnel": []})
    assert "No before and after yet" in report.build(tmp_path).read_text()
    with pytest.raises(ConfigError, match="no finished stage"):
        report.build(tmp_path / "01-filter")
