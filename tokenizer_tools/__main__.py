"""`python -m tokenizer_tools`: audit, curve, extend and compare tokenizers, without langext."""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn

from tokenizer_tools import audit, byte_bpe, extension, folder, forms, kinds, protect, roles, tables, texts
from tokenizer_tools.learner import Learner, TooFew, advised, counts, learner, parted, say
from tokenizer_tools.vocabulary import ids, next_id, slots, unrounded

PROOF = "protected.json"
"""Beside new_tokens.json: of each set of protected texts how many documents were compared, and how many are as before."""
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


def _positive(text: str, least: int = 1) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"expected a number from {least} on, got {text!r}")
    return int(text)


def _several(text: str) -> int:
    return _positive(text, 2)


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
    grow = command("extend", f"write a tokenizer with new tokens, new_tokens.json (id -> ids of the base) and {PROOF}")
    line = command("curve", "what 1,000 to 8,000 new tokens save and disturb, with protection and without")
    of = {grow: f"{several}; text of other languages than --new is protected", line: f"{several}; each is a new language"}
    for made, meant in of.items():
        made.add_argument("--text", type=_file, action="append", required=True, metavar="LANGUAGE=FILE", help=meant)
        more = "more text that stays as it is, of code for example"
        made.add_argument("--protect", type=Path, action="append", default=[], metavar="FILE", help=more)
        least = "least occurrences of a pair that is joined, 2 or more (%(default)s)"
        made.add_argument("--min-count", type=_several, default=10, metavar="NUMBER", help=least)
    grow.add_argument("--new", required=True, help="the new language, which is learnt from")
    grow.add_argument("--unprotected", action="store_true", help="let new tokens change text of other languages, too")
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


def _read(path: Path) -> Any:
    """The tokenizer in a folder. Raises ValueError when there is none that can be read."""
    found = folder.read(forms.checked(path))
    if not hasattr(found, "backend_tokenizer"):
        raise ValueError(f"{path}: {type(found).__name__} is no tokenizer of the tokenizers library, which these tools need")
    return found


def _by_language(pairs: Sequence[tuple[str, Path]]) -> dict[str, list[str]]:
    """Language -> its documents, without empty ones. Raises ValueError when one has no text."""
    found: dict[str, list[str]] = {}
    for code, path in pairs:
        found.setdefault(code, []).extend(filter(None, texts.read(path)))
    if empty := [code for code, documents in found.items() if not _with_text(documents)]:
        raise ValueError(f"{empty[0]}: no documents with text in its files")
    return found


def _by_file(paths: Sequence[Path]) -> dict[str, list[str]]:
    """Name of each file -> its documents, without empty ones. Raises ValueError when one has no text."""
    found = {str(path): list(filter(None, texts.read(path))) for path in paths}
    if empty := [name for name, documents in found.items() if not _with_text(documents)]:
        raise ValueError(f"{empty[0]}: no documents with text in it")
    return found


def _with_text(documents: Iterable[str]) -> int:
    """How many documents are more than white space."""
    return sum(1 for text in documents if text.strip())


def _new_and_others(found: dict[str, list[str]], new: str) -> tuple[list[str], dict[str, list[str]]]:
    """The documents of the new language, and those of the others. Raises ValueError when there are none of it."""
    if new not in found:
        raise ValueError(f"--new {new}: no text of it; there is {', '.join(found)}")
    return found[new], {code: documents for code, documents in found.items() if code != new}


def _audit(given: argparse.Namespace) -> None:
    base, found = _read(given.base), _by_language(given.text)
    uses = {code: audit.use(base, documents) for code, documents in found.items()}
    new = given.new or max(uses, key=lambda code: uses[code].fertility)
    documents, others = _new_and_others(found, new)
    advice, why = _advice(given.base, base, documents, others)
    points = advice.points if advice else []
    if given.picture:
        _draw(given.picture, {new: points} if points else {}, uses)
    if given.json:
        print(json.dumps({
            "languages": {code: audit.plain(each) for code, each in uses.items()}, "new": new,
            "new_tokens": advice.new_tokens if advice else None, "reason": advice.reason if advice else why,
            "curve": [audit.plain(point) for point in points],
        }, ensure_ascii=False))  # fmt: skip
        return
    tables.languages(uses)
    if points:
        tables.curves({new: points})
    print(f"{new}: {advice.text if advice else f'no advice: {why}'}")


def _advice(
    path: Path, base: Any, new: Sequence[str], others: dict[str, list[str]]
) -> tuple[audit.Advice | None, str]:  # fmt: skip
    """The advice for the base in a folder; or None, and why there is none."""
    try:
        kind = kinds.of(base)
    except ValueError as error:
        return audit.Advice(0, str(error)), ""
    try:
        return advised(kind, base, path, new, others, {}, 2), ""
    except TooFew as error:
        return None, str(error)


def _curve(given: argparse.Namespace) -> None:
    base, found = _read(given.base), _by_language(given.text)
    guarded, unseen = list(chain.from_iterable(_by_file(given.protect).values())), _by_file(given.unseen)
    if guarded and not unseen:
        name = ", ".join(map(str, given.protect))
        guarded, unseen[name] = parted(guarded, name)
    if not unseen:
        raise ValueError("give --protect or --unseen: without text of an original language there is nothing to disturb")
    curves: dict[str, list[audit.Point]] = {}
    kind, state = kinds.of(base), base.backend_tokenizer
    free, apart = (kind.guarded(state, counts(kind, base, each, thin=False)) for each in ([], guarded))
    for code, documents in found.items():
        seen, measured = parted(documents, code)
        learnt_from = counts(kind, base, seen, thin=True)
        ways = {code: apart, f"{code} unprotected": free} if guarded else {f"{code} unprotected": free}
        for name, kept in ways.items():
            learner = Learner(kind, base, learnt_from, kept, given.min_count)
            curves[name] = audit.curve(base, audit.grown(kind, base, learner(audit.SIZES[-2]), learner), measured, unseen)
    if given.picture:
        _draw(given.picture, curves, {})
    if given.json:
        print(json.dumps({name: [audit.plain(point) for point in points] for name, points in curves.items()}))
    else:
        tables.curves(curves)


def _extend(given: argparse.Namespace) -> None:
    if given.out.exists():
        raise ValueError(f"{given.out}: is there already; name a new folder")
    base = _read(given.base)
    new, originals = _new_and_others(_by_language(given.text), given.new)
    kept = _protected(given, originals)
    guarded = list(chain.from_iterable(kept.values()))
    kind = extension.kind_of(base, given.base, folder.read)
    if given.new_tokens == "auto":
        free = originals if given.unprotected else {}
        advice = advised(kind, base, given.base, new, kept, free, given.min_count)
        number, least = advice.new_tokens, max(given.min_count, audit.OCCURRENCES)
        if not given.json:
            print(advice.text)
    else:
        number, least = _number(given.new_tokens), given.min_count
    spare, rows = _spare(given, base), roles.rows(given.base)
    learn = learner(kind, base, new, guarded, least)
    tokens = learn(number) if number else []
    if number and not tokens:
        raise ValueError(f"nothing that may become a token occurs {least} times")
    if len(tokens) < number:
        say(f"only {len(tokens):,} of {number:,} tokens: nothing else that may become one occurs {least} times")
    given_ids = ids(base, len(tokens), spare, given.round_to, rows)
    if tokens and not given_ids:
        raise ValueError(f"--round-to {given.round_to} leaves no room for new tokens")
    if idle := unrounded(base, given_ids, given.round_to, rows):
        say(f"--round-to: {idle}")
    tokens = kind.first(tokens, len(given_ids), learn)
    compared = _write(given, learn, tokens, given_ids, new, kept)
    sorts = Counter(texts.made_of(byte_bpe.plain(token) if not kind.in_model_file else token.text) for token in tokens)
    reused, same = sum(i < next_id(base) for i in given_ids), sum(found.identical for found in compared.values())
    if given.json:
        said = {"new_tokens": len(tokens), "reused_slots": reused, "made_of": sorts, "protected": same, "out": str(given.out)}
        print(json.dumps(said))
        return
    made_of = ", ".join(f"{number:,} {sort}" for sort, number in sorts.most_common()) or "none"
    print(f"{len(tokens):,} new tokens ({made_of}), {reused:,} of them with ids of reserved tokens, in {given.out}")
    if compared:
        print(f"all {same:,} protected documents are encoded as before ({given.out / PROOF})")


def _spare(given: argparse.Namespace, base: Any) -> list[int]:
    """The ids of reserved tokens that new ones get. Raises ValueError when they are asked for and there are none."""
    spare = slots(base, roles.named(given.base)) if given.reuse_slots else []
    if given.reuse_slots and not spare:
        raise ValueError(f"--reuse-slots: {given.base} has no reserved token that is free")
    return spare


def _protected(given: argparse.Namespace, originals: dict[str, list[str]]) -> dict[str, list[str]]:
    """The sets of texts that stay as they are. Raises ValueError when there are none and that was not asked for."""
    kept = {} if given.unprotected else dict(originals)
    kept |= _by_file(given.protect)
    number = sum(map(_with_text, kept.values()))
    if not number and not given.unprotected:
        raise ValueError(
            "no text is protected: give --text of an original language or --protect, or --unprotected if new tokens may "
            "change it"
        )
    if kept and (little := protect.few(number)):
        say(f"warning: {little}")
    if kept and not given.protect:
        say("warning: no code is protected, only text of languages: new tokens may change code; --protect FILE adds some")
    return kept


def _write(
    given: argparse.Namespace, learn: Learner, tokens: Sequence[Any], ids: Sequence[int], new: Sequence[str],
    kept: dict[str, list[str]],
) -> dict[str, protect.Identity]:  # fmt: skip
    """Write the tokenizer with the new tokens, the ids that spell them, and what was compared, which is returned.

    Raises ValueError when it is not sound.
    """
    base = learn.base
    written = extension.write(
        given.out, given.base, learn.kind, base, tokens, read=folder.read, words=learn.words,
        texts=[text[:2000] for text in new[:1000]], protected={protect.TEMPLATE: protect.template(base)} | kept, ids=ids,
    )  # fmt: skip
    spelt = {str(i): token.base_ids for i, token in zip(ids, tokens, strict=True)}
    proof = {name: asdict(found) for name, found in written.compared.items()}
    for name, content in (("new_tokens.json", spelt), (PROOF, proof)):
        (given.out / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return {name: found for name, found in written.compared.items() if name != protect.TEMPLATE}


def _compare(given: argparse.Namespace) -> None:
    base, bigger = _read(given.base), _read(given.extended)
    had, has = base.get_vocab(), bigger.get_vocab()
    spare = set(slots(base))
    if moved := next((text for text, i in had.items() if has.get(text) != i and i not in spare), None):
        raise ValueError(f"{given.extended}: {moved!r} has another id than in the base, so this does not extend it")
    rows, plain = [], {}
    for code, documents in _by_language(given.text).items():
        before, after = (audit.curve(base, {0: each}, documents, {code: documents})[0] for each in (base, bigger))
        plain[code] = {"base": audit.plain(before), "extended": audit.plain(after)}
        rows.append((
            code, f"{len(documents):,}", f"{after.identical:.2%}",
            f"{before.bytes_per_token:.3f} -> {after.bytes_per_token:.3f}", f"{before.fertility:.2f} -> {after.fertility:.2f}",
        ))  # fmt: skip
    if given.json:
        print(json.dumps(plain))
    else:
        tables.columns(("language", "documents", "encoded as before", "bytes/token", "tokens/word"), rows)


def _number(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise ValueError(f"--new-tokens: expected a number from 1 on, or auto, got {text!r}")
    return int(text)


def _draw(path: Path, curves: dict[str, list[audit.Point]], uses: dict[str, audit.Use]) -> None:
    from tokenizer_tools import picture

    picture.draw(path, curves, uses)


COMMANDS = {"audit": _audit, "extend": _extend, "curve": _curve, "compare": _compare}


if __name__ == "__main__":
    sys.exit(main())
