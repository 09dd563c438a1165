from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from llama_gguf.config.settings import Settings
from llama_gguf.errors import UpstreamError
from llama_gguf.gateway.pool import (
    IDLE_SECONDS,
    MAX_KEPT,
    PROOF_SECONDS,
    REST_SECONDS,
    ConnectAttempt,
    ConnectionPool,
)
from llama_gguf.gateway.upstream_connection import Phase, UpstreamConnection
from tests.support.fakes import Clock, Dial, FakeDialer, FakeLoop, FakeTransport, NewRig, Rig
from tests.support.messages import OK, request


class Place:
    """A pool, and the results of its dials."""

    def __init__(self, **settings: object) -> None:
        self.clock = Clock()
        self.loop = FakeLoop(self.clock)
        dialer = FakeDialer(self.loop, self._on_dial)
        chosen = Settings.of(**settings)
        self.pool = ConnectionPool(chosen.timeouts, self.loop, dialer.dial)
        self.dials: list[Dial] = []
        self.accepts = True
        self.connected: list[UpstreamConnection] = []
        self.failed: list[UpstreamError] = []

    def on_connected(self, upstream: UpstreamConnection) -> None:
        self.connected.append(upstream)

    def on_connect_failed(self, error: UpstreamError) -> None:
        self.failed.append(error)

    def _on_dial(self, dial: Dial) -> None:
        self.dials.append(dial)
        if self.accepts:
            dial.accept_at_once()

    def connect(self) -> ConnectAttempt | None:
        dialling = self.pool.connect(self)
        self.loop.spin()
        return dialling

    def idle(self) -> UpstreamConnection:
        """A connection that has been given back just now."""
        self.connect()
        self.pool.give_back(self.connected[-1])
        return self.connected[-1]

    def after_stream(self) -> UpstreamConnection:
        """A connection on which a stream has ended just now."""
        self.connect()
        self.pool.give_back_after_stream(self.connected[-1])
        return self.connected[-1]

    def close(self) -> None:
        for connection in self.connected:
            connection.abort()
        self.loop.spin()
        self.loop.close()


def is_closed(connection: UpstreamConnection) -> bool:
    assert connection.transport.is_closing() == (connection.phase is Phase.CLOSED)
    return connection.transport.is_closing()


@pytest.fixture
def place() -> Iterator[Place]:
    with closing(Place()) as place:
        yield place


def test_an_empty_pool_has_nothing_to_give(place: Place) -> None:
    assert place.pool.take() is None


def test_a_connection_that_takes_no_time_leaves_nothing_to_wait_for(place: Place) -> None:
    assert place.connect() is None
    assert place.connected[0].phase is Phase.IDLE


def test_a_refused_connection_is_an_error_of_the_engine(place: Place) -> None:
    place.accepts = False
    place.connect()
    place.dials[0].refuse()
    place.loop.spin()

    assert [e.status for e in place.failed] == [502]
    assert place.connected == []


def test_a_connection_that_takes_too_long_is_an_error_of_the_engine() -> None:
    with closing(Place(backend_connect_timeout=3.0)) as place:
        place.accepts = False
        place.connect()
        place.clock.now += 2.9
        place.pool.cut_overdue()
        place.loop.spin()
        assert place.failed == []

        place.clock.now += 0.2
        place.pool.cut_overdue()
        place.loop.spin()

        assert place.dials[0].was_cancelled
        assert [e.status for e in place.failed] == [502]


def test_a_cancelled_attempt_does_not_call_the_waiter(place: Place) -> None:
    place.accepts = False
    dialling = place.connect()
    assert dialling is not None
    dialling.cancel()
    place.loop.spin()

    assert place.dials[0].was_cancelled
    assert (place.connected, place.failed) == ([], [])


def test_a_connection_that_was_made_in_time_does_not_fail_later(place: Place) -> None:
    place.accepts = False
    place.connect()
    place.dials[0].accept()
    place.loop.spin()
    place.clock.now += 3600
    place.pool.cut_overdue()
    place.loop.spin()

    assert len(place.connected) == 1
    assert place.failed == []


def test_what_was_given_back_is_taken_again_once(place: Place) -> None:
    connection = place.idle()

    assert place.pool.take() is connection
    assert place.pool.take() is None


def test_the_youngest_is_taken_first(place: Place) -> None:
    old, young = place.idle(), place.idle()

    assert place.pool.take() is young
    assert place.pool.take() is old


def test_a_dead_connection_is_never_given(place: Place) -> None:
    alive, dead = place.idle(), place.idle()
    dead.abort()

    assert place.pool.take() is alive


def test_a_connection_that_the_engine_is_closing_is_never_given(place: Place) -> None:
    alive, closing = place.idle(), place.idle()
    closing.transport.close()  # the loop has not called connection_lost yet

    assert closing.phase is Phase.IDLE
    assert place.pool.take() is alive


def test_a_connection_with_bytes_before_a_request_is_never_given(place: Place) -> None:
    alive, dubious = place.idle(), place.idle()
    dubious.data_received(OK)

    assert place.pool.take() is alive
    assert is_closed(dubious)


def test_idle_connections_are_retired_before_the_engine_closes_them(place: Place) -> None:
    assert IDLE_SECONDS + 0.5 < 5, "llama-server's own limit, and a tick"
    old = place.idle()
    place.clock.now += IDLE_SECONDS - 1
    place.pool.on_tick()
    young = place.idle()
    place.clock.now += 1
    place.pool.on_tick()

    assert is_closed(old)
    assert not is_closed(young)
    assert place.pool.take() is young
    assert place.pool.take() is None


# After a stream -----------------------------------------------------------------------------------


def pass_time(place: Place, seconds: float) -> None:
    place.clock.now += seconds
    place.pool.on_tick()


def prove(place: Place) -> UpstreamConnection:
    """Let the engine keep a connection after a stream; it is in use afterwards."""
    connection = place.after_stream()
    pass_time(place, PROOF_SECONDS)
    assert place.pool.take() is connection
    return connection


def test_a_connection_that_outlives_a_stream_is_reused_after_half_a_second(place: Place) -> None:
    connection = place.after_stream()
    assert place.pool.take() is None
    pass_time(place, PROOF_SECONDS - 0.01)
    assert place.pool.take() is None
    pass_time(place, 0.01)

    assert place.pool.take() is connection


def test_until_then_the_others_are_closed_after_a_stream(place: Place) -> None:
    observed = place.after_stream()

    assert [is_closed(place.after_stream()) for _ in range(3)] == [True] * 3
    assert not is_closed(observed)


def test_an_engine_that_keeps_connections_gets_the_next_stream_after_milliseconds(
    place: Place,
) -> None:
    prove(place)
    first, second = place.after_stream(), place.after_stream()
    assert place.pool.take() is None
    place.clock.now += REST_SECONDS

    assert place.pool.take() is first
    assert place.pool.take() is second


def test_an_engine_that_closes_after_a_stream_is_not_waited_for_again(place: Place) -> None:
    place.after_stream().connection_lost(None)
    pass_time(place, PROOF_SECONDS)
    assert place.pool.take() is None

    assert is_closed(place.after_stream())

    place.pool.retire_idle()  # as when the engine ends; another one may be different
    assert not is_closed(place.after_stream())


def test_an_engine_that_no_longer_keeps_connections_gets_no_other_request_on_one(
    place: Place,
) -> None:
    prove(place)
    lost, other = place.after_stream(), place.after_stream()
    lost.connection_lost(None)
    place.clock.now += REST_SECONDS

    assert place.pool.take() is None
    assert is_closed(other)
    assert is_closed(place.after_stream())


def test_a_connection_that_outlived_a_stream_is_retired_as_any_other(place: Place) -> None:
    connection = place.after_stream()
    for _ in range(int((IDLE_SECONDS + PROOF_SECONDS) * 2)):
        assert not is_closed(connection)
        pass_time(place, 0.5)

    assert is_closed(connection)


def test_streams_without_a_pause_need_few_connections_more_than_there_are_at_once(
    place: Place,
) -> None:
    prove(place)
    for _ in range(10_000):  # one at a time, of 1 ms
        upstream = place.pool.take()
        if upstream is None:
            place.connect()
            upstream = place.connected[-1]
        place.clock.now += 0.001
        place.pool.give_back_after_stream(upstream)

    assert len(place.connected) < 10


def test_all_can_be_retired_at_once(place: Place) -> None:
    connections = [place.after_stream(), *(place.idle() for _ in range(3))]
    place.pool.retire_idle()

    assert all(map(is_closed, connections))
    assert place.pool.take() is None


@pytest.mark.parametrize("is_after_stream", [False, True])
def test_the_number_of_kept_connections_is_bounded(place: Place, is_after_stream: bool) -> None:
    prove(place)
    place.connected.clear()
    for _ in range(MAX_KEPT + 1):
        place.connect()
    pool = place.pool
    for connection in place.connected:
        (pool.give_back_after_stream if is_after_stream else pool.give_back)(connection)

    assert list(map(is_closed, place.connected)) == [False] * MAX_KEPT + [True]


def test_a_connection_is_closed_after_a_response_with_connection_close_such_as_the_hundredth(
    rig: Rig,
) -> None:
    rig.respond_with(OK.replace(b"\r\n", b"\r\nKeep-Alive: timeout=5, max=100\r\n", 1))
    for _ in range(99):
        rig.send_request(request("GET", "/v1/health"))
    rig.respond_with(OK.replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
    rig.send_request(request("GET", "/v1/health"))
    assert len(rig.upstreams) == 1

    rig.send_request(request("GET", "/v1/health"))

    assert len(rig.upstreams) == 2
    assert rig.upstreams[0].is_closed


def test_no_more_connections_are_kept_than_were_used_at_once(new_rig: NewRig) -> None:
    rig = new_rig(slots=2)
    rig.respond_with(OK)
    for _ in range(10):
        rig.send_request()

    assert len(rig.upstreams) == 1


def test_idle_connections_are_closed_by_the_gateway_s_ticks(rig: Rig) -> None:
    rig.respond_with(OK)
    rig.send_request()
    rig.advance(4)

    assert rig.upstream.is_closed
    assert isinstance(rig.upstream.transport, FakeTransport)


def test_its_repr_is_its_health_report(place: Place) -> None:
    place.idle()
    place.accepts = False
    place.pool.connect(place)

    assert repr(place.pool) == "<ConnectionPool idle=1 connecting=1 abandoned=0>"
    place.loop.spin()
    place.dials[-1].refuse()
    place.loop.spin()
    assert repr(place.pool) == "<ConnectionPool idle=1 connecting=0 abandoned=0>"
