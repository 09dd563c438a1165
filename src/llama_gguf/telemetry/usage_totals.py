"""Usage of each key: in total, and in the last minute, hour and day.

Times are POSIX seconds, since the numbers outlive the process: ``dump`` serialises them, ``load``
parses them. A window consists of spans, and is accurate to one of them. Memory grows only with keys
in use, up to ``MAX_KEYS``.

Several processes may count into one file: each knows what it has added since its last write
(``take_unsaved``), adds that to the current content (``merge``), and continues from the sum
(``rebase``).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from llama_gguf.telemetry.batch import COUNTS, Batch, Counts

WINDOWS: Final[Mapping[str, tuple[float, int]]] = {
    "last_minute": (5.0, 12),
    "last_hour": (300.0, 12),
    "last_day": (3600.0, 24),
}
"""By name: seconds per span, and number of spans."""
MAX_KEYS: Final = 10_000
MAX_ADDITIONS: Final = 1000
"""Kept one by one before they are added up, which takes 2 ms."""
LINES_PER_PAUSE: Final = 64
"""Some 0.5 ms of work."""
FORMAT: Final = 1
_UNREAD: Final[Counts] = []

# The layout of ``dump``: lines that can be read one by one.
_BEFORE_KEYS: Final = '"keys":{\n'
_AFTER_KEYS: Final = "\n}}"
_COUNT: Final = r"(?:0|[1-9][0-9]{0,17})"
_COUNTS: Final = rf"\[{_COUNT}(?:,{_COUNT}){{{len(COUNTS) - 1}}}\]"
_SPAN: Final = rf'"-?[0-9]{{1,12}}":{_COUNTS}'
_SPANS: Final = rf"\{{(?:{_SPAN}(?:,{_SPAN})*)?\}}"
_NUMBERS: Final = ",".join([f'"total":{_COUNTS}', *(f'"{name}":{_SPANS}' for name in WINDOWS)])
_LINE: Final = rf'"([A-Za-z0-9_-]{{1,64}})":(\{{{_NUMBERS}\}}),?'


def _named(counts: Sequence[int]) -> dict[str, int]:
    return dict(zip(COUNTS, counts, strict=True))


def _add(into: Counts, counts: Sequence[int]) -> None:
    for place, count in enumerate(counts):
        into[place] += count


class _Window:
    """The counts of the last *length* spans of *seconds* each."""

    __slots__ = ("_length", "_seconds", "spans")

    def __init__(self, seconds: float, length: int) -> None:
        self._seconds = seconds
        self._length = length
        self.spans: dict[int, Counts] = {}

    def add(self, counts: Sequence[int], now: float) -> None:
        span = int(now // self._seconds)
        if span not in self.spans:
            self.spans = self._current(span)
            self.spans[span] = [0] * len(COUNTS)
        _add(self.spans[span], counts)

    def _current(self, last: int) -> dict[int, Counts]:
        # After the clock was set back, some spans are in the future: they do not count.
        return {n: c for n, c in self.spans.items() if last - self._length < n <= last}

    def merge(self, other: _Window, now: float) -> None:
        for span, counts in other.spans.items():
            _add(self.spans.setdefault(span, [0] * len(COUNTS)), counts)
        self.spans = self._current(int(now // self._seconds))

    def total(self, now: float) -> Counts:
        total = [0] * len(COUNTS)
        for counts in self._current(int(now // self._seconds)).values():
            _add(total, counts)
        return total


class _KeyUsage:
    """One key's numbers. Those from a file stay text until they are needed."""

    __slots__ = ("text", "total", "windows")

    def __init__(self, text: str = "") -> None:
        self.total = _UNREAD
        self.windows: dict[str, _Window] = {}
        self.text = text
        """Its latest dump; empty if it has changed since."""
        if not text:
            self.total = [0] * len(COUNTS)
            self.windows = {name: _Window(*spans) for name, spans in WINDOWS.items()}

    def open(self) -> None:
        """Parse the numbers, if that was not done before."""
        if not self.windows:
            opened = _loaded(json.loads(self.text))
            self.total, self.windows = opened.total, opened.windows

    def add(self, counts: Sequence[int], now: float) -> None:
        _add(self.total, counts)
        for window in self.windows.values():
            window.add(counts, now)
        self.text = ""

    def merge(self, other: _KeyUsage, now: float) -> None:
        other.open()
        _add(self.total, other.total)
        for name, window in self.windows.items():
            window.merge(other.windows[name], now)
        self.text = ""

    def dump(self) -> str:
        if not self.text:
            spans = {name: window.spans for name, window in self.windows.items()}
            self.text = json.dumps({"total": self.total} | spans, separators=(",", ":"))
        return self.text

    def view(self, now: float) -> dict[str, object]:
        self.open()
        windows = {name: _named(w.total(now)) for name, w in self.windows.items()}
        return {"total": _named(self.total), **windows}


class UsageTotals:
    """The usage of one instance, by key.

    Args:
        since: when counting began.
        max_keys: number of keys; above it, the least recently used one is removed.
    """

    def __init__(self, since: float, *, max_keys: int = MAX_KEYS) -> None:
        self.since = since
        self._max_keys = max_keys
        self._by_key: dict[str, _KeyUsage] = {}
        self._additions: list[tuple[str, Sequence[int], float]] = []
        """Since the last ``take_unsaved``, unless they are in ``_unsaved``."""
        self._unsaved: UsageTotals | None = None

    def take(self, batch: Batch) -> None:
        """Add the usage in *batch*."""
        for key_id, counts in batch.counts.items():
            self.add(key_id, counts, batch.now)

    def add(self, key_id: str, counts: Sequence[int], now: float) -> None:
        """Add *counts*, one for each of ``COUNTS``, to the usage of *key_id*."""
        self._of(key_id).add(counts, now)
        self._additions.append((key_id, counts, now))  # added up when they are taken
        if len(self._additions) >= MAX_ADDITIONS:
            self._add_up()

    def _of(self, key_id: str) -> _KeyUsage:
        # Moved to the end, so that the first key is the least recently used.
        usage = self._by_key.pop(key_id, None) or _KeyUsage()
        self._by_key[key_id] = usage
        if not usage.windows:
            usage.open()
        if len(self._by_key) > self._max_keys:
            del self._by_key[next(iter(self._by_key))]
        return usage

    def _add_up(self) -> None:
        if not self._additions:
            return
        unsaved = self._unsaved or UsageTotals(self.since, max_keys=self._max_keys)
        for key_id, counts, now in self._additions:
            unsaved._of(key_id).add(counts, now)
        self._additions, self._unsaved = [], unsaved

    @property
    def has_changed(self) -> bool:
        """Since the last ``take_unsaved``."""
        return bool(self._additions) or self._unsaved is not None

    def take_unsaved(self) -> UsageTotals | None:
        """What was added since the last call, as separate totals; None if nothing was."""
        self._add_up()
        taken, self._unsaved = self._unsaved, None
        return taken

    def merge(self, other: UsageTotals, now: float) -> None:
        """Add everything in *other*, which counts as saved."""
        self.since = min(self.since, other.since)
        for key_id, usage in other._by_key.items():
            self._of(key_id).merge(usage, now)

    def rebase(self, saved: UsageTotals, now: float) -> None:
        """Continue from *saved*, which has what was taken, but not what was added since."""
        self._add_up()
        for key_id, usage in saved._by_key.items():
            known = self._by_key.get(key_id)
            if known is not None and known.text and known.text == usage.text:
                saved._by_key[key_id] = known  # which may be parsed already
        self.since, self._by_key = saved.since, saved._by_key
        if self._unsaved is not None:
            self.merge(self._unsaved, now)

    def renew(self, known: UsageTotals, now: float) -> None:
        """Continue, for the keys in *known*, from that, which has what was taken of them."""
        self._add_up()
        self.since = known.since
        for key_id, usage in known._by_key.items():
            self._by_key.pop(key_id, None)
            self._by_key[key_id] = usage
            unsaved = None if self._unsaved is None else self._unsaved._by_key.get(key_id)
            if unsaved is not None:
                usage.merge(unsaved, now)

    def changes(self) -> list[tuple[str, Counts, list[tuple[str, int, Counts]]]]:
        """All of it: key ids, counts in total, and windows with their spans and counts."""
        return [
            (
                key_id,
                usage.total,
                [
                    (name, span, counts)
                    for name, w in usage.windows.items()
                    for span, counts in w.spans.items()
                ],
            )
            for key_id, usage in self._by_key.items()
        ]

    def take_over(self, key_id: str, total: Counts, spans: list[tuple[str, int, Counts]]) -> None:
        """Set the usage of *key_id*; undoes ``changes``."""
        usage = self._by_key[key_id] = _KeyUsage()
        usage.total = total
        for name, span, counts in spans:
            if name in usage.windows:
                usage.windows[name].spans[span] = counts

    def open(self) -> None:
        """Parse all numbers now, instead of when they are needed."""
        for usage in self._by_key.values():
            usage.open()

    def view(self, key_id: str, now: float) -> dict[str, object]:
        """The numbers of *key_id* by name; zeros if it has not used anything."""
        return {"key_id": key_id} | (self._by_key.get(key_id) or _KeyUsage()).view(now)

    def views(self, now: float) -> list[dict[str, object]]:
        """The numbers of every key that has used something, sorted by key id."""
        return [self.view(key_id, now) for key_id in self.key_ids()]

    def key_ids(self, at_most: int | None = None) -> list[str]:
        """The keys that have used something, sorted; with *at_most*, those used last."""
        used = [*self._by_key]
        return sorted(used if at_most is None else used[-at_most:])

    def latest_views(self, now: float, count: int) -> list[dict[str, object]]:
        """The numbers of the *count* keys that were used last, the latest first."""
        return [self.view(key_id, now) for key_id in [*self._by_key][: -count - 1 : -1]]

    @property
    def keys_used(self) -> int:
        return len(self._by_key)

    # Across restarts ----------------------------------------------------------------------------

    def prepare(self) -> Iterator[None]:
        """Make the text of what has changed, a few keys per step: ``dump`` then takes little."""
        changed = [usage for usage in self._by_key.values() if not usage.text]
        for number, usage in enumerate(changed, 1):
            usage.dump()
            if not number % LINES_PER_PAUSE:
                yield

    def dump(self) -> str:
        """The totals as text for ``load``. Keys that have not changed cost little."""
        keys = ",\n".join(f"{json.dumps(k)}:{a.dump()}" for k, a in self._by_key.items())
        return f'{{"format":{FORMAT},"since":{self.since!r},"keys":{{\n{keys}\n}}}}\n'

    @classmethod
    def load(cls, text: str, pause: Callable[[], None] | None = None) -> UsageTotals:
        """Undo ``dump``.

        Args:
            text: what ``dump`` returned.
            pause: called every ``LINES_PER_PAUSE`` lines, so that other threads can run.

        Raises:
            ValueError: *text* is not in the format of ``dump``.
        """
        try:
            read, by_key = _read_lines(text, pause) or _read_whole(text)
            if read["format"] != FORMAT:
                raise ValueError("its format is that of another version")
            totals = cls(_moment(read["since"]))
            totals._by_key = by_key
        except (KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
            raise ValueError(f"it is incomplete: {error!r}") from None
        return totals


def _read_lines(
    text: str, pause: Callable[[], None] | None
) -> tuple[Any, dict[str, _KeyUsage]] | None:
    """The totals in *text*, line by line; None if its layout is not that of ``dump``.

    Lines are checked, not parsed: parsing 10,000 keys at every update would create so much garbage
    that its collection blocks all threads.
    """
    head, _, rest = text.partition(_BEFORE_KEYS)
    lines, _, after = rest.rpartition(_AFTER_KEYS)
    if after.strip():
        return None
    by_key: dict[str, _KeyUsage] = {}
    for number, line in enumerate(lines.split("\n"), 1):
        if pause is not None and not number % LINES_PER_PAUSE:
            pause()
        match = re.fullmatch(_LINE, line)
        if match is None:
            return None
        by_key[match[1]] = _KeyUsage(match[2])
    return json.loads(f"{head}{_BEFORE_KEYS}}}}}"), by_key


def _read_whole(text: str) -> tuple[Any, dict[str, _KeyUsage]]:
    read: Any = json.loads(text)
    return read, {key_id: _loaded(numbers) for key_id, numbers in read["keys"].items()}


def _moment(value: object) -> float:
    if isinstance(value, float | int) and math.isfinite(value) and value >= 0:
        return float(value)
    raise ValueError("its start time is invalid")


def _loaded(read: Mapping[str, Any]) -> _KeyUsage:
    usage = _KeyUsage()
    usage.total = _counts(read["total"])
    for name, window in usage.windows.items():
        window.spans = {int(span): _counts(counts) for span, counts in read[name].items()}
    return usage


def _counts(values: object) -> Counts:
    if (
        isinstance(values, list)
        and len(values) == len(COUNTS)
        and all(type(value) is int and value >= 0 for value in values)
    ):
        return values
    raise ValueError("it contains an invalid number")
