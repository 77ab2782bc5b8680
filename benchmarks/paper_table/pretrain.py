"""A small language model that knows English only, made by langext's own data, engine and checkpoints.

    python benchmarks/paper_table/pretrain.py --data DATA --out runs/english-8m --gpu

DATA has `text/en.*.jsonl.gz`, {"text": ...} a line. A byte-level tokenizer of 8,192 tokens is trained on that text, then a
Llama of 8.4 M parameters (8 layers, width 256), from random weights: full "fine-tuning" of a model that knows nothing. With
`--vocabulary sentencepiece` it has pieces, byte fallback and untied matrices, as Llama 2. The result is OUT/model. The same
command goes on after an interruption. Without a GPU it takes ten hours, and one of 5.1 M parameters with a tenth of the tokens
(`--width 192 --steps 600 --batch-sequences 32`) one.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]
SHAPE: dict[str, Any] = {
    "vocab_size": 8192, "num_hidden_layers": 8, "max_position_embeddings": 1024,
}  # fmt: skip
END = "<|endoftext|>"


def main() -> None:
    """Make the tokenizer and the random model, train it, export it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/english-8m"))
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch-sequences", type=int, default=128, help="sequences of 512 tokens in a step")
    parser.add_argument("--vocabulary", choices=["byte_level", "sentencepiece"], default="byte_level")
    parser.add_argument("--width", type=int, default=256, help="hidden size, a multiple of 64")
    parser.add_argument("--gpu", action="store_true")
    asked = parser.parse_args()
    data, out = asked.data.resolve(), asked.out.resolve()
    files = sorted((data / "text").glob("en.*.jsonl.gz"))
    if not files:
        parser.error(f"--data: {data}/text has no en.*.jsonl.gz")
    start = out / "start"
    if not (start / "model.safetensors").exists():
        (sentencepiece if asked.vocabulary == "sentencepiece" else byte_level)(files, start)
        random_model(start, asked.width, tied=asked.vocabulary == "byte_level")
    size = {"steps": asked.steps, "batch_sequences": asked.batch_sequences}
    YAML(typ="safe", pure=True).dump(pipeline(data, files, start, size, asked.gpu), out / "pretrain.yaml")
    command = [sys.executable, "-m", "langext.cli", "run", str(out / "pretrain.yaml"), "--out", str(out / "run")]
    subprocess.run(command, check=True, cwd=ROOT)
    model = out / "model"
    if not model.exists():
        model.symlink_to(next((out / "run").glob("[0-9][0-9]-export")) / "checkpoint", target_is_directory=True)
    print(f"{model}")


def texts(files: list[Path]) -> Iterator[str]:
    """The documents of some files."""
    from langext.data import documents

    return (document["text"] for file in files for document in documents.read(file))


def byte_level(files: list[Path], folder: Path) -> None:
    """A byte-level BPE of the text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SHAPE["vocab_size"], special_tokens=[END], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(texts(files), trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END, eos_token=END).save_pretrained(folder)


def sentencepiece(files: list[Path], folder: Path) -> None:
    """A SentencePiece BPE of the text, with the settings of Llama 2. The ids of <unk>, <s> and </s> are 0, 1 and 2."""
    from sentencepiece import SentencePieceTrainer

    folder.mkdir(parents=True, exist_ok=True)
    lines = (line[:4000] for text in texts(files) for line in text.splitlines() if line.strip())
    SentencePieceTrainer.train(
        sentence_iterator=lines, model_prefix=str(folder / "tokenizer"), vocab_size=SHAPE["vocab_size"], model_type="bpe",
        normalization_rule_name="identity", byte_fallback=True, split_digits=True, character_coverage=0.99995,
        input_sentence_size=200_000, shuffle_input_sentence=True, minloglevel=1,
    )  # fmt: skip
    (folder / "tokenizer.vocab").unlink()
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer", "legacy": True, **names}))


def random_model(folder: Path, width: int, tied: bool) -> None:
    """A model that knows nothing, beside its tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(17)
    inner = -(-width * 8 // 3 // 16) * 16  # as SwiGLU has it, rounded up to a multiple of 16
    heads = {"num_attention_heads": width // 64, "num_key_value_heads": width // 64}
    ids = {"bos_token_id": 0, "eos_token_id": 0} if tied else {"bos_token_id": 1, "eos_token_id": 2}
    config = LlamaConfig(**SHAPE, hidden_size=width, intermediate_size=inner, tie_word_embeddings=tied, **heads, **ids)
    LlamaForCausalLM(config).save_pretrained(folder)


def pipeline(data: Path, files: list[Path], start: Path, size: dict[str, int], gpu: bool) -> dict[str, Any]:
    """English is the language to learn; French, which the model does not know either, is only measured."""
    french = {"language": "fra_Latn", "path": f"{data}/valid/fr.masakhanews.jsonl.gz", "name": "news", "heldout_only": True}
    english = [{"language": "eng_Latn", "path": str(file), "name": file.name.split(".")[1]} for file in files]
    one = {"gpus": 1} if gpu else {}
    steps = size["steps"]
    train = {
        "uses": "train", **size, "sequence_length": 512, "lr": 3e-3,
        "warmup_steps": steps // 10, "original_frac": 0.0, "weight_decay": 0.1,
        "log_every": 50, "eval_every": steps // 3, "eval_bytes": 5000,
        "save_every": steps // 3, "keep_checkpoints": 1,
        "runtime": {"gpus": 1, "deepspeed": "one_gpu", "micro_batch": 64} if gpu else {"micro_batch": 16},
    }  # fmt: skip
    return {
        "name": "pretrain", "language": "eng_Latn", "original_languages": ["fra_Latn"], "base_model": str(start), "seed": 17,
        "stages": [
            {"uses": "filter", "sources": [*english, french], "duplicates": "exact", "runtime": {"workers": 8 if gpu else 2}},
            {"uses": "extend", "method": {"name": "full"}, "runtime": one},
            train,
            {"uses": "export", "runtime": one},
        ],
    }  # fmt: skip


if __name__ == "__main__":
    main()
