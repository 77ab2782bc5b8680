"""How far a finished run has moved a chat model where it chats: on conversations in the base's template, with its real marks.

    python benchmarks/chat_marks.py runs/quickstart

Wherever langext reads text, marks such as `<|im_start|>` are spelt out as letters, so no gate is calibrated on them. Three
kinds of text: held-out original text as it is; the same as a conversation, its first half asked and its second half answered;
and what the base itself answers to questions. Cells: KL(base || model) in nats per token and the share of tokens with an open
gate, of the text and of the marks. In float32.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch

from langext.artifacts import Corpus, finished
from langext.data import documents
from langext.evaluation import gate_stats
from langext.evaluation.bpb import passages
from langext.methods.extended import LiveModel
from langext.models import bases, loading

PASSAGES, PASSAGE_BYTES, ANSWER_TOKENS = 24, 1200, 80
QUESTIONS = (
    "What is the capital of Norway?", "Write a short poem about the sea.", "Explain how photosynthesis works.",
    "How do I reverse a list in Python?", "Give me three tips for sleeping well.", "Who wrote Hamlet?",
    "Translate 'good morning' into Spanish.", "What is 17 times 6?",
)  # fmt: skip


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--language", default="eng_Latn", help="whose held-out text is read")
    asked = parser.parse_args()
    model = bases.extended(str(asked.run))
    if model is None:
        parser.error(f"{asked.run}: no run folder with a trained model")
    live = loading.load(model, torch.float32)
    base, tokenizer = loading.reference(model, live), live.tokenizer
    if not tokenizer.chat_template:
        parser.error(f"{asked.run}: its base has no chat template")
    texts = held_out(asked.run, asked.language)
    halves = [(text[: len(text) // 2], text[len(text) // 2 :]) for text in texts]
    conversations = [turns(tokenizer, asks, answers) for asks, answers in halves]
    answers = [answered(base, turns(tokenizer, question)) for question in QUESTIONS]
    print("| text | tokens | KL | open | marks | KL | open |\n| --- | --- | --- | --- | --- | --- | --- |")
    kinds = {
        "held-out text": documents.encode(tokenizer, texts), "the same as conversations": conversations,
        "answers of the base": answers,
    }  # fmt: skip
    for name, rows in kinds.items():
        print(f"| {name} | {' | '.join(measured(live, base, rows))} |", flush=True)


def held_out(run: Path, language: str) -> list[str]:
    """Passages of the run's held-out text of a language, as many of each source."""
    corpus = next(Corpus(path) for path, manifest in finished(run) if manifest.kind == Corpus.__name__)
    found = documents.heldout(corpus, [language])
    each = -(-PASSAGES // len(found)) * PASSAGE_BYTES
    return [text for texts in found.values() for text in passages(texts, PASSAGE_BYTES, each)]


def turns(tokenizer, asks: str, answers: str | None = None) -> list[int]:
    """A conversation in the template, as token ids; without an answer it ends where the answer is to begin."""
    messages = [{"role": "user", "content": asks}]
    messages += [{"role": "assistant", "content": answers}] if answers is not None else []
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=answers is None, tokenize=False)
    return tokenizer(text, add_special_tokens=False).input_ids


@torch.no_grad()
def answered(base: loading.Reference, ids: list[int]) -> list[int]:
    """The question and what the base answers."""
    with base.as_itself():
        out = base.net.generate(torch.tensor([ids]), max_new_tokens=ANSWER_TOKENS, do_sample=False)
    return out[0].tolist()


@torch.no_grad()
def measured(live: LiveModel, base: loading.Reference, rows: list[list[int]]) -> Iterator[str]:
    """Of the text and then of the marks: number of tokens, KL, share of tokens with an open gate."""
    read, special = gate_stats.opened(live.net), torch.tensor(sorted(set(live.tokenizer.all_special_ids)))
    kl, opened, marks = [], [], []
    for row in rows:
        ids = torch.tensor([row])
        with base.as_itself():
            before = base.net(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
        after = live.net(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
        gates = read(1, len(row))
        kl.append((before.exp() * (before - after)).sum(-1))
        opened.append(torch.zeros(len(row)) if gates is None else gates[:, 0].any(0).float())
        marks.append(torch.isin(ids[0], special))
    kl_N, open_N, mark_N = torch.cat(kl), torch.cat(opened), torch.cat(marks)
    for chosen_N in (~mark_N, mark_N):
        yield f"{int(chosen_N.sum()):,}"
        yield f"{kl_N[chosen_N].mean():.4f}"
        yield f"{open_N[chosen_N].mean():.1%}"


if __name__ == "__main__":
    main()
