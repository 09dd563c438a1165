"""One connection to the engine, with a recorder for its client.

What clients see of it is in ``test_client_responses`` and ``test_client_streams``.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from llama_gguf.errors import IllegalTransition, UpstreamClosedKept, UpstreamError
from llama_gguf.gateway.upstream_connection import TRANSITIONS, Phase, UpstreamConnection
from llama_gguf.http1.fields import Framing
from llama_gguf.http1.known_head import KnownHead
from llama_gguf.http1.response import Response
from llama_gguf.net.poller import Poller
from llama_gguf.net.transport import LoopTransport, SocketTransport, Transport
from llama_gguf.telemetry.token_usage import ENDING_BYTES, OPENING_BYTES
from tests.support.endpoints import NoDataExpected, Play, connected, sockets_of
from tests.support.fakes import Clock, FakeLoop, FakeTransport
from tests.support.messages import LAST_CHUNK, OK, STREAM_HEAD, chunk, event, splits

REQUEST = b"POST / HTTP/1.1\r\n\r\n"


class Receiver(NoDataExpected):
    """Records its calls, and what is written to its transport."""

    def __init__(self, *, reads_chunks: bool = True) -> None:
        self.reads_chunks = reads_chunks
        self.transport: Transport
        self.write: Callable[[bytes], None] = self._take
        self.calls: list[str] = []
        self.got = b""
        LoopTransport(self).connection_made(self)
        self.status = 0
        self.length = 0
        self.beginnings = 0
        self.holds_head = False

    def connection_made(self, transport: Transport) -> None:
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None: ...
    def set_protocol(self, protocol: object) -> None: ...

    def _take(self, data: bytes) -> None:
        self.got += data

    def on_whole_response(self, response: Response, body: bytes) -> None:
        assert response.framing is Framing.LENGTH
        self._take(self.on_response(response, len(body)) + body)
        self.on_response_done()

    def on_response(self, response: Response, length: int) -> bytes:
        self.status, self.length = response.status, length
        return b"HEAD;"

    def on_body_begun(self) -> None:
        self.beginnings += 1

    def on_response_done(self) -> None:
        self.calls.append("done")

    def on_upstream_failed(self, error: UpstreamError) -> None:
        self.calls.append("failed, stale" if isinstance(error, UpstreamClosedKept) else "failed")

    def on_cut(self, error: UpstreamError, *, may_insert: bool, has_begun: bool) -> None:
        del error
        self.has_begun = has_begun
        self.calls.append("cut behind an event" if may_insert else "cut")


class Keeper:
    def __init__(self) -> None:
        self.kept: list[UpstreamConnection] = []
        self.resting: list[UpstreamConnection] = []
        self.header_lines = b"Host: engine\r\n"
        self.last_head: tuple[KnownHead, Response] | None = None
        self.passes_refusals = True

    def give_back(self, connection: UpstreamConnection) -> None:
        self.kept.append(connection)

    def give_back_after_stream(self, connection: UpstreamConnection) -> None:
        self.resting.append(connection)


class Line:
    """A connection, its transport, and both of its ends."""

    def __init__(self, loop: FakeLoop, keeper: Keeper | None = None) -> None:
        self.loop = loop
        self.keeper = keeper or Keeper()
        self.connection = UpstreamConnection(self.keeper)
        self.transport = FakeTransport(loop, ("127.0.0.1", 8080))
        self.transport.attach(self.connection)

    def send_request(self, *, is_head_request: bool = False, reads_chunks: bool = True) -> Receiver:
        receiver = Receiver(reads_chunks=reads_chunks)
        self.connection.send(receiver, REQUEST, is_head_request=is_head_request)
        return receiver

    def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.transport.receive(piece)
        self.loop.spin()

    def close(self) -> None:
        self.transport.receive_eof()
        self.loop.spin()

    @property
    def is_idle(self) -> bool:
        return self.connection.phase is Phase.IDLE and not self.transport.is_closing()


@pytest.fixture
def line() -> Iterator[Line]:
    with closing(FakeLoop(Clock())) as loop:
        yield Line(loop)


def test_a_new_connection_is_usable_and_sends_what_it_is_given(line: Line) -> None:
    assert line.is_idle
    line.send_request()

    assert line.transport.written == REQUEST
    assert not line.is_idle


def test_head_and_body_that_arrive_together_are_sent_together(line: Line) -> None:
    receiver = line.send_request()
    line.send(OK)

    assert receiver.got == b'HEAD;{"ok":true}'
    assert receiver.status == 200
    assert receiver.calls == ["done"]


def test_a_finished_connection_is_given_back_and_serves_again(line: Line) -> None:
    line.send_request()
    line.send(OK)
    assert line.keeper.kept == [line.connection]
    assert line.is_idle

    second = line.send_request()
    line.send(OK)

    assert second.calls == ["done"]
    assert line.connection.requests == 2


@pytest.mark.parametrize("is_head_request", [False, True])
@pytest.mark.parametrize(
    ("response", "status", "got"),
    [
        (OK, 200, b'HEAD;{"ok":true}'),
        (OK.replace(b"11", b"4").replace(b'{"ok":true}', b"more"), 200, b"HEAD;more"),
        (OK.replace(b"200 OK", b"404 Not Found"), 404, b'HEAD;{"ok":true}'),
    ],
)
def test_what_another_connection_has_read_changes_nothing_for_a_new_one(
    line: Line, *, is_head_request: bool, response: bytes, status: int, got: bytes
) -> None:
    line.send_request(is_head_request=is_head_request)
    line.send(OK.partition(b"{")[0] if is_head_request else OK)

    new = Line(line.loop, line.keeper)
    receiver = new.send_request()
    new.send(response)

    assert (receiver.status, receiver.got, receiver.calls) == (status, got, ["done"])


def test_it_is_given_back_before_its_asker_is_called(line: Line) -> None:
    receiver = line.send_request()
    receiver.on_response_done = lambda: receiver.calls.append(  # type: ignore[method-assign]
        f"done, {len(line.keeper.kept)} kept"
    )
    line.send(OK)

    assert receiver.calls == ["done, 1 kept"]


def test_after_a_stream_a_connection_is_given_back_as_one_that_may_be_closed(line: Line) -> None:
    receiver = line.send_request()
    line.send(STREAM_HEAD, event(1), event(2) + LAST_CHUNK)

    assert receiver.got == b"HEAD;" + event(1) + event(2) + LAST_CHUNK
    assert receiver.calls == ["done"]
    assert line.keeper.kept == []
    assert line.keeper.resting == [line.connection]
    assert line.connection.phase is Phase.IDLE


def test_a_client_that_reads_no_chunks_receives_their_content(line: Line) -> None:
    receiver = line.send_request(reads_chunks=False)
    line.send(STREAM_HEAD + event(1)[:3], event(1)[3:], event(2), LAST_CHUNK)

    assert receiver.got == b'HEAD;data: {"n":1}\n\ndata: {"n":2}\n\n'
    assert receiver.calls == ["done"]


def test_a_response_to_head_has_no_body(line: Line) -> None:
    receiver = line.send_request(is_head_request=True)
    line.send(OK.partition(b"{")[0])

    assert receiver.calls == ["done"]
    assert line.is_idle


def test_a_first_request_that_fails_is_not_stale(line: Line) -> None:
    receiver = line.send_request()
    line.close()

    assert receiver.calls == ["failed"]


def test_a_later_request_that_fails_without_a_byte_is_stale(line: Line) -> None:
    line.send_request()
    line.send(OK)
    receiver = line.send_request()
    line.close()

    assert receiver.calls == ["failed, stale"]


def test_a_later_request_that_fails_after_a_byte_is_not_stale(line: Line) -> None:
    line.send_request()
    line.send(OK)
    receiver = line.send_request()
    line.send(b"H")
    line.close()

    assert receiver.calls == ["failed"]


TEXT_HEAD = STREAM_HEAD.replace(b"text/event-stream", b"text/plain")
BREAKS_OFF = [
    (STREAM_HEAD, "cut behind an event"),  # none has begun
    (STREAM_HEAD + event(1), "cut behind an event"),
    (STREAM_HEAD + event(1) + event(2), "cut behind an event"),
    (STREAM_HEAD + chunk(b"data: x\r\n\r\n"), "cut behind an event"),
    (STREAM_HEAD + chunk(b"data: x\n") + chunk(b"\n"), "cut behind an event"),
    (STREAM_HEAD + chunk(b"data: x\n"), "cut"),
    (STREAM_HEAD + event(1) + chunk(b"data"), "cut"),
    (STREAM_HEAD + event(1)[:-1], "cut"),
    (STREAM_HEAD + event(1) + b"5", "cut"),
    (STREAM_HEAD + event(1) + b"0\r\n", "cut"),
    (TEXT_HEAD + chunk(b"text\n\n"), "cut"),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc", "cut"),
    (b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 9\r\n\r\n\n\n", "cut"),
]  # fmt: skip


@pytest.mark.parametrize(("said", "told"), BREAKS_OFF)
def test_a_response_that_breaks_off_is_reported_as_cut(said: bytes, told: str, line: Line) -> None:
    receiver = line.send_request()
    line.send(said)
    line.close()

    assert receiver.calls == [told]


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
def test_a_line_end_in_a_chunk_of_its_own_ends_no_event(line_end: bytes, line: Line) -> None:
    receiver = line.send_request()
    line.send(STREAM_HEAD + chunk(b"data: x") + chunk(line_end))
    line.close()

    assert receiver.calls == ["cut"]


def test_after_an_abort_the_asker_is_not_called(line: Line) -> None:
    receiver = line.send_request()
    line.send(STREAM_HEAD, event(1))
    line.connection.abort()
    line.send(event(2))

    assert line.transport.aborted
    assert receiver.calls == []
    assert receiver.got == b"HEAD;" + event(1)


def test_bytes_on_an_idle_connection_close_it(line: Line) -> None:
    line.send(OK)

    assert line.transport.is_closed
    assert not line.is_idle


def test_an_idle_connection_that_the_engine_closes_is_not_usable(line: Line) -> None:
    line.close()

    assert not line.is_idle


def test_pausing_a_connection_that_is_gone_does_no_harm(line: Line) -> None:
    line.send_request()
    line.connection.abort()
    line.connection.pause_reading()
    line.connection.resume_reading()

    assert line.transport.pauses == 0


def test_a_pause_outlasts_no_exchange(line: Line) -> None:
    receiver = line.send_request()
    receiver.write = lambda _: line.connection.pause_reading()  # a client that is slow to the end
    line.send(OK[:-3])
    assert not line.transport.is_reading()
    line.connection.resume_reading()
    line.send(OK[-3:])

    assert receiver.calls == ["done"]
    assert line.transport.is_reading()


# Phases -------------------------------------------------------------------------------------------


def test_every_phase_has_its_row_and_can_be_reached() -> None:
    assert TRANSITIONS.keys() == set(Phase)
    assert set().union(*TRANSITIONS.values()) == set(Phase)


def test_every_phase_may_end_and_only_a_new_connection_begins() -> None:
    assert all(Phase.CLOSED in then for then in TRANSITIONS.values())
    assert {before for before, then in TRANSITIONS.items() if Phase.HEAD in then} == {Phase.IDLE}


def test_a_transition_that_is_not_in_the_table_is_a_bug(line: Line) -> None:
    with pytest.raises(IllegalTransition, match="IDLE to BODY"):
        line.connection._to(Phase.BODY)


@pytest.mark.parametrize("in_between", [[], [STREAM_HEAD], [STREAM_HEAD, event(1)]])
def test_a_second_request_before_the_response_to_the_first_is_complete_is_a_bug(
    in_between: list[bytes], line: Line
) -> None:
    first = line.send_request()
    line.send(*in_between)

    with pytest.raises(IllegalTransition, match="to HEAD"):
        line.send_request()
    assert line.transport.written == REQUEST
    assert first.calls == []


def test_a_request_on_a_closed_connection_is_a_bug(line: Line) -> None:
    line.close()

    with pytest.raises(IllegalTransition, match="CLOSED to HEAD"):
        line.send_request()


def test_the_phases_of_a_stream(line: Line) -> None:
    seen = [line.connection.phase]
    line.send_request()
    seen.append(line.connection.phase)
    pieces = (STREAM_HEAD, event(1), event(2)[:5], event(2)[5:], LAST_CHUNK)
    for piece in pieces:
        line.send(piece)
        seen.append(line.connection.phase)

    assert seen == [
        Phase.IDLE,
        Phase.HEAD,
        Phase.BODY,
        Phase.BETWEEN_CHUNKS,
        Phase.BODY,
        Phase.BETWEEN_CHUNKS,
        Phase.IDLE,
    ]


# Repeated heads -----------------------------------------------------------------------------------


def with_length(length: int) -> bytes:
    """``OK`` with a body of *length* bytes."""
    return OK.partition(b"{")[0].replace(b"11", b"%d" % length) + b"x" * length


ANSWERS = {
    "a length": OK,
    "no body": with_length(0),
    "another length": with_length(123),
    "another status": OK.replace(b"200 OK", b"404 No"),
    "a field more": OK.replace(b"\r\n\r\n", b"\r\nX: y\r\n\r\n"),
    "an interim answer first": b"HTTP/1.1 100 Continue\r\n\r\n" + OK,
    "nothing": b"HTTP/1.1 204 No Content\r\nContent-Length: 11\r\n\r\n",
}


@pytest.mark.parametrize("second", ANSWERS.values(), ids=ANSWERS.keys())
@pytest.mark.parametrize("first", ANSWERS.values(), ids=ANSWERS.keys())
def test_no_response_depends_on_the_one_before_it_or_on_how_it_is_split(
    first: bytes, second: bytes, line: Line
) -> None:
    alone = line.send_request()
    line.send(second)
    for pieces in splits(second):
        line.connection.requests = 1  # so that the connection does not grow old
        line.send_request()
        line.send(first)
        receiver = line.send_request()
        line.send(*pieces)

        assert vars_of(receiver) == vars_of(alone)
        assert line.is_idle


def vars_of(receiver: Receiver) -> tuple[object, ...]:
    return receiver.calls, receiver.got, receiver.status, receiver.length


@pytest.mark.parametrize("before", [OK, OK.partition(b"{")[0]], ids=["to GET", "to HEAD"])
def test_a_response_to_head_has_no_body_after_any_other(before: bytes, line: Line) -> None:
    line.send_request(is_head_request=not before.endswith(b"}"))
    line.send(before)
    head_receiver = line.send_request(is_head_request=True)
    line.send(OK.partition(b"{")[0])
    assert head_receiver.got == b"HEAD;"
    to_get = line.send_request()
    line.send(OK)

    assert to_get.got == b'HEAD;{"ok":true}'
    assert (head_receiver.calls, to_get.calls) == (["done"], ["done"])


def test_a_known_head_after_the_beginning_of_another_is_no_head(line: Line) -> None:
    line.send_request()
    line.send(OK)
    receiver = line.send_request()
    line.send(b"H", OK)

    assert receiver.calls == ["failed"]
    assert line.transport.aborted


def test_surplus_bytes_are_no_response_to_the_next_request(line: Line) -> None:
    line.send_request()
    line.send(OK)
    receiver = line.send_request()
    line.send(OK + OK)

    assert receiver.got == b'HEAD;{"ok":true}'
    assert receiver.calls == ["done"]
    assert line.keeper.kept == [line.connection], "after the first, and not again"
    assert line.transport.is_closed


def test_a_connection_that_its_response_ends_is_not_kept_even_after_a_single_read(
    line: Line,
) -> None:
    receiver = line.send_request()
    line.send(OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))

    assert receiver.calls == ["done"]
    assert line.keeper.kept == []
    assert line.transport.is_closed


# One chunk in one read ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "received", [b"5", b"9\r\n", b"9\r\n1\r\nx", b"1\r\nx", b"0\r\n", b"6\r\n", b"b\r\n1\r\nx"]
)
@pytest.mark.parametrize("reads_chunks", [True, False])
def test_within_a_chunk_nothing_is_taken_for_another_chunk(
    received: bytes, reads_chunks: bool, line: Line
) -> None:
    rest = [b"1\r\nx\r\n", b"1\r\ny\r\n", b"\r\n", b"2\r\nzz\r\n", LAST_CHUNK]
    in_pieces = line.send_request(reads_chunks=reads_chunks)
    line.send(STREAM_HEAD, received, *rest)
    other = Line(line.loop)
    bytewise = other.send_request(reads_chunks=reads_chunks)
    stream = b"".join((received, *rest))
    other.send(STREAM_HEAD, *(stream[i : i + 1] for i in range(len(stream))))

    assert in_pieces.calls == bytewise.calls
    if in_pieces.calls == ["done"]:
        assert in_pieces.got == bytewise.got
    assert line.transport.is_closed == other.transport.is_closed


def test_the_bytes_of_every_chunk_are_counted(line: Line) -> None:
    receiver = line.send_request()
    line.send(STREAM_HEAD, event(1), event(2)[:4], event(2)[4:], event(3) + event(4))

    assert line.connection.bytes_passed == len(receiver.got)


# What is kept for counting tokens -----------------------------------------------------------------

COMMENT = chunk(b":\n\n")


def test_a_stream_s_first_event_is_reported_once_and_kept(line: Line) -> None:
    receiver = line.send_request()
    line.send(STREAM_HEAD)
    before = receiver.beginnings
    line.send(COMMENT, event(1), event(2))

    assert (before, receiver.beginnings) == (0, 1)
    assert line.connection.window.opening == event(1)


def test_a_comment_is_no_event_however_it_arrives(line: Line) -> None:
    receiver = line.send_request()
    line.send(STREAM_HEAD + COMMENT, COMMENT[:3], COMMENT[3:], COMMENT)

    assert (receiver.beginnings, line.connection.window.opening) == (0, b"")
    assert receiver.got == b"HEAD;" + COMMENT * 3


def test_the_end_of_a_stream_is_kept_however_it_is_cut(line: Line) -> None:
    events = [event(n) for n in range(40)]
    last = chunk(b'data: {"timings":{}}\n\n') + chunk(b"data: [DONE]\n\n") + LAST_CHUNK
    for end in splits(last):
        other = Line(line.loop)
        receiver = other.send_request()
        other.send(STREAM_HEAD, *events, *end)

        assert receiver.calls == ["done"]
        assert other.connection.window.ending.endswith(event(39) + last)


def test_the_end_that_is_kept_is_bounded(line: Line) -> None:
    line.send_request()
    line.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10000000\r\n\r\n")
    for _ in range(100):
        line.send(b"x" * 1000, b"y" * 60000)

    assert len(line.connection.window.opening) <= OPENING_BYTES
    assert len(line.connection.window.ending) <= 65536
    line.send(b"z" * 1000)
    assert len(line.connection.window.ending) <= 2 * ENDING_BYTES
    assert line.connection.window.ending.endswith(b"y" + b"z" * 1000)


def test_a_response_that_is_not_a_stream_begins_with_its_first_byte(line: Line) -> None:
    receiver = line.send_request()
    line.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", b'{"data:', b'"}')

    assert receiver.calls == ["done"]
    assert (receiver.beginnings, line.connection.window.ending) == (1, b'{"data:"}')


def test_the_windows_have_nothing_of_the_response_before(line: Line) -> None:
    line.send_request()
    line.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n", b"ab", b"cd")
    line.send_request()
    line.send(STREAM_HEAD, COMMENT)

    assert (line.connection.window.opening, line.connection.window.ending) == (b"", COMMENT)


def test_neither_a_request_nor_a_stream_s_beginning_waits_for_others(play: Play) -> None:
    def came_to(peer: socket.socket) -> bytes:
        try:
            return peer.recv(1000)
        except BlockingIOError:
            return b""

    async def scene(poller: Poller) -> None:
        ours, engine = sockets_of(socket.AF_INET)
        ours.setblocking(False)
        engine.setblocking(False)
        async with connected(poller) as (end, client):
            got: list[bytes] = []
            connection, receiver, is_begun = (
                UpstreamConnection(Keeper()),
                Receiver(),
                asyncio.Event(),
            )

            def send_request(data: bytes) -> None:
                connection.send(receiver, data, is_head_request=False)
                got.append(came_to(engine))

            def begin() -> None:
                got.append(came_to(client))
                is_begun.set()

            end.on_data = send_request
            receiver.on_body_begun = begin  # type: ignore[method-assign]
            receiver.transport = end.transport
            with closing(engine):
                SocketTransport(poller, ours, None).attach(connection)
                client.send(REQUEST)
                await end.has(REQUEST)
                engine.send(STREAM_HEAD + event(1))
                await is_begun.wait()
                connection.abort()
            assert got == [REQUEST, b"HEAD;" + event(1)]

    play(scene)
