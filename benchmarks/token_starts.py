"""How rows of new tokens start: KL on original text, and bits per byte of each new language at the start and after some steps.

    python benchmarks/token_starts.py BASE --new fr=fr.jsonl.gz --new-valid fr=fr-valid.jsonl.gz --new de=... \
        --original en.jsonl.gz ... --original-valid en-valid.jsonl.gz ... --out FOLDER

BASE is a folder in Hugging Face format, of any kind of vocabulary that can be extended; texts are files as `python -m
tokenizer_tools` reads them. New tokens are learnt with the original text protected. Every start is a file in FOLDER/LANGUAGE,
so that the same command goes on where it was; it prints a table for each language, below the bits per byte of the base itself.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from langext.architectures import vocabulary
from langext.artifacts import read_json, write_json
from langext.data.plain_text import encode_text
from langext.evaluation import bpb
from langext.models import loading, new_rows
from tokenizer_tools import kinds
from tokenizer_tools.start import STARTS, Rows, softmax
from tokenizer_tools.start.material import packed
from tokenizer_tools.texts import read
from tokenizer_tools.vocabulary import next_id

LENGTH, BATCH = 128, 2


def language_and_file(text: str) -> tuple[str, Path]:
    """LANGUAGE=FILE."""
    code, _, name = text.partition("=")
    return code, Path(name)


def texts(paths: Sequence[Path], num_bytes: int) -> list[str]:
    """About so many bytes of text, the same share of each file."""
    found = []
    for path in paths:
        left = num_bytes / len(paths)
        for text in read(path):
            found.append(text[:20_000])
            left -= len(found[-1].encode())
            if left <= 0:
                break
    return found


class Bench:
    """The base, new tokens of one language, and the texts."""

    def __init__(self, given: Any, new: Sequence[Path], new_valid: Sequence[Path]):
        base = loading.load_tokenizer(given.base)
        kind, backend = kinds.of(base), base.backend_tokenizer
        self.new = texts(new, given.learn_bytes)
        apart = kind.guarded(backend, kind.word_counts(backend, texts(given.original, given.protect_bytes)))
        added = kind.learn(backend, kind.word_counts(backend, self.new), given.tokens, 10, apart)
        self.bigger, self.pieces = kind.extended(base, added), [list(token.base_ids) for token in added]
        spelt = {next_id(base) + i: ids for i, ids in enumerate(self.pieces)}
        net = loading.load_base(given.base, torch.float32)
        valid, original, text, heldout = (
            bpb.passages(texts(paths, 20 * given.bytes), 1000, given.bytes)
            for paths in (given.original_valid, given.original, new, new_valid)
        )
        self.heldout, self.unextended = heldout, bpb.measure(net, base, heldout).per_byte
        vocabulary.extend(net, next_id(base), len(added))
        self.blank = new_rows.Blank(net)
        self.material = new_rows.material(self.blank, spelt, self.bigger, 1, self.documents)
        # A shift is fitted on one text and reported on another.
        self.fit, self.original = (new_rows.seen(self.blank, self.cut(base, side)) for side in (original, valid))
        start = STARTS["mean"](self.material)
        new_TD = new_rows.states_of(self.blank, self.cut(self.bigger, text), start)
        self.direction_D = softmax.direction(self.fit.hidden_TD, new_TD)

    @staticmethod
    def cut(tokenizer: Any, found: list[str]) -> list[list[int]]:
        return [ids[:256] for ids in encode_text(tokenizer, found)]

    def documents(self) -> Iterator[list[int]]:
        """Training text as ids of the extended tokenizer."""
        left = iter(self.new)
        while batch := list(islice(left, 64)):
            yield from encode_text(self.bigger, batch)

    def kl(self, rows: Rows) -> float:
        return softmax.disturbance(self.original.hidden_TD, self.original.base_T, rows.head_ND, self.blank.cap)

    def bits(self, rows: Rows) -> float:
        """Bits per byte of held-out text of the new language."""
        net = self.blank.net
        vocabulary.put(net, rows.named)
        return bpb.measure(net, self.bigger, self.heldout).per_byte

    def measured(self, name: str, steps: int, budget: float) -> dict[str, Any]:
        """What a start comes to. `NAME+shift` is shifted to keep within the budget."""
        began = time.perf_counter()
        kind, _, how = name.partition("+")
        rows, shift = STARTS[kind](self.material), 0.0
        if how:
            seen, along = self.fit, self.direction_D
            moved, shift = softmax.shifted(seen.hidden_TD, seen.base_T, rows.head_ND, along, budget, self.blank.cap)
            rows = rows.with_head(moved)
        seconds = time.perf_counter() - began
        windows = packed(self.documents(), LENGTH)
        before = {"kl": self.kl(rows), "bits": self.bits(rows), "norm": float(rows.input_ND.norm(dim=1).median())}
        began = time.perf_counter()
        rows = new_rows.learnt(self.blank, rows, windows, steps, BATCH)
        return {
            **before, "bits_of_base": self.unextended, "shift": shift, "seconds": seconds,
            "kl_after": self.kl(rows), "bits_after": self.bits(rows),
            "steps": steps, "seconds_training": time.perf_counter() - began,
        }  # fmt: skip


def table(given: Any, language: str) -> None:
    """Measure what is not in the folder yet, and print the table of a language."""
    folder, bench = given.out / language, None
    folder.mkdir(parents=True, exist_ok=True)
    new, valid = ([path for code, path in pairs if code == language] for pairs in (given.new, given.new_valid))
    for number, name in enumerate(given.starts):
        path = folder / f"{name}.json"
        if not path.exists():
            bench = bench or Bench(given, new, valid)
            write_json(path, bench.measured(name, given.steps, given.kl_budget))
        row = read_json(path)
        if not number:
            print(f"{language}: {row['bits_of_base']:.4f} bits per byte before the extension")
            print("start                       KL     bpb bpb after  KL after   shift   norm  seconds")
        measured = f"{row['kl']:9.2e} {row['bits']:7.4f} {row['bits_after']:9.4f} {row['kl_after']:9.2e}"
        print(f"{name:20} {measured} {row['shift']:7.2f} {row['norm']:6.2f} {row['seconds']:8.1f}", flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    for name in ("new", "new-valid"):
        parser.add_argument(f"--{name}", type=language_and_file, action="append", required=True, metavar="LANGUAGE=FILE")
    for name in ("original", "original-valid"):
        parser.add_argument(f"--{name}", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--starts", nargs="+", default=[*STARTS, *(f"{name}+shift" for name in STARTS)])
    parser.add_argument("--tokens", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--learn-bytes", type=int, default=2_000_000)
    parser.add_argument("--protect-bytes", type=int, default=2_000_000)
    parser.add_argument("--bytes", type=int, default=16_000, help="of each text that measures")
    parser.add_argument("--kl-budget", type=float, default=1e-4)
    given = parser.parse_args()
    for language in dict.fromkeys(code for code, _ in given.new):
        table(given, language)


if __name__ == "__main__":
    main()
