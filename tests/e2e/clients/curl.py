"""curl, whose errors are numbers: 22 for a status of 400 or more, 18 for a cut response."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator

from tests.e2e.clients.outcomes import MODEL, QUESTION, Place, report


class CurlError(Exception):
    """Its output, if its exit status is not 0."""


def send_request(place: Place, *, stream: bool) -> Iterator[str]:
    body = {"model": MODEL, "messages": QUESTION, "max_tokens": 8, "stream": stream}
    url = f"{place.url}/v1/chat/completions"
    fields = [f"Authorization: Bearer {place.key}", "Content-Type: application/json"]
    what = [*(word for field in fields for word in ("-H", field)), "-d", json.dumps(body)]
    process = subprocess.Popen(
        ["curl", "-sSN", "--fail", url, *what],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    while piece := os.read(process.stdout.fileno(), 65536):
        yield piece.decode()
    complaint = process.stderr.read().decode()
    if process.wait():
        raise CurlError(complaint)


def chat(place: Place) -> Iterator[str]:
    text = "".join(send_request(place, stream=False))
    yield json.loads(text)["choices"][0]["message"]["content"]


def stream(place: Place) -> Iterator[str]:
    yield from send_request(place, stream=True)


if __name__ == "__main__":
    report(chat, stream)
