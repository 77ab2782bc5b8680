"""Measure again how far the model in this folder has moved from its base, and compare with what neutrality.json says.

    python certify.py                          # exits with 1 if a figure is worse than neutrality.json says
    python certify.py --base path/or/hub-id    # with the base from elsewhere

It needs torch and transformers alone, and exits with 2 when a file of one of the models is not the one that neutrality.json
names. `neutrality.jsonl` holds the passages that were measured; --passages takes others, and their figures are printed and
compared with nothing.
"""

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from langext.evaluation.neutrality import Mismatch, Settings, Subject, measure

RECORD, PASSAGES, SCRIPT = "neutrality.json", "neutrality.jsonl", "certify.py"
ALLOWED = {
    "kl": (0.02, 1e-5), "kl_p99": (0.05, 1e-4), "bits_per_byte": (1e-3, 0.0), "same_ids": (0.0, 0.0), "closed": (0.0, 2e-3),
    "as_base": (0.0, 2e-3), "continuations_identical": (0.0, 0.05),
}  # fmt: skip
"""Figure -> by how much it may be worse before it is called so: relative, absolute. Machines round differently."""
OF_BITS = {"hidden_identical": (0.0, 2e-3), "logits_identical": (0.0, 2e-3)}
"""The same for figures about single bits. They are compared only where device and versions are those of the certificate."""
SMALL = ("kl", "kl_p99", "bits_per_byte")
"""The figures that are better when they are smaller."""
SHOWN = {
    "tokens": "{:,}", "compared": "{:,}", "same_ids": "{:.2%}", "closed": "{:.2%}", "as_base": "{:.2%}",
    "hidden_identical": "{:.2%}", "logits_identical": "{:.2%}", "kl": "{:.6f}", "kl_error": "{:.6f}", "kl_p99": "{:.6f}",
    "worst_kl": "{:.6f}", "continuations_identical": "{:.0%}", "bits_per_byte_of_base": "{:.4f}", "bits_per_byte": "{:.4f}",
}  # fmt: skip
"""Figure -> how it is printed."""


def machine(device: str) -> dict[str, str]:
    """What decides how products of matrices are rounded: the device, and the versions of what computes."""
    import transformers

    at = torch.cuda.get_device_name() if device == "cuda" else f"CPU {torch.backends.cpu.get_cpu_capability()}"
    threads = str(torch.get_num_threads()) if device == "cpu" else ""
    return {"device": at, "threads": threads, "torch": torch.__version__, "transformers": transformers.__version__}


def worse(then: Mapping[str, Any], now: Mapping[str, Any], allowed: Mapping[str, tuple[float, float]]) -> list[str]:
    """The figures of the row `now` that are worse than those of `then` by more than is allowed, in words."""
    found = []
    for name, (relative, absolute) in allowed.items():
        before, after = then[name], now[name]
        if before is None:
            continue
        lost = float("inf") if after is None else after - before if name in SMALL else before - after
        if not lost <= abs(before) * relative + absolute:
            found.append(f"{name} {SHOWN[name].format(before)} -> {'none' if after is None else SHOWN[name].format(after)}")
    return found


def lines(figures: Mapping[str, Any]) -> list[str]:
    """What `measure` has found, as a table: a column for each set and language, and one for all."""
    rows = {**figures["sets"], **figures["languages"], "total": figures["total"]}
    width = {name: max(len(name), 12) for name in rows}
    table = [f"{'':24}" + "  ".join(f"{name:>{width[name]}}" for name in rows)]
    for key, shape in SHOWN.items():
        cells = ("–" if row[key] is None else shape.format(row[key]) for row in rows.values())
        table.append(f"{key:24}" + "  ".join(f"{cell:>{of}}" for cell, of in zip(cells, width.values(), strict=True)))
    total = figures["total"]
    text = f": {total['worst_text']}" if total["worst_text"] else ""
    return [*table, f"worst passage, {total['worst_kl']:.6f} nats per token{text}"]


def read_passages(path: Path) -> tuple[dict[str, list[str]], str]:
    """Set -> its passages, and the sha256 of the file. Raises ValueError when it is not lines of {"set", "text"}."""
    data, sets = path.read_bytes(), {}
    try:
        for line in data.decode().removesuffix("\n").split("\n"):  # not splitlines: a text may hold U+2028
            entry = json.loads(line)
            sets.setdefault(entry["set"], []).append(entry["text"])
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path}: expected lines of {{'set', 'text'}} in UTF-8 JSON ({error})") from None
    if not sets:
        raise ValueError(f"{path}: no passage")
    return sets, hashlib.sha256(data).hexdigest()


def check_files(said: Mapping[str, Any], place: str, revision: str | None) -> None:
    """Raise ValueError when a file of a model, in a folder or on the hub, is not the one that neutrality.json says it has."""
    from transformers.utils.hub import cached_file

    problems = []
    for file in said["files"]:
        name = file["name"]
        path = Path(place, name) if Path(place).is_dir() else Path(str(cached_file(place, name, revision=revision)))
        if not path.is_file():
            problems.append(f"{name} is missing")
        elif _sha256(path) != file["sha256"]:
            problems.append(f"{name} differs")
    if problems:
        raise ValueError(f"{place} is not what {RECORD} names as {said['name']}: {', '.join(problems)}")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def subject(name: str, revision: str | None, device: str, *, trust: bool) -> Subject:
    """A model in a folder or on the hub, loaded by transformers."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    more: dict[str, Any] = {"revision": revision, "trust_remote_code": trust}

    def load() -> Any:
        net: Any = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32, use_safetensors=True, **more)
        return net.eval().to(device)

    return Subject(AutoTokenizer.from_pretrained(name, **more), load)


def progress(
    every: float = 10.0, say: Callable[[str], None] = lambda line: print(line, flush=True)
) -> Callable[[int, int], None]:
    """A function that is told the work done and all the work, and prints a line with the time left every few seconds."""
    started = said = time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal said
        now = time.monotonic()
        if done and now - said >= every:
            said = now
            say(f"  {done / total:4.0%}, {(now - started) / done * (total - done):,.0f} s left")

    return tell


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, compare; the exit code is 0, or 1 for worse figures, or 2 when something cannot be read."""
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=here, help="folder of the model (default: that of this script)")
    parser.add_argument("--base", help="folder or hub id of the base (default: the public one that neutrality.json names)")
    parser.add_argument("--passages", type=Path, help=f"lines of {{'set', 'text'}} in JSON (default: {PASSAGES} of the model)")
    parser.add_argument("--trust-remote-code", action="store_true", help="run the Python code that the model brings")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", action="store_true", help="print JSON instead")
    given = parser.parse_args(argv)
    try:
        return check(given)
    except (OSError, ValueError, KeyError, TypeError, ArithmeticError, Mismatch) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def check(given: argparse.Namespace) -> int:
    """What `main` does with its arguments."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    record = json.loads((given.model / RECORD).read_text(encoding="utf-8"))
    sets, sha256 = read_passages(given.passages or given.model / PASSAGES)
    known, settings = record["base"], Settings(**record["settings"])
    if sha256 != record["passages_sha256"] and not given.passages:
        raise ValueError(f"{given.model / PASSAGES}: other passages than those of {RECORD}; say --passages to measure on them")
    if not (given.base or known["public"]):
        raise ValueError(f"the base {known['name']} is not public; give its folder with --base")
    place, commit = given.base or known["name"], None if given.base else known["commit"]
    check_files(record["model"], str(given.model), None)
    if known.get("extended"):
        print("the base is an extended model itself: its files are not compared", file=sys.stderr)
    else:
        check_files(known, place, commit)
    base = subject(place, commit, given.device, trust=False)
    model = subject(str(given.model), None, given.device, trust=given.trust_remote_code)
    counted = [name for name, row in record["sets"].items() if name in sets and row["role"] != "measured"]
    told = (lambda done, total: None) if given.json else progress()
    figures = measure(base, model, sets, settings, counted, told)
    print(json.dumps(figures, indent=2, ensure_ascii=False) if given.json else "\n".join(lines(figures)))
    if sha256 != record["passages_sha256"]:
        print("other passages than those of the certificate: there is nothing to compare with", file=sys.stderr)
        return 0
    alike = machine(given.device) == record["machine"]
    if not alike:
        print("another machine than that of the certificate: single bits are not compared", file=sys.stderr)
    lost = [
        f"{name}: {what}"
        for name, row in figures["sets"].items()
        for what in worse(record["sets"][name], row, ALLOWED | (OF_BITS if alike else {}))
    ]
    for line in lost:
        print(f"worse than certified: {line}", file=sys.stderr)
    return int(bool(lost))


if __name__ == "__main__":
    sys.exit(main())
