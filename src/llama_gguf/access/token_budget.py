"""The budget of a key: tokens per minute, day and month, and engine-seconds per day.

Before a request, its estimate is reserved: it counts from then on as if it were used. Afterwards,
the exact figures replace it. Nothing here reads a clock: the caller passes two.

- ``now`` never jumps: seconds that began as the wall clock when the process started. The minute is
  measured by it.
- ``wall`` is POSIX seconds, and may jump. Days and months are those of the calendar in UTC.

Rule 1: a request is admitted while less than its limit is used in each window. A window therefore
admits at most its limit and one estimate.

Rule 2: the minute slides, by whole seconds: it is the present second and the 59 before it. No wait
is longer than 60 seconds, since OpenAI's clients ignore a longer one.

Rule 3: what a request has used beyond its estimate counts in the windows of its end, where it is
first known. What it has not used is given back to the windows of its start.

Rule 4: each day or month is opened once. The counts of the last ``KEPT_PERIODS`` are kept, so that
one to which the clock is set back continues. For one that is earlier than all of these, the
earliest one continues, until the clock has passed it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Final

from llama_gguf.access.attributes import Attributes
from llama_gguf.access.share import OPEN, Share
from llama_gguf.http1.exchange_record import Reservation

TOKENS_PER_MINUTE: Final = 0
TOKENS_PER_DAY: Final = 1
TOKENS_PER_MONTH: Final = 2
ENGINE_SECONDS_PER_DAY: Final = 3
NAMES: Final = ("tokens_per_minute", "tokens_per_day", "tokens_per_month", "engine_seconds_per_day")
"""Of the windows, as of the attributes of a key."""
WINDOWS: Final = range(len(NAMES))
KEPT_PERIODS: Final = 4
MINUTE_SECONDS: Final = 60
DAY_SECONDS: Final = 86_400
FIRST_MILLISECONDS: Final = 1000
"""Estimated for a request of a key that has not used the engine yet."""
BYTES_PER_TOKEN: Final = 4
MAX_SEARCHED_BYTES: Final = 256 << 10
"""Of a body: some 0.5 ms. A longer one is 65,536 tokens by its length alone."""

# In a JSON string each quote has a backslash before it: these can only be names of members.
_OUTPUT: Final = re.compile(
    rb'"(?:max_tokens|max_completion_tokens|max_output_tokens|n_predict)"'
    rb"[ \t\r\n]{0,9}:[ \t\r\n]{0,9}([0-9]{1,9})"
)

# The same for the number of outputs, of which llama-server reports the tokens of one: who could
# hide it would get all but one for nothing.
_CHOICES: Final = re.compile(rb'"(?:n|n_cmpl)"[ \t\r\n]*:[ \t\r\n]*([0-9][0-9.eE+-]{0,31})')
_PROMPTS: Final = re.compile(rb'"prompt"[ \t\r\n]*:[ \t\r\n]*\[')
# In a long body, several prompts: where they begin, and what is between a text and the next one, or
# between any two. What is before the name of a member does not count.
_NO_NAME: Final = rb'(?![a-z_]{1,40}"[ \t\r\n]*:)'
_AFTER_TEXT: Final = rb'"[ \t\r\n]*,[ \t\r\n]*(["\[{])' + _NO_NAME
_LISTS: Final = rb'["\]}][ \t\r\n]*,[ \t\r\n]*["\[{]' + _NO_NAME
_SEVERAL: Final = _PROMPTS.pattern + rb'[ \t\r\n]*(["\[{])'
# Of a letter or "_", which no program escapes except to hide a name.
_ESCAPED: Final = re.compile(rb"\\u00(?:5[fF]|6|70)")
MAX_CHOICES: Final = 10_000
"""That are counted, by number or in a long list: 2 ms."""
HIDDEN_CHOICES: Final = 16
"""Assumed where the number in a long body cannot be read quickly."""
_MAX_PLACES: Final = 64
"""Of a name in a long body, looked at."""


def choices_in(body: bytes | bytearray) -> int:
    """How many outputs a request wants: ``n`` for each of its prompts."""
    if len(body) > MAX_SEARCHED_BYTES:
        return _choices_in_long(body)
    if _ESCAPED.search(body):
        body = _without_escapes(body)
    choices = max(map(_number, _CHOICES.findall(body)), default=1) or 1
    if _PROMPTS.search(body):
        choices *= _prompts_in(body)
    return choices


def _choices_in_long(body: bytes | bytearray) -> int:
    """As ``choices_in``, or somewhat more; without parsing, which takes 10 ms and more per MB."""
    if _ESCAPED.search(body):
        return HIDDEN_CHOICES
    choices = 1
    for name in (b'"n"', b'"n_cmpl"'):  # `find` is fast in any text, a pattern is not
        at = body.find(name)
        for _ in range(_MAX_PLACES):
            if at < 0:
                break
            found = _CHOICES.match(body, at)
            choices = max(choices, _number(found[1]) if found else 1)
            at = body.find(name, at + len(name))
        else:
            choices = max(choices, HIDDEN_CHOICES)
    prompts = re.search(_SEVERAL, body)
    if prompts is not None:
        start = prompts.start(1)
        between = list(islice(re.compile(_AFTER_TEXT).finditer(body, start), MAX_CHOICES - 1))
        # A text may contain "], [", but no quote without a backslash.
        if prompts[1] != b'"' or {found[1] for found in between} - {b'"'}:
            between = list(islice(re.compile(_LISTS).finditer(body, start), MAX_CHOICES - 1))
        choices *= 1 + len(between)
    return choices


def _number(text: bytes) -> int:
    try:
        return int(min(float(text), MAX_CHOICES))  # llama-server accepts 2.0 and 2e0, too
    except ValueError:
        return 1  # no JSON


def _without_escapes(body: bytes | bytearray) -> bytes | bytearray:
    try:
        return json.dumps(json.loads(body)).encode()
    except (ValueError, RecursionError):
        return body  # llama-server refuses it too


def _prompts_in(body: bytes | bytearray) -> int:
    try:
        prompts = json.loads(body)["prompt"]
    except (ValueError, RecursionError, KeyError, TypeError):
        return 1  # llama-server refuses it too
    # A list of numbers is one prompt, of tokens.
    are_several = isinstance(prompts, list) and any(not isinstance(p, int) for p in prompts)
    return len(prompts) if are_several else 1


def estimate(body: bytes | bytearray, most: int | None, choices: int = 1) -> int:
    """The tokens that a request is expected to use: of its body, and of the outputs it allows.

    Args:
        body: of the request.
        most: tokens of one prompt and its output: the engine's context; None if that is not known.
        choices: as ``choices_in`` returns.
    """
    tokens = max(len(body) // BYTES_PER_TOKEN, 1)
    most_of_all = None if most is None else most * choices
    if len(body) <= MAX_SEARCHED_BYTES and (most_of_all is None or tokens < most_of_all):
        tokens += choices * max(map(int, _OUTPUT.findall(body)), default=0)
    return tokens if most_of_all is None else min(tokens, most_of_all)


def has_budget(attributes: Attributes) -> bool:
    """Whether a key with these *attributes* has a budget."""
    return bool(
        attributes.tokens_per_minute
        or attributes.tokens_per_day
        or attributes.tokens_per_month
        or attributes.engine_seconds_per_day
    )


class WindowState:
    """One window of a budget, for people and programs.

    Args:
        name: one of ``NAMES``, which states the unit.
        limit: of the window.
        used: in it, estimates of requests that are under way included.
        resets_in: seconds until nothing counts any more.
    """

    __slots__ = ("limit", "name", "resets_in", "used")

    def __init__(self, name: str, limit: int, used: float, resets_in: float) -> None:
        self.name = name
        self.limit = limit
        self.used = used
        self.resets_in = resets_in

    @property
    def remaining(self) -> float:
        return max(self.limit - self.used, 0)


class Exceeded:
    """The window that keeps a request from being admitted for the longest time.

    Args:
        window: its index in ``NAMES``.
        limit: tokens, or seconds.
        wait: seconds until a request would be admitted, by what is known now.
        is_share: whether only this gateway's share is used up, until it is renewed.
    """

    __slots__ = ("is_share", "limit", "wait", "window")

    def __init__(self, window: int, limit: int, wait: float, *, is_share: bool = False) -> None:
        self.is_share = is_share
        self.window = window
        self.limit = limit
        self.wait = wait


NewShare = Callable[[str, int, int, dict[int, int]], Share]
"""Makes the share of a window: from the key's id, the window, its limit, and what is used."""
SHARE_WAIT: Final = 1.0
"""Seconds: for a request that is refused only because this gateway's share is used up."""

Counts = list[dict[int, int]]
"""For each window, what was used by period: tokens, or milliseconds of the engine."""


def no_counts() -> Counts:
    return [{} for _ in WINDOWS]


def add(changes: Counts, more: Counts) -> None:
    """Add *more* to *changes*; both may be negative."""
    for window in WINDOWS:
        for period, amount in more[window].items():
            changes[window][period] = changes[window].get(period, 0) + amount


def apply(counts: Counts, changes: Counts) -> None:
    """Add *changes* to *counts*, which are never negative."""
    for window in WINDOWS:
        by_period = counts[window]
        for period, amount in changes[window].items():
            if amount >= 0 or period in by_period:
                by_period[period] = max(by_period.get(period, 0) + amount, 0)
        if window != TOKENS_PER_MINUTE:
            _forget_periods(by_period)


def _forget_periods(by_period: dict[int, int]) -> None:
    while len(by_period) > KEPT_PERIODS:
        del by_period[min(by_period)]


def _in_force(by_period: dict[int, int], period: int) -> int:
    """The period that counts when it is *period* by the clock: rule 4."""
    if period in by_period or not by_period:
        return period
    return max(period, min(by_period))


def _month(wall: float) -> int:
    from datetime import UTC, datetime  # noqa: PLC0415  # a gateway without budgets needs none

    date = datetime.fromtimestamp(wall, UTC)
    return date.year * 12 + date.month - 1


def period_of(window: int, wall: float) -> int:
    """The day or month at *wall*, as ``Counts`` have it."""
    return _month(wall) if window == TOKENS_PER_MONTH else int(wall // DAY_SECONDS)


def _end_of(window: int, period: int) -> float:
    """POSIX seconds at which *period*, a day or a month, is over."""
    if window != TOKENS_PER_MONTH:
        return (period + 1) * DAY_SECONDS
    from datetime import UTC, datetime  # noqa: PLC0415  # as above

    year, month = divmod(period + 1, 12)
    return datetime(year, month + 1, 1, tzinfo=UTC).timestamp()


class TokenBudget:
    """What one key may use, and what it has used.

    No call waits: a budget that several gateways share decides by this one's shares.

    Args:
        key_id: of the key.
        changed: gets this budget, by the key's id, when it has something to save.
        new_share: makes the share of a window, by the key's id, the window and its limit; None if
            the budget is not shared.
    """

    __slots__ = (
        "_changed",
        "_day",
        "_forgotten_at",
        "_limits",
        "_month",
        "_new_share",
        "_shares",
        "_wall",
        "counts",
        "key_id",
        "text",
        "typical",
        "unsaved",
    )

    def __init__(
        self,
        key_id: str,
        changed: dict[str, TokenBudget],
        new_share: NewShare | None = None,
    ) -> None:
        self.key_id = key_id
        self._new_share = new_share
        self._shares: dict[int, Share] = {}
        """By window, of those that have a limit and are shared."""
        self._changed = changed
        self._limits: list[int] = [0, 0, 0, 0]
        """By window, in the units of ``counts``; 0 for none."""
        self.counts: Counts = no_counts()
        self.unsaved: Counts = no_counts()
        """What was added to ``counts`` since they were last saved; may be negative."""
        self.text = ""
        """``counts`` as they are saved; empty if they have changed since."""
        self._forgotten_at = -1
        """The second in which those before the minute were removed last."""
        self._wall = -1.0
        self._day = self._month = 0
        """Those of ``_wall``."""
        self.typical = FIRST_MILLISECONDS
        """Of the engine for a request: the estimate of the next one."""

    def limit(self, attributes: Attributes) -> None:
        """Apply the limits in *attributes*; what was used still counts."""
        self._limits = [
            attributes.tokens_per_minute or 0,
            attributes.tokens_per_day or 0,
            attributes.tokens_per_month or 0,
            (attributes.engine_seconds_per_day or 0) * 1000,
        ]
        if self._new_share is not None:
            self._divide(self._new_share)

    def _divide(self, new_share: NewShare) -> None:
        for window in WINDOWS:
            limit, share = self._limits[window], self._shares.get(window)
            if limit and share is None:
                share = new_share(self.key_id, window, limit, self.counts[window])
                share.on_applied = self._on_applied
                self._shares[window] = share
            elif share is not None and limit != share.limit:
                share.change_limit(limit)

    def _on_applied(self) -> None:
        """The counts were replaced by those of all gateways."""
        self._forgotten_at = -1
        self._changed[self.key_id] = self
        self.text = ""

    def exceeded(self, now: float, wall: float) -> Exceeded | None:
        """The reason for which a request would be refused; None if it would be admitted."""
        found: Exceeded | None = None
        if self._shares:
            return self._exceeded_share(now, wall)
        for window in WINDOWS:
            limit = self._limits[window]
            if limit and self._used(window, now, wall) >= limit:
                wait = self._wait(window, now, wall)
                if found is None or wait >= found.wait:
                    found = Exceeded(window, _shown(window, limit), wait)
        return found

    def _exceeded_share(self, now: float, wall: float) -> Exceeded | None:
        """As ``exceeded``, of a budget that is shared."""
        found: Exceeded | None = None
        for window, share in self._shares.items():
            limit = share.limit
            if not limit:
                continue
            used, period = self._used(window, now, wall), self._period(window, now, wall)
            if period > share.period:  # which the store does not know yet
                share.period = period
                if not share.length:
                    share.held = max((limit - used) // share.state.gateways, 1)
            oldest = period - share.length + 1 if share.length else period
            if share.admits(used, oldest):
                continue
            is_used_up = used >= limit and (share.state.is_up or share.state.outage != OPEN)
            wait = self._wait(window, now, wall) if is_used_up else SHARE_WAIT
            if found is None or wait >= found.wait:
                found = Exceeded(window, _shown(window, limit), wait, is_share=not is_used_up)
        return found

    def reserve(self, tokens: int, now: float, wall: float) -> Reservation:
        """Count a request that is admitted by its estimate, *tokens*, until it is settled."""
        milliseconds = self.typical
        periods = self._periods(now, wall)
        for window in WINDOWS:
            self._add(window, periods[window], _amount(window, tokens, milliseconds))
        return Reservation(tokens, milliseconds, periods)

    def settle(
        self, reserved: Reservation, tokens: int, milliseconds: int, *, now: float, wall: float
    ) -> None:
        """Replace what was *reserved* by the *tokens* and the engine's *milliseconds* it has used.

        Both are 0 for a request that is refused or has failed.
        """
        periods = self._periods(now, wall)
        for window in WINDOWS:
            more = _amount(window, tokens, milliseconds) - _amount(
                window, reserved.tokens, reserved.milliseconds
            )
            if more > 0:
                self._add(window, periods[window], more)
            elif more and reserved.periods[window] in self.counts[window]:
                self._add(window, reserved.periods[window], more)
        if milliseconds:
            self.typical = (7 * self.typical + milliseconds) // 8

    def states(self, now: float, wall: float) -> list[WindowState]:
        """Those windows that have a limit."""
        return [self._state(window, now, wall) for window in WINDOWS if self._limits[window]]

    def shortest_of_tokens(self, now: float, wall: float) -> WindowState | None:
        """The shortest window of tokens that has a limit."""
        for window in (TOKENS_PER_MINUTE, TOKENS_PER_DAY, TOKENS_PER_MONTH):
            if self._limits[window]:
                return self._state(window, now, wall)
        return None

    def _state(self, window: int, now: float, wall: float) -> WindowState:
        used = self._used(window, now, wall)
        return WindowState(
            NAMES[window],
            _shown(window, self._limits[window]),
            used / 1000 if window == ENGINE_SECONDS_PER_DAY else used,
            self._resets_in(window, now, wall),
        )

    def replace(self, counts: Counts) -> None:
        """Continue from *counts*, which have what was saved, and not what is unsaved."""
        self._forgotten_at = -1
        self.counts = counts
        apply(counts, self.unsaved)
        self.text = ""
        for window, share in self._shares.items():
            share.counts = counts[window]

    def _periods(self, now: float, wall: float) -> Sequence[int]:
        return [self._period(window, now, wall) for window in WINDOWS]

    def _period(self, window: int, now: float, wall: float) -> int:
        """The period of *window* that counts now."""
        if window == TOKENS_PER_MINUTE:
            return int(now)
        if wall != self._wall:  # the gateway's has steps of half a second
            self._wall, self._day, self._month = wall, int(wall // DAY_SECONDS), _month(wall)
        period = self._month if window == TOKENS_PER_MONTH else self._day
        return _in_force(self.counts[window], period)

    def _add(self, window: int, period: int, amount: int) -> None:
        by_period = self.counts[window]
        used = by_period.get(period, 0)
        amount = max(amount, -used)
        by_period[period] = used + amount
        if window != TOKENS_PER_MINUTE:
            _forget_periods(by_period)
        unsaved = self.unsaved[window]
        unsaved[period] = unsaved.get(period, 0) + amount
        share = self._shares.get(window)
        if share is not None:
            share.add(period, amount)
        self._changed[self.key_id] = self
        self.text = ""

    def _used(self, window: int, now: float, wall: float) -> int:
        by_period = self.counts[window]
        if window == TOKENS_PER_MINUTE:
            self._forget_seconds(int(now))
            return sum(by_period.values())
        return by_period.get(self._period(window, now, wall), 0)

    def _forget_seconds(self, now: int) -> None:
        if now == self._forgotten_at:
            return
        self._forgotten_at = now
        by_second = self.counts[TOKENS_PER_MINUTE]
        for second in [s for s in by_second if not now - MINUTE_SECONDS < s <= now]:
            tokens = by_second.pop(second)
            if second > now:  # saved before the clock was set back and the process restarted
                by_second[now] = by_second.get(now, 0) + tokens

    def _wait(self, window: int, now: float, wall: float) -> float:
        limit = self._limits[window]
        if window != TOKENS_PER_MINUTE:
            by_period, period = self.counts[window], self._period(window, now, wall)
            while by_period.get(period + 1, 0) >= limit:  # it was used while the clock was ahead
                period += 1
            return _end_of(window, period) - wall
        by_second = self.counts[TOKENS_PER_MINUTE]
        used = sum(by_second.values())
        for second in sorted(by_second):
            used -= by_second[second]
            if used < limit:
                return second + MINUTE_SECONDS - now
        raise AssertionError("unreachable: without its seconds, a minute has nothing")

    def _resets_in(self, window: int, now: float, wall: float) -> float:
        if window != TOKENS_PER_MINUTE:
            return _end_of(window, self._period(window, now, wall)) - wall
        used = [second for second, tokens in self.counts[window].items() if tokens]
        return max(used) + MINUTE_SECONDS - now if used else 0.0


def _amount(window: int, tokens: int, milliseconds: int) -> int:
    return milliseconds if window == ENGINE_SECONDS_PER_DAY else tokens


def _shown(window: int, limit: int) -> int:
    return limit // 1000 if window == ENGINE_SECONDS_PER_DAY else limit
