"""Checks the files of a base model before anything is loaded: config, weights and tokenizer must belong together.

Rule: weights are judged by the headers of their files. transformers would fill in what is missing with random values, cut what
is too long, or look a token up outside of the matrix; here each of these is a ConfigError that names the file and the numbers.
"""

import copy
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from langext.architectures import families
from langext.artifacts import read_object
from langext.errors import ConfigError, placeholder, reading
from langext.spec import near
from tokenizer_tools import folder as tokenizer_files
from tokenizer_tools import forms
from tokenizer_tools.folder import FILES as TOKENIZERS

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PRECISIONS: tuple[str, ...] = ("BF16", "F16", "F32", "F64")
"""How safetensors calls the precisions of plain weights, the narrowest first."""
BUFFERS = re.compile(r"rotary_emb\.inv_freq$")
"""Tensors that older versions of transformers wrote and that every model computes by itself."""
HEAD = "lm_head.weight"
ADAPTER = "adapter_config.json"
PART = re.compile(r"model-\d+-of-\d+\.safetensors")
"""Name of a file with a part of the weights."""
BESIDE = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
"""Files of JSON objects that are read with a tokenizer, whichever it is."""
TEMPLATES = ("*.jinja", "additional_chat_templates/*.jinja")
LICENCES = ("LICEN[CS]E*", "NOTICE*", "USE_POLICY*")
"""Files that must accompany the weights wherever they are copied."""
READ = (
    "config.json", "generation_config.json", INDEX, *TOKENIZERS, *BESIDE, "merges.txt", "chat_template.json", *TEMPLATES,
)  # fmt: skip
"""Patterns of the files of a base that are read, besides its weights."""
Shapes = dict[str, tuple[int, ...]]


def check(folder: Path, config: Any, tokenizer: Any) -> None:
    """Raise ConfigError when the base in `folder` could not be extended exactly as it is. Reads headers only.

    `config` and `tokenizer` are those of the folder. Found are: weights of an adapter, quantised weights, placeholders of Git
    LFS, missing files, tensors that are missing, left over or of another shape, ids of tokens without a row.
    """
    licences(folder)
    _plain_weights(folder, config)
    shapes = tensors(folder)
    _sizes(folder, config, shapes)
    _rows(folder, config, tokenizer, rows=shapes[_embedding(folder, shapes)][0])
    _same_tensors(folder, config, shapes)


def read(folder: Path) -> list[Path]:
    """The files of a base that decide what it computes and writes, sorted. A base is these files, whatever lies beside them."""
    return sorted({*weight_files(folder), *(path for pattern in READ for path in folder.glob(pattern) if path.is_file())})


def licences(folder: Path) -> list[Path]:
    """The licence and notice files of a base, which go with its weights wherever they are copied.

    Raises ConfigError for a link out of the folder: who made it could have any file of this machine copied. (The cache of the
    hub keeps its files elsewhere, as links of every snapshot to ../../blobs.)
    """
    found = sorted(path for pattern in LICENCES for path in folder.glob(pattern) if path.is_file())
    within = (folder.resolve(), folder.resolve().parent.parent / "blobs")
    for path in found:
        if not any(path.resolve().is_relative_to(place) for place in within):
            raise ConfigError(f"{path}: a link out of its folder to {path.resolve()}; put the file itself there")
    return found


def decides(name: str) -> bool:
    """Whether a file of this name, a path below the folder of a base, can be among those of `read`."""
    return name.endswith(".safetensors") or any(Path(name).match(pattern) for pattern in READ)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model, which are all there. Raises ConfigError when one is missing or is a placeholder."""
    if (folder / SINGLE).is_file():  # transformers takes it, also where there is an index
        names = [SINGLE]
    elif (folder / INDEX).is_file():
        names = sorted(set(_index(folder / INDEX).values()))
    else:
        raise ConfigError(f"{folder}: {_no_weights(folder)}")
    for name in names:
        path = folder / name
        if not path.is_file():
            raise ConfigError(f"{path}: no such file, and {INDEX} names it; fetch or copy the model again")
        if said := placeholder(path):
            raise ConfigError(f"{path}: {said}")
    return [folder / name for name in names]


def tokenizer_file(folder: Path) -> Path:
    """The file that holds the tokenizer of a base. Raises ConfigError when there is none, or one of a form that is not read."""
    path = tokenizer_files.file(folder)
    if path is None:
        found = f"no tokenizer here (looked for {', '.join(TOKENIZERS)})"
        other = forms.named(folder)
        raise ConfigError(f"{folder}: {found}{f'; {other}' if other else ''}")
    if said := placeholder(path):
        raise ConfigError(f"{path}: {said}")
    if not path.stat().st_size:
        raise ConfigError(f"{path}: is empty; fetch or copy the model again")
    if other := forms.inside(path):
        raise ConfigError(f"{path}: {other}")
    if path.name == "vocab.json" and not (folder / "merges.txt").is_file():
        raise ConfigError(f"{folder}: vocab.json is here and merges.txt, which belongs to it, is not; copy the model again")
    return path


def tensors(folder: Path) -> Shapes:
    """Name -> shape of every tensor in the weights of a model, from the headers. Raises ConfigError for a damaged file."""
    from safetensors import safe_open

    shapes: Shapes = {}
    for path in weight_files(folder):
        with reading(path, "safetensors"), safe_open(path, "pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            here: Shapes = {name: tuple(piece.get_shape()) for name, piece in slices.items()}
            kinds = {name: piece.get_dtype() for name, piece in slices.items()}
        if odd := next((name for name in here if kinds[name] not in PRECISIONS), None):
            raise ConfigError(
                f"{path}: {odd} is stored as {kinds[odd]}: quantised weights cannot be extended; give the model in bfloat16, "
                "float16 or float32"
            )
        if twice := next((name for name in here if name in shapes), None):
            raise ConfigError(f"{path}: holds {twice}, which another file of this model holds too")
        shapes |= here
    if not shapes:
        raise ConfigError(f"{folder}: the weights hold no tensor")
    return shapes


def check_values(folder: Path) -> None:
    """Raise ConfigError when a weight is no number. Reads all weights."""
    from safetensors import safe_open

    for path in weight_files(folder):
        with reading(path, "safetensors"), safe_open(path, "pt") as file:
            odd = next((name for name in file.keys() if not file.get_tensor(name).isfinite().all()), None)  # noqa: SIM118
        if odd:
            raise ConfigError(f"{path}: {odd} holds values that are infinite or no numbers; fetch or copy the model again")


def _index(path: Path) -> dict[str, str]:
    weight_map = read_object(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(name, str) for name in weight_map.values()):
        raise ConfigError(f"{path}: weight_map must give the file of each tensor")
    if odd := next((name for name in weight_map.values() if Path(name).name != name or len(name) > 200), None):
        raise ConfigError(f"{path}: names a file outside of its folder: {odd!r:.80}")
    return weight_map


def _no_weights(folder: Path) -> str:
    for name in (INDEX, SINGLE):
        if (folder / name).is_symlink():
            return f"{name} is a link to {os.readlink(folder / name)}, which is not there; fetch or copy the model again"
    other = sorted(path.name for path in folder.glob("*") if path.suffix in (".bin", ".pt", ".pth", ".gguf", ".safetensors"))
    if parts := [name for name in other if PART.fullmatch(name)]:
        return f"no {INDEX} here, which says what is in {parts[0]} and the other parts; fetch or copy the model again"
    found = f"; there is {', '.join(other[:3])}" if other else ""
    return (
        f"no {SINGLE} and no {INDEX} here{found}. Other weight formats are not read: save the model again with "
        "save_pretrained of transformers, which writes safetensors"
    )


def no_config(folder: Path) -> str:
    """What is said of a folder without config.json: what it is instead, or where one is."""
    if (folder / ADAPTER).is_file():
        return _adapter(folder)
    said = "no config.json here, so this is not a Hugging Face model folder"
    inside = sorted(path.parent for pattern in ("*/config.json", "snapshots/*/config.json") for path in folder.glob(pattern))
    gguf = sorted(path.name for path in folder.glob("*.gguf"))
    if inside or gguf:
        said += f"; give {inside[0] if inside else folder / gguf[0]}?"
    return said


def _adapter(folder: Path) -> str:
    of = read_object(folder / ADAPTER).get("base_model_name_or_path")
    return f"an adapter (PEFT){f' of {of}' if of else ''}, not a model; merge it into its base and give the merged model"


def _plain_weights(folder: Path, config: Any) -> None:
    # transformers would put the adapter on top of the weights, also where they have it in them already.
    if (folder / ADAPTER).is_file():
        whole = (folder / SINGLE).is_file() or (folder / INDEX).is_file()
        beside = "an adapter (PEFT) lies beside the weights; if it is merged into them, remove adapter_config.json"
        raise ConfigError(f"{folder}: {beside if whole else _adapter(folder)}")
    quantised = getattr(config, "quantization_config", None)
    if quantised is not None:
        way = quantised.get("quant_method", "?") if isinstance(quantised, dict) else getattr(quantised, "quant_method", "?")
        raise ConfigError(
            f"{folder}/config.json: the weights are quantised ({way}), and a quantised base cannot be extended; give the "
            "unquantised model"
        )


def _embedding(folder: Path, shapes: Shapes) -> str:
    names = [name for name, shape in shapes.items() if name.endswith("embed_tokens.weight") and len(shape) == 2]
    if len(names) != 1:
        tied = f"; there is {HEAD} alone: save the model again with its embeddings" if HEAD in shapes and not names else ""
        raise ConfigError(f"{folder}: the weights hold {len(names)} tensors called embed_tokens.weight, expected one{tied}")
    return names[0]


def _sizes(folder: Path, config: Any, shapes: Shapes) -> None:
    """Compare the numbers that decide how large a model is, so that no model larger than its files is ever built."""
    rows, width = shapes[_embedding(folder, shapes)]
    layers = {int(number) for name in shapes for number in re.findall(rf"{re.escape(families.LAYERS)}(\d+)\.", name)}
    if not layers:
        raise ConfigError(
            f"{folder}: no tensor is called {families.LAYERS}0...; there is {sorted(shapes)[-1]:.80}. Save the model again "
            "from AutoModelForCausalLM"
        )
    told = {
        "vocab_size": (config.vocab_size, rows, "rows of the embedding matrix"),
        "hidden_size": (config.hidden_size, width, "columns of the embedding matrix"),
        "num_hidden_layers": (config.num_hidden_layers, len(layers), "layers in the weights"),
    }
    for key, (says, holds, what) in told.items():
        if says != holds:
            raise ConfigError(f"{folder}/config.json: {key} is {says}, and there are {holds} {what}")
    for key in ("intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim"):
        if (size := getattr(config, key, None)) and size > max(max(shape, default=1) for shape in shapes.values()):
            raise ConfigError(f"{folder}/config.json: {key} is {size}, larger than any matrix in the weights")


def _same_tensors(folder: Path, config: Any, shapes: Shapes) -> None:
    """Compare names and shapes with the model that transformers makes of the config, built without memory."""
    import torch
    from transformers import AutoModelForCausalLM

    with reading(folder / "config.json", "the config of a model"), torch.device("meta"):
        net = AutoModelForCausalLM.from_config(copy.deepcopy(config))
        net.tie_weights()
    expected: Shapes = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    tied = net.get_output_embeddings().weight is net.get_input_embeddings().weight
    optional = {HEAD} if tied else set()
    if tied and HEAD in shapes:
        _same_head(folder, _embedding(folder, shapes))
    ignored = [re.compile(pattern) for pattern in net._keys_to_ignore_on_load_unexpected or ()]
    missing = sorted(expected.keys() - shapes.keys() - optional)
    unexpected = sorted(
        name for name in shapes.keys() - expected.keys() if not any(p.search(name) for p in (*ignored, BUFFERS))
    )
    if missing:
        where = "tie_word_embeddings is false in config.json; " if missing == [HEAD] else ""
        raise ConfigError(f"{folder}: {where}missing from the weights: {_some(missing)}{_meant(missing[0], unexpected)}")
    if unexpected:
        raise ConfigError(f"{folder}: the weights hold tensors that {type(net).__name__} does not have: {_some(unexpected)}")
    for name in sorted(expected.keys() & shapes.keys()):
        if expected[name] != shapes[name]:
            raise ConfigError(
                f"{folder}: {name} is {_by(shapes[name])} in the weights, and {_by(expected[name])} by config.json"
            )


def _same_head(folder: Path, embedding: str) -> None:
    """Raise ConfigError when the weights hold a head that is not the embeddings, and the config says that it is."""
    from safetensors import safe_open

    found = {}
    for path in weight_files(folder):
        with reading(path, "safetensors"), safe_open(path, "pt") as file:
            found |= {name: file.get_tensor(name) for name in (HEAD, embedding) if name in file.keys()}  # noqa: SIM118
    if not found[HEAD].equal(found[embedding]):
        raise ConfigError(
            f"{folder}: config.json says that head and embeddings are tied, and the weights hold two different matrices; set "
            "tie_word_embeddings to false"
        )


def _meant(name: str, others: Iterable[str]) -> str:
    return near(name, others).replace(" Did you mean", "; is it")


def _some(names: list[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _rows(folder: Path, config: Any, tokenizer: Any, rows: int) -> None:
    """Every id that a tokenizer or a config names must have a row in the embedding matrix, and be read as the files say."""
    if wrong := tokenizer_files.misread(tokenizer, folder):
        raise ConfigError(f"{folder}: {wrong}")
    ids = {text: i for text, i in tokenizer.get_vocab().items() if text not in families.of(config).without_row}
    last = max(ids.values(), default=0)
    if last >= rows:
        token = next(text for text, i in ids.items() if i == last)
        raise ConfigError(
            f"{folder}: the tokenizer has ids up to {last} ({token!r:.40}), and the embedding matrix has {rows} rows (ids 0 to "
            f"{rows - 1}); give a model whose matrix was resized for these tokens"
        )
    if tokenizer.eos_token_id is None:
        raise ConfigError(
            f"{folder}: this tokenizer has no end-of-text token. Name it as eos_token in tokenizer_config.json, for example "
            f"{_end_by_config(config, ids)}"
        )
    for where, values in (("config.json", config.to_dict()), ("generation_config.json", _generation(folder))):
        for key in ("eos_token_id", "bos_token_id", "pad_token_id"):
            given = values.get(key)
            for i in given if isinstance(given, list) and key == "eos_token_id" else [given]:
                if i is not None and not (type(i) is int and -1 <= i < rows):
                    raise ConfigError(f"{folder}/{where}: {key} is {i!r:.40}, and the embedding matrix has {rows} rows")


def _end_by_config(config: Any, ids: dict[str, int]) -> str:
    given = config.eos_token_id
    first = given[0] if isinstance(given, list) and given else given
    return next((repr(text) for text, i in ids.items() if i == first), "'</s>'")


def _generation(folder: Path) -> dict[str, Any]:
    path = folder / "generation_config.json"
    return read_object(path) if path.is_file() else {}
