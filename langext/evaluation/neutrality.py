"""Measure how far a model has moved from its base, token by token, in float32.

The one rule: this file needs torch and transformers alone, because a copy of it travels with exports (see certify.py). Base and
model read the same passages in batches of the same shapes, so that equal computations give equal bits.
Shapes: B passages, T tokens, D model width, V vocabulary, N tokens of a chunk.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from math import ceil, isfinite, log
from typing import Any

import torch
from torch import Tensor

from langext.data.plain_text import encode_text, own_start
from langext.evaluation.open_gates import Opened, as_base, gates

CHUNK_TOKENS = 128
"""Tokens whose logits are in memory at once, of both models."""
WRITING = 20
"""About how many tokens are read in the time in which one is written, for the telling of progress."""
TEXT_CUT = 300
"""Most characters that are shown of a passage."""


class Mismatch(Exception):
    """Models or text that cannot be measured; says why."""


@dataclass(frozen=True)
class Subject:
    """One of the two models. It is loaded when it is needed, so that two need not be in memory at once."""

    tokenizer: Any
    load: Callable[[], Any]
    """Gives the model in float32 and evaluation mode."""
    as_itself: Callable[[], AbstractContextManager[None]] = nullcontext
    """Inside this context the net is this model; base and model may share a net."""
    watch: "Callable[[Any], Opened] | None" = None
    """Gives the reader of the open gates of a net; `gates` if not given."""


@dataclass(frozen=True)
class Settings:
    """What decides the figures, apart from the models and the text."""

    batch: int = 4
    """Passages in a forward pass, filled up on the right to the longest."""
    continuations: int = 32
    """Most passages of each set whose first half is continued."""
    new_tokens: int = 32
    """Length of a greedy continuation."""
    earlier: int = 0
    """Extensions that the base has already. Their gates are not counted where `Subject.watch` is not given."""


@dataclass
class Passage:
    """A passage of text and what was measured on it: on all its tokens, or on the first `compared`, whose ids are the same."""

    set: str
    text: str
    of_base: list[int]
    of_model: list[int]
    hidden: Tensor = field(default_factory=lambda: torch.empty(0))
    """(T, D) last hidden states of the base, on the CPU."""
    nats: list[float] = field(default_factory=lambda: [0.0, 0.0])
    """-log p of the text under base and model."""
    per_token: dict[str, Tensor] = field(default_factory=dict)
    """kl, hidden, logits, difference and, of gates that close, closed and as_base: (compared,) each."""

    @property
    def compared(self) -> int:
        """Number of tokens at the start that have the same ids, the start token among them."""
        pairs = zip(self.of_base, self.of_model, strict=False)
        return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(self.of_base), len(self.of_model)))

    @property
    def same_ids(self) -> int:
        """Number of the base's tokens that are tokens of the model too, in the same order."""
        if self.of_base == self.of_model:
            return len(self.of_base)
        blocks = SequenceMatcher(None, self.of_base, self.of_model, autojunk=False).get_matching_blocks()
        return sum(block.size for block in blocks)


class Head:
    """The language-model head of a net: hidden states to logits. Keeps nothing else of the net in memory."""

    def __init__(self, net: Any):
        self.module, config = net.get_output_embeddings(), net.config
        self.scale, self.cap = getattr(config, "logits_scaling", None) or 1.0, getattr(config, "final_logit_softcapping", None)

    def __call__(self, hidden_ND: Tensor) -> Tensor:
        """(N, D) -> (N, V) logits in float32."""
        logits = self.module(hidden_ND).float() / self.scale
        return self.cap * torch.tanh(logits / self.cap) if self.cap else logits

    def check(self, net: Any, row: list[int]) -> None:
        """Raise Mismatch when the net makes other logits of these tokens: it computes something that is not known here."""
        ids_BT = torch.tensor([row], device=_device(net))
        want, got = net(input_ids=ids_BT, use_cache=False).logits[0].float(), self(_hidden(net, ids_BT)[0])
        if (want - got).abs().max() > 1e-3 * want.std() + 1e-4:
            raise Mismatch(f"{type(net).__name__}: its logits are more than its head makes of its hidden states")


def encode(tokenizer: Any, text: str) -> list[int]:
    """Token ids, as `langext.data.documents.encode` makes them. Raises Mismatch when the tokenizer has no start token."""
    own = own_start(tokenizer)
    start = own[0] if own else tokenizer.eos_token_id
    if start is None:
        raise Mismatch("the tokenizer has no start token and no end-of-text token")
    return [start, *encode_text(tokenizer, [text])[0]]


@torch.no_grad()
def measure(
    base: Subject, model: Subject, sets: Mapping[str, Sequence[str]], settings: Settings, counted: Sequence[str] = (),
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:  # fmt: skip
    """The figures of every set of passages, of every language (a set is called `<language>/<domain>`) and in total.

    `counted` are the sets that make the total; all if empty. `tell` is called with the work done and all the work. Returns
    {"sets": {...}, "languages": {...}, "total": {...}} of the rows that `row` makes. Raises Mismatch for a passage that is
    longer than a model has positions and for models that do not belong together, and ArithmeticError for weights that overflow.
    """
    passages = [
        Passage(name, text, encode(base.tokenizer, text), encode(model.tokenizer, text))
        for name, texts in sets.items() for text in texts
    ]  # fmt: skip
    if not all(p.compared for p in passages):
        raise Mismatch("base and model begin a text with different tokens; is this the base of the model?")
    ordered = sorted(passages, key=lambda p: -max(len(p.of_base), len(p.of_model)))
    batches = [ordered[at : at + settings.batch] for at in range(0, len(ordered), settings.batch)]
    prompts = [p for name in sets for p in [p for p in passages if p.set == name][: settings.continuations]]
    work, done = 2 * (sum(len(p.of_base) for p in passages) + len(prompts) * settings.new_tokens * WRITING), 0

    def worked(tokens: int) -> None:
        nonlocal done
        done += tokens
        tell(done, work)

    first, before = _read_by_base(base, batches, prompts, settings, worked)
    shared = _shared(base.tokenizer, model.tokenizer)
    after = _read_by_model(model, batches, prompts, settings, worked, first, shared)
    same = {id(p): a == b for p, a, b in zip(prompts, before, after, strict=True)}

    def together(names: Sequence[str]) -> dict[str, Any]:
        return row([p for p in passages if p.set in names], [same[id(p)] for p in prompts if p.set in names])

    codes = dict.fromkeys(name.split("/")[0] for name in sets)
    return {
        "sets": {name: together([name]) for name in sets},
        "languages": {code: together([name for name in sets if name.split("/")[0] == code]) for code in codes},
        "total": together(list(counted or sets)),
    }


Work = Callable[[int], None]


def _read_by_base(
    base: Subject, batches: Sequence[Sequence[Passage]], prompts: Sequence[Passage], settings: Settings, worked: Work
) -> tuple[Head, list[str]]:
    """Keep the base's hidden states in the passages; return its head and its continuations."""
    net = base.load()
    with base.as_itself():
        head = _ready(net, [p.of_base for batch in batches for p in batch])
        for batch in batches:
            hidden_BTD = _hidden(net, _ids(net, batch, [p.of_base for p in batch]))
            for p, hidden_TD in zip(batch, hidden_BTD, strict=True):
                p.hidden = hidden_TD[: len(p.of_base)].cpu().clone()
            worked(sum(len(p.of_base) for p in batch))
        return head, _written(net, base.tokenizer, prompts, settings, worked)


def _read_by_model(
    model: Subject, batches: Sequence[Sequence[Passage]], prompts: Sequence[Passage], settings: Settings, worked: Work,
    first: Head, shared: Tensor | None,
) -> list[str]:  # fmt: skip
    """Compare the model with what the base has left in the passages; return the model's continuations."""
    net = model.load()
    with model.as_itself():
        head = _ready(net, [p.of_model for batch in batches for p in batch])
        opened = model.watch(net) if model.watch else gates(net, settings.earlier)
        for batch in batches:
            ids_BT = _ids(net, batch, [p.of_model for p in batch])
            hidden_BTD, open_LBT = _hidden(net, ids_BT), opened(*ids_BT.shape)
            if hidden_BTD.shape[-1] != batch[0].hidden.shape[-1]:
                raise Mismatch("base and model have hidden states of different widths; is this the base of the model?")
            flags = {} if open_LBT is None else {"closed": ~open_LBT.any(0), "as_base": as_base(open_LBT)}
            for k, p in enumerate(batch):
                p.per_token = {name: flag_BT[k, : p.compared].cpu() for name, flag_BT in flags.items()}
                _compare(p, hidden_BTD[k, : len(p.of_model)], first, head, shared)
            worked(sum(len(p.of_base) for p in batch))
        return _written(net, model.tokenizer, prompts, settings, worked)


def _device(net: Any) -> torch.device:
    return net.get_input_embeddings().weight.device


def _hidden(net: Any, ids_BT: Tensor) -> Tensor:
    return net.base_model(input_ids=ids_BT, use_cache=False).last_hidden_state


def _ready(net: Any, rows: list[list[int]]) -> Head:
    """The head of a net that can read all these rows. Raises Mismatch when it cannot."""
    longest, positions = max(map(len, rows)), getattr(net.config, "max_position_embeddings", None)
    if positions and longest > positions:
        raise Mismatch(f"a passage has {longest} tokens, and {type(net).__name__} has {positions} positions")
    head = Head(net)
    head.check(net, rows[-1])
    return head


def _ids(net: Any, batch: Sequence[Passage], rows: list[list[int]]) -> Tensor:
    """(B, T) ids, as wide for the base as for the model. Attention is causal, so what fills up the right needs no mask."""
    width = max(max(len(p.of_base), len(p.of_model)) for p in batch)
    return torch.tensor([row + [0] * (width - len(row)) for row in rows], device=_device(net))


def _shared(base: Any, model: Any) -> Tensor | None:
    """The ids that stand for the same token in both vocabularies; None where all do, those of rows without a token included."""
    before, after = base.get_vocab(), model.get_vocab()
    if before == after:
        return None
    # A row without a token in the base, or with a reserved one, may be that of a new token in the model.
    return torch.tensor(sorted(i for token, i in before.items() if after.get(token) == i))


def _compare(p: Passage, after_TD: Tensor, first: Head, second: Head, shared: Tensor | None) -> None:
    """Fill in `nats` and `per_token` of a passage. `after_TD` are the last hidden states of the model."""
    count, before_TD = p.compared, p.hidden.to(after_TD.device)
    found: dict[str, list[Tensor]] = {"kl": [], "logits": [], "difference": []}
    for at in range(0, max(len(before_TD), len(after_TD)), CHUNK_TOKENS):
        logits = [head(hidden[at : at + CHUNK_TOKENS]) for head, hidden in ((first, before_TD), (second, after_TD))]
        size = min(part.shape[1] for part in logits)
        ids = slice(size) if shared is None else shared[shared < size].to(after_TD.device)  # a slice is no copy of the logits
        log_p, log_q = (part.log_softmax(-1) for part in logits)  # over all ids, before the cut to shared ones
        for k, (log_probs, row) in enumerate(((log_p, p.of_base), (log_q, p.of_model))):
            following = torch.tensor(row[at + 1 : at + 1 + len(log_probs)], device=log_probs.device, dtype=torch.long)
            p.nats[k] -= float(log_probs[: len(following)].gather(1, following[:, None]).double().sum())
        n = max(0, min(count - at, CHUNK_TOKENS))
        before, after, log_p, log_q = (part[:n, ids] for part in (*logits, log_p, log_q))
        apart = (before - after).abs()
        found["difference"].append(apart.amax(-1))
        found["logits"].append((apart == 0).all(-1))
        found["kl"].append((log_p.exp() * (log_p - log_q)).sum(-1).double())
    p.per_token |= {name: torch.cat(parts).cpu() for name, parts in found.items()}
    p.per_token["hidden"] = (before_TD[:count] == after_TD[:count]).all(-1).cpu()
    p.hidden = torch.empty(0)


def _written(net: Any, tokenizer: Any, prompts: Sequence[Passage], settings: Settings, worked: Work) -> list[str]:
    """The greedy continuation of the first half of each passage, as text. Only the logits decide, no setting of the model."""
    from transformers import GenerationConfig

    own, net.generation_config = net.generation_config, GenerationConfig(pad_token_id=0)
    stops = net.config.eos_token_id
    stops = stops if isinstance(stops, list) else [stops]
    found = []
    for at in range(0, len(prompts), settings.batch):
        rows = [encode(tokenizer, p.text[: len(p.text) // 2]) for p in prompts[at : at + settings.batch]]
        width = max(map(len, rows))
        # Filled up on the left, so that every prompt ends where its continuation begins.
        ids = torch.tensor([[0] * (width - len(row)) + row for row in rows], device=_device(net))
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=_device(net))
        positions = getattr(net.config, "max_position_embeddings", None) or width + settings.new_tokens
        most = max(1, min(settings.new_tokens, positions - width))
        out = net.generate(input_ids=ids, attention_mask=mask, max_new_tokens=most, do_sample=False)
        for row in out[:, width:].tolist():
            end = next((i + 1 for i, token in enumerate(row) if token in stops), len(row))
            found.append(tokenizer.decode(row[:end]))
        worked(len(rows) * settings.new_tokens * WRITING)
    net.generation_config = own
    return found


def row(passages: Sequence[Passage], continuations: Sequence[bool]) -> dict[str, Any]:
    """The figures of these passages together. Raises ArithmeticError when KL or bits per byte are not finite."""
    every = {name: torch.cat([p.per_token[name] for p in passages]) for name in passages[0].per_token}
    kl, num_bytes = every["kl"], sum(len(p.text.encode()) for p in passages)
    worst = max(passages, key=lambda p: float(p.per_token["kl"].mean()))
    bits = [sum(p.nats[k] for p in passages) / log(2) / num_bytes for k in (0, 1)]
    if not all(map(isfinite, [float(kl.mean()), *bits])):
        raise ArithmeticError("KL or bits per byte are no finite number: the weights of a model overflow")
    tokens = sum(len(p.of_base) for p in passages)

    def share(name: str) -> float | None:
        return float(every[name].double().mean()) if name in every else None

    lost = torch.stack([p.per_token["kl"].sum() - kl.mean() * len(p.per_token["kl"]) for p in passages])
    error = float((lost.square().sum() * len(passages) / (len(passages) - 1)).sqrt() / len(kl)) if len(passages) > 1 else None
    quiet = every["difference"][every["as_base"]] if "as_base" in every else []
    return {
        "passages": len(passages), "bytes": num_bytes, "tokens": tokens, "compared": len(kl),
        "same_ids": sum(p.same_ids for p in passages) / tokens, "closed": share("closed"), "as_base": share("as_base"),
        "hidden_identical": share("hidden"), "logits_identical": share("logits"),
        "as_base_logit_difference": float(max(quiet)) if len(quiet) else None,
        "kl": float(kl.mean()), "kl_error": error, "kl_p99": float(kl.sort().values[ceil(0.99 * len(kl)) - 1]),
        "worst_kl": float(worst.per_token["kl"].mean()), "worst_text": shown(worst.text),
        "bits_per_byte_of_base": bits[0], "bits_per_byte": bits[1],
        "continuations": len(continuations),
        "continuations_identical": sum(continuations) / len(continuations) if continuations else None,
    }  # fmt: skip


def shown(text: str) -> str:
    """The beginning of a text on one line, what does not print as escapes."""
    plain = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    return plain if len(plain) <= TEXT_CUT else plain[: TEXT_CUT - 3] + "..."
