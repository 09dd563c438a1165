from __future__ import annotations

from collections.abc import Mapping

from llama_gguf.gateway.dashboard import take_reading
from llama_gguf.telemetry.timeseries import STEP_SECONDS
from llama_gguf.values import replace
from tests.support.fakes import Rig


def look(rig: Rig) -> list[tuple[str, str]]:
    """Take a reading, and return all events."""
    rig.clock.now += STEP_SECONDS
    take_reading(rig.services, rig.clock.now)
    return [(event["kind"], event["text"]) for event in rig.services.history.events()]


def restart(rig: Rig, restarts: Mapping[str, int], last_exit: str) -> None:
    status = rig.replica.tracker.status
    rig.replica.tracker.update(replace(status, restarts=restarts, last_exit=last_exit))
    rig.spin()


START = ("start", "The gateway started")


def test_the_start_is_noted_once(rig: Rig) -> None:
    assert [look(rig), look(rig)] == [[START], [START]]


def test_each_crash_is_noted_even_if_it_is_the_same_one(rig: Rig) -> None:
    look(rig)
    restart(rig, {"crash": 1}, "signal 9: killed")
    look(rig)
    restart(rig, {"crash": 2}, "signal 9: killed")
    look(rig)

    assert look(rig) == [START, *[("crash", "signal 9: killed")] * 2]


def test_a_restart_without_a_death_is_noted_with_its_reason(rig: Rig) -> None:
    look(rig)
    restart(rig, {"requested": 1}, "")

    assert look(rig) == [START, ("restart", "llama-server restarts: requested")]


def test_a_reload_is_noted_with_its_result(rig: Rig) -> None:
    look(rig)
    rig.services.metrics.count_reload(True)
    look(rig)
    rig.services.metrics.count_reload(False)

    assert look(rig) == [
        START,
        ("reload", "The keys were reloaded"),
        ("reload", "The keys could not be reloaded"),
    ]
