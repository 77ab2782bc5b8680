"""Write an extended model into a folder that anybody can load: write, reload, compare, describe.

The one rule: the folder gets its final name only after the comparison has passed.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from langext.artifacts import Corpus, Model, write_json
from langext.console import warn
from langext.errors import ConfigError, RunFailed, disk_problem
from langext.export_summary import ExportSummary
from langext.exports.formats import GGUF, Order
from langext.exports.targets import TARGETS, architecture, choose

if TYPE_CHECKING:
    from langext.exports.modelcard import Card


LOCK = ".lock"
"""File in the folder next to an export, which whoever writes it holds locked."""


def write(
    model: Model, out: Path, form: str, texts: list[str], card: "Card", gguf: GGUF | None = None,
    programs: Mapping[str, str] | None = None,
) -> ExportSummary:  # fmt: skip
    """Write the folder `out`, compare it with the trained model, add the model card; return what export.json holds.

    The models are compared on `texts`. If there are none, the trained model writes its own texts first. All files are written
    next to `out`, in a folder that gets its name at the end: a failure leaves nothing behind.

    There are three comparisons of logits:

    1. the trained model and its stock form before rounding (only for formats that fold),
    2. the trained model and the form whose weights are rounded for storage; this difference is only recorded,
    3. the rounded form and the written folder, loaded again in a fresh process (a delta: put on its base in this process),
       and in the `programs` (name in `runners.RUNNERS` -> the interpreter that has it).

    Raises RunFailed when the models of 1 or 3 differ or the disk fails, and ConfigError when `out` exists, another export is
    being written to it, the model cannot be exported, or a program cannot load such an export.
    """
    from langext.exports import modelcard, runners
    from langext.models import loading

    _refuse(out)
    source = loading.read_record(model)
    methods = (*(e.method for e in source.earlier), *([source.method] if source.method else []))
    if not methods:
        raise ConfigError("the model is the untouched base; there is nothing to export")
    config = loading.load_config(source.base)
    form, programs = choose(config, methods, form, gguf.pre if gguf else None), programs or {}
    if programs:
        runners.refuse(list(programs), form, TARGETS[form].own_code, TARGETS["gguf"].obstacle(config, methods, None))
    try:
        with workplace(out) as place:
            folder = place / "export"
            results = _write(model, folder, place / "scratch", form, texts, gguf or GGUF(), card.title, programs)
            record = ExportSummary(**results, format=form, architecture=architecture(config, methods, form), base=card.public)
            write_json(folder / "export.json", record)
            modelcard.write(folder, record, card)
            modelcard.keep_licences(source.base, folder)
            _readable(folder)
            _refuse(out)
            os.replace(folder, out)
    except Exception as error:
        if problem := disk_problem(error):
            raise RunFailed(problem) from None
        raise
    return record


def _refuse(out: Path) -> None:
    """Raise ConfigError when there is something at `out`."""
    if out.exists() or out.is_symlink():
        raise ConfigError(f"{out} exists already; name another folder")


@contextmanager
def workplace(out: Path) -> Iterator[Path]:
    """An empty folder next to `out` that this process alone writes to while the context lasts.

    Both are on one file system, because only there is a rename one step. What a killed export has left there is removed. Raises
    ConfigError while another process holds it, when that one has made `out` meanwhile, and when somebody else made the folder.
    """
    place = out.with_name(f".{out.name[:200]}.export.tmp")
    place.mkdir(parents=True, exist_ok=True)
    if place.is_symlink() or place.stat().st_uid != os.getuid():
        raise ConfigError(f"{place}: is another user's, or a link; name another folder than {out}")
    with os.fdopen(os.open(place / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600), "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"{out}: another export is being written to it; wait for it, or name another folder") from None
        _refuse(out)
        for name in ("export", "scratch"):
            shutil.rmtree(place / name, ignore_errors=True)
            (place / name).mkdir(parents=True)
        try:
            yield place
        finally:  # also on Ctrl-C: a half-written export must not look like a finished one
            shutil.rmtree(place, ignore_errors=True)


def _readable(folder: Path) -> None:
    """Let others read an export: the files of the safetensors library are for their owner alone."""
    folder.chmod(0o755)
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)


def _write(
    model: Model, out: Path, scratch: Path, form: str, texts: list[str], gguf: GGUF, title: str, programs: Mapping[str, str]
) -> dict[str, Any]:
    """Write the format `form` into the empty folder `out`; return the results of the comparisons, by field of ExportSummary.

    `scratch` is an empty folder for files that are no part of the export.
    """
    from langext.architectures import precision
    from langext.exports import runners, verify
    from langext.models import loading

    live, target = loading.on_disk(model), TARGETS[form]
    stock = live.methods[-1].fold(live.net) if target.folds else None
    kept = loading.stored(loading.read_record(model).base)
    if (stock or target.own_code) and kept != precision.WEIGHTS:
        warn(
            f"the base is stored in {str(kept).removeprefix('torch.')}, this export in bfloat16: rounding moves every token a "
            "little, also where all gates are closed; export.json says how far"
        )
    whole = fits(live.net, stock.shell() if stock else live.net)
    # In float32 a difference means a wrong mapping. In bfloat16 rounding alone would make differences.
    precision.in_float32(precision.parts(live.net), whole)
    texts = verify.decided(live, texts or verify.own_texts(live))
    ids = verify.encode(live.tokenizer, texts)
    trained = verify.logits(live.net, ids, scratch / "trained")
    if stock:
        verify.same(trained, verify.logits(stock.model(whole=whole, rounded=False), ids, scratch / "folded"))
        rounded = stock.model(whole=whole, rounded=True)
    else:
        again = loading.on_disk(model)
        # A delta does not hold the base's weights, so only the learnt ones are rounded there.
        names = loading.learnt(model)
        learnt = {parameter for name, parameter in again.net.named_parameters() if name in names}
        rounded = again.net
        precision.in_float32(precision.parts(rounded), whole, lambda parameter: target.own_code or parameter in learnt)
    expected = verify.expect(rounded, live.tokenizer, texts, scratch / "rounded")
    rounding = verify.difference(trained, expected.logits)
    order = Order(model, live, stock, expected, out, scratch, whole=whole, own_code=target.own_code, gguf=gguf, title=title)
    results = {"rounding": rounding} | target.write(order)
    return results | {"runners": runners.all_judged(programs, runners.Export(out, expected, target.own_code))}


def fits(trained: Any, stored: Any) -> bool:
    """Return whether memory can hold three models in float32 at once: as trained, as stored and as reloaded; and the logits."""
    from langext.exports import reload, verify

    weights = [sum(p.numel() for p in net.parameters()) for net in (trained, stored, stored)]
    # Four times the logits of a batch, because comparing them makes copies.
    logits = 4 * reload.BATCH * verify.TOKENS * trained.config.vocab_size
    return 4 * (sum(weights) + logits) < available()


def verification_texts(corpus: Corpus, languages: tuple[str, ...]) -> list[str]:
    """Passages of held-out text (see `bpb.passages`) of each language and domain, for comparing models on."""
    from langext.data import documents
    from langext.evaluation import bpb

    heldout = documents.heldout(corpus, languages)
    return [passage for texts in heldout.values() for passage in bpb.passages(texts, 800, 1600)]


CGROUPS = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")


def available() -> int:
    """Bytes of memory that this process can still take: what is left on the machine, or in its container if that is less.

    Containers limit memory with cgroups, version 2: https://docs.kernel.org/admin-guide/cgroup-v2.html
    """
    left = psutil.virtual_memory().available
    for group in _groups():
        limit, used = group / "memory.max", group / "memory.current"
        if limit.is_file() and used.is_file() and (limit_bytes := limit.read_text().strip()).isdigit():  # "max": no limit
            left = min(left, max(0, int(limit_bytes) - int(used.read_text())))
    return left


def _groups() -> list[Path]:
    """The cgroups (version 2) that this process belongs to, innermost first: a limit of any of them counts."""
    lines = OWN.read_text(encoding="utf-8").splitlines() if OWN.is_file() else []
    relative = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), "")
    own = CGROUPS / relative
    return [own, *(parent for parent in own.parents if parent.is_relative_to(CGROUPS))]
