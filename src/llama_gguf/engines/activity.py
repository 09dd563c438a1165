"""Reported by the gateway to the supervisor: the requests that need the engine.

The other direction of the channel is ``EngineStatus``. Both are a line of JSON with a state,
not with a change, so that a line that is lost or late does no harm.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final

from llama_gguf.values import Value

GREETING: Final = b"\n"
"""The first line: connections are accepted now."""
FACTS: Final = b"facts "
"""The start of a line with the facts of the gateway, as JSON, for a person who operates it."""
OWNERS: Final = b"owners "
"""The start of a line with the owners of the requests that were sent to each engine since the last
such line, as JSON: lists of names, by ``EngineStatus.address``."""
FACTS_REQUEST: Final = b"facts?\n"
"""Requests such a line; the only line to the gateway that is no ``EngineStatus``."""


class ReplicaActivity(Value):
    """One replica at one moment, as the gateway sees it; as in ``Activity``."""

    acknowledged_revision: int = 0
    running: int = 0
    responses: int = 0
    data_ticks: int = 0


class Activity(Value):
    """A gateway at one moment. The two counters start at 0 with the gateway and only rise.

    With several replicas, all but the revision are of all of them together.
    """

    acknowledged_revision: int = 0
    """The revision of the last ``EngineStatus`` that it has received."""
    busy: int = 0
    """Requests that are being read, queued or processed."""
    running: int = 0
    """Of these, the requests that hold a slot of the engine."""
    responses: int = 0
    """Counter: requests that the engine has responded to."""
    data_ticks: int = 0
    """Counter: checks at which the engine had sent something since the last one."""
    engine_requested: bool = False
    """A request waits, and no replica that is awake has a free slot for it."""
    replicas: Mapping[str, ReplicaActivity] = {}
    """By ``EngineStatus.address``."""

    def of(self, address: str) -> Activity:
        """What concerns the replica at *address*, with its own requests as ``busy``.

        A gateway that does not know it yet has no request for it, and has acknowledged nothing.
        """
        replica = self.replicas.get(address, ReplicaActivity())
        return Activity(
            acknowledged_revision=replica.acknowledged_revision,
            busy=replica.running,
            running=replica.running,
            responses=replica.responses,
            data_ticks=replica.data_ticks,
        )

    def to_line(self) -> bytes:
        return json.dumps(vars(self), default=vars).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> Activity:
        """Undo ``to_line``."""
        values = json.loads(line)
        replicas = {name: ReplicaActivity(**each) for name, each in values["replicas"].items()}
        return cls(**{**values, "replicas": replicas})
