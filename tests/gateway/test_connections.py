from __future__ import annotations

from tests.support.fakes import Rig
from tests.support.messages import OK, request


def test_draining_closes_what_is_silent_and_waits_for_the_rest(rig: Rig) -> None:
    silent = rig.send_request(request("GET", "/ping"))
    busy = rig.send_request()
    connections = rig.services.connections

    connections.drain()
    rig.spin()
    assert silent.is_closed
    assert not busy.is_closed
    assert (connections.busy(), connections.idle.is_set()) == (1, False)
    rig.upstream.send(OK)

    assert connections.idle.is_set()


def test_a_connection_may_close_while_others_are_looked_at(rig: Rig) -> None:
    for _ in range(3):
        rig.client()

    for connection in rig.services.connections:
        connection.abort()
        rig.spin()

    assert len(rig.services.connections) == 0
