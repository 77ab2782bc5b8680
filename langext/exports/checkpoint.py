"""Writes an export that is a Hugging Face folder: weights, config, tokenizer, as transformers 4 and 5 both read them."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from langext.artifacts import read_json, write_json
from langext.exports.formats import Order

if TYPE_CHECKING:
    from langext.architectures.stock import Stock
    from langext.artifacts import Model
    from langext.methods.extended import LiveModel


def write(order: Order) -> dict[str, Any]:
    """Write the folder, load it again in a fresh process and compare. Returns the comparison, by field of ExportSummary."""
    from langext.exports import verify

    save(order.live, order.stock, order.out)
    _sentencepiece(order.model, order.out)
    return verify.compare(order.out, order.expected, own_code=order.own_code, whole=order.whole)


def save(live: "LiveModel", stock: "Stock | None", out: Path) -> None:
    """Write weights, config, tokenizer and generation config into `out`.

    The weights are those of the stock form. Where `stock` is None, they are the model's own, written with its modeling code.
    """
    from langext.exports import remote, shards
    from tokenizer_tools.folder import write as write_tokenizer

    if stock is None:
        remote.write(live.net, out)
    else:
        shards.save(stock, out)
    write_tokenizer(live.tokenizer, out)
    _tokenizer_of_both(out / "tokenizer_config.json", live.tokenizer.chat_template)
    if live.net.generation_config is not None:
        live.net.generation_config.save_pretrained(out)
    _config_of_both(out / "config.json")


def _sentencepiece(model: "Model", out: Path) -> None:
    """Copy tokenizer.model, which transformers reads and does not write; other programs know no other file of SentencePiece."""
    from langext.models import loading

    source = loading.tokenizer_folder(model) / "tokenizer.model"
    if source.is_file():
        shutil.copyfile(source, out / source.name)


def _tokenizer_of_both(path: Path, templates: str | dict[str, str] | None) -> None:
    """Rewrite tokenizer_config.json so that transformers 4 and 5 both read it.

    Version 5 writes a class name and a list of special tokens that version 4 cannot read. It still reads the old ones. It
    writes chat templates into files of their own, and what was made for version 4 looks for them here.
    """
    config = read_json(path)
    if config.get("tokenizer_class") == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(config.get("extra_special_tokens"), list):
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    if isinstance(templates, dict):
        config["chat_template"] = [{"name": name, "template": template} for name, template in templates.items()]
    elif templates:
        config["chat_template"] = templates
    write_json(path, config)


def _config_of_both(path: Path) -> None:
    """Add the keys of transformers 4 to config.json.

    Version 5 writes `dtype`, which version 4 calls `torch_dtype`, and of the rope only `rope_parameters`: version 4 ignores
    that key and uses a wrong rope_theta without any warning.
    """
    config = read_json(path)
    config["torch_dtype"] = config["dtype"]
    rope = dict(config.get("rope_parameters") or {})
    if "full_attention" in rope:  # Gemma 3: a rope for each type of layer
        config["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = rope["full_attention"]
    if "rope_theta" in rope:
        config["rope_theta"] = rope["rope_theta"]
        scaling = {k: v for k, v in rope.items() if k not in ("rope_theta", "partial_rotary_factor")}
        config["rope_scaling"] = None if scaling.get("rope_type", "default") == "default" else scaling
        if "partial_rotary_factor" in rope:
            config["partial_rotary_factor"] = rope["partial_rotary_factor"]
    if config["model_type"] == "granitemoehybrid":
        # Version 5 renames these to full_attention, which version 4, vLLM and MLX do not know.
        config["layer_types"] = ["attention"] * config["num_hidden_layers"]
        config.pop("time_step_limit", None)  # of Mamba layers; infinite, which is no JSON
    write_json(path, config)
