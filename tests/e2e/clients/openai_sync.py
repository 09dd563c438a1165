"""The official Python client."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai

from tests.e2e.clients.outcomes import MODEL, QUESTION, Place, report


def send_request(place: Place, **more: Any) -> Any:
    client = openai.OpenAI(base_url=f"{place.url}/v1", api_key=place.key, max_retries=0)
    create: Any = client.chat.completions.create
    return create(model=MODEL, messages=QUESTION, max_tokens=8, **more)


def chat(place: Place) -> Iterator[str]:
    yield send_request(place).choices[0].message.content


def stream(place: Place) -> Iterator[str]:
    for chunk in send_request(place, stream=True):
        if chunk.choices and chunk.choices[0].delta.content:
            yield chunk.choices[0].delta.content


if __name__ == "__main__":
    report(chat, stream)
