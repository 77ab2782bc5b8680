"""Which encoding text that is not UTF-8 is likely to be in. The one rule: what is named decodes all that was looked at.

Nothing is read by a guess: it is a part of a message, and the user names the encoding.
"""

import codecs
import unicodedata
from collections.abc import Sequence

import cchardet
import regex

from langext import languages
from langext.data import verdict

GUESSED_BYTES = 16384
"""Most bytes from which an encoding is guessed."""
FEW = 5
"""With fewer bytes than this that are not ASCII nothing can be compared; then it is the commonest of the language."""
MOST_ODD = 0.3
"""Largest share of the letters and signs that are not ASCII which may look wrong in the encoding that is named."""
COMMON = "cp1252"
"""The commonest encoding after UTF-8."""
READ_AS = {"iso8859-1": "cp1252", "ascii": "", "utf-8": "", "euc_kr": "cp949", "shift_jis": "cp932", "gb2312": "gb18030"}
"""What uchardet calls an encoding -> the one to name. Text called Latin-1 is cp1252 nearly always, with its quotation marks and
dashes, and others are parts of larger ones: https://encoding.spec.whatwg.org/#names-and-labels"""
_MIDDLE, _BALTIC = "cp1250 iso8859-2 cp852 mac_latin2", "cp1257 iso8859-13 iso8859-4 cp775"
_TURKISH = "cp1254 iso8859-9 cp857 mac_turkish"
_OF_LANGUAGE = {
    "bos_Latn": _MIDDLE, "ces_Latn": _MIDDLE, "dsb_Latn": _MIDDLE, "hbs_Latn": _MIDDLE, "hrv_Latn": _MIDDLE,
    "hsb_Latn": _MIDDLE,
    "hun_Latn": _MIDDLE, "pol_Latn": _MIDDLE, "slk_Latn": _MIDDLE, "slv_Latn": _MIDDLE, "srp_Latn": _MIDDLE,
    "szl_Latn": _MIDDLE,
    "ron_Latn": "cp1250 iso8859-16 iso8859-2 cp852 mac_romanian", "als_Latn": "cp1252 cp1250 iso8859-2", "lit_Latn": _BALTIC,
    "ltg_Latn": _BALTIC, "lvs_Latn": _BALTIC, "est_Latn": f"cp1257 cp1252 {_BALTIC}",
    "azj_Latn": _TURKISH, "tur_Latn": _TURKISH,
    "crh_Latn": _TURKISH, "kmr_Latn": _TURKISH, "vie_Latn": "cp1258", "epo_Latn": "iso8859-3", "mlt_Latn": "iso8859-3",
    "cym_Latn": "iso8859-14 cp1252", "sme_Latn": "iso8859-10 cp1252", "isl_Latn": "cp1252 mac_iceland cp861 cp850",
    "ukr_Cyrl": "cp1251 koi8-u iso8859-5 cp1125 mac_cyrillic", "kaz_Cyrl": "kz1048 cp1251 ptcp154", "tgk_Cyrl": "koi8_t cp1251",
}  # fmt: skip
"""Code of a language -> the encodings that are usual for it, in names of Python, the commonest first."""
_OF_SCRIPT = {
    "Latn": "cp1252 mac_roman cp850", "Cyrl": "cp1251 koi8-r iso8859-5 cp866 mac_cyrillic", "Hang": "cp949 johab",
    "Grek": "cp1253 iso8859-7 cp737 mac_greek", "Hebr": "cp1255 iso8859-8 cp862", "Arab": "cp1256 iso8859-6 cp720",
    "Thai": "cp874", "Hans": "gb18030 big5hkscs", "Hant": "big5hkscs gb18030", "Jpan": "cp932 euc_jp",
}  # fmt: skip
"""The same for the scripts of all other languages."""
_YUGOSLAV = "čćđšž"
_LETTERS = {
    "bos_Latn": _YUGOSLAV, "hbs_Latn": _YUGOSLAV, "hrv_Latn": _YUGOSLAV, "slv_Latn": _YUGOSLAV, "srp_Latn": _YUGOSLAV,
    "ces_Latn": "áčďéěíňóřšťúůýž", "slk_Latn": "áäčďéíĺľňóôŕšťúýž", "pol_Latn": "ąćęłńóśźż", "hun_Latn": "áéíóöőúüű",
    "ron_Latn": "ăâîșțşţ", "als_Latn": "çë", "lit_Latn": "ąčęėįšųūž", "lvs_Latn": "āčēģīķļņšūž", "ltg_Latn": "āčēģīķļņōšūž",
    "est_Latn": "äõöüšž", "tur_Latn": "çğıİöşüâîû", "epo_Latn": "ĉĝĥĵŝŭ", "mlt_Latn": "ċġħżàèìòù", "isl_Latn": "áðéíóúýþæö",
    "cym_Latn": "âêîôûŵŷäëïöüàèìòùáéíóúẁẃẅỳýÿ", "hsb_Latn": "čćěłńóřšžź", "dsb_Latn": "čćěłńŕšśžź", "szl_Latn": "ąćęłńóśźżōŏôõ",
}  # fmt: skip
"""The letters that a language has beside those of English; others in Latin script have those of Western Europe."""
_WESTERN = "".join(chr(number) for number in range(0xC0, 0x100) if number not in (0xD7, 0xF7)) + "œŸªº"
_INSIDE, _ORDINARY = "’‘·´-–—\xad\xa0", "’‘“”„«»‹›–—…·°§€£¡¿•©®™×½²³\xa0\xad´"
"""Signs that stand between two letters, and those that are nothing special elsewhere."""


def likely(lines: Sequence[bytes], language: str = languages.MUL) -> str:
    """The encoding that lines, which are not UTF-8, are probably text in, by a name of Python; empty when none is likely.

    Of those that are usual for the language with this code, and what uchardet guesses, it is the one in which the least looks
    wrong, or what uchardet guesses where much looks wrong in all. All lines can be decoded in it; the last one may be cut.
    """
    data = b"\n".join(lines)[:GUESSED_BYTES]
    single = languages.find(language)
    usual = _usual(single)
    if sum(byte > 127 for byte in data) < FEW:
        return next((name for name in usual or (COMMON,) if decoded(data, name) is not None), "")
    guess = _guessed(data)
    found = {name: text for name in dict.fromkeys((*usual, guess)) if name and (text := decoded(data, name))}
    wrong = {name: _odd_frac(text, single) for name, text in found.items()} if usual else {}
    best = min(wrong, key=lambda name: wrong[name], default="")  # of equal ones the commoner
    if best and wrong[best] <= MOST_ODD:
        return best
    return guess if guess in found else ""


def not_utf8(lines: Sequence[bytes], language: str = languages.MUL) -> str:
    """What is wrong with lines that are not UTF-8, and what to do."""
    found = likely(lines, language)
    named = f"it looks like {found}; set encoding: {found}, if all of the source is, or " if found else ""
    return f"not UTF-8 text: {named}convert it to UTF-8"


def _usual(language: languages.Language) -> tuple[str, ...]:
    return tuple((_OF_LANGUAGE.get(language.code) or _OF_SCRIPT.get(language.code[4:], "")).split())


def _guessed(data: bytes) -> str:
    """What uchardet takes bytes for.

    Of 20 texts of 150 bytes in 12 languages and 17 encodings it names an encoding that reads them right for 18, chardet 6 for
    17, and charset-normalizer 3 for 12.
    """
    named = cchardet.detect(data)["encoding"] or ""
    try:
        found = codecs.lookup(named).name
    except LookupError:  # Python does not have it
        return ""
    return READ_AS.get(found, found)


def decoded(data: bytes, encoding: str) -> str | None:
    """The text of bytes, of which the last may be a part of a letter; None when they are not in this encoding."""
    try:
        return codecs.getincrementaldecoder(encoding)().decode(data)
    except (UnicodeDecodeError, LookupError):
        return None


def _odd_frac(text: str, language: languages.Language) -> float:
    """Share of the letters and signs that are not ASCII which look wrong in a language.

    These are letters that it does not have, capital ones after small ones, signs in words, and signs that are rare; all, where
    text in Latin script has fewer letters of ASCII than others.
    """
    own, found, odd = _letters(language), 0, 0
    letters = [sign.isascii() for sign in text if sign.isalpha()]
    if language.code.endswith("_Latn") and sum(letters) < len(letters) / 2:
        return 1.0
    for before, sign, after in zip(" " + text, text, text[1:] + " ", strict=False):
        if sign.isascii():
            continue
        found += 1
        if sign.isalpha() or unicodedata.category(sign)[0] == "M":
            odd += not own.match(sign) or (sign.isupper() and before.islower())
        elif before.isalpha() and after.isalpha():
            odd += sign not in _INSIDE and not _wide(sign)
        else:
            odd += sign not in _ORDINARY and not _wide(sign)
    return odd / max(1, found)


def _wide(sign: str) -> bool:
    return "\u3000" <= sign <= "\u303f" or "\uff01" <= sign <= "\uff5e"


def _letters(language: languages.Language) -> "regex.Pattern[str]":
    """What matches the letters of a language that are not ASCII."""
    script = language.code[4:]
    if script == "Latn":
        letters = _LETTERS.get(language.code, _WESTERN)
        return regex.compile(f"[{letters}{letters.upper()}]")
    scripts = {"Hans": ["Han"], "Hant": ["Han"], "Hang": ["Hang", "Han"]}.get(script) or verdict.parts(script)
    return regex.compile("".join(["[", r"\p{M}", *(rf"\p{{Script={part}}}" for part in scripts), "]"]))
