"""The tables of the site, in a browser at the width of a phone and of a desk."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.browser import Browser, needs_browser

pytestmark = [pytest.mark.processes, needs_browser]

DOCS = Path(__file__).parents[2] / "docs"
NAME = "llama_gguf_budget_remaining_engine_seconds"
MEANING = "Remaining engine-seconds in the current window, with estimates for running requests"
PAGE = f"""\
# A page

| name | type | labels | meaning |
|---|---|---|---|
| `{NAME}` | gauge | | {MEANING}, see --fit. |
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("site")
    (folder / "pages").mkdir()
    (folder / "pages" / "index.md").write_text(PAGE)
    built = [str(folder / "pages"), str(folder / "html")]
    subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-W", "-c", str(DOCS), *built],
        check=True,
        timeout=120,
    )
    return f"file://{folder}/html/index.html"


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    browser = Browser(tmp_path / "profile")
    yield browser
    browser.close()


def show(browser: Browser, page: str, *, width: int) -> None:
    browser.look_like(width=width, height=900)
    browser.go(page)
    browser.until("!!document.querySelector('table.is-labelled')")


def test_on_a_phone_a_table_fits_and_each_value_has_its_label(browser: Browser, page: str) -> None:
    show(browser, page, width=390)

    table = "document.querySelector('table')"
    label = "getComputedStyle(document.querySelectorAll('td')[3], '::before').content"
    hidden = "getComputedStyle(document.querySelectorAll('td')[2]).display"
    assert browser.evaluate(f"{table}.scrollWidth <= {table}.parentElement.clientWidth")
    assert browser.evaluate("document.documentElement.scrollWidth") == 390
    assert browser.evaluate(label) == '"meaning: "'
    assert browser.evaluate(hidden) == "none"


@pytest.mark.parametrize("width", [1280, 1440])
def test_on_a_desk_the_meaning_of_a_long_name_has_room(
    width: int, browser: Browser, page: str
) -> None:
    show(browser, page, width=width)

    room = "document.querySelectorAll('td')[3].getBoundingClientRect().width"
    assert browser.evaluate(f"{room} > 250")
    assert browser.evaluate("document.documentElement.scrollWidth") == width
    assert "see --fit." in browser.text
