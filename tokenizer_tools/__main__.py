"""`python -m tokenizer_tools`: audit, curve, extend and compare tokenizers, without langext."""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn

from tokenizer_tools import audit, byte_bpe, extension, kinds, protect, texts
from tokenizer_tools.kinds import Kind
from tokenizer_tools.vocabulary import ids, next_id, slots
from tokenizer_tools.words import telling, told

HELDOUT = 20
"""One document of so many is not learnt from, but measured."""
PICTURE = "write the curve here (.svg, .png)"


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def _file(text: str) -> tuple[str, Path]:
    code, equals, name = text.partition("=")
    if not (code and equals and name):
        raise argparse.ArgumentTypeError(f"expected LANGUAGE=FILE, got {text!r}")
    return code, Path(name)


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"expected a number from 1 on, got {text!r}")
    return int(text)


def parser() -> argparse.ArgumentParser:
    """What the commands take."""
    top = _Parser(prog="python -m tokenizer_tools", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True, parser_class=_Parser)
    several = "LANGUAGE=FILE, .txt (a document a paragraph) or .jsonl (field text), also .gz; give it once for each file"

    def command(name: str, about: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=about, description=about)
        made.add_argument("base", type=Path, help="folder of a tokenizer in Hugging Face format")
        made.add_argument("--json", action="store_true", help="print JSON")
        return made

    one = command("audit", "how well a tokenizer writes languages, and whether to extend it for one of them")
    one.add_argument("--text", type=_file, action="append", required=True, metavar="LANGUAGE=FILE", help=several)
    one.add_argument("--new", help="the new language; without it the one with most tokens per word")
    one.add_argument("--picture", type=Path, help=PICTURE)
    grow = command("extend", "write a tokenizer with new tokens, and new_tokens.json: id -> ids of the base")
    line = command("curve", "what 1,000 to 8,000 new tokens save and disturb, with protection and without")
    for made in (grow, line):
        made.add_argument("--text", type=_file, action="append", required=True, metavar="LANGUAGE=FILE", help=several)
        made.add_argument("--protect", type=Path, action="append", default=[], metavar="FILE", help="text that stays as it is")
        made.add_argument("--min-count", type=int, default=10, help="least occurrences of a pair that is joined (%(default)s)")
    grow.add_argument("--new-tokens", default="auto", help="how many, or auto (%(default)s)")
    grow.add_argument("--round-to", type=_positive, default=1, help="make the size of the vocabulary a multiple of this")
    grow.add_argument("--reuse-slots", action="store_true", help="take ids of reserved tokens first, as <unused0>")
    grow.add_argument("--out", type=Path, required=True, help="new folder")
    line.add_argument("--unseen", type=Path, action="append", default=[], metavar="FILE", help="text to compare ids on")
    line.add_argument("--picture", type=Path, help=PICTURE)
    two = command("compare", "how a base and its extended tokenizer write text")
    two.add_argument("extended", type=Path, help="folder of the extended tokenizer")
    two.add_argument("--text", type=_file, action="append", required=True, metavar="LANGUAGE=FILE", help=several)
    return top


def main(words: Sequence[str] | None = None) -> int:
    """Run a command; 0, or 2 with one line on stderr for what was asked or given wrongly."""
    try:
        given = parser().parse_args(words)
        COMMANDS[given.command](given)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def _tokenizer(folder: Path) -> Any:
    """A tokenizer of a local folder. Raises ValueError when there is none that can be read."""
    from transformers import AutoTokenizer

    if not (folder / "tokenizer.json").is_file():
        raise ValueError(f"{folder}: no tokenizer.json here")
    try:
        found = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # tokenizers raises bare exceptions
        raise ValueError(f"{folder}: the tokenizer cannot be read: {error}") from None
    return found


def _by_language(pairs: Sequence[tuple[str, Path]]) -> dict[str, list[str]]:
    """Language -> its documents. Raises ValueError when one has none."""
    found: dict[str, list[str]] = {}
    for code, path in pairs:
        found.setdefault(code, []).extend(texts.read(path))
    if empty := [code for code, documents in found.items() if not documents]:
        raise ValueError(f"{empty[0]}: no documents in its files")
    return found


def _parted(documents: Sequence[str]) -> tuple[list[str], list[str]]:
    """(what is learnt from, what is measured). Raises ValueError for too few documents."""
    if len(documents) < 2:
        raise ValueError("one document is too little: it cannot be learnt from and measured at once")
    return [text for i, text in enumerate(documents) if i % HELDOUT], list(documents[::HELDOUT])


def _counts(kind: Kind, base: Any, documents: Sequence[str]) -> Any:
    """The words of documents; stderr tells how far the counting is."""
    size = sum(len(text.encode()) for text in documents)
    return kind.word_counts(base.backend_tokenizer, told(documents, telling(_say), size))


@dataclass(frozen=True)
class _Learner:
    """Learns so many new tokens, in the order of their ids."""

    kind: Kind
    base: Any
    words: Any
    """Of text in the new language."""
    apart: Any
    """What is guarded of protected text."""
    min_count: int

    def __call__(self, number: int) -> list[Any]:
        state, told = self.base.backend_tokenizer, telling(_say)
        return list(self.kind.learn(state, self.words, number, self.min_count, self.apart, progress=told))


def _learner(kind: Kind, base: Any, new: Sequence[str], guarded: Sequence[str], min_count: int) -> _Learner:
    apart = kind.guarded(base.backend_tokenizer, _counts(kind, base, [*protect.template(base), *guarded]))
    return _Learner(kind, base, _counts(kind, base, new), apart, min_count)


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _advised(
    kind: Kind, base: Any, folder: Path, new: Sequence[str], originals: dict[str, list[str]], min_count: int
) -> audit.Advice:
    """The advice for a new language. A part of all text is measured, and neither learnt from nor protected for it."""
    learn, measured = _parted(new)
    kept = {code: _parted(documents) for code, documents in originals.items()}
    near = audit.close(audit.use(base, measured), [audit.use(base, unseen) for _, unseen in kept.values()])
    if near:
        return near
    guarded = [text for seen, _ in kept.values() for text in seen]
    learner = _learner(kind, base, learn, guarded, max(min_count, audit.OCCURRENCES))
    unseen = [text for _, rest in kept.values() for text in rest]
    points = audit.curve(base, audit.grown(kind, base, learner(audit.SIZES[-1]), learner), measured, unseen)
    return audit.advise(points, audit.Matrices.of(folder))


def _audit(given: argparse.Namespace) -> None:
    base, found = _tokenizer(given.base), _by_language(given.text)
    uses = {code: audit.use(base, documents) for code, documents in found.items()}
    new = given.new or max(uses, key=lambda code: uses[code].fertility)
    if new not in uses:
        raise ValueError(f"--new {new}: no text of it; there is {', '.join(uses)}")
    others = {code: documents for code, documents in found.items() if code != new}
    try:
        kind = kinds.of(base)
    except ValueError as error:
        advice = audit.Advice(0, str(error))
    else:
        advice = _advised(kind, base, given.base, found[new], others, 2)
    if given.picture:
        _draw(given.picture, {new: advice.points})
    if given.json:
        print(json.dumps({
            "languages": {code: audit.plain(each) for code, each in uses.items()}, "new": new,
            "new_tokens": advice.new_tokens, "reason": advice.reason, "curve": [audit.plain(p) for p in advice.points],
        }, ensure_ascii=False))  # fmt: skip
        return
    rows = [
        (code, f"{u.documents:,}", f"{u.fertility:.2f}", f"{u.per_character:.2f}" if u.per_character else "-",
         f"{u.bytes_per_token:.2f}", f"{u.part_share:.2%}", f"{u.unknown_share:.2%}", f"{u.lost_share:.2%}",
         f"{u.unused_share:.1%}")
        for code, u in uses.items()
    ]  # fmt: skip
    heads = (
        "language",
        "documents",
        "tokens/word",
        "tokens/char",
        "bytes/token",
        "parts of chars",
        "unknown",
        "lost",
        "never used",
    )
    _table(heads, rows)
    if advice.points:
        _table(CURVE, [_curve_row(new, point) for point in advice.points])
    print(f"{new}: {advice.text}")


CURVE = ("language", "new tokens", "bytes/token", "tokens/word", "documents as before", "original tokens")


def _curve_row(name: str, point: audit.Point) -> tuple[str, ...]:
    return (
        name, f"{point.new_tokens:,}", f"{point.bytes_per_token:.3f}", f"{point.fertility:.2f}", f"{point.identical:.2%}",
        f"{point.original_tokens - 1:+.4%}",
    )  # fmt: skip


def _curve(given: argparse.Namespace) -> None:
    base, found = _tokenizer(given.base), _by_language(given.text)
    guarded = [text for path in given.protect for text in texts.read(path)]
    if given.unseen:
        unseen = [text for path in given.unseen for text in texts.read(path)]
    elif guarded:
        guarded, unseen = _parted(guarded)
    else:
        raise ValueError("give --protect or --unseen: without text of an original language there is nothing to disturb")
    curves: dict[str, list[audit.Point]] = {}
    kind, state = kinds.of(base), base.backend_tokenizer
    free, apart = kind.guarded(state, _counts(kind, base, [])), kind.guarded(state, _counts(kind, base, guarded))
    for code, documents in found.items():
        seen, measured = _parted(documents)
        counts = _counts(kind, base, seen)
        ways = {code: apart, f"{code} unprotected": free} if guarded else {f"{code} unprotected": free}
        for name, kept in ways.items():
            learner = _Learner(kind, base, counts, kept, given.min_count)
            curves[name] = audit.curve(base, audit.grown(kind, base, learner(audit.SIZES[-2]), learner), measured, unseen)
    if given.picture:
        _draw(given.picture, curves)
    if given.json:
        print(json.dumps({name: [audit.plain(point) for point in points] for name, points in curves.items()}))
    else:
        _table(CURVE, [_curve_row(name, point) for name, points in curves.items() for point in points])


def _extend(given: argparse.Namespace) -> None:
    if given.out.exists():
        raise ValueError(f"{given.out}: is there already; name a new folder")
    base, found = _tokenizer(given.base), _by_language(given.text)
    new = list(chain.from_iterable(found.values()))
    guarded = [text for path in given.protect for text in texts.read(path)]
    kind = extension.kind_of(base, given.base)
    if given.new_tokens == "auto":
        originals = {"protected": guarded} if guarded else {}
        advice = _advised(kind, base, given.base, new, originals, given.min_count)
        number, least = advice.new_tokens, max(given.min_count, audit.OCCURRENCES)
        if not given.json:
            print(advice.text)
    else:
        number, least = _number(given.new_tokens), given.min_count
    learner = _learner(kind, base, new, guarded, least)
    tokens = learner(number) if number else []
    if number and not tokens:
        raise ValueError(f"nothing that may become a token occurs {least} times")
    given_ids = ids(base, len(tokens), slots(base, extension.named(given.base)) if given.reuse_slots else (), given.round_to)
    if tokens and not given_ids:
        raise ValueError(f"--round-to {given.round_to} leaves no room for new tokens")
    tokens = learner.kind.first(tokens, len(given_ids), learner)
    _write(given, learner, tokens, given_ids, new, guarded)
    sorts = Counter(texts.made_of(byte_bpe.plain(token) if not kind.in_model_file else token.text) for token in tokens)
    reused = sum(i < next_id(base) for i in given_ids)
    if given.json:
        print(json.dumps({"new_tokens": len(tokens), "reused_slots": reused, "made_of": sorts, "out": str(given.out)}))
        return
    made_of = ", ".join(f"{number:,} {sort}" for sort, number in sorts.most_common()) or "none"
    print(f"{len(tokens):,} new tokens ({made_of}), {reused:,} of them with ids of reserved tokens, in {given.out}")


def _write(
    given: argparse.Namespace, learner: _Learner, tokens: Sequence[Any], ids: Sequence[int], new: Sequence[str],
    guarded: Sequence[str],
) -> None:  # fmt: skip
    """Write the tokenizer with the new tokens, and the ids that spell them. Raises ValueError when it is not sound."""
    base = learner.base
    extension.write(
        given.out, given.base, learner.kind, base, tokens, read=_tokenizer, words=learner.words,
        texts=[text[:2000] for text in new[:1000]], protected=[*protect.template(base), *guarded], ids=ids,
    )  # fmt: skip
    spelt = {str(i): token.base_ids for i, token in zip(ids, tokens, strict=True)}
    (given.out / "new_tokens.json").write_text(json.dumps(spelt), encoding="utf-8")


def _compare(given: argparse.Namespace) -> None:
    base, bigger = _tokenizer(given.base), _tokenizer(given.extended)
    had, has = base.get_vocab(), bigger.get_vocab()
    spare = set(slots(base))
    if moved := next((text for text, i in had.items() if has.get(text) != i and i not in spare), None):
        raise ValueError(f"{given.extended}: {moved!r} has another id than in the base, so this does not extend it")
    rows, plain = [], {}
    for code, documents in _by_language(given.text).items():
        before, after = (audit.curve(base, {0: each}, documents, documents)[0] for each in (base, bigger))
        plain[code] = {"base": audit.plain(before), "extended": audit.plain(after)}
        rows.append((
            code, f"{len(documents):,}", f"{after.identical:.2%}",
            f"{before.bytes_per_token:.3f} -> {after.bytes_per_token:.3f}", f"{before.fertility:.2f} -> {after.fertility:.2f}",
        ))  # fmt: skip
    if given.json:
        print(json.dumps(plain))
    else:
        _table(("language", "documents", "encoded as before", "bytes/token", "tokens/word"), rows)


def _number(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise ValueError(f"--new-tokens: expected a number from 1 on, or auto, got {text!r}")
    return int(text)


def _draw(path: Path, curves: dict[str, list[audit.Point]]) -> None:
    from tokenizer_tools import picture

    picture.draw(path, curves)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns of text, the first on the left and the others on the right."""
    wide = [max(len(row[i]) for row in [heads, *rows]) for i in range(len(heads))]
    for row in [heads, *rows]:
        print("  ".join(cell.ljust(w) if not i else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, wide, strict=True))))
    print()


COMMANDS = {"audit": _audit, "extend": _extend, "curve": _curve, "compare": _compare}


if __name__ == "__main__":
    sys.exit(main())
