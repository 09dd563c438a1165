"""LangChain, by way of langchain-openai."""

from __future__ import annotations

from collections.abc import Iterator

from langchain_openai import ChatOpenAI

from tests.e2e.clients.outcomes import MODEL, Place, report


def client(place: Place) -> ChatOpenAI:
    return ChatOpenAI(
        base_url=f"{place.url}/v1", api_key=place.key, model=MODEL, max_retries=0, max_tokens=8
    )


def chat(place: Place) -> Iterator[str]:
    yield client(place).invoke("Say hello.").content


def stream(place: Place) -> Iterator[str]:
    yield from (chunk.content for chunk in client(place).stream("Say hello.") if chunk.content)


if __name__ == "__main__":
    report(chat, stream)
