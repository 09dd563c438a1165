"""What the controller of a cluster and its gateways send to each other, a JSON object per line.

A gateway begins with a ``Hello`` and gets a ``Roster`` at once, and again at each change. It sends
its ``Demand`` at each change. Both repeat their last line every few seconds, so that silence means
that the other one is gone. A gateway that is refused gets a line with ``error`` instead.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from llama_gguf.config.schema import MAX_REPLICAS
from llama_gguf.engines.status import ChildState
from llama_gguf.values import Value

DEFAULT_PORT: Final = 8002
"""Of the controller."""
REPEAT_SECONDS: Final = 2.0
SILENT_SECONDS: Final = 10.0
"""Without a line, after which the connection is given up."""
MAX_LINE_BYTES: Final = 64 << 10
_ADDRESS: Final = r"(?:[0-9A-Za-z._-]+|\[[0-9A-Fa-f:.]+\]):([0-9]{1,5})"
"""Of an engine, as of ``EngineAddress.key``."""


class Refused(Exception):
    """The controller has refused the gateway, for the reason in the message."""


class Hello(Value, hidden=("key",)):
    """Who connects."""

    version: str
    """Of llama_gguf."""
    key: str
    """BACKEND_API_KEY, which the engines expect as well."""


class Roster(Value):
    """The engines that a gateway may use."""

    revision: int = 0
    """Rises with each change."""
    addresses: tuple[str, ...] = ()
    """As of ``EngineAddress.key``."""
    state: ChildState = ChildState.STARTING
    """Of all engines, for a gateway that has none."""
    detail: str = ""
    """The reason, for people."""
    progress: float | None = None
    """Of a download or a load, from 0 to 1."""
    model: str = ""
    """The name that the engines report; known on while there is none."""
    version: str = ""
    """Of llama_gguf on the cluster."""


class Demand(Value):
    """What a gateway needs, and has."""

    revision: int = 0
    """Of the roster that it uses."""
    queued: int = 0
    """Requests that wait for a slot."""
    running: Mapping[str, int] = {}
    """Requests at an engine, by its address; engines without one are missing."""
    at_once: int = 0
    """Requests that it sends to one engine at once; 0 = as many as the engine has slots."""


def to_line(message: Hello | Roster | Demand) -> bytes:
    return json.dumps(vars(message)).encode() + b"\n"


def refusal(reason: str) -> bytes:
    """The line for a gateway that is refused."""
    return json.dumps({"error": reason}).encode() + b"\n"


def read_hello(line: bytes) -> Hello:
    """Undo ``to_line``.

    Raises:
        ValueError: it is none.
    """
    fields = _fields(line)
    return Hello(_text(fields, "version"), _text(fields, "key"))


def read_demand(line: bytes) -> Demand:
    """Undo ``to_line``.

    Raises:
        ValueError: it is none.
    """
    fields = _fields(line)
    running = fields.get("running")
    if not isinstance(running, dict):
        raise ValueError("running is not an object")
    return Demand(
        _count(fields, "revision"),
        _count(fields, "queued"),
        {address: _count(running, address) for address in running},
        _count(fields, "at_once"),
    )


def read_roster(line: bytes) -> Roster:
    """Undo ``to_line``.

    Raises:
        ValueError: it is none.
        Refused: it is a refusal.
    """
    fields = _fields(line)
    if "error" in fields:
        raise Refused(_text(fields, "error"))
    progress = fields.get("progress")
    return Roster(
        _count(fields, "revision"),
        _addresses(fields),
        ChildState(_text(fields, "state")),
        _text(fields, "detail"),
        progress if isinstance(progress, float | int) and 0 <= progress <= 1 else None,
        _text(fields, "model"),
        _text(fields, "version"),
    )


def _addresses(fields: Mapping[str, Any]) -> tuple[str, ...]:
    found = fields.get("addresses")
    if not isinstance(found, list) or len(found) > MAX_REPLICAS:
        raise ValueError("addresses is not a list of engines")
    for each in found:
        match = re.fullmatch(_ADDRESS, each) if isinstance(each, str) else None
        if match is None or not 0 < int(match[1]) < 1 << 16:
            raise ValueError("addresses has something else than HOST:PORT")
    return tuple(found)


def _fields(line: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(line)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(fields, dict):
        raise ValueError("not an object")
    return fields


def _text(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str):
        raise ValueError(f"{name} is not a text")
    return value


def _count(fields: Mapping[str, Any], name: str) -> int:
    value = fields.get(name)
    if not isinstance(value, int) or value < 0:
        raise ValueError(f"{name} is not a number")
    return value
