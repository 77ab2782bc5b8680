"""The file `tokenizer.model` of SentencePiece, with new pieces. The id of a piece is its place, so new ones come last.

The form of the file: https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto
"""

from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import sentencepiece
from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2

from tokenizer_tools.texts import encode
from tokenizer_tools.vocabulary import NewPiece

NAME = "tokenizer.model"
_Proto: Any = vars(sentencepiece_model_pb2)["ModelProto"]  # made when it is imported, so no type checker sees it
NORMAL, CONTROL, USER_DEFINED, BYTE = 1, 3, 4, 6
UNIGRAM, BPE = 1, 2
KINDS = {UNIGRAM: "Unigram", BPE: "BPE"}


def obstacle(path: Path, base: Any) -> str:
    """Why the file at `path` cannot get the new pieces of the tokenizer `base`; empty when it can.

    Raises ValueError when it is no file of SentencePiece.
    """
    proto, model = _read(path), type(base.backend_tokenizer.model).__name__
    if (kind := KINDS.get(proto.trainer_spec.model_type)) != model:
        named = {"Unigram": "a unigram model", "BPE": "BPE"}.get(str(kind), "neither BPE nor a unigram model")
        return f"{NAME} is {named}, and {type(base).__name__} of tokenizer_config.json reads it as {model}"
    vocab = base.get_vocab()
    for i, piece in enumerate(proto.pieces):
        if piece.type in (NORMAL, BYTE) and vocab.get(piece.piece) != i:
            return f"{NAME} gives the piece {piece.piece!r} the id {i}, and the tokenizer {vocab.get(piece.piece)}"
    return _two_ways(path, proto, base)


def _two_ways(path: Path, proto: Any, base: Any) -> str:
    """How the file and the tokenizer read all text in two ways; empty when they read some alike."""
    every = {piece.piece.replace("▁", " ").strip() for piece in proto.pieces if piece.type == NORMAL}
    texts = sorted(every - {""}, key=lambda text: (-len(text), text))[:20]
    slow = sentencepiece.SentencePieceProcessor(model_file=str(path)).encode(texts)
    fast = encode(base, texts)
    if not texts or any(a == b for a, b in zip(slow, fast, strict=True)):
        return ""
    prefix = str(proto.normalizer_spec.add_dummy_prefix).lower()
    return (
        f"{NAME} and {type(base).__name__} of tokenizer_config.json encode text in two ways: {texts[0]!r} is {slow[0]} and "
        f"{fast[0]}. {NAME} has add_dummy_prefix: {prefix}; write add_prefix_space: {prefix} into tokenizer_config.json if "
        f"that is the difference, or take the base without {NAME}"
    )


def _read(path: Path) -> Any:
    proto = _Proto()
    try:
        proto.ParseFromString(path.read_bytes())
    except DecodeError:
        raise ValueError(f"{NAME} is no file of SentencePiece") from None
    return proto


def extended(path: Path, base: Any, found: Sequence[NewPiece], ids: Sequence[int]) -> bytes:
    """The content of the file at `path`, the base's, with new pieces that have these ids, ascending.

    Pieces of the file that have such an id, reserved ones, are gone then. Tokens of the base that only its tokenizer.json has
    get a place between; so do ids that nobody has, under a name that no text becomes. Everything else is kept.
    """
    proto, vocab = _read(path), base.get_vocab()
    by_id, special = {i: text for text, i in vocab.items()}, {str(token) for token in base.all_special_tokens}
    special |= {token.content for token in base.added_tokens_decoder.values() if token.special}
    lowest = min((piece.score for piece in proto.pieces if piece.type == NORMAL), default=0.0)
    for i in range(len(proto.pieces), max(ids, default=-1) + 1):
        text = by_id.get(i, f"<no token {i}>")
        kind = CONTROL if text in special or i not in by_id else USER_DEFINED
        proto.pieces.add(piece=text, score=0.0, type=kind)
    # The file holds scores in 24 bits, and Mistral has pieces of -1e9: one less would be the same number there.
    step = max(1.0, abs(lowest) * 2**-20)
    for k, (i, piece) in enumerate(zip(ids, found, strict=True)):
        place = proto.pieces[i]
        place.score = piece.score if proto.trainer_spec.model_type == UNIGRAM else lowest - step * (k + 1)
        place.piece, place.type = piece.text, NORMAL
    proto.trainer_spec.vocab_size = len(proto.pieces)
    return proto.SerializeToString()


def difference(before: tuple[Path, Any], after: tuple[Path, Any], texts: Iterable[str]) -> str:
    """A text that sentencepiece and the fast tokenizer encode alike before the extension and not after it; empty when none.

    Both arguments are a file and the fast tokenizer that goes with it. This is a measurement: it says nothing of other texts.
    """
    pairs = [(sentencepiece.SentencePieceProcessor(model_file=str(path)), fast) for path, fast in (before, after)]
    left = iter(texts)
    while batch := list(islice(left, 256)):
        alike = []
        for slow, fast in pairs:
            alike.append([a == b for a, b in zip(slow.encode(batch), encode(fast, batch), strict=True)])
        for text, was, still in zip(batch, *alike, strict=True):
            if was and not still:
                return text
    return ""
