"""Passwords and tokens: refused in a pipeline, and never printed, in errors neither."""

import pytest

from langext import console, errors
from langext.errors import ConfigError, RunFailed
from langext.pipeline.plan import Pipeline
from langext.spec import load

HUB = "hf_" + "aB3" * 11 + "x"
SECRET = {
    "a password": ("sftp://me:pa55word@host/x.jsonl", "sftp://***@host/x.jsonl"),
    "a token as user": ("https://tok3n@host/x.jsonl", "https://***@host/x.jsonl"),
    "a signed address": ("https://b.s3.host/x?a=1&X-Amz-Signature=0f3c&b=2", "https://b.s3.host/x?a=1&***&b=2"),
    "a shared address": ("https://a.blob.host/x?sv=2&sig=abc%3D", "https://a.blob.host/x?sv=2&***"),
    "a token as parameter": ("https://host/x?access_token=abc", "https://host/x?***"),
    "a token of the hub": (f"hf://{HUB}/x", "hf://***/x"),
    "a token of GitHub": ("say ghp_" + "a" * 36 + " to it", "say *** to it"),
    "a key of a cloud": ("AKIA" + "A1B2" * 4, "***"),
}
HARMLESS = (
    "hf://datasets/a/b@main/x.jsonl", "s3://bucket/key=5/x", "me@host", "sftp://me@host/x", "https://host/a?page=2&lang=fr",
    "hf_xet 1.2", "monkey=1", "https://host/x@2.txt", "sha256:" + "0f" * 32,
)  # fmt: skip


@pytest.mark.parametrize("kind", SECRET)
def test_what_is_printed_holds_no_secret(kind, capsys):
    secret, shown = SECRET[kind]
    assert str(ConfigError(f"{secret}: no")) == f"{shown}: no" and str(RunFailed(f"{secret}: no")) == f"{shown}: no"
    console.say(secret)
    console.warn(secret)
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == (f"{shown}\n", f"warning: {shown}\n")


@pytest.mark.parametrize("text", HARMLESS)
def test_what_is_no_secret_stays(text):
    assert not errors.holds_secret(text) and errors.printable(text) == text


@pytest.mark.parametrize("kind", SECRET)
def test_a_pipeline_with_a_secret_is_refused_in_one_line_without_it(kind, tmp_path):
    secret, _ = SECRET[kind]
    text = (
        "name: x\nlanguage: fr\noriginal_languages: [en]\nbase_model: some/base\nstages:\n  - uses: filter\n    sources: []\n"
    )
    (tmp_path / "p.yaml").write_text(text.replace("some/base", f'"{secret}"'))
    with pytest.raises(ConfigError, match="p.yaml: line 4: base_model: write no password or token") as caught:
        load(tmp_path / "p.yaml", Pipeline)
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(ConfigError, match="p.yaml: --set filter.lid_model: .*: write no password or token") as by_option:
        load(tmp_path / "p.yaml", Pipeline, [f"filter.lid_model={secret}"])
    for said in (str(caught.value), str(by_option.value)):
        assert secret not in said and "\n" not in said


def test_what_the_environment_holds_is_in_no_report_of_a_mistake(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_API_KEY", "correct horse battery")
    monkeypatch.setenv("LANGEXT_BUGS", str(tmp_path))
    said = errors.bug(ValueError("401 for correct horse battery"))
    (report,) = tmp_path.iterdir()
    assert "401 for ***" in said and "401 for ***" in report.read_text() and "battery" not in said + report.read_text()
