"""The passes of stage filter: across sources, with benchmarks, and interrupted."""

import gzip
import json
import random
import re
from types import SimpleNamespace

import numpy as np
import orjson
import pytest
from fineweb import VALUES
from run_folders import manifest_of
from toy import ENGLISH, FRENCH, documents, sentences, write_jsonl

from langext.artifacts import read_base, read_json, write_json
from langext.context import Context
from langext.data import heldout, working
from langext.data.executor import Executor
from langext.data.plain_text import encode_text
from langext.data.split import PASSAGE, unit_hash
from langext.data.word_units import WordUnits, runs
from langext.errors import ConfigError, RunFailed
from langext.models import bases
from langext.models.loading import load_tokenizer
from langext.spec import Benchmarks
from langext.stages import passes
from langext.stages.filter import Filter
from langext.text_summaries import BenchmarkRecord

FR, EN = documents(FRENCH, 70, 1), documents(ENGLISH, 60, 2)
HELD = [text for text in documents(FRENCH, 20, 3) if unit_hash(text) >= 0.2][:3]
"""Texts that are only measured, and that would be trained on elsewhere."""
ITEMS = sentences(FRENCH, 4, 9)


def near(text):
    return text.rsplit(" ", 3)[0] + " mais pas tout à fait"


def lines(paths):
    return [json.loads(line) for path in sorted(paths) for line in gzip.open(path, "rt", encoding="utf-8")]


def content(out):
    """What every file of documents and rejects holds, by its name."""
    return {path.relative_to(out): gzip.decompress(path.read_bytes()) for path in out.glob("[dr]*/**/*.gz")}


def stage_of(root, lid, french, **more):
    sources = [
        {"language": "fr", "path": str(write_jsonl(root / "fr.jsonl", french)), **more.pop("source", {})},
        {"language": "en", "path": str(write_jsonl(root / "en.jsonl", EN))},
        *more.pop("sources", []),
    ]
    return Filter(uses="filter", sources=sources, lid_model=str(lid), **{"heldout_frac": 0.2, "threshold": 0.1, **more})


def run(root, stage, **more):
    ctx = Context(root / "out", 1, "fra_Latn", ("eng_Latn",), **more)
    ctx.out.mkdir(exist_ok=True)
    corpus = stage.run(ctx)
    return corpus, {row.domain: row for row in ctx.summary[-1].funnel}, ctx.summary[-1]


def test_every_document_is_kept_or_has_its_reason(tmp_path, lid):
    """A source to train on with copies of itself, of one that is only measured, and of a benchmark, all of it counted."""
    (tmp_path / "items.jsonl").write_text(json.dumps({"good": ITEMS[0], "bad": ITEMS[1]}) + "\n")
    task = {"task": "mine", "dataset_path": "json", "test_split": "test", "output_type": "multiple_choice",
            "dataset_kwargs": {"data_files": {"test": str(tmp_path / "items.jsonl")}}, "doc_to_text": "",
            "doc_to_choice": "{{[good, bad]}}", "doc_to_target": 0, "metric_list": [{"metric": "acc"}]}  # fmt: skip
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "mine.yaml").write_text(json.dumps(task))
    lost = {"task": "lost", "dataset_kwargs": {"data_files": {"test": str(tmp_path / "lost.jsonl")}}}
    (tmp_path / "tasks" / "lost.yaml").write_text(json.dumps(task | lost))
    own = tmp_path / "own.txt"
    own.write_text(f"{ITEMS[2]}\ntrop court\n")
    contaminated = [f"{FR[0]} {ITEMS[1]} {FR[1]}", f"{FR[2]} {ITEMS[2]} {FR[3]}"]
    french = [*FR, FR[5], near(FR[6]), *map(near, HELD), HELD[0], *contaminated, EN[0], "le chat"]
    probe = {"language": "fr", "name": "probe", "path": str(write_jsonl(tmp_path / "p.jsonl", HELD)), "heldout_only": True}
    more = {"contamination": [own], "filters": [{"name": "length", "min_characters": 20}], "sources": [probe]}
    given = (Benchmarks(tasks=["mine", "lost"], include_path=tmp_path / "tasks"),)
    corpus, rows, summary = run(tmp_path, stage_of(tmp_path, lid, french, **more), benchmarks=given)
    row = rows["fr"]
    why = {"language_en": 1, "too_short": 1, "duplicate": 2, "near_duplicate": 4, "contaminated_mine": 1}
    assert row.dropped == why | {f"contaminated_{own}": 1}
    assert {step.name: step.documents for step in row.steps} == {
        "read": len(french), "language": len(french) - 1, "quality": len(french) - 2, "duplicates": 72, "contamination": 70
    }  # fmt: skip
    assert row.kept == 70 and rows["probe"].valid_documents == 3 and not row.divided
    kept = lines((corpus.path / "documents").glob("*/fra_Latn/fr.*"))
    assert sorted(doc["text"] for doc in kept) == sorted(FR)
    rejected = lines((corpus.path / "rejects" / "fra_Latn").glob("fr.*"))
    assert len(rejected) == sum(row.dropped.values()) and len(rejected) + row.kept == row.documents_read
    reasons = [doc["metadata"]["filter_reason"] for doc in rejected]
    assert {reason: reasons.count(reason) for reason in reasons} == row.dropped
    found = {record.task: record for record in summary.benchmarks}
    assert found[str(own)] == BenchmarkRecord(task=str(own), items=2, short=1)
    assert found["mine"] == BenchmarkRecord(task="mine", items=1) and "lost.jsonl" in found["lost"].unread
    assert not (corpus.path / passes.WORK).exists()


def test_a_benchmark_that_is_mostly_too_short_to_be_found_is_named(tmp_path, lid, capsys):
    own = tmp_path / "own.txt"
    own.write_text("\n".join([*ITEMS, "trop court", "court"]))
    for more, said in (([], True), (["Le chat dort sous la grande pluie"] * 5, False)):
        root = tmp_path / str(said)
        root.mkdir()
        own.write_text("\n".join([*ITEMS, "trop court", "court", *more]))
        run(root, stage_of(root, lid, FR, contamination=[own]))
        assert ("own.txt: 2 of 6 items are shorter than 5 words" in " ".join(capsys.readouterr().err.split())) == said


def test_near_copies_stay_when_nobody_asks(tmp_path, lid):
    french = [*FR, FR[5], near(FR[6])]
    _, rows, _ = run(tmp_path, stage_of(tmp_path, lid, french, duplicates="exact"))
    assert rows["fr"].dropped == {"duplicate": 1} and [step.name for step in rows["fr"].steps][-1] == "duplicates"
    (tmp_path / "2").mkdir()
    _, rows, summary = run(tmp_path / "2", stage_of(tmp_path, lid, french, duplicates="off"))
    assert rows["fr"].kept == 72 and summary.duplicates == "off" and summary.benchmarks == []


def test_a_source_of_one_document_is_held_out_and_trained_on(tmp_path, lid):
    novel = "\n\n".join(FR)
    corpus, rows, _ = run(tmp_path, stage_of(tmp_path, lid, [novel]))
    train, valid = (lines(corpus.files(split, "fra_Latn")) for split in ("train", "valid"))
    assert rows["fr"].divided and len(train) == 1 and len(valid) > 2
    assert all(len(doc["text"]) >= PASSAGE and doc["text"] not in train[0]["text"] for doc in valid)
    paragraphs = [part for doc in (*train, *valid) for part in doc["text"].split("\n\n")]
    assert sorted(paragraphs) == sorted(part for text in FR for part in text.split("\n\n"))


def test_the_funnel_counts_documents_also_where_they_are_divided(tmp_path, lid, pico):
    """And estimates the tokens of the base, which lies beside the stage in a run."""
    bases.prepare(str(pico), None, tmp_path / "base")
    corpus, rows, _ = run(
        tmp_path, stage_of(tmp_path, lid, ["\n\n".join(FR), "\n\n".join([*FR[:40], *documents(FRENCH, 20, 77)])])
    )
    row = rows["fr"]
    assert row.divided and row.valid_documents > 2 and [step.documents for step in row.steps] == [2, 2, 2]
    assert row.kept == 2 and row.dropped["duplicate"] > 2
    assert row.kept_frac == (row.train_bytes + row.valid_bytes) / row.steps[0].bytes < 1
    tokenizer = load_tokenizer(pico)
    texts = [doc["text"] for split in ("train", "valid") for doc in lines(corpus.files(split, "fra_Latn"))]
    exact = sum(map(len, encode_text(tokenizer, texts)))
    base = read_base(tmp_path)
    assert base and row.tokens(row.train_bytes + row.valid_bytes, base.content) == exact  # all of it is in the sample
    (tmp_path / "2").mkdir()
    assert run(tmp_path / "2", stage_of(tmp_path / "2", lid, FR))[1]["fr"].tokens(1, "") is None


@pytest.mark.parametrize("other", [False, True])
def test_a_source_of_few_documents_and_many_copies_of_them_is_divided(tmp_path, lid, other):
    """Few is what is left when the copies are gone; what another source has too does not come back by its passages."""
    novel = "\n\n".join(FR)
    source = {"language": "fr", "name": "more", "path": str(write_jsonl(tmp_path / "more.jsonl", [*FR, *[novel] * 60]))}
    corpus, rows, _ = run(tmp_path, stage_of(tmp_path, lid, FR if other else [novel] * 60, sources=[source] if other else []))
    row = rows["more" if other else "fr"]
    assert row.divided and row.dropped["duplicate"] == (129 if other else 59) and row.documents_read == (130 if other else 60)
    train, valid = ([doc["text"] for doc in lines(corpus.files(split, "fra_Latn"))] for split in ("train", "valid"))
    assert (
        valid
        and train
        and not {key for text in train for key in heldout.keys(text)} & {key for text in valid for key in heldout.keys(text)}
    )


@pytest.mark.parametrize("probe", [True, False])
def test_a_book_that_is_whole_in_one_source_and_one_of_many_in_another_is_not_measured_and_trained_on(tmp_path, lid, probe):
    """Neither as text that is only measured, nor held out by its passages; duplicates alone would not find it."""
    novel = "\n\n".join(FR[:20])
    with_more = next(text for n in range(50, 70) if unit_hash(text := "\n\n".join(FR[:n])) >= 0.1)
    many = [with_more, *(f"{text} {n}" for n, text in enumerate(documents(FRENCH, 60, 8)))]
    book = {"language": "fr", "name": "book", "path": str(write_jsonl(tmp_path / "book.jsonl", [novel])), "heldout_only": probe}
    corpus, rows, _ = run(tmp_path, stage_of(tmp_path, lid, many, sources=[book], heldout_frac=0.1))
    train, valid = ([doc["text"] for doc in lines(corpus.files(split, "fra_Latn"))] for split in ("train", "valid"))
    trained = {key for text in train for key in heldout.keys(text)}
    measured = {key for text in valid for key in heldout.keys(text)}
    assert trained and measured and not trained & measured
    assert rows["fr"].heldout_parts and rows["fr"].valid_documents
    rejected = [doc["text"] for doc in lines((corpus.path / "rejects" / "fra_Latn").glob("fr.heldout.*"))]
    assert len(rejected) == rows["fr"].heldout_parts and all(heldout.keys(text) <= measured for text in rejected)


ARTICLES = [" ".join(sentences(FRENCH, 20, 7000 + n)) for n in range(95)]


def altered(text, seed):
    """The same with one word of a hundred changed."""
    dice = random.Random(seed)
    return " ".join(word[:-1] + "x" if dice.random() < 0.01 else word for word in text.split(" "))


@pytest.mark.parametrize("sources", [("many", "few"), ("few", "many"), ("few", "probe"), ("few", "other")])
def test_near_copies_are_not_measured_on_where_one_of_two_sources_is_divided(tmp_path, lid, sources):
    """Whichever comes first; also where neither is divided into the same passages, and where one is only measured."""
    copies = [altered(text, n) for n, text in enumerate(ARTICLES[:15])]
    texts = {
        "many": [*ARTICLES[:15], *ARTICLES[30:80]],
        "few": [*copies, *ARTICLES[15:25]],
        "probe": ARTICLES[:5],
        "other": [" ".join([*sentences(FRENCH, 2, n), text]) for n, text in enumerate([*ARTICLES[:10], *ARTICLES[80:]])],
    }
    first, second = ({"language": "fr", "name": name, "path": str(write_jsonl(tmp_path / f"{name}.jsonl", texts[name])),
                      "heldout_only": name == "probe"} for name in sources)  # fmt: skip
    corpus, rows, _ = run(tmp_path, stage_of(tmp_path, lid, FR, sources=[first, second]))
    assert {name for name in sources if rows[name].divided} == set(sources) & {"few", "other"}
    train, valid = ([doc["text"] for doc in lines(corpus.files(split, "fra_Latn"))] for split in ("train", "valid"))
    units = WordUnits("fra_Latn")
    trained = np.unique(np.concatenate([runs(text, units, 5) for text in train]))
    assert all(np.isin(runs(text, units, 5), trained).mean() < 0.5 for text in valid)
    assert len(valid) > 10 and all(any(doc.startswith(text[:50]) for doc in [*train, *valid]) for text in ARTICLES[15:25])


def test_short_documents_are_not_measured_and_trained_on_also_with_duplicates(tmp_path, lid):
    """No paragraph of them is long enough to be looked for, but the documents are."""
    short = [f"Le chat {name} dort." for name in ("noir", "blanc", "gris", "brun")]
    probe = {"language": "fr", "name": "probe", "path": str(write_jsonl(tmp_path / "p.jsonl", short)), "heldout_only": True}
    stage = stage_of(tmp_path, lid, [*FR, *short], sources=[probe], duplicates="off")
    corpus, rows, _ = run(tmp_path, stage)
    train, valid = ({doc["text"] for doc in lines(corpus.files(split, "fra_Latn"))} for split in ("train", "valid"))
    assert set(short) <= valid and not train & valid and rows["fr"].dropped["held_out"] >= 2


def test_a_source_of_one_line_is_held_out_and_trained_on(tmp_path, lid):
    _, rows, _ = run(tmp_path, stage_of(tmp_path, lid, [" ".join(" ".join(FR).split())], heldout_frac=0.01))
    assert rows["fr"].divided and rows["fr"].train_documents == 1 and rows["fr"].valid_documents == 1


def test_web_text_is_judged_by_what_its_language_is_like(tmp_path, lid):
    """With stop words of the curated source, and with the lines counted that go."""
    pages = ["\n".join(" ".join(sentences(FRENCH, 3, 100 * n + i)) for i in range(12)) for n in range(60)]
    pages[3] += "\nPlease read our cookie policy now."
    junk = ["\n".join(["Le chat dort sous la pluie."] * 30), f"{pages[0]}\n{pages[1]}\nlorem ipsum " + pages[2]]
    web = {"language": "fr", "name": "web", "quality": "web", "path": str(write_jsonl(tmp_path / "w.jsonl", [*pages, *junk]))}
    _, rows, summary = run(tmp_path, stage_of(tmp_path, lid, FR, sources=[web]))
    assert rows["web"].dropped == {"dup_line_frac": 1, "lorem_ipsum": 1} and rows["web"].kept == 60
    known = summary.qualities["fra_Latn"]
    assert known.sources == ["fra_Latn/fr"] and known.documents == 70 and "fr" not in summary.qualities
    assert rows["fr"].dropped == {} and rows["web"].lines_dropped == {"policy": 1}


@pytest.mark.parametrize("count", [40, 60])
def test_a_file_of_code_stays_as_it_is_or_goes_whole(tmp_path, lid, count):
    """Files share a licence, one is a copy, and one holds an item of a benchmark; 40 are few, and are not divided either."""
    licence = "# Licensed under the terms of a licence that every single file here repeats at its beginning, word for word.\n"
    code = [f"{licence}\n\nUNIT_{i} = 'K\u212a'\n\n\ndef f_{i}(x):\n    return '{i} {'x' * 900}'\n" for i in range(count)]
    asked = f"{code[-1]}\n# {ITEMS[0]}\n"
    own = tmp_path / "own.txt"
    own.write_text(ITEMS[0])
    path = write_jsonl(tmp_path / "code.jsonl", [*code, code[0], asked])
    source = {"language": "zxx", "name": "code", "path": str(path), "protect": True}
    corpus, rows, _ = run(tmp_path, stage_of(tmp_path, lid, FR, contamination=[own], sources=[source]))
    assert rows["code"].dropped == {"duplicate": 1, f"contaminated_{own}": 1} and not rows["code"].divided
    train, valid = ([doc["text"] for doc in lines(corpus.files(split, "zxx_Zyyy"))] for split in ("train", "valid"))
    assert sorted(train + valid) == sorted(code) and len(train) > len(valid) > 3


def test_a_single_file_of_code_is_told_what_it_lacks(tmp_path, lid):
    path = write_jsonl(tmp_path / "code.jsonl", ["x = 1\n\n\n" * 3000])
    source = {"language": "zxx", "name": "code", "path": str(path), "protect": True}
    with pytest.raises(ConfigError, match="files of code are not divided.*give at least two files"):
        run(tmp_path, stage_of(tmp_path, lid, FR, sources=[source]))


def test_published_values_are_applied_recorded_and_watched(tmp_path, lid):
    pages = ["\n".join(" ".join(sentences(FRENCH, 3, 100 * n + i)) for i in range(12)) for n in range(60)]
    pages[3] = pages[3].replace(".", "")
    web = {"language": "fr", "name": "web", "quality": "web", "path": str(write_jsonl(tmp_path / "w.jsonl", pages))}
    folder = tmp_path / "configs"
    folder.mkdir()
    (folder / "fra_Latn.yml").write_text(VALUES.replace("stopwords: [chat, pluie", "stopwords: [le, la"))
    (folder / "eng_Latn.yml").write_text(VALUES)  # English has no pages to judge, so this changes nothing
    length = {"name": "length", "min_characters": 1}
    stage = stage_of(tmp_path, lid, FR, sources=[web], quality_values=folder, filters=[length])
    _, rows, summary = run(tmp_path, stage)
    assert rows["web"].dropped == {"line_punct_ratio": 1}
    assert summary.qualities["fra_Latn"].published.stopwords == ["le", "la", "no"]
    assert summary.qualities["eng_Latn"].published is None
    manifest = SimpleNamespace(summary_as=lambda _: summary)
    assert stage.outdated(manifest) == ""
    (folder / "fra_Latn.yml").write_text(VALUES)
    assert "quality_values: those of fra_Latn have changed" in stage.outdated(manifest)


def test_a_pass_that_was_interrupted_goes_on_and_gives_the_same(tmp_path, lid, monkeypatch):
    """Killed before each pass in turn, and once more when all is done but nothing is reported yet."""
    for part in range(2):
        write_jsonl(tmp_path / "many" / f"{part}.jsonl", [*FR[part::2], near(FR[part])])
    source = {"path": str(tmp_path / "many"), "name": "many"}
    whole, rows, _ = run(tmp_path, stage_of(tmp_path, lid, FR, source=source))
    want = content(whole.path)
    assert rows["many"].dropped == {"near_duplicate": 2} and len(want) > 5
    again, execute, count = tmp_path / "again", Executor.run, 0
    again.mkdir()
    stage = stage_of(tmp_path, lid, FR, source=source)
    while True:
        begun = []

        def step(self, begun=begun):
            if list(self.get_incomplete_ranks(range(self.tasks))):
                if begun:
                    raise KeyboardInterrupt
                begun.append(self)
            execute(self)

        monkeypatch.setattr(Executor, "run", step)
        try:
            run(again, stage)
            break
        except KeyboardInterrupt:
            count += 1
    assert count == 11  # two sources read; then of each language signatures, pairs, choice, comparison and split
    assert content(again / "out") == want
    monkeypatch.setattr(Executor, "run", lambda self: pytest.fail("nothing is left to do") if self.tasks > 2 else execute(self))
    assert run(again, stage)[1]["many"].kept == rows["many"].kept


@pytest.mark.parametrize("left", ["index", "marks", "prints"])
def test_what_an_earlier_version_left_in_another_form_is_refused(tmp_path, lid, monkeypatch, left):
    """Its index of benchmarks had other names, which would be an error of the program; and by its marks of what is held out
    nothing would be found again, so that this would be trained on."""
    (tmp_path / "own.txt").write_text(ITEMS[0])
    stage = stage_of(tmp_path, lid, FR, contamination=[tmp_path / "own.txt"])
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(
            passes.Passes, "_split" if left == "marks" else "_compare", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        run(tmp_path, stage)
    record = tmp_path / "out" / passes.WORK / "benchmarks" / "compared.json"
    forms = read_json(record).get("forms", {})
    for file in record.parent.glob("*/*.npz") if left == "index" else ():
        file.unlink()
    for older in ({}, forms | {left: 1}, {name: form for name, form in forms.items() if name != left}):
        write_json(record, read_json(record) | {"forms": older})
        with pytest.raises(RunFailed, match="an earlier version of langext began to compare text here.*--redo filter"):
            run(tmp_path, stage)


def test_other_benchmarks_in_the_middle_of_a_stage_are_refused(tmp_path, lid, monkeypatch):
    own = tmp_path / "own.txt"
    own.write_text(ITEMS[0])
    stage = stage_of(tmp_path, lid, FR, contamination=[own])
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(passes.Passes, "_split", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        run(tmp_path, stage)
    own.write_text(ITEMS[1])
    with pytest.raises(RunFailed, match="benchmarks .* have changed since this stage began.*--redo"):
        run(tmp_path, stage)
    own.write_text(ITEMS[0])
    manifest = manifest_of(run(tmp_path, stage)[2])
    assert stage.outdated(manifest) == ""
    own.write_text(ITEMS[1])
    assert "own.txt has changed since text was compared with it" in stage.outdated(manifest)


def test_long_passes_tell_how_far_they_are(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(working, "SILENCE_SECONDS", 0.0)
    lines = [orjson.dumps({"text": "Bonjour.", "id": str(n), "metadata": {}}) for n in range(4)]
    working.part(tmp_path, 0).write_bytes(b"\n".join(lines) + b"\n")
    assert len(list(working.Read([working.part(tmp_path, 0)], "fra_Latn: looking for duplicates").run())) == 4
    assert re.search(r"fra_Latn: looking for duplicates:  50%, ETA .*\n.* 75%, ETA ", capsys.readouterr().out)
