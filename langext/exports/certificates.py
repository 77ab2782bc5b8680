"""Make the certificate of a model, neutrality.json, and lay it into the model's folder, beside what others need to check it.

The one rule: what measures is `langext.evaluation.neutrality`, here and in the script that travels with an export.
"""

import hashlib
import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from langext.artifacts import BASE, Corpus, FileRecord, Model, file_record, read_base, read_json, write_json, write_text
from langext.console import Progress, say
from langext.data import assets, documents, plain_text
from langext.errors import ConfigError, RunFailed
from langext.evaluation import bpb, certify, gate_stats, neutrality, open_gates
from langext.evaluation.certificate import Certificate, Measured, MeasuredWith, Row, TextFile
from langext.evaluation.neutrality import Mismatch, Settings, Subject
from langext.exports.modelcard import in_markdown
from langext.models import base_files, bases, exported, loading
from langext.text_summaries import FilterSummary, FunnelRow

MARKS = ("<!-- neutrality -->", "<!-- end of neutrality -->")
"""Around the section of the model card."""
SHORTEST = 16
"""Passages are not cut shorter than this many bytes to fit into the positions of a model."""


@dataclass(frozen=True)
class Pair:
    """The two models to measure, and what the certificate says of them."""

    base: Subject
    model: Subject
    of_base: Measured
    of_model: Measured
    positions: int | None
    """The most tokens that both can read."""
    earlier: int
    """Extensions that the base has already."""


@dataclass
class Text:
    """What is measured on: documents by set (`<language>/<domain>`), the role of each set, and the files they came from."""

    documents: dict[str, list[str]] = field(default_factory=dict)
    roles: dict[str, str] = field(default_factory=dict)
    files: list[TextFile] = field(default_factory=list)

    def add(self, name: str, texts: Sequence[str], role: str, files: Sequence[Path]) -> None:
        """Add a set. Raises ConfigError when there is nothing in it to measure on."""
        if not any(text.strip() for text in texts):
            raise ConfigError(f"{name}: there is no text in {', '.join(path.name for path in files)}")
        self.documents[name], self.roles[name] = list(texts), role
        for path in files:
            record = file_record(path, path.parent)
            self.files.append(TextFile(set=name, name=record.name, bytes=record.bytes, sha256=record.sha256))


def of_live(model: Model, base: Model | None, device: str) -> Pair:
    """A trained model of a run folder beside `base`, or beside the model that its run started from."""
    record, started = loading.read_record(model), Model(model.path.parent / BASE)
    assert record.method is not None, "a trained model"
    method, before = record.method, base or started
    earlier = _extensions(before)
    tokenizers = [loading.load_tokenizer(loading.tokenizer_folder(each)) for each in (before, model)]
    if base is None and method.reversible and len(loading.new_tokens(started)) == len(loading.new_tokens(model)):
        live = loading.load(model, torch.float32, device)  # both models are in one net
        first = Subject(tokenizers[0], lambda: live.net, lambda: method.off(live.net))
        load = lambda: live.net  # noqa: E731
    else:
        first = Subject(tokenizers[0], lambda: loading.load(before, torch.float32, device).net)
        load = lambda: loading.load(model, torch.float32, device).net  # noqa: E731
    second = Subject(tokenizers[1], load, watch=lambda net: gate_stats.opened(net, earlier))
    config = loading.load_config(record.base)
    of_model = Measured(
        name=bases.plain_name(str(model.path.parent)),
        architecture=f"{_architecture(record.base)} with {method.name}",
        files=_plain(model.manifest.files),
    )
    return Pair(first, second, _of_base(before), of_model, getattr(config, "max_position_embeddings", None), earlier)


def of_export(folder: Path, base: Model, device: str, *, trust: bool) -> Pair:
    """An exported model beside its base. Raises ConfigError for code of its own without `trust`."""
    tokenizer = exported.load_tokenizer(folder, trust=trust)
    place = folder.resolve().parent.parent if folder.name == "checkpoint" else folder  # of its run
    first = Subject(
        loading.load_tokenizer(loading.tokenizer_folder(base)), lambda: loading.load(base, torch.float32, device).net
    )
    second = Subject(tokenizer, lambda: exported.load(folder, torch.float32, device, trust=trust))
    code = [path for path in sorted(folder.glob("*.py")) if path.name != certify.SCRIPT]
    of_model = Measured(
        name=bases.plain_name(str(place)), architecture=_architecture(folder),
        files=[file_record(path, folder) for path in [*base_files.read(folder), *code]],
    )  # fmt: skip
    positions = read_json(folder / "config.json").get("max_position_embeddings")
    return Pair(first, second, _of_base(base), of_model, positions, _extensions(base))


def _extensions(model: Model) -> int:
    record = loading.read_record(model)
    return len(record.earlier) + (record.method is not None)


def _architecture(folder: Path) -> str:
    return (read_json(folder / "config.json").get("architectures") or ["?"])[0]


def _of_base(base: Model) -> Measured:
    """What is said of a base. One that has extensions is a model of its own: the hub has only what is below them."""
    record, manifest = loading.read_record(base), read_base(base.path.parent)
    assert manifest is not None, "a prepared base"
    extended = bool(record.earlier) or record.method is not None
    root = manifest.identity["base_model"] if extended else manifest.root
    public = manifest.commit is not None and not extended
    return Measured(
        name=root if public or root.startswith(assets.PREFIX) else bases.plain_name(root), public=public,
        commit=manifest.commit if public else None, architecture=_architecture(record.base), files=_plain(manifest.files),
        extended=extended,
    )  # fmt: skip


def _plain(files: Sequence[FileRecord]) -> list[FileRecord]:
    """Without the times, which say nothing elsewhere."""
    return [FileRecord(name=file.name, bytes=file.bytes, sha256=file.sha256) for file in files]


def measure(
    pair: Pair, text: Text, settings: Settings, total_bytes: int, kept_kl: float, device: str
) -> tuple[Certificate, str]:
    """The certificate, and the content of neutrality.jsonl. `total_bytes` of each set are measured, and the figures printed.

    Raises ConfigError for models that do not belong together, and RunFailed when a figure is not finite.
    """
    started, settings = time.monotonic(), replace(settings, earlier=pair.earlier)
    sets, passage_bytes = {}, {}
    for name, texts in text.documents.items():
        sets[name], passage_bytes[name] = _passages(name, texts, total_bytes, pair)
    lines = [{"set": name, "text": passage} for name, passages in sets.items() for passage in passages]
    content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    counted = [name for name in sets if text.roles[name] != "measured"]
    progress = Progress("certifying", 1.0)
    try:
        figures = neutrality.measure(
            pair.base, pair.model, sets, settings, counted, lambda done, total: progress.at(done / total)
        )
    except Mismatch as error:
        raise ConfigError(str(error)) from None
    except ArithmeticError as error:
        raise RunFailed(str(error)) from None
    certificate = Certificate(
        model=pair.of_model, base=pair.of_base, text=text.files, passages_sha256=hashlib.sha256(content.encode()).hexdigest(),
        passage_bytes=passage_bytes, settings=MeasuredWith(**vars(settings)), kept_kl=kept_kl,
        sets={name: row | {"role": text.roles[name]} for name, row in figures["sets"].items()},  # type: ignore[arg-type]
        languages=figures["languages"], total=figures["total"],
        machine=certify.machine(device), langext=version("langext"), seconds=round(time.monotonic() - started, 1),
    )  # fmt: skip
    for line in certify.lines(certificate.model_dump()):
        say(f"  {line}")
    return certificate, content


def _passages(name: str, texts: Sequence[str], total_bytes: int, pair: Pair) -> tuple[list[str], int]:
    """Passages of a set (see `bpb.passages`), and their most bytes: 1,000, or fewer so that no model runs out of positions."""
    most = 1000
    while most >= SHORTEST:
        found = bpb.passages(texts, most, total_bytes)
        longest = max(len(neutrality.encode(of.tokenizer, text)) for of in (pair.base, pair.model) for text in found)
        if longest <= (pair.positions or longest):
            return found, most
        most //= 2
    raise ConfigError(f"{name}: passages of {SHORTEST} bytes are longer than the {pair.positions} positions of the model")


def sources_of(corpus: Corpus) -> list[FunnelRow]:
    """The sources of a stage filter, with what each of them is there for."""
    summary = corpus.manifest.summary_as(FilterSummary)
    return summary.funnel if summary else []


def role_of(name: str, originals: Sequence[str], funnel: Sequence[FunnelRow]) -> str:
    """The role of a set of a run in a certificate: original, protected or measured.

    A set that is no source of the run is protected when any source of its language is.
    """
    code = name.split("/")[0]
    if code in originals:
        return "original"
    rows = [row for row in funnel if row.source == name] or [row for row in funnel if row.language == code]
    return "protected" if any(row.role == "protect" for row in rows) else "measured"


def heldout(text: Text, corpus: Corpus, new: str, originals: Sequence[str]) -> None:
    """Add the held-out text of a run, but that of its new language. Raises ConfigError when an original language has none."""
    funnel = sources_of(corpus)
    folder = corpus.path / "documents" / "valid"
    codes = [*originals, *sorted({path.name for path in folder.iterdir()} - {*originals, new})] if folder.is_dir() else []
    for code in codes:
        for name, files in documents.sources(corpus, "valid", code).items():
            role = role_of(name, originals, funnel)
            texts = [document["text"] for path in files for document in documents.read(path)]
            if texts:
                text.add(name, texts, role, files)
    missing = [code for code in originals if not any(name.startswith(f"{code}/") for name in text.documents)]
    if missing:
        raise ConfigError(f"no held-out text of {', '.join(missing)} to measure on; give some with --text")


def script() -> str:
    """certify.py: the modules that measure in one file, which imports nothing of langext."""
    parts = [f'"""{certify.__doc__}"""\n']
    for module in (plain_text, open_gates, neutrality, certify):
        source = Path(str(module.__file__)).read_text(encoding="utf-8").removeprefix(f'"""{module.__doc__}"""')
        parts.append(re.sub(r"^from langext\..*\n", "", source, flags=re.MULTILINE))
    return "\n".join(part.strip("\n") + "\n" for part in parts)


def lay(folder: Path, certificate: Certificate, passages: str | None, *, export: bool) -> None:
    """Write neutrality.json into `folder`, and neutrality.jsonl unless `passages` is None. An export also gets the script and
    a section of its model card.

    Without passages, no text of theirs is written anywhere. The record is written last: after a kill, an older one does not
    match the passages beside it, and certify.py says so.
    """
    if passages is not None:
        write_text(folder / certify.PASSAGES, passages)
    else:
        certificate = without_text(certificate)
        (folder / certify.PASSAGES).unlink(missing_ok=True)
    if export:
        write_text(folder / certify.SCRIPT, script())
        card = folder / "README.md"
        before = card.read_text(encoding="utf-8") if card.is_file() else ""
        rest = re.sub(rf"\n*{MARKS[0]}.*{MARKS[1]}\n*", "\n", before, flags=re.DOTALL)
        new = section(certificate, passages is not None, bool(exported.own_code(folder)))
        write_text(card, f"{rest.rstrip()}\n\n{new}\n".lstrip())
    write_json(folder / certify.RECORD, certificate)


def without_text(found: Certificate) -> Certificate:
    """The same figures, without the beginnings of the passages that moved most."""

    def blank(row: Row) -> Row:
        return row.model_copy(update={"worst_text": ""})

    rows = {name: {key: blank(row) for key, row in getattr(found, name).items()} for name in ("sets", "languages")}
    return found.model_copy(update=rows | {"total": blank(found.total)})


def section(certificate: Certificate, with_passages: bool, own_code: bool) -> str:
    """The section of the model card, between `MARKS`."""
    env = Environment(
        loader=PackageLoader("langext", "exports"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        autoescape=False, finalize=in_markdown,
    )  # fmt: skip
    filled = env.get_template("neutrality.md.j2").render(
        c=certificate, with_passages=with_passages, own_code=own_code,
        worst_text=Markup(" ".join(certificate.total.worst_text.split())),  # stands in a block of code, where nothing is markup
    )  # fmt: skip
    return f"{MARKS[0]}\n{filled.strip()}\n{MARKS[1]}"
