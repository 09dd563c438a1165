"""Probes llama-server at fixed intervals, independent of clients' requests.

``/health`` tells loading from ready, ``/props`` the slots, and whether it sleeps (by its own
``--sleep-idle-seconds``). Neither wakes a sleeping engine; ``/slots``, which does, and
``/metrics``, which does in some builds, are never asked.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Final

from llama_gguf.config.settings import Settings
from llama_gguf.engines.status import EngineState

_STATUS: Final = re.compile(rb"HTTP/1\.[01] ([0-9]{3})[ \r]")
_LENGTH: Final = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,7})[ \t]*\r\n", re.IGNORECASE)

MAX_SPARED: Final = 15
_FAILURES: Final = (
    OSError,
    TimeoutError,
    ValueError,
    asyncio.IncompleteReadError,
    asyncio.LimitOverrunError,
)


@dataclass(frozen=True, slots=True)
class Finding:
    """What one look at the engine found; ``slots`` and ``model`` only where it told."""

    state: EngineState
    slots: int | None = None
    model: str = ""
    may_sleep: bool = False
    """It tells whether it sleeps, so that it has to be asked again."""

    @property
    def serves(self) -> bool:
        """Whether it takes requests: one that sleeps wakes at the next."""
        return self.state in (EngineState.READY, EngineState.ASLEEP)


class Probe:
    """One engine's address, and how to ask there.

    Args:
        settings: BACKEND_SOCKET, or BACKEND_HOST and PORT_BACKEND; BACKEND_API_KEY.
        timeout: seconds that one look may take.
    """

    def __init__(self, settings: Settings, *, timeout: float = 5.0) -> None:
        self._settings = settings
        self._timeout = timeout
        self._known: Finding | None = None

    async def look(self) -> Finding:
        """Ask once.

        What ``/props`` says is asked for once per start of an engine that never sleeps.
        """
        try:
            async with asyncio.timeout(self._timeout):
                return await self._look()
        except _FAILURES:
            self._known = None
            return Finding(EngineState.UNREACHABLE)

    async def text(self, path: str) -> bytes | None:
        """What a GET of *path* brings; None when it does not bring anything."""
        try:
            async with asyncio.timeout(self._timeout):
                status, body = await self._get(path)
        except _FAILURES:
            return None
        return body if status == 200 else None

    async def _look(self) -> Finding:
        status, _ = await self._get("/health")
        if status == 503:
            self._known = None
            return Finding(EngineState.LOADING)
        # Anything else is an answer of something that serves; other engines have no /health.
        if self._known is None or self._known.may_sleep:
            status, body = await self._get("/props")
            self._known = _read_props(body) if status == 200 else Finding(EngineState.READY)
        return self._known

    async def _get(self, path: str) -> tuple[int, bytes]:
        settings = self._settings
        if settings.backend_socket:
            reader, writer = await asyncio.open_unix_connection(settings.backend_socket)
        else:
            reader, writer = await asyncio.open_connection(
                settings.backend_host, settings.port_backend
            )
        with closing(writer):
            writer.write(self._request(path))
            head = await reader.readuntil(b"\r\n\r\n")
            length = _LENGTH.search(head)
            # Not every peer closes when it is asked to, so its length is believed first.
            body = await (reader.readexactly(int(length[1])) if length else reader.read())
        status = _STATUS.match(head)
        if status is None:
            raise ValueError("not HTTP")
        return int(status[1]), body

    def _request(self, path: str) -> bytes:
        key = self._settings.backend_api_key
        credentials = f"Authorization: Bearer {key}\r\n" if key else ""
        return (
            f"GET {path} HTTP/1.0\r\nHost: localhost\r\n{credentials}Connection: close\r\n\r\n"
        ).encode("ascii")


def _read_props(body: bytes) -> Finding:
    try:
        props: Any = json.loads(body)
        slots = props.get("total_slots")
        model = str(props.get("model_alias") or os.path.basename(props.get("model_path") or ""))
        is_sleeping = props.get("is_sleeping")
    except (ValueError, TypeError, AttributeError):
        return Finding(EngineState.READY)
    tells = isinstance(slots, int) and slots > 0
    state = EngineState.ASLEEP if is_sleeping is True else EngineState.READY
    return Finding(state, slots if tells else None, model, may_sleep=isinstance(is_sleeping, bool))


async def watch(
    probe: Probe,
    report: Callable[[Finding], None],
    *,
    ready_every: float,
    else_every: float,
    is_heard: Callable[[], bool] = lambda: False,
) -> None:
    """Look again and again; *report* hears every finding.

    Args:
        probe: what to look with.
        report: called after each look.
        ready_every: seconds between looks while the engine serves.
        else_every: the same while it does not.
        is_heard: whether the engine has answered somebody else lately, which makes a look needless;
            up to ``MAX_SPARED`` in a row, since it may be another one by now.
    """
    while True:
        finding = await probe.look()
        report(finding)
        await asyncio.sleep(ready_every if finding.serves else else_every)
        left = MAX_SPARED if finding.state is EngineState.READY else 0
        while left and is_heard():
            left -= 1
            await asyncio.sleep(ready_every)
