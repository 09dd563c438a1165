"""The supervisor's own states, and each transition between them.

The states of its two processes are in ``restart_policy.py``.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final


class SupervisorState(enum.Enum):
    STARTING = "starting"  # no process has been started
    RUNNING = "running"  # gateway and llama-server are kept running
    FAILING = "failing"  # one of them was given up: the other one is being stopped
    STOPPING = "stopping"  # requested by a signal: the gateway drains, then llama-server is stopped
    HURRYING = "hurrying"  # requested again: running requests are cut
    STOPPED = "stopped"  # no process is left


class Event(enum.Enum):
    STARTED = enum.auto()
    STOP = enum.auto()  # SIGTERM or SIGINT
    GIVEN_UP = enum.auto()  # a process is not restarted any more
    ENDED = enum.auto()  # both processes have been reaped


S, E = SupervisorState, Event
TRANSITIONS: Final[Mapping[tuple[SupervisorState, Event], SupervisorState]] = {
    (S.STARTING, E.STARTED): S.RUNNING,
    (S.RUNNING, E.STOP): S.STOPPING,
    (S.RUNNING, E.GIVEN_UP): S.FAILING,
    (S.FAILING, E.STOP): S.STOPPING,
    (S.STOPPING, E.STOP): S.HURRYING,
    (S.HURRYING, E.STOP): S.HURRYING,
    (S.FAILING, E.ENDED): S.STOPPED,
    (S.STOPPING, E.ENDED): S.STOPPED,
    (S.HURRYING, E.ENDED): S.STOPPED,
    (S.STOPPED, E.STOP): S.STOPPED,  # the event loop had already received the signal
}

STOPPING: Final = frozenset({S.FAILING, S.STOPPING, S.HURRYING, S.STOPPED})
"""States in which no process is started."""
