"""What strangers get: the metadata of the package, the image, the workflow. Nothing is built here."""

import re
import tomllib
from pathlib import Path

from ruamel.yaml import YAML

import langext

ROOT = Path(__file__).parent.parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
PINNED = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").split())


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def read(name: str):
    return YAML(typ="safe").load((ROOT / name).read_text(encoding="utf-8"))


def needs() -> list[str]:
    """Every requirement of the package and its groups, but for langext itself."""
    groups = PROJECT["project"]["optional-dependencies"].values()
    every = [*PROJECT["project"]["dependencies"], *(need for group in groups for need in group)]
    return [need for need in every if not need.startswith("langext[")]


def test_every_requirement_has_a_bound_and_is_pinned():
    pinned = {plain(name) for name in PINNED}
    for need in needs():
        name = re.split(r"[\[<>=;]", need)[0]
        assert re.search(r">=", need), need
        # ray is for clusters that have it already; the source build of fastText is for other machines than the one pinned for.
        assert plain(name) in pinned or name in ("ray", "fasttext"), need


def test_pins_are_sorted_and_single():
    names = [plain(name) for name in PINNED]
    assert len(names) == len(set(names)) == len((ROOT / "constraints.txt").read_text().split())
    assert all(re.fullmatch(r"[\w.]+", version) for version in PINNED.values())


def test_the_package_takes_all_its_files_along():
    setuptools = PROJECT["tool"]["setuptools"]
    taken = {path for pattern in setuptools["package-data"]["langext"] for path in (ROOT / "langext").glob(pattern)}
    for path in (ROOT / "langext").rglob("*"):
        if path.is_file() and path.suffix not in (".py", ".pyc"):
            assert path in taken, path
    for path in (ROOT / "pipelines").rglob("*.yaml"):
        assert ROOT / "langext" / "ready_files" / "pipelines" / path.relative_to(ROOT / "pipelines") in taken, path
    assert (Path(langext.__file__).parent / "py.typed").is_file()


def test_the_newest_version_has_its_changes():
    versions = re.findall(r"^## (\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert versions[0] == PROJECT["project"]["version"]
    assert f"ARG VERSION={versions[0]}\n" in DOCKERFILE


def test_the_image_is_pinned_and_nobody_is_root():
    base = re.search(r"^ARG BASE=(\S+)\nFROM \$\{BASE\}$", DOCKERFILE, flags=re.MULTILINE)
    assert base is not None and re.search(r":.*\d", base[1]) and "latest" not in base[1]
    user = re.findall(r"^USER (\d+):\d+$", DOCKERFILE, flags=re.MULTILINE)
    assert user and user[-1] != "0"
    assert "--constraint /src/constraints.txt" in DOCKERFILE
    ignored = (ROOT / ".dockerignore").read_text().split()
    for copied in re.findall(r"^COPY (.+) \S+$", DOCKERFILE, flags=re.MULTILINE):
        assert all((ROOT / name).exists() and name not in ignored for name in copied.split()), copied


def test_compose_mounts_the_volumes_of_the_image():
    volumes = re.search(r"^VOLUME (.+)$", DOCKERFILE, flags=re.MULTILINE)
    assert volumes is not None
    mounted = {entry.split(":")[1] for entry in read("compose.yaml")["services"]["langext"]["volumes"]}
    assert set(re.findall(r'"([^"]+)"', volumes[1])) <= mounted


def test_the_workflow_does_what_the_script_does():
    made = set(re.findall(r"^make (\w+)$", (ROOT / ".ci" / "run").read_text(), flags=re.MULTILINE))
    workflow = read(".github/workflows/ci.yml")["jobs"]
    assert made == set(workflow["make"]["strategy"]["matrix"]["target"])
    assert {"package", "audit", "image"} <= workflow.keys()
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert made <= targets


def test_every_way_to_start_the_image_is_the_same_command_of_the_program():
    """README, the head of the Dockerfile and that of compose.yaml."""
    pages = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "Dockerfile", "compose.yaml"))
    shown = [
        line
        for text in pages
        for line in re.findall(r"docker (?:compose )?run (?:--?[^`#]*? )?langext(?:-cpu)? ([^`#\n]+)", text)
    ]
    assert {line.split("   ")[0].strip() for line in shown} == {"quickstart"} and len(shown) == 4


def test_the_script_that_builds_without_an_engine_knows_every_instruction():
    source = (ROOT / "benchmarks" / "image_build.py").read_text(encoding="utf-8")
    known = set(re.findall(r'^            case "([A-Z]+)":', source, flags=re.MULTILINE))
    assert known >= set(re.findall(r"^([A-Z]{3,}) ", DOCKERFILE, flags=re.MULTILINE))
