"""Saves and restores the states of llama-server's slots, through its API.

Only while no request needs the engine, or before the first one: each of these waits for the batch
that is being computed, and delays the next one.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Sequence
from typing import Any, Final

from llama_gguf.engines.address import EngineAddress
from llama_gguf.engines.http_client import send
from llama_gguf.net.streams import FAILURES
from llama_gguf.values import Value

SHORT_SECONDS: Final = 10.0
"""For what it responds to at once; a busy machine may need seconds."""
_RATE: Final = rb"(?m)^llamacpp:(prompt_tokens_total|prompt_seconds_total) (\S+)"


class SlotState(Value):
    """One of ``GET /slots``; what it does not report is None."""

    id: int
    is_processing: bool
    id_task: int | None
    tokens: int | None


class SlotError(Exception):
    """The engine did not do it.

    Args:
        status: of its response; 0 if there was none.
        reason: in words.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class SlotTimeout(SlotError):
    """It did not respond in time, but may live."""


class SlotClient:
    """Of one engine. Every method raises ``SlotError``.

    Args:
        address: of the engine.
    """

    def __init__(self, address: EngineAddress) -> None:
        self._address = address

    async def slots(self) -> list[SlotState]:
        found = await self._request("GET", "/slots")
        try:
            return [
                SlotState(
                    int(each["id"]),
                    bool(each["is_processing"]),
                    each.get("id_task"),
                    each.get("n_prompt_tokens"),
                )
                for each in found
            ]
        except (TypeError, KeyError, ValueError, AttributeError):
            raise SlotError(200, "its list of slots has an unknown form") from None

    async def save(self, slot: int, file_name: str, *, seconds: float) -> tuple[int, int]:
        """Save what *slot* holds.

        Returns:
            The number of tokens, and of bytes.
        """
        path = f"/slots/{slot}?action=save"
        found = await self._request("POST", path, {"filename": file_name}, seconds=seconds)
        return _count(found, "n_saved"), _count(found, "n_written")

    async def restore(self, slot: int, file_name: str, *, seconds: float) -> int:
        """Restore *slot*; the number of tokens. A failure leaves the slot empty."""
        path = f"/slots/{slot}?action=restore"
        found = await self._request("POST", path, {"filename": file_name}, seconds=seconds)
        return _count(found, "n_restored")

    async def compute(
        self, prompt: Sequence[int] | str, *, seconds: float = SHORT_SECONDS
    ) -> tuple[int, int]:
        """Have a prompt computed, and nothing generated.

        Returns:
            The number of its tokens, and of those that were in the cache.
        """
        body = {
            "prompt": prompt if isinstance(prompt, str) else list(prompt),
            "n_predict": 0,
            "cache_prompt": True,
        }
        found = await self._request("POST", "/completion", body, seconds=seconds)
        timings = found.get("timings")
        computed, cached = _count(timings, "prompt_n"), _count(timings, "cache_n")
        return computed + cached, cached

    async def computed(self) -> tuple[int, float]:
        """The tokens of prompts that it has computed since its start, and the seconds for that.

        Zeros if they are unknown.
        """
        try:
            _, body = await self._exchange("GET", "/metrics", b"", SHORT_SECONDS)
            found = {name: float(value) for name, value in re.findall(_RATE, body)}
            return int(found[b"prompt_tokens_total"]), found[b"prompt_seconds_total"]
        except (SlotError, ValueError, KeyError):
            return 0, 0.0

    async def _request(
        self, method: str, path: str, body: object = None, *, seconds: float = SHORT_SECONDS
    ) -> Any:
        data = b"" if body is None else json.dumps(body).encode()
        status, content = await self._exchange(method, path, data, seconds)
        try:
            found = json.loads(content)
        except (ValueError, RecursionError):
            raise SlotError(status, "its response is not JSON") from None
        if status != 200:
            error = found.get("error") if isinstance(found, dict) else None
            message = error.get("message") if isinstance(error, dict) else None
            raise SlotError(status, str(message or f"status {status}"))
        return found

    async def _exchange(
        self, method: str, path: str, data: bytes, seconds: float
    ) -> tuple[int, bytes]:
        head = (
            f"{method} {path} HTTP/1.0\r\n{self._address.header_lines().decode()}"
            f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n"
            "Connection: close\r\n\r\n"
        )
        try:
            async with asyncio.timeout(seconds):
                return await send(self._address, head.encode("ascii") + data)
        except TimeoutError:
            raise SlotTimeout(0, f"it did not respond within {seconds:g} s") from None
        except FAILURES:
            raise SlotError(0, "it did not respond") from None


def _count(found: Any, name: str) -> int:
    value = found.get(name) if isinstance(found, dict) else None
    return value if isinstance(value, int) else 0
