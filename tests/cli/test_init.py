"""What `langext init` writes, and why."""

import re
import shlex
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from toy import ENGLISH, FRENCH, documents, write_jsonl
from typer.testing import CliRunner

from langext import languages
from langext.cli import app, first_look, first_pipeline, first_settings, hub_names
from langext.cli.first_look import Base, Machine, Text
from langext.data import assets
from langext.errors import ConfigError
from langext.pipeline import estimate
from langext.pipeline.plan import Pipeline
from langext.spec import load, parse
from langext.stages.filter import Filter
from langext.stages.tokenizer import ExtendTokenizer
from langext.stages.train import Train
from tokenizer_tools.audit import Use

HUNGARIAN, HINDI = languages.find("hu"), languages.find("hi")
SMOLLM2 = Base(
    SimpleNamespace(
        model_type="llama", vocab_size=49_152, hidden_size=2048, num_hidden_layers=24, max_position_embeddings=8192,
        tie_word_embeddings=True,
    ),
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
    assert again.exit_code == 2 and "my.yaml: exists already" in again.output and "--force" in again.output
    (tmp_path / "my.yaml").write_text("nothing")
    assert langext("init", *args, "--force").exit_code == 0 and load(tmp_path / "my.yaml", Pipeline) == spec


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--language", "klingonish"], "unknown language 'klingonish'"),
        (["--base", "./none"], "./none: no such file or folder"),
        (["--text", "none"], "none: no such file"),
        (["--original", "acm"], "--original: langext knows no text of Mesopotamian Arabic"),
        (["--column", "line"], "--column: is of text that --text names"),
        (["--original", "hu"], "--original: hun_Latn is the language to add"),
        (["--out", "no/where.yaml"], "no: no such folder"),
        (["--encoding", "cp1250"], "--encoding: is of text that --text names"),
        (["--original-encoding", "cp1252"], "--original-encoding: is of text that --original-text names"),
        (["--nodes", "2"], "--nodes: give --gpus as well"),
        (["--gpus", "0", "--gpu-memory", "80"], "--gpu-memory: give --gpus as well"),
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
    assert (
        "the hub could not be reached" in written.text and "with --force" in written.text and 'revision: "abc"' in written.text
    )
    assert "extend_tokenizer\n" in written.text, "Hindi is not in Latin script"


def test_text_in_another_encoding_is_named_and_read(pico, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = "Árvíztűrő tükörfúrógép, őszi eső és üres erdő. " * 40
    for name, coding in (("hu.txt", "iso8859-2"), ("kept.txt", "cp1250")):
        (tmp_path / name).write_bytes(f"{text}\n\n{text}".encode(coding))
    args = ["--language", "hu", "--base", pico, "--out", "x.yaml", "--text", "hu.txt"]
    told = langext("init", *args)
    assert told.exit_code == 2 and "give --encoding " in told.output
    args += ["--encoding", "latin2", "--original-text", "kept.txt"]
    told = langext("init", *args)
    assert told.exit_code == 2 and "give --original-encoding " in told.output
    assert langext("init", *args, "--original-encoding", "cp1250").exit_code == 0
    sources = next(stage for stage in load(tmp_path / "x.yaml", Pipeline).stages if isinstance(stage, Filter)).sources
    assert [source.encoding for source in sources[:2]] == ["iso8859-2", "cp1250"]


def test_text_in_another_language_is_doubted(pico, lid, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "en.jsonl", documents(ENGLISH, 30, 2))
    here = {"asset:lid.176": lid}
    monkeypatch.setattr(assets, "resolve", lambda name: here[name] if name in here else nowhere(name))
    for language, said in (("fr", "asset:lid.176 takes"), ("ru", "100% of its texts are not in the script of Russian (Cyrl)")):
        args = ["--language", language, "--base", pico, "--text", "en.jsonl", "--out", f"{language}.yaml"]
        result = langext("init", *args)
        assert result.exit_code == 0 and f"warning: --text: en.jsonl: {said}" in result.output, result.output
        assert (tmp_path / f"{language}.yaml").read_text().count(f"doubt: --text: en.jsonl: {said}") == 1
    write_jsonl(tmp_path / "fr.jsonl", documents(FRENCH, 30, 2))
    right = langext("init", "--language", "fr", "--base", pico, "--text", "fr.jsonl", "--out", "right.yaml")
    assert right.exit_code == 0 and "doubt" not in right.output


def test_a_language_that_the_small_model_hardly_knows_gets_the_large_one(tmp_path):
    for language, model in (("yo", "asset:glotlid"), ("so", "asset:glotlid"), ("hi", "asset:lid.176")):
        asked = first_pipeline.Asked("owner/model", None, languages.find(language), [languages.find("en")], tmp_path / "x.yaml")
        assert f"lid_model: {model} " in first_pipeline.write(asked, SMOLLM2, None, None, CPU).text


def nowhere(name):
    raise ConfigError(f"{name} is not on this machine yet")


def test_fineweb_calls_some_languages_otherwise(tmp_path):
    asked = first_pipeline.Asked(
        "owner/model", None, HUNGARIAN, [languages.find("zh"), languages.find("de")], tmp_path / "x.yaml"
    )
    written = first_pipeline.write(asked, SMOLLM2, None, None, CPU).text
    assert "language: zho_Hans, hub: HuggingFaceFW/fineweb-2, config: cmn_Hani" in written
    assert "language: deu_Latn, hub: HuggingFaceFW/fineweb-2, config: deu_Latn" in written


def test_the_commands_that_come_next_are_words_for_a_shell(tmp_path):
    file = tmp_path / "my'tex\"t #x" / "q $x.yaml"
    asked = first_pipeline.Asked("owner/model", None, HUNGARIAN, [languages.find("en")], file)
    written = first_pipeline.write(asked, SMOLLM2, None, None, CPU)
    assert shlex.split(written.next[-1]) == ["langext", "run", str(file)]
    for line in re.findall(r"^#   (langext (?:plan|run) .*)      ", written.text, flags=re.MULTILINE):
        assert shlex.split(line)[2] == str(file)


@pytest.mark.parametrize(
    ("machine", "text", "tokens", "lr", "step", "why"),
    [
        (CPU, None, 225_280, 8e-3, 2048, "there is no GPU here"),
        (CPU, of(300), 40_960, 8e-3, 2048, "reads the little text more than 4 times"),
        (CPU, of(60_000), 72_000, 8e-3, 2048, "all of the text 4 times"),
        (NODE, of(600_000), 750_000, 8e-3, 4096, "all of the text 4 times"),
        (NODE, of(10**9), 1_332_000_000, 1e-3, 524_288, "all of the text 4 times"),
        (NODE, of(10**11), 6_429_000_000, 1e-3, 524_288, "the compute of pipelines/add_language.yaml for each of 8 GPU(s)"),
    ],
)
def test_text_and_machine_decide_how_long_it_trains(machine, text, tokens, lr, step, why):
    found = first_settings.budget(SMOLLM2, text, machine)
    assert found.tokens == pytest.approx(tokens, rel=0.06) and float(found.rate.lr) == lr and why in found.why
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


def test_the_machines_that_will_train_may_be_others(monkeypatch, tmp_path):
    monkeypatch.setattr(first_look, "_this_machine", lambda: CPU)
    with pytest.raises(ConfigError, match="--gpus: there is none here to ask; give --gpu-memory"):
        first_look.machine(8)
    machine = first_look.machine(8, 80, 2)
    assert first_look.machine(0) == CPU and (machine.all_gpus, machine.gpu_bytes) == (16, NODE.gpu_bytes)
    asked = first_pipeline.Asked("owner/model", None, HUNGARIAN, [languages.find("en")], tmp_path / "x.yaml")
    written = first_pipeline.write(asked, SMOLLM2, None, None, machine)
    runtime = next(
        stage for stage in Pipeline.model_validate(parse(written.text, "x", "safe")).stages if isinstance(stage, Train)
    ).runtime
    assert (runtime.gpus, runtime.nodes, runtime.launcher, runtime.deepspeed) == (8, 2, "srun", "multinode")
    assert "in a Slurm job; elsewhere" in written.text and "2 machines, each with 8 x GPU of 80 GiB" in written.text
    with monkeypatch.context() as here:
        here.setattr(first_look, "_this_machine", lambda: NODE)
        assert first_look.machine(4).gpu_bytes == NODE.gpu_bytes


def test_the_vocabulary_is_extended_where_it_pays():
    long, short = (first_settings.budget(SMOLLM2, None, machine) for machine in (NODE, CPU))
    few = used(1000, 1400)
    many, alike = of(10**9, 2.8), of(10**9, 1.4)
    decide = first_settings.vocabulary
    assert decide(HUNGARIAN, many, few, long).extend and not decide(HUNGARIAN, alike, few, long).extend
    assert not decide(HUNGARIAN, many, few, short).extend, "new rows must be learnt first"
    assert decide(HINDI, None, None, long).extend and not decide(HUNGARIAN, None, None, long).extend


def test_a_large_text_is_known_from_a_sample(tmp_path, monkeypatch):
    for number in range(6):
        (tmp_path / f"{number}.txt").write_text("\n\n".join(["dunia nzuri"] * 100), encoding="utf-8")
    folder = first_look.AskedText("--text", str(tmp_path), None)
    whole = sum(path.stat().st_size for path in tmp_path.iterdir())
    read = first_look.text(folder, languages.find("sw"), None)
    assert read.bound == "" and read.size_bytes == 6 * 1100 and read.tokens is None
    monkeypatch.setattr(first_look, "SAMPLE_BYTES", 2500)
    about = first_look.text(folder, languages.find("sw"), None)
    assert about.bound == "about " and about.size_bytes == pytest.approx(6 * 1100, rel=0.01)
    monkeypatch.setattr(first_look, "SAMPLE_BYTES", 10)
    most = first_look.text(folder, languages.find("sw"), None)
    assert (most.bound, most.size_bytes) == ("at most ", whole)


def test_the_page_for_newcomers_has_the_same_tables():
    page = (Path(__file__).parent.parent.parent / "docs" / "add-your-language.md").read_text(encoding="utf-8")
    rates = [f"| {row.trainings} | {row.lr} | {row.known} |" for row in reversed(first_settings.RATES)]
    settings = [", ".join(f"`{each}`" for each in row.settings) or "as they are" for row in first_settings.AMOUNTS]
    amounts = [
        f"| {row.text} | {said} | {'by question 3' if row.new_tokens else 'none'} |"
        for row, said in zip(first_settings.AMOUNTS, settings, strict=True)
    ]
    for table in (rates, amounts):
        assert "\n".join(["--- |", *table, ""]) in page
    assert f"`extra_params_frac: {first_look.METHOD['extra_params_frac']}`" in page
    held = re.findall(r"`heldout_frac: ([\d.]+)` of\s([\d,]+) MB", page)
    assert len(held) == 4
    assert all(first_settings.heldout(of(int(size.replace(",", "")) * 10**6)) == float(frac) for frac, size in held)


@pytest.mark.parametrize(
    ("megabytes", "level", "result", "extended"),
    [(5, "paragraph", "best", False), (30, "document", "last", False), (60, "document", "last", True)],
)
def test_little_text_gets_the_settings_of_little_text(megabytes, level, result, extended, tmp_path):
    text = replace(of(megabytes * 10**6), use=used(1000, 2800))
    asked = first_pipeline.Asked("owner/model", None, HUNGARIAN, [languages.find("en")], tmp_path / "x.yaml")
    (tmp_path / "x.yaml").write_text(first_pipeline.write(asked, SMOLLM2, text, of(10**6, 1.4), NODE).text)
    stages = load(tmp_path / "x.yaml", Pipeline).stages
    found, train = (next(stage for stage in stages if isinstance(stage, kind)) for kind in (Filter, Train))
    assert (found.level, train.result, any(isinstance(stage, ExtendTokenizer) for stage in stages)) == (level, result, extended)


def test_billions_of_tokens_on_a_large_base_take_a_lower_rate():
    assert first_settings.budget(SMOLLM2, None, NODE).rate.lr == "1e-3"
    assert first_settings.rate(10**9, 135e6).lr == first_settings.rate(10**7, 7e9).lr == "4e-3"


@pytest.mark.parametrize(
    ("code", "fineweb", "wikipedia"),
    [
        ("tgl_Latn", "fil_Latn", "tl"), ("ckb_Arab", "ckb_Arab", "ckb"), ("nob_Latn", "nob_Latn", "no"),
        ("acm_Arab", "acm_Arab", None),
        ("zho_Hant", "cmn_Hani", "zh"), ("hun_Latn", "hun_Latn", "hu"),
        ("mah_Latn", "mah_Latn", None),
    ],
)  # fmt: skip
def test_what_the_collections_on_the_hub_call_a_language(code, fineweb, wikipedia):
    assert (hub_names.fineweb(code), hub_names.wikipedia(languages.find(code))) == (fineweb, wikipedia)


def test_text_in_another_field_is_named_as_in_a_pipeline(pico, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "hu.jsonl", ["A macska a kanapén alszik, a kutya pedig a konyhában eszik."] * 50, "line")
    result = langext("init", "--language", "hu", "--base", pico, "--text", "hu.jsonl")
    assert result.exit_code == 2 and "--column" in result.output
    result = langext("init", "--language", "hu", "--base", pico, "--text", "hu.jsonl", "--column", "line", "--out", "hu.yaml")
    assert result.exit_code == 0, result.output
    assert 'text_column: "line"' in Path("hu.yaml").read_text() and "language: Hungarian, hun_Latn" in result.output


def test_for_several_machines_text_is_filtered_before_the_job(pico, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cluster = ["--gpus", "8", "--gpu-memory", "80", "--nodes", "2", "--out", "hu.yaml"]
    result = langext("init", "--language", "hu", "--base", pico, *cluster)
    said = result.output
    assert "langext run hu.yaml --out /shared/runs/hu --until filter" in said
    job = next(line for line in said.splitlines() if "sbatch" in line).split()
    assert job[1:4] == ["--nodes=2", "--gpus-per-node=8", "--ntasks-per-node=8"] and Path(job[4]).name == "train.sbatch"
    assert Path(job[4]).is_file()
    assert "2 machines, each with 8 x GPU of 80 GiB\n" in said and "CPU cores" not in said
