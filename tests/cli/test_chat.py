"""Talking to base and extended model."""

import shutil

import pytest
import torch
from bench import Bench, extend, train
from typer.testing import CliRunner

from langext.artifacts import read_json, write_json
from langext.cli import chat
from langext.cli.app import app
from langext.errors import ConfigError
from langext.models import bases, loading

RESIDUES = {"name": "neutral_residues", "gate": "hard_sigmoid", "init": "lecun", "width": 32, "alpha": 0.1}


@pytest.fixture(scope="module")
def bench(tmp_path_factory, pico):
    return Bench(tmp_path_factory.mktemp("bench"), pico)


@pytest.fixture(scope="module")
def runs(bench):
    """With the base inside the extended model, and with a base of its own."""
    stages = [extend(**RESIDUES), train(steps=20, eval_every=20), {"uses": "export"}]
    words = [
        {"uses": "extend_tokenizer", "new_tokens": 40, "min_count": 2},
        extend(name="full"),
        train(steps=20, eval_every=20),
    ]
    return bench.run("residues", "fra_Latn", ["eng_Latn"], stages), bench.run("full", "fra_Latn", ["eng_Latn"], words)


def alone(folder, text):
    net, tokenizer = loading.load_base(folder, torch.bfloat16), loading.load_tokenizer(folder)
    ids = torch.tensor([[tokenizer.eos_token_id, *tokenizer(text).input_ids]])  # this tokenizer's start of a document
    out = net.generate(ids, max_new_tokens=12, do_sample=False, repetition_penalty=1.1, pad_token_id=0)
    return tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip()


@pytest.mark.parametrize("which", [0, 1])
def test_the_base_says_what_it_would_say_alone(bench, runs, which):
    base, extended = chat.speakers(runs[which], None)
    text = "le petit chat dort"
    assert base.answer(text, 12) == alone(bench.pico, text) != extended.answer(text, 12)
    assert base.answer(text, 12) == alone(bench.pico, text)  # also after the other one has spoken


def test_an_export_beside_its_base_talks_like_the_run(bench, runs):
    of_run = chat.speakers(runs[0], None)[1].answer("le petit chat", 12)
    exported = chat.speakers(runs[0] / "04-export" / "checkpoint", bench.pico)
    assert [speaker.name for speaker in exported] == ["base", "extended"]
    assert exported[1].answer("le petit chat", 12) == of_run
    alone_there = chat.speakers(runs[0] / "04-export" / "checkpoint", None)  # the base of the run that it lies in
    assert [speaker.name for speaker in alone_there] == ["base", "extended"]
    assert alone_there[0].answer("le petit chat", 12) == exported[0].answer("le petit chat", 12)


def test_an_export_somewhere_else_is_beside_the_base_that_it_names(runs, tmp_path, capsys, monkeypatch, bench):
    import huggingface_hub

    copy = shutil.copytree(runs[0] / "04-export" / "checkpoint", tmp_path / "x" / "y")
    assert [speaker.name for speaker in chat.speakers(copy, None)] == ["extended"]
    assert "its base is not on this machine; --base takes the folder of it" in capsys.readouterr().out
    record = read_json(copy / "export.json")
    write_json(copy / "export.json", record | {"base": {"hub": "some/base", "commit": "abc"}})
    asked = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **o: (asked.append((a, o)), str(bench.pico))[1])
    assert [speaker.name for speaker in chat.speakers(copy, None)] == ["base", "extended"]
    assert asked == [(("some/base",), {"revision": "abc", "allow_patterns": bases.HUB_FILES, "local_files_only": True})]


def test_a_chat_template_makes_a_conversation(runs):
    speaker = chat.speakers(runs[0], None)[1]
    speaker.tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
    speaker.answer("bonjour", 4)
    speaker.answer("le chat", 4)
    assert [m["role"] for m in speaker.messages] == ["user", "assistant", "user", "assistant"]


def test_commands_and_markup(runs):
    done = CliRunner().invoke(
        app, ["chat", str(runs[0]), "--tokens", "4"], input="[bold]le chat\n/what\n/new\n\n/quit\nnot read\n"
    )
    assert done.exit_code == 0, done.output
    assert "base" in done.output and "extended" in done.output and "forgotten" in done.output
    assert "no command /what; /new starts over, /quit leaves" in done.output


def test_what_is_neither_run_nor_export_is_refused(tmp_path, runs, bench):
    with pytest.raises(ConfigError, match="neither a run folder nor an exported model"):
        chat.speakers(tmp_path, None)
    with pytest.raises(ConfigError, match="a run folder knows its base"):
        chat.speakers(runs[0], bench.pico)
    for name, message in (("model.gguf", "GGUF files run in llama.cpp"), ("delta.json", "`langext apply` makes a run folder")):
        (tmp_path / name).write_text("{}")
        with pytest.raises(ConfigError, match=message):
            chat.speakers(tmp_path, None)


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("modeling_x.py", "", "modeling_x.py"),
        ("custom_generate/generate.py", "", "custom_generate/generate.py"),
        ("config.json", '{"auto_map": {"AutoConfig": "someone/else--x.Config"}}', "auto_map in config.json"),
        ("tokenizer_config.json", '{"auto_map": {"AutoTokenizer": ["x.T", null]}}', "auto_map in tokenizer_config.json"),
    ],
)
@pytest.mark.parametrize("where", ["where", "base"])
def test_code_in_a_folder_is_not_run(bench, tmp_path, file, content, said, where):
    folder = shutil.copytree(bench.pico, tmp_path / "model")
    (folder / file).parent.mkdir(exist_ok=True)
    (folder / file).write_text(content)
    given = (folder, None) if where == "where" else (bench.pico, folder)
    with pytest.raises(ConfigError, match=f"brings Python code of its own .{said}.; read it, and say --trust-remote-code"):
        chat.speakers(*given)


def test_code_is_run_when_the_user_trusts_it(runs, tmp_path):
    done = CliRunner().invoke(app, ["export", str(runs[0]), "--to", str(tmp_path / "out"), "--format", "remote"])
    assert done.exit_code == 0, done.output
    with pytest.raises(ConfigError, match="or give the run folder, which needs no such code"):
        chat.speakers(tmp_path / "out", None)
    of_run = chat.speakers(runs[0], None)[1].answer("le petit chat", 12)
    assert chat.speakers(tmp_path / "out", None, trust=True)[-1].answer("le petit chat", 12) == of_run


@pytest.mark.parametrize("written", ["base", ["a"], {"hub": 1, "commit": "abc"}, {"hub": "a/b"}], ids=str)
def test_a_record_of_wrong_types_is_refused(runs, tmp_path, written):
    copy = shutil.copytree(runs[0] / "04-export" / "checkpoint", tmp_path / "x" / "y")
    write_json(copy / "export.json", read_json(copy / "export.json") | {"base": written})
    with pytest.raises(ConfigError, match="export.json: base"):
        chat.speakers(copy, None)
