"""Stage extend_tokenizer: adds tokens for the new language. The one rule: every token id of the base stays the same."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache, partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from langext.artifacts import Corpus, Model, Tokenizer, write_json
from langext.console import say
from langext.context import Context
from langext.errors import ConfigError
from langext.methods.base import Method
from langext.spec import LATER
from langext.stages import new_rows, protection, sizing
from langext.stages.base import Stage
from langext.summaries import RowsRecord, TokenizerSummary, VocabularyAdvice, VocabularyGain

if TYPE_CHECKING:
    from langext.models.bases import Files
    from tokenizer_tools.kinds import Kind

CHECKED, CHECKED_CHARACTERS = 1000, 2000
"""Texts of each language, and characters of each, on which the written tokenizer is compared with the base's."""
MANY_CUTS = 0.02
"""Share of the parts of words that begin with a combining mark or a joiner, from which on it is told."""


class ExtendTokenizer(Stage):
    """Add tokens to the vocabulary of the base, learnt from text in the new language: byte-level BPE, or SentencePiece."""

    uses: Literal["extend_tokenizer"]
    new_tokens: Annotated[int, Field(ge=1)] | Literal["auto"] = 8000
    """Tokens to add. More tokens make text in the new language shorter and the embedding matrix larger. auto: as many as
    an audit of training text that nothing is learnt from advises, which can be none (docs/tokenizer.md)."""
    round_to: Annotated[int, LATER] = Field(1, ge=1, le=4096)
    """Add so many fewer tokens that the number of rows is a multiple of this: 64 for serving with tensor parallelism. Where
    all new tokens take rows that the base has already, it does nothing, and says so."""
    reuse_slots: Annotated[bool, LATER] = False
    """Give new tokens the ids of reserved ones first, those that the base's makers left free (`<|reserved_special_token_0|>` of
    Llama 3, `<unused0>` of Gemma) and that no role, config or chat template uses. The matrices grow by so many rows less."""
    sample_bytes: int = Field(100_000_000, ge=1000)
    """Bytes of training text to learn from, from the start of every source in turns. More take longer."""
    min_count: int = Field(10, ge=2)
    """What occurs less often than this does not become a token. Raise it to avoid rare tokens."""
    protect: bool = True
    """Add no token that would occur in training text of the original languages or in protected text, which is then encoded
    exactly as before. Costs part of the gain where the new language shares words with them."""

    start: Annotated[new_rows.Start, LATER] = "mean"
    """How the rows of new tokens start. mean: the mean of the rows of their pieces. composition: pieces weighted by their
    length for the head, and a mean of the usual norm for the input. sample: chance, from the distribution of the base's rows.
    focus: rows of tokens that are used alike. distilled: rows that give the states that the pieces gave. probe trains all of
    them for 50 steps and takes the one that has learnt best."""
    output: Annotated[Literal["unchanged", "shifted"], LATER] = "unchanged"
    """shifted lowers the logits of new tokens where hidden states are those of original text, by as little as `kl_budget`
    takes. Where the base's head is tied, the input rows move along."""
    kl_budget: Annotated[float, Field(gt=0), LATER] = 1e-4
    """Most KL(base || extended) on original training text, in nats per token, that new tokens may cost before any training. For
    output: shifted. Lower it to disturb the original languages less; new tokens then begin less likely."""

    @model_validator(mode="after")
    def _of_the_shift(self) -> "ExtendTokenizer":
        if self.output != "shifted" and self.kl_budget != type(self).model_fields["kl_budget"].default:
            raise ValueError("kl_budget: is for output: shifted")
        return self

    def check_model(self, given: tuple[Method, ...], config: Any) -> None:
        """Raise ConfigError when the vocabulary of the base cannot be extended."""
        from langext.models import bases

        if config is None:  # the base is not on this machine yet
            return
        folder = Path(config.name_or_path)
        _found_good(folder, bases.files_of(folder), config.vocab_size, self.reuse_slots)

    def run(self, ctx: Context, model: Model, corpus: Corpus) -> Tokenizer:
        """Write tokenizer/, new_tokens.json and new_rows.safetensors; record the gain in every language in the manifest.

        Raises ConfigError when the vocabulary was extended before, when it cannot be, or when no pair of tokens is frequent
        enough.
        """
        from langext.data import documents
        from langext.models import loading
        from tokenizer_tools import protect
        from tokenizer_tools.words import telling, told

        folder = loading.tokenizer_folder(model)
        if loading.new_tokens(model):
            raise ConfigError("the earlier language's run has extended the vocabulary already; it can be extended once")
        base = loading.load_tokenizer(folder)
        kind, state = _kind(folder, base), base.backend_tokenizer
        kept = protection.languages(corpus, ctx.language, self.protect)
        audited = sizing.audited(self.new_tokens, partial(self._learnt_from, corpus, divided=True), ctx, corpus)
        if near := sizing.close(audited, ctx, base):
            return self._unchanged(ctx, base, near)
        learnt_from = sizing.rest(audited, self._learnt_from(corpus, [ctx.language], divided=bool(audited)))
        words = kind.word_counts(state, told(learnt_from, telling(say)), thin=True)
        around = protect.template(base) if self.protect else []
        apart = kind.guarded(state, kind.word_counts(state, chain(around, *protection.sets(corpus, kept).values())))
        least = sizing.least(self.new_tokens, self.min_count)

        def learn(number: int) -> list[Any]:
            return list(kind.learn(state, words, number, least, apart, progress=telling(say)))

        spare = _spare(folder, base) if self.reuse_slots else []
        rows = loading.load_config(loading.read_record(model).base).vocab_size
        wanted = sizing.Wanted(self.new_tokens, self.min_count, self.round_to, spare, rows)
        by_id, advice = sizing.chosen(wanted, ctx, model, corpus, base, kind, learn, audited)
        added = list(by_id.values())
        if not added:
            assert advice is not None, "no token of a given number is an error"
            return self._unchanged(ctx, base, advice)
        free = kind.learn(state, words, len(added), least) if kept else added
        _tell_of_cuts(kind.cuts(words))
        sets = {protect.TEMPLATE: around} | protection.sets(corpus, kept)
        text = {"texts": _starts(corpus, [ctx.language, *kept]), "protected": sets}
        written = self._written(ctx, folder, kind, base, by_id, words=words, **text)
        bigger, compared = written.tokenizer, {name: written.compared[name] for name in sets if name != protect.TEMPLATE}
        spelt = {i: token.base_ids for i, token in by_id.items()}
        rowless = _without_row(base, rows)
        write_json(ctx.out / "new_tokens.json", {str(i): ids for i, ids in sorted((rowless | spelt).items())})
        started = self._rows(ctx, model, corpus, base, bigger, rowless | spelt)
        gains, by_set = _gains(base, bigger, corpus, ctx.languages)
        record = None
        if kept:
            loose = _gain(_sizes(base, kind.extended(base, free), documents.heldout_texts(corpus, [ctx.language])))
            record = protection.record(compared, len(apart), loose.bytes_per_token_after)
            protection.tell_of(record, gains[ctx.language])
        ctx.report(TokenizerSummary(
            new_tokens=len(added), reused=len(spelt.keys() & set(spare)), heldout=gains, heldout_sets=by_set, protected=record,
            rows=started, advice=advice,
        ))  # fmt: skip
        _tell_of_gains(gains)
        return Tokenizer(ctx.out)

    def _written(self, ctx: Context, folder: Path, kind: "Kind", base: Any, by_id: dict[int, Any], **text: Any) -> Any:
        """Write the base in `folder` with new tokens into tokenizer/, and return it. `text` is what `extension.write` takes."""
        from langext.data.documents import encode_text
        from langext.models import loading
        from tokenizer_tools import extension

        out, tokens, how = ctx.out / "tokenizer", list(by_id.values()), {"read": loading.load_tokenizer, "encode": encode_text}
        try:
            return extension.write(out, folder, kind, base, tokens, ids=list(by_id), **how, **text)
        except ValueError as error:
            raise ConfigError(f"{folder}: the vocabulary cannot be extended: {error}") from None

    def _rows(self, ctx: Context, model: Model, corpus: Corpus, base: Any, bigger: Any, spelt: new_rows.Spelt) -> RowsRecord:
        """Write the rows that new tokens start from, and those of the base's tokens that have none."""
        text = new_rows.texts(ctx, corpus, partial(self._learnt_from, corpus, divided=True))
        bench = new_rows.bench(ctx, model, base, bigger, spelt, text, self.runtime.gpus)
        return new_rows.write(ctx, bench, self.start, self.kl_budget if self.output == "shifted" else None)

    def _unchanged(self, ctx: Context, base: Any, advice: VocabularyAdvice) -> Tokenizer:
        """Pass the base's own tokenizer on, without new tokens."""
        from tokenizer_tools.folder import write

        say(f"  the vocabulary stays as it is: {advice.reason}")
        write(base, ctx.out / "tokenizer")
        write_json(ctx.out / "new_tokens.json", {})
        ctx.report(TokenizerSummary(new_tokens=0, heldout={}, advice=advice))
        return Tokenizer(ctx.out)

    def _learnt_from(self, corpus: Corpus, codes: Sequence[str], *, divided: bool = False) -> Iterator[str]:
        """Training text of each of the languages, from the start of all its domains in turns, until it is `sample_bytes`.

        With `divided` it comes in passages where a domain has few documents, so that a part can be kept apart: a novel is one.
        """
        from langext.data import documents

        for code in codes:
            domains = documents.sources(corpus, "train", code).values()
            batches = [documents.batches(files, 256) for files in domains]
            yield from _first_bytes(_in_turns([*map(_divided, batches)] if divided else batches), self.sample_bytes)


@cache
def _found_good(folder: Path, files: "Files", rows: int, reuse_slots: bool) -> None:
    """Raise ConfigError when the vocabulary of the base cannot be extended.

    What was found good is not looked at again while its `files` stay as they are: the tokenizer is written and read for it.
    """
    from langext.models import loading

    tokenizer = loading.load_tokenizer(folder)
    kind = _kind(folder, tokenizer)
    _without_row(tokenizer, rows)
    if reuse_slots and not _spare(folder, tokenizer):
        raise ConfigError(f"{folder}: the {kind.name} has no reserved token that is free", at=("reuse_slots",))


def _kind(folder: Path, tokenizer: Any) -> "Kind":
    """The kind of the base's vocabulary. Raises ConfigError when it cannot be extended."""
    from langext.models import loading
    from tokenizer_tools import extension

    try:
        return extension.kind_of(tokenizer, folder, loading.load_tokenizer)
    except ValueError as error:
        raise ConfigError(f"{folder}: the vocabulary cannot be extended: {error}. Leave extend_tokenizer out") from None


def _spare(folder: Path, tokenizer: Any) -> list[int]:
    """Ids of the base's reserved tokens that are free."""
    from tokenizer_tools import roles
    from tokenizer_tools.vocabulary import slots

    return slots(tokenizer, roles.named(folder))


def _starts(corpus: Corpus, codes: Sequence[str]) -> list[str]:
    """The starts of some training texts of each of the languages."""
    found = (protection.sets(corpus, [code]).values() for code in codes)
    return [text[:CHECKED_CHARACTERS] for sets in found for text in islice(chain.from_iterable(sets), CHECKED)]


def _in_turns(sources: Sequence[Iterator[list[str]]]) -> Iterator[str]:
    """The texts of all sources, each time the next one of that which has given the fewest bytes, until all have ended."""
    texts = [chain.from_iterable(batches) for batches in sources]
    given = dict.fromkeys(range(len(texts)), 0)
    while given:
        fewest = min(given, key=given.__getitem__)
        if (text := next(texts[fewest], None)) is None:
            del given[fewest]
        else:
            given[fewest] += len(text.encode())
            yield text


def _divided(batches: Iterator[list[str]]) -> Iterator[list[str]]:
    """The documents in batches, or if there are fewer than `split.FEW` of them the passages of all."""
    from langext.data import split

    first = next(batches, [])
    yield [text for document in first for text, _ in split.passages(document)] if len(first) < split.FEW else first
    yield from batches


def _without_row(tokenizer: Any, rows: int) -> dict[int, list[int]]:
    """The tokens of a base whose ids are behind the rows of its matrix, as Gemma 3's for images: id -> base ids that spell it.

    New ids follow them, so they get a row too. Raises ConfigError when there are ids between that no token has.
    """
    model, vocab = tokenizer.backend_tokenizer.model, tokenizer.get_vocab()
    found = {i: [part.id for part in model.tokenize(text)] for text, i in vocab.items() if i >= rows}
    if found and len(found) != max(found) + 1 - rows:
        raise ConfigError(
            f"{tokenizer.name_or_path}: the vocabulary cannot be extended: the tokenizer has ids up to {max(found)}, the model "
            f"{rows} rows, and some ids between have no token"
        )
    return found


def _tell_of_cuts(share: float) -> None:
    if share > MANY_CUTS:
        say(
            f"  the base's pre-tokenizer cuts words of this script: {share:.0%} of the parts begin with a combining mark "
            "(a vowel sign, for example) or a joiner, and no new token crosses such a cut"
        )


def _tell_of_gains(gains: Mapping[str, VocabularyGain]) -> None:
    for code, gain in gains.items():
        say(
            f"  {code}: {gain.bytes_per_token_before:.2f} -> {gain.bytes_per_token_after:.2f} bytes per token, "
            f"{gain.identical_documents_frac:.0%} of documents encoded as before"
        )


def _first_bytes(texts: Iterable[str], sample_bytes: int) -> Iterator[str]:
    """Texts from the start, until they have at least `sample_bytes`."""
    used = 0
    for text in texts:
        yield text
        used += len(text.encode())
        if used >= sample_bytes:
            return


def _gains(
    base: Any, bigger: Any, corpus: Corpus, codes: Sequence[str]
) -> tuple[dict[str, VocabularyGain], dict[str, VocabularyGain]]:
    """The gain in held-out text by language, of those of the run; and by `<language>/<domain>`, of all that is held out."""
    from langext.data import documents

    every = documents.heldout(corpus, list(dict.fromkeys([*codes, *corpus.languages("valid")])))
    found = {name: _sizes(base, bigger, texts) for name, texts in every.items()}
    by_language = {code: _gain(*(sizes for name, sizes in found.items() if name.startswith(f"{code}/"))) for code in codes}
    return by_language, {name: _gain(sizes) for name, sizes in found.items()}


Sizes = tuple[int, int, int, int, int]
"""Bytes of some text, its tokens before and after, its documents, and how many of these are encoded as before."""


def _sizes(base: Any, bigger: Any, texts: Sequence[str]) -> Sizes:
    from langext.data import documents

    before, after = documents.encode_text(base, texts), documents.encode_text(bigger, texts)
    same = sum(a == b for a, b in zip(after, before, strict=True))
    return sum(len(t.encode()) for t in texts), sum(map(len, before)), sum(map(len, after)), len(texts), same


def _gain(*sets: Sizes) -> VocabularyGain:
    """The gain in all of several sets of text."""
    size, before, after, number, same = (sum(column) for column in zip((0,) * 5, *sets, strict=True))
    return VocabularyGain(
        bytes_per_token_before=size / max(1, before), bytes_per_token_after=size / max(1, after),
        identical_documents_frac=same / max(1, number), documents=number,
    )  # fmt: skip
