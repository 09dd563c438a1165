"""The dashboard in a real browser: with the keyboard, on a desktop and on a phone."""

from __future__ import annotations

import http.client
import re
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.browser import Browser, needs_browser
from tests.e2e.conftest import Served
from tests.support.servers import Handler, Server

pytestmark = [pytest.mark.e2e, needs_browser]

IS_SHOWN = "!document.getElementById('numbers').hidden && !!document.querySelector('#keys tr')"
UNWANTED = "the server responded with a status of 401"
"""The browser's message for a wrong key; nothing else may be in its console."""


@pytest.fixture
def browser(tmp_path: Path, served: Served) -> Iterator[Browser]:
    browser = Browser(tmp_path / "profile")
    browser.look_like(width=1280, height=1000)
    browser.go(f"http://127.0.0.1:{served.port}/dashboard")
    browser.until("document.activeElement?.id === 'key'")
    yield browser
    browser.close()


def sign_in(browser: Browser, key: str) -> None:
    browser.type(key)
    browser.press("Enter")


def test_a_key_shows_the_numbers_and_a_wrong_one_does_not(browser: Browser, served: Served) -> None:
    sign_in(browser, "sk-not-a-key-0123456789")
    browser.until("document.getElementById('sign-in-error').textContent.includes('invalid')")
    sign_in(browser, served.key)
    browser.until(IS_SHOWN)

    assert "Ready" in browser.evaluate("document.getElementById('state').textContent")
    assert "SmolLM2" in browser.evaluate("document.getElementById('model').textContent")
    facts = browser.evaluate("document.getElementById('facts').textContent")
    assert re.fullmatch(r"llama · \d+ M parameters · Q4_1 · 98 MB · context 2,048", facts)
    assert [c for c in browser.complaints if UNWANTED not in c] == []
    assert served.key not in browser.evaluate("document.documentElement.outerHTML")


def test_a_request_is_shown_on_the_page_a_moment_later(browser: Browser, served: Served) -> None:
    sign_in(browser, served.key)
    browser.until(IS_SHOWN)
    served.chat()
    # Of the last hour: requests, tokens in and tokens out of this key.
    cells = "[...document.querySelectorAll('#keys tr *')].map(cell => cell.textContent)"
    browser.until(f"Number({cells}[1]) >= 1 && Number({cells}[3]) > 0 && Number({cells}[5]) > 0")
    browser.until("document.querySelectorAll('#charts path.line').length >= 4")
    browser.until("document.getElementById('p50').textContent.endsWith('s')")

    assert browser.evaluate(f"{cells}[0]") == "default"


def test_the_page_requests_nothing_from_other_hosts(browser: Browser, served: Served) -> None:
    sign_in(browser, served.key)
    browser.until(IS_SHOWN)
    base = f"http://127.0.0.1:{served.port}/dashboard"

    assert set(browser.requested) == {base, f"{base}.css", f"{base}.js", f"{base}/data"}


@pytest.mark.parametrize("path", ["/llm", "/internal/llm"])
def test_the_page_works_below_a_path_of_a_proxy(
    browser: Browser, served: Served, path: str
) -> None:
    with Server(_proxy(path, served.port)) as proxy:
        browser.requested.clear()
        browser.go(f"{proxy.base_url}{path}/dashboard")
        browser.until(f"location.port === '{proxy.server_port}'")
        browser.until("document.activeElement?.id === 'key'")
        sign_in(browser, served.key)
        browser.until(IS_SHOWN)
        base = f"{proxy.base_url}{path}/dashboard"

        assert set(browser.requested) == {base, f"{base}.css", f"{base}.js", f"{base}/data"}
        links = browser.evaluate("[...document.querySelectorAll('a')].map(link => link.href)")
        assert f"{proxy.base_url}{path}/metrics" in links
        assert browser.complaints == []


def _proxy(path: str, port: int) -> type[Handler]:
    """A reverse proxy that removes *path*, and has nothing outside it."""

    class Proxy(Handler):
        def do_GET(self) -> None:
            if not self.path.startswith(f"{path}/"):
                self.send_error(404)
                return
            upstream = http.client.HTTPConnection("127.0.0.1", port)
            kept = {name: self.headers[name] for name in ("Authorization",) if name in self.headers}
            upstream.request("GET", self.path.removeprefix(path), headers=kept)
            response = upstream.getresponse()
            body = response.read()
            upstream.close()
            self.send_response(response.status)
            self.send_header("Content-Type", response.headers["Content-Type"])
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return Proxy


def test_a_key_is_kept_for_the_session_until_it_is_forgotten(
    browser: Browser, served: Served
) -> None:
    sign_in(browser, served.key)
    browser.until(IS_SHOWN)
    browser.go(f"http://127.0.0.1:{served.port}/dashboard?again")
    browser.until(IS_SHOWN)
    assert browser.evaluate("localStorage.length") == 0
    browser.evaluate("document.getElementById('sign-out').focus()")
    browser.press("Enter")
    browser.until("document.activeElement?.id === 'key'")

    assert browser.evaluate("sessionStorage.length") == 0
    assert browser.evaluate("document.getElementById('numbers').hidden")


def test_all_elements_can_be_reached_with_the_keyboard(browser: Browser, served: Served) -> None:
    sign_in(browser, served.key)
    browser.until(IS_SHOWN)
    browser.until("document.querySelectorAll('#charts path.line').length >= 4")
    browser.evaluate("document.getElementById('main').focus()")
    reached: list[str] = []
    while "sign-out" not in reached:
        browser.press("Tab")
        what = "((e) => e.id || e.name || e.tagName)(document.activeElement)"
        reached.append(browser.evaluate(what))
        assert len(reached) < 12, reached

    charts, period, table, link = ["svg"] * 4, "window", "DIV", "A"
    assert reached == [*charts, period, table, link, "sign-out"]


def test_the_arrow_keys_show_the_numbers_of_a_chart(browser: Browser, served: Served) -> None:
    sign_in(browser, served.key)
    browser.until(IS_SHOWN)
    # The first step comes five seconds after the gateway's start.
    browser.until("charts[0].length >= 2")
    browser.evaluate("charts[0].svg.focus()")
    browser.press("ArrowLeft")
    before = browser.evaluate("charts[0].svg.getAttribute('aria-label')")
    browser.press("ArrowLeft")
    label = browser.evaluate("charts[0].svg.getAttribute('aria-label')")

    assert before.startswith("Requests per second, now: ")
    assert label.startswith("Requests per second, 5 s ago: ")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360], ids=["desk", "phone"])
def test_it_fits_the_screen_by_day_and_by_night(
    width: int, dark: bool, browser: Browser, served: Served, tmp_path: Path
) -> None:
    browser.look_like(width=width, height=900, dark=dark)
    sign_in(browser, served.key)
    browser.until(IS_SHOWN)
    ground = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    browser.screenshot(tmp_path / "dashboard.png")

    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert (sum(map(int, ground[4:-1].split(","))) < 3 * 64) == dark
    image = (tmp_path / "dashboard.png").read_bytes()
    assert struct.unpack(">I", image[16:20]) == (width,)


def test_all_texts_have_a_contrast_of_4_5(browser: Browser, served: Served) -> None:
    sign_in(browser, served.key)
    browser.until(IS_SHOWN)
    for dark in (False, True):
        browser.look_like(width=1280, height=1000, dark=dark)

        assert browser.evaluate(FAINT) == []


# Texts with too little contrast to their background (WCAG 2.2, 1.4.3).
FAINT = """(() => {
  const channels = (c) => c.match(/[\\d.]+/g).map(Number);
  const light = (c) => channels(c).slice(0, 3)
    .map((v) => v / 255).map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, n) => sum + v * [0.2126, 0.7152, 0.0722][n], 0);
  const ground = (e) => {
    const colour = getComputedStyle(e).backgroundColor;
    return (channels(colour)[3] ?? 1) > 0 ? colour : ground(e.parentElement);
  };
  return [...document.querySelectorAll("body *")]
    .filter((e) => e.checkVisibility() && !e.closest("svg"))
    .filter((e) => [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()))
    .map((e) => [e.textContent.trim(), light(getComputedStyle(e).color), light(ground(e))])
    .filter(([, a, b]) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05) < 4.5)
    .map(([text]) => text);
})()"""
