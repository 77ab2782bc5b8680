"""Deltas: what was learnt without the base, put on the base again."""

import shutil
import struct
from pathlib import Path

import pytest
import torch
from bench import Bench, extend, train
from safetensors.torch import load_file, save_file
from toy import make_llama, make_tokenizer
from typer.testing import CliRunner

from langext.artifacts import read_json, sha256_file, write_json
from langext.cli.app import app
from langext.models import loading

RESIDUES = {"name": "neutral_residues", "gate": "hard_sigmoid", "init": "lecun", "width": 32, "alpha": 0.1}


def langext(*arguments: object) -> str:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    return done.output


def refused(*arguments: object) -> str:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 2, done.output
    return done.output


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Runs on a base whose weights are float32, since no delta may depend on their being rounded, and that has much padding."""
    folder, tokenizer = tmp_path_factory.mktemp("base"), make_tokenizer()
    net = make_llama(len(tokenizer) + 50).float()
    for parameter in net.parameters():
        parameter.data += 1e-3 * torch.randn(parameter.shape)
    net.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Bench(tmp_path_factory.mktemp("bench"), folder)


@pytest.fixture(scope="module")
def second(bench: Bench) -> Path:
    """Swahili on top of French, which brought tokens of its own."""
    tokens = {"uses": "extend_tokenizer", "new_tokens": 40, "min_count": 2}
    first = bench.run("french", "fra_Latn", ["eng_Latn"], [tokens, extend(**RESIDUES), train(steps=8, eval_every=8)])
    rest = [extend(**RESIDUES | {"width": 24}), train(steps=8, eval_every=8)]
    return bench.run("swahili", "swh_Latn", ["eng_Latn", "fra_Latn"], rest, base=first)


@pytest.fixture(scope="module")
def delta(bench: Bench, second: Path) -> Path:
    langext("export", second, "--to", bench.root / "delta", "--format", "delta")
    return bench.root / "delta"


def test_a_delta_and_its_base_give_the_export_of_the_run(bench: Bench, second: Path, delta: Path):
    record = read_json(delta / "export.json")
    assert record["format"] == "delta" and record["max_abs_difference"] == 0 and record["greedy_equal"] == record["texts"]
    learnt = sum(path.stat().st_size for path in second.glob("*-train/delta.safetensors"))
    assert (delta / "delta.safetensors").stat().st_size < 0.65 * learnt
    moved = bench.root / "sent"
    shutil.copytree(delta, moved)
    assert "a run folder" in langext("apply", moved, "--to", bench.root / "applied", "--base", bench.pico)
    shutil.rmtree(moved)
    assert "report.html" in langext("report", bench.root / "applied")
    assert "no text to measure the settings with" in refused("dial", bench.root / "applied")
    langext("export", second, "--to", bench.root / "direct")
    langext("export", bench.root / "applied", "--to", bench.root / "again")
    one, two = (load_file(bench.root / name / "model.safetensors") for name in ("direct", "again"))
    assert one.keys() == two.keys() and all((one[name] == two[name]).all() for name in one)
    assert read_json(bench.root / "direct" / "config.json")["vocab_size"] == 370
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (bench.root / "direct" / name).read_bytes() == (bench.root / "again" / name).read_bytes()


def test_a_language_is_added_to_an_applied_delta(bench: Bench, delta: Path):
    langext("apply", delta, "--to", bench.root / "base of german", "--base", bench.pico)
    calibrate = {"closed": 0.8, "original_tokens": 4000, "new_tokens": 3000, "min_open": 0}
    stages = [
        extend(**RESIDUES | {"gate": "threshold", "local_loss": "l1", "calibrate": calibrate}),
        train(steps=2, eval_every=2),
    ]
    run = bench.run("german", "deu_Latn", ["eng_Latn", "fra_Latn", "swh_Latn"], stages, base=bench.root / "base of german")
    assert len(list((run / "base").glob("earlier-*.safetensors"))) == 2
    langext("export", run, "--to", bench.root / "of german", "--format", "delta")
    trained, sent = (load_file(path / "delta.safetensors") for path in (next(run.glob("*-train")), bench.root / "of german"))
    gates = {name: tensor for name, tensor in sent.items() if ".router." in name}
    assert trained.keys() == sent.keys() and len(gates) == 6 and all((trained[n] == t).all() for n, t in gates.items())


def test_nothing_of_this_machine_is_in_a_delta(bench: Bench, delta: Path):
    for path in delta.rglob("*"):
        if path.is_file() and path.suffix in (".json", ".md"):
            assert str(bench.root) not in path.read_text() and str(bench.pico) not in path.read_text(), path


def test_wrong_deltas_and_bases_are_refused(bench: Bench, delta: Path, tmp_path: Path):
    assert f"its base, {bench.pico.name}, is no public one" in refused("apply", delta, "--to", tmp_path / "x")
    assert "exists already" in refused("apply", delta, "--to", tmp_path, "--base", bench.pico)
    assert "no delta.json here" in refused("apply", bench.pico, "--to", tmp_path / "x", "--base", bench.pico)
    tokenizer = make_tokenizer()
    make_llama(len(tokenizer), tied=False).save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    assert f"its weights are not those of {bench.pico.name}" in refused(
        "apply", delta, "--to", tmp_path / "x", "--base", tmp_path / "other"
    )
    assert not (tmp_path / "x").exists()


def test_the_same_base_in_other_files_is_the_base(bench: Bench, delta: Path, tmp_path: Path):
    loading.load_base(bench.pico, torch.float32).save_pretrained(tmp_path / "sharded", max_shard_size="100KB")
    make_tokenizer().save_pretrained(tmp_path / "sharded")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    langext("apply", delta, "--to", tmp_path / "x", "--base", tmp_path / "sharded")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "langext delta 2"}, "format: Input should be 'langext delta 1'"),
        ({"history": {"training": None, "afterwards": ["x\n# MIT"]}}, "history.afterwards.0"),
        ({"history": {"training": None, "afterwards": [], "licence": "MIT"}}, "history.licence: Extra inputs"),
        ({"files": {}}, "says nothing of delta.safetensors"),
        ({"files": {"../secret": "0"}}, "says nothing of delta"),
        ({"files": None}, "files: Input should be a valid dictionary"),
        (
            {"base": {"name": "../x", "public": True, "commit": "a" * 40, "weights": "0"}},
            "a public base is owner/name with",
        ),
        ({"base": {"name": "a/b", "public": True, "commit": "main", "weights": "0"}}, "a public base is owner/name with"),
        ({"base": {"name": "https://a.b/c", "public": True, "commit": "a" * 40, "weights": "0"}}, "base.name: String should"),
        ({"language": "xx"}, "language: Value error, unknown language 'xx'"),
        ({"original_languages": ["eng_Latn", "x\ny"]}, "original_languages.1: Value error, unknown language"),
        ({"method": RESIDUES | {"width": 60_000}}, "numbers, too few for width 60,000 of neutral_residues on a base of width"),
        ({"method": {"name": "lora", "rank": 60_000}}, "numbers, too few for rank 60,000 of lora"),
        ({"method": {"name": "selective_lora", "rank": 60_000}}, "numbers, too few for rank 60,000 of selective_lora"),
        ({"method": {"name": "lora", "rank": 10**9}}, "method.lora.rank: Input should be less than or equal to"),
        ({"method": {"name": "grow", "k": 10**9}}, "method.grow.k: Input should be less than or equal to"),
        ({"method": {"name": "grow", "layers": {"top": 10**9}}}, "layers: top 1000000000 asked for, the base has"),
        ({"method": {"name": "expansion_blocks", "positions": [10**9]}}, "positions: no layer 1000000000"),
        ({"method": {"name": "adapter", "width": 24}}, "delta.safetensors"),
    ],
)
def test_a_changed_record_is_refused(bench: Bench, delta: Path, tmp_path: Path, change, message):
    shutil.copytree(delta, tmp_path / "changed")
    write_json(tmp_path / "changed" / "delta.json", read_json(delta / "delta.json") | change)
    printed = refused("apply", tmp_path / "changed", "--to", tmp_path / "x", "--base", bench.pico)
    assert message in printed and len(printed.splitlines()) == 1
    assert not (tmp_path / "x").exists()


def sealed(folder: Path, name: str) -> None:
    """Write the sha256 of a changed file into delta.json, as a stranger can."""
    content = read_json(folder / "delta.json")
    content["files"][name] = sha256_file(folder / name)
    write_json(folder / "delta.json", content)


def header(text: str, length: int | None = None) -> bytes:
    """The beginning of a safetensors file: the length of the header, and the header."""
    return struct.pack("<Q", len(text) if length is None else length) + text.encode()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("delta.safetensors", b"", "delta.safetensors: cannot be read as safetensors"),
        ("delta.safetensors", header("{}", 2**63), "delta.safetensors: cannot be read as safetensors"),
        ("delta.safetensors", header("{}", 10**9), "delta.safetensors: cannot be read as safetensors"),
        (
            "delta.safetensors",
            header('{"w":{"dtype":"BF16","shape":[1000000000,1000000],"data_offsets":[0,8]}}') + bytes(8),
            "delta.safetensors: cannot be read as safetensors",
        ),
        (
            "delta.safetensors",
            header('{"../../w":{"dtype":"BF16","shape":[1000000000,0],"data_offsets":[0,0]}}'),
            "holds 0 numbers, too few for width 24",
        ),
        ("earlier-0.safetensors", header('{"w":{"dtype":"F64","shape":[1],"data_offsets":[0,8]}}') + bytes(8), "is F64"),
        ("vocabulary/new_tokens.json", b"[]", "new_tokens.json: "),
        ("vocabulary/new_tokens.json", b'{"x": [1]}', "new_tokens.json: x"),
        ("vocabulary/new_tokens.json", b'{"999999999": [1]}', "new_tokens.json: must spell tokens"),
        ("vocabulary/tokenizer/tokenizer.json", b"{}", "tokenizer"),
    ],
)
def test_files_of_a_stranger_are_judged_before_anything_is_built(bench, delta, tmp_path, monkeypatch, name, content, message):
    shutil.copytree(delta, tmp_path / "changed")
    (tmp_path / "changed" / name).write_bytes(content)
    sealed(tmp_path / "changed", name)
    monkeypatch.setattr("langext.methods.extended.build", lambda *_: pytest.fail("a model is built"))
    printed = refused("apply", tmp_path / "changed", "--to", tmp_path / "x", "--base", bench.pico)
    assert message in printed and len(printed.splitlines()) == 1
    assert not (tmp_path / "x").exists()


def test_tokens_that_are_spelt_with_no_tokens_of_the_base_are_refused(bench, delta, tmp_path):
    shutil.copytree(delta, tmp_path / "changed")
    path = tmp_path / "changed" / "vocabulary" / "new_tokens.json"
    spelt = read_json(path)
    write_json(path, spelt | {next(iter(spelt)): [10**9]})
    sealed(tmp_path / "changed", "vocabulary/new_tokens.json")
    printed = refused("apply", tmp_path / "changed", "--to", tmp_path / "x", "--base", bench.pico)
    assert "new_tokens.json: spells a token with others than the" in printed


def test_tensors_of_other_shapes_are_refused(bench, delta, tmp_path):
    path = shutil.copytree(delta, tmp_path / "changed") / "delta.safetensors"
    tensors = load_file(path)
    for name in (min(tensors), max(tensors)):
        save_file(tensors | {name: tensors[name].flatten()}, path)
        sealed(tmp_path / "changed", path.name)
        assert f"{name} is ({tensors[name].numel()},), the model has" in refused(
            "apply", tmp_path / "changed", "--to", tmp_path / "x", "--base", bench.pico
        )


def test_files_that_are_not_those_of_the_record_are_refused_or_left(bench: Bench, delta: Path, tmp_path: Path):
    def changed(name: str) -> Path:
        shutil.copytree(delta, tmp_path / name)
        return tmp_path / name

    def apply(folder: Path) -> str:
        return refused("apply", folder, "--to", tmp_path / "x", "--base", bench.pico)

    cut = changed("cut") / "delta.safetensors"
    cut.write_bytes(cut.read_bytes()[:-10])
    assert "damaged or changed" in apply(tmp_path / "cut")
    link = changed("link") / "vocabulary" / "new_tokens.json"
    link.unlink()
    link.symlink_to(delta / "vocabulary" / "new_tokens.json")
    assert "no plain file" in apply(tmp_path / "link")
    (changed("page") / "delta.json").write_text("<html>404</html>")
    assert "delta.json: this is a web page, not the file itself" in apply(tmp_path / "page")
    (changed("more") / "checkpoints").mkdir()
    (tmp_path / "more" / "checkpoints" / "evil.pt").write_text("")
    langext("apply", tmp_path / "more", "--to", tmp_path / "x", "--base", bench.pico)
    assert not list((tmp_path / "x").rglob("*.pt"))
