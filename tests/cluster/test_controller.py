"""The controller, with a placement that only records, and reports that the test makes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llama_gguf.cluster.controller import FIRST_RETRY_SECONDS, MAX_RETRY_SECONDS, Controller
from llama_gguf.cluster.order import Identity, Order, Report
from llama_gguf.cluster.scaling import BUSY_SECONDS, Bounds
from llama_gguf.engines.roster import Demand
from llama_gguf.engines.status import ChildState

IDLE = 60.0
SAME = Identity("m", "abc", "1")
ORDER = Order(
    model="m",
    bounds=Bounds(0, 4),
    idle_seconds=IDLE,
    gpus=1.0,
    cpus=1.0,
    port=8002,
    drain_seconds=30.0,
    version="1",
)


class Place:
    """A cluster with machines 10.0.0.N for engine N."""

    def __init__(self, bounds: Bounds = ORDER.bounds, adopted: tuple[int, ...] = ()) -> None:
        self.done: list[str] = []
        self.revisions: list[int] = []
        self.now = 0.0
        self.controller = Controller(
            replace(ORDER, bounds=bounds),
            self,
            on_roster=lambda: self.revisions.append(self.controller.roster.revision),
            adopted=adopted,
            now=0.0,
        )

    def start(self, number: int) -> None:
        self.done.append(f"start {number}")

    def stop(self, number: int) -> None:
        self.done.append(f"stop {number}")

    def step(self, seconds: float = 0.5) -> list[str]:
        """What one step has done."""
        self.now += seconds
        self.controller.step(self.now)
        done, self.done = self.done, []
        return done

    def report(
        self,
        number: int,
        state: ChildState = ChildState.READY,
        *,
        identity: Identity | None = SAME,
        detail: str = "",
        address: str = "",
    ) -> None:
        report = Report(
            f"10.0.0.{number}",
            state,
            address or f"10.0.0.{number}:8080",
            detail,
            slots=2,
            model="m",
            identity=identity,
        )
        self.controller.on_report(number, report, self.now)

    def demand(self, queued: int = 0, *, revision: int | None = None, **running: int) -> None:
        """Of the only gateway, by the numbers of engines: ``e0=1``."""
        self.controller.on_gateway(
            "gateway",
            Demand(
                self.controller.roster.revision if revision is None else revision,
                queued,
                {f"10.0.0.{name[1:]}:8080": count for name, count in running.items()},
            ),
        )

    @property
    def addresses(self) -> list[str]:
        return [address.removesuffix(":8080") for address in self.controller.roster.addresses]

    @property
    def states(self) -> list[str]:
        return [each["state"] for each in self.controller.facts()["engines"]]


@pytest.fixture
def place() -> Place:
    place = Place()
    place.step()
    place.report(0)
    place.done.clear()
    return place


def test_one_engine_is_started_at_first_so_that_a_wrong_model_is_noticed() -> None:
    place = Place(Bounds(0, 8))

    assert (place.step(), place.states) == (["start 0"], ["starting"])


def test_an_engine_is_listed_once_it_is_ready() -> None:
    place = Place()
    place.step()
    place.report(0, ChildState.LOADING)
    before = place.addresses
    place.report(0)

    assert (before, place.addresses) == ([], ["10.0.0.0"])
    assert place.revisions == sorted(set(place.revisions))


def test_waiting_requests_start_as_many_engines_as_they_need(place: Place) -> None:
    place.demand(3, e0=2)
    first = place.step()
    later = place.step(BUSY_SECONDS)

    assert (first, later) == ([], ["start 1", "start 2"])


def test_the_requests_of_all_gateways_count(place: Place) -> None:
    place.demand(0, e0=2)
    place.controller.on_gateway("other", Demand(place.controller.roster.revision, 1))
    place.step()
    assert place.step(BUSY_SECONDS) == ["start 1"]
    place.controller.on_gateway_gone("other")

    assert place.controller.facts()["queued"] == 0


def test_a_gateway_that_sends_an_engine_fewer_requests_than_slots_needs_more_engines(
    place: Place,
) -> None:
    place.controller.on_gateway("gateway", Demand(2, 1, {"10.0.0.0:8080": 1}, at_once=1))
    place.step()

    assert place.step(BUSY_SECONDS) == ["start 1"]


def test_requests_at_engines_that_are_not_ours_do_not_count(place: Place) -> None:
    place.demand(0, e9=8)
    place.step()

    assert place.step(BUSY_SECONDS) == []


def test_without_need_the_last_engine_is_stopped_and_a_waiting_request_starts_it(
    place: Place,
) -> None:
    place.demand()
    place.step(IDLE)
    asleep = place.controller.roster
    place.demand()
    stopped = place.step()
    place.demand(1)

    assert (asleep.addresses, asleep.state, asleep.model) == ((), ChildState.ASLEEP, "m")
    assert (stopped, place.step()) == (["stop 0"], ["start 0"])


def test_an_engine_stays_until_each_gateway_knows_and_has_no_request_there() -> None:
    place = Place(Bounds(1, 2), adopted=(0, 1))
    place.report(0)
    place.report(1)
    place.demand()
    place.step(IDLE)
    assert (place.addresses, place.states) == (["10.0.0.0"], ["ready", "draining"])
    place.demand(revision=1)
    not_known = place.step()
    place.demand(e1=1)
    in_use = place.step()
    place.demand()

    assert (not_known, in_use, place.step()) == ([], [], ["stop 1"])


def test_an_engine_that_leaves_stays_if_it_is_needed_again(place: Place) -> None:
    place.demand(e0=1)
    place.step()
    place.now += IDLE
    place.demand(revision=1)
    place.step()
    assert place.states == ["draining"]
    place.demand(1, revision=1)

    assert (place.step(), place.addresses, place.states) == ([], ["10.0.0.0"], ["ready"])


def test_of_several_engines_those_that_do_not_serve_leave_first() -> None:
    place = Place(Bounds(1, 3), adopted=(0, 1, 2))
    place.report(1)
    place.report(2)
    place.step(IDLE)

    assert place.addresses == ["10.0.0.1"]


def test_an_engine_whose_machine_has_died_is_not_listed_until_it_runs_elsewhere(
    place: Place,
) -> None:
    place.controller.on_silent(0)
    silent = place.states, place.addresses
    place.controller.on_lost(0)
    lost = place.addresses, place.step(), place.controller.facts()["engines"][0]["detail"]
    place.report(0, ChildState.LOADING, address="10.0.0.7:8080")
    loading = place.addresses
    place.report(0, address="10.0.0.7:8080")

    assert silent == (["unreachable"], ["10.0.0.0"])
    assert lost == ([], [], "Waiting for a machine with 1 GPU free.")
    assert (loading, place.addresses) == ([], ["10.0.0.7"])


def test_one_that_runs_elsewhere_before_its_loss_was_known_is_another_one(place: Place) -> None:
    place.report(0, ChildState.LOADING, address="10.0.0.7:8080")

    assert place.addresses == []


def test_an_engine_that_is_given_up_is_tried_again_ever_later() -> None:
    place = Place(Bounds(1, 1))
    place.step()
    waits = []
    for _ in range(8):
        place.report(0, ChildState.FAILED, detail="It ran out of memory.")
        began = place.now
        assert place.step() == ["stop 0"]
        while not place.step():
            pass
        waits.append(place.now - began)

    assert waits[:3] == [FIRST_RETRY_SECONDS, 2 * FIRST_RETRY_SECONDS, 4 * FIRST_RETRY_SECONDS]
    assert waits[-1] == MAX_RETRY_SECONDS


def test_what_fails_is_shown_with_its_machine_and_gateways_see_why_nothing_serves() -> None:
    place = Place(Bounds(1, 1))
    place.step()
    place.report(0, ChildState.FAILED, detail="It ran out of memory.")
    roster = place.controller.roster

    assert place.controller.facts()["engines"][0]["detail"] == "10.0.0.0: It ran out of memory."
    assert (roster.state, roster.detail) == (
        ChildState.BACKOFF,
        "10.0.0.0: It ran out of memory.",
    )


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (replace(SAME, engine_version="2"), "its llama-server has version 2"),
        (replace(SAME, model="n"), "its model is n"),
        (replace(SAME, fingerprint="xyz"), "its file of m differs"),
    ],
)
def test_an_engine_that_differs_from_the_others_is_stopped_and_the_reason_is_shown(
    place: Place, other: Identity, reason: str
) -> None:
    place.demand(2, e0=2)
    place.step()
    place.step(BUSY_SECONDS)
    place.report(1, ChildState.LOADING, identity=other)

    assert (place.done, place.addresses) == (["stop 1"], ["10.0.0.0"])
    assert reason in place.controller.facts()["engines"][1]["detail"]


def test_an_engine_that_ray_cannot_start_has_failed(place: Place) -> None:
    place.controller.on_failed(0, "no Python", place.now)

    assert (place.states, place.done) == (["backoff"], ["stop 0"])


def test_adopted_engines_are_kept_and_listed_when_they_report() -> None:
    place = Place(Bounds(0, 4), adopted=(0, 2))
    place.report(2)

    assert (place.step(), place.addresses) == ([], ["10.0.0.2"])


def test_taking_down_lets_requests_finish_and_then_cuts_them(place: Place) -> None:
    place.demand(e0=1)
    place.controller.take_down(place.now)
    place.demand(e0=1)
    waits = place.step(29.0)

    assert (waits, place.addresses) == ([], [])
    assert place.step(1.0) == ["stop 0"]
    assert place.controller.roster.state is ChildState.UNREACHABLE


def test_taking_down_stops_at_once_what_no_gateway_uses(place: Place) -> None:
    place.controller.take_down(place.now)

    assert (place.step(), place.states, place.step()) == (["stop 0"], [], [])


def test_reports_of_engines_that_are_no_more_change_nothing(place: Place) -> None:
    place.report(3)
    place.controller.on_lost(3)
    place.controller.on_silent(3)
    place.controller.on_failed(3, "gone", place.now)

    assert (place.addresses, place.done) == (["10.0.0.0"], [])
