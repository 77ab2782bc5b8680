"""What `langext watch` prints of a run, and the report that follows a training."""

import fcntl
import json
import threading

import pytest
from run_folders import compared
from typer.testing import CliRunner

from langext.artifacts import LOCK
from langext.cli import app, watch
from langext.console import spark
from langext.pipeline import live


def trained(step: int, loss: float) -> dict:
    return {
        "step": step,
        "kind": "train",
        "losses": {"loss/fra_Latn": loss},
        "tokens_per_second": 9,
        "eta_seconds": 70,
        "time": step,
    }


def evaluated(step: int, bits: float) -> dict:
    return {
        "step": step,
        "kind": "eval",
        "tokens": 9 * step,
        "sets": {"fra_Latn/book": {"bits_per_byte": bits}},
        "time": step + 0.5,
    }


def write(run, *rows):
    (run / "04-train" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def run(tmp_path):
    return compared(tmp_path / "run", "lora", 1e-3, 1.5, 1.0)


def test_news_are_told_once_and_steps_made_again_after_a_resume_too(run):
    manifest = (run / "04-train" / "manifest.json").read_text()
    (run / "04-train" / "manifest.json").unlink()
    write(run, evaluated(0, 2.0), *(trained(step, 4 - step / 10) for step in range(1, 21)))
    seen = watch.Seen(run)
    first = list(seen.news())
    assert first[0] == "01-filter: finished in 3 s" and "04-train: begun" in first
    steps = [line for line in first if line.startswith("  step")]
    assert len(steps) == watch.LATEST and steps[-1] == "  step 20  loss/fra_Latn 2.000  9 tokens/s  ETA 1 min 10 s"
    assert first[-2].endswith("3.900 -> 2.000") and list(seen.news()) == []
    again = evaluated(5, 1.8) | {"time": 30}
    write(run, evaluated(0, 2.0), *(trained(step, 3) for step in range(1, 6)), again)
    (run / "04-train" / "manifest.json").write_text(manifest)
    told = list(seen.news())
    assert told[0] == "  step 5  held-out bits per byte: fra_Latn/book 1.8000" and told[-1] == "04-train: finished in 3 s"
    assert any(line.endswith("2.000 -> 1.800") and "fra_Latn/book, bits per byte" in line for line in told)


def test_it_ends_with_the_run(run, tmp_path):
    write(run, evaluated(0, 2.0), trained(1, 3.0))
    assert not watch.working(run)
    with (run / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert watch.working(run)
        threading.Timer(0.3, lock.close).start()
        result = CliRunner().invoke(app.app, ["watch", str(run), "--every", "0.1"])
    assert result.exit_code == 0 and result.output.count("step 1 ") == 1
    assert result.output.endswith("no run works here now\n")
    missing = CliRunner().invoke(app.app, ["watch", str(tmp_path / "none")])
    assert missing.exit_code == 2 and "no such folder" in missing.output


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([], ""),
        ([3.0], "▁"),
        ([0.0, 7.0], "▁█"),
        ([7.0, float("nan"), 0.0], "█ ▁"),
        ([float("inf")], " "),
        ([1.0] * 99, "▁" * 40),
    ],
)
def test_a_sparkline(values, shown, monkeypatch):
    monkeypatch.setattr("langext.console._prints", lambda text: True)
    assert spark(values) == shown
    monkeypatch.setattr("langext.console._prints", lambda text: False)
    assert spark(values).isascii() and len(spark(values)) == len(shown)


def test_the_report_follows_a_training_that_goes_on(run, capsys):
    for unfinished in ("04-train", "05-evaluate"):
        (run / unfinished / "manifest.json").unlink()
    write(run, evaluated(0, 2.0))
    page = run / "report.html"
    with live.page(run / "04-train", every=0.05):
        for _ in range(600):
            if page.exists():
                break
            threading.Event().wait(0.1)
    assert "Learning curves" in page.read_text()
    (run / "04-train" / "metrics.jsonl").write_text("[]\n")
    with live.page(run / "04-train", every=0.01):
        for _ in range(100):
            if not any(thread.name == "report" for thread in threading.enumerate()):
                break
            threading.Event().wait(0.05)
    assert "report.html is not brought up to date" in capsys.readouterr().err
