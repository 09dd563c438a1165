"""The format of the metrics that a client accepts.

JSON is made in ``metrics_json.py``, Prometheus' text formats in ``exposition.py``.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Iterator
from typing import Final, TypeVar

_Item = TypeVar("_Item")

ITEMS_PER_PAUSE: Final = 128
"""Less than a millisecond of work."""


class Format(enum.Enum):
    JSON = "json"
    PROMETHEUS = "prometheus"
    OPENMETRICS = "openmetrics"


def negotiated_format(accept: bytes, query: bytes) -> Format:
    """The format of the metrics for a request with the field *accept* and this *query*."""
    for part in accept.split(b","):
        # Version 0 of OpenMetrics is a draft: its clients get Prometheus' text.
        if part.strip().startswith(b"application/openmetrics-text") and b"version=0" not in part:
            return Format.OPENMETRICS
    is_text = b"openmetrics" in accept or b"text/plain" in accept
    is_requested = b"format=prometheus" in query.split(b"&")
    return Format.PROMETHEUS if is_text or is_requested else Format.JSON


def paced(items: Iterable[_Item], pause: Callable[[], None] | None) -> Iterator[_Item]:
    """*items*, with a call of *pause* now and then, for work on a thread."""
    for number, item in enumerate(items, 1):
        if pause is not None and not number % ITEMS_PER_PAUSE:
            pause()
        yield item
