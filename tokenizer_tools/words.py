"""Counts the words of text for learning a vocabulary: what the pre-tokenizer of a tokenizer makes of it, in its own letters.

The one rule: it sees what encoding sees. Text is normalised and divided as the tokenizer does it, a special token in it is
text, and other added tokens (the runs of blanks of GPT-NeoX, for example) are cut out, as they are found before words are.
"""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import regex
from tokenizers import Tokenizer, models, trainers

Progress = Callable[[str, int, int], None]
"""Called now and then with what is done, how much of it is done and how much there is in all (0: not known)."""
MOST_WORDS = 2_000_000
"""Different words that are learnt from. They bound the memory; rarer ones hardly count where frequent pairs are looked for."""
Word = TypeVar("Word", str, tuple[str, ...])


def counted(tokenizer: Tokenizer, texts: Iterable[str]) -> Counter[str]:
    """Number of times that each pre-token (roughly a word) occurs in the texts, keyed as the model of the tokenizer reads it.

    All cores normalise and divide text, which takes most of the time of learning a vocabulary; texts are read as they are
    needed, so that `told` can follow them.
    """
    counter = Tokenizer(models.WordLevel())
    if tokenizer.normalizer is not None:
        counter.normalizer = tokenizer.normalizer
    if tokenizer.pre_tokenizer is not None:
        counter.pre_tokenizer = tokenizer.pre_tokenizer
    trainer = trainers.WordLevelTrainer(vocab_size=1, show_progress=False)  # it counts words in parallel, without the lock
    counter.train_from_iterator(_without_added(tokenizer, texts), trainer)
    return Counter(json.loads(trainer.__getstate__())["WordLevelTrainer"]["words"])


def frequent(words: Counter[Word]) -> list[tuple[Word, int]]:
    """The most frequent words and their counts, in the order of the words."""
    if len(words) <= MOST_WORDS:
        return sorted(words.items())
    return sorted(sorted(words.items(), key=lambda item: (-item[1], item[0]))[:MOST_WORDS])


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
