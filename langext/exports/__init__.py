"""From an extended model to a folder that anybody can serve: write, reload in a fresh process, compare, describe."""

import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from langext import languages, memory
from langext.architectures import families
from langext.artifacts import Corpus, Model, read_json, write_json
from langext.spec import ConfigError

if TYPE_CHECKING:
    from langext.exports import verify
    from langext.methods.extended import LiveModel

Format = Literal["auto", "native", "dense", "remote", "gguf", "delta"]
FORMATS = get_args(Format)
Precision = Literal["f32", "f16", "bf16", "q8_0"]
"""Of the matrices in a GGUF file."""


@dataclass(frozen=True)
class GGUF:
    """What a GGUF export is asked for."""

    precisions: tuple[Precision, ...] = ("bf16",)
    """One file is written for each of them."""
    pre: str | None = None
    """llama.cpp's name of the pre-tokenizer, where it is not recognised."""


def choose(config: Any, methods: Sequence[Any], form: str, pre: str | None = None) -> str:
    """The format to write. Raises ConfigError with the reason when it cannot be exact, and names what can.

    `config` is the base's transformers config, or None while it is not on this machine. `methods` are those of all
    extensions, the first added first. `pre` is llama.cpp's name of the base's pre-tokenizer, where the user gave one.
    """
    if form not in FORMATS:
        raise ConfigError(f"export format {form!r} is not known; choose {', '.join(FORMATS)}")
    reasons = {f: _obstacle(config, methods, f, pre) for f in FORMATS[1:]}
    possible = [f for f in FORMATS[1:] if not reasons[f]]
    if form == "auto":
        form = next((f for f in possible if f != "delta"), "native")  # a delta needs langext to be loaded
    if reasons[form]:
        raise ConfigError(f"format {form!r}: {reasons[form]}; possible: {', '.join(possible) or 'none'}", at=("format",))
    return form


def _obstacle(config: Any, methods: Sequence[Any], form: str, pre: str | None) -> str:
    """Why a format cannot be exact here, or an empty string."""
    from langext.architectures import folding
    from langext.exports import gguf_file, gguf_vocabulary

    gates: list[Any] = [getattr(method, "gate", None) for method in methods]
    if form == "delta":
        return ""
    if form == "remote":
        return "" if all(gates) else f"{methods[-1].name} needs no code of its own"
    reason = folding.obstacle(gates, config) if len(gates) > 1 else methods[-1].obstacle(config)
    gated = next((gate for gate in gates if gate not in (None, "none")), None)
    if form == "dense" and gated:
        return f"a block with {'an' if gated == 'elu' else 'a'} {gated} gate is no part of a dense network"
    if form == "gguf" and not reason and config is not None:
        made = {"architectures": [folding.folded_class(gates, config)], "layer_types": methods[-1].layer_types(config)}
        made["num_hidden_layers"] = len(made["layer_types"] or []) or config.num_hidden_layers
        return gguf_file.obstacle(config.to_dict() | made) or gguf_vocabulary.obstacle(Path(config.name_or_path), pre)
    return reason


def architecture(config: Any, methods: Sequence[Any], form: str) -> str:
    """The architecture a checkpoint will have, in words, for `langext plan` and the model card."""
    from langext.architectures import folding

    if form == "delta":
        return "what was learnt, without the base"
    if form == "remote":
        prefix = families.of(config).prefix if config is not None else "the base"
        return f"{prefix} with neutral residues (remote code in the folder)"
    many = len(methods) > 1
    described = folding.architecture([m.gate for m in methods], config) if many else methods[-1].architecture(config)
    return f"{described}, for llama.cpp" if form == "gguf" else described


def write(
    model: Model, out: Path, form: str, texts: list[str], card: dict[str, Any], gguf: GGUF | None = None
) -> dict[str, Any]:
    """Write `out`, verify it in a fresh process and add the model card. Beside and renamed: a failure leaves nothing behind.

    It is compared on `texts`, or on what the model itself writes when there are none.

    Three comparisons: the trained model with what it folds to, before rounding; that with its rounding to the weights'
    precision, which is recorded; and the rounded one with what a stranger loads. Raises ConfigError when the first or last
    differ.
    """
    from langext.exports import modelcard
    from langext.models import loading

    if out.exists():
        raise ConfigError(f"{out} exists already; name another folder")
    source = loading.read_record(model)
    methods = (*(e.method for e in source.earlier), *([source.method] if source.method else []))
    if not methods:
        raise ConfigError("the model is the untouched base; there is nothing to export")
    config = loading.load_config(source.base)
    form = choose(config, methods, form, gguf.pre if gguf else None)
    out.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(dir=out.parent, prefix=f"{out.name}.", suffix=".tmp"))
    try:
        record = _write(model, beside, form, texts, gguf or GGUF(), architecture(config, methods, form), card)
        modelcard.write(beside, record, card)
        modelcard.keep_licences(source.base, beside)
        beside.chmod(0o755)  # mkdtemp's are for their owner alone
        os.replace(beside, out)
    except BaseException:
        shutil.rmtree(beside)
        raise
    return record


def _write(
    model: Model, out: Path, form: str, texts: list[str], gguf: GGUF, described: str, card: dict[str, Any]
) -> dict[str, Any]:
    """Write the format into the empty folder `out`; what was found goes into export.json, with a public base's name."""
    from langext.exports import gguf_check

    record: dict[str, Any] = {"format": form, "architecture": described}
    if card.get("base_commit"):
        record["base"] = {"hub": card["base"], "commit": card["base_commit"]}
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f"{out.name}.") as scratch:
        stored = Path(scratch) / "checkpoint" if form == "gguf" else out
        stored.mkdir(exist_ok=True)
        made, expected = _checkpoint(model, form, stored, texts, Path(scratch))
        record |= made
        if form == "gguf":
            title = f"{card['base']} + {languages.find(card['languages'][0]).name}"
            record |= {"files": gguf_check.write(stored, out, expected, gguf, title)}
    write_json(out / "export.json", record)
    return record


def _checkpoint(
    model: Model, form: str, out: Path, texts: list[str], scratch: Path
) -> "tuple[dict[str, Any], verify.Expected]":
    """Write a Hugging Face folder and compare it; what was found, and what the stored weights compute."""
    from langext.architectures import precision
    from langext.exports import delta, verify
    from langext.models import loading

    live = loading.on_disk(model)
    stock = live.methods[-1].fold(live.net) if form not in ("remote", "delta") else None
    whole = fits(live.net, stock.shell() if stock else live.net)
    precision.in_float32(precision.parts(live.net), whole)
    texts = texts or verify.own_texts(live)
    ids = verify.encode(live.tokenizer, texts)
    trained = verify.logits(live.net, ids, scratch / "trained")
    if stock:
        verify.same(trained, verify.logits(stock.model(whole=whole, rounded=False), ids, scratch / "folded"))
        rounded = stock.model(whole=whole, rounded=True)
    else:
        again = loading.on_disk(model)
        learnt = {parameter for name, parameter in again.net.named_parameters() if name in loading.learnt(model)}
        rounded = again.net
        precision.in_float32(precision.parts(rounded), whole, lambda parameter: form == "remote" or parameter in learnt)
    expected = verify.expect(rounded, live.tokenizer, texts, scratch / "rounded")
    rounding = verify.difference(trained, expected.logits)
    if form == "delta":
        delta.write(model, out)
        rebuilt = loading.on_disk(delta.rebuilt(out, loading.read_record(model).base, scratch / "rebuilt"))
        precision.in_float32(precision.parts(rebuilt.net), whole)
        figures = verify.compare_live(rebuilt, expected)
    else:
        save(live, form, out)
        figures = verify.compare(out, expected, form, whole=whole)
    return {"rounding": rounding} | figures, expected


def fits(trained: Any, stored: Any) -> bool:
    """Is there memory for a model as it was trained, as it is stored and as it is reloaded, all in float32, and its logits?"""
    from langext.exports import reload, verify

    numbers = [sum(p.numel() for p in net.parameters()) for net in (trained, stored, stored)]
    logits = 4 * reload.BATCH * verify.TOKENS * trained.config.vocab_size
    return 4 * (sum(numbers) + logits) < memory.available()


def save(live: "LiveModel", form: str, out: Path) -> None:
    """Write weights, config, tokenizer and generation config."""
    from langext.exports import remote, shards

    if form == "remote":
        remote.write(live.net, out)
    else:
        shards.save(live.methods[-1].fold(live.net), out)
    live.tokenizer.save_pretrained(out)
    _tokenizer_of_both(out / "tokenizer_config.json")
    if live.net.generation_config is not None:
        live.net.generation_config.save_pretrained(out)
    _both_rope_keys(out / "config.json")


def _tokenizer_of_both(path: Path) -> None:
    """Transformers 5 writes a class name and a list of special tokens that version 4 cannot read; it reads the old ones too."""
    config = read_json(path)
    if config.get("tokenizer_class") == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(config.get("extra_special_tokens"), list):
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    write_json(path, config)


def _both_rope_keys(path: Path) -> None:
    """Transformers 5 writes `rope_parameters` alone, and version 4 then falls back to a wrong rope_theta without a word."""
    config = read_json(path)
    rope = dict(config.get("rope_parameters") or {})
    if "full_attention" in rope:  # Gemma 3
        config["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = rope["full_attention"]
    if "rope_theta" in rope:
        config["rope_theta"] = rope["rope_theta"]
        scaling = {k: v for k, v in rope.items() if k not in ("rope_theta", "partial_rotary_factor")}
        config["rope_scaling"] = None if scaling.get("rope_type", "default") == "default" else scaling
        if "partial_rotary_factor" in rope:
            config["partial_rotary_factor"] = rope["partial_rotary_factor"]
        write_json(path, config)


def gguf_lines(record: dict[str, Any]) -> list[str]:
    """What to say about the GGUF files of an export; [] when there are none."""
    lines = []
    for file in record.get("files", []):
        said = "not run in llama.cpp"
        if file["verified"]:
            said = (
                f"in llama.cpp KL {file['kl_per_token_nats']:.1e} to the checkpoint, same top token "
                f"{file['top1_agreement']:.0%}, "
                f"same greedy text {file['greedy_equal']}/{file['texts']}"
            )
        lines.append(f"  {file['file']}: {file['bytes'] / 1e6:,.1f} MB, {said}")
    return lines


def verification_texts(corpus: Corpus, languages: tuple[str, ...]) -> list[str]:
    """A passage of held-out text of each language and domain."""
    from langext.data import documents
    from langext.evaluation import bpb

    found = documents.heldout(corpus, languages)
    return [passage for texts in found.values() for passage in bpb.passages(texts, 800, 1600)]
