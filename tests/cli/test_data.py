"""What `langext data` says of sources and of finished runs."""

import json

import pytest
from run_folders import base_of, stage
from toy import ENGLISH, FRENCH, documents, write_fasttext, write_jsonl
from typer.testing import CliRunner

from langext.cli import app
from langext.data import cuts, rules
from langext.data.language_id import LanguageId
from langext.data.repair import repair
from langext.data.sources import Source
from langext.text_summaries import Cut, FilterSummary, FunnelRow, FunnelStep


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


def test_a_look_of_which_no_language_is_said_does_not_end_in_an_error_on_its_own_guess(tmp_path):
    """Neither for a label that is another language's code, nor for one that is no code at all."""
    path = write_jsonl(tmp_path / "x.jsonl", documents(FRENCH, 20, 1))
    for label, expected in (("als", "gsw_Latn"), ("fr", "fra_Latn"), ("patois", None)):
        model = write_fasttext(tmp_path / f"{label}.bin", {label: FRENCH, "en": ENGLISH})
        looked = langext("peek", path, "--lid", model, "--json")
        assert looked.exit_code == 0, looked.output
        (found,) = json.loads(looked.stdout)
        assert found["expected"] == expected and found["documents"] == 20
        assert {each["verdict"] for each in found["judged"]} == {"kept"}


def test_a_look_and_the_cut_are_at_text_that_is_repaired(tmp_path, lid):
    """As the filter does it; of code nothing is repaired."""
    whole = [f"{text} été déjà forêt" for text in documents(FRENCH, 40, 1)]
    path = write_jsonl(tmp_path / "fr.jsonl", [text.encode().decode("cp1252", "replace") for text in whole])
    for more, code in (([], False), (["--language", "fr"], False), (["--language", "code"], True)):
        (found,) = json.loads(langext("peek", path, "--lid", lid, "--json", *more).stdout)
        assert all(("Ã©" in each["text"]) == code for each in found["judged"])
    source = Source(language="fra_Latn", path=str(path))
    record, model = source.record(), LanguageId(lid)
    rule = rules.rule_of("fra_Latn", {"fra_Latn": "fr"}, model.labels(), [])
    cut = cuts.of(source, record, model, rule, cuts.Asked("auto", "document", 0.5), tmp_path / "cut.json")
    texts = [repair(text) for _, text in cuts.sampled([source.reader(record)], 1)]
    assert cut == cuts.find(rule, "auto", cuts.seen(model, texts, "document", rule))
    assert cut.usual == cuts.find(rule, "auto", cuts.seen(model, whole, "document", rule)).usual


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
    steps = [FunnelStep(name="read", documents=1, bytes=5_000_000), FunnelStep(name="language", documents=1, bytes=4_000_000)]
    rows = [
        row.model_copy(update={"steps": [FunnelStep(name="read", documents=1200, bytes=3_481_000)]}),
        row.model_copy(update={"domain": "book", "dropped": {"empty": 7}, "role": "measure"}),
        row.model_copy(update={"domain": "novel", "divided": True, "steps": steps, "documents_read": 1, "train_documents": 1,
                               "tokens_per_byte": 0.25, "tokens_of": base_of(tmp_path / "run", "a").content}),
    ]  # fmt: skip
    stage(tmp_path / "run", 1, "filter", "Corpus", summary=FilterSummary(funnel=rows, source_files=[], lid_sha256=""))
    shown = langext("stats", tmp_path / "run").output
    for part in ("fra_Latn/web", "1,200", "1,000", "83.3%", "2.50", "0.40", "low_score", "150", "measured", "empty", "7"):
        assert part in shown
    novel = [cell.strip() for cell in next(line for line in shown.splitlines() if "novel" in line).split("│")]
    assert {"1", "58.0%", "2.50", "625,000", "0.40"} <= set(novel) and "passages" in shown
    base_of(tmp_path / "run", "b")  # the text of a run of another base was taken
    assert "625,000" not in langext("stats", tmp_path / "run").output
    assert json.loads(langext("stats", tmp_path / "run", "--json").stdout)["01-filter"][0]["dropped"]["broken"] == 50
    stage(tmp_path / "other", 1, "train", "Model")
    refused = langext("stats", tmp_path / "other")
    assert refused.exit_code == 2 and "no stage filter is finished here" in refused.output


def shown_stats(tmp_path, rows):
    stage(tmp_path / "run", 1, "filter", "Corpus", summary=FilterSummary(funnel=rows, source_files=[], lid_sha256=""))
    shown = langext("stats", tmp_path / "run").output
    assert all(len(line) <= 100 for line in shown.splitlines())
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.splitlines() if "│" in line]


def test_parts_and_documents_are_counted_apart(tmp_path):
    """150 documents have 600 paragraphs, of which 294 go; and a book is compared in passages."""
    row = FunnelRow(
        language="fra_Latn", domain="web", origin="x", documents_read=150, judged=600, bytes_read=10, train_documents=100,
        train_bytes=2_500_000, valid_documents=50, valid_bytes=400_000,
        dropped={"language_en": 294, "broken": 3, "duplicate": 5, "line_punct_ratio": 15}, lines_dropped={"policy": 7},
        benchmark_parts=2, marks=1,
    )  # fmt: skip
    less = {"judged": 147, "documents_read": 147, "divided": True}
    dropped = {"language_en": 30, "duplicate": 5, "duplicated_5_n_grams": 3}
    book = row.model_copy(update={"domain": "book", "dropped": dropped, **less})
    cells = shown_stats(tmp_path, [row, book])
    assert ["fra_Latn/web", "language_en", "294", "parts", "49.0%"] in cells
    assert ["fra_Latn/book", "language_en", "30", "documents", "20.4%"] in cells
    assert ["", "line_punct_ratio", "15", "documents", "10.0%"] in cells and ["", "broken", "3", "entries", "2.0%"] in cells
    assert ["", "duplicate", "5", "documents", "3.3%"] in cells and ["", "duplicate", "5", "passages", ""] in cells
    assert ["", "duplicated_5_n_grams", "3", "documents", "2.0%"] in cells
    assert ["fra_Latn/web", "lines, by C4's rules: policy", "7"] in cells
    assert ["", "parts that benchmarks have", "2"] in cells and ["", "byte order marks", "1"] in cells


def test_what_is_left_after_each_step_is_summed_for_a_language(tmp_path):
    content = base_of(tmp_path / "run", "a").content
    cut = Cut(rule="auto", labels=["fr"], score=0.5, margins={"oc": 2.5}, right_frac=0.9, kept_frac=0.98)
    row = FunnelRow(
        language="fra_Latn", domain="web", origin="x", documents_read=100, judged=100, bytes_read=10, train_documents=60,
        train_bytes=2_500_000, valid_documents=1, valid_bytes=400_000, dropped={}, cut=cut, tokens_per_byte=0.25,
        tokens_of=content,
        steps=[FunnelStep(name=name, documents=number, bytes=number * 100_000)
               for name, number in (("read", 100), ("language", 90), ("quality", 70), ("duplicates", 60))],
    )  # fmt: skip
    other = row.model_copy(
        update={"domain": "news", "cut": None, "steps": [step for step in row.steps if step.name != "quality"]}
    )
    cells = shown_stats(tmp_path, [row, other])
    assert ["fra_Latn/web", "read", "100", "10.00", "100.0%", "2,500,000"] in cells
    assert cells.count(["", "right language", "90", "9.00", "90.0%", "2,250,000"]) == 2
    first = cells.index(["fra_Latn, all", "read", "200", "20.00", "100.0%", "5,000,000"])
    assert [line[2] for line in cells[first : first + 4]] == ["200", "180", "160", "120"]  # news is as it was before quality
    assert ["fra_Latn/web", "fr >= 0.50", "90.0%", "98.0%"] in cells and ["", "runner-up oc x 2.5", "", ""] in cells
