"""Reading, language identification, the held-out split and the funnel."""

import gzip
import json
import os
import shutil

import pytest
from run_folders import manifest_of
from toy import ENGLISH, FRENCH, documents, sentences, write_fasttext, write_jsonl

from langext.artifacts import sha256_file
from langext.context import Context
from langext.data.language_id import LanguageId, unit_hash
from langext.spec import ConfigError
from langext.stages.filter import Filter
from langext.summaries import FilterSummary

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
        found.append([(p.name, texts([p])) for p in corpus.files("train", "fra_Latn")])
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda d: d / "none.jsonl", "none.jsonl: no such file"),
        (lambda d: write_jsonl(d / "a.jsonl", FR, "content"), "has no 'text'.*It has: id, content.*text_column"),
        (lambda d: write_jsonl(d / "a.jsonl", EN), "nothing of fra_Latn is left \\(40 language_en\\)"),
        (lambda d: write_jsonl(d / "a.jsonl", [""] * 3), "nothing of fra_Latn is left \\(3 empty\\)"),
        (lambda d: write_jsonl(d / "a.jsonl", []), "the source is empty"),
        (lambda d: _text(d / "a.jsonl", '{"text": "le chat"}\n{"text": \n'), "a.jsonl: after line 1: not a JSON object"),
        (lambda d: _text(d / "a.jsonl", "[1]\n"), "not a JSON object"),
        (lambda d: _bytes(d / "a.txt", b"le chat \xff\xfe"), "not UTF-8"),
        (lambda d: _bytes(d / "a.txt.gz", gzip.compress("\n\n".join(FR).encode())[:-200]), "damaged"),
        (lambda d: _text(d / "a.pdf", "x"), "cannot read a.pdf"),
        (lambda d: _text(d / "sub" / "a.md", "x").parent, "nothing to read here"),
    ],
)
def test_bad_sources(tmp_path, lid, make, expected):
    with pytest.raises(ConfigError, match=expected):
        run(tmp_path, lid, two(tmp_path, make(tmp_path)))


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


def test_a_language_that_is_not_of_the_run(tmp_path, lid):
    with pytest.raises(ConfigError, match="deu_Latn is not of this run"):
        run(tmp_path, lid, [{"language": "de", "path": str(write_jsonl(tmp_path / "d.jsonl", FR))}])


def test_a_changed_source_is_noticed(tmp_path, lid):
    path = write_jsonl(tmp_path / "fr.jsonl", FR)
    stage = Filter(uses="filter", sources=two(tmp_path, path), lid_model=str(lid))
    manifest = manifest_of(FilterSummary(funnel=[], source_files=stage._read_files(), lid_sha256=sha256_file(lid)))
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
    manifest = manifest_of(FilterSummary(funnel=[], source_files=stage._read_files(), lid_sha256=sha256_file(lid)))
    second = write_jsonl(folder / "b.jsonl", FR[:5])
    assert "b.jsonl is new since its folder was filtered" in stage.outdated(manifest)
    manifest = manifest_of(FilterSummary(funnel=[], source_files=stage._read_files(), lid_sha256=sha256_file(lid)))
    second.unlink()
    assert "b.jsonl was filtered and is gone" in stage.outdated(manifest)


def test_labels_are_found_in_batches(lid):
    found = LanguageId(lid).predict(["le petit chat", "the small\ndog", "", "LE GRAND CHIEN"])
    assert [label for label, _ in found] == ["__label__fr", "__label__en", "", "__label__fr"]


def test_the_end_of_a_name_says_what_a_file_holds(tmp_path, lid):
    path = tmp_path / "notes.jsonl.txt"  # plain text, whatever stands in the middle of its name
    path.write_text("\n\n".join(FR))
    _, summary = run(tmp_path, lid, two(tmp_path, path))
    assert summary.funnel[0].documents_read == len([part for text in FR for part in text.split("\n\n")])
