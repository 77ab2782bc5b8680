"""The encoding that a message names is the one that the text is in, or none."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_fuzz import FUZZ
from test_readers import put

from langext.data import encodings, heads
from langext.data.lines import lines as found_lines
from langext.data.sources import Source
from langext.errors import ConfigError

SAMPLES = {
    "hrv_Latn": "Šuma je jučer bila tiha, a žene su čekale đake koji će doći kući. Životinje žive u šumi, reče Žarko.",
    "ron_Latn": "Şi astăzi, în oraş, oamenii aşteaptă o viaţă mai bună; ţara întreagă ştie că începutul vine mâine.",
    "pol_Latn": "Wczoraj poszliśmy do miasta, żeby kupić chleb i świeże jabłka; później wróciliśmy pieszo ścieżką przez łąkę.",
    "kor_Hang": "어제 우리는 빵과 우유를 사러 시내에 갔지만 가게가 문을 닫았다. 그래서 집으로 돌아왔다.",
    "fra_Latn": "L’été dernier, à l’école, les élèves ont mangé des crêpes ; le garçon, déçu, rêvait où il était né.",
    "isl_Latn": "Í gær fórum við í bæinn til að kaupa brauð og mjólk, en búðin var lokuð því það var frídagur.",
    "rus_Cyrl": "Вчера мы ходили в город, чтобы купить хлеба. Магазин был закрыт, и мы вернулись домой.",
    "jpn_Jpan": "昨日、パンと牛乳を買うために町へ行きましたが、店は閉まっていました。",
    "zho_Hans": "昨天我们去城里买面包和牛奶，但是商店关门了，我们就回家了。",
    "zho_Hant": "昨天我們去城裡買麵包和牛奶，但是商店關門了，我們就回家了。",
    "swh_Latn": "Alisema “nitakuja kesho” – lakini ng’ombe wa jirani, “Simba”, hakurudi… Wakaenda “mjini” wote.",
}
WRITTEN = [
    ("hrv_Latn", "cp1250"), ("hrv_Latn", "iso8859-2"), ("hrv_Latn", "cp852"), ("ron_Latn", "cp1250"), ("pol_Latn", "cp1250"),
    ("pol_Latn", "iso8859-2"), ("kor_Hang", "euc_kr"), ("kor_Hang", "cp949"), ("fra_Latn", "cp1252"),
    ("fra_Latn", "mac_roman"), ("isl_Latn", "cp1252"), ("rus_Cyrl", "cp1251"), ("rus_Cyrl", "koi8-r"), ("rus_Cyrl", "cp866"),
    ("rus_Cyrl", "iso8859-5"), ("jpn_Jpan", "euc_jp"), ("jpn_Jpan", "shift_jis"), ("zho_Hans", "gb18030"),
    ("zho_Hant", "big5"), ("swh_Latn", "cp1252"),
]  # fmt: skip


@pytest.mark.parametrize(("language", "written"), WRITTEN)
def test_text_is_read_right_in_the_encoding_that_is_named(tmp_path, language, written):
    text = SAMPLES[language]
    data = "".join(f"{text}\n\n" for _ in range(9)).encode(written)
    with pytest.raises(ConfigError, match="not UTF-8 text: it looks like ") as told:
        Source(language=language, path=str(put(tmp_path / "x.txt", data))).check()
    named = str(told.value).rpartition("set encoding: ")[2].partition(",")[0]
    assert data.decode(named) == data.decode(written)
    Source(language=language, path=str(tmp_path / "x.txt"), encoding=named).check()


def test_french_of_dos_is_named(tmp_path):
    assert encodings.likely([SAMPLES["fra_Latn"].replace("’", "'").encode("cp850")], "fra_Latn") == "cp850"


def test_of_few_letters_it_is_the_commonest_of_the_language():
    assert encodings.likely([b"caf\xe9"]) == encodings.likely([b"caf\xe9"], "fra_Latn") == "cp1252"
    assert encodings.likely([b"\xe8ovjek"], "hrv_Latn") == "cp1250"


def test_it_is_guessed_from_several_lines(tmp_path):
    """The first has next to nothing; the letter that tells the two encodings apart comes later."""
    lines = ["č", *["plain"] * 9, *["Šuma i žena, Žarko"] * 3]
    for encoding in ("cp1250", "iso8859-2"):
        data = "\n".join(lines).encode(encoding)
        with pytest.raises(ConfigError, match=f"line 1: not UTF-8 text: it looks like {encoding};"):
            heads.check(put(tmp_path / "x.txt", data + data), ["text"], language="hrv_Latn")
        assert [line.number for line in found_lines(io.BytesIO(data))] == list(range(1, 14))  # none is lost in looking ahead


@given(st.lists(st.binary(), max_size=4), st.sampled_from(["mul_Zyyy", *SAMPLES]))
@FUZZ
def test_what_is_named_decodes_all_of_it(lines, language):
    if named := encodings.likely(lines, language):
        "".encode(named)
        whole = b"\n".join(lines)
        for end in range(4):  # the last letter may be cut
            try:
                whole[: len(whole) - end].decode(named)
                return
            except UnicodeDecodeError:
                continue
        pytest.fail(f"{named} does not decode {whole!r}")


def test_text_in_another_language_than_is_said_is_what_it_looks_like():
    assert encodings.likely([SAMPLES["rus_Cyrl"].encode("koi8-r")], "fra_Latn") == "koi8-r"


def test_a_guess_that_does_not_decode_is_not_named():
    """As uchardet takes much Korean for Big5."""
    data = SAMPLES["kor_Hang"].encode("cp949") + b" \xff\xff\xff\xff "
    assert encodings.not_utf8([data], "kor_Hang") == "not UTF-8 text: convert it to UTF-8"
