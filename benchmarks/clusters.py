"""Runs one filter stage on this machine, as Slurm jobs and on Ray, and compares what they write, to the byte.

    langext fetch quickstart && python benchmarks/clusters.py work

Needs root on a Debian machine: it installs slurm-wlm and munge if they are not there, and runs Slurm as a cluster of this one
machine, with its own configuration in the folder. Ray, if it is not installed, goes into the folder too. Besides the comparison
a process of a running task is killed in each place, and the same command given again; a run is stopped as Ctrl-C stops it; and
a broken line is told. Everything that is run is printed. Exit code 1 when anything is not as it must be.
"""

import argparse
import gzip
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from toy import make_llama, make_tokenizer

from langext.data import assets

FILES = 6
PLACES = {
    "local, 1 worker": ["workers=1"],
    "local, 2 workers": ["workers=2"],
    "slurm": ["executor=slurm", "workers=2", "slurm.partition=one", "slurm.time=00:30:00", "slurm.memory_gb=2"],
    "ray": ["executor=ray", "workers=2", "ray.address=local", "ray.memory_gb=2"],
}
PIPELINE = """
name: clusters
language: fr
original_languages: [en]
base_model: base
stages:
  - uses: filter
    sources:
      - {language: fr, path: text/fr, name: web}
      - {language: en, path: text/en, name: web}
"""


def say(command: list[str]) -> None:
    print("$", " ".join(command), flush=True)


def sh(*command: str, quiet: bool = False) -> str:
    """Run a command and print it; return what it printed."""
    say(list(command))
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode or not quiet:
        print("\n".join(f"  {line}" for line in (done.stdout + done.stderr).strip().splitlines()[-20:]), flush=True)
    if done.returncode:
        sys.exit(f"{command[0]} failed")
    return done.stdout


def background(folder: Path, *command: str) -> subprocess.Popen:
    """Start a service and print its command."""
    say([*command, "&"])
    log = (folder / f"{Path(command[-1 if command[0] == 'runuser' else 0]).name}.out").open("w")
    return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)


def start_slurm(folder: Path, partitions: str = "") -> list[subprocess.Popen]:
    """A Slurm cluster of this machine alone, with more partitions than `one`. Returns its services."""
    if not (shutil.which("slurmctld") and shutil.which("munged")):
        sh("apt-get", "update", quiet=True)
        sh("apt-get", "install", "--yes", "--no-install-recommends", "slurm-wlm", "munge", quiet=True)
    name, memory = socket.gethostname(), int(psutil.virtual_memory().total / 2**20 * 0.9)
    (folder / "spool").mkdir(parents=True, exist_ok=True)
    conf = folder / "slurm.conf"
    conf.write_text(f"""ClusterName=one
SlurmctldHost={name}(127.0.0.1)
SlurmUser=root
SlurmctldPort=16817
SlurmdPort=16818
StateSaveLocation={folder}/spool
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
ReturnToService=2
KillWait=2
NodeName={name} NodeAddr=127.0.0.1 CPUs={os.cpu_count()} RealMemory={memory} State=UNKNOWN
PartitionName=one Nodes={name} Default=YES MaxTime=INFINITE State=UP
{partitions}""")
    print(f"{conf}:\n" + conf.read_text())
    os.environ["SLURM_CONF"] = str(conf)
    services = []
    if not any(p.name() == "munged" and p.status() != psutil.STATUS_ZOMBIE for p in psutil.process_iter()):
        sh("install", "--directory", "--owner=munge", "--group=munge", "/run/munge")
        services.append(background(folder, "runuser", "-u", "munge", "--", "munged", "--foreground"))
        time.sleep(1)
    services += [background(folder, "slurmctld", "-D"), background(folder, "slurmd", "-D")]
    for _ in range(30):
        time.sleep(1)
        if subprocess.run(["sinfo", "--noheader", "--format=%T"], capture_output=True, text=True).stdout.strip() == "idle":
            break
    sh("sinfo")
    return services


def have_ray(folder: Path) -> None:
    """Make Ray importable, here and in what is started from here."""
    try:
        import ray  # noqa: F401
    except ImportError:
        packages = folder / "ray"
        if not packages.exists():
            sh(sys.executable, "-m", "pip", "install", "--quiet", "--target", str(packages), "--no-deps", "ray>=2.40,<3",
               "jsonschema", "jsonschema-specifications", "referencing", "rpds-py", quiet=True)  # fmt: skip
        os.environ["PYTHONPATH"] = os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), str(packages)])


def make_text(folder: Path, megabytes: float) -> None:
    """Text of the quickstart, repeated, in FILES files for each of two languages; a document in ten is of the other."""
    texts = {}
    for code in ("fr", "en"):
        with gzip.open(assets.resolve(f"asset:text-{code}"), "rt", encoding="utf-8") as file:
            texts[code] = [json.loads(line)["text"] for line in file]
    for code, other in (("fr", "en"), ("en", "fr")):
        (folder / code).mkdir(parents=True)
        for number in range(FILES):
            size, at = 0, number
            with gzip.open(folder / code / f"{number}.jsonl.gz", "wt", encoding="utf-8", compresslevel=1) as file:
                while size < megabytes * 1e6 / FILES:
                    own = texts[other if at % 10 == 9 else code]
                    size += file.write(json.dumps({"id": at, "text": f"{at} {own[at % len(own)]}"}, ensure_ascii=False) + "\n")
                    at += FILES


def start(out: str, settings: list[str]) -> subprocess.Popen:
    """Start `langext run`."""
    sets = [part for setting in settings for part in ("--set", f"filter.runtime.{setting}")]
    command = [sys.executable, "-m", "langext.cli", "run", "pipeline.yaml", "--out", out, *sets]
    say(["langext", *command[3:]])
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(run: subprocess.Popen, code: int) -> str:
    """Wait for a run, print its last lines and check its exit code."""
    printed, _ = run.communicate(timeout=1200)
    print("\n".join(f"  {line}" for line in printed.strip().splitlines()[-6:]) + f"\n  exit code {run.returncode}", flush=True)
    if run.returncode != code:
        sys.exit(f"expected exit code {code}")
    return printed


def digest(out: str) -> tuple[str, int, int]:
    """sha256 over names and bytes of all that the stage has written for later stages, the number of files and bytes."""
    whole, size = hashlib.sha256(), 0
    paths = sorted(path for path in Path(out).glob("*-filter/*/**/*.gz"))
    for path in paths:
        whole.update(f"{path.relative_to(out)}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
        size += path.stat().st_size
    return whole.hexdigest(), len(paths), size


def of_a_task(place: str, run: subprocess.Popen) -> list[psutil.Process]:
    """Processes in which tasks of a run work."""
    if place == "slurm":
        return [p for p in psutil.process_iter(["cmdline"]) if any("executor.pik" in part for part in p.info["cmdline"] or [])
                and "python" in p.info["cmdline"][0]]  # fmt: skip
    children = psutil.Process(run.pid).children(recursive=True)
    if place == "ray":
        return [p for p in children if p.name().startswith("ray::_run") or "ray::_run" in " ".join(p.cmdline())]
    return [p for p in children if "forkserver" in " ".join(p.cmdline()) and not p.children()]


def done(out: str) -> dict[str, float]:
    """Finished tasks, with the time at which they were."""
    return {str(path.relative_to(out)): path.stat().st_mtime for path in Path(out).glob("*-filter/log/**/completions/*")}


def kill_and_go_on(place: str, settings: list[str], expected: tuple) -> None:
    """Kill a process of a running task without a word; then the same command must finish what is left."""
    out = f"runs/killed {place}"
    run = start(out, settings)
    while not done(out) or not (working := of_a_task(place, run)):
        if run.poll() is not None:
            sys.exit("the run ended before a task could be killed; give more --megabytes")
        time.sleep(0.2)
    print(f"  kill -9 {working[-1].pid}   # {' '.join(working[-1].cmdline())[:100]}")
    working[-1].kill()
    finish(run, 4)
    before = done(out)
    finish(start(out, settings), 0)
    kept = [name for name, when in done(out).items() if before.get(name) == when]
    print(
        f"  {len(kept)} of {len(done(out))} tasks were finished before and not repeated; same bytes: {digest(out) == expected}"
    )
    if digest(out) != expected or len(kept) != len(before) or not kept:
        sys.exit("not what an undisturbed run gives")


def interrupt(place: str, settings: list[str]) -> None:
    """Stop a run as Ctrl-C does: no task may be left."""
    run = start(f"runs/stopped {place}", settings)
    while not of_a_task(place, run):
        time.sleep(0.2)
    print(f"  kill -INT {run.pid}")
    run.send_signal(signal.SIGINT)
    finish(run, 130)
    left = of_a_task("slurm", run) if place == "slurm" else [p for p in psutil.process_iter() if p.name().startswith("ray::")]
    print(f"  tasks left: {len(left)}" + (f"; {sh('squeue', '--noheader')!r}" if place == "slurm" else ""))
    if left:
        sys.exit("tasks are left")


def broken(place: str, settings: list[str]) -> None:
    """A broken line is told with file and line, wherever it is read."""
    path = Path("text/fr/3.jsonl.gz")
    whole = path.read_bytes()
    path.write_bytes(gzip.compress(b'{"text": "Bonjour."}\n{"text": \n'))
    printed = finish(start(f"runs/broken {place}", settings), 4)
    path.write_bytes(whole)
    if "3.jsonl.gz: line 2: not a JSON object" not in printed:
        sys.exit("the line is not told")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a new folder to work in")
    parser.add_argument("--megabytes", type=float, default=40.0, help="text of each of the two languages")
    parser.add_argument("--places", nargs="+", choices=PLACES, default=list(PLACES), help="the first one is compared with")
    given = parser.parse_args()
    folder = given.folder.resolve()
    folder.mkdir(parents=True)
    os.environ["PYTHONPATH"] = str(ROOT)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for what it starts in the background
    services = start_slurm(folder / "slurm")
    try:
        have_ray(folder.parent)
        os.chdir(folder)
        make_text(folder / "text", given.megabytes)
        Path("pipeline.yaml").write_text(PIPELINE)
        tokenizer = make_tokenizer()
        for part in (tokenizer, make_llama(len(tokenizer))):  # no model is needed to filter text, but every run has a base
            part.save_pretrained("base")
        found = {}
        places = {place: PLACES[place] for place in given.places}
        for place, settings in places.items():
            started = time.monotonic()
            finish(start(f"runs/{place}", settings), 0)
            found[place] = digest(f"runs/{place}")
            sha256, files, size = found[place]
            print(f"  {time.monotonic() - started:.0f} s; {files} files, {size:,} bytes, sha256 {sha256}")
        if len(set(found.values())) > 1:
            sys.exit("the places do not write the same")
        for place, settings in places.items():
            if place != "local, 1 worker":
                kill_and_go_on(place, settings, found[place])
            if place in ("slurm", "ray"):
                interrupt(place, settings)
                broken(place, settings)
        print("all places write the same bytes; a killed task ends the run, which goes on; nothing is left after Ctrl-C")
    finally:
        for service in reversed(services):
            service.terminate()


if __name__ == "__main__":
    main()
