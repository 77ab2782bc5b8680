"""What `langext certify` does: find the two models and the text, measure, and lay the certificate into the model's folder."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from langext.artifacts import BASE, JOB, MANIFEST, Corpus, Job, Model, finished, first_problem, is_run, read_as, read_object
from langext.console import say
from langext.data.sources import Source
from langext.errors import ConfigError
from langext.evaluation import certify as certifying
from langext.evaluation.certificate import KEPT_KL, Certificate, measure_names
from langext.evaluation.neutrality import Settings
from langext.exports import certificates
from langext.models import bases, exported
from langext.report import conditions
from langext.text_summaries import FunnelRow


@dataclass(frozen=True)
class Asked:
    """The options of the command."""

    against: str | None = None
    texts: Sequence[str] = ()
    """`<language>/<domain>=<path>` each."""
    bytes: int = 40_000
    settings: Settings = field(default_factory=Settings)
    keep_text: bool = True
    trust: bool = False
    fail_if: Sequence[str] = ()


def certify(where: Path, asked: Asked) -> Certificate:
    """Measure the newest trained model of a run folder, or the exported model in a folder, and write what was found there.

    Raises ConfigError when there is no model, no base or no text, and when the two models do not belong together.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = bases.extended(str(where)) if where.is_dir() else None
    if model is None and not (where / "config.json").is_file():
        raise ConfigError(_no_model(where))
    root = model.path.parent if model else where.resolve().parent.parent
    if model is None:
        exported.check(where, trust=asked.trust)
    text = _text(root if model or is_run(root) else None, asked.texts)
    # A condition that cannot be read must not cost the measurement.
    conditions.met(asked.fail_if, dict.fromkeys(measure_names(text.documents), 0.0))
    with tempfile.TemporaryDirectory() as scratch:
        base = _prepared(asked.against, Path(scratch))
        if model is not None:
            pair = certificates.of_live(model, base, device)
        else:
            base = base or _base_of(where, Path(scratch))
            pair = certificates.of_export(where, base, device, trust=asked.trust)
        found, passages = certificates.measure(pair, text, asked.settings, asked.bytes, KEPT_KL, device)
    place = root if model else where
    certificates.lay(place, found, passages if asked.keep_text else None, export=model is None)
    say(f"{place / certifying.RECORD}")
    return found


def _no_model(where: Path) -> str:
    if (where / "delta.json").is_file():
        return f"{where}: a delta; `langext apply` makes a run folder of it, and that can be certified"
    if where.suffix == ".gguf" or (where.is_dir() and any(where.glob("*.gguf"))):
        return f"{where}: GGUF files are not measured; give the run folder, or an export of another format"
    return f"{where}: neither a run folder nor an exported model (no config.json)"


def _prepared(base: str | None, scratch: Path) -> Model | None:
    """The base that was named, made available in `scratch`: a folder, a hub id, a .gguf file, an asset or a run."""
    if base is None:
        return None
    try:
        bases.check(base)
        return bases.prepare(base, None, scratch / BASE)
    except ConfigError as error:
        raise ConfigError(str(error).replace("base_model:", "--against:")) from None


def _base_of(export: Path, scratch: Path) -> Model:
    """The base of the run that an export lies in, or else the public one that its export.json names."""
    kept = export.resolve().parent.parent / BASE
    if (kept / MANIFEST).is_file():
        return Model(kept)
    path = export / "export.json"
    named: Any = read_object(path).get("base") if path.is_file() else None
    if not isinstance(named, dict):
        raise ConfigError(f"{export}: lies in no run, and names no public base; say --against <base>")
    return bases.prepare(str(named.get("hub")), str(named.get("commit")), scratch / BASE)


def _text(root: Path | None, given: Sequence[str]) -> certificates.Text:
    """The files that were given, or else the held-out text of the run; `root` is its folder."""
    stages = finished(root) if root else []
    job = read_as(stages[0][0] / JOB, Job) if stages else None
    text = certificates.Text()
    corpora = [Corpus(path) for path, manifest in stages if manifest.kind == Corpus.__name__]
    funnel = certificates.sources_of(corpora[-1]) if corpora else []
    for entry in given:
        _add(text, entry, job, funnel)
    if given:
        return text
    if job is None or not corpora:
        raise ConfigError("there is no held-out text of a run here; give text with --text eng_Latn/docs=path")
    certificates.heldout(text, corpora[-1], job.language, job.original_languages)
    return text


def _add(text: certificates.Text, entry: str, job: Job | None, funnel: Sequence[FunnelRow]) -> None:
    """Add the text of one `--text`; `funnel` is what the run has read."""
    name, equals, path = entry.partition("=")
    language, slash, domain = name.partition("/")
    if not (equals and slash and path):
        raise ConfigError(f"--text {entry!r}: expected <language>/<domain>=<path>, as in eng_Latn/docs=docs.txt")
    try:
        source = Source.model_validate({"language": language, "path": path, "name": domain})
    except ValidationError as error:
        raise ConfigError(f"--text {entry!r}: {first_problem(error)}") from None
    if source.key in text.documents:
        raise ConfigError(f"--text {entry!r}: {source.key} is named twice")
    source.check()
    found = source.found()
    files = [place for place in found.files.values() if isinstance(place, Path)] if found else []
    if not files:
        raise ConfigError(f"--text {entry!r}: name a file or folder of this machine")
    role = certificates.role_of(source.key, job.original_languages, funnel) if job else "given"
    texts = [document.text for document in source.reader(source.record()).run(None)]
    text.add(source.key, texts, role, files)
