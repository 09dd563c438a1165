"""The look-up that every state machine off the hot path shares.

A machine is an enum of states, an enum of events and a table; the table is the only place with its
rules. ``scheduling/exchange.py`` has its own look-up, which costs less.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import TypeVar

from llama_gguf.errors import IllegalTransition

State = TypeVar("State", bound=enum.Enum)
Event = TypeVar("Event", bound=enum.Enum)


def after(transitions: Mapping[tuple[State, Event], State], state: State, event: Event) -> State:
    """The state that follows *state* on *event*.

    Raises:
        IllegalTransition: *event* cannot happen in *state*.
    """
    try:
        return transitions[state, event]
    except KeyError:
        raise IllegalTransition(f"{event.name} while {state.name}") from None
