"""The states of a connection; what it does in each is in the files beside this one."""

from __future__ import annotations

import pytest

from llama_gguf.errors import IllegalTransition
from llama_gguf.gateway.client_connection import TRANSITIONS, State
from tests.support.fakes import Rig
from tests.support.messages import OK, chunk, event, request

GET = request("GET", "/v1/health")


def state_of(rig: Rig) -> State:
    return rig.clients[-1].connection._state


def test_every_state_has_its_row_and_can_be_reached() -> None:
    assert TRANSITIONS.keys() == set(State)
    reached = {State.OPENED}.union(*TRANSITIONS.values())
    assert reached == set(State)


def test_a_connection_that_is_being_closed_is_never_used_again() -> None:
    assert TRANSITIONS[State.LINGERING] == {State.LINGERING}


def test_what_is_not_in_the_table_is_a_bug(rig: Rig) -> None:
    connection = rig.client().connection

    with pytest.raises(IllegalTransition, match="OPENED to IDLE"):
        connection._to(State.IDLE)


def test_the_way_of_a_request_with_a_body_in_two_pieces(rig: Rig) -> None:
    client = rig.client()
    seen = [state_of(rig)]
    whole = request(body=b"{}")
    for piece in (whole[:10], whole[10:-1], whole[-1:]):
        client.send(piece)
        seen.append(state_of(rig))
    rig.upstream.send(OK)
    seen.append(state_of(rig))

    assert seen == [State.OPENED, State.OPENED, State.BODY, State.BUSY, State.IDLE]


def test_a_part_of_the_next_head_opens_it_again(rig: Rig) -> None:
    client = rig.send_request(GET)
    rig.upstream.send(OK)
    client.send(GET[:10])

    assert state_of(rig) is State.OPENED


def test_a_client_that_does_not_read_is_held(rig: Rig) -> None:
    client = rig.client()
    client.stall()
    client.send(GET)
    rig.upstream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 90000\r\n\r\n" + b"x" * 90_000)
    assert state_of(rig) is State.HELD

    client.resume_reading()

    assert state_of(rig) is State.IDLE


def test_a_refusal_that_ends_the_connection_lingers(rig: Rig) -> None:
    rig.client().send(b"nonsense\r\n\r\n")

    assert state_of(rig) is State.LINGERING


def test_a_response_that_breaks_off_lingers(rig: Rig) -> None:
    client = rig.send_request()
    rig.upstream.send(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", event(1), chunk(b"x")[:-1]
    )
    rig.upstream.reset()

    assert client.was_cut
    assert state_of(rig) is State.LINGERING
