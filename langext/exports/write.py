"""From an extended model to a folder that anybody can serve: write, reload in a fresh process, compare, describe."""

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from langext.artifacts import Corpus, Model, read_json, write_json
from langext.exports.formats import GGUF
from langext.exports.targets import TARGETS, architecture, choose
from langext.spec import ConfigError
from langext.summaries import ExportSummary

if TYPE_CHECKING:
    from langext.architectures.stock import Stock
    from langext.exports import verify
    from langext.exports.modelcard import Card
    from langext.methods.extended import LiveModel


def write(model: Model, out: Path, form: str, texts: list[str], card: "Card", gguf: GGUF | None = None) -> ExportSummary:
    """Write `out`, verify it in a fresh process and add the model card. Beside and renamed: a failure leaves nothing behind.

    It is compared on `texts`, or on what the model itself writes when there are none.

    Three comparisons: the trained model with what it folds to, before rounding; that with its rounding to the weights'
    precision, which is recorded; and the rounded one with what a stranger loads. Raises RunFailed when the first or last
    differ, and ConfigError for what cannot be exported.
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
        made = _write(model, beside, form, texts, gguf or GGUF(), card.title)
        record = ExportSummary(**made, format=form, architecture=architecture(config, methods, form), base=card.public)
        write_json(beside / "export.json", record)
        modelcard.write(beside, record, card)
        modelcard.keep_licences(source.base, beside)
        beside.chmod(0o755)  # mkdtemp's are for their owner alone
        os.replace(beside, out)
    except BaseException:
        shutil.rmtree(beside)
        raise
    return record


def _write(model: Model, out: Path, form: str, texts: list[str], gguf: GGUF, title: str) -> dict[str, Any]:
    """Write the format into the empty folder `out`. Returns what the comparisons have found."""
    from langext.exports.gguf import check

    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f"{out.name}.") as scratch:
        stored = Path(scratch) / "checkpoint" if form == "gguf" else out
        stored.mkdir(exist_ok=True)
        made, expected = _checkpoint(model, form, stored, texts, Path(scratch))
        if form == "gguf":
            made["files"] = check.write(stored, out, expected, gguf, title)
    return made


def _checkpoint(
    model: Model, form: str, out: Path, texts: list[str], scratch: Path
) -> "tuple[dict[str, Any], verify.Expected]":
    """Write a Hugging Face folder (or a delta) and compare it; what was found, and what the stored weights compute."""
    from langext.architectures import precision
    from langext.exports import delta, verify
    from langext.models import loading

    live, target = loading.on_disk(model), TARGETS[form]
    stock = live.methods[-1].fold(live.net) if target.folds else None
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
        precision.in_float32(precision.parts(rounded), whole, lambda parameter: target.own_code or parameter in learnt)
    expected = verify.expect(rounded, live.tokenizer, texts, scratch / "rounded")
    rounding = verify.difference(trained, expected.logits)
    if form == "delta":
        delta.write(model, out)
        rebuilt = loading.on_disk(delta.rebuilt(out, loading.read_record(model).base, scratch / "rebuilt"))
        precision.in_float32(precision.parts(rebuilt.net), whole)
        found = verify.compare_live(rebuilt, expected)
    else:
        save(live, stock, out)
        found = verify.compare(out, expected, own_code=target.own_code, whole=whole)
    return {"rounding": rounding} | found, expected


def fits(trained: Any, stored: Any) -> bool:
    """Is there memory for a model as it was trained, as it is stored and as it is reloaded, all in float32, and its logits?"""
    from langext.exports import reload, verify

    numbers = [sum(p.numel() for p in net.parameters()) for net in (trained, stored, stored)]
    logits = 4 * reload.BATCH * verify.TOKENS * trained.config.vocab_size
    return 4 * (sum(numbers) + logits) < available()


def save(live: "LiveModel", stock: "Stock | None", out: Path) -> None:
    """Write weights, config, tokenizer and generation config: of the stock form, or without one with code of its own."""
    from langext.exports import remote, shards

    if stock is None:
        remote.write(live.net, out)
    else:
        shards.save(stock, out)
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


def verification_texts(corpus: Corpus, languages: tuple[str, ...]) -> list[str]:
    """A passage of held-out text of each language and domain."""
    from langext.data import documents
    from langext.evaluation import bpb

    found = documents.heldout(corpus, languages)
    return [passage for texts in found.values() for passage in bpb.passages(texts, 800, 1600)]


CGROUPS = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")


def available() -> int:
    """Bytes that this process can still take: what the machine has left, or its container (cgroup v2), if less."""
    left = psutil.virtual_memory().available
    for group in _groups():
        limit, used = group / "memory.max", group / "memory.current"
        if limit.is_file() and used.is_file() and (most := limit.read_text().strip()).isdigit():
            left = min(left, max(0, int(most) - int(used.read_text())))
    return left


def _groups() -> list[Path]:
    """The cgroups that this process is in, innermost first."""
    lines = OWN.read_text().splitlines() if OWN.is_file() else []
    inside = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), "")
    own = CGROUPS / inside
    return [own, *(parent for parent in own.parents if parent.is_relative_to(CGROUPS))]
