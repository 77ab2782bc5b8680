"""What an installed langext brings along."""

import os
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "langext"


def test_every_file_that_is_no_code_is_in_the_wheel():
    """`langext quickstart` works from any folder only with these files; links to them are files in a wheel."""
    build = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    packed = {path for pattern in build["package-data"]["langext"] for path in PACKAGE.glob(pattern) if path.is_file()}
    there = {
        Path(folder) / name
        for folder, _, names in os.walk(PACKAGE, followlinks=True)
        for name in names
        if "__pycache__" not in folder and not name.endswith(".py")
    }
    assert PACKAGE / "ready_files" / "pipelines" / "quickstart.yaml" in packed
    assert PACKAGE / "cli" / "pipeline.yaml.j2" in packed
    assert sorted(map(str, there - packed)) == []
