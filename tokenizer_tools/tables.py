"""Prints figures as columns of text. The one rule: what is not known is a dash, not a number."""

from collections.abc import Mapping, Sequence

from tokenizer_tools.audit import Point, Use

HEADS = ("documents as before", "original tokens")
"""Over the columns of a set of documents of original languages."""


def columns(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns of text, the first on the left and the others on the right."""
    wide = [max(len(row[i]) for row in [heads, *rows]) for i in range(len(heads))]
    for row in [heads, *rows]:
        print("  ".join(cell.ljust(w) if not i else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, wide, strict=True))))
    print()


def languages(uses: Mapping[str, Use]) -> None:
    """How each language is written."""
    heads = (
        "language", "documents", "tokens/word", "tokens/char", "bytes/token", "parts of chars", "unknown", "lost", "never used",
    )  # fmt: skip
    columns(heads, [
        (code, f"{u.documents:,}", f"{u.fertility:.2f}", f"{u.per_character:.2f}" if u.per_character else "-",
         f"{u.bytes_per_token:.2f}", f"{u.part_share:.2%}", f"{u.unknown_share:.2%}", f"{u.lost_share:.2%}",
         f"{u.unused_share:.1%}")
        for code, u in uses.items()
    ])  # fmt: skip


def curves(found: Mapping[str, Sequence[Point]]) -> None:
    """The points of each curve, by its name, with two columns for each set of documents of original languages."""
    sets = list(dict.fromkeys(name for points in found.values() for point in points for name in point.kept))
    heads = ["language", "new tokens", "bytes/token", "tokens/word"]
    heads += [f"{what}: {name}" if len(sets) > 1 else what for name in sets for what in HEADS]
    columns(heads, [
        (name, f"{point.new_tokens:,}", f"{point.bytes_per_token:.3f}", f"{point.fertility:.2f}", *_kept(point, sets))
        for name, points in found.items() for point in points
    ])  # fmt: skip


def _kept(point: Point, sets: Sequence[str]) -> list[str]:
    kept = [point.kept[name] for name in sets]
    return [
        cell for each in kept for cell in (
            "-" if each.identical is None else f"{each.identical:.2%}",
            "-" if each.lengthened is None else f"{each.lengthened - 1:+.4%}",
        )
    ]  # fmt: skip
