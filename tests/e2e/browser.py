"""A real browser for tests: headless Chromium, controlled over a pair of pipes.

It is the Debian package ``chromium``, or one of the other names on PATH; without it, the tests that
need it are skipped, with a reason. It needs no Python package.

Source: the DevTools protocol, https://chromedevtools.github.io/devtools-protocol/
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest

PATIENCE: Final = 45.0
"""Seconds until an event is considered to never occur."""
NAMES: Final = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# Chromium needs its pipes as two descriptors that Popen cannot pass.
_EXEC: Final = (
    "import fcntl, os, sys; r, w = (fcntl.fcntl(int(n), fcntl.F_DUPFD, 64) for n in sys.argv[1:3]);"
    "os.dup2(r, 3); os.dup2(w, 4); os.execv(sys.argv[3], sys.argv[3:])"
)


def found() -> str:
    return next((path for name in NAMES if (path := shutil.which(name))), "")


needs_browser = pytest.mark.skipif(
    not found(), reason="there is no Chromium on PATH: apt-get install chromium"
)


class Browser:
    """One Chromium with one page.

    Args:
        folder: for its profile.
    """

    def __init__(self, folder: Path) -> None:
        ours_in, theirs_out = os.pipe()
        theirs_in, ours_out = os.pipe()
        flags = [
            *("--headless", "--disable-gpu", "--no-sandbox", "--remote-debugging-pipe"),
            *("--no-first-run", "--disable-background-networking", "--disable-sync"),
            *("--hide-scrollbars", "--disable-dev-shm-usage", f"--user-data-dir={folder}"),
            # A request of the page to any other host fails, and thus the test.
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        ]
        argv = [sys.executable, "-c", _EXEC, str(theirs_in), str(theirs_out), found(), *flags]
        self._process = subprocess.Popen(
            argv,
            pass_fds=(theirs_in, theirs_out),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._in, self._out = ours_in, ours_out
        os.set_blocking(self._in, False)
        self._received = b""
        self._last_id = 0
        self._session = ""
        self.requested: list[str] = []
        """Every URL that the page requested."""
        self.complaints: list[str] = []
        """Warnings and errors in the page's console."""
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        attached = self._call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self._call(f"{domain}.enable")

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._in)
        os.close(self._out)

    # The protocol -------------------------------------------------------------------------------

    def _call(self, method: str, **params: Any) -> dict[str, Any]:
        self._last_id += 1
        message: dict[str, Any] = {"id": self._last_id, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        for response in self._messages():
            if response.get("id") == self._last_id:
                assert "error" not in response, response
                result: dict[str, Any] = response["result"]
                return result
            self._note(response)
        raise AssertionError(f"the browser did not answer {method}")

    def _messages(self) -> Iterator[dict[str, Any]]:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            message, separator, rest = self._received.partition(b"\0")
            if separator:
                self._received = rest
                yield json.loads(message)
                continue
            try:
                data = os.read(self._in, 1 << 20)
            except BlockingIOError:
                time.sleep(0.005)
                continue
            assert data, "the browser has died"
            self._received += data

    def _note(self, event: Mapping[str, Any]) -> None:
        match event.get("method"):
            case "Network.requestWillBeSent":
                self.requested.append(event["params"]["request"]["url"])
            case "Runtime.exceptionThrown":
                self.complaints.append(str(event["params"]["exceptionDetails"]))
            case "Log.entryAdded" if event["params"]["entry"]["level"] == "error":
                self.complaints.append(event["params"]["entry"]["text"])
            case _:
                pass

    # The page -----------------------------------------------------------------------------------

    def look_like(self, *, width: int, height: int, dark: bool = False) -> None:
        """Set the size of the screen, in CSS pixels."""
        self._call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])

    def go(self, url: str) -> None:
        self._call("Page.navigate", url=url)

    def _evaluate(self, expression: str) -> dict[str, Any]:
        return self._call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )

    def evaluate(self, expression: str) -> Any:
        """The value of the JavaScript *expression* in the page."""
        response = self._evaluate(expression)
        assert "exceptionDetails" not in response, response["exceptionDetails"]
        return response["result"].get("value")

    def until(self, expression: str) -> None:
        """Poll *expression* until it is true; while the page loads, it is not."""
        deadline = time.monotonic() + PATIENCE
        while self._evaluate(f"!!({expression})")["result"].get("value") is not True:
            assert time.monotonic() < deadline, f"it never came true: {expression}\n{self.text}"
            time.sleep(0.05)

    @property
    def text(self) -> str:
        """The visible text of the page."""
        return str(self.evaluate("document.body?.innerText"))

    def type(self, text: str) -> None:
        """Type *text* into the focused element."""
        self._call("Input.insertText", text=text)

    def press(self, key: str) -> None:
        """Press a key by its name, such as ``Tab`` or ``Enter``."""
        codes = {"Enter": 13, "Tab": 9, "ArrowLeft": 37, "ArrowRight": 39, "Escape": 27}
        about = {"key": key, "code": key, "windowsVirtualKeyCode": codes[key]}
        text = {"text": "\r"} if key == "Enter" else {}
        self._call("Input.dispatchKeyEvent", type="keyDown", **about, **text)
        self._call("Input.dispatchKeyEvent", type="keyUp", **about)

    def screenshot(self, path: Path) -> None:
        """Save the whole page as a PNG at *path*."""
        shot = self._call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))
