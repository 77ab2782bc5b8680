"""What `langext data` says of sources and of finished runs."""

import json

import pytest
from run_folders import stage
from toy import ENGLISH, FRENCH, documents, write_jsonl
from typer.testing import CliRunner

from langext.cli import app
from langext.text_summaries import FilterSummary, FunnelRow


def langext(*args):
    return CliRunner().invoke(app.app, ["data", *map(str, args)])


@pytest.fixture
def mixed(tmp_path, lid):
    """French with a fifth of English in it, and a pipeline that names it."""
    path = write_jsonl(tmp_path / "fr.jsonl", [*documents(FRENCH, 40, 1), *documents(ENGLISH, 10, 2)])
    path.write_text(path.read_text() + "no\n")
    sources = f"[{{language: fr, path: {path}}}, {{language: en, path: {path}, name: other}}, {{language: fr, path: '-'}}]"
    (tmp_path / "p.yaml").write_text(
        f"name: x\nlanguage: fr\noriginal_languages: [en]\nbase_model: ./m\n"
        f"stages:\n- {{uses: filter, lid_model: {lid}, sources: {sources}}}\n"
    )
    return path


def test_a_look_at_a_path_shows_what_would_be_dropped(mixed, lid):
    for language in ([], ["--language", "fr"]):
        shown = langext("peek", mixed, "--lid", lid, "--show", 3, *language)
        assert shown.exit_code == 0, shown.output
        assert "50 documents of 1 file(s), expected fra_Latn: 40 kept, 10 dropped (10 language_en)" in shown.output
        assert "1 entries cannot be read" in shown.output and "fr.jsonl: line 51: not a JSON object" in shown.output
        assert "dropped, the best first (3 of 10)" in shown.output and shown.output.count(" language_en ") == 3
    (found,) = json.loads(langext("peek", mixed, "--lid", lid, "--json", "--documents", 45).stdout)
    assert len(found["judged"]) == found["documents"] == 45 and found["broken"] == 0
    first = found["judged"][0]
    assert (first["label"], first["runner_up"], first["verdict"]) == ("fr", "en", "kept") and first["score"] + first[
        "runner_up_score"
    ] > 0.99


def test_a_look_at_a_pipeline_takes_its_sources_by_name(mixed, tmp_path):
    every = langext("peek", tmp_path / "p.yaml")
    assert every.exit_code == 0, every.output
    assert "fra_Latn/fr: 50 documents" in every.output and "eng_Latn/other: 50 documents" in every.output
    one = langext("peek", tmp_path / "p.yaml", "other")
    assert "10 kept, 40 dropped (40 language_fr)" in one.output and "fra_Latn/fr" not in one.output
    for name, said in {"othr": "no source is called 'othr'.", "stdin": "can be read only once; look at a file"}.items():
        refused = langext("peek", tmp_path / "p.yaml", name)
        assert refused.exit_code == 2 and said in refused.output


def test_a_source_that_cannot_be_read_does_not_hide_the_others(mixed, tmp_path):
    file = tmp_path / "p.yaml"
    file.write_text(file.read_text().replace("sources: [", "sources: [{language: fr, path: gone.jsonl, name: first}, "))
    shown = langext("peek", file)
    assert shown.exit_code == 2 and "error: source fra_Latn/first: gone.jsonl: no such file" in shown.stderr
    assert "fra_Latn/fr: 50 documents" in shown.stdout and "eng_Latn/other: 50 documents" in shown.stdout
    told = langext("peek", file, "--json")
    assert told.exit_code == 2 and [each["source"] for each in json.loads(told.stdout)] == ["fra_Latn/fr", "eng_Latn/other"]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["none.yaml"], "none.yaml: no such file"),
        (["nowhere"], "nowhere: no such file, and none of this name comes with langext"),
        (["nowhere/x.jsonl"], "no such file or folder"),
        (["*.nothing"], "nothing matches"),
    ],
)
def test_what_cannot_be_looked_at_is_said_in_one_line(args, said, tmp_path, monkeypatch, lid):
    monkeypatch.chdir(tmp_path)
    refused = langext("peek", *args, "--lid", lid)
    assert refused.exit_code == 2 and said in refused.output and "Traceback" not in refused.output


def test_the_funnel_of_a_run_is_a_table(tmp_path):
    row = FunnelRow(
        language="fra_Latn", domain="web", origin="x", documents_read=1200, judged=1200, bytes_read=10, train_documents=900,
        train_bytes=2_500_000, valid_documents=100, valid_bytes=400_000, dropped={"low_score": 150, "broken": 50},
    )  # fmt: skip
    rows = [row, row.model_copy(update={"domain": "book", "dropped": {"empty": 7}, "role": "measure"})]
    stage(tmp_path / "run", 1, "filter", "Corpus", summary=FilterSummary(funnel=rows, source_files=[], lid_sha256=""))
    shown = langext("stats", tmp_path / "run").output
    for part in ("fra_Latn/web", "1,200", "1,000", "83.3%", "2.50", "0.40", "low_score", "150", "measured", "empty", "7"):
        assert part in shown
    assert json.loads(langext("stats", tmp_path / "run", "--json").stdout)["01-filter"][0]["dropped"]["broken"] == 50
    stage(tmp_path / "other", 1, "train", "Model")
    refused = langext("stats", tmp_path / "other")
    assert refused.exit_code == 2 and "no stage filter is finished here" in refused.output
