"""The gateway's end of the channel to the supervisor.

The supervisor sends the engine's status. The gateway sends its activity: at each tick if it has
changed, and at once after a new status and when a request arrives for an engine that is asleep.
Nothing here is on the path of a request.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from llama_gguf.access.owners import owner_of
from llama_gguf.engines.activity import (
    FACTS,
    FACTS_REQUEST,
    GREETING,
    OWNERS,
    Activity,
    ReplicaActivity,
)
from llama_gguf.engines.status import EngineStatus
from llama_gguf.gateway.operator_facts import operator_facts

if TYPE_CHECKING:
    from llama_gguf.gateway.services import Services
    from llama_gguf.gateway.upstream_connection import UpstreamConnection

OWNERS_PER_LINE: Final = 256
"""Of about 80 bytes: the supervisor reads lines of up to 64 KiB."""
MAX_WAITING_BYTES: Final = 65536
"""For a supervisor that does not read: it gets the activity of a later tick instead."""


class Control:
    """Exchanges lines with the supervisor over *channel*, from ``follow`` on.

    Args:
        services: of the gateway.
        channel: a connected socket, which it closes.
    """

    def __init__(self, services: Services, channel: socket.socket) -> None:
        self._services = services
        self._channel = channel
        self._writer: asyncio.StreamWriter | None = None
        self._sent: Activity | None = None
        self._data_ticks: Counter[object] = Counter()
        """By the pool of a replica's connections; ``None`` counts those of any replica."""
        self._passed: dict[UpstreamConnection, int] = {}
        """Bytes of each response that had passed at the last tick, by connection."""

    async def follow(self, on_gone: Callable[[], None]) -> None:
        """Send the greeting, then take over each status until the supervisor is gone."""
        services = self._services
        reader, writer = await asyncio.open_unix_connection(sock=self._channel)
        self._writer = writer
        writer.write(GREETING)
        services.fleet.on_engine_requested = self._request_engine
        try:
            with contextlib.suppress(ConnectionError):  # it was killed, with lines of ours unread
                while (line := await reader.readline()).endswith(b"\n"):
                    if line == FACTS_REQUEST:
                        self._send_facts(writer)
                        continue
                    services.fleet.update(EngineStatus.from_line(line))
                    self._send(self._activity())
        finally:
            self._writer = None
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()  # else asyncio logs an error that was not retrieved
        on_gone()

    def _send_facts(self, writer: asyncio.StreamWriter) -> None:
        if writer.transport.get_write_buffer_size() < MAX_WAITING_BYTES:
            writer.write(FACTS + json.dumps(operator_facts(self._services)).encode() + b"\n")

    def tick(self) -> None:
        self._note_data()
        self._send(self._activity(engine_requested=self.is_engine_needed))

    @property
    def is_engine_needed(self) -> bool:
        """Whether a request waits because no replica that is awake has a free slot."""
        admission = self._services.fleet.admission
        return admission.queued > 0 and admission.running >= admission.slots

    def _request_engine(self) -> None:
        self._send(self._activity(engine_requested=True))

    def _activity(self, *, engine_requested: bool = False) -> Activity:
        services = self._services
        services.recorder.settle()
        replicas = services.fleet.replicas
        return Activity(
            acknowledged_revision=services.fleet.status.revision,
            busy=services.connections.busy(),
            running=services.fleet.admission.running,
            responses=services.metrics.responses,
            data_ticks=self._data_ticks[None],
            engine_requested=engine_requested,
            replicas={
                key: ReplicaActivity(
                    acknowledged_revision=replica.tracker.status.revision,
                    running=replica.slots.in_use,
                    responses=replica.responses,
                    data_ticks=self._data_ticks[replica.pool],
                )
                for key, replica in replicas.items()
            },
        )

    def _send(self, activity: Activity) -> None:
        writer = self._writer
        if writer is None:
            return
        if writer.transport.get_write_buffer_size() < MAX_WAITING_BYTES:
            self.send_owners()  # first: what is not running any more has been reported
            if activity == self._sent:
                return
            writer.write(activity.to_line())
            self._sent = activity

    def send_owners(self) -> None:
        """Report whose requests have been sent to engines whose prompts are kept."""
        writer = self._writer
        if writer is None:
            return
        ring = self._services.authenticator.ring
        for address, replica in self._services.fleet.replicas.items():
            key_ids = replica.owners
            while key_ids:
                some = [key_ids.pop() for _ in range(min(len(key_ids), OWNERS_PER_LINE))]
                owners = {address: [owner_of(ring, key_id) for key_id in some]}
                writer.write(OWNERS + json.dumps(owners).encode() + b"\n")

    def _note_data(self) -> None:
        """Count this tick for each replica that has sent data since the last one."""
        before, self._passed = self._passed, {}
        with_data: set[object] = set()
        for connection in self._services.connections:
            upstream = connection.upstream
            if upstream is not None:
                self._passed[upstream] = upstream.bytes_passed
                new = upstream.bytes_passed - before.get(upstream, 0)
                if new and not is_comment(upstream.tail, new):
                    with_data |= {None, upstream.owner}
        self._data_ticks.update(with_data)
        if len(self._data_ticks) > 2:  # with several replicas: some may be gone
            pools = {replica.pool for replica in self._services.fleet.replicas.values()}
            for pool in self._data_ticks.keys() - pools - {None}:
                del self._data_ticks[pool]


def is_comment(tail: bytes, new_bytes: int) -> bool:
    """Whether all that is new is llama-server's empty comment; *tail* is the end of the body.

    llama-server sends one every 30 s from the connection's thread, even if its computing threads
    hang.
    """
    return new_bytes == len(b"3\r\n:\n\n\r\n") and tail in (b":\n\n", b"\n:\n\n")
