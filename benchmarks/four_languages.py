"""The funnel of all text of a folder: what stage filter makes of each source, with its picture in the report.

    python benchmarks/four_languages.py DATA/text --out runs/four --workers 2

DATA/text has files `<language>.<kind>.jsonl.gz`, {"text": ...} a line, the language by two letters. The first of `--languages`
is the new one. Kinds named by `--web` are judged by the rules for web pages too. Prints `langext data stats`, seconds, and the
peak of memory of all processes together; the picture is in OUT/report.html.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

import psutil
from ruamel.yaml import YAML

from langext import languages

ROOT = Path(__file__).resolve().parent.parent
WEB = ["masakhanews", "lafand-news", "bbc-news", "orangesum-news", "10kgnad-news", "putaindecode-blog", "fortunes"]


def pipeline(folder: Path, codes: list[str], web: list[str], workers: int) -> dict[str, object]:
    """One stage, every file a source."""
    sources = []
    for path in sorted(folder.glob("*.jsonl.gz")):
        code, kind = path.name.split(".")[:2]
        if code in codes:
            quality = {"quality": "web"} if kind in web else {}
            sources.append({"language": languages.find(code).code, "path": str(path), "name": kind, **quality})
    new, *original = [languages.find(code).code for code in codes]
    stage = {"uses": "filter", "runtime": {"workers": workers}, "sources": sources}
    base = {"base_model": "asset:smollm2-135m", "language": new, "original_languages": original}
    return {"name": "four", **base, "stages": [stage]}


def memory(run: "subprocess.Popen[bytes]") -> int:
    """Bytes that the processes of a run hold."""
    found = 0
    for process in psutil.Process(run.pid).children(recursive=True):
        try:
            found += process.memory_full_info().pss  # what several share counts once
        except psutil.Error:
            continue
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--languages", nargs="+", default=["sw", "en", "fr", "de"])
    parser.add_argument("--web", nargs="*", default=WEB)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/four"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    file = given.out / "four.yaml"
    YAML(typ="safe", pure=True).dump(pipeline(given.folder.resolve(), given.languages, given.web, given.workers), file)
    langext, began, peak = [sys.executable, "-m", "langext.cli"], time.monotonic(), 0
    run = subprocess.Popen([*langext, "run", str(file), "--out", str(given.out / "run")], cwd=ROOT)
    while run.poll() is None:
        peak = max(peak, memory(run))
        time.sleep(0.5)
    print(f"{time.monotonic() - began:.0f} s, {peak / 1e6:.0f} MB at most, exit code {run.returncode}", flush=True)
    sys.exit(run.returncode or subprocess.run([*langext, "data", "stats", str(given.out / "run")], cwd=ROOT).returncode)


if __name__ == "__main__":
    main()
