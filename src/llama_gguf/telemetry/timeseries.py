"""The last day in steps, for charts: short ones for the last minutes, long ones for the hours.

A reading of counters that never decrease is taken every few seconds; a step is the difference
between two of them, and the steps of a longer range each cover several. New steps replace the
oldest, so that a history has a bounded size. ``history_store.py`` keeps it across restarts.
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from llama_gguf.values import Value

STEP_SECONDS: Final = 5.0
STEPS: Final = 180
"""Of each length."""
RANGES: Final = {300: 5.0, 900: 5.0, 3600: 20.0, 21600: 120.0, 86400: 480.0}
"""Seconds that a chart may cover, and the length of its steps."""
DEFAULT_RANGE: Final = 900
RECENT_SECONDS: Final = 60.0
"""Shown as "now"."""
MAX_TIMES: Final = 256
"""Times to a first token that a reading keeps; the latest ones."""
MAX_STEP_TIMES: Final = 1024
"""Of a long step. If there are more, every second one is dropped."""
MAX_REASONS: Final = 32
MAX_EVENTS: Final = 100
MAX_EVENT_TEXT: Final = 300
GAP_SECONDS: Final = 1.0
_FORM: Final = 1
"""Of the text of ``dump``."""


class Reading(Value):
    """The values at one moment."""

    requests: int
    """Counters, since the start of the gateway."""
    prompt_tokens: int
    completion_tokens: int
    errors: Mapping[str, int]
    """By reason."""
    running: int
    waiting: int
    first_tokens: Sequence[float]
    """Seconds to the first token of responses that began since the last reading."""


class Step(NamedTuple):
    """Immutable, so that another thread may write it."""

    at: float
    """Its end, in POSIX seconds."""
    seconds: float
    requests: int
    prompt_tokens: int
    completion_tokens: int
    running: int
    """The most in one of its readings."""
    waiting: int
    first_token_p50: float | None
    first_token_p95: float | None
    errors: Mapping[str, int]


class Event(NamedTuple):
    """Something that explains a change in the charts."""

    at: float
    kind: str
    """``start``, ``crash``, ``restart`` or ``reload``."""
    text: str


class _Sum:
    """A step that is not over yet."""

    def __init__(self) -> None:
        self.at = 0.0
        self.seconds = 0.0
        self.requests = 0
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.running = 0
        self.waiting = 0
        self.times: list[float] = []
        self.errors: dict[str, int] = {}

    def add(self, other: _Sum) -> None:
        self.at = other.at
        self.seconds += other.seconds
        self.requests += other.requests
        self.prompt_tokens += other.prompt_tokens
        self.completion_tokens += other.completion_tokens
        self.running = max(self.running, other.running)
        self.waiting = max(self.waiting, other.waiting)
        self.times += other.times
        if len(self.times) > MAX_STEP_TIMES:
            self.times = self.times[::2]
        for reason, count in other.errors.items():
            if reason in self.errors or len(self.errors) < MAX_REASONS:
                self.errors[reason] = self.errors.get(reason, 0) + count

    def step(self) -> Step:
        times = sorted(self.times)
        return Step(
            at=round(self.at, 1),
            seconds=round(self.seconds, 3),
            requests=self.requests,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            running=self.running,
            waiting=self.waiting,
            first_token_p50=quantile(times, 0.5),
            first_token_p95=quantile(times, 0.95),
            errors=dict(self.errors),
        )


class _Track:
    """The steps of one length."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.steps: deque[Step] = deque(maxlen=STEPS)
        self._open = _Sum()

    def add(self, part: _Sum) -> None:
        self._open.add(part)
        # Readings come a little late: without the tolerance, a step would get one too many.
        if self._open.seconds >= self.seconds - STEP_SECONDS / 2:
            self.steps.append(self._open.step())
            self._open = _Sum()

    def since(self, begin: float) -> list[Step]:
        """Its steps that end after *begin*, the one that is not over yet included."""
        steps = [*self.steps, *([self._open.step()] if self._open.seconds else ())]
        return [step for step in steps if step.at > begin]


class Snapshot(Value):
    """The content of a history at one moment, which another thread may turn into text."""

    tracks: Mapping[float, Sequence[Step]]
    events: Sequence[Event]

    def dump(self) -> str:
        # A step and an event are tuples, which JSON has as lists of their fields.
        tracks = {f"{seconds:g}": steps for seconds, steps in self.tracks.items()}
        return json.dumps(
            {"form": _FORM, "steps": tracks, "events": self.events}, separators=(",", ":")
        )


class History:
    """The steps of one gateway.

    Args:
        now: POSIX seconds that never jump, as of all other times here.
    """

    def __init__(self, now: float) -> None:
        self._tracks = {seconds: _Track(seconds) for seconds in sorted(set(RANGES.values()))}
        self._recent: deque[_Sum] = deque(maxlen=int(RECENT_SECONDS / STEP_SECONDS))
        self._last = Reading(0, 0, 0, {}, 0, 0, ())
        self._last_at = now
        self._began_at = now
        self._events: deque[Event] = deque(maxlen=MAX_EVENTS)
        self.changes = 0
        """Counter: to notice what is not saved yet."""

    def is_due(self, now: float) -> bool:
        return now >= self._last_at + STEP_SECONDS

    def take(self, reading: Reading, now: float) -> None:
        """Add what happened from the previous reading to this one."""
        last = self._last
        errors = {r: n - last.errors.get(r, 0) for r, n in reading.errors.items()}
        part = _Sum()
        part.at = now
        part.seconds = max(now - self._last_at, 1e-3)
        part.requests = reading.requests - last.requests
        part.prompt_tokens = reading.prompt_tokens - last.prompt_tokens
        part.completion_tokens = reading.completion_tokens - last.completion_tokens
        part.running = reading.running
        part.waiting = reading.waiting
        part.times = list(reading.first_tokens)[-MAX_TIMES:]
        part.errors = {r: n for r, n in errors.items() if n}
        self._recent.append(part)
        for track in self._tracks.values():
            track.add(part)
        self._last, self._last_at = reading, now
        self.changes += 1

    def note(self, kind: str, text: str, now: float) -> None:
        """Add an event."""
        self._events.append(Event(round(now, 1), kind, text[:MAX_EVENT_TEXT]))
        self.changes += 1

    # What a chart shows -------------------------------------------------------------------------

    def recent(self) -> dict[str, float | None]:
        """The rates and quantiles of the last minute, or since the start if that is shorter.

        ``seconds`` is the time that they cover, up to the last reading.
        """
        total = _Sum()
        for part in self._recent:
            total.add(part)
        step = total.step()
        covered: dict[str, float | None] = {"seconds": step.seconds, "requests": step.requests}
        return covered | _rates(step) | _quantiles(step)

    def series(self, seconds: int = DEFAULT_RANGE) -> dict[str, list[float | None]]:
        """The steps of the last *seconds*, one of ``RANGES``: one list for each number.

        ``times`` has their ends, in POSIX seconds, the oldest first. Where the gateway did not run,
        there is a row without numbers.
        """
        rows: list[dict[str, float | None]] = []
        end = 0.0
        for step in self._since(seconds):
            begin = step.at - step.seconds
            if rows and begin > end + GAP_SECONDS:
                rows.append({"times": round((end + begin) / 2, 1)})
            rows.append(
                _rates(step)
                | _quantiles(step)
                | {"running": step.running, "waiting": step.waiting, "times": step.at}
            )
            end = step.at
        return {name: [row.get(name) for row in rows] for name in ("times", *NAMES)}

    def errors(self, seconds: int = DEFAULT_RANGE, *, all_runs: bool = True) -> dict[str, int]:
        """Errors of the last *seconds* by reason, the most frequent first.

        Args:
            seconds: one of ``RANGES``.
            all_runs: whether those of earlier runs of the gateway, which were restored, count too.
        """
        total: dict[str, int] = {}
        for step in self._since(seconds):
            if step.at <= self._began_at and not all_runs:
                continue
            for reason, count in step.errors.items():
                total[reason] = total.get(reason, 0) + count
        return dict(sorted(total.items(), key=lambda item: (-item[1], item[0])))

    def events(self, seconds: int = DEFAULT_RANGE) -> list[dict[str, Any]]:
        """Events of the last *seconds*, the oldest first."""
        begin = self._last_at - seconds
        return [
            {"at": event.at, "kind": event.kind, "text": event.text}
            for event in self._events
            if event.at > begin
        ]

    def _since(self, seconds: int) -> list[Step]:
        return self._tracks[RANGES[seconds]].since(self._last_at - seconds)

    # Across restarts ----------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """All that is kept. A step that is not over is in it as a short one."""
        tracks = {seconds: tuple(track.since(0.0)) for seconds, track in self._tracks.items()}
        return Snapshot(tracks, tuple(self._events))

    def restore(self, text: str) -> None:
        """Continue from the text of a ``Snapshot``, before the first reading.

        Raises:
            ValueError: it is no such text; nothing is restored.
        """
        try:
            content = json.loads(text)
            if content["form"] != _FORM:
                raise ValueError(f"form {content['form']!a} is unknown")
            events = [_event(row) for row in content["events"]]
            steps = {
                seconds: _rising([_step(row) for row in content["steps"][f"{seconds:g}"]])
                for seconds in self._tracks
            }
        except (KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise ValueError(f"its content is not understood ({type(error).__name__})") from None
        for seconds, track in self._tracks.items():
            # A clock that has been set back must not leave steps in the future.
            track.steps.extend(step for step in steps[seconds] if step.at <= self._last_at)
        self._events.extend(event for event in events if event.at <= self._last_at)


NAMES: Final = (
    *("requests_per_second", "prompt_tokens_per_second", "completion_tokens_per_second"),
    *("first_token_p50", "first_token_p95", "running", "waiting"),
)


def _rates(step: Step) -> dict[str, float | None]:
    counts = (step.requests, step.prompt_tokens, step.completion_tokens)
    seconds = step.seconds or 1.0
    return {name: round(n / seconds, 3) for name, n in zip(NAMES[:3], counts, strict=True)}


def _quantiles(step: Step) -> dict[str, float | None]:
    return {"first_token_p50": step.first_token_p50, "first_token_p95": step.first_token_p95}


def quantile(rising: Sequence[float], share: float) -> float | None:
    """The smallest value that *share* of the values do not exceed (nearest rank)."""
    if not rising:
        return None
    return round(rising[math.ceil(share * len(rising)) - 1], 4)


def _step(row: Sequence[Any]) -> Step:
    at, seconds, requests, prompt, completion, running, waiting, p50, p95, errors = row
    return Step(
        at=_number(at),
        seconds=_number(seconds),
        requests=int(_number(requests)),
        prompt_tokens=int(_number(prompt)),
        completion_tokens=int(_number(completion)),
        running=int(_number(running)),
        waiting=int(_number(waiting)),
        first_token_p50=None if p50 is None else _number(p50),
        first_token_p95=None if p95 is None else _number(p95),
        errors={str(r)[:64]: int(_number(n)) for r, n in list(errors.items())[:MAX_REASONS]},
    )


def _event(row: Sequence[Any]) -> Event:
    at, kind, text = row
    return Event(_number(at), str(kind)[:32], str(text)[:MAX_EVENT_TEXT])


def _number(value: object) -> float:
    if isinstance(value, (int, float)) and 0 <= value < math.inf:
        return value
    raise ValueError("a number in it is not valid")


def _rising(steps: Iterable[Step]) -> list[Step]:
    found: list[Step] = []
    for step in steps:
        if not found or step.at > found[-1].at:
            found.append(step)
    return found[-STEPS:]
