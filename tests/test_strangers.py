"""Folders of strangers: links in them lead nowhere, and names in them stay text."""

import shutil

import pytest
from run_folders import evaluation

from langext.artifacts import write_json
from langext.errors import ConfigError
from langext.exports.modelcard import in_markdown
from langext.models import base_files, bases
from langext.pipeline.run import hold
from langext.report import compare_page, comparison, page


@pytest.fixture
def mine(tmp_path):
    """A file outside of the stranger's folder, which must stay as it is."""
    path = tmp_path / "mine.txt"
    path.write_text("mine")
    yield path
    assert path.read_text() == "mine"


@pytest.fixture
def run(tmp_path):
    """A run that was evaluated, as far as reports read it."""
    folder = tmp_path / "run"
    evaluation(folder, 1, "evaluate_base", "base", 2.0, 1.0)
    evaluation(folder, 2, "evaluate", "train", 1.5, 1.0)
    return folder


@pytest.mark.parametrize("end", ["", ".tmp"])
def test_reports_replace_links_and_do_not_follow_them(run, mine, end):
    for name in (page.PAGE, compare_page.HTML, compare_page.CSV, "x.json"):
        (run / (name + end)).symlink_to(mine)
    page.build(run)
    compare_page.build(comparison.gather([run]), run)
    write_json(run / "x.json", {})
    assert not [path for path in run.iterdir() if path.is_symlink()]


@pytest.mark.parametrize("name", [".lock", "01-evaluate_base/metrics.jsonl", "01-evaluate_base/new"])
def test_a_run_does_not_go_on_in_a_folder_with_links_to_files(run, mine, name):
    with hold(run):
        pass
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(mine if "new" not in name else mine.with_name("nothing yet"))
    with pytest.raises(ConfigError, match=f"{name}: a link to a file, through which langext would write"), hold(run):
        raise AssertionError("not refused")
    assert not mine.with_name("nothing yet").exists()


def test_a_licence_that_is_a_link_out_of_its_folder_is_not_copied(pico, tmp_path, mine):
    base = shutil.copytree(pico, tmp_path / "hub" / "snapshots" / "abc")
    (base / "NOTICE").write_text("notice")
    (tmp_path / "hub" / "blobs").mkdir()
    (tmp_path / "hub" / "blobs" / "0f").write_text("terms")
    (base / "LICENSE").symlink_to("../../blobs/0f")  # as the cache of the hub has it
    bases.check(str(base))
    assert [path.read_text() for path in base_files.licences(base)] == ["terms", "notice"]
    (base / "LICENSE.txt").symlink_to(mine)
    with pytest.raises(ConfigError, match="LICENSE.txt: a link out of its folder to .*mine.txt"):
        bases.check(str(base))


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("<script>x</script>", "&lt;script>x&lt;/script>"),
        ("a|b", "a\\|b"),
        ("[x](javascript:x)", "\\[x](javascript:x)"),
        ("![x](http://host/x)", "!\\[x](http://host/x)"),
        ("a\n# b", "a # b"),
        ("`x`", "'x'"),
        (0.5, 0.5),
        ("fra_Latn/news", "fra_Latn/news"),
    ],
)
def test_names_stay_text_in_a_model_card(name, shown):
    assert in_markdown(name) == shown
