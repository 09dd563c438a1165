"""The dashboard in a real browser: with the keyboard, on a desktop and on a phone."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import struct
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlencode

import pytest

from llama_gguf.http1.routes import PAGE_FILES
from tests.e2e.browser import Browser, needs_browser
from tests.e2e.conftest import Served, start, stop
from tests.e2e.test_client_libraries import node_program
from tests.support.servers import Handler, Server

pytestmark = [pytest.mark.e2e, needs_browser]

IS_SHOWN = "!document.getElementById('numbers').hidden && !!document.querySelector('#keys tr')"
UNWANTED = "the server responded with a status of 401"
"""The browser's message for a wrong key; nothing else may be in its console."""
ICON = "/dashboard/icon.svg"
FILES = {f"/{name}" for name in PAGE_FILES} - {ICON}


@pytest.fixture(scope="module")
def settings() -> Mapping[str, str]:
    """The key that is created is an administrator; its name is ``default``."""
    return {"ADMIN_KEY_IDS": "default", "PROMPT_CACHE": "on"}


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


def sign_out(browser: Browser) -> None:
    press_on(browser, by_id("sign-out"))
    browser.until("document.activeElement?.id === 'key'")


def text_of(browser: Browser, element_id: str) -> str:
    return str(browser.evaluate(f"document.getElementById('{element_id}').textContent"))


def press_on(browser: Browser, element: str) -> None:
    """Focus the *element*, an expression, and press Enter."""
    browser.evaluate(f"({element}).focus()")
    browser.press("Enter")


def by_id(element_id: str) -> str:
    return f"document.getElementById('{element_id}')"


def button(label: str) -> str:
    """The button whose text, with what only a screen reader reads, is *label*."""
    return (
        "[...document.querySelectorAll('button')]"
        f".find(button => button.textContent === {json.dumps(label)})"
    )


def fill(browser: Browser, element_id: str, text: str) -> None:
    browser.evaluate(f"{by_id(element_id)}.focus()")
    browser.type(text)


def requested_by(browser: Browser) -> set[str]:
    """What the page requested, without its icon, which browsers request when they have time."""
    return {url for url in browser.requested if not url.endswith(ICON)}


# The page -----------------------------------------------------------------------------------------


def test_a_key_shows_the_numbers_and_a_wrong_one_does_not(browser: Browser, served: Served) -> None:
    sign_in(browser, "sk-not-a-key-0123456789")
    browser.until("document.getElementById('sign-in-error').textContent.includes('invalid')")
    sign_in(browser, served.key)
    browser.until(IS_SHOWN)

    assert "Ready" in text_of(browser, "state")
    assert "SmolLM2" in text_of(browser, "model")
    assert re.fullmatch(
        r"llama · \d+ M parameters · Q4_1 · 98 MB · context 2,048", text_of(browser, "facts")
    )
    assert "Saved prompts0, 0 MB" in text_of(browser, "memory")
    assert [c for c in browser.complaints if UNWANTED not in c] == []
    assert served.key not in browser.evaluate("document.documentElement.outerHTML")


def test_a_browser_that_opens_the_root_gets_the_dashboard(browser: Browser, served: Served) -> None:
    browser.go(f"http://127.0.0.1:{served.port}/")
    browser.until("location.pathname === '/dashboard'")
    browser.until("document.activeElement?.id === 'key'")

    assert browser.complaints == []


def test_a_request_is_shown_on_the_page_a_moment_later(browser: Browser, served: Served) -> None:
    sign_in(browser, served.key)
    browser.until(IS_SHOWN)
    served.chat()
    # Of the last hour: requests, tokens in and tokens out of this key.
    cells = "[...document.querySelectorAll('#keys tr *')].map(cell => cell.textContent)"
    browser.until(f"Number({cells}[1]) >= 1 && Number({cells}[3]) > 0 && Number({cells}[5]) > 0")
    browser.until("document.querySelectorAll('#charts path.line').length >= 4")
    browser.until("document.getElementById('p50').textContent.endsWith('s')")
    row = "[...document.querySelectorAll('#requests tr:first-child *')].map(c => c.textContent)"
    _, key_id, route, status, tokens_in, tokens_out, first, _, outcome = browser.evaluate(row)

    assert browser.evaluate(f"{cells}[0]") == "default (you)"
    assert "of 10,000 requests per minute" in browser.evaluate(f"{cells}[6]")
    assert (key_id, route, status, outcome) == ("default", "/v1/chat/completions", "200", "done")
    assert int(tokens_in) > 0
    assert int(tokens_out) > 0
    assert first.endswith("s")
    assert "The gateway started" in text_of(browser, "events")


def test_the_page_requests_nothing_from_other_hosts(browser: Browser, served: Served) -> None:
    sign_in(browser, served.key)
    browser.until(IS_SHOWN)
    browser.until("document.querySelector('#managed tr')")
    base = f"http://127.0.0.1:{served.port}"
    own = {f"/dashboard/{name}" for name in ("data?range=900", "keys")}

    assert requested_by(browser) == {f"{base}{path}" for path in FILES | own | {"/dashboard"}}


@pytest.mark.parametrize("path", ["/llm", "/internal/llm"])
def test_the_page_works_below_a_path_of_a_proxy(
    browser: Browser, served: Served, path: str
) -> None:
    with Server(_proxy(path, served.port)) as proxy:
        browser.requested.clear()
        browser.go(f"{proxy.base_url}{path}/")
        browser.until(f"location.port === '{proxy.server_port}'")
        browser.until("document.activeElement?.id === 'key'")
        sign_in(browser, served.key)
        browser.until(IS_SHOWN)
        browser.until("document.querySelector('#managed tr')")
        base = f"{proxy.base_url}{path}"
        own = {f"/dashboard/{name}" for name in ("data?range=900", "keys")}
        fill(browser, "chat-text", "Hi")
        browser.press("Enter")
        browser.until(f"{by_id('chat-note')}.textContent.includes('tokens in')")

        assert requested_by(browser) == {
            f"{base}{url}" for url in FILES | own | {"/", "/dashboard", "/v1/chat/completions"}
        }
        links = browser.evaluate("[...document.querySelectorAll('a')].map(link => link.href)")
        assert f"{base}/metrics" in links
        assert text_of(browser, "base-url") == f"{base}/v1"
        assert browser.complaints == []


def _proxy(path: str, port: int) -> type[Handler]:
    """A reverse proxy that removes *path*, and has nothing outside it."""

    class Proxy(Handler):
        def do_GET(self) -> None:
            self._forward(None)

        def do_POST(self) -> None:
            self._forward(self.rfile.read(int(self.headers["Content-Length"] or 0)))

        def _forward(self, body: bytes | None) -> None:
            if not self.path.startswith(f"{path}/"):
                self.send_error(404)
                return
            upstream = http.client.HTTPConnection("127.0.0.1", port)
            names = ("Accept", "Authorization", "Content-Type")
            kept = {name: self.headers[name] for name in names if name in self.headers}
            upstream.request(self.command, self.path.removeprefix(path), body, headers=kept)
            response = upstream.getresponse()
            content = response.read()
            upstream.close()
            self.send_response(response.status)
            for name in ("Content-Type", "Location", "Content-Security-Policy"):
                if name in response.headers:
                    self.send_header(name, response.headers[name])
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    return Proxy


def test_a_key_is_kept_for_the_session_until_it_is_forgotten(
    browser: Browser, served: Served
) -> None:
    sign_in(browser, served.key)
    browser.until(IS_SHOWN)
    browser.go(f"http://127.0.0.1:{served.port}/dashboard?again")
    browser.until(IS_SHOWN)
    assert browser.evaluate("localStorage.length") == 0
    sign_out(browser)

    assert browser.evaluate("sessionStorage.length") == 0
    assert browser.evaluate("document.getElementById('numbers').hidden")
    assert browser.evaluate("document.querySelectorAll('#managed tr').length") == 0


def test_nothing_that_was_shown_is_left_after_signing_out(browser: Browser, served: Served) -> None:
    question = "What is left of this?"
    sign_in(browser, served.key)
    browser.until(IS_SHOWN)
    browser.until("document.querySelectorAll('#managed tr').length === 1")
    press_on(browser, "document.querySelector('#log summary')")
    browser.until(f"{by_id('log-lines')}.textContent.includes('llama')")
    fill(browser, "chat-text", question)
    browser.press("Enter")
    browser.until("document.querySelector('.message.assistant .text')?.textContent")
    shown = str(browser.evaluate("document.documentElement.outerHTML"))

    sign_out(browser)

    left = str(browser.evaluate("document.documentElement.outerHTML"))
    assert question in shown
    assert question not in left
    for element_id in ("managed", "log-lines", "chat-log", "requests", "events", "keys", "state"):
        assert text_of(browser, element_id).strip() == ""


def test_a_key_that_is_revoked_meanwhile_is_asked_for_with_the_reason(
    browser: Browser, served: Served
) -> None:
    administrator = served.key
    secret = _post(served, administrator, action="create", name="brief")["secret"]
    sign_in(browser, secret)
    browser.until(IS_SHOWN)

    _post(served, administrator, action="revoke", name="brief")

    browser.until(f"{by_id('sign-in-error')}.textContent.includes('invalid')")
    assert browser.evaluate("sessionStorage.length") == 0
    assert browser.evaluate("document.activeElement.id") == "key"
    assert browser.evaluate(f"{by_id('numbers')}.hidden && {by_id('keys')}.textContent === ''")
    browser.go(f"http://127.0.0.1:{served.port}/dashboard?again")
    browser.until("document.activeElement?.id === 'key'")
    assert text_of(browser, "sign-in-error") == ""


def test_the_charts_show_the_range_that_is_chosen(browser: Browser, served: Served) -> None:
    sign_in(browser, served.key)
    browser.until(IS_SHOWN)
    browser.evaluate("document.querySelector('#ranges input[value=\"900\"]').focus()")
    browser.press("ArrowRight")
    base = f"http://127.0.0.1:{served.port}/dashboard/data?range="
    browser.until("document.querySelector('#ranges input[value=\"3600\"]').checked")
    browser.until("document.querySelectorAll('#charts path.line').length >= 4")

    assert f"{base}3600" in browser.requested


def test_the_history_is_kept_across_a_restart(
    model_file: Path, tmp_path: Path, settings: Mapping[str, str]
) -> None:
    assert model_file.is_file()
    (tmp_path / "data").mkdir()
    begins = [_first_step(tmp_path / "data", settings) for _ in range(2)]

    assert begins[1] == begins[0]


def _first_step(data_dir: Path, settings: Mapping[str, str]) -> float:
    """Of a server that runs until there are two steps."""
    served = start(data_dir, settings)
    try:
        served.until_ready()
        served.until(lambda: len(_history(served)["times"]) >= 2, "two steps")
        return _history(served)["times"][0]
    finally:
        stop(served)


def _history(served: Served) -> dict[str, list[float]]:
    _, found = served.get("/dashboard/data")
    history: dict[str, list[float]] = found["history"]
    return history


# Keys ---------------------------------------------------------------------------------------------


def test_an_administrator_creates_changes_and_revokes_a_key(
    browser: Browser, served: Served
) -> None:
    sign_in(browser, served.key)
    browser.until("document.querySelector('#managed tr')")
    press_on(browser, by_id("key-create"))
    browser.until("document.activeElement?.id === 'field-name'")
    browser.type("a key")
    browser.press("Enter")
    browser.until(f"{by_id('key-error')}.textContent.includes('cannot create the key')")
    browser.evaluate(f"{by_id('field-name')}.value = ''")
    fill(browser, "field-name", "guest")
    fill(browser, "field-tokens_per_day", "1000")
    browser.press("Enter")
    browser.until(f"{by_id('secret-dialog')}.open")
    secret = text_of(browser, "secret")
    assert _status(served, secret) == 200
    press_on(browser, by_id("secret-done"))
    browser.until(f"{by_id('secret')}.textContent === ''")
    rows = f"{by_id('managed')}.textContent"
    browser.until(f"{rows}.includes('guest') && {rows}.includes('tokens per day: 1000')")

    press_on(browser, button("Change guest"))
    browser.until(f"{by_id('key-dialog')}.open")
    assert browser.evaluate(f"{by_id('field-tokens_per_day')}.value") == "1000"
    browser.evaluate(f"{by_id('field-tokens_per_day')}.value = ''")
    fill(browser, "field-rate_limit", "7")
    browser.press("Enter")
    browser.until(f"{rows}.includes('requests per minute: 7')")
    assert "tokens per day" not in browser.evaluate(rows)

    press_on(browser, button("Revoke guest"))
    browser.until(f"{by_id('confirm')}.open && document.activeElement?.id === 'confirm-no'")
    browser.press("Enter")
    browser.until(f"!{by_id('confirm')}.open")
    assert _status(served, secret) == 200
    press_on(browser, button("Revoke guest"))
    browser.until(f"{by_id('confirm')}.open")
    press_on(browser, by_id("confirm-yes"))
    browser.until(f"!{rows}.includes('guest')")

    assert _status(served, secret) == 401
    assert secret not in browser.evaluate("document.documentElement.outerHTML")
    assert secret not in (served.data_dir / "api_keys.txt").read_text()
    assert browser.complaints == ["Failed to load resource: " + _BAD_NAME]


_BAD_NAME = "the server responded with a status of 400 (Bad Request)"


def _status(served: Served, key: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=30)
    try:
        connection.request("GET", "/usage", headers={"Authorization": f"Bearer {key}"})
        return connection.getresponse().status
    finally:
        connection.close()


def test_another_key_sees_its_own_requests_and_manages_nothing(
    browser: Browser, served: Served
) -> None:
    served.chat()
    administrator = served.key
    secret = _post(served, administrator, action="create", name="plain")["secret"]
    sign_in(browser, secret)
    browser.until(IS_SHOWN)

    assert browser.evaluate(f"{by_id('manage')}.hidden && {by_id('log')}.hidden")
    assert "default" not in text_of(browser, "requests")
    assert browser.complaints == []
    _post(served, administrator, action="revoke", name="plain")


def _post(served: Served, key: str, **parameters: str) -> dict[str, str]:
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=30)
    headers = {"Authorization": f"Bearer {key}"}
    connection.request("POST", f"/dashboard/keys?{urlencode(parameters)}", headers=headers)
    found: dict[str, str] = json.loads(connection.getresponse().read())
    connection.close()
    return found


# Chat, log, copying -------------------------------------------------------------------------------


def test_the_chat_streams_and_remembers_the_conversation(browser: Browser, served: Served) -> None:
    sign_in(browser, served.key)
    browser.until(IS_SHOWN)
    fill(browser, "chat-text", "Count from 1 to 20, in words.")
    browser.evaluate(
        "globalThis.lengths = new Set(); new MutationObserver(() => lengths.add("
        f"{by_id('chat-log')}.textContent.length)).observe({by_id('chat-log')}, "
        "{childList: true, characterData: true, subtree: true})"
    )
    browser.press("Enter")
    browser.until(f"{by_id('chat-note')}.textContent.includes('tokens in')")
    first = browser.evaluate("document.querySelector('.message.assistant .text').textContent")
    fill(browser, "chat-text", "And again?")
    browser.press("Enter")
    browser.until("document.querySelectorAll('.message.assistant').length === 2")
    browser.until(f"{by_id('chat-log')}.getAttribute('aria-busy') === 'false'")

    assert len(first) > 10
    assert browser.evaluate("lengths.size") > 3
    assert browser.complaints == []
    press_on(browser, by_id("chat-new"))
    assert text_of(browser, "chat-log") == ""


def test_an_answer_can_be_stopped(browser: Browser, served: Served) -> None:
    sign_in(browser, served.key)
    browser.until(IS_SHOWN)
    fill(browser, "chat-text", "Write a very long story about a llama, of a thousand words.")
    browser.press("Enter")
    browser.until("document.querySelector('.message.assistant .text')?.textContent.length > 3")
    press_on(browser, by_id("chat-stop"))
    browser.until(f"{by_id('chat-note')}.textContent === 'Stopped.'")

    assert browser.evaluate("document.activeElement.id") == "chat-text"


def test_an_administrator_reads_the_engine_s_log(browser: Browser, served: Served) -> None:
    sign_in(browser, served.key)
    browser.until(IS_SHOWN)
    press_on(browser, "document.querySelector('#log summary')")
    browser.until(f"{by_id('log-lines')}.textContent.length > 100")

    assert "llama" in text_of(browser, "log-lines")


def test_a_crash_is_shown_with_its_advice_and_as_an_event(
    tmp_path: Path, own_server: Served
) -> None:
    browser = Browser(tmp_path / "profile")
    try:
        browser.look_like(width=1280, height=1000)
        browser.go(f"http://127.0.0.1:{own_server.port}/dashboard")
        browser.until("document.activeElement?.id === 'key'")
        sign_in(browser, own_server.key)
        browser.until(f"{by_id('events')}.textContent.includes('started')")
        os.kill(own_server.child("llama-server"), signal.SIGSEGV)
        browser.until(f"{by_id('events')}.textContent.includes('SIGSEGV')")
        browser.until("document.querySelector('#charts .event.crash')")

        assert "SIGSEGV" in text_of(browser, "crash-reason")
        assert len(text_of(browser, "crash-advice")) > 20
        browser.until(f"{by_id('state')}.textContent.includes('Ready')")
    finally:
        browser.close()


def test_the_command_that_is_copied_works(browser: Browser, served: Served) -> None:
    sign_in(browser, served.key)
    browser.until(IS_SHOWN)
    browser.evaluate(
        "Object.defineProperty(navigator, 'clipboard', {value: {writeText: async (text) => "
        "{ globalThis.copied = text; }}})"
    )
    press_on(browser, button("Copy the curl command"))
    browser.until("globalThis.copied")
    command = browser.evaluate("copied")
    done = subprocess.run(
        ["sh", "-c", command],
        env={**os.environ, "LLAMA_GGUF_KEY": served.key},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )

    assert done.stdout.rstrip().endswith("data: [DONE]")


# For everyone -------------------------------------------------------------------------------------


def test_all_elements_can_be_reached_with_the_keyboard(browser: Browser, served: Served) -> None:
    sign_in(browser, served.key)
    browser.until("document.querySelector('#managed tr')")
    browser.until("document.querySelectorAll('#charts path.line').length >= 4")
    browser.evaluate("document.querySelector('nav a').focus()")
    reached: list[str] = []
    while "sign-out" not in reached:
        what = "((e) => e.id || e.name || e.ariaLabel || e.textContent.trim())"
        reached.append(browser.evaluate(f"{what}(document.activeElement)"))
        browser.press("Tab")
        assert len(reached) < 60, reached

    in_order = [
        *("Activity", "Requests", "Keys", "Connect", "Chat", "Engine", "ranges", "windows"),
        *("key-create", "base-url", "curl", "chat-new", "chat-log", "chat-text", "chat-send"),
        *("Replicas, as a table", "Engine log", "Metrics", "sign-out"),
    ]
    assert [what for what in reached if what in in_order] == in_order
    assert len([what for what in reached if ", now: " in what]) == 4


def test_the_arrow_keys_show_the_numbers_of_a_chart(browser: Browser, served: Served) -> None:
    sign_in(browser, served.key)
    browser.until(IS_SHOWN)
    served.until(lambda: len(_history(served)["times"]) >= 3, "three steps")
    chart = "document.querySelector('#charts svg')"
    browser.until(f"({chart}).querySelector('path.line').getAttribute('d').includes('L')")
    browser.evaluate(f"{chart}.focus()")
    browser.press("ArrowLeft")
    before = browser.evaluate(f"{chart}.getAttribute('aria-label')")
    browser.press("ArrowLeft")
    label = browser.evaluate(f"{chart}.getAttribute('aria-label')")

    assert before.startswith("Requests per second, now: ")
    assert re.match(r"Requests per second, [56] s ago: ", label)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360], ids=["desk", "phone"])
def test_it_fits_the_screen_by_day_and_by_night(
    width: int, dark: bool, browser: Browser, served: Served, tmp_path: Path
) -> None:
    browser.look_like(width=width, height=900, dark=dark)
    sign_in(browser, served.key)
    browser.until("document.querySelector('#managed tr')")
    ground = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    browser.screenshot(tmp_path / "dashboard.png")

    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert (sum(map(int, ground[4:-1].split(","))) < 3 * 64) == dark
    image = (tmp_path / "dashboard.png").read_bytes()
    assert struct.unpack(">I", image[16:20]) == (width,)


@pytest.fixture(scope="session")
def axe() -> str:
    """The source of axe-core, which checks pages for barriers."""
    if shutil.which("npm") is None and "CI" not in os.environ:
        pytest.skip("there is no npm here, so axe-core is not run")
    return (node_program().parent / "node_modules" / "axe-core" / "axe.min.js").read_text()


DIALOGS = {
    "key-dialog": "document.getElementById('key-create').click()",
    "confirm": "document.querySelector('#managed button.danger').click()",
    "secret-dialog": (
        "document.getElementById('secret-title').textContent = 'The key x', "
        "document.getElementById('secret').textContent = 'sk-x', "
        "document.getElementById('secret-dialog').showModal()"
    ),
}
"""Each with what opens it."""


@pytest.mark.parametrize("width", [1280, 360], ids=["desk", "phone"])
def test_there_are_no_barriers(axe: str, width: int, browser: Browser, served: Served) -> None:
    browser.evaluate(axe + ";0")
    browser.until("globalThis.axe")
    assert _barriers(browser) == []
    sign_in(browser, served.key)
    browser.until("document.querySelector('#managed tr')")
    press_on(browser, "document.querySelector('#log summary')")
    fill(browser, "chat-text", "Hi")
    browser.press("Enter")
    browser.until(f"{by_id('chat-note')}.textContent.includes('tokens in')")
    for dark in (False, True):
        browser.look_like(width=width, height=1000, dark=dark)
        assert _barriers(browser) == []
        for dialog, opening in DIALOGS.items():
            browser.evaluate(opening)
            browser.until(f"{by_id(dialog)}.open")
            assert _barriers(browser) == []
            browser.evaluate(f"{by_id(dialog)}.close()")


def _barriers(browser: Browser) -> list[str]:
    """Violations of WCAG 2.2 AA and of good practice."""
    found: list[str] = browser.evaluate(
        "axe.run().then(({violations}) => violations.flatMap(({id, nodes}) => "
        "nodes.map(({target, failureSummary}) => `${id} ${target}: ${failureSummary}`)))"
    )
    return found
