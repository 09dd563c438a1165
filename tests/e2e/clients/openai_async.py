"""The official Python client, asynchronous."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterator
from typing import Any

import openai

from tests.e2e.clients.outcomes import MODEL, QUESTION, Place, report


def send_request(place: Place, **more: Any) -> Awaitable[Any]:
    client = openai.AsyncOpenAI(base_url=f"{place.url}/v1", api_key=place.key, max_retries=0)
    create: Any = client.chat.completions.create
    response: Awaitable[Any] = create(model=MODEL, messages=QUESTION, max_tokens=8, **more)
    return response


async def chat(place: Place) -> AsyncIterator[str]:
    yield (await send_request(place)).choices[0].message.content


async def stream(place: Place) -> AsyncIterator[str]:
    async for chunk in await send_request(place, stream=True):
        if chunk.choices and chunk.choices[0].delta.content:
            yield chunk.choices[0].delta.content


def in_steps(runner: asyncio.Runner, pieces: AsyncIterator[str]) -> Iterator[str]:
    async def step() -> str:
        return await anext(pieces)

    while True:
        try:
            yield runner.run(step())
        except StopAsyncIteration:
            return


if __name__ == "__main__":
    with asyncio.Runner() as runner:
        report(lambda p: in_steps(runner, chat(p)), lambda p: in_steps(runner, stream(p)))
