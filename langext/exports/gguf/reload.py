"""A script for a fresh process: load a GGUF file in llama.cpp, and compare it with what is expected.

The one rule: nothing here imports langext. llama.cpp keeps keys and values in float32 here, so that differences come only from
the precision of the weights and from llama.cpp's own rounding.
"""

import importlib
import json
import math
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

CLEAR = 1.0
"""A position is clear when the most likely token leads the second one by more than this, in nats. There both must agree."""
TIMEOUT_S = 600
"""Seconds to wait for one answer."""
POSITIONS = 8
"""Positions of each text that are compared, evenly spaced."""


class Runner:
    """A llama.cpp server inside this process, reached through a loopback address."""

    def __init__(self, path: str, context: int):
        xllamacpp: Any = importlib.import_module("xllamacpp")
        params = xllamacpp.CommonParams()
        params.model.path = path
        params.n_ctx, params.n_parallel, params.n_gpu_layers = context, 1, 0
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.warmup, params.verbosity = False, -1
        self.server = xllamacpp.Server(params)
        self.direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # never through a proxy
        self.letter = self.tokens("a", special=False)[-1]  # an ordinary token, for `next`

    def ask(self, path: str, **body: Any) -> Any:
        """Send one request with the JSON `body`; return the decoded JSON answer."""
        data = json.dumps(body).encode()
        request = urllib.request.Request(self.server.listening_address + path, data, {"Content-Type": "application/json"})
        try:
            with self.direct.open(request, timeout=TIMEOUT_S) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"llama.cpp refuses {path}: {error.read()[:300]!r}") from None

    def tokens(self, text: str, *, special: bool = True) -> list[int]:
        """All token ids of a text; if `special`, with the start and end tokens that the model's tokenizer adds."""
        return self.ask("/tokenize", content=text, add_special=special, parse_special=False)["tokens"]

    def next(self, ids: list[int], top: int) -> dict[int, float]:
        """Return the `top` most likely next tokens after `ids`, most likely first: token id -> log-probability in nats."""
        body = {"prompt": ids, "n_predict": 1, "n_probs": top, "temperature": 0.0, "cache_prompt": True}
        # The server reports nothing when the drawn token ends the text or is only a part of a character. The bias makes it draw
        # a letter instead; the log-probabilities that it reports are those before the bias.
        answer = self.ask("/completion", **body, logit_bias=[[self.letter, 1e4]])
        return {row["id"]: row["logprob"] for row in answer["completion_probabilities"][0]["top_logprobs"]}

    def greedy(self, ids: list[int], count: int) -> list[int]:
        """Continue `ids` greedily; return at most `count` new token ids."""
        body = {"prompt": ids, "n_predict": count, "temperature": 0.0, "samplers": ["temperature"], "return_tokens": True}
        return self.ask("/completion", **body)["tokens"]


def divergence(want: Any, got: Any, rest: bool) -> float:
    """KL(want || got) in nats, from the log-probabilities of some tokens of the vocabulary (float tensors of the same shape).

    `rest`: the vocabulary has more tokens; they count together as one. The result is a lower bound of the KL over the whole
    vocabulary (log-sum inequality, https://en.wikipedia.org/wiki/Log_sum_inequality). It is above zero as soon as any
    probability here differs.
    """
    kl = (want.exp() * (want - got)).sum().item()
    if rest:
        # At least 1e-12, because rounding can leave zero or less, which has no logarithm.
        p, q = (max(1e-12, 1 - x.exp().sum().item()) for x in (want, got))
        kl += p * math.log(p / q)
    return kl


def main(job_file: Path) -> None:
    """Run the GGUF file of a job, and print one line of JSON with the results: the comparison fields of `GGUFFile`."""
    import torch
    from safetensors.torch import load_file

    job = json.loads(job_file.read_text(encoding="utf-8"))
    runner = Runner(job["file"], 32 + max(map(len, job["ids"])) + job["new_tokens"])
    worst = kl = next_theirs = next_wanted = 0.0
    nexts = 0
    positions = agree = clear = clear_agree = greedy_equal = tokens_equal = 0
    for i, ids in enumerate(job["ids"]):
        logits = load_file(job["logits"][i])["logits"]
        tokens_equal += runner.tokens(job["texts"][i]) == job["whole"][i]
        for k in range(1, POSITIONS + 1):
            # The first `end` tokens are given, the next one is predicted, and it needs a position too.
            end = max(1, min(len(ids), job["context"] - 1) * k // POSITIONS)
            want = logits[end - 1].log_softmax(-1)
            got = runner.next(ids[:end], min(job["top"], len(want)))
            chosen = torch.tensor(list(got))
            theirs = torch.tensor(list(got.values()))
            worst = max(worst, (want[chosen] - theirs).abs().max().item())
            kl += divergence(want[chosen].double(), theirs.double(), rest=len(chosen) < len(want))
            same = int(chosen[0]) == int(want.argmax())
            first, second = want.topk(2).values.tolist()
            agree, clear, clear_agree = (
                agree + same,
                clear + (first - second > CLEAR),
                clear_agree + (same and first - second > CLEAR),
            )
            positions += 1
            if end < len(ids) and ids[end] in got:
                next_theirs, next_wanted, nexts = next_theirs - got[ids[end]], next_wanted - want[ids[end]].item(), nexts + 1
        prompt = ids[: max(1, len(ids) // 2)]
        wanted = job["greedy"][i]
        greedy_equal += runner.greedy(prompt, len(wanted))[: len(wanted)] == wanted
    figures = {
        "max_abs_logprob_difference": worst, "kl_per_token_nats": kl / positions, "top1_agreement": agree / positions,
        "next_token_nats": next_theirs / max(1, nexts), "next_token_nats_of_checkpoint": next_wanted / max(1, nexts),
        "clear_positions": clear, "clear_agreement": clear_agree,
        "positions": positions, "tokenized_equal": tokens_equal, "greedy_equal": greedy_equal, "texts": len(job["ids"]),
    }  # fmt: skip
    print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        main(Path(argument))
