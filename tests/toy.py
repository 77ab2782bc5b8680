"""Pico models, tokenizers and texts, made here: the tests need no network and no files from elsewhere."""

import gzip
import json
import random
import struct
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedTokenizerFast

FRENCH = (
    "le la les un une des petit grand chat chien maison rue ville jour nuit soleil pluie dort mange voit aime parle "
    "toujours jamais dans sous avec pour sans être avoir très déjà où école élève français été forêt garçon façon"
).split()
ENGLISH = (
    "the a an some small big cat dog house street town day night sun rain sleeps eats sees loves speaks "
    "always never in under with for without being having very already where school pupil English summer forest boy way"
).split()

GERMAN = (
    "der die das ein eine großer kleiner Hund Katze Haus Straße Tag Nacht Sonne Regen schläft isst sieht liebt spricht "
    "immer nie in unter mit für ohne zu sein haben sehr schon wo Schule Schüler Sommer Wald Junge Weg über können müssen"
).split()
SWAHILI = (
    "mtu watu mtoto paka mbwa nyumba barabara mji siku usiku jua mvua analala anakula anaona anapenda anasema daima kamwe "
    "ndani chini na kwa bila kuwa sana tayari wapi shule mwanafunzi msitu kijana njia mkubwa mdogo kisha lakini sasa"
).split()


def sentences(words: list[str], count: int, seed: int) -> list[str]:
    dice = random.Random(seed)
    return [" ".join(dice.choices(words, k=dice.randint(18, 40))).capitalize() + "." for _ in range(count)]


def documents(words: list[str], count: int, seed: int) -> list[str]:
    return ["\n\n".join(sentences(words, 3, seed * 1000 + i)) for i in range(count)]


def write_jsonl(path: Path, texts: list[str], column: str = "text") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", encoding="utf-8") as file:
        for i, text in enumerate(texts):
            file.write(json.dumps({"id": str(i), column: text}, ensure_ascii=False) + "\n")
    return path


def make_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<|end|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(sentences(ENGLISH, 200, 1), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>")


# Every family, with what sets it apart made visible at this size: windows that close, caps that bend, biases that are not zero.
FAMILIES = {
    "llama": {"rope_parameters": {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
                                  "high_freq_factor": 4.0, "original_max_position_embeddings": 64}},
    "mistral": {"sliding_window": None},
    "qwen2": {},
    "qwen3": {"head_dim": 24},
    "gemma": {"head_dim": 16},
    "gemma2": {"head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 16, "final_logit_softcapping": 2.0},
    "gemma3_text": {"head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 16, "num_hidden_layers": 6,
                    "rope_parameters": {"full_attention": {"rope_type": "linear", "rope_theta": 1e5, "factor": 4.0},
                                        "sliding_attention": {"rope_type": "default", "rope_theta": 5e3}}},
}  # fmt: skip


def make_base(family: str, vocab_size: int, tied: bool = True, **more: Any) -> Any:
    torch.manual_seed(0)
    config = CONFIG_MAPPING[family](
        **{
            "vocab_size": vocab_size, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "tie_word_embeddings": tied,
            "initializer_range": 0.1, "eos_token_id": 0, "bos_token_id": 0, "pad_token_id": 0, **FAMILIES[family], **more,
        }
    )  # fmt: skip
    net = AutoModelForCausalLM.from_config(config)
    for name, parameter in net.named_parameters():
        if name.endswith("bias") or "norm" in name:
            parameter.data += 0.2 * torch.randn(parameter.shape)
    for parameter in net.parameters():  # net.to() would round the rotary frequencies as well
        parameter.data = parameter.data.to(torch.bfloat16)
    return net


def make_llama(vocab_size: int, tied: bool = True, **more: Any) -> Any:
    return make_base("llama", vocab_size, tied, num_hidden_layers=3, rope_parameters=None, **more)


def write_fasttext(path: Path, labels: dict[str, list[str]]) -> Path:
    """A supervised fastText model written byte by byte (file version 12): each word votes for its label.

    Trained here it would be, but the prebuilt wheel's training ends in NaN on some machines; predicting works everywhere.
    """
    words = [word for own in labels.values() for word in own]
    dim = len(labels)
    out = struct.pack("<ii", 793712314, 12)
    out += struct.pack("<12id", dim, 5, 5, 1, 5, 1, 3, 3, 0, 0, 0, 100, 1e-4)  # softmax loss, supervised, no n-grams
    out += struct.pack("<iiiqq", len(words) + dim, len(words), dim, len(words), -1)
    for text, kind in [*((w, 0) for w in words), *((f"__label__{name}", 1) for name in labels)]:
        out += text.encode() + b"\0" + struct.pack("<qb", 1, kind)
    rows = [[float(word in own) for own in labels.values()] for word in words]
    for matrix in (rows, [[8.0 * (i == j) for j in range(dim)] for i in range(dim)]):
        out += struct.pack("<?qq", False, len(matrix), dim) + b"".join(struct.pack(f"<{dim}f", *row) for row in matrix)
    path.write_bytes(out)
    return path
