"""Start `focus`: a new row is a sparse combination of the rows of base tokens that are used in a similar way.

Source: FOCUS, https://arxiv.org/abs/2305.14481. Similar are tokens with similar fastText vectors, trained on text of the new
language as tokens of the extended tokenizer. Sparsemax of the similarities gives the weights. With one thread the same text and
seed give the same vectors.
"""

import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from tokenizer_tools.start.material import Material, Rows
from tokenizer_tools.start.mean import subtoken_mean

DIMENSIONS, EPOCHS, MIN_COUNT = 100, 3, 10
"""As in the authors' code, https://github.com/konstantinjdobler/focus."""
LINE_END = "</s>"
"""What fastText puts at the end of every line."""
MOST_TOKENS = 5_000_000
"""Tokens of text that fastText reads in each epoch; what follows them is not read."""


def sparsemax(scores_NK: Tensor) -> Tensor:
    """(N, K) weights that add up to 1 in each row: the point of the simplex nearest to the scores, which has many zeros.

    Source: Martins and Astudillo 2016, https://arxiv.org/abs/1602.02068, algorithm 1.
    """
    sorted_NK = scores_NK.sort(dim=1, descending=True).values
    above_NK = sorted_NK.cumsum(1) - 1
    count_K = torch.arange(1, scores_NK.shape[1] + 1)
    support_N1 = (sorted_NK * count_K > above_NK).sum(1, keepdim=True)
    return (scores_NK - above_NK.gather(1, support_N1 - 1) / support_N1).clamp(min=0)


def combined(weight_KD: Tensor, known_KE: Tensor, new_NE: Tensor) -> Tensor:
    """(N, D) rows, combined from the rows `weight_KD` of K known tokens.

    `known_KE` and `new_NE` are the vectors of width E of the known and the new tokens; their cosines are the scores.
    """
    known_KE, new_NE = (torch.nn.functional.normalize(vectors.float()) for vectors in (known_KE, new_NE))
    parts = [sparsemax(part @ known_KE.T) @ weight_KD.float() for part in new_NE.split(256)]
    return torch.cat(parts)


def vectors(lines: Iterable[Sequence[str]], seed: int) -> dict[str, Tensor]:
    """Token -> (DIMENSIONS,) fastText vector, for every token that occurs MIN_COUNT times.

    `lines` are documents as tokens without white space. The vectors are of whole tokens, without n-grams of letters: with one
    thread fastText sets only a tenth of its matrix before it trains (`DenseMatrix::uniform` in its densematrix.cc), so every
    row gets its first values here, from `seed`. Raises ValueError when the training ends without numbers.
    """
    import fasttext

    with tempfile.TemporaryDirectory() as folder:
        path, begun = Path(folder) / "tokens.txt", Path(folder) / "begun.txt"
        counts: Counter[str] = Counter()
        with path.open("w", encoding="utf-8") as file:
            for line in lines:
                counts.update(line)
                file.write(" ".join(line) + "\n")
        words = sorted(token for token, count in counts.items() if count >= MIN_COUNT)
        if not words:
            return {}
        first = (torch.rand(len(words) + 1, DIMENSIONS, generator=torch.Generator().manual_seed(seed)) * 2 - 1) / DIMENSIONS
        with begun.open("w", encoding="utf-8") as file:
            file.write(f"{len(first)} {DIMENSIONS}\n")
            for word, values in zip([*words, LINE_END], first.tolist(), strict=True):
                file.write(f"{word} {' '.join(map(str, values))}\n")
        how = {"model": "skipgram", "dim": DIMENSIONS, "epoch": EPOCHS, "minCount": MIN_COUNT, "minn": 0, "maxn": 0}
        try:
            model = fasttext.train_unsupervised(str(path), pretrainedVectors=str(begun), thread=1, verbose=0, **how)
        except RuntimeError as error:
            raise ValueError(f"fastText: {error}") from None
    found = {token: torch.from_numpy(model.get_word_vector(token)) for token in words}
    if not all(vector.isfinite().all() for vector in found.values()):
        raise ValueError("fastText: its vectors are no numbers")
    return found


def rows(material: Material) -> Rows:
    """Rows of both matrices, with the same weights. A new token that is too rare for a vector gets the mean of its pieces."""
    first, left, lines = len(material.input_VD), MOST_TOKENS, []
    # What holds white space would be several words for fastText.
    words = [name if name and not any(letter.isspace() for letter in name) else "" for name in material.names]
    for document in material.text():
        if left <= 0:
            break
        lines.append([words[i] for i in document if words[i]])
        left -= len(document)
    found = vectors(lines, material.seed)
    known = [i for i in range(first) if words[i] in found]
    new = [i for i in range(len(material.pieces)) if words[first + i] in found]

    def formula(weight_VD: Tensor) -> Tensor:
        start_ND = subtoken_mean(weight_VD.float(), material.pieces)
        if known and new:
            known_KE, new_NE = (torch.stack([found[words[i]] for i in ids]) for ids in (known, [first + i for i in new]))
            start_ND[new] = combined(weight_VD[known], known_KE, new_NE)
        return start_ND

    return material.each(formula)
