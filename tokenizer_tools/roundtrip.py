"""Whether text survives a tokenizer: decoded from its ids, it is the text again.

A base can lose something by design, as runs of spaces or other forms of a letter; an extension must not lose more.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import Any

BYTES_OF_TEXT = frozenset(range(256)) - {0xC0, 0xC1, 0xEE, 0xF1, 0xF2, 0xF4, *range(0xF5, 256)}
"""The bytes that UTF-8 has (https://www.rfc-editor.org/rfc/rfc3629, section 3) for characters which Unicode has assigned: 0xEE
and 0xF4 begin those of private use alone, 0xF1 and 0xF2 none. Real vocabularies, as that of SmolLM2, lack some of them."""
SPACE = "▁"
"""What SentencePiece writes for a space."""


def checked(text: str) -> str:
    """The text itself. Raises ValueError for a lone surrogate: half of a character, which no tokenizer can read."""
    for i, sign in enumerate(text):
        if "\ud800" <= sign <= "\udfff":
            raise ValueError(f"the text has a lone surrogate (U+{ord(sign):04X}) at character {i}, which is no character")
    return text


def encode(tokenizer: Any, text: str) -> list[int]:
    """The ids of a text alone. Names of special tokens in it are text."""
    return tokenizer(checked(text), add_special_tokens=False, split_special_tokens=True).input_ids


def survives(tokenizer: Any, text: str) -> bool:
    """Whether decoding the ids of a text gives the text."""
    return tokenizer.decode(encode(tokenizer, text), clean_up_tokenization_spaces=False) == text


def lost(base: Any, bigger: Any, texts: Iterable[str]) -> str:
    """A text that the base gives back and the extended tokenizer does not; empty when there is none."""
    return next((text for text in texts if survives(base, text) and not survives(bigger, text)), "")


def unwritable(octets: Collection[int]) -> str:
    """Which bytes of text a vocabulary cannot write that has tokens for these; empty when it can write all."""
    missing = sorted(BYTES_OF_TEXT.difference(octets))
    if not missing:
        return ""
    few = ", ".join(f"0x{byte:02X}" for byte in missing[:3])
    return f"has no token for {len(missing)} of the bytes of text ({few}{', ...' if len(missing) > 3 else ''}), and drops it"


def characters(tokenizer: Any, texts: Sequence[str], rows: Sequence[Sequence[int]]) -> tuple[int, int]:
    """(characters of texts without white space, how many of them are not there any more when their ids are decoded).

    The texts are taken as the tokenizer's normalizer writes them: another form of a letter is no loss.
    """
    normalizer, total, gone = tokenizer.backend_tokenizer.normalizer, 0, 0
    read = tokenizer.batch_decode(rows, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    for text, again in zip(texts, read, strict=True):
        written = Counter((normalizer.normalize_str(text) if normalizer else text).replace(SPACE, ""))
        for blank in [sign for sign in written if sign.isspace()]:
            del written[blank]
        total, gone = total + written.total(), gone + (written - Counter(again)).total()
    return total, gone
