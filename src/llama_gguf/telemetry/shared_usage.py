"""The usage of keys at all gateways that share limits: what is sent to the store, and read from it.

The protocol is this module and ``shared_usage.lua``. As for the limits, a call without a reply is
sent again as it was, and the store adds it once. Nothing here does I/O or reads a clock.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final

from llama_gguf.telemetry.batch import COUNTS
from llama_gguf.telemetry.usage_totals import WINDOWS, UsageTotals

PREFIX: Final = "llama-gguf:usage:"
MAX_KEYS: Final = 100
"""In one call: some 2 ms of the store's time."""
_NO_CHANGES: Final = "+inf"


class SharedUsage:
    """One gateway's view of the usage at all of them.

    Args:
        gateway_id: random; of this process.
        digest_of: makes the name of a key in the store from its id.
        now: POSIX seconds.
    """

    def __init__(self, gateway_id: str, digest_of: Callable[[str], str], now: float) -> None:
        self.keys = (f"{PREFIX}call:{gateway_id}", f"{PREFIX}since", f"{PREFIX}changed")
        """Of the script."""
        self._digest_of = digest_of
        self.totals = UsageTotals(now)
        """A sink of exchanges, and what is known of the usage at all gateways."""
        self._number = 0
        self._since = "0"
        self._unsent: list[str] = []
        """JSON, one text per key."""
        self._unanswered: list[str] | None = None

    def look_again(self) -> None:
        """Read the usage of all keys: other ones are known now."""
        self._since = "0"

    @property
    def is_sent(self) -> bool:
        """Whether the store has all that ``next_call`` has taken so far."""
        return self._unanswered is None and not self._unsent

    def next_call(self) -> list[str]:
        """The arguments of the call to send now; those of the last one, if it has no reply."""
        if self._unanswered is not None:
            return self._unanswered
        taken = self.totals.take_unsaved()
        if taken is not None:
            self._unsent += [
                json.dumps(
                    [
                        self._digest_of(key_id),
                        total,
                        [[name, span, counts, WINDOWS[name]] for name, span, counts in spans],
                    ],
                    separators=(",", ":"),
                )
                for key_id, total, spans in taken.changes()
            ]
        now, self._unsent = self._unsent[:MAX_KEYS], self._unsent[MAX_KEYS:]
        self._number += 1
        # What changes elsewhere replaces what is known here, so that all of it has to be sent.
        since = _NO_CHANGES if self._unsent else self._since
        self._unanswered = [str(self._number), since, PREFIX, *now]
        return self._unanswered

    def on_reply(self, reply: list[Any], key_of: Callable[[str], str | None], now: float) -> bool:
        """Take over the store's reply.

        Args:
            reply: of the script.
            key_of: returns the id of a key by its digest; None if that is not known here.
            now: POSIX seconds.

        Returns:
            Whether there is more to send or to read.
        """
        assert self._unanswered is not None
        asked, self._unanswered = self._unanswered[1], None
        since, newest, has_more, changed = reply
        known = UsageTotals(float(since))
        for digest, fields in changed:
            key_id = key_of(digest.decode())
            if key_id is not None:
                _read(known, key_id, [field.decode() for field in fields])
        self.totals.renew(known, now)
        if asked != _NO_CHANGES and asked == self._since:
            self._since = newest.decode()
        return bool(has_more or self._unsent)


def _read(into: UsageTotals, key_id: str, fields: list[str]) -> None:
    total = [0] * len(COUNTS)
    spans = []
    for name, text in zip(fields[::2], fields[1::2], strict=True):
        counts = [int(number) for number in text.split(",")]
        if len(counts) != len(COUNTS):  # of another version
            continue
        window, _, span = name.partition(":")
        if window == "total":
            total = counts
        else:
            spans.append((window, int(span), counts))
    into.take_over(key_id, total, spans)
