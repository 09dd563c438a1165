"""The replacement of one engine by another one, in a rolling restart: its states, as a table.

With room for both, the new engine is loaded beside the old one, and the old one drains once the new
one serves. Without, the old one drains and stops first; if the new one then does not come up, the
old one is started again.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final


class Replacement(enum.Enum):
    PLANNED = "planned"  # nothing has been changed
    LOADING_BESIDE = "loading_beside"  # the new engine loads, and the old one serves
    HANDING_OVER = "handing_over"  # the new engine serves, and the old one drains
    DRAINING = "draining"  # there is no room for both: the old engine drains
    LOADING = "loading"  # the old engine has been stopped, and the new one loads
    RESTORING = "restoring"  # the new engine did not come up: the old one is started again
    REPLACED = "replaced"
    KEPT = "kept"  # the old engine serves, or is being restarted as after any death
    LOST = "lost"  # neither of the two came up


class Event(enum.Enum):
    ROOM = enum.auto()  # memory allows both
    NO_ROOM = enum.auto()  # it does not, it is unknown, or the old engine does not run
    SERVES = enum.auto()  # the engine that loads is ready
    FAILED = enum.auto()  # the engine that loads has been given up
    DRAINED = enum.auto()  # the old engine has no request, or no time left, and was stopped


R, E = Replacement, Event
TRANSITIONS: Final[Mapping[tuple[Replacement, Event], Replacement]] = {
    (R.PLANNED, E.ROOM): R.LOADING_BESIDE,
    (R.PLANNED, E.NO_ROOM): R.DRAINING,
    (R.LOADING_BESIDE, E.SERVES): R.HANDING_OVER,
    (R.LOADING_BESIDE, E.FAILED): R.KEPT,
    (R.HANDING_OVER, E.DRAINED): R.REPLACED,
    (R.DRAINING, E.DRAINED): R.LOADING,
    (R.LOADING, E.SERVES): R.REPLACED,
    (R.LOADING, E.FAILED): R.RESTORING,
    (R.RESTORING, E.SERVES): R.KEPT,
    (R.RESTORING, E.FAILED): R.LOST,
}
