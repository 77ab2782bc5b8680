"""Stage extend_tokenizer: adds tokens for the new language. The one rule: every token id of the base stays the same."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from langext.artifacts import Corpus, Model, Tokenizer, write_json
from langext.console import say
from langext.context import Context
from langext.errors import ConfigError, RunFailed
from langext.methods.base import Method
from langext.spec import LATER
from langext.stages import new_rows
from langext.stages.base import Stage
from langext.summaries import ProtectedText, TokenizerSummary, VocabularyGain

MANY_CUTS = 0.02
"""Share of the parts of words that begin with a combining mark, from which on it is told."""


class ExtendTokenizer(Stage):
    """Learn more merges for the byte-level BPE tokenizer of the base, from text in the new language."""

    uses: Literal["extend_tokenizer"]
    new_tokens: int = Field(8000, ge=1)
    """Tokens to add. More tokens make text in the new language shorter and the embedding matrix larger."""
    sample_bytes: int = Field(100_000_000, ge=1000)
    """Bytes of training text to learn from, from the start of the corpus. More take longer."""
    min_count: int = Field(10, ge=2)
    """A pair of tokens that occurs less often than this does not become a token. Raise it to avoid rare tokens."""
    protect: bool = True
    """Never join tokens that are neighbours in training text of the original languages or in protected text, which is then
    encoded exactly as before. Costs part of the gain where the new language shares words with them."""

    start: Annotated[new_rows.Start, LATER] = "mean"
    """How the rows of new tokens start. mean: the mean of the rows of their pieces. composition: pieces weighted by their
    length for the head, and a mean of the usual norm for the input. sample: chance, from the distribution of the base's rows.
    focus: rows of tokens that are used alike. distilled: rows that give the states that the pieces gave. probe trains all of
    them for 50 steps and takes the one that has learnt best."""
    output: Annotated[Literal["unchanged", "shifted"], LATER] = "unchanged"
    """shifted lowers the logits of new tokens where hidden states are those of original text, by as little as `kl_budget`
    takes. Where the base's head is tied, the input rows move along."""
    kl_budget: Annotated[float, Field(gt=0), LATER] = 1e-4
    """Most KL(base || extended) on held-out original text, in nats per token, that new tokens may cost before any training. For
    output: shifted. Lower it to disturb the original languages less; new tokens then begin less likely."""

    @model_validator(mode="after")
    def _of_the_shift(self) -> "ExtendTokenizer":
        if self.output != "shifted" and self.kl_budget != type(self).model_fields["kl_budget"].default:
            raise ValueError("kl_budget: is for output: shifted")
        return self

    def check_model(self, given: tuple[Method, ...], config: Any) -> None:
        """Raise ConfigError when the vocabulary of the base cannot be extended."""
        from langext.models import loading
        from tokenizer_tools.byte_bpe import obstacle
        from tokenizer_tools.vocabulary import next_id

        if config is None:  # the base is not on this machine yet
            return
        folder = Path(config.name_or_path)
        tokenizer = loading.load_tokenizer(folder)
        if reason := obstacle(tokenizer.backend_tokenizer):
            raise ConfigError(f"{folder}: the vocabulary cannot be extended: {reason}. Leave {self.uses} out")
        if (first := next_id(tokenizer)) > config.vocab_size:
            raise ConfigError(
                f"{folder}: the vocabulary cannot be extended: the tokenizer has ids up to {first - 1}, the model "
                f"{config.vocab_size} rows"
            )

    def run(self, ctx: Context, model: Model, corpus: Corpus) -> Tokenizer:
        """Write tokenizer/, new_tokens.json and new_rows.safetensors; record the gain in every language in the manifest.

        Raises ConfigError when the vocabulary was extended before, or when no pair of tokens is frequent enough.
        """
        from langext.data import documents
        from langext.models import loading
        from tokenizer_tools import protect
        from tokenizer_tools.byte_bpe import continue_merges, cut_before_marks, extended, word_counts
        from tokenizer_tools.vocabulary import next_id

        folder = loading.tokenizer_folder(model)
        if loading.new_tokens(model):
            raise ConfigError("the earlier language's run has extended the vocabulary already; it can be extended once")
        base = loading.load_tokenizer(folder)
        state = base.backend_tokenizer
        kept = [code for code in corpus.languages("train") if code != ctx.language] if self.protect else []
        try:
            words = word_counts(state, self._texts(corpus, [ctx.language]))
            apart = protect.pairs(state, word_counts(state, self._texts(corpus, kept)))
            added = continue_merges(state, words, self.new_tokens, self.min_count, apart)
            free = continue_merges(state, words, self.new_tokens, self.min_count) if kept else added
        except ValueError as error:
            raise ConfigError(f"{folder}: {error}") from None
        if not added:
            raise ConfigError(f"no pair of tokens occurs {self.min_count} times in the text; give more text or lower min_count")
        if len(added) < self.new_tokens:
            say(f"  only {len(added)} of {self.new_tokens} tokens: no other pair occurs {self.min_count} times within a word")
        if (cut := cut_before_marks(words)) > MANY_CUTS:
            say(
                f"  the base's pre-tokenizer cuts words of this script: {cut:.0%} of the parts begin with a combining mark (a "
                "vowel sign, for example), and no new token crosses such a cut"
            )
        try:
            bigger = extended(base, added)
        except ValueError as error:
            raise ConfigError(f"{folder}: {error}") from None
        bigger.save_pretrained(ctx.out / "tokenizer")
        first = next_id(base)
        write_json(ctx.out / "new_tokens.json", {str(first + i): token.base_ids for i, token in enumerate(added)})
        pieces = [token.base_ids for token in added]
        text = new_rows.texts(ctx, corpus, partial(self._texts, corpus))
        bench = new_rows.bench(ctx, model, base, bigger, pieces, text, self.runtime.gpus)
        rows = new_rows.write(ctx, bench, self.start, self.kl_budget if self.output == "shifted" else None)
        gains = {c: _gain(base, bigger, documents.heldout(corpus, [c])) for c in ctx.languages}
        record = None
        if kept:
            encoded = _encoded(base, bigger, self._texts(corpus, kept))
            alike = protect.identity(encoded, first, [token.base_ids for token in added])
            loose = _gain(base, extended(base, free), documents.heldout(corpus, [ctx.language])).bytes_per_token_after
            record = ProtectedText(**asdict(alike), kept_apart=len(apart), bytes_per_token_without=loose)
            _tell(record, gains[ctx.language])
        ctx.report(TokenizerSummary(new_tokens=len(added), heldout=gains, protected=record, rows=rows))
        for code, gain in gains.items():
            say(
                f"  {code}: {gain.bytes_per_token_before:.2f} -> {gain.bytes_per_token_after:.2f} bytes per token, "
                f"{gain.identical_documents_frac:.0%} of documents encoded as before"
            )
        return Tokenizer(ctx.out)

    def _texts(self, corpus: Corpus, codes: Sequence[str]) -> Iterator[str]:
        """Training text of each of the languages, from its start, until there are `sample_bytes` of it."""
        from langext.data import documents

        for code in codes:
            yield from _first_bytes(documents.batches(corpus.files("train", code), 256), self.sample_bytes)


def _encoded(base: Any, bigger: Any, texts: Iterable[str]) -> Iterator[tuple[list[int], list[int]]]:
    """The ids of every text by both tokenizers."""
    from langext.data import documents

    left = iter(texts)
    while batch := list(islice(left, 256)):
        yield from zip(documents.encode_text(base, batch), documents.encode_text(bigger, batch), strict=True)


def _tell(record: ProtectedText, gain: VocabularyGain) -> None:
    """Say what protection did and cost. Raises RunFailed when a protected document is encoded in another way."""
    if record.identical < record.documents:
        raise RunFailed(
            f"{record.documents - record.identical} of {record.documents} protected documents are encoded in another way than "
            "by the base: this is a fault of langext"
        )
    say(
        f"  all {record.documents:,} protected documents are encoded as before; without protection "
        f"{record.bytes_per_token_without:.2f} bytes per token in place of {gain.bytes_per_token_after:.2f}"
    )


def _first_bytes(batches: Iterable[list[str]], sample_bytes: int) -> Iterator[str]:
    """Texts from the start, in whole batches, until they have at least `sample_bytes`."""
    used = 0
    for batch in batches:
        yield from batch
        used += sum(len(text.encode()) for text in batch)
        if used >= sample_bytes:
            return


def _gain(base: Any, bigger: Any, heldout: dict[str, list[str]]) -> VocabularyGain:
    from langext.data import documents

    texts = [text for texts in heldout.values() for text in texts]
    before, after = documents.encode_text(base, texts), documents.encode_text(bigger, texts)
    size = sum(len(t.encode()) for t in texts)
    return VocabularyGain(
        bytes_per_token_before=size / max(1, sum(map(len, before))),
        bytes_per_token_after=size / max(1, sum(map(len, after))),
        identical_documents_frac=sum(a == b for a, b in zip(after, before, strict=True)) / max(1, len(texts)),
    )
