"""How many tokens stage extend_tokenizer adds: what was asked, rounded, or what an audit of the base's tokenizer advises.

Rule: the audit reads training text that nothing is learnt from. Held-out text reports, and chooses nothing.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

from langext.artifacts import Corpus, Model
from langext.console import say, warn
from langext.context import Context
from langext.errors import ConfigError
from langext.summaries import SizeCompared, VocabularyAdvice

if TYPE_CHECKING:
    from tokenizer_tools.audit import Advice
    from tokenizer_tools.kinds import Kind

Number = int | Literal["auto"]
AUDITED_BYTES = 2_000_000
"""Of each language, that the audit reads: as many as a difference of 1 % needs many times over."""


def most(asked: Number) -> int:
    """The most tokens that can be added."""
    from tokenizer_tools import audit

    return audit.SIZES[-1] if asked == "auto" else asked


def least(asked: Number, min_count: int) -> int:
    """How often a pair must occur to become a token."""
    from tokenizer_tools import audit

    return max(min_count, audit.OCCURRENCES) if asked == "auto" else min_count


def audited(
    asked: Number, training: Callable[[Sequence[str]], Iterable[str]], ctx: Context, corpus: Corpus
) -> dict[str, list[str]]:
    """For `auto`, the text of each language that the audit reads; else nothing.

    Of the new language one text in `HELDOUT` of what `training` gives, from the start. Original languages without training
    text are read in held-out text.
    """
    from langext.data import documents
    from tokenizer_tools.learner import HELDOUT

    if asked != "auto":
        return {}
    found = {ctx.language: _first(islice(training([ctx.language]), 0, None, HELDOUT))}
    for code in _originals(ctx):
        found[code] = _first(training([code])) or documents.heldout_texts(corpus, [code])
    return found


def rest(audited: Mapping[str, Sequence[str]], training: Iterable[str]) -> Iterator[str]:
    """The training text of the new language that the audit does not read."""
    from tokenizer_tools.learner import HELDOUT

    return (text for number, text in enumerate(training) if not audited or number % HELDOUT)


def _first(texts: Iterable[str]) -> list[str]:
    """Texts from the start, until they have at least `AUDITED_BYTES`."""
    found, size = [], 0
    for text in texts:
        found.append(text)
        size += len(text.encode())
        if size >= AUDITED_BYTES:
            break
    return found


def close(audited: Mapping[str, Sequence[str]], ctx: Context, base: Any) -> VocabularyAdvice | None:
    """For `auto`, the advice to leave the vocabulary as it is, if the base writes the new language well already.

    Raises ConfigError when there is no text of it.
    """
    from tokenizer_tools import audit

    if not audited:
        return None
    uses = {code: audit.use(base, texts) for code, texts in audited.items()}
    new = uses.pop(ctx.language)
    if not new.tokens:
        raise ConfigError(f"new_tokens: auto needs training text of {ctx.language}, and there is none")
    found = audit.close(new, [other for other in uses.values() if other.tokens])
    return _recorded(found) if found else None


@dataclass(frozen=True)
class Wanted:
    """What the stage was asked for."""

    new_tokens: Number
    min_count: int
    round_to: int
    spare: Sequence[int] = ()
    """Ids of reserved tokens that are given to new ones first."""
    rows: int = 0
    """Of the base's matrices, with padding."""


def chosen(
    wanted: Wanted,
    ctx: Context,
    model: Model,
    corpus: Corpus,
    base: Any,
    kind: "Kind",
    learn: Callable[[int], list[Any]],
    audited: Mapping[str, Sequence[str]],
) -> tuple[dict[int, Any], VocabularyAdvice | None]:
    """The new tokens by their ids, as many as there are to be, and the advice for `auto`, which can be to add none.

    `learn` gives the best tokens, at most as many as it is asked for. Raises ConfigError when a number was asked for and there
    is no token, and when rounding leaves none.
    """  # fmt: skip
    from tokenizer_tools import vocabulary

    learnt = learn(most(wanted.new_tokens))
    number, record = len(learnt), None
    if wanted.new_tokens == "auto":
        record = _advised(ctx, model, corpus, base, kind, learnt, learn, audited[ctx.language])
        number = record.new_tokens
    elif not learnt:
        raise ConfigError(f"no pair of tokens occurs {wanted.min_count} times in the text; give more text or lower min_count")
    elif number < wanted.new_tokens:
        say(f"  only {number} of {wanted.new_tokens} tokens: no other pair occurs {wanted.min_count} times within a word")
    ids = vocabulary.ids(base, number, wanted.spare, wanted.round_to, wanted.rows)
    if idle := vocabulary.unrounded(base, ids, wanted.round_to, wanted.rows):
        warn(f"round_to: {idle}")
    if number and not ids:
        few = f"too few tokens were found to reach the next multiple of {wanted.round_to}"
        if record is None:
            raise ConfigError(f"round_to: {few}")
        record = record.model_copy(update={"new_tokens": 0, "reason": few})
    return dict(zip(ids, kind.first(learnt, len(ids), learn), strict=True)) if ids else {}, record


def _advised(
    ctx: Context,
    model: Model,
    corpus: Corpus,
    base: Any,
    kind: "Kind",
    learnt: Sequence[Any],
    learn: Callable[[int], list[Any]],
    new: Sequence[str],
) -> VocabularyAdvice:
    from langext.data import documents
    from langext.models import loading
    from tokenizer_tools import audit

    try:
        grown = audit.grown(kind, base, learnt, learn)
    except ValueError as error:
        raise ConfigError(f"{base.name_or_path}: the vocabulary cannot be extended: {error}") from None
    kept = documents.heldout_texts(corpus, _originals(ctx))  # reported, and not chosen by
    points = audit.curve(base, grown, new, {"held-out text": kept})
    advice = audit.advise(points, audit.Matrices.of(loading.read_record(model).base))
    say(f"  {advice.text}")
    return _recorded(advice)


def _originals(ctx: Context) -> list[str]:
    return [code for code in ctx.languages if code != ctx.language]


def _recorded(advice: "Advice") -> VocabularyAdvice:
    compared = [
        SizeCompared(new_tokens=each.new_tokens, bytes_per_token=each.bytes_per_token, identical_documents_frac=each.identical)
        for each in advice.points
    ]
    return VocabularyAdvice(new_tokens=advice.new_tokens, reason=advice.reason, compared=compared)
