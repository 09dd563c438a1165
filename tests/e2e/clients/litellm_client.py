"""LiteLLM as a client of an OpenAI-compatible endpoint."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import litellm

from tests.e2e.clients.outcomes import MODEL, QUESTION, Place, report

litellm.suppress_debug_info = True


def complete(place: Place, *, stream: bool) -> Any:
    return litellm.completion(
        model=f"openai/{MODEL}",
        api_base=f"{place.url}/v1",
        api_key=place.key,
        messages=QUESTION,
        max_tokens=8,
        max_retries=0,
        stream=stream,
    )


def chat(place: Place) -> Iterator[str]:
    yield complete(place, stream=False).choices[0].message.content


def stream(place: Place) -> Iterator[str]:
    for chunk in complete(place, stream=True):
        if chunk.choices[0].delta.content:
            yield chunk.choices[0].delta.content


if __name__ == "__main__":
    report(chat, stream)
