"""How much the rows of new tokens in the head take from the tokens of the base, and a shift that bounds it.

Hidden states of text of the original languages hold no new token, so the base and the extended model have the same ones. The
extended softmax differs by what new tokens add to its denominator. With Z of the base's tokens and Z' of the new ones,

    KL(base || extended) = mean over tokens of log((Z + Z') / Z) = mean of softplus(log Z' - log Z)  nats per token.

A head has no bias, so logits of new tokens are lowered along a direction d of the hidden states: row - a d with one a for all.
Shapes: T tokens, N new tokens, D model width.
"""

import torch
from torch import Tensor
from torch.nn.functional import softplus

CHUNK = 512
"""Tokens whose logits are in memory at a time."""
RIDGE = 1.0
"""Of `direction`, as a share of the mean square of a number of a hidden state. Larger moves the rows less, and the new language
loses more of its logits. SmolLM2-135M with 1,000 French tokens of mean rows (norm 2.0), shifted from 4.2e-3 to 1e-4 nats per
token on English: with 0.001 the rows move by 1.58 and French logits fall by 0.15 nats, with 1 by 0.40 and 0.25, with 10 by 0.31
and 0.90; along the mean of the states, without telling the languages apart, by 0.13 and 3.8."""
HALVINGS = 20
"""Steps of the bisection: the shift is exact to a millionth."""
MOST = 1e4
"""Largest shift that is tried, in nats."""
MARGIN = 0.8
"""Share of a budget that a shift is fitted to: other text of the same languages costs a little more than that."""


def bent(logits: Tensor, cap: float | None) -> Tensor:
    """Logits after the soft cap of some families, cap tanh(logits / cap)."""
    return cap * torch.tanh(logits / cap) if cap else logits


def log_sums(hidden_TD: Tensor, weight_VD: Tensor, cap: float | None = None) -> Tensor:
    """(T,) logarithms of the sums over the exponentials of all logits."""
    return torch.cat([bent(part @ weight_VD.T, cap).logsumexp(1) for part in hidden_TD.split(CHUNK)])


def disturbance(hidden_TD: Tensor, base_T: Tensor, rows_ND: Tensor, cap: float | None = None) -> float:
    """KL(base || extended) in nats per token. `base_T` are the `log_sums` of the base's own rows for these states."""
    return float(softplus(log_sums(hidden_TD, rows_ND, cap) - base_T).double().mean())


def direction(original_TD: Tensor, new_TD: Tensor) -> Tensor:
    """(D,) d for which h . d is 1 in the mean of the states of original text, and near 0 in text of the new language.

    The least squares (C_o + C_n + r I) d = m_o, with the second moments C of both and m_o the mean of the original states,
    scaled so that m_o . d = 1. So a shift lowers logits in original text, and the new language keeps most of them.
    """
    second_DD = original_TD.T @ original_TD / len(original_TD) + new_TD.T @ new_TD / len(new_TD)
    second_DD.diagonal().add_(RIDGE * second_DD.diagonal().mean())
    solved_D = torch.linalg.solve(second_DD, original_TD.mean(0))
    return solved_D / (original_TD.mean(0) @ solved_D)


def shifted(
    hidden_TD: Tensor, base_T: Tensor, rows_ND: Tensor, direction_D: Tensor, budget: float, cap: float | None = None
) -> tuple[Tensor, float]:
    """The rows with the smallest shift whose `disturbance` is within `MARGIN` of `budget`, and the shift in nats; 0 for none.

    Judge them by other text than that of `hidden_TD`, which they are fitted on. The rows are in numbers that bf16 has, in which
    weights are stored, and the disturbance is theirs. Raises ValueError when no shift is enough.
    """

    def at(shift: float) -> Tensor:
        return (rows_ND - shift * direction_D).bfloat16().float()

    def enough(shift: float) -> bool:
        return disturbance(hidden_TD, base_T, at(shift), cap) <= MARGIN * budget

    if enough(0.0):
        return at(0.0), 0.0
    low, high = 0.0, 1.0
    while not enough(high):
        low, high = high, 2 * high
        if high > MOST:
            raise ValueError(f"no shift of the new rows keeps the KL on original text below {budget:g} nats per token")
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return at(high), high
