"""Counts the words of text for learning a vocabulary: what the pre-tokenizer of a tokenizer makes of it, in its own letters.

The one rule: it sees what encoding sees. Text is normalised and divided as the tokenizer does it, a special token in it is
text, and other added tokens (the runs of blanks of GPT-NeoX, for example) are cut out, as they are found before words are.
"""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

import regex
from tokenizers import Tokenizer, models, trainers

Progress = Callable[[str, int, int], None]
"""Called now and then with what is done, how much of it is done and how much there is in all (0: not known)."""


def silent(what: str, done: int, total: int) -> None:
    """The `Progress` that says nothing."""


def counted(tokenizer: Tokenizer, texts: Iterable[str], progress: Progress = silent, total_bytes: int = 0) -> Counter[str]:
    """Number of times that each pre-token (roughly a word) occurs in the texts, keyed as the model of the tokenizer reads it.

    All cores normalise and divide text, which takes most of the time of learning a vocabulary; texts are read as they are
    needed. `progress` is told the bytes of text that were read, `total_bytes` are those expected.
    """
    counter = Tokenizer(models.WordLevel())
    if tokenizer.normalizer is not None:
        counter.normalizer = tokenizer.normalizer
    if tokenizer.pre_tokenizer is not None:
        counter.pre_tokenizer = tokenizer.pre_tokenizer
    trainer = trainers.WordLevelTrainer(vocab_size=1, show_progress=False)  # it counts words in parallel, without the lock
    counter.train_from_iterator(_told(_without_added(tokenizer, texts), progress, total_bytes), trainer)
    return Counter(json.loads(trainer.__getstate__())["WordLevelTrainer"]["words"])


def _without_added(tokenizer: Tokenizer, texts: Iterable[str]) -> Iterator[str]:
    """The texts, divided at the added tokens that are not special: nothing is learnt of them or across them."""
    added = [token for token in tokenizer.get_added_tokens_decoder().values() if not token.special]
    if not added:
        yield from texts
        return
    ways = (
        (r"\s*" if token.lstrip else "") + regex.escape(token.content) + (r"\s*" if token.rstrip else "")
        for token in sorted(added, key=lambda token: -len(token.content))
    )
    divider = regex.compile("|".join(ways))
    for text in texts:
        yield from (piece for piece in divider.split(text) if piece)


def _told(texts: Iterable[str], progress: Progress, total: int) -> Iterator[str]:
    """The same texts; `progress` hears of their bytes once a second."""
    done, last = 0, time.monotonic()
    for text in texts:
        yield text
        done += len(text.encode())
        if time.monotonic() - last >= 1:
            progress("words counted", done, total)
            last = time.monotonic()
