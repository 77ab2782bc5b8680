"""Run by itself, never imported for its work: load an export as a stranger would and compare it with what was expected."""

import json
import sys
from pathlib import Path
from typing import Any


class _NoLangext:
    """Makes langext impossible to import, as on the machine of somebody who never installed it."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("langext", "tokenizer_tools"):
            raise ImportError(f"{name} must not be needed here")
        return None


def main(job_file: Path) -> None:
    """Print one line of JSON with the differences."""
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    job = json.loads(job_file.read_text())
    expected = load_file(job_file.parent / "logits.safetensors")
    net: Any = AutoModelForCausalLM.from_pretrained(job["folder"], dtype=torch.float32, trust_remote_code=job["remote"]).eval()
    tokenizer = AutoTokenizer.from_pretrained(job["folder"], trust_remote_code=job["remote"])
    tokenized_equal = 0
    worst = kl = agree = tokens = std = cached_worst = 0.0
    greedy_equal = 0
    for i, ids in enumerate(job["ids"]):
        want = expected[str(i)]
        tokenized_equal += tokenizer(job["texts"][i], add_special_tokens=False).input_ids[: job["cut"]] == ids
        prompt = torch.tensor([ids[: max(1, len(ids) // 2)]])
        with torch.no_grad():
            got = net(input_ids=torch.tensor([ids])).logits[0]
            first = net(input_ids=prompt, use_cache=True)
            rest = torch.tensor([ids[prompt.shape[1] :]])
            if rest.numel():
                cached = net(input_ids=rest, past_key_values=first.past_key_values, use_cache=True).logits[0]
                cached_worst = max(cached_worst, (cached - want[prompt.shape[1] :]).abs().max().item())
            out = net.generate(
                input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=job["new_tokens"], do_sample=False,
                pad_token_id=0,
            )  # fmt: skip
        greedy_equal += out[0, prompt.shape[1] :].tolist() == job["greedy"][i]
        worst = max(worst, (got - want).abs().max().item())
        log_want, log_got = want.log_softmax(-1), got.log_softmax(-1)
        kl += (log_want.exp() * (log_want - log_got)).sum().item()
        agree += (want.argmax(-1) == got.argmax(-1)).sum().item()
        tokens += len(ids)
        std = max(std, want.std().item())
    figures = {
        "max_abs_difference": worst, "max_abs_difference_cached": cached_worst, "kl_per_token_nats": kl / tokens,
        "top1_agreement": agree / tokens, "greedy_equal": greedy_equal, "tokenized_equal": tokenized_equal,
        "texts": len(job["ids"]), "tokens": int(tokens),
        "logit_std": std, "class": type(net).__name__,
    }  # fmt: skip
    print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    sys.meta_path.insert(0, _NoLangext())  # type: ignore[arg-type]
    for argument in sys.argv[1:]:
        main(Path(argument))
