from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from llama_gguf.engines.status import ChildState, EngineStatus
from llama_gguf.gateway.engine_tracker import NEWS_SECONDS, EngineTracker
from tests.support.fakes import Clock, FakeLoop


class Place:
    def __init__(self) -> None:
        self.clock = Clock()
        self.loop = FakeLoop(self.clock)
        self.changes = 0
        self.tracker = EngineTracker(self.loop, 0.0, self._count)
        self.tracker.is_supervised = True

    def _count(self) -> None:
        self.changes += 1

    def is_in(self, state: ChildState) -> None:
        self.tracker.update(EngineStatus(state, since=0.0))


@pytest.fixture
def place() -> Iterator[Place]:
    place = Place()
    with closing(place.loop):
        yield place


def test_requests_may_be_sent_while_it_is_ready(place: Place) -> None:
    found = []
    for state in (ChildState.READY, ChildState.BACKOFF):
        place.is_in(state)
        found.append(place.tracker.is_ready)

    assert found == [True, False]
    assert place.changes == 2


def test_an_engine_that_refuses_gets_nothing_until_there_is_news(place: Place) -> None:
    place.is_in(ChildState.READY)

    place.tracker.on_connect_failed()
    assert not place.tracker.is_ready
    place.clock.now += NEWS_SECONDS
    place.loop.spin()

    assert place.tracker.is_ready


def test_without_a_supervisor_an_engine_that_refuses_waits_for_the_next_probe(place: Place) -> None:
    place.tracker.is_supervised = False
    place.is_in(ChildState.READY)

    place.tracker.on_connect_failed()

    assert place.tracker.status.state is ChildState.UNREACHABLE
    assert place.tracker.may_come
    assert not place.tracker.is_ready


def test_a_death_is_counted_once_and_sleep_or_a_stop_is_none(place: Place) -> None:
    for state in (
        *(ChildState.READY, ChildState.BACKOFF, ChildState.LOADING),
        *(ChildState.READY, ChildState.ASLEEP, ChildState.LOADING),
        *(ChildState.READY, ChildState.STOPPING),
    ):
        place.is_in(state)

    assert place.tracker.deaths == 1
