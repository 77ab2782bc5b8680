"""Which ids of tokens the configs of a base name, and as what. The one rule: such an id is never that of a new token."""

import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizer_tools.vocabulary import next_id

FILES = ("config.json", "generation_config.json")
"""Files of a base that name ids of tokens."""
WITHIN = ("text_config", "llm_config", "language_config", "decoder")
"""Parts of a config that speak of the same vocabulary, in models that read more than text."""
SINGLE = ("_token_id", "_token_ids", "_token_index")
"""Ends of the names of settings that hold an id, or several."""
SEVERAL = ("suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "forced_decoder_ids")
"""Other settings that hold ids: https://huggingface.co/docs/transformers/main_classes/text_generation"""

Configs = Mapping[str, Mapping[str, Any]]


def configs(folder: Path) -> dict[str, dict[str, Any]]:
    """What the files of a base say that may name ids of tokens, by their names; those that are there."""
    paths = [folder / name for name in FILES]
    return {path.name: json.loads(path.read_text(encoding="utf-8")) for path in paths if path.is_file()}


def rows(folder: Path) -> int:
    """The number of rows for tokens that the model in a folder has, with padding; 0 when its config does not say."""
    config = configs(folder).get(FILES[0], {})
    parts = [config, *(config[name] for name in WITHIN if isinstance(config.get(name), dict))]
    return next((part["vocab_size"] for part in parts if isinstance(part.get("vocab_size"), int)), 0)


def ids(config: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """(setting, id) of every id of a token that a config names."""
    for key, value in config.items():
        if key in WITHIN and isinstance(value, dict):
            yield from ids(value)
        elif key == "forced_decoder_ids":
            yield from ((key, i) for pair in value or () for i in _numbers(pair[1:]))  # a pair is a place and an id
        elif key in SEVERAL or key.endswith(SINGLE):
            yield from ((key, i) for i in _numbers(value))


def _numbers(value: Any) -> Iterator[int]:
    """The numbers in lists of lists, or the number alone. A negative one stands for none."""
    if isinstance(value, list):
        for part in value:
            yield from _numbers(part)
    elif isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        yield value


def named(folder: Path) -> set[int]:
    """All ids of tokens that the configs of a base name."""
    return {i for config in configs(folder).values() for _, i in ids(config)}


def unnamed(base: Any, given: Configs, new: Collection[int] = ()) -> str:
    """Which role a config gives to an id that the tokenizer does not have, or that is new; empty when there is none."""
    for file, config in given.items():
        for key, i in ids(config):
            if i >= next_id(base) or i in new:
                what = f"the {key.removesuffix('_token_id')} token" if key.endswith("_token_id") else f"a token of {key}"
                return (
                    f"{file} says that {i} is {what}, which the tokenizer does not have; it would be a new token: add it to "
                    "the tokenizer, or take the id out"
                )
    return ""
