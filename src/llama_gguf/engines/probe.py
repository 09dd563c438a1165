"""Probes llama-server at fixed intervals, independent of clients' requests.

``/health`` distinguishes loading from ready; ``/props`` has the number of slots, the context of
each, and whether the engine sleeps (its ``--sleep-idle-seconds``); ``/v1/models`` describes the
model. None of them wakes a sleeping engine; ``/slots``, which does, and ``/metrics``, which does in
some builds, are never requested.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from llama_gguf.engines.address import EngineAddress
from llama_gguf.engines.http_client import send
from llama_gguf.engines.status import ChildState
from llama_gguf.net.streams import FAILURES
from llama_gguf.values import Value, replace

if TYPE_CHECKING:
    import ssl

MAX_SPARED: Final = 15


class Finding(Value):
    """The result of one probe; all but the state only if the engine reports it."""

    state: ChildState
    slots: int | None = None
    model: str = ""
    may_sleep: bool = False
    """It reports whether it sleeps, so ``/props`` has to be requested each time."""
    request_tokens: int | None = None
    """The context of one request."""
    is_gateway: bool = False
    """It is another llama-gguf, with its own queue and limits."""
    detail: str = ""
    """For people: why it cannot be reached."""
    model_list: Mapping[str, Any] = {}
    """Its response to ``GET /v1/models``."""

    @property
    def serves(self) -> bool:
        """Whether it accepts requests: a sleeping engine wakes at the next one."""
        return self.state in (ChildState.READY, ChildState.ASLEEP)


class Probe:
    """Sends probe requests to one engine.

    Args:
        address: of the engine.
        timeout: seconds for one probe.
        tls: verifies the certificate of one with ``has_tls``.
        is_peer: it may be another llama-gguf, and may be replaced without a failing probe.
    """

    def __init__(
        self,
        address: EngineAddress,
        *,
        timeout: float = 5.0,
        tls: ssl.SSLContext | None = None,
        is_peer: bool = False,
    ) -> None:
        self._address = address
        self._timeout = timeout
        self._tls = tls
        self._is_peer = is_peer
        self._known: Finding | None = None

    async def look(self) -> Finding:
        """Probe once.

        ``/props`` and ``/v1/models`` are requested only once per start of an engine that never
        sleeps.
        """
        try:
            async with asyncio.timeout(self._timeout):
                return await self._look()
        except FAILURES as error:
            self._known = None
            detail = ""
            if refusal := getattr(error, "verify_message", ""):  # ssl.SSLCertVerificationError
                detail = f"Its certificate is not accepted: {refusal}."
            return Finding(ChildState.UNREACHABLE, detail=detail)

    async def text(self, path: str) -> bytes | None:
        """The body of a GET of *path*; None unless its status is 200."""
        try:
            async with asyncio.timeout(self._timeout):
                status, body = await self._get(path)
        except FAILURES:
            return None
        return body if status == 200 else None

    async def _look(self) -> Finding:
        status, health = await self._get("/health")
        gateway = _read_gateway(health) if self._is_peer else None
        if gateway is not None:
            self._known = await self._with_models(gateway) if gateway.serves else None
            return self._known or gateway
        if status == 503:
            self._known = None
            return Finding(ChildState.LOADING)
        # Any other response comes from an engine that serves; other engines have no /health.
        if self._known is None or self._known.may_sleep or self._is_peer:
            status, body = await self._get("/props")
            found = _read_props(body) if status == 200 else Finding(ChildState.READY)
            self._known = await self._with_models(found)
        return self._known

    async def _with_models(self, found: Finding) -> Finding:
        """*found* with the model list: the known one, unless the model is another by now."""
        known = self._known
        is_same = known is not None and known.model == found.model
        before = known.model_list if known is not None and is_same else {}
        return replace(found, model_list=before or await self._model_list())

    async def _model_list(self) -> Mapping[str, Any]:
        """Empty if it has none: other engines serve nevertheless."""
        try:
            status, body = await self._get("/v1/models")
            found = json.loads(body) if status == 200 else {}
        except (*FAILURES, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    async def _get(self, path: str) -> tuple[int, bytes]:
        return await send(self._address, self._request(path), tls=self._tls)

    def _request(self, path: str) -> bytes:
        key = self._address.api_key
        host = self._address.authority if self._is_peer else "localhost"
        credentials = f"Authorization: Bearer {key}\r\n" if key else ""
        return (
            f"GET {path} HTTP/1.0\r\nHost: {host}\r\n{credentials}Connection: close\r\n\r\n"
        ).encode("ascii")


_GATEWAY_STATES: Final = {
    "ok": ChildState.READY,
    "asleep": ChildState.READY,  # it wakes at the next request
    "draining": ChildState.UNREACHABLE,
    "starting": ChildState.LOADING,
    "loading": ChildState.LOADING,
}


def _read_gateway(body: bytes) -> Finding | None:
    """What the /health of another llama-gguf reports; None if it is something else's."""
    try:
        facts: Any = json.loads(body)
        slots, model = facts["slots"]["total"], facts["model"]
        if "queue" not in facts or "engine" not in facts:
            return None
        return Finding(
            _GATEWAY_STATES.get(facts["status"], ChildState.UNREACHABLE),
            _count(slots),
            str(model.get("name") or ""),
            request_tokens=_count(model.get("context")),
            is_gateway=True,
        )
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def _read_props(body: bytes) -> Finding:
    try:
        props: Any = json.loads(body)
        slots = props.get("total_slots")
        model = str(props.get("model_alias") or os.path.basename(props.get("model_path") or ""))
        is_sleeping = props.get("is_sleeping")
        tokens = (props.get("default_generation_settings") or {}).get("n_ctx")
    except (ValueError, TypeError, AttributeError):
        return Finding(ChildState.READY)
    state = ChildState.ASLEEP if is_sleeping is True else ChildState.READY
    return Finding(
        state,
        _count(slots),
        model,
        may_sleep=isinstance(is_sleeping, bool),
        request_tokens=_count(tokens),
    )


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and value > 0 else None


async def watch(
    probe: Probe,
    report: Callable[[Finding], None],
    *,
    ready_every: float,
    else_every: float,
    has_responded: Callable[[], bool] = lambda: False,
) -> None:
    """Probe periodically; *report* is called with every finding.

    Args:
        probe: of the engine.
        report: called after each probe.
        ready_every: seconds between probes while the engine serves.
        else_every: the same while it does not.
        has_responded: whether the engine has responded to a request lately, so that a probe is
            needless. Up to ``MAX_SPARED`` in a row are skipped, since the engine may have been
            replaced.
    """
    while True:
        finding = await probe.look()
        report(finding)
        await asyncio.sleep(ready_every if finding.serves else else_every)
        remaining = MAX_SPARED if finding.state is ChildState.READY else 0
        while remaining and has_responded():
            remaining -= 1
            await asyncio.sleep(ready_every)
