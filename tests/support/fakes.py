"""The gateway without sockets, sleeping or threads: every step is a call of the test.

``Rig`` is a gateway's ``Services`` on a loop that runs only in ``spin``. ``rig.client()`` is a
client with a real ``ClientConnection``, and each connection that the real pool opens to the engine
becomes a ``FakeUpstream``. Tests send bytes and check bytes. For a gateway on real sockets, see
``tests.support.gateways``.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import pytest

from llama_gguf.config.settings import Settings
from llama_gguf.engines.probe import Finding
from llama_gguf.engines.status import ChildState, EngineStatus
from llama_gguf.gateway.budget_sink import BudgetSink
from llama_gguf.gateway.client_connection import ClientConnection
from llama_gguf.gateway.fleet import Fleet
from llama_gguf.gateway.replica import Replica
from llama_gguf.gateway.services import Services
from llama_gguf.gateway.upstream_connection import Phase, UpstreamConnection
from llama_gguf.http1.exchange_record import ExchangeRecord
from llama_gguf.net.transport import Endpoint, LoopTransport
from llama_gguf.telemetry import exposition, metrics_json
from llama_gguf.telemetry.batch import Batch
from llama_gguf.telemetry.metrics import Metrics
from llama_gguf.telemetry.recorder import Recorder
from llama_gguf.telemetry.timeseries import History
from llama_gguf.telemetry.usage_totals import UsageTotals
from tests.support.keys import BACKEND_KEY, KEYS_TEXT
from tests.support.messages import Response, read_responses, request

TICK_SECONDS: Final = 0.5
LOADED: Final = (exposition, metrics_json)
"""A gateway imports them for its first metrics, which it makes on a thread."""
T = TypeVar("T")


# Clock, loop, transport ---------------------------------------------------------------------------


class Clock:
    """A clock whose time the test sets."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class _NothingHappens:
    """A selector of a loop without files."""

    def select(self, timeout: float | None) -> list[object]:
        assert not timeout, "the loop would sleep"
        return []

    def close(self) -> None:
        pass


class FakeLoop(asyncio.BaseEventLoop):
    """A real loop, with real tasks and timeouts, that runs only in ``spin``."""

    _ready: deque[asyncio.Handle]  # asyncio's own

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock
        self._selector = _NothingHappens()
        self.failures: list[dict[str, Any]] = []
        self.set_exception_handler(lambda _, context: self.failures.append(context))

    def time(self) -> float:
        return self._clock.now

    def _process_events(self, event_list: object) -> None:
        assert not event_list

    def _write_to_self(self) -> None:
        pass

    @property
    def has_work(self) -> bool:
        return bool(self._ready)

    def spin(self) -> None:
        """Run all callbacks that are ready, until none is."""
        while True:
            self.call_soon(self.stop)
            self.run_forever()
            if not self._ready:
                break
        assert not self.failures, self.failures


class Dial:
    """An attempt of the gateway to connect to the engine, which it can cancel."""

    def __init__(
        self, loop: FakeLoop, endpoint: Endpoint, on_failed: Callable[[OSError], None]
    ) -> None:
        self._loop = loop
        self._endpoint = endpoint
        self._on_failed = on_failed
        self.is_over = False
        self.was_cancelled = False
        self.on_open: Callable[[FakeTransport], None] = lambda _: None

    def accept_at_once(self) -> None:
        """Connect during the call, as on loopback."""
        if not self.is_over:
            self.is_over = True
            transport = FakeTransport(self._loop, ("127.0.0.1", 8080))
            self.on_open(transport)
            transport.attach(self._endpoint)

    def accept(self) -> None:
        self._loop.call_soon(self.accept_at_once)

    def refuse(self) -> None:
        self._loop.call_soon(self._fail, ConnectionRefusedError("refused"))

    def cancel(self) -> None:
        self.was_cancelled = not self.is_over
        self.is_over = True

    def _fail(self, error: OSError) -> None:
        if not self.is_over:
            self.is_over = True
            self._on_failed(error)


class FakeDialer:
    """Calls *on_dial* with each ``Dial``."""

    def __init__(self, loop: FakeLoop, on_dial: Callable[[Dial], None]) -> None:
        self._loop = loop
        self._on_dial = on_dial

    def dial(self, endpoint: Endpoint, on_failed: Callable[[OSError], None]) -> Dial | None:
        dial = Dial(self._loop, endpoint, on_failed)
        self._on_dial(dial)
        return None if dial.is_over else dial


class FakeTransport(asyncio.Transport):
    """Records its calls, and behaves as asyncio documents it for transports.

    The gateway uses it as one of TLS, since no class of the tests can extend a compiled one. It
    delivers nothing while reading is paused, calls ``connection_lost`` exactly once and never from
    within ``close`` or ``abort``, and refuses to write behind ``write_eof``.
    """

    def __init__(self, loop: FakeLoop, peer: object) -> None:
        super().__init__({"peername": peer})
        self._loop = loop
        self._protocol: Endpoint
        self._reads = True
        self._is_closing = False
        self._is_lost = False
        self._inbox: list[bytes] = []
        self._eof_waits = False
        self._high = 65536
        self._writer_is_paused = False
        self.unsent = 0
        """Bytes that the peer has not read, while ``is_stalled``."""
        self.is_stalled = False
        self.writes: list[bytes] = []
        self.aborted = False
        self.has_written_eof = False
        self.pauses = 0
        """The number of times that reading was paused."""
        self.on_write: Callable[[bytes], None] = lambda _: None

    # What the gateway calls -----------------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self.has_written_eof:
            raise RuntimeError("write behind write_eof")
        if self._is_lost or self.aborted or not data:
            return
        self.writes.append(bytes(data))
        if self.is_stalled:
            self.unsent += len(data)
            if self.unsent > self._high and not self._writer_is_paused:
                self._writer_is_paused = True
                self._protocol.pause_writing()
        self.on_write(bytes(data))

    def set_protocol(self, protocol: Any) -> None:
        self._protocol = protocol

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = 65536 if high is None else high

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def is_closing(self) -> bool:
        return self._is_closing

    def close(self) -> None:
        self._is_closing = True
        if not self.unsent:
            self._loop.call_soon(self.lose)

    def abort(self) -> None:
        self.aborted = self.aborted or not self._is_lost
        self._is_closing = True
        self._loop.call_soon(self.lose)

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.has_written_eof = True

    def is_reading(self) -> bool:
        return self._reads

    def pause_reading(self) -> None:
        self.pauses += self._reads
        self._reads = False

    def resume_reading(self) -> None:
        if not self._reads:
            self._reads = True
            self._loop.call_soon(self._deliver)

    # What a test does -----------------------------------------------------------------------------

    def attach(self, protocol: Endpoint) -> None:
        LoopTransport(protocol).connection_made(self)

    @property
    def written(self) -> bytes:
        return b"".join(self.writes)

    @property
    def is_closed(self) -> bool:
        """Closed or aborted, even if bytes have not been sent yet."""
        return self._is_closing

    def receive(self, data: bytes) -> None:
        """Receive *data* from the peer."""
        self._inbox.append(data)
        self._deliver()

    def receive_eof(self) -> None:
        """Receive the end of the peer's stream."""
        self._eof_waits = True
        self._deliver()

    def lose(self, exc: Exception | None = None) -> None:
        """Lose the connection."""
        if not self._is_lost:
            self._is_lost = self._is_closing = True
            self.unsent = 0
            self._protocol.connection_lost(exc)

    def take_unsent(self) -> None:
        """The peer reads all of it, and continues to read."""
        self.is_stalled = False
        self.unsent = 0
        if self._writer_is_paused:
            self._writer_is_paused = False
            self._protocol.resume_writing()
        if self._is_closing:
            self._loop.call_soon(self.lose)

    def _deliver(self) -> None:
        while self._inbox and self._reads and not self._is_closing:
            self._protocol.data_received(self._inbox.pop(0))
        if self._eof_waits and self._reads and not self._is_closing:
            self._eof_waits = False
            if not self._protocol.eof_received():
                self.close()


# The gateway, its clients and its engine ----------------------------------------------------------


class FakeUpstream:
    """One connection of the gateway, from the engine's side."""

    def __init__(self, rig: Rig, transport: FakeTransport) -> None:
        self._rig = rig
        self.transport = transport
        transport.on_write = self._on_request

    def _on_request(self, data: bytes) -> None:
        self._rig.requests.append(data)
        reply = self._rig.respond
        if reply is not None:
            self._rig.loop.call_soon(self.transport.receive, reply(data))

    @property
    def received(self) -> bytes:
        return self.transport.written

    @property
    def was_cut(self) -> bool:
        return self.transport.aborted

    @property
    def was_half_closed(self) -> bool:
        """Half-closed by the gateway, not cut: the engine may still finish its response."""
        return self.transport.has_written_eof and not self.transport.aborted

    @property
    def is_closed(self) -> bool:
        return self.transport.is_closed

    @property
    def phase(self) -> Phase:
        connection = self.transport._protocol
        assert isinstance(connection, UpstreamConnection)
        return connection.phase

    def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.transport.receive(piece)
            self._rig.spin()

    def close(self) -> None:
        self.transport.receive_eof()
        self._rig.spin()

    def reset(self) -> None:
        self.transport.lose(ConnectionResetError("reset by the engine"))
        self._rig.spin()


class FakeClient:
    """One client: the bytes that it sends and receives."""

    def __init__(self, rig: Rig, peer: object) -> None:
        self._rig = rig
        self.transport = FakeTransport(rig.loop, peer)
        self.connection = ClientConnection(rig.services)
        self.transport.attach(self.connection)
        rig.spin()

    def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.transport.receive(piece)
            self._rig.spin_if_needed()
        self._rig.spin()

    def disconnect(self) -> None:
        """Close the connection."""
        self.transport.receive_eof()
        self._rig.spin()

    def reset(self) -> None:
        self.transport.lose(ConnectionResetError("reset by the client"))
        self._rig.spin()

    def stall(self) -> None:
        """Stop reading."""
        self.transport.is_stalled = True

    def resume_reading(self) -> None:
        self.transport.take_unsent()
        self._rig.spin()

    @property
    def received(self) -> bytes:
        return self.transport.written

    @property
    def responses(self) -> list[Response]:
        return read_responses(self.received)

    @property
    def response(self) -> Response:
        """The only response so far."""
        responses = self.responses
        assert len(responses) == 1, responses
        return responses[0]

    @property
    def is_closed(self) -> bool:
        """Whether the gateway has closed the connection, or only still discards what arrives."""
        return self.transport.is_closed or self.transport.has_written_eof

    @property
    def was_cut(self) -> bool:
        return self.transport.aborted


async def at_once(work: Callable[[], T]) -> T:
    """A substitute for ``off_the_loop`` without a thread."""
    return work()


class RecordingSink:
    """An ``ExchangeSink`` that keeps the records of all exchanges."""

    def __init__(self) -> None:
        self.records: list[ExchangeRecord] = []

    def take(self, batch: Batch) -> None:
        self.records.extend(batch.records)


class Rig:
    """One gateway, its clients and its engine.

    Args:
        folder: for the keys file.
        keys: its text; None for no file.
        state: of the engine.
        slots: of the engine.
        overrides: settings, over the usual ones.
    """

    def __init__(
        self,
        folder: Path,
        *,
        keys: str | None = KEYS_TEXT,
        state: ChildState = ChildState.READY,
        slots: int = 4,
        **overrides: Any,
    ) -> None:
        self.keys_file = folder / "api_keys.txt"
        self.set_keys(keys)
        usual: Mapping[str, Any] = {
            "auth_keys_file": str(self.keys_file),
            "log_dir": str(folder / "logs"),
            "backend_api_key": BACKEND_KEY,
            "max_requests_per_minute": 1000,
        }
        self.clock = Clock()
        self.loop = FakeLoop(self.clock)
        self._dialer = FakeDialer(self.loop, self._on_dial)
        self.services = Services(
            Settings.of(**{**usual, **overrides}), self.loop, lambda _: self._dialer.dial
        )
        self.services.clock.now = self.clock
        self.services.history = History(self.services.clock.steady())
        self.services.usage = UsageTotals(self.clock.now)
        self._recorded = RecordingSink()
        self.services.recorder = Recorder(
            [
                BudgetSink(self.services.authenticator.budgets, self.services.clock),
                self.services.metrics,
                self.services.usage,
                self.services.replica_sink,
                self.services.spared_prompts,
                self.services.recent,
                self._recorded,
            ],
            wall=lambda: self.services.clock.wall,
        )
        self.services.clock.tick()
        self.services.key_store.off_the_loop = at_once
        if keys is not None:
            self.services.key_store.load()
        self.clients: list[FakeClient] = []
        self.upstreams: list[FakeUpstream] = []
        self.requests: list[bytes] = []
        """Each as the engine received it."""
        self.dials: list[Dial] = []
        self.accepts = True
        """False: dials wait for ``accept`` or ``refuse``."""
        self.respond: Callable[[bytes], bytes] | None = None
        """Computes the engine's response to each request; None: the test sends it."""
        self.replica.liveness.look = self._look
        self.engine(state, slots=slots)

    async def _look(self) -> Finding:
        return Finding(ChildState.READY if self.accepts else ChildState.UNREACHABLE)

    def close(self) -> None:
        for client in self.clients:
            client.transport.lose()
        for replica in self.fleet.replicas.values():
            replica.pool.retire_idle()
        for dial in self.dials:
            dial.cancel()
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        self.spin()
        self.loop.close()

    def set_keys(self, text: str | None) -> None:
        if text is None:
            self.keys_file.unlink(missing_ok=True)
        else:
            self.keys_file.write_text(text)
            self.keys_file.chmod(0o600)

    def _on_dial(self, dial: Dial) -> None:
        self.dials.append(dial)
        dial.on_open = lambda transport: self.upstreams.append(FakeUpstream(self, transport))
        if self.accepts:
            dial.accept_at_once()

    def respond_with(self, *replies: bytes) -> None:
        """Let the engine send one of *replies* to each request, and repeat the last."""
        remaining = list(replies)
        self.respond = lambda _: remaining.pop(0) if len(remaining) > 1 else remaining[0]

    def engine(self, state: ChildState, *, slots: int | None = None) -> None:
        """Change the engine's state."""
        slots = self.replica.tracker.status.slots if slots is None else slots
        self.replica.tracker.update(EngineStatus(state, since=0.0, slots=slots, model="m"))
        self.spin()

    def client(self, peer: object = ("203.0.113.9", 40000)) -> FakeClient:
        self.clients.append(FakeClient(self, peer))
        return self.clients[-1]

    def send_request(self, *pieces: bytes) -> FakeClient:
        """A new client that sends *pieces* (by default, a small POST)."""
        client = self.client()
        client.send(*(pieces or (request(body=b"{}"),)))
        return client

    @property
    def upstream(self) -> FakeUpstream:
        """The newest connection to the engine."""
        return self.upstreams[-1]

    def spin(self) -> None:
        self.loop.spin()

    def spin_if_needed(self) -> None:
        """Spin unless nothing is ready; cheaper for hundreds of bytes in a row."""
        if self.loop.has_work:
            self.loop.spin()

    def advance(self, seconds: float) -> None:
        """Advance the clock, with the gateway's tick twice a second."""
        end = self.clock.now + seconds
        while self.clock.now < end:
            self.clock.now = min(self.clock.now + TICK_SECONDS, end)
            self.spin()
            self.services.tick()
            self.spin()

    # What it has recorded and holds ---------------------------------------------------------------

    @property
    def records(self) -> list[ExchangeRecord]:
        """The exchanges that have ended."""
        self.services.recorder.settle()
        return self._recorded.records

    @property
    def fleet(self) -> Fleet:
        return self.services.fleet

    @property
    def replica(self) -> Replica:
        """The only one."""
        (replica,) = self.fleet.replicas.values()
        return replica

    @property
    def metrics(self) -> Metrics:
        """With all exchanges that have ended."""
        self.services.recorder.settle()
        return self.services.metrics

    @property
    def is_at_rest(self) -> bool:
        """Whether every slot, queue place and byte of body memory has been released."""
        services, fleet = self.services, self.fleet
        held = (
            *(
                fleet.admission.running,
                fleet.admission.queued,
                services.body_memory.used,
            ),
            *(fleet.side_admission.running, fleet.side_admission.queued),
        )
        return not any(held) and not services.connections.busy()


class NewRig(Protocol):
    def __call__(self, **settings: Any) -> Rig: ...


@pytest.fixture
def new_rig(tmp_path: Path) -> Iterator[NewRig]:
    """Creates a ``Rig``, with other settings if given."""
    with ExitStack() as stack:
        yield lambda **settings: stack.enter_context(closing(Rig(tmp_path, **settings)))


@pytest.fixture
def rig(new_rig: NewRig) -> Rig:
    """A gateway with three keys; its engine is ready and has four slots."""
    return new_rig()
