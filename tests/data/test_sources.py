"""Where text comes from, and what of it cannot be read: one test for each kind of place, file and mistake."""

import csv
import gzip
import io
import json
import lzma
import random
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_fuzz import FUZZ
from test_readers import counted, put, reader, table, text_reader, texts
from toy import write_jsonl

from langext.data import documents, lines, peek, remote, source_files, unread
from langext.data.formats import zstd
from langext.data.readers import LOST_BYTES, MENDED
from langext.data.sources import Source
from langext.data.writers import Writer
from langext.errors import ConfigError, RunFailed

PACK = {"": bytes, ".gz": gzip.compress, ".zst": zstd.compress, ".xz": lzma.compress}
TEXTS = ["le chat dort", '« été »\nla rue, "le" quai', "한국어"]


def as_csv(rows, **more):
    file = io.StringIO()
    csv.writer(file, **more).writerows(rows)
    return file.getvalue()


WRITTEN = {
    ".txt": "\n\n".join(TEXTS),
    ".jsonl": "".join(json.dumps({"id": str(i), "text": text}) + "\n" for i, text in enumerate(TEXTS)),
    ".csv": as_csv([["id", "text"], *enumerate(TEXTS)]),
    ".tsv": as_csv([["id", "text"], *enumerate(TEXTS)], delimiter="\t"),
}


@pytest.mark.parametrize("end", PACK)
@pytest.mark.parametrize("kind", WRITTEN)
def test_every_kind_and_compression_is_the_same_text(tmp_path, kind, end):
    path = put(tmp_path / f"x{kind}{end}", PACK[end](WRITTEN[kind].encode()))
    found = list(reader(path).run())
    assert [document.text for document in found] == TEXTS
    assert kind == ".txt" or [document.id for document in found] == ["0", "1", "2"]
    assert texts(path.rename(path.with_name(path.name.upper()))) == TEXTS


@pytest.mark.parametrize("end", [".gz", ".zst", ".xz"])
def test_a_damaged_archive_is_told_apart_from_a_broken_line(tmp_path, end):
    """Nobody knows how much is lost with the rest of it, so no share but 1 bears it."""
    many = "".join(json.dumps({"text": f"{i} {i * i * i * 7919}"}) + "\n" for i in range(9000)).encode()
    whole = PACK[end](many)
    assert len(texts(put(tmp_path / f"x.jsonl{end}", whole + whole))) == 18000  # two archives, one after the other
    path = put(tmp_path / f"x.jsonl{end}", whole[: len(whole) * 2 // 3])
    for most in (None, 0.999):
        with pytest.raises(ConfigError, match=rf"x.jsonl{end}: after line \d+: damaged: .*[Ee]nd-of-stream"):
            texts(path, max_bad_frac=most)
    step = reader(path, max_bad_frac=1.0)
    read = [document.text for document in step.run()]
    assert 100 < len(read) < 9000 and read == [json.loads(line)["text"] for line in many.splitlines()[: len(read)]]
    assert counted(step, "dropped_broken") == 1 and "damaged" in step.unread.places[0]


def test_an_archive_with_a_long_window_is_read(tmp_path):
    """As `zstd --long=30` writes it, which its readers refuse by default."""
    options = {zstd.CompressionParameter.window_log: 30, zstd.CompressionParameter.content_size_flag: 0}
    assert texts(put(tmp_path / "x.txt.zst", zstd.compress(b"le chat", options=options))) == ["le chat"]


def test_csv_is_that_of_rfc_4180_and_its_rows_are_located_by_line(tmp_path):
    rows = [
        b"id,text\r\n",
        b'1,"le ""chat""\r\ndort, l\xc3\xa0"\r\n',
        b"\r\n",
        b"2,un,deux\r\n",
        b'3,"a" b\r\n',
        b'4,"\n\n"\n',
        b"5,l'\xe9t\xe9\r\n",
        b"6,fin\r\n",
        b'7,"open\r\nto the end\r\n',
    ]
    step = text_reader(put(tmp_path / "x.csv", b"".join(rows)), most_bad=1.0)
    found = [(document.id, document.text) for document in step.run()]
    assert found == [("1", 'le "chat"\ndort, là'), ("4", "\n\n"), ("6", "fin")]
    assert [place.removeprefix(f"{tmp_path}/x.csv: ") for place in step.unread.places] == [
        "line 5: 3 fields, where the header has 2",
        "line 6: not CSV: ',' expected after '\"'",
        "line 10: not UTF-8 text: it looks like cp1252; set encoding: cp1252, if all of the source is, or convert it to UTF-8",
        "line 12: a quotation mark is opened here and never closed",
    ]
    assert (step.unread.entries, step.unread.broken) == (8, 5) and counted(
        step, "dropped_broken"
    ) == 5  # the last has two lines
    for bad in (b'"text', b'"te"xt\nun\n', b"t\xe9xt\nun\n"):
        with pytest.raises(ConfigError, match="line 1: "):
            list(text_reader(put(tmp_path / "x.csv", bad)).run())


def test_rows_that_a_quotation_mark_swallows_count_all(tmp_path):
    """Of 2000 rows 1001 are lost: that is no single broken entry, whether the quotation is ever closed or not."""
    rows = ["id,text", *(f"{number},le chat dort" for number in range(2000))]
    rows[100] = '99,"le chat'
    for end, most in (('99,le "chat" dort', 0.4), ("99,le chat dort", 1.0)):
        rows[1100] = end
        path = put(tmp_path / "x.csv", "\n".join(rows) + "\n")
        lost = 1001 if most < 1 else 1901
        step = reader(path, max_bad_frac=1.0)
        assert len(list(step.run())) == 2000 - lost and step.unread.broken == lost == counted(step, "dropped_broken")
        with pytest.raises(ConfigError, match="more than max_bad_frac|never closed"):
            list(reader(path, max_bad_frac=most if most < 1 else 0.99).run())
    source = Writer(tmp_path / "rejects", "x.jsonl.gz")
    list(text_reader(path, rejects=source, most_bad=1.0).run())
    (kept,) = documents.read(tmp_path / "rejects" / "x.jsonl.gz")
    assert kept["text"].count("\n") == 1900  # nothing is left out that is not there


PLAIN = 'id\ttext\n1\t"le chat" dort\n2\tun écran de 5"\n3\t"ouvert\n4\tdeux ""\n5\t"entier"\n'
QUOTED = 'id\ttext\n1\tle chat\n2\t"le ""chat""\ndort"\n3\t"entier"\n'


@pytest.mark.parametrize("padding", [0, 3000])
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (PLAIN, ['"le chat" dort', 'un écran de 5"', '"ouvert', 'deux ""', '"entier"']),
        (QUOTED, ["le chat", 'le "chat"\ndort', "entier"]),
        ('"id"\t"text"\n"1"\t"le\nchat"\n"2"\t""\n', ["le\nchat", ""]),
        ("text\tid\n\tx\nun\ty\n", ["", "un"]),
        ('text\tid\n"un\t1\ndeux"\t2\n', ['"un', 'deux"']),
        ('text\tid\n"un" et "deux"\t1\n', ['"un" et "deux"']),
    ],
)
def test_in_tsv_a_quotation_mark_is_a_letter_unless_whole_fields_stand_in_them(tmp_path, text, expected, padding):
    header, rest = text.split("\n", 1)
    lines = "rien\trien\n" * padding
    step = reader(put(tmp_path / "x.tsv", f"{header}\n{lines}{rest}"), max_bad_frac=0)
    assert [document.text for document in step.run()][padding:] == expected


@FUZZ
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), max_size=20), max_size=5))
def test_what_the_csv_module_writes_is_read_again(tmp_path, values):
    path = put(tmp_path / "x.csv", as_csv([["text", "id"], *([value, "x"] for value in values)]))
    read = [document.text for document in text_reader(path).run()]
    expected = put(tmp_path / "x.jsonl", "".join(json.dumps({"text": value}) + "\n" for value in values))
    assert read == [document.text for document in text_reader(expected).run()] and len(read) == len(values)


def test_an_object_that_is_null_is_empty_in_every_kind_of_file(tmp_path):
    """As Parquet has it; an object without the field is still broken."""
    column, rows = "meta.body", [{"body": "un"}, None]
    assert texts(table(tmp_path / "x.parquet", meta=rows), text_column=column) == ["un", ""]
    path = put(tmp_path / "x.jsonl", "".join(json.dumps({"meta": row}) + "\n" for row in [*rows, {}]))
    step = reader(path, text_column=column, max_bad_frac=1.0)
    assert [document.text for document in step.run()] == ["un", ""] and step.unread.broken == 1


META = {"meta": {"body": "un", "more": {"deep": "deux"}}, "title": "T", "none": None, "a.b": "point", "a": {"b": "autre"}}


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        ("meta.body", "un"),
        ("meta.more.deep", "deux"),
        ("a.b", "point"),
        (["title", "meta.body"], "T\n\nun"),
        (["none", "title"], "T"),
        (["title"], "T"),
    ],
)
def test_the_text_may_be_in_several_fields_and_deep(tmp_path, column, expected):
    assert texts(put(tmp_path / "x.jsonl", json.dumps(META) + "\n"), text_column=column) == [expected]
    if column != "a.b":
        rows = {key: [value] for key, value in META.items() if "a" != key != "a.b"}
        assert texts(table(tmp_path / "x.parquet", **rows), text_column=column) == [expected]


def test_an_object_that_is_not_there_is_no_text(tmp_path):
    assert texts(table(tmp_path / "x.parquet", meta=[{"body": "un"}, None, {"body": None}]), text_column="meta.body") == [
        "un",
        "",
        "",
    ]
    half = table(tmp_path / "y.parquet", meta=[{"body": "un", "title": 1}])
    for column, said in {
        "meta.bodi": "no 'meta.bodi'. Did you mean meta.body",
        "meta": "not text",
        "meta.title": "int64",
    }.items():
        with pytest.raises(ConfigError, match=said):
            texts(half, text_column=column)


@pytest.mark.parametrize("column", [[], "", ["a", ""], ["a", "a"]])
def test_columns_without_a_name_or_twice_are_refused(column):
    with pytest.raises(ValueError, match="a name is"):
        Source(language="fr", path="x", text_column=column)


@pytest.mark.parametrize("kind", WRITTEN)
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32", "utf-8-sig", "cp949", "gb18030"])
def test_every_encoding_is_read(tmp_path, kind, encoding):
    """With a byte order mark it need not be named."""
    plain = WRITTEN[kind].replace("« ", "").replace(" »", "").replace("é", "e")
    marked = encoding if encoding.startswith("utf-") else None
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    expected = texts(put(tmp_path / f"x{kind}", plain))
    named = {"encoding": encoding} if not marked else {}
    path = put(tmp_path / f"y{kind}.gz", gzip.compress((mark + plain).replace("\n", "\r\n").encode(encoding)))
    assert texts(path, **named) == expected and expected[2] == TEXTS[2]


def test_an_encoding_that_is_named_wrongly(tmp_path):
    for name in ("latin-7b", "base64", "rot13"):
        with pytest.raises(ValueError, match="is no encoding; name one of Python's"):
            Source(language="fr", path="x", encoding=name)
    with pytest.raises(ConfigError, match="x.txt: line 1: not ascii text"):
        texts(put(tmp_path / "x.txt", "l'été"), encoding="ascii")
    with pytest.raises(ConfigError, match="encoding is for files of text"):
        texts(table(tmp_path / "x.parquet", text=["un"]), encoding="cp1252")
    assert texts(put(tmp_path / "x.txt", "l'\u00e9t\u00e9".encode("cp037")), encoding="cp037") == ["l'été"]


def test_halves_and_cut_letters_in_utf_16(tmp_path):
    halves = "\ufeffle \ud83d chat".encode("utf-16-le", "surrogatepass")
    step = text_reader(put(tmp_path / "x.txt", halves))
    assert [document.text for document in step.run()] == ["le \ufffd chat"] and counted(step, MENDED) == 1
    with pytest.raises(ConfigError, match="x.txt: after line 1: not utf-16-le text: truncated"):
        list(text_reader(put(tmp_path / "x.txt", "\ufeffun\ndeux".encode("utf-16-le") + b"\0")).run())


MIXED = b'{"text": "le chat"}\nno\n{"text": 5, "id": "five"}\n{"other": "x"}\n{"text": "\xff\xe9"}\n{"text": "la rue"}\n'


def test_what_cannot_be_read_is_counted_located_and_kept(tmp_path):
    path = put(tmp_path / "x.jsonl", MIXED)
    step = text_reader(path, rejects=Writer(tmp_path / "rejects", "x.${rank}.jsonl.gz"), most_bad=0.7)
    assert [document.text for document in step.run(rank=3, world_size=4)] == []
    assert [document.text for document in step.run()] == ["le chat", "la rue"]
    assert counted(step, "dropped_broken") == 4
    kept = list(documents.read(tmp_path / "rejects" / "x.00000.jsonl.gz"))
    assert [document["text"] for document in kept] == [
        "no",
        "{'text': '5', 'id': 'five'}",
        "{'other': 'x'}",
        '{"text": "\ufffd\ufffd"}',
    ]
    assert {document["metadata"]["filter_reason"] for document in kept} == {"broken"}
    assert [document["metadata"]["where"] for document in kept] == [f"{path}: line {number}" for number in (2, 3, 4, 5)]
    assert [document["id"] for document in kept] == [f"x.jsonl/{number}" for number in (2, 3, 4, 5)]
    assert kept[1]["metadata"]["why"] == "'text' is a number, not text" and "no 'text'" in kept[2]["metadata"]["why"]


def test_rows_of_a_table_that_cannot_be_read_are_left_out(tmp_path):
    import pyarrow

    latin = pyarrow.array([b"un", b"\xe9t\xe9", b"deux"]).view(pyarrow.string())
    step = reader(table(tmp_path / "x.parquet", text=latin), max_bad_frac=0.5)
    assert [document.text for document in step.run()] == ["un", "deux"]
    assert step.unread.places == [f"{tmp_path}/x.parquet: row 1: 'text' is not UTF-8 text"]


def test_too_much_is_refused_as_soon_as_it_is_sure(tmp_path, monkeypatch):
    """A column that nothing has, after a hundred entries; another kind of file, after a thousand."""
    other = "no\n" + '{"texte": "un"}\n' * 150
    with pytest.raises(ConfigError, match="x.jsonl: line 2: no 'text'. Did you mean texte"):
        list(text_reader(put(tmp_path / "x.jsonl", other), most_bad=1.0).run())
    with pytest.raises(ConfigError, match="x.jsonl: line 1: no 'text'"):
        list(text_reader(put(tmp_path / "x.jsonl", '{"texte": "un"}\n' * 3), most_bad=1.0).run())
    bad = '{"text": "un"}\n' * 499 + "no\n" * 5000
    with pytest.raises(
        ConfigError, match=r"501 of 1000 entries cannot be read, more than max_bad_frac \(0.001\) allows: .*line 500: "
    ):
        list(text_reader(put(tmp_path / "x.jsonl", bad), most_bad=0.001).run())
    assert len(list(text_reader(put(tmp_path / "x.jsonl", bad), most_bad=0.95).run())) == 499


def test_a_share_is_of_the_source_and_its_first_places_are_said(tmp_path, capsys):
    rejects = [write_jsonl(tmp_path / "a.jsonl.gz", [])]
    broken = [{"text": "", "metadata": {"where": f"x: line {i}", "why": "no"}} for i in range(9)]
    with gzip.open(rejects[0], "wt") as file:
        file.writelines(json.dumps(document) + "\n" for document in broken)
    unread.check("fr", 0, 0, 0.0, [])
    unread.check("fr", 9, 9000, 0.001, rejects)
    assert "fr: 9 of 9000 entries cannot be read and are left out; x: line 0: no" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"9 of 8999 .*\(0.001\) allows: x: line 0: no; .*x: line 4: no; ...$"):
        unread.check("fr", 9, 8999, 0.001, rejects)
    with pytest.raises(ConfigError, match="; 2.00% of the source's bytes are in what is so damaged"):
        unread.check("fr", 9, 9000, 0.01, rejects, 1, 0.02)
    unread.check("fr", 1, 100, 0.001, rejects, 1)  # one small archive of several


def test_long_lines_are_read_or_left_out(tmp_path, monkeypatch):
    novel, longest = "le chat dort. " * 150_000, "x" * 20_000_000
    path = put(tmp_path / "x.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in (novel, longest, "fin")))
    assert [len(text) for text in texts(path)] == [2_100_000, 20_000_000, 3]
    assert texts(put(tmp_path / "x.csv", as_csv([["text"], [novel], ["fin"]]))) == [novel, "fin"]
    assert texts(put(tmp_path / "x.txt", novel)) == [novel]
    monkeypatch.setattr(lines, "MOST_BYTES", 1 << 20)
    step = text_reader(path, most_bad=0.7)
    assert [document.text for document in step.run()] == ["fin"] and "line 2: longer than 1 MiB" in step.unread.places[1]


def test_a_pattern_finds_files_and_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a/fr-1.jsonl.gz", "a/fr-2.jsonl", "a/en.jsonl", "b/deep/fr-3.jsonl", "a/.hidden/fr-4.jsonl"):
        write_jsonl(tmp_path / name, [name])
    put(tmp_path / "a" / "fr.pdf", "x")
    write_jsonl(tmp_path / "fr[1].jsonl", ["brackets"])
    found = {
        "a/fr-*": ["a/fr-1.jsonl.gz", "a/fr-2.jsonl"],
        "a/*.gz": ["a/fr-1.jsonl.gz"],
        "?": ["a/en.jsonl", "a/fr-1.jsonl.gz", "a/fr-2.jsonl", "b/deep/fr-3.jsonl"],
        "**/fr-[23].jsonl": ["a/fr-2.jsonl", "b/deep/fr-3.jsonl"],
        "fr[1].jsonl": ["brackets"],
    }
    for pattern, expected in found.items():
        assert texts(pattern) == expected, pattern
        assert texts(tmp_path / pattern) == expected
    assert source_files.search("a/fr*").unread == ["fr.pdf"]
    names = {"a/fr-*.jsonl": "fr", "a/*.gz": "a", "**/x.txt": "text", "s3://data/sw/*.gz": "sw", "s3://b/x.jsonl": "x"}
    assert {path: Source(language="fr", path=path).domain for path in names} == {**names, "**/x.txt": "x"}


def test_a_pattern_that_matches_nothing_says_what_there_is(tmp_path):
    write_jsonl(tmp_path / "fr.jsonl.zst", ["un"])
    for pattern, said in {
        "*.jsonl.gz": "nothing matches. Did you mean fr.jsonl.zst",
        "x*": "nothing matches. There is: fr.jsonl.zst",
        "none/*.gz": "there is no folder .*none",
    }.items():
        with pytest.raises(ConfigError, match=said):
            texts(tmp_path / pattern)


def test_a_run_inside_of_a_source_is_noticed(tmp_path):
    write_jsonl(tmp_path / "fr.jsonl", ["un"])
    out = tmp_path / "runs" / "x" / "01-filter"
    out.mkdir(parents=True)
    for path, held in {".": True, "*.jsonl": False, "**/*.jsonl": True, "*": True, "r*": True, "fr.jsonl": False}.items():
        assert Source(language="fr", path=str(tmp_path / path)).holds(out) is held, path


@pytest.fixture
def store():
    """A store in memory, at memory://bucket."""
    system = fsspec.filesystem("memory")
    yield system
    system.rm("/", recursive=True)


def test_an_object_store_is_read_like_a_folder(store, tmp_path):
    for name, data in {
        "fr/a.jsonl.gz": gzip.compress(b'{"text": "un"}\n'),
        "fr/deep/b.jsonl": b'{"text": "deux"}\n',
        "fr/.x/c.jsonl": b"x",
        "fr/d.pdf": b"x",
        "fr/e.jsonl": b"",
        "fr/t.csv": b"text\ntrois\n",
    }.items():
        store.pipe(f"/bucket/{name}", data)
    assert texts("memory://bucket/fr") == ["un", "deux", "trois"]
    assert texts("memory://bucket/fr/*.gz") == texts("memory://bucket/fr/a.jsonl.gz") == ["un"]
    source = Source(language="fr", path="memory://bucket/fr")
    assert source_files.search(source.path).unread == [".x/c.jsonl", "d.pdf", "e.jsonl (empty)"]
    record = source.record()
    (first, *_) = record.files
    assert (first.name, first.path, first.sha256) == ("a.jsonl.gz", "memory:///bucket/fr/a.jsonl.gz", "") and first.etag
    assert source.difference(record.files) == "" and source.domain == "fr" and source.folder() is None
    store.pipe("/bucket/fr/f.txt", b"x")
    assert "f.txt is new since" in source.difference(record.files)
    store.pipe("/bucket/fr/a.jsonl.gz", gzip.compress(b'{"text": "xx"}\n'))
    assert "a.jsonl.gz has changed since" in source.difference(record.files)
    path = table(tmp_path / "x.parquet", text=["un", "deux"])
    store.pipe("/bucket/x.parquet", path.read_bytes())
    assert texts("memory://bucket/x.parquet") == ["un", "deux"]


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("memory://bucket/none", "memory://bucket/none: no such file|nothing to read"),
        ("memory://bucket/fr/*.gs", "Did you mean a.gz"),
        ("s3://bucket/x", "s3://bucket/x: s3:// needs a package that is not here: Install s3fs"),
        ("s3x://a/b", "s3x:// is not known. Did you mean s3"),
        ("memory://bucket/pdf", "nothing to read here .1 not read: x.pdf.; langext reads .txt"),
    ],
)
def test_what_a_store_does_not_have_is_one_line(store, path, said):
    store.pipe("/bucket/fr/a.gz", b"x")
    store.pipe("/bucket/pdf/x.pdf", b"x")
    with pytest.raises(ConfigError, match=said) as raised:
        Source(language="fr", path=path).check()
    assert "\n" not in str(raised.value)


@pytest.fixture
def web(tmp_path):
    """The address of a web server of the files in tmp_path/www, which hides the size of those in /cut/, and gives no parts of
    those in /whole/.
    """

    class Handler(SimpleHTTPRequestHandler):
        def send_header(self, keyword, value):
            if keyword != "Content-Length" or not self.path.startswith("/cut/"):
                super().send_header(keyword, value)

        def end_headers(self):
            if self.path.startswith("/whole/"):
                self.send_header("Accept-Ranges", "none")
            super().end_headers()

        def log_message(self, *_):
            pass

    (tmp_path / "www" / "cut").mkdir(parents=True)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=tmp_path / "www")) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_web_server_is_read_like_a_folder_and_queries_are_no_patterns(web, tmp_path):
    for name in ("a.jsonl.gz", "deep/b.jsonl.gz", "cut/c.jsonl.gz", "whole/d.jsonl.gz"):
        path = tmp_path / "www" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(gzip.compress(json.dumps({"text": name[:-9]}).encode()))
    assert texts(f"{web}/deep/") == texts(f"{web}/deep/*.gz") == ["deep/b"]
    source = Source(language="fr", path=f"{web}/a.jsonl.gz?download=true&from=x/y")
    (file,) = source.record().files
    assert texts(source.path) == ["a"] and source.domain == "a" and file.path == source.path and file.bytes > 0
    assert source.difference([file]) == ""
    Source(language="fr", path=f"{web}/whole/d.jsonl.gz").check()
    assert texts(f"{web}/whole/d.jsonl.gz") == ["whole/d"]
    with pytest.raises(ConfigError, match="c.jsonl.gz: the server does not say how many bytes"):
        Source(language="fr", path=f"{web}/cut/c.jsonl.gz").check()


def test_a_store_that_fails_costs_nothing_that_is_finished(store, monkeypatch):
    store.pipe("/bucket/x.txt", b"un")
    step = reader("memory://bucket/x.txt")

    class Lost(Exception):
        """As drivers have their own."""

    def fail(*_, **__):
        raise Lost("connection reset")

    monkeypatch.setattr(type(store), "open", fail)
    with pytest.raises(RunFailed, match="x.txt: cannot be read: connection reset; run the same command again"):
        list(step.run())
    monkeypatch.setattr(type(store), "open", lambda *_: SimpleNamespace(read=fail, seekable=lambda: True, close=lambda: None))
    with pytest.raises(RunFailed, match="connection reset"):
        list(step.run())


def test_no_password_stands_in_a_pipeline():
    with pytest.raises(ValueError, match="write no password into an address"):
        Source(language="fr", path="ftp://me:secret@host/x.txt")
    assert remote.is_remote("hf://datasets/a/b") and not remote.is_remote("memory:x.txt")


class Pipe(io.BytesIO):
    def isatty(self):
        return False


def pipe(monkeypatch, data):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=Pipe(data)))


@pytest.mark.parametrize(
    ("data", "kind", "name"),
    [
        (b"un\n\ndeux\n", None, "stdin.txt"),
        (b'\n{"text": "un"}\n{"text": "deux"}\n', None, "stdin.jsonl"),
        (gzip.compress(b'{"text": "un"}\n{"text": "deux"}\n', mtime=0), None, "stdin.jsonl.gz"),
        ('{"text": "un"}\n{"text": "deux"}\n'.encode("utf-16"), None, "stdin.jsonl"),
        (b"text\nun\ndeux\n", "csv", "stdin.csv"),
        (zstd.compress(b"text\tid\nun\t1\ndeux\t2\n"), "tsv", "stdin.tsv.zst"),
    ],
)
def test_standard_input_is_kept_and_read_from_there(tmp_path, monkeypatch, data, kind, name):
    source = Source(language="fr", path="-", format=kind)
    source.check()
    assert (source.domain, source.origin, source.found(), source.folder()) == ("stdin", "standard input", None, None)
    for comes in (data, b"never read"):  # the second time, as after an interruption, nothing comes
        pipe(monkeypatch, comes)
        kept = source.at_hand(tmp_path)
        assert kept.path == str(tmp_path / "stdin" / "fra_Latn" / name) and kept.domain == "stdin"
        assert [document.text for document in kept.reader(kept.record()).run()] == ["un", "deux"]
    kept.discard(tmp_path)
    assert not list(tmp_path.rglob("*.*"))


@pytest.mark.parametrize(
    ("data", "said"),
    [(b"", "nothing comes"), (None, "nothing is piped"),
        (b'{"texte": "un"}\n', "Did you mean texte"), (b"PK\x03\x04", "zip archive"),
        (b'[\n {"text": "un"}]', "one array of JSON.* jq")],
)  # fmt: skip
def test_what_comes_from_standard_input_and_is_no_text_is_not_kept(tmp_path, monkeypatch, data, said):
    pipe(monkeypatch, data or b"")
    if data is None:
        monkeypatch.setattr(Pipe, "isatty", lambda _: True)
    with pytest.raises(ConfigError, match=said):
        Source(language="fr", path="-").at_hand(tmp_path)
    assert not list(tmp_path.rglob("*.*"))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"path": "x.txt", "format": "txt"}, "format is for standard input"),
        ({"hub": "a/b", "txt_documents": "files"}, "belongs to sources with a path"),
        ({"path": "x", "max_bad_frac": 1.5}, "less than or equal to 1"),
        ({"path": "-", "format": "pdf"}, "txt"),
    ],
)
def test_keys_that_do_not_fit_are_refused(more, said):
    with pytest.raises(ValueError, match=said):
        Source.model_validate({"language": "fr", **more})


def test_a_text_without_a_blank_line_is_named_when_planning(tmp_path, capsys):
    put(tmp_path / "a.txt", "un\ndeux\n")
    put(tmp_path / "b.txt", "\nun\ndeux\n\n")
    put(tmp_path / "c.txt", "un\n\ndeux\n")
    Source(language="fr", path=str(tmp_path)).check()
    said = capsys.readouterr().err
    assert "a.txt and 1 more has no blank line at its beginning" in said and "set txt_documents: lines" in said
    for division in ("lines", "files"):
        Source(language="fr", path=str(tmp_path), txt_documents=division).check()
    Source(language="fr", path=str(tmp_path / "c.txt")).check()
    assert not capsys.readouterr().err


def test_a_look_takes_the_beginning_of_many_files(tmp_path):
    for number in range(40):
        write_jsonl(tmp_path / f"{number:02}.jsonl", [f"{number}.{i}" for i in range(9)])
    seen = peek.look(Source(language="fr", path=str(tmp_path)), 32)
    assert seen.files == 16 and len(seen.documents) == 32 and len({d.text.split(".")[0] for d in seen.documents}) == 16
    with pytest.raises(ConfigError, match="can be read only once"):
        peek.look(Source(language="fr", path="-"), 5)


@pytest.mark.parametrize("end", [".gz", ".zst", ".xz"])
def test_of_a_folder_what_cannot_be_opened_at_all_counts_as_broken(tmp_path, end, capsys, monkeypatch):
    """It is named when planning, kept among the rejects, and refused when it is more of the source than max_bad_frac allows.

    A few bytes are borne, whatever share of a small source they are.
    """
    whole = PACK[end](b'{"text": "un"}\n' * 9 + (json.dumps({"text": random.Random(1).randbytes(999).hex()}) + "\n").encode())
    put(tmp_path / "x" / f"a.jsonl{end}", whole)
    bad = put(tmp_path / "x" / f"b.jsonl{end}", whole[:6] + bytes(50))
    source = Source(language="fr", path=str(tmp_path / "x"))
    source.check(0.1)
    assert f"b.jsonl{end}: damaged, nothing can be read of it; its " in capsys.readouterr().err
    record = source.record()
    assert [file.name for file in record.files] == [f"a.jsonl{end}", f"b.jsonl{end}"]
    step = source.reader(record, Writer(tmp_path, "${rank}.jsonl.gz"), 0.1)
    read = [document.text for rank in range(2) for document in step.run(None, rank, 2)]
    assert read[:9] == ["un"] * 9 and counted(step, "dropped_broken") == 1
    assert counted(step, LOST_BYTES) == 56
    (kept,) = documents.read(tmp_path / "00001.jsonl.gz")
    assert kept["metadata"]["filter_reason"] == "broken" and "after line 0: damaged" in kept["metadata"]["why"]
    source.check(0.02)
    assert len(list(source.reader(record, Writer(tmp_path, "again.${rank}.jsonl.gz"), 0.02).run(None, 0, 1))) == 10
    monkeypatch.setattr(unread, "SMALL", 50)
    for refusing in (lambda: source.check(0.02), lambda: list(source.reader(record, None, 0.02).run())):
        with pytest.raises(ConfigError, match=rf"b.jsonl{end}: .*damaged.*; [3-6]\.\d\d% of the source's bytes .* allows 0.02"):
            refusing()
    with pytest.raises(ConfigError, match=f"b.jsonl{end}: damaged, .* mend or remove it .max_bad_frac is 0"):
        source.check(0.0)
    with pytest.raises(ConfigError, match=f"b.jsonl{end}: after line 0: damaged"):
        list(source.reader(record, None, 0.0).run())
    for path in (put(tmp_path / "x" / f"a.jsonl{end}", bad.read_bytes()), bad):  # both damaged, and one that is alone
        with pytest.raises(ConfigError, match="damaged.* nothing can be read of it; mend or remove it"):
            source.check(0.1)
        path.unlink()
    bad.write_bytes(b"a text that is called an archive")
    put(tmp_path / "x" / f"a.jsonl{end}", whole)
    with pytest.raises(ConfigError, match="not a .* file, but its name ends in"):
        source.check(0.1)
