from __future__ import annotations

import enum

import pytest

from llama_gguf.errors import IllegalTransition
from llama_gguf.transitions import after


class Door(enum.Enum):
    OPEN = "open"
    CLOSED = "closed"


class Push(enum.Enum):
    CLOSE = enum.auto()


TABLE = {(Door.OPEN, Push.CLOSE): Door.CLOSED}


def test_an_event_leads_to_the_state_in_the_table() -> None:
    assert after(TABLE, Door.OPEN, Push.CLOSE) is Door.CLOSED


def test_an_event_that_cannot_happen_is_an_error_that_names_it() -> None:
    with pytest.raises(IllegalTransition, match=r"^CLOSE while CLOSED$") as raised:
        after(TABLE, Door.CLOSED, Push.CLOSE)

    assert raised.value.__suppress_context__
