"""The pages in a real browser: the report, the comparison and the site of docs/."""

import logging
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import browser
import pytest
from browser import Browser
from mkdocs.commands.build import build
from mkdocs.config import load_config
from run_folders import certificate, compared, stage
from test_calibrated import run as calibrated_run
from test_calibrated import turned
from test_page import EVIL
from test_page import run as page_run

from langext.report import compare_page, comparison, page

ROOT = Path(__file__).parent.parent.parent
WIDTHS = (375, 1440)
page_run, calibrated_run = page_run, calibrated_run  # fixtures
MOST = "cookbook"
"""The page of the site that has all parts which pages are made of. It goes through the rules of WCAG, with its scripts."""
CONTRAST = "color-contrast"
OF_THE_BROWSER = "scrollable-region-focusable"
"""The theme leaves this to browsers, which have let a keyboard into what scrolls since Chrome 130, and Firefox longer."""


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = browser.program()
    if program is None:
        pytest.skip("no Chromium here, so the pages are not looked at; on Debian: apt install chromium")
    with browser.started(program, tmp_path_factory.mktemp("profile")) as found:
        yield found


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Nothing on the terminal."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, list[str]]]:
    """The address of the site, and its pages."""
    folder = tmp_path_factory.mktemp("site")
    logging.getLogger("mkdocs").setLevel(logging.ERROR)
    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder)))
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        pages = [path.parent.relative_to(folder).as_posix() for path in sorted(folder.rglob("index.html"))]
        yield f"http://127.0.0.1:{server.server_port}/", pages
        server.shutdown()


def wide(chromium: Browser) -> dict[int, int]:
    """Width of the window -> how many pixels of the page lie outside of it, where it is any."""
    found = {}
    for width in WIDTHS:
        chromium.look(width, "light")
        found[width] = chromium.value("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    return {width: more for width, more in found.items() if more}


def outside(chromium: Browser, address: str) -> list[str]:
    """What a page has asked for that is not at the address."""
    return [url for url in chromium.requests if not url.startswith((address, "data:"))]


def checked(chromium: Browser, written: Path) -> None:
    """Open a page that langext has written, and see that nothing is wrong with it."""
    chromium.open(written.as_uri())
    assert chromium.problems == []
    assert written.as_uri() in chromium.requests and outside(chromium, written.as_uri()) == []
    assert wide(chromium) == {}
    assert chromium.violations() == []
    chromium.look(WIDTHS[-1], "dark")
    assert chromium.violations(only=CONTRAST) == []
    assert chromium.unreached() == []


def test_the_report(chromium, page_run):
    stage(page_run, 5, "certify", "Neutrality", {"model": "train"}, certificate(0.0002, EVIL))
    checked(chromium, page.build(page_run))
    assert chromium.value("document.scripts.length") == 0
    assert chromium.value("document.body.innerText").count(EVIL) > 3


def test_the_report_of_calibrated_gates(chromium, calibrated_run):
    checked(chromium, page.build(turned(calibrated_run, 0.005)))


def test_the_comparison(chromium, tmp_path):
    for name, french, english in (("a", 1.8, 1.01), (EVIL.replace("/", ""), 1.6, 1.1)):
        compared(tmp_path / name, "lora", 1e-3 * french, french, english, rank=8)
    checked(chromium, compare_page.build(comparison.gather([tmp_path]), tmp_path))


def test_what_is_wrong_is_found(chromium, tmp_path):
    """Otherwise the tests above could be looking away."""
    path = tmp_path / "wrong.html"
    path.write_text(
        '<html lang="en"><title>x</title><body><p style="color: #aaa; background: #fff; width: 2000px">pale</p>'
        '<img alt="x" src="gone.png"><a href="#b" onfocus="this.blur()">x</a><script>console.error("oh"); missing()</script>'
    )
    chromium.open(path.as_uri())
    assert len(chromium.problems) == 3 and chromium.requests == [path.as_uri(), (tmp_path / "gone.png").as_uri()]
    assert wide(chromium).keys() == set(WIDTHS)
    assert any(rule.startswith(CONTRAST) for rule in chromium.violations())


def test_the_site(chromium, site):
    address, pages = site
    assert len(pages) > 15
    wrong = {}
    chromium.scripts(False)
    for name in pages:
        chromium.open(f"{address}{name}/")
        wrong[name] = [*chromium.problems, *wide(chromium).items(), *outside(chromium, address)]
    chromium.scripts(True)
    for scheme in ("light", "dark"):
        chromium.look(WIDTHS[-1], scheme)
        chromium.open(f"{address}{MOST}/")
        rule = CONTRAST if scheme == "dark" else ""  # nothing else depends on the colours
        wrong[f"{MOST} {scheme}"] = [
            *chromium.problems, *chromium.violations(OF_THE_BROWSER, rule), *outside(chromium, address),
        ]  # fmt: skip
    assert {name: found for name, found in wrong.items() if found} == {}
