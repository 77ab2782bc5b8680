"""Peak memory of filtering a large source: does it grow with the text?

    python benchmarks/data_memory.py work TEXT.jsonl.gz ... --language fr --gigabytes 1

Repeats the files until there is so much text, filters it with `langext run`, and looks at the resident memory of all its
processes twice a second. Prints the peak of each tenth of the time: flat means that more text takes no more memory. Besides
documents of the files, one of `--longest` MB in a single line is put at the beginning of each copy.
"""

import argparse
import gzip
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from toy import make_llama, make_tokenizer

PIPELINE = """
name: memory
language: {language}
original_languages: []
base_model: base
stages:
  - uses: filter
    sources: [{{language: {language}, path: text, name: web}}]
"""


def make_text(folder: Path, files: list[Path], wanted: float, longest: int) -> int:
    """Copies of the files until there are `wanted` bytes of text. Returns the bytes there are."""
    folder.mkdir()
    size = copy = 0
    while size < wanted:
        with gzip.open(folder / f"{copy:05d}.jsonl.gz", "wt", encoding="utf-8", compresslevel=1) as out:
            long = ""
            for text in texts(files):
                if len(long) >= longest:
                    break
                long += f"{copy} {text}"
            for text in chain([long] if long else [], (f"{copy} {text}" for text in texts(files))):
                size += len(text.encode())
                out.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
        copy += 1
    return size


def texts(files: list[Path]) -> Iterator[str]:
    """The text of every document."""
    for path in files:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                yield json.loads(line)["text"]


def resident(run: subprocess.Popen) -> dict[int, int]:
    """Bytes of each process of the run: worker and readers."""
    found = {}
    for process in psutil.Process(run.pid).children(recursive=True):
        try:
            found[process.pid] = process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a new folder to work in")
    parser.add_argument("files", type=Path, nargs="+", help=".jsonl.gz files with the field text")
    parser.add_argument("--language", default="fr")
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--longest", type=float, default=20.0, help="MB of the longest document")
    parser.add_argument("--set", action="append", default=[], help="key=value, as of langext run")
    given = parser.parse_args()
    folder = given.folder.resolve()
    folder.mkdir(parents=True)
    size = make_text(folder / "text", given.files, given.gigabytes * 1e9, int(given.longest * 1e6))
    (folder / "pipeline.yaml").write_text(PIPELINE.format(language=given.language))
    tokenizer = make_tokenizer()
    for part in (tokenizer, make_llama(len(tokenizer))):
        part.save_pretrained(folder / "base")
    sets = [part for setting in given.set for part in ("--set", setting)]
    command = [sys.executable, "-m", "langext.cli", "run", "pipeline.yaml", "--out", "run", *sets]
    print(f"{size / 1e9:.2f} GB of text; langext {' '.join(command[3:])}", flush=True)
    started, seen = time.monotonic(), []
    run = subprocess.Popen(command, cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)})
    while run.poll() is None:
        if found := resident(run):
            seen.append((sum(found.values()), max(found.values())))
        time.sleep(0.5)
    spent = time.monotonic() - started
    tenths = [seen[i * len(seen) // 10 : (i + 1) * len(seen) // 10] for i in range(10)]
    print("peak of all processes together in each tenth of the time, MB:", [round(max(t)[0] / 1e6) for t in tenths if t])
    together, one = (max(column) / 1e6 for column in zip(*seen, strict=True))
    print(f"peak {together:.0f} MB together, {one:.0f} MB of one; {spent:.0f} s; exit code {run.returncode}")
    sys.exit(run.returncode)


if __name__ == "__main__":
    main()
