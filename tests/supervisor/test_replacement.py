"""The states of a replacement."""

from __future__ import annotations

import pytest

from llama_gguf.errors import IllegalTransition
from llama_gguf.supervisor.replacement import TRANSITIONS, Event, Replacement
from llama_gguf.transitions import after

R, E = Replacement, Event
ENDS = (R.REPLACED, R.KEPT, R.LOST)


@pytest.mark.parametrize(
    ("events", "end"),
    [
        ([E.ROOM, E.SERVES, E.DRAINED], R.REPLACED),
        ([E.ROOM, E.FAILED], R.KEPT),
        ([E.NO_ROOM, E.DRAINED, E.SERVES], R.REPLACED),
        ([E.NO_ROOM, E.DRAINED, E.FAILED, E.SERVES], R.KEPT),
        ([E.NO_ROOM, E.DRAINED, E.FAILED, E.FAILED], R.LOST),
    ],
)
def test_every_replacement_ends_in_one_of_three_states(
    events: list[Event], end: Replacement
) -> None:
    state = R.PLANNED
    for event in events:
        assert state not in ENDS
        state = after(TRANSITIONS, state, event)

    assert state is end


def test_an_old_engine_that_serves_is_never_stopped_before_the_new_one_if_both_fit() -> None:
    with pytest.raises(IllegalTransition):
        after(TRANSITIONS, R.LOADING_BESIDE, E.DRAINED)


@pytest.mark.parametrize("state", ENDS)
@pytest.mark.parametrize("event", Event)
def test_an_end_is_final(state: Replacement, event: Event) -> None:
    with pytest.raises(IllegalTransition):
        after(TRANSITIONS, state, event)
