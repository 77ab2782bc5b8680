"""The neutrality certificate: as a stage, as a command, and measured again by the script that travels with an export."""

import json
import re
import runpy
import shutil
import subprocess
import sys

import pytest
from bench import Bench, extend, train
from forks import langext
from run_folders import certificate, stage
from toy import GERMAN, documents, write_jsonl
from typer.testing import CliRunner

from langext.artifacts import read_json, sha256_file, write_json
from langext.cli import certify as command_line
from langext.cli.app import app
from langext.evaluation import certify as certifying
from langext.evaluation.certificate import read_file
from langext.evaluation.neutrality import shown
from langext.exports import certificates
from langext.report import page
from langext.report.run_folder import gather
from langext.text_summaries import FilterSummary, FunnelRow

RESIDUES = {"name": "neutral_residues", "gate": "hard_sigmoid", "init": "lecun", "width": 16, "alpha": 0.1}
QUICK = ("--bytes", "1000", "--continuations", "2")


@pytest.fixture(scope="module")
def bench(tmp_path_factory, pico):
    return Bench(tmp_path_factory.mktemp("bench"), pico)


@pytest.fixture(scope="module")
def run(bench):
    certify = {"uses": "certify", "bytes": 1500, "continuations": 2, "new_tokens": 6}
    short = train(steps=6, eval_every=6, save_every=6, warmup_steps=1)
    return bench.run("certified", "fra_Latn", ["eng_Latn"], [extend(**RESIDUES), short, {"uses": "export"}, certify])


@pytest.fixture
def export(run, tmp_path):
    """A copy of the export outside of its run."""
    return shutil.copytree(run / "04-export" / "checkpoint", tmp_path / "export")


def command(*args):
    return CliRunner().invoke(app, ["certify", *map(str, args)])


def test_a_stage_certifies_the_export_and_lays_the_certificate_into_it(run):
    export = run / "04-export" / "checkpoint"
    found = read_file(export / "neutrality.json")
    assert found == read_file(run / "05-certify" / "neutrality.json") == gather(run).summary(type(found))
    row = found.sets["eng_Latn/book"]
    assert found.model.name == "certified" and found.model.architecture == "Glm4MoeForCausalLM"
    assert row.role == "original" and list(found.sets) == ["eng_Latn/book"]
    assert row.kl > 0 and row.closed is not None and row.as_base == row.hidden_identical and row.continuations == 2
    weights = next(file for file in found.model.files if file.name == "model.safetensors")
    assert weights.sha256 == sha256_file(export / "model.safetensors")
    passages = [json.loads(line) for line in (export / "neutrality.jsonl").read_text().splitlines()]
    assert len(passages) == row.passages and sum(len(line["text"].encode()) for line in passages) == row.bytes
    assert sha256_file(export / "neutrality.jsonl") == found.passages_sha256
    card = (export / "README.md").read_text()
    assert card.count("## Neutrality") == 1 and f"| {row.tokens:,} |" in card and row.worst_text in card
    lines = page.headline(run, page.build(run))
    assert f"KL to the base {row.kl:.4f} nats per token" in lines


def test_anybody_can_measure_an_export_again(export, bench):
    """By a new interpreter, with nothing but the folder and its base."""
    assert not re.search(r"^\s*(from|import) (langext|tokenizer_tools)", (export / "certify.py").read_text(), re.M)
    command = [sys.executable, "-I", str(export / "certify.py"), "--base", str(bench.pico)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=export)
    assert done.returncode == 0, done.stdout + done.stderr
    row = read_file(export / "neutrality.json").total
    assert re.search(rf"^kl +({row.kl:.6f} *){{3}}$", done.stdout, re.M), done.stdout


def test_the_script_notices_what_is_worse(export, bench, capsys):
    again = runpy.run_path(str(export / "certify.py"))["main"]
    args = ["--model", str(export), "--base", str(bench.pico)]
    record = read_json(export / "neutrality.json")
    better = record["sets"]["eng_Latn/book"] | {"kl": 1e-6, "closed": 1.0}
    base = record["base"] | {"extended": True}
    write_json(export / "neutrality.json", record | {"sets": {"eng_Latn/book": better}, "base": base})
    assert again(args) == 1
    told = capsys.readouterr().err
    assert "the base is an extended model itself: its files are not compared" in told
    assert "worse than certified: eng_Latn/book: kl 0.000001 -> " in told and "eng_Latn/book: closed 100.00% -> " in told
    with (export / "neutrality.jsonl").open("a") as file:
        odd = "One more.\u2028Its lines end in what str.splitlines takes for the end of a line.\x85"
        file.write(json.dumps({"set": "eng_Latn/book", "text": odd}, ensure_ascii=False) + "\n")
    assert again(args) == 2 and "other passages than those of neutrality.json" in capsys.readouterr().err
    assert again([*args, "--json", "--passages", str(export / "neutrality.jsonl")]) == 0
    printed = capsys.readouterr()
    assert "there is nothing to compare with" in printed.err and json.loads(printed.out)["total"]["kl"] > 0
    write_json(export / "neutrality.json", record | {"passages_sha256": sha256_file(export / "neutrality.jsonl")})
    assert again(args[:2]) == 2 and "the base pico" in capsys.readouterr().err
    (export / "neutrality.jsonl").write_text("[]\n")
    assert again(args) == 2 and "expected lines of" in capsys.readouterr().err


def test_the_script_notices_files_that_are_not_those_of_the_certificate(export, bench, capsys):
    again, args = runpy.run_path(str(export / "certify.py"))["main"], ["--model", str(export), "--base"]
    assert again([*args, str(export)]) == 2  # a model is no proof of itself
    told = capsys.readouterr().err
    assert "is not what neutrality.json names as pico" in told and "model.safetensors differs" in told
    config = (export / "config.json").read_bytes()
    (export / "config.json").write_bytes(config + b"\n")
    assert again([*args, str(bench.pico)]) == 2 and "names as certified: config.json differs" in capsys.readouterr().err
    (export / "config.json").unlink()
    assert again([*args, str(bench.pico)]) == 2 and "names as certified: config.json is missing" in capsys.readouterr().err


def test_the_command_certifies_a_run(run, bench):
    done = langext("certify", run, *QUICK, "--fail-if", "total.kl > 0", "--fail-if", "total.closed_lost < 0")
    assert done.returncode == 3, done.stdout + done.stderr
    assert done.stderr.count("failed: ") == 1 and "failed: total.kl > 0: it is" in done.stderr
    assert "bits_per_byte_of_base" in done.stdout and str(run / "neutrality.json") in done.stdout
    found = read_file(run / "neutrality.json")
    assert found.model.architecture == "LlamaForCausalLM with neutral_residues" and found.base.name == bench.pico.name
    assert {file.name for file in found.model.files} >= {"delta.safetensors"} and not (run / "certify.py").exists()
    assert found.total.as_base == found.total.hidden_identical == found.total.logits_identical


def test_files_of_ones_own_and_another_base(export, bench, tmp_path):
    text = write_jsonl(tmp_path / "de.jsonl.gz", documents(GERMAN, 4, 9))
    (export / "modeling_mine.py").write_text("")
    (export / "certify.py").write_text("")
    done = command(
        export, *QUICK, "--text", f"de/book={text}", "--against", bench.pico, "--drop-text", "--trust-remote-code", "--json"
    )
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    code = [file["name"] for file in told["model"]["files"] if file["name"].endswith(".py")]
    assert code == ["modeling_mine.py"]  # code that runs is part of what is certified; the script itself is not
    assert told["sets"]["deu_Latn/book"]["role"] == "given" and told["failed"] == [] and "total.kl" in told["measures"]
    assert told["text"] == [
        {"set": "deu_Latn/book", "name": text.name, "bytes": text.stat().st_size, "sha256": sha256_file(text)}
    ]
    assert not (export / "neutrality.jsonl").exists()
    sentences = {line for document in documents(GERMAN, 4, 9) for line in document.split(". ") if len(line) > 10}
    for path in export.glob("*.*"):
        assert path.suffix == ".safetensors" or not any(line in path.read_text() for line in sentences), path
    card = (export / "README.md").read_text()
    assert card.count("## Neutrality") == 1 and "--passages path/to/neutrality.jsonl" in card and "deu_Latn/book" in card


def test_text_of_ones_own_in_a_run_has_the_role_that_the_run_gives_it(tmp_path):
    counts = dict.fromkeys(("documents_read", "judged", "bytes_read", "train_documents", "train_bytes", "valid_bytes"), 9)
    row = FunnelRow(language="deu_Latn", domain="web", origin="", dropped={}, valid_documents=9, role="protect", **counts)
    stage(tmp_path / "run", 1, "filter", "Corpus", summary=FilterSummary(funnel=[row], source_files=[], lid_sha256=""))
    text = write_jsonl(tmp_path / "text.jsonl.gz", documents(GERMAN, 4, 2))
    found = command_line._text(tmp_path / "run", [f"{code}/mine={text}" for code in ("eng_Latn", "deu_Latn", "slk_Latn")])
    assert found.roles == {"eng_Latn/mine": "original", "deu_Latn/mine": "protected", "slk_Latn/mine": "measured"}


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--text", "eng_Latn"), "--text 'eng_Latn': expected <language>/<domain>=<path>"),
        (("--text", "zz/x=/nowhere"), "--text 'zz/x=/nowhere': "),
        (("--text", "en/x=/nowhere"), "/nowhere"),
        (("--against", "/nowhere"), "--against: /nowhere: no such file or folder"),
        (("--fail-if", "total.kk > 1"), "no measure 'total.kk'. Did you mean total.kl"),
    ],
)
def test_mistakes_are_one_line(run, args, said):
    done = command(run, *QUICK, *args)
    assert done.exit_code == 2 and said in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr


def test_what_cannot_be_certified(export, tmp_path):
    for folder, said in (
        (tmp_path / "none", "neither a run folder nor an exported model"),
        (export, "no held-out text of a run here"),
    ):
        done = command(folder)
        assert done.exit_code == 2 and said in done.stderr
    text = f"en/x={write_jsonl(tmp_path / 'x.jsonl', ['The cat.'])}"
    assert "say --against <base>" in command(export, "--text", text).stderr
    config = read_json(export / "config.json")
    write_json(export / "config.json", config | {"auto_map": {"AutoModelForCausalLM": "x.Y"}})
    done = command(export, "--text", text)
    assert done.exit_code == 2 and "brings Python code of its own (auto_map in config.json)" in done.stderr


def test_text_of_others_stays_text_in_the_model_card():
    card = certificates.section(certificate(0.1, shown("<script>|`\n## x")), True, True)
    assert "\n    <script>|`\\n## x\n" in card and "--trust-remote-code" in card


def test_how_many_tokens_were_compared_is_said_everywhere(tmp_path):
    found = certificate(0.1, compared=23)
    assert "| text | tokens | of them compared |" in (card := certificates.section(found, True, True))
    assert card.count("| 30 | 23 | 99.00 % |") == 2
    assert re.search(r"^tokens +30 +30 +30\ncompared +23 +23 +23$", "\n".join(certifying.lines(found.model_dump())), re.M)
