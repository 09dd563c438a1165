"""The options of a run: loads, limits, SLO. The only place that parses them from text."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

SLO_NAMES: Final[Mapping[str, str]] = {
    "ttft": "time to the first token",
    "tpot": "time per output token after it",
    "latency": "the whole response",
}
_DURATION: Final = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(ms|s)")
_UNITS: Final = {"ms": 0.001, "s": 1.0}


@dataclass(frozen=True, slots=True)
class Load:
    """One level of load: a number of concurrent streams, or of arrivals per second."""

    streams: int | None = None
    rate: float | None = None

    @property
    def text(self) -> str:
        if self.rate is not None:
            return f"{self.rate:g}/s"
        return f"{self.streams} stream{'s' if self.streams != 1 else ''}"


@dataclass(frozen=True, slots=True)
class Options:
    """All parameters of the requests of a run. Durations are in seconds."""

    loads: tuple[Load, ...]
    model: str = ""
    chat: bool = True
    streamed: bool = True
    prompt_tokens: tuple[int, ...] = (128,)
    output_tokens: int = 64
    shared_prefix: int = 0
    prompts_file: str = ""
    body: Mapping[str, Any] = field(default_factory=dict)
    duration: float = 20.0
    requests: int | None = None
    """The number of requests per level, instead of the duration."""
    warmup: float = 2.0
    timeout: float = 600.0
    keeps_connections: bool = True
    slo: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0

    @property
    def path(self) -> str:
        return "/v1/chat/completions" if self.chat else "/v1/completions"

    def as_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def parse_counts(text: str) -> tuple[int, ...]:
    """Comma-separated whole numbers above zero. Raises ValueError."""
    return tuple(_count(part) for part in text.split(","))


def _count(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,7}", text.strip()) or int(text) < 1:
        raise ValueError(f"{text.strip()!r} is not a whole number above 0")
    return int(text)


def parse_rates(text: str) -> tuple[float, ...]:
    """Comma-separated numbers above zero. Raises ValueError."""
    return tuple(_rate(part.strip()) for part in text.split(","))


def _rate(text: str) -> float:
    if not re.fullmatch(r"[0-9]{1,7}(\.[0-9]{1,7})?", text) or float(text) <= 0:
        raise ValueError(f"{text!r} is not a number of requests per second above 0")
    return float(text)


def parse_seconds(text: str) -> float:
    """``500ms``, ``2s``, or a number of seconds. Raises ValueError."""
    match = _DURATION.fullmatch(text if text.endswith("s") else text + "s")
    if match is None:
        raise ValueError(f"{text!r} is not a duration such as 500ms or 2.5s")
    return float(match[1]) * _UNITS[match[2]]


def parse_slo(text: str) -> dict[str, float]:
    """``ttft=500ms,tpot=50ms`` as seconds by name. Raises ValueError."""
    slo = {}
    for part in text.split(","):
        name, equals, bound = part.strip().partition("=")
        if name not in SLO_NAMES or not equals:
            raise ValueError(
                f"{part.strip()!r}: use one of {', '.join(SLO_NAMES)}, such as ttft=500ms"
            )
        slo[name] = parse_seconds(bound)
    return slo
