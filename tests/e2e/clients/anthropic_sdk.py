"""Anthropic's client, on /v1/messages: its key is in x-api-key."""

from __future__ import annotations

from collections.abc import Iterator

import anthropic

from tests.e2e.clients.outcomes import MODEL, QUESTION, Place, report


def client(place: Place) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=place.url, api_key=place.key, max_retries=0)


def chat(place: Place) -> Iterator[str]:
    response = client(place).messages.create(model=MODEL, messages=QUESTION, max_tokens=8)
    yield response.content[0].text


def stream(place: Place) -> Iterator[str]:
    with client(place).messages.stream(model=MODEL, messages=QUESTION, max_tokens=8) as response:
        yield from response.text_stream


if __name__ == "__main__":
    report(chat, stream)
