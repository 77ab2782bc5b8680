"""What is read of a source, what is named instead, and what text becomes: one test for each kind of folder, file and text."""

import bz2
import gzip
import json
import os
import unicodedata
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from toy import write_jsonl

from langext.data import formats, lines, readers, source_files
from langext.data.readers import TableReader, TextReader
from langext.data.sources import Source
from langext.errors import ConfigError, RunFailed

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 123456\n"


def put(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def table(path, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


def reader(path, **more):
    source = Source(language="fr", path=str(path), **more)
    source.check()
    return source.reader(source.record())


def texts(path, **more):
    return [document.text for document in reader(path, **more).run()]


def text_reader(path, columns=("text",), **more):
    """The reader of one file that nobody has looked at before."""
    told = {"division": "blocks", "encoding": "utf-8", "label": "x", "sizes": {path.name: 1}}
    return TextReader({path.name: path}, columns, None, **told, **more)


def counted(step, name):
    return step.stats.stats[name].total if name in step.stats.stats else 0


def test_in_a_folder_everything_is_read_or_named(tmp_path, capsys):
    """Litter of editors and systems, other formats, links to folders, a circle of links, a pipe."""
    here = tmp_path / "fr"
    for name in ("b.jsonl", "deep/c.jsonl"):
        write_jsonl(here / name, [name])
    write_jsonl(tmp_path / "elsewhere" / "d.jsonl", ["d"])
    hidden = [".ipynb_checkpoints/b-checkpoint.jsonl", ".cache/x.jsonl", "._b.jsonl", "deep/.DS_Store"]
    for name in [*hidden, "b.jsonl~", "b.jsonl.bak", "e.jsonl.bz2", "table.xls", "README.md", "empty.txt"]:
        put(here / name, "" if name == "empty.txt" else '{"text": "never"}')
    (here / "linked").symlink_to("../elsewhere")
    (here / "circle").symlink_to(".")
    (here / "a.jsonl").symlink_to("deep/c.jsonl")
    os.mkfifo(here / "pipe.jsonl")
    found = source_files.find(here)
    assert list(found.files) == ["b.jsonl", "deep/c.jsonl", "linked/d.jsonl"]
    assert set(found.unread) == {
        ".ipynb_checkpoints", ".cache", "._b.jsonl", "deep/.DS_Store", "b.jsonl~", "b.jsonl.bak", "e.jsonl.bz2", "table.xls",
        "README.md", "empty.txt (empty)", "a.jsonl (the same file as deep/c.jsonl)", "pipe.jsonl (no regular file)",
    }  # fmt: skip
    assert texts(here) == ["b.jsonl", "deep/c.jsonl", "d"]
    assert "12 not read: ._b.jsonl, .cache, " in capsys.readouterr().err


@pytest.mark.parametrize("name", ["FR.TXT", "a::b.txt", "a\nb.txt", "memory:x.txt", "file:x.txt", "a b$(ls)*.txt", "é.txt"])
def test_any_name_of_a_file_will_do(tmp_path, name):
    assert texts(put(tmp_path / "fr" / name, "un\n\ndeux\n").parent) == ["un", "deux"]


BAD_PLACES = {
    "a link to nothing": (lambda d: (d / "x.txt").symlink_to("none"), "x.txt: the link to none leads to nothing"),
    "a link to itself": (lambda d: (d / "x.txt").symlink_to("x.txt"), "x.txt: the link to x.txt cannot be followed"),
    "a name that is not UTF-8": (lambda d: put(d / os.fsdecode(b"\xff.txt"), "x"), "name is not UTF-8"),
    "nothing": (lambda d: put(d / "x.pdf", "x"), "nothing to read here .1 not read: x.pdf.; langext reads .txt"),
    "two kinds": (lambda d: (put(d / "x.txt", "x"), table(d / "x.parquet", text=["x"])), "both Parquet and text"),
    "no rows": (lambda d: table(d / "x.parquet", text=pyarrow.array([], "string")), "no rows"),
}


@pytest.mark.parametrize("case", BAD_PLACES)
def test_a_folder_that_cannot_be_read_is_refused_when_planning(tmp_path, case):
    make, said = BAD_PLACES[case]
    make(tmp_path)
    with pytest.raises(ConfigError, match=said) as raised:
        Source(language="fr", path=str(tmp_path)).check()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("path", ["none", "x" * 5000, "~nosuchuser/x", "a\0b", "f.txt/x", "pipe", "/dev/null"])
def test_a_path_that_cannot_be_is_one_line(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "f.txt", "x")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError) as raised:
        Source(language="fr", path=path).check()
    assert len(str(raised.value)) < 400 and "\n" not in str(raised.value)


def cut(path):
    return put(path, table(path, text=["un"] * 1000).read_bytes()[:-20])


LATIN = "L'été, les élèves français étaient à l'école.\n".encode("latin-1") * 5
RUSSIAN = b'{"text": "yes"}\n' + '{"text": "Вчера мы ходили в город, чтобы купить хлеба."}\n'.encode("cp1251") * 5
BAD_FILES = {
    "LFS parquet": (lambda d: put(d / "x.parquet", POINTER), "x.parquet: this is a Git LFS pointer.*git lfs pull"),
    "LFS text": (lambda d: put(d / "x.txt", POINTER), "Git LFS pointer"),
    "LFS gzip": (lambda d: put(d / "x.jsonl.gz", POINTER), "Git LFS pointer"),
    "git-annex text": (lambda d: put(d / "x.txt", "/annex/objects/SHA256E-s9--0.txt\n"), "pointer of git-annex.*git annex get"),
    "Xet text": (lambda d: put(d / "x.txt", "# xet version 0\n"), "pointer of Xet"),
    "a web page": (lambda d: put(d / "x.txt", "\n<!DOCTYPE html>\n<html>Log in</html>"), "x.txt: this is a web page.*log in"),
    "a web page for JSON lines": (lambda d: put(d / "x.jsonl.zst", "<HTML><head>"), "x.jsonl.zst: this is a web page"),
    "half a table": (lambda d: cut(d / "x.parquet"), "not a Parquet file, or only a part"),
    "empty table": (lambda d: put(d / "x.parquet", ""), "not a Parquet file.*it is empty"),
    "marks alone": (lambda d: put(d / "x.parquet", b"PAR1 and more PAR1"), "damaged Parquet"),
    "no column": (lambda d: table(d / "x.parquet", texte=["un"]), "no 'text'. Did you mean texte.*text_column"),
    "numbers": (lambda d: table(d / "x.parquet", text=[1]), "column 'text' is int64, not text"),
    "binary": (lambda d: table(d / "x.parquet", text=[b"un"]), "column 'text' is binary, not text"),
    "empty": (lambda d: put(d / "x.txt", ""), "cannot read .*x.txt .empty."),
    "empty gzip": (lambda d: put(d / "x.txt.gz", ""), "not a gzip file: it is empty"),
    "no gzip": (lambda d: put(d / "x.txt.gz", "un"), "not a gzip file"),
    "a PDF": (lambda d: put(d / "x.txt", "%PDF-1.7\n"), "looks like a PDF document"),
    "bzip2 unnamed": (lambda d: put(d / "x.jsonl", bz2.compress(b"un")), "looks like bzip2"),
    "a table unnamed": (lambda d: put(d / "x.txt", table(d / "y.parquet", text=["un"]).read_bytes()), "looks like Parquet"),
    "gzip unnamed": (lambda d: put(d / "x.txt", gzip.compress(b"un")), "looks like gzip .then its name must end in .gz"),
    "UTF-16 without a mark": (lambda d: put(d / "x.txt", "un\n".encode("utf-16-le")), "UTF-16.*utf-16-le.*zero bytes"),
    "Latin-1": (lambda d: put(d / "x.txt", LATIN), "x.txt: line 1: not UTF-8 text: it looks like cp1252; set encoding: cp1252"),
    "Cyrillic": (lambda d: put(d / "x.jsonl", RUSSIAN), "line 2: not UTF-8 text: it looks like cp1251; set encoding: cp1251"),
    "an open quote": (lambda d: put(d / "x.csv", '"id,text\n1,un\n'), "x.csv: line 1: a quotation mark is opened"),
    "half of UTF-16": (lambda d: put(d / "x.txt", "un\n".encode("utf-16") + b"a"), "after line 1: not utf-16.* truncated data"),
    "no xz": (lambda d: put(d / "x.txt.xz", "un"), "not a xz file, but its name ends in .xz"),
    "no Zstandard": (lambda d: put(d / "x.csv.zst", "un"), "not a Zstandard file"),
    "marks of Zstandard alone": (lambda d: put(d / "x.txt.zst", b"\x28\xb5\x2f\xfd" + b"0" * 50), "damaged Zstandard file: "),
    "empty xz": (lambda d: put(d / "x.csv.xz", ""), "not a xz file: it is empty"),
    "zst unnamed": (lambda d: put(d / "x.csv", formats.zstd.compress(b"un")), "looks like Zstandard .*must end in .zst"),
    "one array": (lambda d: put(d / "x.jsonl", '[{"text": "un"},\n{"text": "deux"}]\n'), "line 1: not a JSON.*on each line"),
    "another field": (lambda d: put(d / "x.jsonl", '{"meta": {"body": "un"}}\n'), "no 'text'.* It has: meta, meta.body"),
    "no such header": (lambda d: put(d / "x.csv", "id,texte\n1,un\n"), "no 'text'. Did you mean texte. It has: id, texte"),
    "semicolons": (lambda d: put(d / "x.csv", "id;text\n1;un\n"), "the fields are divided by ';'; write commas"),
    "two of a name": (lambda d: put(d / "x.tsv", "text\ttext\nun\tdeux\n"), "the header has 'text' more than once"),
    "another suffix": (lambda d: put(d / "x.pdf", "un"), "cannot read .*x.pdf; langext reads .txt"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_file_that_is_not_what_its_name_says_is_refused_when_planning(tmp_path, case):
    make, said = BAD_FILES[case]
    with pytest.raises(ConfigError, match=said) as raised:
        Source(language="fr", path=str(make(tmp_path))).check()
    assert "x." in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("encoding", ["cp1252", "cp1256", "gb18030"])
def test_a_file_of_utf_8_is_never_read_in_the_encoding_that_others_need(tmp_path, encoding):
    path = put(tmp_path / "x.txt", "Ça alors, l'été à Orléans, où l'on se plaît.\n")
    with pytest.raises(ConfigError, match=f"x.txt: this file is UTF-8, and encoding is {encoding}; put the files"):
        Source(language="fr", path=str(path), encoding=encoding).check()
    Source(language="fr", path=str(put(tmp_path / "y.txt", LATIN)), encoding="cp1252").check()


def test_utf_16_without_the_order_of_its_bytes_is_told(tmp_path):
    path = put(tmp_path / "x.txt", "un deux\n".encode("utf-16-be"))
    with pytest.raises(ConfigError, match="after line 0: UTF-16 stream does not start with BOM; name the order"):
        Source(language="fr", path=str(path), encoding="utf-16").check()


def test_web_pages_are_text_of_code_and_may_lie_beside_a_dataset(tmp_path):
    page = put(tmp_path / "page.txt", "<!DOCTYPE html>\n<p>un</p>\n")
    Source(language="zxx", path=str(page), protect=True).check()
    (tmp_path / "set").mkdir()
    put(tmp_path / "set" / "index.html", page.read_bytes())
    table(tmp_path / "set" / "train.parquet", text=["un"])
    Source(language="fr", hub=str(tmp_path / "set")).check()


@pytest.mark.parametrize("text", ["BZh is a group", "%PDF is how it begins", "PAR1 and no more", "PK\nun"])
def test_a_text_may_begin_with_the_letters_of_a_mark(tmp_path, text):
    assert texts(put(tmp_path / "x.txt", text)) == [text]


GOOD = '{"text": "le chat"}\n'
LATER_ON = {
    "brackets": (GOOD + "[" * 200_000, "x.jsonl: line 2: .*brackets"),
    "garbage": (GOOD + '{"text": "secret"} x', "line 2: not a JSON object: Extra data"),
    "cut": (GOOD + '{"text": "secr', "line 2: not a JSON object"),
    "array": (GOOD + '["secret"]', "line 2: not a JSON object, but a list"),
    "null": (GOOD + "null", "line 2: not a JSON object, but null"),
    "text alone": (GOOD + '"secret"', "line 2: not a JSON object, but a text"),
    "number as text": (GOOD + '{"text": 5}', "line 2: 'text' is a number, not text"),
    "list as text": (GOOD + '{"text": ["secret"]}', "line 2: 'text' is a list, not text"),
    "another column": (GOOD + '{"texte": "secret"}', "line 2: no 'text'. Did you mean texte.*It has: texte.*text_column"),
    "zero byte": (GOOD + '{"text": "secret\0"}', "line 2: holds zero bytes"),
    "Latin-1": ((GOOD + '{"text": "secreté"}').encode("latin-1"), "line 2: not UTF-8 text: it looks like cp1252; set encoding"),
    "surrogates in bytes": (GOOD.encode() + b'{"text": "secret\xed\xa0\xbd"}', "line 2: not UTF-8"),
}


@pytest.mark.parametrize("case", LATER_ON)
def test_what_only_reading_shows_is_said_with_its_line_and_without_its_text(tmp_path, case):
    data, said = LATER_ON[case]
    # Far enough behind the beginning that a look at the first bytes does not show it.
    step = text_reader(put(tmp_path / "x.jsonl", data))
    documents = step.run()
    assert next(documents).text == "le chat"
    with pytest.raises(ConfigError, match=said) as raised:
        next(documents)
    assert "secret" not in str(raised.value) and "\n" not in str(raised.value)


def test_a_line_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "MOST_BYTES", 1 << 20)
    with pytest.raises(ConfigError, match="line 1: longer than 1 MiB"):
        texts(put(tmp_path / "x.jsonl", '{"text": "' + "x" * (1 << 20)))


@pytest.mark.parametrize("division", ["blocks", "files"])
def test_a_document_without_end_is_refused(tmp_path, monkeypatch, division):
    monkeypatch.setattr(lines, "MOST_BYTES", 1 << 20)
    path = put(tmp_path / "x.txt", "un\n\n" + "é" * 999 + ("\n" + "é" * 999) * 999)
    with pytest.raises(ConfigError, match=r"x.txt: line 5\d\d: .*longer than 1 MiB.*txt_documents: lines"):
        texts(path, txt_documents=division)
    assert len(texts(path, txt_documents="lines")) == 1001


@pytest.mark.parametrize("kind", [".txt", ".parquet"])
@pytest.mark.parametrize("folder", [True, False])
def test_a_file_that_is_gone_when_it_is_to_be_read_is_named(tmp_path, kind, folder):
    path = tmp_path / f"x{kind}"
    table(path, text=["un"]) if kind == ".parquet" else put(path, "un")
    source = Source(language="fr", path=str(tmp_path if folder else path))
    record = source.record()
    path.unlink()
    with pytest.raises(RunFailed, match=f"x{kind}: cannot be read"):
        list(source.reader(record).run())
    if kind == ".txt":
        put(path, "")  # the filter compares the file afterwards
        assert list(source.reader(record).run()) == []


def test_progress_goes_through_all_files_of_a_task(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(readers.Progress, "at", lambda self, done, text="", **_: said.append((done, self.total)))
    for name, data in {"a": "un\n\ndeux", "b": "trois", "c": "quatre"}.items():
        put(tmp_path / f"{name}.txt", data)
    step = reader(tmp_path)
    assert said == [(0, 19), (8, 19), (13, 19)]  # hashing
    said.clear()
    list(step.run())
    assert said == [(4, 19), (8, 19), (13, 19), (19, 19)]
    said.clear()
    list(step.run(rank=1, world_size=2))
    assert said == [(5, 5)]


@pytest.mark.parametrize("suffix", [".txt", ".txt.gz", ".jsonl", ".jsonl.gz"])
def test_marks_and_line_ends_are_no_part_of_the_text(tmp_path, suffix):
    """As Windows writes a file, and two such files put together; old Macs end lines with CR alone."""
    lines = ["le chat", "dort", "", "la rue"] if ".txt" in suffix else ['{"text": "le chat\\r\\ndort"}', '{"text": "la rue"}']
    for end in ("\r\n", "\r", "\n", "\r\r\n"):
        once = ("\ufeff" + "".join(line + end for line in lines)).encode()
        separator = end.encode() if ".txt" in suffix and end != "\r\r\n" else b""
        data = once + separator + once
        path = put(tmp_path / f"x{suffix}", gzip.compress(data) if suffix.endswith(".gz") else data)
        if end == "\r\r\n" and ".txt" in suffix:
            assert texts(path)[0].splitlines() == ["le chat", "dort"]
        else:
            assert texts(path) == ["le chat\ndort", "la rue"] * 2
        step = reader(path)
        list(step.run())
        assert counted(step, readers.MARKS) == 2


def test_marks_within_text_are_removed_and_counted(tmp_path):
    """There they are spaces without width, which make another word of a word."""
    for path in (
        write_jsonl(tmp_path / "x.jsonl", ["le \ufeffchat", "dort\ufeff\ufeff", "la rue"]),
        table(tmp_path / "x.parquet", text=["le \ufeffchat", "dort\ufeff\ufeff", "la rue"]),
        put(tmp_path / "x.txt", "le \ufeffchat\n\ndort\ufeff\ufeff\n\nla rue"),
    ):
        step = reader(path)
        assert [document.text for document in step.run()] == ["le chat", "dort", "la rue"]
        assert counted(step, readers.MARKS) == 3


def test_half_characters_are_mended_and_counted(tmp_path):
    path = put(
        tmp_path / "x.jsonl", "".join(f'{{"id": "\\ud83d", "text": "a{s}b"}}\n' for s in ("\\ud83d", "\\ud83d\\ude00", ""))
    )
    step = reader(path)
    found = list(step.run())
    assert [document.text for document in found] == ["a\ufffdb", "a\U0001f600b", "ab"] and found[0].id == "\ufffd"
    assert counted(step, readers.MENDED) == 1
    halves = pyarrow.array([b"a\xed\xa0\xbdb", b"ab", None]).view(pyarrow.string())
    step = reader(table(tmp_path / "x.parquet", text=halves, id=[1, 2, 3]))
    found = list(step.run())
    assert [(document.id, document.text) for document in found] == [("1", "a\ufffdb"), ("2", "ab"), ("3", "")]
    assert counted(step, readers.MENDED) == 1
    latin = pyarrow.array([b"un\xe9"]).view(pyarrow.string())
    with pytest.raises(ConfigError, match="y.parquet: row 0: .text. is not UTF-8"):
        texts(table(tmp_path / "y.parquet", text=latin))


def test_text_is_in_one_unicode_form(tmp_path):
    korean = "한국어 문서"
    step = reader(write_jsonl(tmp_path / "x.jsonl", [korean, unicodedata.normalize("NFD", korean), "été"]))
    assert [document.text for document in step.run()] == [korean, korean, "été"] and counted(step, readers.COMPOSED) == 1


def test_what_one_document_of_a_txt_file_is(tmp_path):
    path = put(tmp_path / "x.txt", "un\ndeux\n\ntrois\n\n")
    assert texts(path) == ["un\ndeux", "trois"]
    assert texts(path, txt_documents="lines") == ["un", "deux", "trois"]
    assert texts(path, txt_documents="files") == ["un\ndeux\n\ntrois"]
    one = reader(put(tmp_path / "y.txt", "un\ndeux\n"))
    assert [document.text for document in one.run()] == ["un\ndeux"] and counted(one, readers.UNDIVIDED) == 1
    for text, single in {"un\ndeux\n\n": 1, "\n\nun\ndeux\n \n\n": 1, "un\n\ndeux\n": 0, "un\n\n": 0}.items():
        step = reader(put(tmp_path / "y.txt", text))
        assert list(step.run()) and counted(step, readers.UNDIVIDED) == single
    with pytest.raises(ConfigError, match="txt_documents is for .txt files"):
        texts(write_jsonl(tmp_path / "z.jsonl", ["un"]), txt_documents="lines")
    with pytest.raises(ConfigError, match="text_column is for .jsonl, .csv"):
        texts(path, text_column="content")


def test_what_stands_beside_the_text_may_be_anything(tmp_path):
    odd = ["9" * 5000, "NaN", "-Infinity", "[1]", "true", "null", '{"a": 1}', "7", '"seven"']
    path = put(tmp_path / "x.jsonl", "".join(f'{{"id": {value}, "n": {value}, "text": "un"}}\n' for value in odd))
    found = [document.id for document in reader(path).run()]
    assert found[-2:] == ["7", "seven"] and found[3:7] == [f"x.jsonl/{line}" for line in (4, 5, 6, 7)] and len(found[0]) == 5000


@pytest.mark.parametrize("kind", ["string", "large_string", "string_view", "dictionary<string>"])
def test_every_column_of_text_is_read(tmp_path, kind):
    def column(*values):
        plain = pyarrow.array(values)
        return plain.dictionary_encode() if kind.startswith("dictionary") else plain.cast(kind)

    path = table(tmp_path / "x.parquet", text=column("un", None, "deux"), id=column("a", "b", "c"), other=[1, 2, 3])
    assert [(document.id, document.text) for document in reader(path).run()] == [("a", "un"), ("b", ""), ("c", "deux")]


def test_two_columns_of_ids_are_none(tmp_path):
    twice = pyarrow.table([pyarrow.array(["un"]), pyarrow.array(["a"]), pyarrow.array(["b"])], names=["text", "id", "id"])
    pyarrow.parquet.write_table(twice, tmp_path / "x.parquet")
    assert [document.id for document in reader(tmp_path / "x.parquet").run()] == ["x.parquet/0"]


def test_a_zero_byte_near_the_start_is_the_matter_of_its_line(tmp_path):
    path = put(tmp_path / "x.jsonl", GOOD * 3 + '{"text": "s\0cret"}\n' + GOOD * 30)
    with pytest.raises(ConfigError, match="line 4: holds zero bytes"):
        texts(path)
    assert texts(path, max_bad_frac=0.5) == ["le chat"] * 33


def test_a_limit_and_tasks_share_the_files_in_order(tmp_path):
    for name in "abcd":
        put(tmp_path / f"{name}.txt", f"{name}1\n\n{name}2")
    step = reader(tmp_path)
    assert [[d.text for d in step.run(rank=rank, world_size=3)] for rank in range(3)] == [
        ["a1", "a2", "d1", "d2"], ["b1", "b2"], ["c1", "c2"],
    ]  # fmt: skip
    assert texts(tmp_path, max_documents=3) == ["a1", "a2", "b1"]


def test_rows_of_a_table_are_read_by_their_bytes(tmp_path, monkeypatch):
    long, short = tmp_path / "long.parquet", tmp_path / "short.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": [f"{n} {'x' * 50_000}" for n in range(40)]}), long, use_dictionary=False)
    pyarrow.parquet.write_table(pyarrow.table({"text": ["x", "y"]}), short)
    monkeypatch.setattr(readers, "BATCH", 200_000)
    rows = [readers._rows(pyarrow.parquet.ParquetFile(path).metadata) for path in (long, short)]
    assert rows[0] in (3, 4) and rows[1] == readers.ROWS


def test_a_disk_that_does_not_answer_is_said_with_the_file(tmp_path):
    with pytest.raises(RunFailed, match="gone.txt: cannot be read: No such file"):
        list(text_reader(tmp_path / "gone.txt").run())
    path = table(tmp_path / "x.parquet", text=["un" * 10] * 5000)
    data = bytearray(path.read_bytes())
    data[8:200] = b"\xff" * 192
    with pytest.raises(ConfigError, match="x.parquet: after row 0: damaged"):
        list(TableReader({"x.parquet": put(path, bytes(data))}, ["text"], None).run())


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"path": "data/fr.jsonl.gz"}, "fr"), ({"path": "."}, "text"), ({"path": "~/.data"}, "data"), ({"hub": "a/b"}, "a-b"),
        ({"path": "x" * 300}, "x" * 100), ({"path": "asset:text-fr"}, "text-fr"), ({"path": "ภ" * 80}, "ภ" * 33),
    ],
)  # fmt: skip
def test_every_source_has_a_name(more, expected):
    assert Source(language="fr", **more).domain == expected


def test_a_key_that_would_not_count_is_refused():
    for more in (
        {"path": "x", "split": "test"},
        {"path": "x", "config": "y"},
        {"hub": "x", "txt_documents": "lines"},
        {"path": ""},
    ):
        with pytest.raises(ValueError):
            Source.model_validate({"language": "fr", **more})


def test_a_file_that_changes_is_noticed(tmp_path, monkeypatch):
    path = put(tmp_path / "x.txt", "un")
    before = source_files.record("fr/x", "x.txt", path)
    assert not source_files.changed(path, before)
    os.utime(path, ns=(1, 1))
    assert not source_files.changed(path, before)  # the very bytes
    assert source_files.changed(put(path, "du"), before)
    real = source_files.sha256_file
    monkeypatch.setattr(source_files, "sha256_file", lambda file: (real(file), put(file, "deux"))[0])
    with pytest.raises(RunFailed, match="it changed while it was read"):
        source_files.record("fr/x", "x.txt", path)


def test_names_of_columns_in_messages_are_cut():
    shown = source_files.names([f"{i}" + "x" * 500 + "\n" for i in range(1000)])
    assert len(shown) < 1000 and "\n" not in shown and shown.endswith("...")


def test_a_source_of_json_is_not_read_twice_by_name(tmp_path):
    """A link to a file with another end of its name, as in the cache of the hub, is what its own name says."""
    blob = put(tmp_path / ".blobs" / "abc", json.dumps({"text": "un"}) + "\n")
    (tmp_path / "train.jsonl").symlink_to(Path(".blobs") / blob.name)
    assert texts(tmp_path) == ["un"]
