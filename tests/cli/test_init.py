"""What `langext init` writes, and why."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from toy import ENGLISH, FRENCH, documents, write_jsonl
from typer.testing import CliRunner

from langext import languages
from langext.cli import app, first_look, first_pipeline, first_settings
from langext.cli.first_look import Base, Machine, Text
from langext.data import assets
from langext.pipeline import estimate
from langext.pipeline.plan import Pipeline
from langext.spec import load
from langext.stages.filter import Filter
from langext.stages.train import Train
from tokenizer_tools.audit import Use

HUNGARIAN, HINDI = languages.find("hu"), languages.find("hi")
SMOLLM2 = Base(
    SimpleNamespace(hidden_size=2048, num_hidden_layers=24, max_position_embeddings=8192, tie_word_embeddings=True),
    None, estimate.Size(base=1_711_000_000, total=2_053_000_000, trainable=342_000_000, first=0),
)  # fmt: skip
"""The shapes of SmolLM2-1.7B."""
CPU, NODE = Machine(0, "", 0, 8, 2**35), Machine(8, "H100", 80 * 2**30, 64, 2**40)


def used(words: int, tokens: int) -> Use:
    return Use(10, 6 * words, words, 0, tokens, 0, 0, 100, 49_152, 5 * words, 0)


def of(size_bytes: int, tokens_per_word: float = 2) -> Text:
    return Text("/text", size_bytes, "", used(1000, int(1000 * tokens_per_word)))


def langext(*args):
    return CliRunner().invoke(app.app, [*map(str, args)])


def test_what_it_writes_passes_plan(tmp_path, pico, lid, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "fr" / "a.jsonl.gz", documents(FRENCH, 60, 1))
    write_jsonl(tmp_path / "en.jsonl", documents(ENGLISH, 60, 2))
    here = {"asset:lid.176": lid, **dict.fromkeys(("asset:python-reference", "asset:everything-else"), tmp_path / "en.jsonl")}
    monkeypatch.setattr(assets, "resolve", here.__getitem__)
    args = ["--language", "fr", "--base", pico, "--text", "fr", "--original-text", "en.jsonl", "--out", "my.yaml"]
    written = langext("init", *args)
    assert written.exit_code == 0, written.output
    assert "tokens per word; the original text has" in written.output and "langext plan my.yaml" in written.output
    spec = load(tmp_path / "my.yaml", Pipeline)
    assert (spec.language, spec.original_languages, spec.base_model) == ("fra_Latn", ["eng_Latn"], str(pico))
    text, train = (next(stage for stage in spec.stages if isinstance(stage, kind)) for kind in (Filter, Train))
    assert [source.path for source in text.sources[:2]] == [str(tmp_path / "fr"), str(tmp_path / "en.jsonl")]
    assert train.lr == 8e-3 and train.accumulate() and first_settings.LEAST_STEPS <= train.steps < 110
    planned = langext("plan", "my.yaml")
    assert planned.exit_code == 0 and "ready to run" in planned.output, planned.output
    again = langext("init", *args)
    assert again.exit_code == 2 and "my.yaml: exists already" in again.output


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--language", "klingonish"], "unknown language 'klingonish'"),
        (["--base", "./none"], "./none: no such file or folder"),
        (["--text", "none"], "none: no such file"),
        (["--original", "ace"], "--original: langext knows no text of Acehnese"),
        (["--original", "hu"], "--original: hun_Latn is the language to add"),
        (["--out", "no/where.yaml"], "no: no such folder"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(args, said, pico, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = langext("init", "--language", "hu", "--base", pico, *args)
    assert result.exit_code == 2 and said in result.output, result.output
    assert len(result.output.strip().splitlines()) == 1 and not list(tmp_path.iterdir())


def test_without_the_hub_the_pipeline_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(first_look, "_download", lambda name, revision: False)
    asked = first_pipeline.Asked("owner/model", "abc", HINDI, [languages.find("en")], tmp_path / "x.yaml")
    written = first_pipeline.write(asked, first_look.base("owner/model", "abc"), None, None, NODE)
    assert "the hub could not be reached" in written.text and 'revision: "abc"' in written.text
    assert "extend_tokenizer\n" in written.text, "Hindi is not in Latin script"


@pytest.mark.parametrize(
    ("machine", "text", "tokens", "lr", "step", "why"),
    [
        (CPU, None, 225_280, 8e-3, 2048, "there is no GPU here"),
        (CPU, of(300), 40_960, 8e-3, 2048, "reads the little text more than 4 times"),
        (CPU, of(60_000), 72_000, 8e-3, 2048, "all of the text 4 times"),
        (NODE, of(600_000), 750_000, 8e-3, 4096, "all of the text 4 times"),
        (NODE, of(10**9), 1_332_000_000, 4e-3, 524_288, "all of the text 4 times"),
        (NODE, of(10**11), 6_429_000_000, 4e-3, 524_288, "the compute of pipelines/add_language.yaml for each of 8 GPU(s)"),
    ],
)
def test_text_and_machine_decide_how_long_it_trains(machine, text, tokens, lr, step, why):
    found = first_settings.budget(SMOLLM2, text, machine)
    assert found.tokens == pytest.approx(tokens, rel=0.06) and found.lr == lr and why in found.why
    assert found.sequence_length * found.batch_sequences == step


def test_the_simplest_placement_that_fits_is_taken():
    long = first_settings.budget(SMOLLM2, None, NODE)
    assert first_settings.placement(SMOLLM2, long, NODE).runtime == {"gpus": 8, "deepspeed": "zero2", "micro_batch": 8}
    small = replace(NODE, gpu_bytes=8 * 2**30)
    assert first_settings.placement(SMOLLM2, long, small).runtime["activation_checkpointing"]
    large = Base(SMOLLM2.config, None, estimate.Size(base=70 * 10**9, total=84 * 10**9, trainable=14 * 10**9, first=0))
    assert first_settings.placement(large, long, NODE).runtime["deepspeed"] == "zero3"
    tiny = first_settings.placement(large, long, small)
    assert tiny.runtime["deepspeed"] == "zero3_offload" and "more than these GPUs hold" in tiny.why
    for planned in (long, first_settings.budget(SMOLLM2, of(60_000), replace(NODE, gpus=3))):
        machine = NODE if planned is long else replace(NODE, gpus=3)
        assert first_settings.training(planned, first_settings.placement(SMOLLM2, planned, machine).runtime).accumulate()


def test_the_vocabulary_is_extended_where_it_pays():
    long, short = (first_settings.budget(SMOLLM2, None, machine) for machine in (NODE, CPU))
    many, few = used(1000, 2800), used(1000, 1400)
    decide = first_settings.vocabulary
    assert decide(HUNGARIAN, many, few, long).extend and not decide(HUNGARIAN, few, few, long).extend
    assert not decide(HUNGARIAN, many, few, short).extend, "new rows must be learnt first"
    assert decide(HINDI, None, None, long).extend and not decide(HUNGARIAN, None, None, long).extend


def test_a_large_text_is_known_from_a_sample(tmp_path, monkeypatch):
    for number in range(6):
        (tmp_path / f"{number}.txt").write_text("\n\n".join(["dunia nzuri"] * 100), encoding="utf-8")
    whole = sum(path.stat().st_size for path in tmp_path.iterdir())
    read = first_look.text(str(tmp_path), languages.find("sw"), None)
    assert read.bound == "" and read.size_bytes == 6 * 1100 and read.tokens is None
    monkeypatch.setattr(first_look, "SAMPLE_BYTES", 2500)
    about = first_look.text(str(tmp_path), languages.find("sw"), None)
    assert about.bound == "about " and about.size_bytes == pytest.approx(6 * 1100, rel=0.01)
    monkeypatch.setattr(first_look, "SAMPLE_BYTES", 10)
    most = first_look.text(str(tmp_path), languages.find("sw"), None)
    assert (most.bound, most.size_bytes) == ("at most ", whole)
