"""llama-server's own web UI through the gateway: its files need no key, its requests do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.e2e.browser import Browser, needs_browser
from tests.e2e.conftest import Served

pytestmark = [pytest.mark.e2e, needs_browser]


@pytest.fixture(scope="module")
def settings() -> Mapping[str, str]:
    return {"WEB_UI": "true"}


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    browser = Browser(tmp_path / "profile")
    browser.look_like(width=1280, height=900)
    yield browser
    browser.close()


def test_a_chat_in_the_browser_works(browser: Browser, served: Served) -> None:
    url = f"http://127.0.0.1:{served.port}/"
    browser.go(f"{url}#/settings")
    browser.until("!!document.querySelector('#apiKey')")
    browser.evaluate("document.querySelector('#apiKey').focus()")
    browser.type(served.key)
    browser.until(
        "[...document.querySelectorAll('button')]"
        ".filter(button => button.innerText === 'Save settings').map(button => button.click())[0]"
        " === undefined && localStorage.getItem('LlamaUi.config')?.includes('apiKey')"
    )
    browser.go(f"{url}?chat#/")
    browser.until("!!document.querySelector('textarea:not([disabled])')")
    served.until(lambda: has_asked(browser), "a question that is sent")

    served.until(lambda: tokens_of(served) > 0, "an answer's tokens")
    browser.until("document.body.innerText.includes('Say hello.')")
    assert all(asked.startswith((url, "data:", "blob:")) for asked in browser.requested)


def has_asked(browser: Browser) -> bool:
    """Send the message unless it was sent; a page that is still loading may lose typed text."""
    if browser.evaluate("document.querySelector('textarea')?.value") == "Say hello.":
        browser.press("Enter")
    elif not browser.evaluate("document.body.innerText.includes('Say hello.')"):
        browser.evaluate("document.querySelector('textarea:not([disabled])')?.focus()")
        browser.type("Say hello.")
    else:
        return True
    return False


def tokens_of(served: Served) -> int:
    _, usage = served.get("/usage")
    tokens: int = usage["keys"][0]["total"]["completion_tokens"]
    return tokens


def test_the_requests_of_the_page_need_a_key(browser: Browser, served: Served) -> None:
    browser.go(f"http://127.0.0.1:{served.port}/")
    browser.until("document.body?.innerText.includes('Type a message')")
    paths = ["/props", "/v1/models", "/usage", "/v1/chat/completions"]
    asking = f"Promise.all({paths}.map(async (path) => (await fetch(path)).status))"

    assert browser.evaluate(asking) == [401] * 4
