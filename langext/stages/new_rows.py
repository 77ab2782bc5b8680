"""The rows that the tokens of stage extend_tokenizer start from: computed, kept quiet on original text, compared, written.

The one rule: rows are made, shifted and chosen by training text, each by other parts of it; held-out text says what it came to.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

from langext.artifacts import Corpus, Model
from langext.console import say, warn
from langext.context import Context
from langext.errors import ConfigError, RunFailed
from langext.summaries import RowsRecord, StartRecord

if TYPE_CHECKING:
    from torch import Tensor

    from langext.models.new_rows import Seen
    from tokenizer_tools.start import Rows

PROBE_STEPS, PROBE_BATCH, WINDOW = 50, 2, 128
"""The cost of a probe: each start reads PROBE_STEPS x PROBE_BATCH x WINDOW tokens, 12,800, forward and backward."""
JUDGES = 20
"""One text of so many of the new language, the first to begin with, judges starts in a probe. No start is made of it."""
JUDGED_WINDOWS = 16
"""Windows of these documents that say which start is the best."""
SEEN_BYTES, SEEN_LENGTH = 16_000, 512
"""Text whose hidden states measure the KL, and as much of either side that tells the languages apart: about 4,000 tokens."""
FIT_BYTES = 2 * SEEN_BYTES
"""Text that says how far rows are shifted."""
PASSAGE_BYTES = 1000

SEEN_DOCUMENTS = 200
"""Documents of each language that these passages are taken from."""

QUIET = 1e-4
"""KL on original text, in nats per token, above which it is told that rows could be shifted."""

Start = Literal["mean", "composition", "sample", "focus", "distilled", "probe"]
Spelt = Mapping[int, Sequence[int]]
"""Id of a token -> ids of base tokens that spell the same text."""


@dataclass(frozen=True)
class Texts:
    """The text that starts are made of and judged by."""

    training: Callable[[], Iterable[str]]
    """Training text of the new language, from its start."""
    original: Callable[[], Iterable[str]]
    """Training text of the original languages."""
    heldout_original: Sequence[str]

    def new(self) -> Iterator[str]:
        """The training text of the new language that starts are made of."""
        return (text for number, text in enumerate(self.training()) if number % JUDGES)

    def judges(self) -> Iterator[str]:
        """The training text of the new language that tells which start is the best."""
        return islice(self.training(), 0, None, JUDGES)


def texts(ctx: Context, corpus: Corpus, training: Callable[[Sequence[str]], Iterator[str]]) -> Texts:
    """The text of a corpus. `training` reads training text of the languages that it is given, from its start."""
    from langext.data import documents

    def original() -> Iterator[str]:
        for code in corpus.languages("train"):
            if code != ctx.language:
                yield from islice(training([code]), SEEN_DOCUMENTS)

    return Texts(lambda: training([ctx.language]), original, documents.heldout_texts(corpus, ctx.original_languages))


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
        return self._encoded(self.texts.new())

    def _encoded(self, texts: Iterable[str]) -> Iterator[list[int]]:
        from langext.data import documents

        left = iter(texts)
        while batch := list(islice(left, 64)):
            yield from documents.encode(self.bigger, batch)

    @cached_property
    def original(self) -> "Seen | None":
        """The base on held-out original text, which says what rows cost; None when there is none."""
        return self._seen(self.sides[1])

    @cached_property
    def fit(self) -> "Seen | None":
        """The base on other original text, which says how far rows are shifted; None when there is none."""
        return self._seen(self.sides[0])

    @cached_property
    def sides(self) -> tuple[list[list[int]], list[list[int]]]:
        """Passages of original text that a shift is fitted on, and others that it is judged by.

        Without training text they are parts of held-out text, of which no passage is in both.
        """
        fit = self._passages(self.base, self.texts.original(), FIT_BYTES)
        if fit:
            return fit, self._passages(self.base, self.texts.heldout_original)
        heldout = self._passages(self.base, self.texts.heldout_original, FIT_BYTES)
        return heldout[::2], heldout[1::2]

    def _seen(self, passages: Sequence[Sequence[int]]) -> "Seen | None":
        from langext.models import new_rows

        return new_rows.seen(self.blank, passages) if passages else None

    @cached_property
    def direction(self) -> "Tensor":
        """Where logits of new tokens are lowered, see `softmax.direction`. New tokens are read as means of their pieces."""
        from langext.models import new_rows
        from tokenizer_tools.start import STARTS, softmax

        start = STARTS["mean"](self.material)
        new = self._passages(self.bigger, islice(self.texts.new(), SEEN_DOCUMENTS))
        assert self.fit is not None, "start() has seen that there is text"
        return softmax.direction(self.fit.hidden_TD, new_rows.states_of(self.blank, new, start))

    @staticmethod
    def _passages(tokenizer: Any, texts: Iterable[str], size: int = SEEN_BYTES) -> list[list[int]]:
        from langext.data import documents
        from langext.evaluation import bpb

        return [ids[:SEEN_LENGTH] for ids in documents.encode(tokenizer, bpb.passages(texts, PASSAGE_BYTES, size))]

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
        if budget is None:
            return rows, StartRecord(kl=plain, kl_unshifted=plain)
        fit = self.fit
        assert fit is not None, "held-out text has two passages if there is no other, else `original` is None"
        if softmax.disturbance(fit.hidden_TD, fit.base_T, rows.head_ND, cap) <= softmax.MARGIN * budget:
            return rows, StartRecord(kl=plain, kl_unshifted=plain)
        try:
            head_ND, shift = softmax.shifted(fit.hidden_TD, fit.base_T, rows.head_ND, self.direction, budget, cap)
        except ValueError as error:
            raise ConfigError(f"kl_budget: {error}; raise it, or leave output: shifted out", at=("kl_budget",)) from None
        kl = softmax.disturbance(seen.hidden_TD, seen.base_T, head_ND, cap)
        return rows.with_head(head_ND), StartRecord(kl=kl, kl_unshifted=plain, shift=shift)

    def probed(self, rows: "Rows", record: StartRecord) -> StartRecord:
        """The record with the loss on text of the new language that no start was made of, before and after PROBE_STEPS steps.

        Raises ConfigError when there is too little text.
        """
        from langext.models import new_rows
        from tokenizer_tools.start.material import packed

        windows = list(islice(packed(self._encoded(self.texts.judges()), WINDOW), JUDGED_WINDOWS))
        training = list(islice(packed(self.documents(), WINDOW), PROBE_STEPS * PROBE_BATCH))
        if not windows or len(training) < PROBE_BATCH:
            what = f"windows of {WINDOW} tokens, also in one text of {JUDGES}"
            raise ConfigError(f"start: probe needs more text of the new language: {what}", at=("start",))
        learnt = new_rows.learnt(self.blank, rows, training, PROBE_STEPS, PROBE_BATCH)
        before, after = (new_rows.mean_loss(self.blank, each, windows) for each in (rows, learnt))
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
        say(f"  start {name}: loss {record.loss:.3f} on text apart, {record.loss_after:.3f} after {PROBE_STEPS} steps")
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
        _warn_of_cost(chosen.kl, budget)
    if budget is not None and not list(islice(bench.texts.original(), 1)):
        warn("output: shifted is fitted on a part of held-out text, since there is no training text of an original language")
    return record


def _warn_of_cost(kl: float, budget: float | None) -> None:
    """Warn of what original text pays for new tokens before any training."""
    if budget is None and kl > QUIET:
        warn(
            f"new tokens take {kl:.1e} nats per token from original text until they are trained, more than {QUIET:g}; "
            "output: shifted lowers that, at the cost of the new language (docs/tokenizer.md)"
        )
    elif budget is not None and kl > budget:
        warn(
            f"the KL on held-out original text, {kl:.1e} nats per token, is above kl_budget ({budget:g}), to which the shift "
            "was fitted on other text; lower kl_budget"
        )
