"""What a start of new rows is computed from, and what it gives.

Shapes: V rows of the base, N new tokens, D model width.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """Rows of a pair of matrices in float32: N of new tokens, or those of the base."""

    input_ND: Tensor
    output_ND: Tensor | None
    """None where input and output are one matrix (tied): the input rows are the output rows."""

    @property
    def head_ND(self) -> Tensor:
        """The rows that the head reads."""
        return self.input_ND if self.output_ND is None else self.output_ND

    @property
    def named(self) -> dict[str, Tensor]:
        """`input` and, unless tied, `output`."""
        return {"input": self.input_ND} | ({} if self.output_ND is None else {"output": self.output_ND})

    def with_head(self, rows_ND: Tensor) -> "Rows":
        """The same with other rows for the head, which are the input rows too where both are one."""
        return Rows(rows_ND, None) if self.output_ND is None else Rows(self.input_ND, rows_ND)

    def map(self, change: Callable[[Tensor], Tensor]) -> "Rows":
        """Both changed in the same way."""
        return Rows(change(self.input_ND), None if self.output_ND is None else change(self.output_ND))


@dataclass(frozen=True)
class Material:
    """All that a start may look at. Only the rows of the base that its tokenizer has tokens for are here, without padding."""

    input_VD: Tensor
    """Input embeddings of the base."""
    output_VD: Tensor | None
    """The matrix of its head; None if it is tied to the input."""
    pieces: Sequence[Sequence[int]]
    """For each new token the ids of the base tokens that make up the same text."""
    lengths: Sequence[int]
    """For each base token how many characters it stands for; bytes of a character that is cut count as one together."""
    seed: int
    names: Sequence[str]
    """Base tokens and then the new ones, as they are written in the vocabulary."""
    text: Callable[[], Iterable[Sequence[int]]] = tuple
    """Training text of the new language: ids by the extended tokenizer, one document at a time. New ids begin at V."""
    states: Callable[[Tensor, Tensor], Tensor] | None = None
    """(B, T) ids and (N, D) input rows of the new tokens -> (B, T, D) last hidden states of the model, with gradients."""

    @property
    def head_VD(self) -> Tensor:
        """The rows that the base's head reads."""
        return self.input_VD if self.output_VD is None else self.output_VD

    def each(self, formula: Callable[[Tensor], Tensor]) -> Rows:
        """The rows that one formula gives for the input matrix, and for the output matrix if there is one."""
        return Rows(self.input_VD, self.output_VD).map(formula)

    def spelt(self, ids: Sequence[int]) -> Iterator[list[int]]:
        """For each id of the extended tokenizer the ids of the base that stand for the same text."""
        first = len(self.input_VD)
        return (list(self.pieces[i - first]) if i >= first else [i] for i in ids)


def packed(documents: Iterable[Sequence[int]], length: int) -> Iterator[list[int]]:
    """Runs of `length` ids of documents that follow on one another. The rest is left out."""
    waiting: list[int] = []
    for document in documents:
        waiting += document
        while len(waiting) >= length:
            yield waiting[:length]
            waiting = waiting[length:]
