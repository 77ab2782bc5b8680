"""Counts the words of text for learning a vocabulary: what the pre-tokenizer of a tokenizer makes of it, in its own letters.

The one rule: it sees what encoding sees. Text is normalised and divided as the tokenizer does it, a special token in it is
text, and other added tokens (the runs of blanks of GPT-NeoX, for example) are cut out, as they are found before words are.
"""

import json
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate, chain
from typing import TypeVar

import regex
from tokenizers import Tokenizer, models, trainers

Progress = Callable[[str, int, int], None]
"""Called now and then with what is done, how much of it is done and how much there is in all (0: not known)."""
MOST_TOKENS = 8_000_000
"""Tokens of the different words that are learnt from. They bound the memory: words alone do not, as one can be a whole clause
in scripts without spaces. Of words that occur once, as most clauses do, those that are left out are a random part."""
MOST_SIGNS = 24_000_000
"""Letters of the different words, or tokens where words are kept as these, that are counted side by side when some may go."""
CHARACTERS = 20_000_000
"""Text whose words are counted before they are added to those of earlier text."""
Word = TypeVar("Word", str, tuple[str, ...])
Tokens = TypeVar("Tokens", bound=Sequence[str])


def counted(tokenizer: Tokenizer, texts: Iterable[str], thin: bool = False) -> Counter[str]:
    """Number of times that each pre-token (roughly a word) occurs in the texts, keyed as the model of the tokenizer reads it.

    All cores normalise and divide text, which takes most of the time of learning a vocabulary; texts are read as they are
    needed, so that `told` can follow them. With `thin`, rare words go where there are very many (`thinned`).
    """
    counter = Tokenizer(models.WordLevel())
    if tokenizer.normalizer is not None:
        counter.normalizer = tokenizer.normalizer
    if tokenizer.pre_tokenizer is not None:
        counter.pre_tokenizer = tokenizer.pre_tokenizer
    counts: Counter[str] = Counter()
    left = _without_added(tokenizer, texts)
    for text in left:
        trainer = trainers.WordLevelTrainer(vocab_size=1, show_progress=False)  # it counts in parallel, without the lock
        counter.train_from_iterator(chain([text], _next(left)), trainer)
        counts.update(json.loads(trainer.__getstate__())["WordLevelTrainer"]["words"])
        if thin:
            counts = thinned(counts, sum(map(len, counts)))
    return counts


def _next(texts: Iterator[str]) -> Iterator[str]:
    """The next texts, until they have `CHARACTERS`."""
    read = 0
    while read < CHARACTERS and (text := next(texts, None)) is not None:
        read += len(text)
        yield text


def tallied(documents: Iterable[Iterable[Word]], thin: bool) -> Counter[Word]:
    """How often each word occurs in the documents. With `thin`, rare ones go where there are very many (`thinned`)."""
    counts: Counter[Word] = Counter()
    size = 0
    for words in documents:
        for word in words:
            size += 0 if word in counts else len(word)
            counts[word] += 1
        if thin and size > MOST_SIGNS:
            counts = thinned(counts, size)
            size = sum(map(len, counts))
    return counts


def thinned(counts: Counter[Word], size: int) -> Counter[Word]:
    """The counts, or when their words have a `size` above `MOST_SIGNS` those of the most frequent words with half of these.

    Of equally frequent words those stay that `ordered` puts first. What a word that goes was counted is lost, so protected text
    is never thinned. Manku and Motwani 2002, https://www.vldb.org/conf/2002/S10P03.pdf, drop all words of a count in its place:
    of sentences, which are words in scripts without spaces, none might be left.
    """
    if size <= MOST_SIGNS:
        return counts
    words = ordered(counts)
    ends = accumulate(map(len, words))
    return Counter({word: counts[word] for word, end in zip(words, ends, strict=True) if end <= MOST_SIGNS // 2})


def ordered(counts: Counter[Word]) -> list[Word]:
    """The words, the most frequent first, and of equals in an order that is always the same and has nothing to do with letters.

    A sorted order would leave out all that begins with the last letters, where most words occur once.
    """
    return sorted(counts, key=lambda word: (-counts[word], zlib.crc32("".join(word).encode(errors="surrogatepass")), word))


def frequent(words: Counter[Word], written: Callable[[Word], Tokens]) -> Iterator[tuple[Tokens, int]]:
    """The tokens of the most frequent words, as `written` writes them, and their counts, until they are `MOST_TOKENS`."""
    left = MOST_TOKENS
    for word in ordered(words):
        tokens = written(word)
        left -= len(tokens)
        if left < 0:
            return
        yield tokens, words[word]


def _without_added(tokenizer: Tokenizer, texts: Iterable[str]) -> Iterator[str]:
    """The texts, divided at the added tokens that are not special: nothing is learnt of them or across them."""
    added = [token for token in tokenizer.get_added_tokens_decoder().values() if not token.special]
    if not added:
        yield from texts
        return
    ways = (
        (r"\s*" if token.lstrip else "")
        + (rf"(?<!\w){regex.escape(token.content)}(?!\w)" if token.single_word else regex.escape(token.content))
        + (r"\s*" if token.rstrip else "")
        for token in sorted(added, key=lambda token: -len(token.content))
    )
    divider = regex.compile("|".join(ways))
    for text in texts:
        yield from (piece for piece in divider.split(text) if piece)


def told(texts: Iterable[str], progress: Progress, total: int = 0) -> Iterator[str]:
    """The same texts; `progress` hears of the bytes that were read, of `total` that are expected (0: not known)."""
    done = 0
    for text in texts:
        yield text
        done += len(text.encode())
        progress("bytes read", done, total)


def untold(what: str, done: int, total: int) -> None:
    """A `Progress` that nobody hears of."""


def telling(write: Callable[[str], None], seconds: float = 10) -> Progress:
    """A `Progress` that writes a line every so many seconds, with the time that is left where the end is known."""
    began, last, before = 0.0, 0.0, ("", 0)

    def tell(what: str, done: int, total: int) -> None:
        nonlocal began, last, before
        now = time.monotonic()
        if what != before[0] or done < before[1]:
            began, last = now, now  # other work has begun
        before = (what, done)
        if now - last < seconds:
            return
        last = now
        left = f", {(now - began) * (total - done) / done:.0f} s left" if total and done else ""
        write(f"  {what}: {done:,}{f' of {total:,}' if total else ''}{left}")

    return tell
