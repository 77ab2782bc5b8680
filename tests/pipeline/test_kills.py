"""Every kind of stage, and commands, killed at what they do to the disk: they end with the bytes of an undisturbed run.

A process is killed before the n-th time that it opens a file to write, renames, removes or makes a folder, n growing from one
start to the next, so that each start meets what the ones before have left. Signals and real processes are tested in
test_lifeline and test_interrupted.
"""

import json
import os
import signal
import sys

import pytest
from bench import Bench, extend, train
from forks import langext

from langext.artifacts import JOB, MANIFEST
from langext.errors import EXIT_RUN_FAILED
from langext.pipeline import reuse

pytestmark = pytest.mark.timeout(900)  # one fixture makes all that is undisturbed
CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate"}
OF_ONE_RUN = {
    "time",
    "seconds",
    "started",
    "tokens_per_second",
    "eta_seconds",
    "peak_memory_bytes",
    "prepare_seconds",
    "modified_ns",
}
"""Keys whose values no two runs have in common."""
TOLD = ("kind", "trained", "fingerprint", "identity", "summary", "choices")
"""What a manifest says besides files, which are compared themselves, and where, when and on what machine they were made."""
GATED = {"name": "neutral_residues", "gate": "threshold", "init": "lecun", "width": 16}
CALIBRATE = {"closed": 0.9, "original_tokens": 2000, "new_tokens": 2000, "min_open": 0.1}
SHORT = train(steps=3, eval_every=3, save_every=1, log_every=1, eval_bytes=1000)
CHAINS = {
    "gated": [
        {"uses": "extend_tokenizer", "new_tokens": 20, "min_count": 2}, extend(**GATED, calibrate=CALIBRATE),
        {**SHORT, "ema": 0.9}, {"uses": "recalibrate", "closed": [0.9, 0.8], "eval_bytes": 1000}, {"uses": "export"},
    ],
    "full": [extend(name="full"), SHORT, {"uses": "rescale", "eval_bytes": 1000}],
    "paper": [
        extend(**GATED | {"gate": "relu"}), SHORT,
        {"uses": "regate", "steps": 2, "batch_sequences": 2, "sequence_length": 32, "eval_bytes": 1000},
    ],
}  # fmt: skip
"""Pipelines after their filter stage."""
CERTIFY = {"uses": "certify", "bytes": 1000, "continuations": 1, "new_tokens": 4}
STAGES = [("gated", number) for number in range(6)] + [("full", 3), ("paper", 3), ("merged", 1), ("certified", 6)]


def changes(event, arguments, under):
    """Whether an audit event changes something in the folder `under`. https://docs.python.org/3/library/audit_events.html"""
    if event == "open":
        path, _, flags = arguments
        return isinstance(path, str) and path.startswith(under) and flags & (os.O_WRONLY | os.O_RDWR)
    return event in CHANGES and str(arguments[0]).startswith(under)


def dies(number, under, stage=None):
    """Kill the process of a stage (None: that of the command) before its `number`-th change in the folder `under`, and a stage
    at the latest when its manifest is whole and has not got its name.
    """

    def first(out):
        if (out.name if out else None) != stage:
            return
        mine, seen = os.getpid(), 0

        def hook(event, arguments):
            nonlocal seen
            if os.getpid() == mine and changes(event, arguments, str(under)):
                seen += 1
                if seen == number or (stage and event == "os.rename" and str(arguments[1]).endswith(MANIFEST)):
                    os.kill(mine, signal.SIGKILL)

        sys.addaudithook(hook)

    return first


def plain(value):
    """A value of a JSON file without what is of one run alone."""
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items() if key not in OF_ONE_RUN}
    return [plain(part) for part in value] if isinstance(value, list) else value


def content(folder):
    """Name -> content of all files that a finished stage has, but for logs; JSON without what is of one run alone."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.name != JOB):
        name = str(path.relative_to(folder))
        if name.startswith("log/"):
            continue
        if path.name == MANIFEST:
            found[name] = {key: plain(value) for key, value in json.loads(path.read_text()).items() if key in TOLD}
        elif path.suffix == ".json":
            found[name] = plain(json.loads(path.read_text()))
        elif path.suffix == ".jsonl":
            found[name] = [plain(json.loads(line)) for line in path.open()]
        else:
            found[name] = path.read_bytes()
    return found


def differing(one, two):
    """Names of files that one of two folders has not, or has with another content."""
    here, there = content(one), content(two)
    assert here
    return sorted(name for name in here.keys() | there.keys() if here.get(name) != there.get(name))


@pytest.fixture(scope="module")
def bench(tmp_path_factory, pico):
    return Bench(tmp_path_factory.mktemp("kills"), pico)


@pytest.fixture(scope="module")
def whole(bench):
    """Undisturbed runs by the name of their chain, with their stages."""
    runs = {name: (bench.run(name, "fra_Latn", ["eng_Latn"], stages), stages) for name, stages in CHAINS.items()}
    unscaled = bench.root / "unscaled"
    reuse.whole(runs["full"][0], ["01-filter", "02-extend", "03-train"], unscaled)
    merge = [{"uses": "merge", "models": [str(runs["full"][0]), str(unscaled)], "eval_bytes": 1000}]
    certify = [*CHAINS["gated"], CERTIFY]
    return runs | {name: (bench.run(name, "fra_Latn", ["eng_Latn"], stages), stages)
                   for name, stages in (("merged", merge), ("certified", certify))}  # fmt: skip


@pytest.mark.parametrize(("chain", "number"), STAGES)
def test_a_stage_that_is_killed_again_and_again_ends_as_if_it_had_not_been(bench, whole, chain, number):
    undisturbed, stages = whole[chain]
    names = sorted(path.name for path in undisturbed.glob("[0-9]*"))
    out = bench.root / f"killed-{number}" / chain  # of the same name, which a certificate has in it
    reuse.whole(whole["gated"][0] if chain == "certified" else undisturbed, names[:number], out)
    command = ["run", str(bench.file(f"killed-{chain}", "fra_Latn", ["eng_Latn"], stages[: max(number, 2)])), "--out", str(out)]
    at, stage = 1, out / names[number]
    while not (stage / f"{MANIFEST}.tmp").exists():
        done = langext(*command, first=dies(at, out, stage.name))
        assert done.returncode == EXIT_RUN_FAILED, done.stdout + done.stderr
        assert not (stage / MANIFEST).exists()
        at = 6 * at + 1
    done = langext(*command)
    assert not done.returncode, done.stdout + done.stderr
    for each in sorted(out.glob("[0-9]*")) if chain == "certified" else [stage]:  # a certificate is laid into the export too
        assert differing(each, undisturbed / each.name) == []


def test_a_command_that_is_killed_again_and_again_goes_on(bench, whole):
    """While it prepares the base, writes the jobs of its stages and its report."""
    undisturbed, stages = whole["full"]
    out = bench.root / "killed-command"
    command = ["run", str(bench.file(out.name, "fra_Latn", ["eng_Latn"], stages[:2])), "--out", str(out)]
    at = 1
    while (done := langext(*command, first=dies(at, out))).returncode == -signal.SIGKILL:
        at = 4 * at + 1
    assert at > 15 and not done.returncode, done.stdout + done.stderr
    assert differing(out / "03-train", undisturbed / "03-train") == []


def test_an_export_by_command_that_is_killed_again_and_again_is_whole_or_not_there(bench, whole):
    run, to = whole["gated"][0], bench.root / "exports" / "mine"
    command, at = ["export", str(run), "--to", str(to)], 1
    while (done := langext(*command, first=dies(at, bench.root))).returncode == -signal.SIGKILL:
        assert not to.exists()
        at = 4 * at + 1
    assert at > 15 and not done.returncode, done.stdout + done.stderr
    assert [path.name for path in to.parent.iterdir()] == ["mine"]
    assert not [name for name in differing(to, run / "06-export" / "checkpoint") if name.endswith(".safetensors")]
