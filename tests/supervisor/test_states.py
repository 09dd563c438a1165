from __future__ import annotations

import pytest

from llama_gguf.errors import IllegalTransition
from llama_gguf.supervisor import states
from llama_gguf.supervisor.states import Event as E
from llama_gguf.supervisor.states import SupervisorState as S
from llama_gguf.transitions import after as follow


def after(*events: E) -> S:
    state = S.STARTING
    for event in events:
        state = follow(states.TRANSITIONS, state, event)
    return state


@pytest.mark.parametrize(
    ("history", "end"),
    [
        ([E.STARTED], S.RUNNING),
        ([E.STARTED, E.STOP], S.STOPPING),
        ([E.STARTED, E.STOP, E.STOP, E.STOP], S.HURRYING),
        ([E.STARTED, E.STOP, E.ENDED], S.STOPPED),
        ([E.STARTED, E.STOP, E.STOP, E.ENDED], S.STOPPED),
        ([E.STARTED, E.GIVEN_UP, E.ENDED], S.STOPPED),
    ],
    ids=str,
)
def test_a_history_ends_in_its_state(history: list[E], end: S) -> None:
    assert after(*history) is end


def test_the_first_signal_after_a_failure_does_not_cut_requests_yet() -> None:
    assert after(E.STARTED, E.GIVEN_UP, E.STOP) is S.STOPPING


def test_a_signal_that_arrives_after_the_end_is_no_bug() -> None:
    assert after(E.STARTED, E.STOP, E.ENDED, E.STOP) is S.STOPPED


def test_every_other_transition_raises() -> None:
    for state in S:
        for event in set(E) - {event for of, event in states.TRANSITIONS if of is state}:
            with pytest.raises(IllegalTransition, match=f"{event.name} while {state.name}"):
                follow(states.TRANSITIONS, state, event)


def test_a_supervisor_that_is_stopping_never_runs_again() -> None:
    for (state, _), then in states.TRANSITIONS.items():
        assert state not in states.STOPPING or then in states.STOPPING
