"""The backend and the clients of `make bench`, without a gateway between them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine

from perf import backend, load
from perf.load import Answers

Asking = Callable[[int], Coroutine[None, None, Answers]]


def responses(
    asking: Asking, backend_kind: Callable[[], asyncio.Protocol] = backend.Backend
) -> Answers:
    async def scenario() -> Answers:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(backend_kind, "127.0.0.1", 0)
        async with server:
            return await asking(server.sockets[0].getsockname()[1])

    return asyncio.run(scenario())


class LeavesAtTheSecond(backend.Backend):
    """Responds to one request per connection."""

    has_answered = False

    def on_message_complete(self) -> None:
        if self.has_answered:
            self._transport.close()
        else:
            self.has_answered = True
            super().on_message_complete()


class Babbler(asyncio.Protocol):
    """Responds to everything with the same bytes, and closes."""

    reply = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(self.reply)
        self.transport.close()


def babbler(reply: bytes) -> type[Babbler]:
    return type("Babbler", (Babbler,), {"reply": reply})


def once(port: int) -> Coroutine[None, None, Answers]:
    return load.requests(port, backend.KEY, seconds=0)


def three_streams(port: int) -> Coroutine[None, None, Answers]:
    return load.streams(port, backend.KEY, count=3, events=5, tick_ms=0)


def test_every_connection_gets_a_correct_response() -> None:
    got = responses(once)

    assert got.whole == load.CONNECTIONS
    assert not got.wrong


def test_a_connection_sends_the_next_request_after_a_response() -> None:
    got = responses(lambda port: load.requests(port, backend.KEY, seconds=30), LeavesAtTheSecond)

    assert got.whole == load.CONNECTIONS
    assert got.wrong == Counter({"the connection was lost: closed": load.CONNECTIONS})


def test_request_and_response_have_the_stated_sizes() -> None:
    assert 550 < len(load.QUESTION) < 650
    assert 650 < len(backend.ANSWER) < 750


def test_streams_are_complete_and_every_event_has_a_latency() -> None:
    got = responses(three_streams)

    assert got.whole == 3
    assert not got.wrong
    assert len(got.latencies_ns) == 3 * 5
    assert list(got.latencies_ns) == sorted(got.latencies_ns)
    assert got.latencies_ns[0] > 0


def test_the_start_of_all_streams_is_reported_once() -> None:
    reported: list[str] = []

    responses(
        lambda port: load.streams(
            port,
            backend.KEY,
            count=3,
            events=3,
            tick_ms=0,
            on_settled=lambda: reported.append("settled"),
        )
    )

    assert reported == ["settled"]


def test_credentials_that_were_not_replaced_are_rejected_and_counted() -> None:
    got = responses(lambda port: load.requests(port, "the-client-s-own", seconds=0))

    assert got.whole == 0
    assert got.wrong == Counter({"status 401": load.CONNECTIONS})


def test_a_response_that_differs_from_the_backends_is_wrong() -> None:
    kind = babbler(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    assert responses(once, kind).wrong == Counter(
        {"a response that is not the backend's": load.CONNECTIONS}
    )


def test_a_truncated_stream_is_wrong() -> None:
    kind = babbler(
        b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n12\r\ndata: {"born":1}\n\n\r\n'
    )

    assert responses(three_streams, kind).wrong == Counter({"the connection was lost: closed": 3})


def test_a_stream_that_ends_before_its_last_event_is_wrong() -> None:
    kind = babbler(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        b'12\r\ndata: {"born":1}\n\n\r\n0\r\n\r\n'
    )

    assert responses(three_streams, kind).wrong == Counter({"a stream with events missing": 3})
