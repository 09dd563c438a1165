"""Streams of Responses that the gateway begins."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from llama_gguf.gateway.response_events import ResponseRelay, response_id, waiting_event
from llama_gguf.net.transport import LoopTransport
from tests.support.messages import LAST_CHUNK, chunk

CREATED = b'event: response.created\ndata: {"response":{"id":"resp_aB1","object":"response"}}\n\n'


class Client(asyncio.Protocol, asyncio.Transport):
    """A transport, and the protocol that it connects: no test class can extend a compiled one."""

    written = b""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += bytes(data)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None: ...


def new_relay(*, reads_chunks: bool) -> tuple[ResponseRelay, Client]:
    client = Client()
    endpoint: Any = client
    transport = LoopTransport(endpoint)
    transport.connection_made(client)
    return ResponseRelay(transport, "resp_own", reads_chunks=reads_chunks), client


@given(
    deltas=st.lists(st.text(), max_size=5),
    sizes=st.lists(st.integers(1, 40), min_size=1),
    has_name=st.booleans(),
)
def test_all_but_the_first_events_and_the_id_stays_as_it_is(
    deltas: list[str], sizes: list[int], has_name: bool
) -> None:
    events = [json.dumps({"delta": delta, "item_id": "msg_aB1"}).encode() for delta in deltas]
    events.append(b'{"response":{"id":"resp_aB1","status":"completed"}}')
    rest = b"".join(b"event: x\n" * has_name + b"data: %b\n\n" % event for event in events)
    stream = CREATED + CREATED.replace(b"created", b"in_progress") + rest
    relay, client = new_relay(reads_chunks=False)

    at = 0
    while at < len(stream):
        size = sizes[at % len(sizes)]
        relay.write(stream[at : at + size])
        at += size
    relay.finish()

    assert client.written == rest.replace(b'"resp_aB1"', b'"resp_own"')


def test_what_the_client_gets_before_has_the_same_id() -> None:
    event = waiting_event("created", request_id="req-1", model="m")

    name, data = event.decode().splitlines()[:2]
    assert name == "event: response.created"
    content = json.loads(data.removeprefix("data: "))
    assert content["type"] == "response.created"
    assert content["response"]["id"] == response_id("req-1")


def test_a_stream_without_an_id_passes_and_ends() -> None:
    relay, client = new_relay(reads_chunks=True)
    relay.write(b'data: {"n":1}\n\ndata: {"n"')
    relay.finish()

    assert client.written == chunk(b'data: {"n":1}\n\n') + chunk(b'data: {"n"') + LAST_CHUNK
