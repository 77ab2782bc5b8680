"""Encode text so that it stays text. Needs nothing of langext, because a copy travels with exports.

Rule: `<|im_start|>` or `<s>` in a text become the tokens of their letters, never the special token of that name.
"""

import re
from collections.abc import Sequence
from typing import Any

BYTE = re.compile("<0x[0-9A-F]{2}>")
"""Name of the token for a byte, of vocabularies that write unknown letters in bytes."""


def own_start(tokenizer: Any) -> list[int]:
    """The start token that the tokenizer itself puts before a text, alone in a list; [] when it puts none there."""
    plain, whole = tokenizer("a", add_special_tokens=False).input_ids, tokenizer("a").input_ids
    return whole[:1] if whole[:1] != plain[:1] else []


def encode_text(tokenizer: Any, texts: Sequence[str], special: set[int] | None = None) -> list[list[int]]:
    """Token ids of each text alone, without a start token. Text that spells a special token does not become that token.

    `special` are the `special_ids` of the tokenizer, for callers that know them already.
    """
    if not texts:
        return []
    rows: list[list[int]] = tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True).input_ids
    special = special_ids(tokenizer) if special is None else special
    return [row if special.isdisjoint(row) else _spelled_out(tokenizer, row, special) for row in rows]


def special_ids(tokenizer: Any) -> set[int]:
    """Ids of the tokens that steer a model (start, end, turns of a chat); not those for unknown text and for bytes."""
    added = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    named = {i: tokenizer.convert_ids_to_tokens(i) for i in (added | set(tokenizer.all_special_ids)) - {tokenizer.unk_token_id}}
    # Single letters and bytes are text wherever they stand, also where a tokenizer flags them as special.
    return {i for i, name in named.items() if len(name) > 1 and not BYTE.fullmatch(name)}


def _spelled_out(tokenizer: Any, row: Sequence[int], special: set[int]) -> list[int]:
    """The ids of a text, with the ids of its letters (or else their bytes) in place of each special token.

    A unigram or word-level model holds the names of special tokens among its pieces, and finds them in the text that its
    normalizer makes. Of a letter that the tokenizer has no token for at all, nothing is left.
    """
    unknown = {None, tokenizer.unk_token_id}
    ids: list[int] = []
    for i in row:
        if i not in special:
            ids.append(i)
            continue
        for letter in tokenizer.convert_ids_to_tokens(i):
            found = [tokenizer.convert_tokens_to_ids(letter)]
            if found[0] in unknown:
                octets = [tokenizer.convert_tokens_to_ids(f"<0x{byte:02X}>") for byte in letter.encode()]
                found = octets if unknown.isdisjoint(octets) else found
            ids += [part for part in found if part is not None and part not in special]
    return ids
