from __future__ import annotations

from llama_gguf.engines.status import ChildState
from tests.support.fakes import NewRig, Rig
from tests.support.messages import code_of


def test_slots_come_and_go_with_the_engine(rig: Rig) -> None:
    assert rig.fleet.admission.slots == 4
    rig.engine(ChildState.BACKOFF)
    assert rig.fleet.admission.slots == 0

    rig.engine(ChildState.READY, slots=8)
    assert rig.fleet.admission.slots == 8


def test_a_setting_can_limit_what_runs_at_once(new_rig: NewRig) -> None:
    rig = new_rig(slots=4, max_concurrent_requests=2)

    assert rig.fleet.admission.slots == 2


def test_it_is_busy_while_a_request_uses_a_slot(rig: Rig) -> None:
    found = [rig.fleet.is_busy]
    rig.send_request()
    found.append(rig.fleet.is_busy)
    rig.engine(ChildState.BACKOFF)
    found.append(rig.fleet.is_busy)

    assert found == [False, True, False]


def test_all_that_wait_learn_that_no_engine_will_come(new_rig: NewRig) -> None:
    rig = new_rig(state=ChildState.LOADING)
    clients = [rig.send_request() for _ in range(3)]
    rig.engine(ChildState.FAILED)

    assert [code_of(client.response) for client in clients] == ["backend_unavailable"] * 3
    assert rig.is_at_rest
