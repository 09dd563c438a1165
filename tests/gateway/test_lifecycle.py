from __future__ import annotations

import pytest

from llama_gguf.errors import IllegalTransition
from llama_gguf.gateway.lifecycle import TRANSITIONS, Event, Lifecycle, State


def test_a_gateway_goes_through_its_states_in_one_order() -> None:
    life = Lifecycle()
    seen = [life.state]
    for event in (Event.LISTENS, Event.STOP, Event.DRAINED):
        life.on(event)
        seen.append(life.state)

    assert seen == list(State)


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("event", Event)
def test_what_is_not_in_the_table_is_a_bug(state: State, event: Event) -> None:
    life = Lifecycle()
    life.state = state
    if (state, event) in TRANSITIONS:
        life.on(event)
    else:
        with pytest.raises(IllegalTransition, match=f"{event.name} while {state.name}"):
            life.on(event)
