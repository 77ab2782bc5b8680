"""Speed of filtering on one core, against fastText alone and against datatrove's own pipeline, in the same process.

    python benchmarks/data_speed.py TEXT.jsonl.gz ... --language fr

The text is cut into documents of about 2 kB. In each round, in turn: `fasttext` (its predict on lists of 256 of these
documents, read and brought into one line before: the floor), and datatrove's steps and stage filter, each with and without the
rules for web pages (`quality`). datatrove's are JsonlReader, LanguageFilter, its four quality filters with langext's words and
numbers of the language (its own words need spaCy, which is slower), JsonlWriter; stage filter has no `duplicates` there, as
datatrove's steps have none, but finds its cut, repairs text and holds some out. `everything` is stage filter with all defaults.
What is compared is CPU time of one process, so that others on the machine disturb little; the ratios are medians over rounds.
Two workers are compared with one by wall time, the start of processes included: it needs two free cores, and text that takes
longer than that start.
"""

import argparse
import contextlib
import gzip
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
    LanguageFilter,
)
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter
from datatrove.utils.lid import FT176LID

from langext import languages
from langext.context import Context
from langext.data import assets, language_id
from langext.data.language_id import LanguageId
from langext.data.quality import describe
from langext.data.tasks import silenced
from langext.data.word_units import WordUnits
from langext.stages.filter import Filter
from langext.text_summaries import LanguageRecord

BYTES, BATCH, FILES = 2000, 256, 4


def make_text(folder: Path, files: list[Path], megabytes: float) -> list[str]:
    """FILES files of documents of about BYTES bytes. Returns their texts."""
    texts: list[str] = []
    for path in files:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            whole = "\n".join(json.loads(line)["text"] for line in lines)
        start = 0
        while start < len(whole) and len(texts) * BYTES < megabytes * 1e6:
            end = whole.find(" ", start + int(BYTES * 0.96))  # Latin scripts have a little more than one byte a letter
            texts.append(whole[start : end if end > 0 else len(whole)].strip())
            start += len(texts[-1]) + 1
    folder.mkdir()
    for number in range(FILES):
        with gzip.open(folder / f"{number}.jsonl.gz", "wt", encoding="utf-8", compresslevel=6) as file:
            for n, text in enumerate(texts[number::FILES]):
                file.write(json.dumps({"id": str(n), "text": text}, ensure_ascii=False) + "\n")
    return texts


def spent(work: Callable[[], object]) -> tuple[float, float]:
    """CPU seconds of this process, and seconds on the clock."""
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - cpu, time.perf_counter() - wall


class Words(WordUnits):
    """Words as langext finds them, anew for every filter."""

    def word_tokenize(self, text: str) -> list[str]:
        return self._words(text)


def rules(code: str, known: LanguageRecord) -> list:
    """datatrove's quality filters as FineWeb puts them together, for a language."""
    least, most = known.mean_word_length
    words = {"language": Words(code)}
    gopher = {"stop_words": known.stop_words, "min_avg_word_length": least, "max_avg_word_length": most}
    return [GopherRepetitionFilter(**words), GopherQualityFilter(**gopher, **words),
            C4QualityFilter(filter_no_terminal_punct=False, **words), FineWebQualityFilter(**words)]  # fmt: skip


def datatrove(text: Path, out: Path, model: Path, language: str, quality: list) -> None:
    """datatrove's steps as its own examples put them together, with the model of this machine; it would download one."""
    lid = LanguageId(model)

    class Here(FT176LID):
        model = property(lambda self: lid.model)

    LanguageFilter._requires_dependencies = []  # what is missing would lock the download
    judge = LanguageFilter(languages=[language], exclusion_writer=JsonlWriter(str(out / "rejects")))
    judge.model = Here([language])
    steps = [JsonlReader(str(text)), judge, *quality, JsonlWriter(str(out / "documents"))]
    with silenced():
        LocalPipelineExecutor(steps, tasks=1, logging_dir=str(out / "log")).run()


def langext(text: Path, out: Path, language: str, workers: int, web: bool = False, **more: str) -> None:
    """Stage filter, on the text as its only source."""
    code = languages.find(language).code
    sources = [{"language": code, "path": str(text), "name": "web", "quality": "web" if web else "off"}]
    stage = Filter(uses="filter", sources=sources, runtime={"workers": workers}, **more)
    out.mkdir()
    language_id._load.cache_clear()  # nothing is known of words that an earlier round has met
    with contextlib.redirect_stdout(None):
        stage.run(Context(out, 1, code, ()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", help=".jsonl.gz files with the field text, in one language")
    parser.add_argument("--language", default="fr", help="two-letter code, as lid.176 has it")
    parser.add_argument("--megabytes", type=float, default=20.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--two-workers", action="store_true", help="only two workers beside one")
    given = parser.parse_args()
    model = assets.resolve("asset:lid.176")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        texts = make_text(folder / "text", given.files, given.megabytes)
        lines = [text.replace("\n", " ") for text in texts]
        lid = LanguageId(model).model
        size = sum(len(text.encode()) for text in texts)
        print(f"{len(texts)} documents, {size / len(texts):.0f} bytes each; CPU seconds, and MB/s in one")
        code = languages.find(given.language).code
        known = describe(texts[:500], ["web"], WordUnits(code))
        source, alone = folder / "text", {"duplicates": "off"}
        ways = {
            "fasttext": lambda out: [lid.predict(lines[i : i + BATCH]) for i in range(0, len(lines), BATCH)],
            "datatrove": lambda out: datatrove(source, out, model, given.language, []),
            "langext": lambda out: langext(source, out, given.language, 1, **alone),
            "datatrove, quality": lambda out: datatrove(source, out, model, given.language, rules(code, known)),
            "langext, quality": lambda out: langext(source, out, given.language, 1, web=True, **alone),
            "langext, everything": lambda out: langext(source, out, given.language, 1),
            "langext, 2 workers": lambda out: langext(source, out, given.language, 2),
        }
        if given.two_workers:
            ways = {way: ways[way] for way in ("langext, everything", "langext, 2 workers")}
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        clock: dict[str, list[float]] = {way: [] for way in ways}
        for number in range(given.rounds):
            for way, work in ways.items():
                out = folder / "out"
                cpu, wall = spent(lambda: work(out))  # noqa: B023
                seconds[way].append(cpu)
                clock[way].append(wall)
                shutil.rmtree(out, ignore_errors=True)
            shown = {way: f"{seconds[way][-1]:.2f} ({clock[way][-1]:.2f} on the clock)" for way in ways}
            print(f"round {number + 1}:", shown, flush=True)
        for way, found in list(seconds.items())[:-1]:
            print(f"{way:20} {statistics.median(found):6.2f} s {size / 1e6 / statistics.median(found):6.1f} MB/s")
        for mine in ("", ", quality") if not given.two_workers else ():
            for other in ("fasttext", f"datatrove{mine}"):
                ratios = [a / b for a, b in zip(seconds[other], seconds[f"langext{mine}"], strict=True)]
                print(f"langext{mine} is {statistics.median(ratios):.2f} x {other} ({min(ratios):.2f} to {max(ratios):.2f})")
        both = [a / b for a, b in zip(clock["langext, everything"], clock["langext, 2 workers"], strict=True)]
        print(f"two workers: {statistics.median(both):.2f} x one on the clock ({min(both):.2f} to {max(both):.2f})")


if __name__ == "__main__":
    main()
