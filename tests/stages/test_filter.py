"""Reading, language identification, the held-out split and the funnel."""

import gzip
import io
import json
import os
import shutil
import struct
from types import SimpleNamespace

import fsspec
import pytest
from datasets.data_files import EmptyDatasetError
from datasets.exceptions import DataFilesNotFoundError
from datatrove.utils._import_utils import check_required_dependencies
from deadly import Dies
from pydantic import ValidationError
from run_folders import manifest_of
from toy import ENGLISH, FRENCH, GERMAN, SWAHILI, documents, sentences, write_fasttext, write_jsonl

from langext.artifacts import sha256_file, write_json
from langext.context import Context
from langext.data import hub, readers, tasks, tokens, word_units
from langext.data.executor import Executor
from langext.data.language_id import LanguageId
from langext.data.sources import Source
from langext.data.split import unit_hash
from langext.errors import ConfigError, RunFailed
from langext.models import loading
from langext.stages import filter as filter_stage
from langext.stages import funnel
from langext.stages.filter import Filter
from langext.text_summaries import FilterSummary, FunnelRow, SourceRecord

FR, EN = documents(FRENCH, 40, 1), documents(ENGLISH, 40, 2)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run(tmp_path, lid, sources, **more):
    stage = Filter(uses="filter", sources=sources, lid_model=str(lid), **{"heldout_frac": 0.2, **more})
    ctx = Context(tmp_path / "out", 1, "fra_Latn", ("eng_Latn",))
    ctx.out.mkdir()
    stage.check(ctx)
    return stage.run(ctx), ctx.summary[-1]


def texts(paths):
    return [json.loads(line).get("text", "") for path in paths for line in gzip.open(path, "rt", encoding="utf-8")]


def two(tmp_path, french):
    write_jsonl(tmp_path / "en.jsonl", EN)
    return [{"language": "fr", "path": str(french)}, {"language": "en", "path": str(tmp_path / "en.jsonl")}]


def test_keeps_the_language_and_says_what_became_of_the_rest(tmp_path, lid):
    mixed = write_jsonl(tmp_path / "fr.jsonl.gz", [*FR, *EN[:5], "", "12345 67890"])
    corpus, summary = run(tmp_path, lid, two(tmp_path, mixed))
    row = summary.funnel[0]
    assert (row.documents_read, row.train_documents + row.valid_documents) == (47, 40)
    assert row.dropped == {"language_en": 5, "empty": 1, "language_none": 1}
    kept = texts(corpus.files("train", "fra_Latn")) + texts(corpus.files("valid", "fra_Latn"))
    assert sorted(kept) == sorted(FR)
    rejected = texts(sorted((tmp_path / "out" / "rejects" / "fra_Latn").glob("*")))
    assert sorted(rejected) == sorted([*EN[:5], "12345 67890", ""])


def test_the_split_follows_the_text_alone(tmp_path, lid):
    source = write_jsonl(tmp_path / "fr.jsonl", [*FR, *FR[:10]])
    corpus, _ = run(tmp_path, lid, two(tmp_path, source))
    valid, train = (set(texts(corpus.files(s, "fra_Latn"))) for s in ("valid", "train"))
    assert valid == {t for t in FR if unit_hash(t) < 0.2} and valid and not valid & train


@pytest.mark.parametrize("name", ["fr.txt", "fr.txt.gz", "fr.jsonl", "fr.jsonl.gz", "fr.parquet", "folder"])
def test_every_format_gives_the_same_documents(tmp_path, lid, name):
    path = tmp_path / name
    flat = [t.replace("\n\n", "\n") for t in FR]
    if name == "folder":
        write_jsonl(path / "a.jsonl", flat[:20])
        write_jsonl(path / "deep" / "b.jsonl.gz", flat[20:])
        (path / "README.md").write_text("not a document")
    elif name.endswith(".parquet"):
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.table({"text": flat}), path)
    elif ".txt" in name:
        opener = gzip.open if name.endswith(".gz") else open
        with opener(path, "wt", encoding="utf-8") as file:
            file.write("\n\n".join(flat) + "\n")
    else:
        write_jsonl(path, flat)
    corpus, _ = run(tmp_path, lid, two(tmp_path, path))
    assert sorted(texts(corpus.files("train", "fra_Latn")) + texts(corpus.files("valid", "fra_Latn"))) == sorted(flat)


def test_paragraph_level_cuts_the_other_language_out(tmp_path, lid):
    mixed = [f"{a}\n\n{b}" for a, b in zip(sentences(FRENCH, 30, 5), sentences(ENGLISH, 30, 6), strict=True)]
    corpus, summary = run(tmp_path, lid, two(tmp_path, write_jsonl(tmp_path / "m.jsonl", mixed)), level="paragraph")
    kept = texts(corpus.files("train", "fra_Latn")) + texts(corpus.files("valid", "fra_Latn"))
    assert sorted(kept) == sorted(sentences(FRENCH, 30, 5))
    assert summary.funnel[0].documents_read == 30 and summary.funnel[0].dropped == {"language_en": 30}


def test_line_level_keeps_the_lines_and_their_paragraphs(tmp_path, lid):
    lines = sentences(FRENCH, 90, 5)
    mixed = [
        f"{a}\n{english}\n\n{b}\n{c}" for a, b, c, english in zip(*[iter(lines)] * 3, sentences(ENGLISH, 30, 6), strict=True)
    ]
    corpus, summary = run(tmp_path, lid, two(tmp_path, write_jsonl(tmp_path / "m.jsonl", mixed)), level="line")
    kept = texts(corpus.files("train", "fra_Latn")) + texts(corpus.files("valid", "fra_Latn"))
    assert sorted(kept) == sorted(f"{a}\n\n{b}\n{c}" for a, b, c in zip(*[iter(lines)] * 3, strict=True))
    assert summary.funnel[0].judged == 120 and summary.funnel[0].dropped == {"language_en": 30}


def test_the_cut_is_in_the_summary_and_what_was_dropped_has_its_runner_up(tmp_path, lid):
    unsure = [f"{a} {b}" for a, b in zip(sentences(FRENCH, 5, 8), sentences(ENGLISH, 5, 9), strict=True)]
    _, summary = run(tmp_path, lid, two(tmp_path, write_jsonl(tmp_path / "fr.jsonl", [*FR, *EN[:5], *unsure])))
    row = summary.funnel[0]
    assert row.cut and row.cut.rule == "auto" and row.cut.labels == ["fr"] and row.cut.sampled == 50 and row.cut.score == 0.5
    assert FilterSummary.model_validate_json(summary.model_dump_json()).funnel[0].cut == row.cut
    assert 0 < row.right_kept_bytes <= row.right_bytes < row.bytes_read
    (rejects,) = (tmp_path / "out" / "rejects" / "fra_Latn").glob("*")
    found = [json.loads(line)["metadata"] for line in gzip.decompress(rejects.read_bytes()).splitlines()]
    assert len(found) >= 5 and all(told["filter_reason"] and told["runner_up"] in ("fr", "en") for told in found)


def test_an_interrupted_stage_goes_on_with_the_cut_that_it_had(tmp_path, lid, monkeypatch):
    sources = two(tmp_path, write_jsonl(tmp_path / "fr.jsonl", FR))
    stage, ctx = interrupted(tmp_path, lid, sources, monkeypatch)
    path = ctx.out / "log" / "fra_Latn" / "fr" / funnel.CUT
    had = json.loads(path.read_text())
    path.write_text(json.dumps(had | {"score": 0.25}))
    shutil.rmtree(path.parent / "completions")
    stage.run(ctx)
    assert ctx.summary[-1].funnel[0].cut.score == 0.25 != had["score"]


@pytest.mark.parametrize("level", ["document", "paragraph"])
def test_a_threshold_that_throws_the_language_away_stops_the_stage(tmp_path, level, capsys):
    """Of toy Swahili this model's first choice is right and unsure: the other label is nearly as likely."""
    path = write_fasttext(tmp_path / "lid.bin", {"fr": FRENCH, "en": ENGLISH, "sw": SWAHILI})
    data = bytearray(path.read_bytes())
    data[-3 * 3 * 4 :] = b"".join(struct.pack("<3f", *row) for row in ((0.6, 0, 0), (0, 8, 0), (0, 0, 8)))
    path.write_bytes(data)
    sources = two(tmp_path, write_jsonl(tmp_path / "fr.jsonl", FR))
    with pytest.raises(RunFailed, match="source fr: of the text .* only 0 % is kept .min_kept: 0.5.*leave threshold out"):
        run(tmp_path, path, sources, threshold=0.65, level=level)
    assert not list((tmp_path / "out").rglob("*.jsonl.gz"))
    (tmp_path / "auto").mkdir()
    _, summary = run(tmp_path / "auto", path, sources, level=level)
    assert summary.funnel[0].kept == 40 and summary.funnel[0].cut.score < 0.5 and not summary.funnel[0].dropped


def test_a_source_that_is_mostly_something_else_is_named(tmp_path, lid, capsys):
    run(tmp_path, lid, two(tmp_path, write_jsonl(tmp_path / "fr.jsonl", [*FR[:20], *EN])))
    assert "% of a sample for fra_Latn (others: en 6" in " ".join(capsys.readouterr().err.split())


def test_a_source_that_another_one_contains_adds_nothing_and_stops_nothing(tmp_path, lid, capsys):
    french, english = two(tmp_path, write_jsonl(tmp_path / "fr.jsonl", FR))
    again = french | {"path": str(write_jsonl(tmp_path / "again.jsonl", FR[:10]))}
    corpus, summary = run(tmp_path, lid, [french, again, english])
    assert [row.kept for row in summary.funnel] == [40, 0, 40] and corpus.files("train", "fra_Latn")
    said = " ".join(capsys.readouterr().err.split())
    assert "source again: nothing of fra_Latn is left (10 duplicate); the run goes on" in said


def test_a_stage_that_was_stopped_after_its_comparison_goes_on(tmp_path, lid):
    french, english = two(tmp_path, write_jsonl(tmp_path / "fr.jsonl", FR))
    again = french | {"path": str(write_jsonl(tmp_path / "again.jsonl", FR[:10]))}
    stage = Filter(uses="filter", sources=[french, again, english], lid_model=str(lid), heldout_frac=0.2)
    ctx = Context(tmp_path / "out", 1, "fra_Latn", ("eng_Latn",))
    ctx.out.mkdir()
    for _ in range(2):
        stage.run(ctx)
        assert [row.kept for row in ctx.summary[-1].funnel] == [40, 0, 40]


def test_documents_with_the_same_id_stay_apart(tmp_path, lid):
    path = tmp_path / "same.jsonl"
    path.write_text("".join(json.dumps({"id": None, "text": text}) + "\n" for text in FR))
    corpus, _ = run(tmp_path, lid, two(tmp_path, path), level="paragraph")
    assert sorted(texts(corpus.files("train", "fra_Latn")) + texts(corpus.files("valid", "fra_Latn"))) == sorted(FR)


def test_heldout_only_and_limits(tmp_path, lid):
    sources = [*two(tmp_path, write_jsonl(tmp_path / "fr.jsonl", FR))]
    sources.append({"language": "en", "path": "en.jsonl", "name": "probe", "heldout_only": True, "max_documents": 7})
    corpus, summary = run(tmp_path, lid, sources)
    assert summary.funnel[2].valid_documents == 7 and summary.funnel[2].train_documents == 0
    assert not any("probe" in path.name for path in corpus.files("train", "eng_Latn"))


def test_a_dataset_in_shards_is_read_once(tmp_path, lid):
    """A hub source, given as a local dataset folder: 64 tasks share three files; a limit reads no more than it says."""
    for i in range(3):
        write_jsonl(tmp_path / "data" / f"train-{i}.jsonl", FR[i::3])
    english = {"language": "en", "path": str(write_jsonl(tmp_path / "en.jsonl", EN))}
    source = {"language": "fr", "hub": str(tmp_path / "data"), "name": "web"}
    corpus, summary = run(tmp_path, lid, [source, english])
    assert summary.funnel[0].documents_read == 40
    assert sorted(texts(corpus.files("train", "fra_Latn")) + texts(corpus.files("valid", "fra_Latn"))) == sorted(FR)
    (tmp_path / "limited").mkdir()
    _, summary = run(tmp_path / "limited", lid, [{**source, "max_documents": 9}, english], heldout_frac=0.5)
    assert summary.funnel[0].documents_read == 9


def test_of_a_dataset_it_is_said_where_it_is_broken(tmp_path, lid):
    """The library reads it and stops at a broken line, whatever max_bad_frac is; see docs/data.md."""
    for i in range(3):
        write_jsonl(tmp_path / "data" / f"train-{i}.json", FR[i::3])
    with (tmp_path / "data" / "train-1.json").open("a") as file:
        file.write('{"text": "le cha\n')
    english = {"language": "en", "path": str(write_jsonl(tmp_path / "en.jsonl", EN))}
    source = {"language": "fr", "hub": str(tmp_path / "data"), "name": "web"}
    with pytest.raises(RunFailed, match=r"part 2 of 3 \(train-1.json\), after 0 rows: .* in row 13"):
        run(tmp_path, lid, [source, english], max_bad_frac=0.5)


def test_json_lines_of_a_dataset_are_read_as_other_files(tmp_path, lid):
    """A broken line and a number are counted and kept; the library would stop at the one and make text of the other."""
    for i in range(3):
        write_jsonl(tmp_path / "data" / "part" / f"train-{i}.jsonl", FR[i::3])
    with (tmp_path / "data" / "part" / "train-1.jsonl").open("a") as file:
        file.write('{"text": "le cha\n{"text": 5}\n')
    english = {"language": "en", "path": str(write_jsonl(tmp_path / "en.jsonl", EN))}
    source = {"language": "fr", "hub": str(tmp_path / "data"), "name": "web"}
    with pytest.raises(RunFailed, match=r"2 of 42 entries cannot.*train-1.jsonl: line 14: .*line 15: 'text' is a number"):
        run(tmp_path, lid, [source, english], max_bad_frac=0.04)
    (tmp_path / "out").rename(tmp_path / "strict")
    corpus, summary = run(tmp_path, lid, [source, english], max_bad_frac=0.1)
    assert summary.funnel[0].dropped["broken"] == 2 and summary.funnel[0].documents_read == 42
    assert sorted(texts(corpus.files("train", "fra_Latn")) + texts(corpus.files("valid", "fra_Latn"))) == sorted(FR)
    assert len(texts((tmp_path / "out" / "rejects" / "fra_Latn").glob("web.broken.*"))) == 2


def test_json_lines_of_a_dataset_on_the_hub_are_read_there(tmp_path, monkeypatch):
    """A store in memory stands for the hub: the library says which files there are at the commit, and langext reads them."""
    write_jsonl(tmp_path / "data" / "train.jsonl", FR)
    builder, (path,) = hub._builder_files(str(tmp_path / "data"), {"name": None, "split": "train", "revision": None})
    assert path == str(tmp_path / "data" / "train.jsonl")
    urls = [f"memory://set@{'a' * 40}/data/{name}.jsonl" for name in ("one", "two")]
    for url in urls:
        with fsspec.open(url, "wb") as file:
            file.write((tmp_path / "data" / "train.jsonl").read_bytes())
    monkeypatch.setattr(hub, "_builder_files", lambda dataset, options: (builder, urls))
    source = Source(language="fr", hub="someone/text")
    reader = source.reader(SourceRecord(files=[], unread=[], commit="a" * 40, tasks=2))
    assert isinstance(reader, readers.TextReader) and list(reader.files) == ["one.jsonl", "two.jsonl"]
    assert [document.text for rank in range(2) for document in reader.run(None, rank, 2)] == [*FR, *FR]
    monkeypatch.setattr(hub, "_builder_files", lambda dataset, options: (builder, [*urls, "memory://set/data/three.parquet"]))
    assert hub.json_lines("someone/text", {}) == {}


def test_a_dataset_that_is_not_there(tmp_path, lid, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    english = {"language": "en", "path": str(write_jsonl(tmp_path / "en.jsonl", EN))}
    with pytest.raises(ConfigError, match="hub dataset .*none"):
        run(tmp_path, lid, [{"language": "fr", "hub": str(tmp_path / "none")}, english])


def test_workers_change_nothing(tmp_path, lid):
    for i in range(3):
        write_jsonl(tmp_path / "fr" / f"{i}.jsonl", FR[i::3])
    found = []
    for workers in (1, 2):
        place = tmp_path / str(workers)
        place.mkdir()
        corpus, _ = run(place, lid, two(tmp_path, tmp_path / "fr"), runtime={"workers": workers})
        found.append([(p.name, p.read_bytes()) for p in sorted(corpus.path.glob("*/**/*.gz"))])
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda d: d / "none.jsonl", "none.jsonl: no such file"),
        (lambda d: write_jsonl(d / "a.jsonl", []), "cannot read .*a.jsonl .empty."),
        (lambda d: _text(d / "a.txt", "le chat dort\n" * 9), "without a blank line is one single.*txt_documents: lines"),
        (lambda d: _text(d / "a.txt", "le chat dort\n" * 9 + "\n"), "without a blank line is one single.*txt_documents: lines"),
    ],
)
def test_bad_sources(tmp_path, lid, make, expected):
    with pytest.raises(ConfigError, match=expected):
        run(tmp_path, lid, two(tmp_path, make(tmp_path)))


WRONG_INSIDE = {
    "column": (lambda d: _text(d / "a.jsonl", '{"text": "le chat"}\n{"content": 1}\n'), "line 2: no 'text'.*text_column"),
    "language": (lambda d: write_jsonl(d / "a.jsonl", EN), "nothing of fra_Latn is left \\(40 language_en\\)"),
    "no text": (lambda d: write_jsonl(d / "a.jsonl", [""] * 3), "nothing of fra_Latn is left \\(3 empty\\)"),
    "no lines": (lambda d: _text(d / "a.jsonl", "\n\n"), "the source is empty"),
    "JSON": (lambda d: _text(d / "a.jsonl", '{"text": "le chat"}\n{"text": \n'), "a.jsonl: line 2: not a JSON object"),
    "UTF-8": (lambda d: _bytes(d / "a.txt", b"le chat\n\nle chat \xff\xfe"), "not UTF-8"),
    "cut": (lambda d: _bytes(d / "a.txt.gz", gzip.compress("\n\n".join(FR).encode())[:-200]), "damaged"),
}


@pytest.mark.parametrize("case", WRONG_INSIDE)
def test_what_reading_shows_costs_only_the_source_that_has_it(tmp_path, lid, case):
    make, said = WRONG_INSIDE[case]
    bad = make(tmp_path)
    french, english = two(tmp_path, bad)
    with pytest.raises(RunFailed, match=f"{said}.*run the same command again") as raised:
        run(tmp_path, lid, [english, french])
    assert "\n" not in str(raised.value)
    assert not list((tmp_path / "out").rglob("a.*.jsonl.gz")) and not (tmp_path / "out" / "log" / "fra_Latn" / "a").exists()
    if bad.suffix == ".jsonl":
        write_jsonl(bad, FR)
    else:
        _bytes(bad, gzip.compress("\n\n".join(FR).encode()) if bad.suffix == ".gz" else "\n\n".join(FR).encode())
    done = list((tmp_path / "out" / "work" / "text" / "eng_Latn" / "en").iterdir())
    log = tmp_path / "out" / "log" / "eng_Latn" / "en" / "completions" / "00000"
    before = log.stat().st_mtime_ns
    ctx = Context(tmp_path / "out", 1, "fra_Latn", ("eng_Latn",))
    Filter(uses="filter", sources=[english, french], lid_model=str(lid), heldout_frac=0.2).run(ctx)
    assert ctx.summary[-1].funnel[1].kept >= 40 and log.stat().st_mtime_ns == before and done


def test_what_cannot_be_read_is_left_out_up_to_a_share(tmp_path, lid, capsys):
    """Of 42 entries two are broken: the stage bears 5 %, its default does not, and a source may have a share of its own."""
    path = write_jsonl(tmp_path / "fr.jsonl", FR)
    path.write_bytes(path.read_bytes() + b"no\n" + '{"text": "été"}\n'.encode("latin-1"))
    french, english = two(tmp_path, path)
    for more, share in (({}, None), ({"max_bad_frac": 0.05}, 0.04), ({"max_bad_frac": 0.05}, 0)):
        place = tmp_path / f"{share}"
        place.mkdir()
        said = "2 of 42 entries .* max_bad_frac .*line 41: .*line 42: " if share != 0 else "line 41: not a JSON"
        with pytest.raises(RunFailed, match=said):
            run(place, lid, [english, {**french, "max_bad_frac": share}], **more)
        assert not list(place.rglob("fr.*"))
    _, summary = run(tmp_path, lid, [french, english], max_bad_frac=0.05)
    row = summary.funnel[0]
    assert (row.documents_read, row.kept, row.dropped) == (42, 40, {"broken": 2})
    assert "2 of 42 entries cannot be read and are left out" in capsys.readouterr().out
    assert texts([tmp_path / "out" / "rejects" / "fra_Latn" / "fr.broken.00000.jsonl.gz"]) == [
        "no",
        '{"text": "\ufffdt\ufffd"}',
    ]


def test_half_a_character_in_the_name_of_a_field_is_no_traceback(tmp_path, lid):
    """The rejects say which fields there are."""
    path = write_jsonl(tmp_path / "fr.jsonl", FR)
    path.write_text(path.read_text() + '{"t\\ud83dext": "le chat"}\n' * 2)
    corpus, summary = run(tmp_path, lid, two(tmp_path, path), max_bad_frac=0.1)
    assert summary.funnel[0].dropped == {"broken": 2} and summary.funnel[0].kept == 40
    with gzip.open(corpus.path / "rejects" / "fra_Latn" / "fr.broken.00000.jsonl.gz", "rt") as file:
        assert "t\ufffdext" in json.loads(file.readline())["metadata"]["why"]


def test_a_language_whose_words_nothing_divides_is_named_when_its_quality_is_judged(tmp_path, capsys, monkeypatch):
    def load(code):
        check_required_dependencies("word tokenizer", [("not_here", "not-here")])

    monkeypatch.setattr(word_units, "load_word_tokenizer", load)
    lid = write_fasttext(tmp_path / "lid.bin", {"th": SWAHILI, "fr": FRENCH})
    for quality in ("off", "web"):
        path = str(write_jsonl(tmp_path / "text.jsonl", FR))
        sources = [{"language": code, "path": path, "quality": quality} for code in ("th", "fr")]
        stage = Filter(uses="filter", sources=sources, lid_model=str(lid))
        stage.check(Context(tmp_path / "out", 1, "tha_Thai", ("fra_Latn",)))
        said = capsys.readouterr().err
        assert said.count("warning: quality: web: ") == (quality == "web") and ("tha_Thai (not-here);" in said) == (
            quality == "web"
        )


def test_standard_input_is_read_once_also_by_a_stage_that_goes_on(tmp_path, lid, monkeypatch):
    text = "".join(json.dumps({"text": text}) + "\n" for text in FR).encode()
    for comes, error in ((b"no text\n", "nothing of fra_Latn is left"), (text, "")):
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(comes)))
        sources = [{"language": "fr", "path": "-"}, two(tmp_path, "x")[1]]
        stage = Filter(uses="filter", sources=sources, lid_model=str(lid), heldout_frac=0.2)
        ctx = Context(tmp_path / "out", 1, "fra_Latn", ("eng_Latn",))
        ctx.out.mkdir(exist_ok=True)
        stage.check(ctx)
        if error:
            with pytest.raises(RunFailed, match=error):
                stage.run(ctx)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Executor, "run", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        stage.run(ctx)
    stage.run(ctx)  # nothing comes any more
    row = ctx.summary[-1].funnel[0]
    assert (row.source, row.kept, row.origin) == ("fra_Latn/stdin", 40, str(ctx.out / "stdin/fra_Latn/stdin.jsonl"))
    manifest = manifest_of(ctx.summary[-1])
    assert stage.outdated(manifest) == "" and not stage.same_sources(manifest)
    with pytest.raises(ValidationError, match="can be one source only"):
        Filter(uses="filter", sources=[{"language": code, "path": "-"} for code in ("fr", "en")])


def test_a_store_that_is_away_does_not_stop_a_finished_run(tmp_path, lid, monkeypatch):
    store = fsspec.filesystem("memory")
    store.pipe("/text/fr.jsonl", write_jsonl(tmp_path / "fr.jsonl", FR).read_bytes())
    sources = two(tmp_path, "memory://text")
    _, summary = run(tmp_path, lid, sources)
    stage, manifest = Filter(uses="filter", sources=sources, lid_model=str(lid)), manifest_of(summary)
    assert summary.funnel[0].kept == 40 and stage.outdated(manifest) == "" and stage.same_sources(manifest)
    assert not stage.same_sources(manifest, lambda: {"a task that text was not compared with"})

    def lost(*_, **__):
        raise TimeoutError("no answer")

    with monkeypatch.context() as patch:
        patch.setattr(type(store), "find", lost)
        assert stage.outdated(manifest) == "" and not stage.same_sources(manifest)
    store.pipe("/text/fr.jsonl", b"{}\n")
    assert "fr.jsonl has changed since" in stage.outdated(manifest)
    store.rm("/text", recursive=True)


@pytest.mark.parametrize("gone", ["fr.jsonl", "en.jsonl", "lid.bin"])
def test_what_vanishes_in_the_middle_of_a_run_costs_nothing(tmp_path, lid, gone, monkeypatch):
    """Before it is begun (en), when it is finished (fr), or needed by all."""
    shutil.copy(lid, tmp_path / "lid.bin")
    sources = two(tmp_path, write_jsonl(tmp_path / "fr.jsonl", FR))
    stage, ctx = interrupted(tmp_path, tmp_path / "lid.bin", sources, monkeypatch)
    os.rename(tmp_path / gone, tmp_path / "aside")
    with pytest.raises(RunFailed, match=f"{gone}.*run the same command again"):
        stage.run(ctx)
    os.rename(tmp_path / "aside", tmp_path / gone)
    begun = []
    execute = Executor.run
    monkeypatch.setattr(Executor, "run", lambda self: (begun.append(self.log), execute(self)))
    stage.run(ctx)
    assert ctx.summary[-1].funnel[0].kept == 40 and begun[0] == ctx.out / "log/eng_Latn/en"
    assert ctx.out / "log/fra_Latn/fr" not in begun


def test_nothing_counts_as_made_when_forgetting_is_killed(tmp_path, lid, monkeypatch):
    source = Source(language="fr", path=str(write_jsonl(tmp_path / "fr.jsonl", [*FR, EN[0]])))
    stage, ctx = interrupted(tmp_path, lid, two(tmp_path, source.path), monkeypatch)

    def kill(*_):
        raise KeyboardInterrupt

    for where in ("pathlib.Path.unlink", "shutil.rmtree"):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(where, kill)
            filter_stage._forget(ctx, source)
        assert not (ctx.out / "log" / "fra_Latn" / "fr").exists()
    stage.run(ctx)
    assert ctx.summary[-1].funnel[0].kept == 40 and not list(ctx.out.rglob(".*.old"))


def test_another_language_model_is_noticed(tmp_path, lid):
    mine = tmp_path / "lid.bin"
    shutil.copy(lid, mine)
    sources = two(tmp_path, write_jsonl(tmp_path / "fr.jsonl", FR))
    _, summary = run(tmp_path, mine, sources)
    stage = Filter(uses="filter", sources=sources, lid_model=str(mine))
    for known in (summary, summary.model_copy(update={"lid_model": None})):  # the second as an earlier version wrote it
        manifest = manifest_of(known)
        assert stage.outdated(manifest) == "" and stage.same_sources(manifest)
        write_fasttext(mine, {"fr": FRENCH, "en": ENGLISH, "de": ["der"]})
        assert "lid.bin has changed" in stage.outdated(manifest) and not stage.same_sources(manifest)
        mine.unlink()
        assert stage.outdated(manifest) == "" and not stage.same_sources(manifest)
        shutil.copy(lid, mine)


@pytest.mark.parametrize(
    ("error", "said", "kind"),
    [
        (DataFilesNotFoundError("No (supported) data files found"), "a/b", ConfigError),
        (EmptyDatasetError("The directory doesn't contain any data files"), "a/b", ConfigError),
        (FileNotFoundError("no train.jsonl"), ".", ConfigError),
        (FileNotFoundError("no train.jsonl"), "gone/away", RunFailed),
        (OSError("the connection is lost"), "a/b", RunFailed),
    ],
)
def test_what_a_second_try_cannot_mend_is_the_users_to_mend(error, said, kind):
    assert type(hub.problem(error, said)) is kind


def _text(path, text):
    return _bytes(path, text.encode())


def _bytes(path, data):
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    return path


def test_bad_language_models(tmp_path, lid):
    source = two(tmp_path, write_jsonl(tmp_path / "fr.jsonl", FR))
    with pytest.raises(ConfigError, match="not a fastText model"):
        run(tmp_path / "..", _text(tmp_path / "x.bin", "no"), source)
    german = write_fasttext(tmp_path / "de.bin", {"de": ["der"], "en": ["the"]})
    (tmp_path / "2").mkdir()
    with pytest.raises(ConfigError, match="no label for fra_Latn"):
        run(tmp_path / "2", german, source)


def test_a_folder_that_holds_the_run_itself(tmp_path, lid):
    write_jsonl(tmp_path / "fr.jsonl", FR)
    with pytest.raises(ConfigError, match="holds this run too"):
        run(tmp_path, lid, two(tmp_path, tmp_path))


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ({"language": "de"}, "d: deu_Latn is not of this run .fra_Latn, eng_Latn.; set protect, .* or measure_only"),
        ({"language": "zxx", "heldout_only": True}, "zxx_Zyyy is not of this run"),
        ({"language": "fr", "protect": True}, "protect is not for fra_Latn, which is to be learnt"),
        ({"language": "en", "protect": True}, "eng_Latn is an original one.*shares: {eng_Latn/d: 0}"),
        ({"language": "fr", "measure_only": True}, "measure_only is for other languages.*set heldout_only"),
        ({"language": "en", "measure_only": True}, "measure_only is for other languages.*set heldout_only"),
        ({"language": "de", "protect": True, "measure_only": True}, "protect and measure_only: a source has one"),
        ({"language": "de", "protect": True, "heldout_only": True}, "heldout_only and protect: a source has one"),
        ({"language": "de", "measure_only": True, "heldout_only": True}, "heldout_only and measure_only: a source has one"),
        ({"language": "de", "protect": True}, "no label for deu_Latn"),
    ],
)
def test_what_text_is_for_must_be_said_and_fit_the_run(tmp_path, lid, source, said):
    path = {"path": str(write_jsonl(tmp_path / "d.jsonl", FR))}
    with pytest.raises((ConfigError, ValidationError), match=said):
        run(tmp_path, lid, [*two(tmp_path, write_jsonl(tmp_path / "fr.jsonl", FR)), source | path])


CODE = [f"def f_{i}(x):\n\n\n\n    return x  # le chat dort" for i in range(40)]


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """A model that knows the toy German too."""
    return write_fasttext(tmp_path_factory.mktemp("lid") / "lid.bin", {"fr": FRENCH, "en": ENGLISH, "de": GERMAN})


@pytest.mark.parametrize("level", ["document", "paragraph"])
def test_text_that_is_not_of_the_run_is_calibrated_on_or_measured_and_never_trained_on(tmp_path, three, pico, level):
    """Of many languages the new one is left out, code is kept as it is, another language is that language."""
    german, more, mixed = documents(GERMAN, 40, 3), documents(GERMAN, 40, 8), [*EN, *documents(GERMAN, 40, 4), *FR[:5]]
    others = [
        {"language": "de", "path": str(write_jsonl(tmp_path / "de.jsonl", [*german, *EN[:3]])), "protect": True},
        {"language": "mul", "path": str(write_jsonl(tmp_path / "all.jsonl", mixed)), "protect": True, "max_documents": 85},
        {"language": "zxx", "path": str(write_jsonl(tmp_path / "code.jsonl", [*CODE, " "])), "protect": True},
        {"language": "de", "path": str(write_jsonl(tmp_path / "more.jsonl", [*more, *EN[:3]])), "measure_only": True},
    ]
    sources = [*two(tmp_path, write_jsonl(tmp_path / "fr.jsonl", FR)), *others]
    corpus, summary = run(tmp_path, three, sources, level=level)
    rows = {row.source: row for row in summary.funnel}
    assert [row.role for row in rows.values()] == ["train"] * 2 + ["protect"] * 3 + ["measure"]
    per = 1 if level == "document" else 3  # paragraphs in a document
    assert rows["deu_Latn/de"].dropped == rows["deu_Latn/more"].dropped == {"language_en": 3 * per}
    assert rows["mul_Zyyy/all"].dropped == {"language_fr": 5 * per} and rows["zxx_Zyyy/code"].dropped == {"empty": 1}
    assert rows["deu_Latn/more"].train_documents == 0 and rows["deu_Latn/more"].valid_documents == 40
    assert all(rows[name].train_documents and rows[name].valid_documents for name in ("deu_Latn/de", "mul_Zyyy/all"))
    assert sorted(texts(corpus.files("train", "zxx_Zyyy")) + texts(corpus.files("valid", "zxx_Zyyy"))) == sorted(CODE)
    assert "protected: " in rows["zxx_Zyyy/code"].used and "not protected" in rows["deu_Latn/more"].used
    known = ["deu_Latn", "eng_Latn", "fra_Latn", "mul_Zyyy", "zxx_Zyyy"]
    assert corpus.languages("train") == corpus.languages("valid") == known
    # What training reads: the languages of the run, whatever else has training text.
    write_json(corpus.path / "manifest.json", manifest_of(summary))
    tokenizer = loading.load_tokenizer(pico)
    tokens.tokenise(tmp_path / "tokens", corpus, tokenizer, ("fra_Latn", "eng_Latn"))
    read = tokens.token_files(tmp_path / "tokens", corpus, tokenizer, ("fra_Latn", "eng_Latn"))
    assert list(read) == ["fra_Latn/fr", "eng_Latn/en"]
    assert {path.parent.name for path in (tmp_path / "tokens").glob("*/*/*")} == {"fra_Latn", "eng_Latn"}


def test_protected_text_that_is_all_held_out_calibrates_nothing(tmp_path, three):
    (text,) = [text for text in documents(GERMAN, 40, 3) if unit_hash(text) < 0.2][:1]
    source = {"language": "de", "path": str(write_jsonl(tmp_path / "de.jsonl", [text])), "protect": True}
    with pytest.raises(ConfigError, match="text of deu_Latn is too short to be divided.*; give at least 4,000 characters$"):
        run(tmp_path, three, [*two(tmp_path, write_jsonl(tmp_path / "fr.jsonl", FR)), source])


@pytest.mark.parametrize("frac", [0.001, 0.5, 0.999])
def test_of_a_single_short_text_it_is_said_how_long_it_must_be(tmp_path, lid, frac):
    """No heldout_frac divides it; of longer text a part is held out whatever the share is."""
    short = write_jsonl(tmp_path / "fr.jsonl", [" ".join(FR)[:900]])
    with pytest.raises(ConfigError, match="text of fra_Latn is too short to be divided.*; give at least 4,000 characters$"):
        run(tmp_path, lid, two(tmp_path, short), heldout_frac=frac)
    (tmp_path / "out").rename(tmp_path / "short")
    if frac < 0.01:
        _, summary = run(
            tmp_path, lid, two(tmp_path, write_jsonl(tmp_path / "fr.jsonl", [" ".join(FR)[:4000]])), heldout_frac=frac
        )
        assert summary.funnel[0].divided and summary.funnel[0].train_bytes and summary.funnel[0].valid_bytes


def test_a_funnel_of_an_earlier_version_is_read():
    row = FunnelRow(
        language="fra_Latn", domain="a", origin="a", documents_read=1, judged=1, bytes_read=1, dropped={}, train_documents=1,
        train_bytes=2_000_000, valid_documents=0, valid_bytes=0,
    )  # fmt: skip
    assert FunnelRow.model_validate(row.model_dump(exclude={"role"})) == row
    assert row.used == "2.00 MB to train on, 0.00 MB held out"


def read_by(stage, lid):
    """The manifest of a stage that has read its sources as they are now."""
    files = [file for source in stage.sources for file in source.record().files]
    return manifest_of(FilterSummary(funnel=[], source_files=files, lid_sha256=sha256_file(lid), duplicates="near"))


def test_a_changed_source_is_noticed(tmp_path, lid):
    path = write_jsonl(tmp_path / "fr.jsonl", FR)
    stage = Filter(uses="filter", sources=two(tmp_path, path), lid_model=str(lid))
    manifest = read_by(stage, lid)
    assert stage.outdated(manifest) == "" and stage.same_sources(manifest)
    path.touch()
    assert stage.outdated(manifest) == ""  # the very bytes, written again
    was = path.read_text()
    path.write_text(was.replace("petit", "grand"))
    assert was != path.read_text() and "fr.jsonl has changed since it was filtered" in stage.outdated(manifest)
    path.write_text(was)
    elsewhere = tmp_path / "moved"  # a project that was moved, or its copy: the very bytes at another place
    elsewhere.mkdir()
    shutil.copy(path, elsewhere)
    moved = Filter(uses="filter", sources=two(tmp_path, elsewhere / "fr.jsonl"), lid_model=str(lid))
    assert moved.outdated(manifest) == "" and moved.same_sources(manifest)
    assert not stage.same_sources(
        manifest.model_copy(update={"summary": manifest.summary | {"lid_sha256": "of another model"}})
    )
    os.rename(path, tmp_path / "other.jsonl")
    assert stage.outdated(manifest) == ""  # a source that is gone is not missed
    assert not stage.same_sources(manifest)  # but another run does not take its text


def test_another_file_in_a_source_folder_is_noticed(tmp_path, lid):
    folder = tmp_path / "fr"
    folder.mkdir()
    write_jsonl(folder / "a.jsonl", FR)
    stage = Filter(uses="filter", sources=two(tmp_path, folder), lid_model=str(lid))
    manifest = read_by(stage, lid)
    second = write_jsonl(folder / "b.jsonl", FR[:5])
    assert "b.jsonl is new since its folder was filtered" in stage.outdated(manifest)
    manifest = read_by(stage, lid)
    second.unlink()
    assert "b.jsonl was filtered and is gone" in stage.outdated(manifest)


def test_a_damaged_archive_that_was_left_out_is_new_once_it_is_mended(tmp_path, lid):
    """An earlier version did not record one; its finished text stays as it is until there is more to read."""
    folder = tmp_path / "fr"
    folder.mkdir()
    write_jsonl(folder / "a.jsonl", FR)
    (folder / "b.jsonl").touch()
    stage = Filter(uses="filter", sources=two(tmp_path, folder), lid_model=str(lid))
    manifest, whole = read_by(stage, lid), gzip.compress(b'{"text": "le chat"}\n')
    bad = _bytes(folder / "c.jsonl.gz", whole[:6] + bytes(50))
    assert stage.outdated(manifest) == "" and stage.same_sources(manifest)
    _bytes(bad, whole)
    assert "c.jsonl.gz is new since its folder was filtered" in stage.outdated(manifest)
    assert not stage.same_sources(manifest)
    bad.unlink()
    write_jsonl(folder / "b.jsonl", FR[:5])  # it was named as empty then
    assert "b.jsonl is new since its folder was filtered" in stage.outdated(manifest)


def test_labels_are_found_in_batches(lid):
    found = LanguageId(lid).guesses(["le petit chat", "the small\ndog", "", "LE GRAND CHIEN"])
    assert [guesses[0][0] if guesses else "" for guesses in found] == ["fr", "en", "", "fr"]


def test_the_end_of_a_name_says_what_a_file_holds(tmp_path, lid):
    path = tmp_path / "notes.jsonl.txt"  # plain text, whatever stands in the middle of its name
    path.write_text("\n\n".join(FR))
    _, summary = run(tmp_path, lid, two(tmp_path, path))
    assert summary.funnel[0].documents_read == len([part for text in FR for part in text.split("\n\n")])


def test_odd_text_is_counted_and_kept_in_one_form(tmp_path, lid):
    """What is split off for measuring and what is trained on is mended text in NFC; the summary says how much was mended."""
    odd = [*FR, FR[0].replace("e", "e\u0301"), "\ufeff" + FR[1], f"{FR[2]} \ud83d"]
    path = tmp_path / "fr.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in odd))
    corpus, summary = run(tmp_path, lid, two(tmp_path, path), threshold=0.1, duplicates="off")
    row = summary.funnel[0]
    assert (row.mended, row.composed, row.marks, row.documents_read) == (1, 1, 1, 43)
    kept = texts(corpus.files("train", "fra_Latn")) + texts(corpus.files("valid", "fra_Latn"))
    assert f"{FR[2]} \ufffd" in kept and kept.count(FR[1]) == 2 and not any("\u0301" in text for text in kept)


def interrupted(tmp_path, lid, sources, monkeypatch, **more):
    """A stage that was stopped after its first source."""
    stage = Filter(uses="filter", sources=sources, lid_model=str(lid), heldout_frac=0.2, **more)
    ctx = Context(tmp_path / "out", 1, "fra_Latn", ("eng_Latn",))
    begin = Filter._begin

    def stop(self, ctx, source):
        if source.language == "eng_Latn":
            raise KeyboardInterrupt
        return begin(self, ctx, source)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Filter, "_begin", stop)
        stage.run(ctx)
    return stage, ctx


def test_a_source_that_was_edited_during_an_interruption_is_refused(tmp_path, lid, monkeypatch):
    path = write_jsonl(tmp_path / "fr.jsonl", FR)
    was = path.read_bytes()
    mine = tmp_path / "lid.bin"
    shutil.copy(lid, mine)
    stage, ctx = interrupted(tmp_path, mine, two(tmp_path, path), monkeypatch)
    path.write_bytes(was.replace(b"petit", b"grand"))
    with pytest.raises(RunFailed, match=r"fr.jsonl has changed since.*--redo filter"):
        stage.run(ctx)
    path.write_bytes(was)
    write_fasttext(mine, {"fr": FRENCH, "en": ENGLISH, "de": ["der"]})
    with pytest.raises(RunFailed, match=r"lid.bin has changed since it was first used.*--redo filter"):
        stage.run(ctx)
    shutil.copy(lid, mine)
    stage.run(ctx)
    summary = ctx.summary[-1]
    assert {file.name: file.sha256 for file in summary.source_files} == {
        name: sha256_file(tmp_path / name) for name in ("fr.jsonl", "en.jsonl")
    }
    assert summary.lid_sha256 == sha256_file(lid) and summary.funnel[0].kept == 40


def test_a_folder_that_grew_during_an_interruption_is_refused(tmp_path, lid, monkeypatch):
    write_jsonl(tmp_path / "fr" / "a.jsonl", FR)
    stage, ctx = interrupted(tmp_path, lid, two(tmp_path, tmp_path / "fr"), monkeypatch)
    more = write_jsonl(tmp_path / "fr" / "b.jsonl", FR)
    with pytest.raises(RunFailed, match=r"b.jsonl is new since.*--redo filter"):
        stage.run(ctx)
    more.unlink()
    (ctx.out / "log" / "fra_Latn" / "fr" / "read.json").unlink()  # as an earlier version leaves it
    with pytest.raises(RunFailed, match=r"another version of langext.*fra_Latn/fr.*--redo filter"):
        stage.run(ctx)


def test_a_file_that_changes_while_it_is_read_leaves_nothing(tmp_path, lid, monkeypatch):
    path = write_jsonl(tmp_path / "fr.jsonl", FR)
    execute = Executor.run
    monkeypatch.setattr(Executor, "run", lambda self: (execute(self), write_jsonl(path, FR[:20])))
    with pytest.raises(RunFailed, match=r"fr.jsonl has changed.*while it was read"):
        run(tmp_path, lid, two(tmp_path, path))
    assert not list((tmp_path / "out").rglob("*fr.*.jsonl.gz")) and not (tmp_path / "out" / "log" / "fra_Latn" / "fr").exists()
    monkeypatch.setattr(Executor, "run", execute)
    ctx = Context(tmp_path / "out", 1, "fra_Latn", ("eng_Latn",))
    Filter(uses="filter", sources=two(tmp_path, path), lid_model=str(lid), heldout_frac=0.2).run(ctx)
    assert ctx.summary[-1].funnel[0].kept == 20


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_is_one_line_and_the_stage_goes_on(tmp_path, lid, workers, capfd, monkeypatch):
    for i in range(2):
        write_jsonl(tmp_path / "fr" / f"{i}.jsonl", FR[i::2])
    given = two(tmp_path, tmp_path / "fr")
    stage = Filter(uses="filter", sources=given, lid_model=str(lid), heldout_frac=0.2, runtime={"workers": workers})
    ctx = Context(tmp_path / "out", 1, "fra_Latn", ("eng_Latn",))
    full = ctx.out / "documents" / "train" / "fra_Latn" / "fr.00001.jsonl.gz"
    record = Source.record

    def fill(source):
        if not full.is_symlink() and source.language == "fra_Latn":
            full.parent.mkdir(parents=True)
            full.symlink_to("/dev/full")
        return record(source)

    monkeypatch.setattr(Source, "record", fill)
    with pytest.raises(RunFailed, match="the disk is full.*run the same command again") as raised:
        stage.run(ctx)
    assert "\n" not in str(raised.value)
    seen = capfd.readouterr()
    assert "Traceback" not in seen.err + seen.out and FR[0][:30] not in seen.err + seen.out
    full.unlink()
    stage.run(ctx)
    assert ctx.summary[-1].funnel[0].kept == 40


@pytest.mark.parametrize(
    ("number", "said"), [(9, r"was killed{at}.*lower runtime.workers"), (11, r"crashed \(signal 11\){at}")]
)
def test_a_process_that_dies_is_not_waited_for_and_its_file_is_named(tmp_path, number, said):
    with pytest.raises(RunFailed, match=said.format(at=" while .*web/part-1.jsonl.gz .*read")) as raised:
        Executor([Dies(number)], 4, 2, tmp_path).run()
    assert "\n" not in str(raised.value)


def test_what_is_read_is_in_the_logs_and_nowhere_else(tmp_path, lid, capfd):
    run(tmp_path, lid, two(tmp_path, write_jsonl(tmp_path / "fr.jsonl", FR)))
    assert "read " not in capfd.readouterr().err
    logs = list(tmp_path.glob("**/log/fra_Latn/*/logs/task_00000.log"))
    assert len(logs) == 1 and f"{tasks.READS}{tmp_path / 'fr.jsonl'}" in logs[0].read_text()


def test_a_run_folder_and_a_source_may_have_any_name(tmp_path, lid, monkeypatch):
    """None of them is an address to the libraries that read and write."""
    place = tmp_path / "memory::a b"
    place.mkdir()
    monkeypatch.chdir(place)
    corpus, summary = run(place, lid, two(place, write_jsonl(place / "file::fr.jsonl", FR)))
    assert summary.funnel[0].kept == 40 and corpus.files("train", "fra_Latn")


def test_a_source_may_have_the_longest_name_that_a_disk_takes(tmp_path, lid):
    """In any script, also where its rejects have names of their own; two that are then called the same need a name each."""
    path = write_jsonl(tmp_path / f"{'ภาษาไทย' * 11}.jsonl", [*FR, FR[0], EN[0]])
    corpus, summary = run(tmp_path, lid, two(tmp_path, path))
    assert summary.funnel[0].dropped == {"duplicate": 1, "language_en": 1} and corpus.files("train", "fra_Latn")
    with pytest.raises(ValidationError, match="two sources are called .*give them a name each"):
        Filter(uses="filter", sources=[{"language": "fr", "path": f"{'ภ' * 40}{end}.jsonl"} for end in "ab"])


def test_what_is_not_read_is_recorded(tmp_path, lid, capsys):
    write_jsonl(tmp_path / "fr" / "a.jsonl", FR)
    (tmp_path / "fr" / "b.jsonl.bz2").write_bytes(b"x")
    _, summary = run(tmp_path, lid, two(tmp_path, tmp_path / "fr"))
    assert summary.funnel[0].unread == ["b.jsonl.bz2"] and "1 not read: b.jsonl.bz2" in capsys.readouterr().err


HUB = {
    "two": ({"config": None}, r"Config name is missing.*\['a', 'b'\].*key config"),
    "another": ({"config": "c"}, r"'c' not found. Available: \['a', 'b'\].*key config"),
    "split": ({"config": "a", "split": "test"}, "no split 'test'; it has: train"),
    "a file": ({"hub": "web/README.md"}, "is a file; name it with path"),
    "nothing": ({"hub": "./none"}, "no such folder"),
}


@pytest.mark.parametrize("case", HUB)
def test_a_dataset_that_cannot_be_read_as_named_is_refused_when_planning(tmp_path, case):
    more, said = HUB[case]
    for name in "ab":
        write_jsonl(tmp_path / "web" / name / "train.jsonl", FR)
    parts = "".join(f"- {{config_name: {name}, data_files: {name}/*}}\n" for name in "ab")
    (tmp_path / "web" / "README.md").write_text(f"---\nconfigs:\n{parts}---\n")
    with pytest.raises(ConfigError, match=said) as raised:
        Source(language="fr", **{"hub": "./web", **more}).check()
    assert "\n" not in str(raised.value)


def test_the_commit_of_a_dataset_is_what_is_read_and_compared(tmp_path, lid, monkeypatch):
    """The hub stands still here: a local folder is read in its place, and only what is asked of it is looked at."""
    write_jsonl(tmp_path / "data" / "train.jsonl", FR)
    now, asked = ["a" * 40], []

    def shards(dataset, options):
        asked.append((dataset, options))
        return 3

    monkeypatch.setattr(hub, "commit", lambda dataset, revision: now[0])
    monkeypatch.setattr(hub, "shards", shards)
    monkeypatch.setattr(hub, "json_lines", lambda dataset, options: {})
    source = Source(language="fr", hub="someone/text", revision="main")
    record = source.record()
    assert (record.commit, record.tasks) == ("a" * 40, 3)
    assert asked == [("someone/text", {"name": None, "split": "train", "revision": "a" * 40})]
    now[0] = "b" * 40  # the dataset moves on, and what was begun with is read to the end
    reader = source.reader(record)
    assert reader.dataset_options["revision"] == "a" * 40
    stage = Filter(uses="filter", sources=[source], lid_model=str(lid))
    row = funnel.count(source, record, tmp_path)
    assert row.origin == f"someone/text @ {'a' * 40}"
    manifest = manifest_of(FilterSummary(funnel=[row], source_files=[], lid_sha256=sha256_file(lid), duplicates="near"))
    assert not stage.same_sources(manifest) and stage.outdated(manifest) == ""
    now[0] = "a" * 40
    assert stage.same_sources(manifest)
    older = manifest_of(
        FilterSummary(funnel=[row.model_copy(update={"commit": None})], source_files=[], lid_sha256=sha256_file(lid))
    )
    assert not stage.same_sources(older)

    def lost(dataset, revision):
        raise RunFailed("the hub does not answer")

    monkeypatch.setattr(hub, "commit", lost)
    assert not stage.same_sources(manifest)


def test_a_dataset_that_the_hub_does_not_have_is_told_before_anything_is_read(tmp_path, lid, monkeypatch):
    def missing(dataset, options):
        raise ConfigError(f"hub dataset {dataset} has no configuration {options['name']!r}")

    monkeypatch.setattr(hub, "commit", lambda dataset, revision: "a" * 40)
    monkeypatch.setattr(hub, "shards", missing)
    sources = two(tmp_path, write_jsonl(tmp_path / "fr.jsonl", FR))
    late = {"language": "fr", "hub": "someone/text", "config": "fra_latn", "max_documents": 9}
    with pytest.raises(RunFailed, match="someone/text has no configuration 'fra_latn'"):
        run(tmp_path, lid, [*sources, late])
    assert not list((tmp_path / "out").rglob("*.gz"))


def test_a_dataset_in_one_file_is_streamed_once(tmp_path):
    write_jsonl(tmp_path / "data" / "train.jsonl", FR)
    assert Source(language="fr", hub="./data").record().tasks == 1
    assert Source(language="fr", hub="./data").record().files[0].name == "train.jsonl"


def test_a_language_that_no_model_knows_is_added_from_text_that_nothing_judges(tmp_path, lid):
    """Here the model has labels for English and French alone."""
    known = write_jsonl(tmp_path / "quz.jsonl", FR)  # whatever it seems to be
    _, english = two(tmp_path, known)
    source = {"language": "quz_Latn", "path": str(known)}
    ctx = Context(tmp_path / "out", 1, "quz_Latn", ("eng_Latn",))
    ctx.out.mkdir()
    with pytest.raises(ConfigError, match="no label for quz_Latn.*identify: false"):
        Filter(uses="filter", sources=[source, english], lid_model=str(lid), heldout_frac=0.2).check(ctx)
    stage = Filter(uses="filter", sources=[source | {"identify": False}, english], lid_model=str(lid), heldout_frac=0.2)
    stage.check(ctx)
    stage.run(ctx)
    assert [row.kept for row in ctx.summary[-1].funnel] == [40, 40]
