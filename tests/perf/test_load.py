"""What `make bench` measures with: its backend and its clients, without a gateway in between."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine

from perf import backend, load
from perf.load import Answers

Asking = Callable[[int], Coroutine[None, None, Answers]]


def answers(
    asking: Asking, backend_kind: Callable[[], asyncio.Protocol] = backend.Backend
) -> Answers:
    async def scenario() -> Answers:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(backend_kind, "127.0.0.1", 0)
        async with server:
            return await asking(server.sockets[0].getsockname()[1])

    return asyncio.run(scenario())


class LeavesAtTheSecond(backend.Backend):
    """Answers one request of a connection."""

    has_answered = False

    def on_message_complete(self) -> None:
        if self.has_answered:
            self._transport.close()
        else:
            self.has_answered = True
            super().on_message_complete()


class Babbler(asyncio.Protocol):
    """Answers everything with the same bytes, and closes."""

    said = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(self.said)
        self.transport.close()


def babbler(said: bytes) -> type[Babbler]:
    return type("Babbler", (Babbler,), {"said": said})


def once(port: int) -> Coroutine[None, None, Answers]:
    return load.requests(port, backend.KEY, seconds=0)


def three_streams(port: int) -> Coroutine[None, None, Answers]:
    return load.streams(port, backend.KEY, count=3, events=5, tick_ms=0)


def test_every_connection_gets_an_answer_and_none_is_wrong() -> None:
    got = answers(once)

    assert got.whole == load.CONNECTIONS
    assert not got.wrong


def test_a_connection_asks_again_when_it_is_answered() -> None:
    got = answers(lambda port: load.requests(port, backend.KEY, seconds=30), LeavesAtTheSecond)

    assert got.whole == load.CONNECTIONS
    assert got.wrong == Counter({"the connection was lost: closed": load.CONNECTIONS})


def test_question_and_answer_have_the_sizes_that_are_told() -> None:
    assert 550 < len(load.QUESTION) < 650
    assert 650 < len(backend.ANSWER) < 750


def test_streams_are_whole_and_every_event_tells_how_long_it_was_on_its_way() -> None:
    got = answers(three_streams)

    assert got.whole == 3
    assert not got.wrong
    assert len(got.latencies_ns) == 3 * 5
    assert list(got.latencies_ns) == sorted(got.latencies_ns)
    assert got.latencies_ns[0] > 0


def test_streams_tell_once_when_all_are_under_way() -> None:
    told: list[str] = []

    answers(
        lambda port: load.streams(
            port,
            backend.KEY,
            count=3,
            events=3,
            tick_ms=0,
            on_settled=lambda: told.append("settled"),
        )
    )

    assert told == ["settled"]


def test_credentials_that_were_not_replaced_are_refused_and_counted() -> None:
    got = answers(lambda port: load.requests(port, "the-client-s-own", seconds=0))

    assert got.whole == 0
    assert got.wrong == Counter({"status 401": load.CONNECTIONS})


def test_another_answer_than_the_backends_is_wrong() -> None:
    kind = babbler(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    assert answers(once, kind).wrong == Counter(
        {"a response that is not the backend's": load.CONNECTIONS}
    )


def test_a_stream_that_breaks_off_is_wrong() -> None:
    kind = babbler(
        b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n12\r\ndata: {"born":1}\n\n\r\n'
    )

    assert answers(three_streams, kind).wrong == Counter({"the connection was lost: closed": 3})


def test_a_stream_that_ends_before_its_last_event_is_wrong() -> None:
    kind = babbler(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        b'12\r\ndata: {"born":1}\n\n\r\n0\r\n\r\n'
    )

    assert answers(three_streams, kind).wrong == Counter({"a stream with events missing": 3})
