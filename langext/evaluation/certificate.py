"""The content of neutrality.json: how far a model has moved from its base on text that it should not have touched."""

from collections.abc import Iterable
from math import nan
from pathlib import Path
from typing import Literal

from langext.artifacts import FileRecord, read_as, read_object
from langext.errors import ConfigError
from langext.spec import Spec, Summary

FILE = "neutrality.json"
FORMAT = "langext neutrality 1"
KEPT_KL = 0.005
"""A language counts as kept up to this KL(base || model), in nats per token."""
SHARES = {"ids": "same_ids", "closed": "closed", "as_base": "as_base", "hidden": "hidden_identical",
          "logits": "logits_identical", "continuations": "continuations_identical"}  # fmt: skip
"""Name in a condition -> the share of a row that is as in the base; the measure is the share that is not."""


class Row(Spec):
    """What was measured on one set of passages, or on several together. Tokens are the base's, the start token among them."""

    role: Literal["original", "protected", "measured", "given"] | None = None
    """Of a set: text of an original language of the run, other text that is protected, text that was only measured and is not
    protected, or text that was given without a run. None of several sets together."""
    passages: int
    bytes: int
    tokens: int
    compared: int
    """Tokens that have the same ids as in the model, and so have all before them. All shares below are of these."""
    same_ids: float
    """Share of the tokens that are tokens of the model's tokenizer too, in the same order."""
    closed: float | None
    """Share whose own gates are all closed; None for models whose gates never close, or that have none."""
    as_base: float | None
    """Share that no open gate has influenced: none of their own and, through attention, none of a token before them."""
    hidden_identical: float
    """Share whose hidden state after the last layer has the same bits as the base's."""
    logits_identical: float
    """Share whose logits have the same bits, over the ids that both have."""
    as_base_logit_difference: float | None
    """Largest difference of a logit among the tokens that no open gate has influenced: what rounding alone makes."""
    kl: float
    """KL(base || model) in nats per token."""
    kl_error: float | None = None
    """Standard error of `kl` over passages, as of a ratio of two sums; None of a single passage."""
    kl_p99: float
    """99 % of the tokens have at most this KL."""
    worst_kl: float
    """KL in nats per token of the passage where it is largest."""
    worst_text: str
    """The beginning of that passage, at most 300 characters; what does not print is escaped. Empty where text is kept back."""
    bits_per_byte_of_base: float
    bits_per_byte: float
    continuations: int
    """Passages whose first half was continued greedily by both."""
    continuations_identical: float | None
    """Share of them that both continue by the same text."""


class Measured(Spec):
    """One of the two models."""

    name: str
    """The last part of a path, a hub repository or an asset."""
    public: bool = False
    """True of a base that others can get from the hub."""
    commit: str | None = None
    architecture: str
    files: list[FileRecord]
    extended: bool = False
    """True of a base that has extensions of its own; `files` are then those below them, and no folder has them all."""


class TextFile(Spec):
    """A file that passages were taken from."""

    set: str
    """`<language>/<domain>`."""
    name: str
    """Without its folder."""
    bytes: int
    sha256: str


class MeasuredWith(Spec):
    """How it was measured."""

    batch: int
    """Passages in a forward pass. Both models get the same shapes."""
    continuations: int
    """Most passages of a set that are continued."""
    new_tokens: int
    """Tokens of a continuation."""
    earlier: int = 0
    """Extensions that the base has already, whose gates are not counted."""


class Certificate(Summary):
    """The content of neutrality.json, and the summary of stage certify."""

    of: Literal["certify"] = "certify"
    format: Literal["langext neutrality 1"] = FORMAT
    model: Measured
    base: Measured
    text: list[TextFile]
    passages_sha256: str
    """Of neutrality.jsonl, which holds the passages, or would hold them."""
    passage_bytes: dict[str, int]
    """Set -> most UTF-8 bytes of a passage."""
    dtype: Literal["float32"] = "float32"
    """Precision of both models while they were measured, whatever they are stored in."""
    settings: MeasuredWith
    kept_kl: float = KEPT_KL
    """A language counts as kept up to this KL in nats per token."""
    sets: dict[str, Row]
    """By `<language>/<domain>`."""
    languages: dict[str, Row]
    total: Row
    """All sets but those that were only measured."""
    langext: str
    """The version that measured."""
    machine: dict[str, str]
    """What decides how products of matrices are rounded: device, threads, versions."""
    seconds: float

    def measures(self) -> dict[str, float]:
        """Figures for conditions by their `measure_names`, all better when smaller, and nan where they are not known."""
        found: dict[str, float] = {}
        for name, row in {**self.sets, **self.languages, "total": self.total}.items():
            found |= {f"{name}.{key}": getattr(row, key) for key in ("kl", "kl_p99", "worst_kl")}
            found[f"{name}.bpb_increase"] = row.bits_per_byte / row.bits_per_byte_of_base - 1
            for short, key in SHARES.items():
                share = getattr(row, key)
                found[f"{name}.{short}_lost"] = nan if share is None else 1 - share
        return found


def measure_names(sets: Iterable[str]) -> list[str]:
    """`<set>.<figure>`, `<language>.<figure>` and `total.<figure>`: kl, kl_p99, worst_kl, bpb_increase, and of each of `SHARES`
    `<share>_lost`.
    """
    figures = ["kl", "kl_p99", "worst_kl", "bpb_increase", *(f"{name}_lost" for name in SHARES)]
    names = list(sets)
    return [
        f"{name}.{figure}"
        for name in [*names, *dict.fromkeys(name.split("/")[0] for name in names), "total"]
        for figure in figures
    ]


def read_file(path: Path) -> Certificate:
    """Read a neutrality.json. Raises ConfigError for a damaged file, or one from another version of langext."""
    if read_object(path).get("format") != FORMAT:
        raise ConfigError(f"{path}: written by another version of langext; certify again")
    return read_as(path, Certificate)
