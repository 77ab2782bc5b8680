"""The whole job on pico models, through the command line and the very file that users copy."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from bench import bits, evals
from forks import langext
from processes import kill_worker, running, start, wait_for, workers

from langext.errors import EXIT_RUN_FAILED

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def overrides(pico: Path, lid: Path, texts: Path) -> list[str]:
    """add_language.yaml on a pico model and local files, on the CPU."""
    source = "{{language: {}, path: {}, name: {}{}}}"
    sources = [
        source.format("fra_Latn", texts / "fr.jsonl.gz", "book", ""),
        source.format("eng_Latn", texts / "en.jsonl.gz", "book", ""),
        source.format("eng_Latn", texts / "other.txt", "other", ", heldout_only: true"),
        source.format("code", texts / "code.jsonl.gz", "code", ""),
    ]
    values = {
        "language": "fra_Latn", "original_languages": "[eng_Latn, code]", "base_model": pico, "revision": "null",
        "filter.sources": f"[{', '.join(sources)}]", "filter.lid_model": lid, "filter.heldout_frac": 0.2,
        "filter.runtime.workers": 1, "filter.level": "paragraph",
        "evaluate_base.tasks": "[]", "evaluate_base.runtime.gpus": 0, "evaluate_base.bpb_bytes": 40_000,
        "evaluate_base.continuation_items": 8, "evaluate_base.sample_tokens": 8,
        "evaluate.tasks": "[]", "evaluate.runtime.gpus": 0, "evaluate.bpb_bytes": 40_000, "evaluate.continuation_items": 8,
        "certify.runtime.gpus": 0, "certify.bytes": 1000, "certify.continuations": 1, "certify.new_tokens": 4,
        "evaluate.sample_tokens": 8, "extend.method.init": "lecun", "extend.runtime.gpus": 0,
        "extend.method.calibrate": "{closed: 0.9, original_tokens: 4000, new_tokens: 3000, min_open: 0.1}",
        "evaluate_base.precision": "fp32", "evaluate.precision": "fp32", "train.precision": "fp32",
        "train.steps": 30, "train.sequence_length": 64, "train.batch_sequences": 8, "train.lr": 1e-2, "train.warmup_steps": 2,
        "train.eval_every": 15, "train.eval_bytes": 40_000, "train.save_every": 10, "train.log_every": 5,
        "train.runtime": "{gpus: 0, deepspeed: cpu, micro_batch: 4}",
    }  # fmt: skip
    return [part for key, value in values.items() for part in ("--set", f"{key}={value}")]


@pytest.fixture(scope="module")
def done(overrides: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A finished run of pipelines/add_language.yaml and what it printed."""
    out = tmp_path_factory.mktemp("runs") / "run"
    command = [sys.executable, "-m", "langext.cli", "run", "pipelines/add_language.yaml", "--out", str(out), *overrides]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr + result.stdout
    return out, result.stdout


def scores(run: Path, stage: str) -> dict:
    return json.loads((run / stage / "scores.json").read_text())


def test_learns_the_new_language_and_reports_it(done):
    run, said = done
    before, after = scores(run, "02-evaluate_base"), scores(run, "05-evaluate")
    learned = "fra_Latn/book"
    assert after["bits_per_byte"][learned]["value"] < 0.8 * before["bits_per_byte"][learned]["value"]
    assert set(after["bits_per_byte"]) == {learned, "eng_Latn/book", "eng_Latn/other", "zxx_Zyyy/code"}
    assert set(after["tasks"]) == {f"continuation_{code}" for code in ("fra_Latn", "eng_Latn")}  # of code there is too little
    assert (
        len(after["tasks"]["continuation_fra_Latn"]["acc"]["each"]) == after["tasks"]["continuation_fra_Latn"]["acc"]["items"]
    )
    assert "kl_to_base" not in before or before["kl_to_base"] == {}
    assert after["kl_to_base"].keys() == {"eng_Latn", "zxx_Zyyy"} and 0 < after["kl_to_base"]["eng_Latn"]["value"] < 1
    assert (
        before["generation"]["tokens_per_second"] > 0
        and before["generation"]["weights_bytes"] < after["generation"]["weights_bytes"]
    )
    assert "learned: French, book" in said and "checkpoint" in said and "ETA" in said
    page = (run / "report.html").read_text()
    assert "<svg" in page and "http-equiv" not in page and "src=" not in page


def test_training_measures_what_evaluation_measures(done):
    """All held-out text, once under DeepSpeed and once loaded from the delta: rounding and nothing else."""
    run, _ = done
    rows = [json.loads(line) for line in (run / "04-train" / "metrics.jsonl").read_text().splitlines()]
    evals = [row["sets"] for row in rows if row["kind"] == "eval"]
    for stage, figures in (("02-evaluate_base", evals[0]), ("05-evaluate", evals[-1])):
        for name, measured in scores(run, stage)["bits_per_byte"].items():
            assert figures[name]["bits_per_byte"] == pytest.approx(measured["value"], rel=1e-4)


def test_every_manifest_is_complete(done):
    run, _ = done
    manifests = sorted(run.glob("*/manifest.json"))
    assert [m.parent.name for m in manifests] == [
        "01-filter", "02-evaluate_base", "03-extend", "04-train", "05-evaluate", "06-export",
        "07-certify", "base",
    ]  # fmt: skip
    for path in manifests[:-1]:
        manifest = json.loads(path.read_text())
        assert manifest["fingerprint"] and manifest["files"] and manifest["versions"]["torch"]
        # The certificate is laid into the export, and told in its model card.
        kept = [file for file in manifest["files"] if Path(file["name"]).name != "README.md"]
        assert kept and all((path.parent / file["name"]).stat().st_size == file["bytes"] for file in kept)


def test_checkpoint_loads_with_stock_transformers_and_writes(done):
    checkpoint = done[0] / "06-export" / "checkpoint"
    code = (
        "import sys; from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        f"m, t = (kind.from_pretrained({str(checkpoint)!r}) for kind in (AutoModelForCausalLM, AutoTokenizer))\n"
        "out = m.generate(**t('Le petit chat', return_tensors='pt'), max_new_tokens=8)\n"
        "assert out.shape[1] > 3 and 'langext' not in sys.modules; print(type(m).__name__)"
    )
    result = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "Glm4MoeForCausalLM"
    assert "base | this model" in (checkpoint / "README.md").read_text()


def test_again_skips_everything(done, overrides):
    run, _ = done
    before = {p: p.stat().st_mtime_ns for p in run.glob("*/manifest.json")}
    result = langext("run", "pipelines/add_language.yaml", "--out", str(run), *overrides)
    assert result.returncode == 0 and result.stdout.count("done already") == 7
    assert before == {p: p.stat().st_mtime_ns for p in run.glob("*/manifest.json")}


def test_runtime_changes_nothing_and_a_recipe_change_is_refused(done, overrides):
    run, _ = done
    again = langext(
        "plan", "pipelines/add_language.yaml", "--out", str(run), *overrides, "--set", "train.runtime.micro_batch=2"
    )
    assert again.stdout.count(" done ") == 7
    changed = langext("run", "pipelines/add_language.yaml", "--out", str(run), *overrides, "--set", "train.lr=2e-2")
    assert changed.returncode == 2
    assert "lr: 0.01 -> 0.02" in changed.stderr and "--redo train" in changed.stderr


def test_redo_runs_the_stage_and_what_depends_on_it(done, overrides, tmp_path):
    run = tmp_path / "copy"
    shutil.copytree(done[0], run)
    result = langext("run", "pipelines/add_language.yaml", "--out", str(run), *overrides, "--redo", "evaluate")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("done already") == 4  # filter, evaluate_base, extend, train


def test_export_command(done, tmp_path):
    to = tmp_path / "remote"
    result = langext("export", str(done[0]), "--to", str(to), "--format", "remote")
    assert result.returncode == 0, result.stderr
    assert (to / "modeling_neutral_residue.py").is_file()
    assert "| fra_Latn/book, bits per byte |" in (to / "README.md").read_text()
    again = langext("export", str(done[0]), "--to", str(to))
    assert again.returncode == 2 and "exists already" in again.stderr


def test_a_stage_that_is_killed_is_not_done_and_is_done_again(done, overrides, tmp_path):
    run = tmp_path / "killed"
    shutil.copytree(done[0], run)
    for name in ("05-evaluate", "06-export", "07-certify"):
        (run / name / "manifest.json").unlink()
    process = start("run", "pipelines/add_language.yaml", "--out", str(run), *overrides)
    wait_for(process, "evaluate: going on")
    time.sleep(2)
    kill_worker(run, signal.SIGKILL)
    assert process.wait(timeout=60) == EXIT_RUN_FAILED
    assert not (run / "05-evaluate" / "manifest.json").exists()
    result = langext("run", "pipelines/add_language.yaml", "--out", str(run), *overrides)
    assert result.returncode == 0, result.stderr
    assert (run / "06-export" / "checkpoint" / "export.json").is_file()
    assert not list((run / "06-export").glob("*.tmp"))


def test_a_worker_ends_when_its_run_is_killed_and_the_same_command_goes_on(done, overrides, tmp_path):
    run = tmp_path / "orphan"
    shutil.copytree(done[0], run)
    for name in ("06-export", "07-certify"):
        (run / name / "manifest.json").unlink()
    process = start("run", "pipelines/add_language.yaml", "--out", str(run), *overrides)
    wait_for(process, "export: going on")
    workers(run)
    process.kill()
    process.wait()
    for _ in range(100):
        if not running(run):
            break
        time.sleep(0.1)
    assert not running(run)
    second = langext("run", "pipelines/add_language.yaml", "--out", str(run), *overrides)
    assert second.returncode == 0, second.stderr
    assert (run / "06-export" / "checkpoint" / "export.json").is_file()


@pytest.mark.parametrize(
    ("method", "kind"),
    [
        ("{name: full}", "LlamaForCausalLM"),
        ("{name: neutral_residues, gate: sigmoid, width: 32}", "GraniteMoeHybridForCausalLM"),
    ],
)
def test_with_an_extended_tokenizer(done, overrides, tmp_path, method, kind):
    """New tokens are learned, exported in one matrix, and the text gets shorter."""
    pipeline = (ROOT / "pipelines" / "add_language.yaml").read_text()
    stages = pipeline.replace("  - uses: extend\n", "  - {uses: extend_tokenizer, new_tokens: 40}\n  - uses: extend\n")
    (tmp_path / "p.yaml").write_text(re.sub(r"  - uses: evaluate\n(    .*\n)+", "", stages))
    run = tmp_path / "run"
    run.mkdir()
    for name in ("base", "01-filter", "02-evaluate_base"):
        shutil.copytree(done[0] / name, run / name)
    short = ["--set", f"extend.method={method}", "--set", "train.steps=8", "--set", "train.lr=3e-3"]
    short += ["--set", "train.original_frac=0.1"]  # for the local loss of gates that learn
    pairs = zip(overrides[::2], overrides[1::2], strict=True)
    kept = [part for pair in pairs if "method" not in pair[1] and "evaluate." not in pair[1] for part in pair]
    result = langext("run", str(tmp_path / "p.yaml"), "--out", str(run), *kept, *short)
    assert result.returncode == 0, result.stderr + result.stdout
    gain = json.loads((run / "03-extend_tokenizer" / "manifest.json").read_text())["summary"]["heldout"]["fra_Latn"]
    assert gain["bytes_per_token_after"] > 1.3 * gain["bytes_per_token_before"]
    export = json.loads((run / "06-export" / "checkpoint" / "export.json").read_text())
    assert export["loads_as"] == kind and export["max_abs_difference"] < 1e-4
    before, after = evals(run)[0], evals(run)[-1]
    assert bits(after, "fra_Latn") < bits(before, "fra_Latn")
