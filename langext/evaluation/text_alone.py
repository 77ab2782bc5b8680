"""How lm-eval's models read text here: as all of langext does.

The rules: text that spells a special token stays text, and what has nothing before it stands after the start token alone.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from langext.data import documents, plain_text


class TextAlone:
    """Comes before lm-eval's class of models, HFLM, in a class of both, and takes over its two ways to encode text."""

    tokenizer: Any
    add_bos_token: bool | None
    """False leaves the start token out; None does as the tokenizer does."""

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, left_truncate_len: int | None = None, **_: Any
    ) -> list[int]:
        """Token ids of a text, after the tokenizer's own start token if it has one; the last `left_truncate_len` if given."""
        wanted = self.add_bos_token if add_special_tokens is None else add_special_tokens
        (ids,) = plain_text.encode_text(self.tokenizer, [string], self.special)
        first = [] if wanted is False else self.first
        return [*first, *ids][-(left_truncate_len or 0) :]

    def tok_batch_encode(
        self, strings: Sequence[str], padding_side: str = "left", left_truncate_len: int | None = None, **_: Any
    ) -> tuple[Any, Any]:
        """Token ids (B, T) and attention mask (B, T) of several texts, padded to the longest."""
        rows = [self.tok_encode(text, left_truncate_len=left_truncate_len) for text in strings]
        padded = self.tokenizer.pad({"input_ids": rows}, padding_side=padding_side, return_tensors="pt")
        return padded["input_ids"], padded["attention_mask"]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts. lm-eval puts a start token before each, so the tokenizer does not."""
        kept, self.add_bos_token = self.add_bos_token, False
        try:
            return super().loglikelihood_rolling(requests, disable_tqdm)  # type: ignore[misc]
        finally:
            self.add_bos_token = kept

    @cached_property
    def prefix_token_id(self) -> int:
        """The token that lm-eval puts before a text that has no context. Its own is one of chat in some tokenizers."""
        return documents.start_token(self.tokenizer)

    @cached_property
    def special(self) -> set[int]:
        """Ids of special tokens, found once: lm-eval encodes one text at a time."""
        return plain_text.special_ids(self.tokenizer)

    @cached_property
    def first(self) -> list[int]:
        """The start token, if the tokenizer itself puts one before a text. An end token that it puts behind is not taken."""
        return plain_text.own_start(self.tokenizer)
