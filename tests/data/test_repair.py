"""Mojibake is mended, and text that was right is not touched."""

import pytest
from ftfy import fix_text
from toy import FRENCH, documents

from langext.data import repair
from langext.data.repair import repair as mended


@pytest.mark.parametrize("codec", ["latin-1", "cp1252", "cp1250", "iso8859-2"])
@pytest.mark.parametrize("text", ["Ã quoi bon, l'été déjà passé à l'œuvre ?", "größer, schöner — “ja”", "příliš žluťoučký kůň"])
def test_what_was_decoded_wrongly_is_mended_as_far_as_ftfy_can(text, codec):
    """Whatever ftfy would mend in it, langext sends to ftfy."""
    try:
        broken = text.encode().decode(codec)
    except UnicodeDecodeError:
        pytest.skip("not possible in this encoding")
    assert mended(f"avant\n{broken}\naprès") == f"avant\n{fix_text(broken, repair._HOW)}\naprès"


def test_mojibake_in_news_is_mended():
    assert mended("took $28.5m (Â£15.2m), GrÃ¸nland, lâ€™Ã©tÃ©\x07") == "took $28.5m (£15.2m), Grønland, l’été"


@pytest.mark.parametrize(
    "text",
    [*documents(FRENCH, 3, 1), "“Ça”, dit-il… « été » : l’œuvre ﬁnie à 5 °C", "Ｆｕｌｌ　ｗｉｄｔｈ", "&lt;b&gt; & x\r\ny",
     "ÀÉÎÕÜ", "a\tb\u200bc", "สวัสดี ครับ", "हिन्दी", "Ελληνικά Ñandú Ångström Đà Nẵng"],
)  # fmt: skip
def test_text_that_is_right_stays_as_it_is(text):
    assert mended(text) == text
