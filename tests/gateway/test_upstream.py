"""One connection to the engine, with somebody else than a client asking.

What clients see of it is in ``test_client_answers`` and ``test_client_streams``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from llama_gguf.core.fields import ResponseFields
from llama_gguf.errors import UpstreamError
from llama_gguf.gateway.heads import ResponseHead
from llama_gguf.gateway.upstream import UpstreamConnection
from tests.fakes import LAST_CHUNK, OK, STREAM_HEAD, Clock, FakeLoop, FakeTransport, event

REQUEST = b"POST / HTTP/1.1\r\n\r\n"


class Asker:
    """Writes down what it is told."""

    def __init__(self, *, reads_chunks: bool = True) -> None:
        self.reads_chunks = reads_chunks
        self.told: list[str] = []
        self.got = b""
        self.status = 0

    def on_response(self, head: ResponseHead, read: ResponseFields) -> bytes:
        del read
        self.status = head.status
        return b"HEAD;"

    def send(self, data: bytes) -> None:
        self.got += data

    def on_response_done(self) -> None:
        self.told.append("done")

    def on_upstream_failed(self, error: UpstreamError, *, is_stale: bool) -> None:
        del error
        self.told.append("failed, stale" if is_stale else "failed")

    def on_cut(self, error: UpstreamError, *, may_insert: bool) -> None:
        del error
        self.told.append("cut between chunks" if may_insert else "cut")


class Keeper:
    def __init__(self) -> None:
        self.kept: list[UpstreamConnection] = []

    def give_back(self, connection: UpstreamConnection) -> None:
        self.kept.append(connection)


class Line:
    """A connection, its transport, and who is at its ends."""

    def __init__(self, loop: FakeLoop) -> None:
        self.loop = loop
        self.keeper = Keeper()
        self.connection = UpstreamConnection(self.keeper)
        self.transport = FakeTransport(loop, ("127.0.0.1", 8080))
        self.transport.attach(self.connection)

    def ask(self, *, to_head: bool = False, reads_chunks: bool = True) -> Asker:
        asker = Asker(reads_chunks=reads_chunks)
        self.connection.ask(asker, REQUEST, to_head=to_head)
        return asker

    def say(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.transport.receive(piece)
        self.loop.spin()

    def hang_up(self) -> None:
        self.transport.receive_eof()
        self.loop.spin()


@pytest.fixture
def line() -> Iterator[Line]:
    with closing(FakeLoop(Clock())) as loop:
        yield Line(loop)


def test_a_new_connection_is_usable_and_sends_what_it_is_given(line: Line) -> None:
    assert line.connection.is_usable
    line.ask()

    assert line.transport.written == REQUEST
    assert not line.connection.is_usable


def test_head_and_body_that_came_together_leave_together(line: Line) -> None:
    asker = line.ask()
    line.say(OK)

    assert asker.got == b'HEAD;{"ok":true}'
    assert asker.status == 200
    assert asker.told == ["done"]


def test_a_finished_connection_is_given_back_and_serves_again(line: Line) -> None:
    line.ask()
    line.say(OK)
    assert line.keeper.kept == [line.connection]
    assert line.connection.is_usable

    second = line.ask()
    line.say(OK)

    assert second.told == ["done"]
    assert line.connection.requests == 2


def test_it_is_given_back_before_its_asker_is_told(line: Line) -> None:
    asker = line.ask()
    asker.on_response_done = lambda: asker.told.append(  # type: ignore[method-assign]
        f"done, {len(line.keeper.kept)} kept"
    )
    line.say(OK)

    assert asker.told == ["done, 1 kept"]


def test_a_stream_s_connection_is_closed_and_not_given_back(line: Line) -> None:
    asker = line.ask()
    line.say(STREAM_HEAD, event(1), event(2) + LAST_CHUNK)

    assert asker.got == b"HEAD;" + event(1) + event(2) + LAST_CHUNK
    assert asker.told == ["done"]
    assert line.keeper.kept == []
    assert line.transport.is_closed
    assert not line.connection.is_usable


def test_who_reads_no_chunks_gets_what_is_in_them(line: Line) -> None:
    asker = line.ask(reads_chunks=False)
    line.say(STREAM_HEAD + event(1)[:3], event(1)[3:], event(2), LAST_CHUNK)

    assert asker.got == b'HEAD;data: {"n":1}\n\ndata: {"n":2}\n\n'
    assert asker.told == ["done"]


def test_head_is_answered_without_a_body(line: Line) -> None:
    asker = line.ask(to_head=True)
    line.say(OK.partition(b"{")[0])

    assert asker.told == ["done"]
    assert line.connection.is_usable


def test_a_first_request_that_fails_is_not_stale(line: Line) -> None:
    asker = line.ask()
    line.hang_up()

    assert asker.told == ["failed"]


def test_a_later_request_that_fails_without_a_byte_is_stale(line: Line) -> None:
    line.ask()
    line.say(OK)
    asker = line.ask()
    line.hang_up()

    assert asker.told == ["failed, stale"]


def test_a_later_request_that_fails_behind_a_byte_is_not_stale(line: Line) -> None:
    line.ask()
    line.say(OK)
    asker = line.ask()
    line.say(b"H")
    line.hang_up()

    assert asker.told == ["failed"]


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (STREAM_HEAD, "cut between chunks"),
        (STREAM_HEAD + event(1), "cut between chunks"),
        (STREAM_HEAD + event(1)[:-1], "cut"),
        (STREAM_HEAD + b"5", "cut"),
        (STREAM_HEAD + b"0\r\n", "cut"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc", "cut"),
    ],
)
def test_an_answer_that_breaks_off_is_told_as_cut(said: bytes, told: str, line: Line) -> None:
    asker = line.ask()
    line.say(said)
    line.hang_up()

    assert asker.told == [told]


def test_after_an_abort_nobody_is_told_anything(line: Line) -> None:
    asker = line.ask()
    line.say(STREAM_HEAD, event(1))
    line.connection.abort()
    line.say(event(2))

    assert line.transport.aborted
    assert asker.told == []
    assert asker.got == b"HEAD;" + event(1)


def test_bytes_on_an_idle_connection_close_it(line: Line) -> None:
    line.say(OK)

    assert line.transport.is_closed
    assert not line.connection.is_usable


def test_an_idle_connection_that_the_engine_closes_is_not_usable(line: Line) -> None:
    line.hang_up()

    assert not line.connection.is_usable


def test_pausing_a_connection_that_is_gone_does_no_harm(line: Line) -> None:
    line.ask()
    line.connection.abort()
    line.connection.pause_reading()
    line.connection.resume_reading()

    assert line.transport.pauses == 0


def test_a_pause_outlasts_no_exchange(line: Line) -> None:
    line.ask()
    line.connection.pause_reading()
    assert not line.transport.is_reading()
    line.connection.resume_reading()
    line.connection.pause_reading()
    line.connection.data_received(OK)  # was on its way already

    assert line.transport.is_reading()
