"""Tasks whose data cannot be loaded are named before anything is trained."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from langext import languages
from langext.errors import ConfigError
from langext.evaluation import benchmarks, harness
from langext.evaluation.benchmarks import SCRIPTS, Source, check

FORMATS = Path(__file__).parent.parent.parent / "configs" / "lm_eval"


def test_scripts_are_refused_with_what_to_take_instead():
    with pytest.raises(
        ConfigError, match="logiqa: its data set EleutherAI/logiqa is a script.*take instead: agieval_logiqa_en"
    ):
        harness.check_tasks(["logiqa"], None)
    with pytest.raises(ConfigError, match="mgsm_direct_..: its data set juletxara/mgsm is a script"):
        harness.check_tasks(["mgsm_direct"], None)  # a tag of several tasks


def test_what_is_recommended_exists_and_is_no_script_itself():
    names = sorted({name for name in SCRIPTS.values() if name and " " not in name and "<" not in name})
    assert len(names) > 5 and harness.known(names) == names
    manager = harness._manager(names, None)
    assert not {leaf.config["dataset_path"] for name in names for leaf in harness._leaves(manager, name)} & set(SCRIPTS)


def test_public_tasks_of_a_language():
    french = harness.known(benchmarks.public_tasks(languages.find("fr")))
    assert {"arc_fr", "belebele_fra_Latn", "xnli_fr", "xwinograd_fr", "global_mmlu_fr", "multiblimp_fra"} <= set(french)
    assert "xcopa_sw" in harness.known(benchmarks.public_tasks(languages.find("sw")))
    assert "xwinograd_jp" in benchmarks.public_tasks(languages.find("ja")) and "xnli_ja" in benchmarks.public_tasks(
        languages.find("ja")
    )
    assert benchmarks.of_task("xnli_fr", ["eng_Latn", "fra_Latn"]) == "fra_Latn"
    assert benchmarks.of_task("continuation_eng_Latn", ["fra_Latn", "eng_Latn"]) == "eng_Latn"
    assert benchmarks.of_task("my_own", ["fra_Latn"]) is None


def test_files_of_ones_own_must_be_there(tmp_path):
    data = tmp_path / "items.jsonl"
    task = {"include": str(FORMATS / "_pairs.yaml"), "task": "mine", "dataset_kwargs": {"data_files": {"test": str(data)}}}
    (tmp_path / "mine.yaml").write_text(json.dumps(task))
    data.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(ConfigError, match=f"tasks: mine: {data}: this is a Git LFS pointer"):
        harness.check_tasks(["mine"], tmp_path)
    data.unlink()
    with pytest.raises(ConfigError, match=f"tasks: mine: {data}: no such file"):
        harness.check_tasks(["mine"], tmp_path)
    data.write_text('{"good": "a b", "bad": "b a"}\n')
    harness.check_tasks(["mine"], tmp_path)
    check([Source("x", "json", None, {"test": [str(tmp_path / "*.jsonl")]})])


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"dataset_path": "d" * 300}, "tasks: mine: dataset_path: d.* cannot be a path here: File name too long"),
        ({"dataset_path": "a\0b"}, "tasks: mine: dataset_path: .* cannot be a path here"),
        ({"dataset_kwargs": {"data_files": {"test": ["d" * 300]}}}, "tasks: mine: data_files: d.* cannot be a path here"),
        ({"dataset_kwargs": {"data_files": "~nobody-has-this-name/x"}}, "tasks: mine: data_files: ~.* cannot be a path here"),
        ({"dataset_name": ["x"]}, r"tasks: mine: dataset_name must be a text \(got a list\)"),
    ],
)
def test_what_can_be_no_path_is_one_line(tmp_path, changed, said):
    task = {"include": str(FORMATS / "_pairs.yaml"), "task": "mine", **changed}
    (tmp_path / "mine.yaml").write_text(json.dumps(task))
    with pytest.raises(ConfigError, match=said) as caught:
        harness.check_tasks(["mine"], tmp_path)
    assert "\n" not in str(caught.value)


def test_without_a_connection_the_cache_decides(tmp_path):
    """The data set "someone/quiz" is in the cache in one configuration, as datasets itself leaves it there."""
    built = tmp_path / "datasets" / "someone___quiz" / "small" / "0.0.0" / "1234"
    built.mkdir(parents=True)
    code = (
        "import sys; from langext.evaluation.benchmarks import *\n"
        "from langext.spec import ConfigError\n"
        "for config in ('small', 'large'):\n"
        "    try: check([Source('quiz', 'someone/quiz', config)]); print(config, 'ok')\n"
        "    except ConfigError as error: print(config, error)\n"
    )
    (built / "dataset_info.json").write_text(json.dumps({"builder_name": "quiz", "config_name": "small", "version": "0.0.0"}))
    env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "datasets")}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.stdout.splitlines()[0] == "small ok", done.stdout + done.stderr
    assert "someone/quiz (large) is not on this machine, and the hub cannot be reached" in done.stdout
