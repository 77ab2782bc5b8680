"""`python -m tokenizer_tools`: audit, curve, extend and compare tokenizers, without langext."""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn

from tokenizer_tools import audit, byte_bpe, protect, texts
from tokenizer_tools.vocabulary import NewToken, next_id, rounded, slots
from tokenizer_tools.words import Progress

HELDOUT = 20
"""One document of so many is not learnt from, but measured."""
PICTURE = "write the curve here (.svg, .png)"
SECONDS = 10
"""Between two lines that tell how far the work is."""


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def _file(text: str) -> tuple[str, Path]:
    code, equals, name = text.partition("=")
    if not (code and equals and name):
        raise argparse.ArgumentTypeError(f"expected LANGUAGE=FILE, got {text!r}")
    return code, Path(name)


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
    grow.add_argument("--round-to", type=int, default=1, help="make the size of the vocabulary a multiple of this")
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


def _telling() -> Progress:
    """A `Progress` that writes a line to stderr every ten seconds, with the time that is left where the end is known."""
    began, told, before = 0.0, 0.0, ("", 0)

    def tell(what: str, done: int, total: int) -> None:
        nonlocal began, told, before
        now = time.monotonic()
        if (what, done) < before or what != before[0]:
            began, told = now, now  # other work has begun
        before = (what, done)
        if now - told < SECONDS:
            return
        told = now
        left = f", {(now - began) * (total - done) / done:.0f} s left" if total and done else ""
        print(f"  {what}: {done:,}{f' of {total:,}' if total else ''}{left}", file=sys.stderr)

    return tell


def _counts(base: Any, documents: Sequence[str], progress: Progress) -> Any:
    """The words of documents. Raises ValueError for a kind of tokenizer that cannot be extended."""
    return byte_bpe.word_counts(base.backend_tokenizer, documents, progress, sum(len(text.encode()) for text in documents))


def _apart(base: Any, guarded: Sequence[str], progress: Progress) -> set[tuple[str, str]]:
    """The pairs of tokens that protected text keeps apart."""
    return protect.pairs(base.backend_tokenizer, _counts(base, guarded, progress))


def _learnt(
    base: Any, new: Sequence[str], guarded: Sequence[str], number: int, min_count: int, progress: Progress
) -> list[NewToken]:
    """The new tokens, in the order of their ids."""
    apart = _apart(base, guarded, progress)
    return byte_bpe.continue_merges(base.backend_tokenizer, _counts(base, new, progress), number, min_count, apart, progress)


def _grown(base: Any, found: Sequence[NewToken], sizes: Sequence[int]) -> dict[int, Any]:
    """Number of new tokens -> tokenizer. The first n tokens that were learnt are those that n alone would have given."""
    return {n: byte_bpe.extended(base, found[:n]) for n in sizes}


def _advised(
    base: Any, folder: Path, new: Sequence[str], originals: dict[str, list[str]], progress: Progress, min_count: int
) -> tuple[audit.Advice, list[NewToken]]:
    """The advice for a new language, and the tokens that it was found with (none when it is to leave the vocabulary)."""
    learn, measured = _parted(new)
    kept = {code: _parted(documents) for code, documents in originals.items()}
    near = audit.close(audit.use(base, measured), [audit.use(base, unseen) for _, unseen in kept.values()])
    if near:
        return near, []
    guarded = [text for seen, _ in kept.values() for text in seen]
    least = max(min_count, audit.OCCURRENCES)
    found = _learnt(base, learn, guarded, audit.SIZES[-1], least, progress)
    unseen = [text for _, rest in kept.values() for text in rest]
    points = audit.curve(base, _grown(base, found, audit.sizes(len(found))), measured, unseen)
    return audit.advise(points, audit.Matrices.of(folder)), found


def _audit(given: argparse.Namespace) -> None:
    base, found = _tokenizer(given.base), _by_language(given.text)
    uses = {code: audit.use(base, documents) for code, documents in found.items()}
    new = given.new or max(uses, key=lambda code: uses[code].fertility)
    if new not in uses:
        raise ValueError(f"--new {new}: no text of it; there is {', '.join(uses)}")
    progress = _telling()
    others = {code: documents for code, documents in found.items() if code != new}
    if reason := byte_bpe.obstacle(base.backend_tokenizer):
        advice = audit.Advice(0, reason)
    else:
        advice, _ = _advised(base, given.base, found[new], others, progress, 2)
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
         f"{u.bytes_per_token:.2f}", f"{u.part_share:.2%}", f"{u.unknown_share:.2%}", f"{u.unused_share:.1%}")
        for code, u in uses.items()
    ]  # fmt: skip
    heads = ("language", "documents", "tokens/word", "tokens/char", "bytes/token", "parts of chars", "unknown", "never used")
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
    progress = _telling()
    apart = _apart(base, guarded, progress)
    for code, documents in found.items():
        learn, measured = _parted(documents)
        counts = _counts(base, learn, progress)
        ways = {code: apart, f"{code} unprotected": set()} if guarded else {f"{code} unprotected": set()}
        for name, kept in ways.items():
            tokens = byte_bpe.continue_merges(base.backend_tokenizer, counts, audit.SIZES[-2], given.min_count, kept, progress)
            curves[name] = audit.curve(base, _grown(base, tokens, audit.sizes(len(tokens))), measured, unseen)
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
    progress = _telling()
    if given.new_tokens == "auto":
        originals = {"protected": guarded} if guarded else {}
        advice, tokens = _advised(base, given.base, new, originals, progress, given.min_count)
        if not given.json:
            print(advice.text)
        number = advice.new_tokens
    else:
        number = _number(given.new_tokens)
        tokens = _learnt(base, new, guarded, number, given.min_count, progress)
    spare = slots(base) if given.reuse_slots else []
    first = next_id(base)
    tokens = tokens[: min(number, len(tokens))]
    if len(tokens) > len(spare):
        tokens = tokens[: len(spare) + rounded(len(tokens) - len(spare), first, given.round_to)]
    if number and not tokens:
        raise ValueError(
            f"no pair occurs {given.min_count} times, or --round-to {given.round_to} leaves no room for new tokens"
        )
    ids = [*spare, *range(first, first + len(tokens))][: len(tokens)]
    byte_bpe.extended(base, tokens, ids).save_pretrained(given.out)
    spelt = {str(i): token.base_ids for i, token in zip(ids, tokens, strict=True)}
    (given.out / "new_tokens.json").write_text(json.dumps(spelt), encoding="utf-8")
    kinds = {kind: sum(byte_bpe.kind(token) == kind for token in tokens) for kind in ("letters", "digits", "marks", "part")}
    made = {"new_tokens": len(tokens), "reused_slots": sum(i < first for i in ids), "kinds": kinds, "out": str(given.out)}
    made_of = ", ".join(f"{number:,} {kind}" for kind, number in kinds.items() if number)
    told = (
        f"{len(tokens):,} new tokens ({made_of}), {made['reused_slots']:,} of them with ids of reserved tokens, in {given.out}"
    )
    print(json.dumps(made) if given.json else told)


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
