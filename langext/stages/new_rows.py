"""The rows that the tokens of stage extend_tokenizer start from: computed, kept quiet on original text, compared, written.

The one rule: rows are made and shifted by training text; held-out text says what that costs and which start is the best.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

from langext.artifacts import Corpus, Model
from langext.console import say
from langext.context import Context
from langext.errors import ConfigError, RunFailed
from langext.summaries import RowsRecord, StartRecord

if TYPE_CHECKING:
    from torch import Tensor

    from langext.models.new_rows import Seen
    from tokenizer_tools.start import Rows

PROBE_STEPS, PROBE_BATCH, WINDOW = 50, 2, 128
"""The cost of a probe: each start reads PROBE_STEPS x PROBE_BATCH x WINDOW tokens, 12,800, forward and backward."""
HELDOUT_WINDOWS = 16
"""Windows of held-out text of the new language that say which start is the best."""
SEEN_BYTES, SEEN_LENGTH = 16_000, 512
"""Text whose hidden states measure the KL, and as much of either side that tells the languages apart: about 4,000 tokens."""
PASSAGE_BYTES = 1000

SEEN_DOCUMENTS = 200
"""Documents of each language that these passages are taken from."""

Start = Literal["mean", "composition", "sample", "focus", "distilled", "probe"]
Spelt = Mapping[int, Sequence[int]]
"""Id of a token -> ids of base tokens that spell the same text."""


@dataclass(frozen=True)
class Texts:
    """The text that starts are made of and judged by."""

    new: Callable[[], Iterable[str]]
    """Training text of the new language, from its start."""
    original: Callable[[], Iterable[str]]
    """Training text of the original languages."""
    heldout_new: Sequence[str]
    heldout_original: Sequence[str]


def texts(ctx: Context, corpus: Corpus, training: Callable[[Sequence[str]], Iterator[str]]) -> Texts:
    """The text of a corpus. `training` reads training text of the languages that it is given, from its start."""
    from langext.data import documents

    def original() -> Iterator[str]:
        for code in corpus.languages("train"):
            if code != ctx.language:
                yield from islice(training([code]), SEEN_DOCUMENTS)

    new, kept = (documents.heldout_texts(corpus, codes) for codes in ([ctx.language], ctx.original_languages))
    return Texts(lambda: training([ctx.language]), original, new, kept)


def bench(ctx: Context, model: Model, base: Any, bigger: Any, spelt: Spelt, texts: Texts, gpus: int) -> "Bench":
    """The model with empty rows for the tokens of `spelt`, on a GPU if there are any."""
    from langext.architectures import precision
    from langext.methods import extended
    from langext.models import loading

    record = loading.read_record(model)
    net = loading.load_base(record.base, precision.here(gpus))
    extended.build(net, bigger, None, spelt.keys(), record.earlier)
    return Bench(net.to("cuda" if gpus else "cpu"), base, bigger, spelt, texts, ctx.seed)


class Bench:
    """A base with room for new tokens, and the text to judge their rows by."""

    def __init__(self, net: Any, base: Any, bigger: Any, spelt: Spelt, texts: Texts, seed: int):
        """`net` has empty rows for the ids of `spelt`, which has the base ids that spell the same text."""
        from langext.models import new_rows

        self.base, self.bigger, self.texts = base, bigger, texts
        self.blank = new_rows.Blank(net)
        self.material = new_rows.material(self.blank, spelt, bigger, seed, self.documents)

    def documents(self) -> Iterator[list[int]]:
        """Training text of the new language as ids of the extended tokenizer."""
        from langext.data import documents

        left = iter(self.texts.new())
        while batch := list(islice(left, 64)):
            yield from documents.encode(self.bigger, batch)

    @cached_property
    def original(self) -> "Seen | None":
        """The base on held-out original text; None when there is none."""
        from langext.models import new_rows

        rows = self._passages(self.base, self.texts.heldout_original)
        return new_rows.seen(self.blank, rows) if rows else None

    @cached_property
    def fit(self) -> "Seen":
        """The base on original training text, which says how far rows are shifted; on held-out text if there is none."""
        from langext.models import new_rows

        rows = self._passages(self.base, self.texts.original())
        found = new_rows.seen(self.blank, rows) if rows else self.original
        assert found is not None, "start() has seen that there is text"
        return found

    @cached_property
    def direction(self) -> "Tensor":
        """Where logits of new tokens are lowered, see `softmax.direction`. New tokens are read as means of their pieces."""
        from langext.models import new_rows
        from tokenizer_tools.start import STARTS, softmax

        original, new = list(self.texts.original()), list(islice(self.texts.new(), SEEN_DOCUMENTS))
        start = STARTS["mean"](self.material)
        sides = [
            new_rows.states_of(self.blank, self._passages(tokenizer, found), start)
            for tokenizer, found in ((self.base, original or self.texts.heldout_original), (self.bigger, new))
        ]
        return softmax.direction(*sides)

    @staticmethod
    def _passages(tokenizer: Any, texts: Iterable[str]) -> list[list[int]]:
        from langext.data import documents
        from langext.evaluation import bpb

        return [ids[:SEEN_LENGTH] for ids in documents.encode(tokenizer, bpb.passages(texts, PASSAGE_BYTES, SEEN_BYTES))]

    def start(self, name: str, budget: float | None) -> "tuple[Rows, StartRecord]":
        """The rows of one start after the shift that the budget asks for, and what is known of them.

        Raises ConfigError when no shift keeps to the budget, and RunFailed when the start cannot be computed.
        """
        from tokenizer_tools.start import STARTS, softmax

        try:
            rows = STARTS[name](self.material)
        except ValueError as error:
            raise RunFailed(f"start {name} cannot be computed: {error}") from None
        rows = rows.map(lambda part: part.bfloat16().float())  # weights are stored in it, and every precision has these
        if self.original is None:
            if budget is not None:
                raise ConfigError("output: shifted needs held-out text of the original languages", at=("output",))
            return rows, StartRecord()
        seen, cap = self.original, self.blank.cap
        plain = softmax.disturbance(seen.hidden_TD, seen.base_T, rows.head_ND, cap)
        if budget is None or softmax.disturbance(self.fit.hidden_TD, self.fit.base_T, rows.head_ND, cap) <= budget:
            return rows, StartRecord(kl=plain, kl_unshifted=plain)
        try:
            head_ND, shift = softmax.shifted(self.fit.hidden_TD, self.fit.base_T, rows.head_ND, self.direction, budget, cap)
        except ValueError as error:
            raise ConfigError(f"kl_budget: {error}; raise it, or leave output: shifted out", at=("kl_budget",)) from None
        kl = softmax.disturbance(seen.hidden_TD, seen.base_T, head_ND, cap)
        return rows.with_head(head_ND), StartRecord(kl=kl, kl_unshifted=plain, shift=shift)

    def probed(self, rows: "Rows", record: StartRecord) -> StartRecord:
        """The record with the loss on held-out text of the new language, before and after PROBE_STEPS steps.

        Raises ConfigError when there is too little text.
        """
        from langext.data import documents
        from langext.models import new_rows
        from tokenizer_tools.start.material import packed

        heldout = documents.encode(self.bigger, self.texts.heldout_new)
        windows = list(islice(packed(heldout, WINDOW), HELDOUT_WINDOWS))
        training = list(islice(packed(self.documents(), WINDOW), PROBE_STEPS * PROBE_BATCH))
        if not windows or len(training) < PROBE_BATCH:
            raise ConfigError(f"start: probe needs more text of the new language: windows of {WINDOW} tokens", at=("start",))
        learnt = new_rows.learnt(self.blank, rows, training, PROBE_STEPS, PROBE_BATCH)
        before, after = (new_rows.heldout_loss(self.blank, each, windows) for each in (rows, learnt))
        return record.model_copy(update={"loss": before, "loss_after": after})


def choose(bench: Bench, start: str, budget: float | None) -> "tuple[Rows, RowsRecord]":
    """The rows of a start, or with `probe` those of the start that has learnt best, and the record of all that were tried."""
    from tokenizer_tools.start import STARTS

    if start != "probe":
        rows, record = bench.start(start, budget)
        return rows, RowsRecord(start=start, kl_budget=budget, tried={start: record})
    found: dict[str, tuple[Rows, StartRecord]] = {}
    failed: dict[str, StartRecord] = {}
    for name in STARTS:
        try:
            rows, record = bench.start(name, budget)
            record = bench.probed(rows, record)
            if not math.isfinite(record.loss_after or 0.0):
                raise RunFailed(f"start {name}: its loss is no number any more")
        except (RunFailed, ConfigError) as error:
            say(f"  {error}; left out of the probe")
            failed[name] = StartRecord(failure=str(error))
            continue
        say(f"  start {name}: held-out loss {record.loss:.3f}, {record.loss_after:.3f} after {PROBE_STEPS} steps")
        found[name] = rows, record
    if not found:
        raise ConfigError(f"start: probe: no start is left: {next(iter(failed.values())).failure}", at=("start",))
    best = min(found, key=lambda name: found[name][1].loss_after or 0.0)
    tried = {name: record for name, (_, record) in found.items()} | failed
    return found[best][0], RowsRecord(start=best, kl_budget=budget, tried=tried)


def write(ctx: Context, bench: Bench, start: str, budget: float | None) -> RowsRecord:
    """Write new_rows.safetensors, say what it cost, and return the record."""
    from langext.models import loading

    rows, record = choose(bench, start, budget)
    loading.save_rows(ctx.out, rows.named)
    chosen = record.tried[record.start]
    if chosen.kl is not None:
        shifted = f", {chosen.kl_unshifted:.1e} without the shift" if chosen.shift else ""
        say(f"  rows start as {record.start}: KL on original text {chosen.kl:.1e} nats per token{shifted}")
    return record
