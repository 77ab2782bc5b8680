"""Reads and writes the tokenizer in a folder. The one rule: a folder is read in one way, whoever asks."""

import inspect
import json
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import Tokenizer
from transformers import AutoTokenizer, LlamaTokenizer, PreTrainedTokenizerFast

FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
"""Files that hold a tokenizer; the first one that is there is read."""
CONFIG = "tokenizer_config.json"
PROBES = (
    "In 1984 there were 12,345 cats; it's 7 o'clock, DON'T  they'll say.",
    "foo_bar(x) = y[2048] + 'a'\t# end\r\n\n\n  if x:\n\treturn",
    "été ÜNÏ cafe\u0301 \ufb01n \u2460 \u00bd",
    "日本語のテキスト、 ไทย हिन्दी 한국어",
    "сорок два שלום مرحبا \U0001f642",
)
"""Text in which the rules of usual tokenizers differ: digits, contractions, blanks, marks of letters, scripts."""
WORDS = "In 1984 there were cats"
"""Text that no rule of SentencePiece for several blanks changes."""


def file(folder: Path) -> Path | None:
    """The file that holds the tokenizer of a folder; None when there is none."""
    return next((folder / name for name in FILES if (folder / name).is_file()), None)


def load(path: Path) -> Any:
    """The tokenizer in the folder of `path`, which is its `file`. Raises errors of many classes for what cannot be read.

    The class that tokenizer_config.json names may build another tokenizer than tokenizer.json holds: GPT2Tokenizer, which that
    of SmolLM2 names, knows nothing of the rule there that divides digits. Then the file is right. So is a tokenizer.model that
    is read as SentencePiece reads it by LlamaTokenizer alone: where no class is named, no blank is put before a text.
    """
    pieces = sentencepiece.SentencePieceProcessor()
    if path.suffix == ".model":  # else transformers takes it for one of tiktoken
        pieces.Load(str(path))
    here = {"pretrained_model_name_or_path": path.parent, "local_files_only": True}
    tokenizer = AutoTokenizer.from_pretrained(**here, trust_remote_code=False)
    if path.suffix != ".model":
        return PreTrainedTokenizerFast.from_pretrained(**here) if _is_another(tokenizer, path) else tokenizer
    if _reads_as(pieces, tokenizer):
        return tokenizer
    llama = LlamaTokenizer.from_pretrained(**here)
    return llama if _reads_as(pieces, llama) else tokenizer


def _reads_as(pieces: sentencepiece.SentencePieceProcessor, tokenizer: Any) -> bool:
    """Whether a tokenizer encodes words with single blanks between them as SentencePiece does."""
    return tokenizer(WORDS, add_special_tokens=False).input_ids == pieces.EncodeAsIds(WORDS)


def _is_another(tokenizer: Any, path: Path) -> bool:
    """Whether a tokenizer encodes some text in another way than the file that it comes from, if that is a tokenizer.json."""
    if path.name != FILES[0] or type(tokenizer) is PreTrainedTokenizerFast:  # which builds nothing of its own
        return False
    plain = Tokenizer.from_file(str(path))
    plain.no_truncation()
    plain.no_padding()
    return any(
        tokenizer(text, add_special_tokens=False).input_ids != plain.encode(text, add_special_tokens=False).ids
        for text in PROBES
    )


def read(folder: Path) -> Any:
    """The tokenizer in a local folder. Raises ValueError when there is none, or none that can be read."""
    path = file(folder)
    if path is None:
        cure = 'Of a base on the hub this brings it: hf download <its id> --include "tokenizer*" --local-dir base'
        raise ValueError(f"{folder}: no tokenizer here (looked for {', '.join(FILES)}); name a folder that has one. {cure}")
    try:
        return load(path)
    except Exception as error:  # the libraries raise errors of nearly every class
        raise ValueError(f"{path}: the tokenizer cannot be read: {error}") from None


def settings(folder: Path) -> dict[str, Any]:
    """What tokenizer_config.json of a folder says; {} when it has none."""
    path = folder / CONFIG
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def write(tokenizer: Any, out: Path) -> None:
    """Write a tokenizer that was read from a folder into the folder `out`, so that it is read as before.

    transformers does not write all that the class of a tokenizer takes from its config: `legacy` of Llama's, for one.
    """
    tokenizer.save_pretrained(out)
    written = settings(out)
    given = settings(Path(tokenizer.name_or_path)) if tokenizer.name_or_path else written
    taken = inspect.signature(type(tokenizer).__init__).parameters
    if lost := {key: value for key, value in given.items() if key in taken and key not in written}:
        (out / CONFIG).write_text(json.dumps(written | lost, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def misread(tokenizer: Any, folder: Path) -> str:
    """Which id of a token a file in its folder gives in another way than it is read; empty when none.

    tokenizers numbers added tokens by the size of the vocabulary, whatever the file says, so that a hole in the ids moves them.
    """
    named = [(CONFIG, token["content"], number) for number, token in settings(folder).get("added_tokens_decoder", {}).items()]
    if (path := folder / FILES[0]).is_file():
        added = json.loads(path.read_text(encoding="utf-8")).get("added_tokens", [])
        named += [(FILES[0], token["content"], token["id"]) for token in added]
    for name, text, number in named:
        if (found := tokenizer.convert_tokens_to_ids(text)) != int(number):
            return (
                f"{name} says that {text!r} is {number}, and {type(tokenizer).__name__} reads it as {found}; correct the file"
            )
    return ""
