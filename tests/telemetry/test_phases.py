from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_gguf.http1.exchange_record import ExchangeRecord, Usage
from llama_gguf.telemetry.phases import MAX_OUTAGES, Outages, phases
from tests.support.exchanges import STARTED_AT, record


def exchange(
    *,
    queued: float = 0.0,
    forwarded: float = 0.0,
    first_byte: float = 0.0,
    first_token: float = 0.0,
    ended: float,
    usage: Usage | None = None,
) -> ExchangeRecord:
    """An exchange with these marks, in seconds after its start; 0 = it did not happen."""
    found = record()
    for name, seconds in (
        ("queued_at", queued),
        ("forwarded_at", forwarded),
        ("first_byte_at", first_byte),
        ("first_token_at", first_token),
        ("ended_at", ended),
    ):
        if seconds:
            setattr(found, name, STARTED_AT + seconds)
    found.usage = usage
    return found


def shown(found: ExchangeRecord, *outages: tuple[float, float]) -> list[tuple[str, float, float]]:
    moved = [(STARTED_AT + first, STARTED_AT + last) for first, last in outages]
    return [
        (name, round(begin - STARTED_AT, 6), round(end - STARTED_AT, 6))
        for name, begin, end in phases(found, moved)
    ]


def timed(prompting: float | None, generating: float | None) -> Usage:
    return Usage(10, 20, 0, generating, prompting=prompting)


STREAM = {"queued": 1.0, "forwarded": 2.0, "first_byte": 2.1, "first_token": 5.0, "ended": 9.0}


@pytest.mark.parametrize(
    ("marks", "usage", "expected"),
    [
        pytest.param(
            STREAM,
            None,
            [("queue", 1, 2), ("prefill", 2, 5), ("decode", 5, 9)],
            id="a stream without timings",
        ),
        pytest.param(
            STREAM,
            timed(2.5, 3.0),
            [("queue", 1, 2), ("prefill", 2.5, 5), ("decode", 5, 8)],
            id="a stream with timings: neither the engine's queue nor a slow client counts",
        ),
        pytest.param(
            STREAM,
            timed(99.0, 99.0),
            [("queue", 1, 2), ("prefill", 2, 5), ("decode", 5, 9)],
            id="timings never exceed the exchange",
        ),
        pytest.param(
            {"forwarded": 2.0, "first_byte": 9.0, "ended": 9.5},
            timed(2.0, 4.0),
            [("prefill", 3, 5), ("decode", 5, 9)],
            id="a complete response with timings",
        ),
        pytest.param(
            {"forwarded": 2.0, "first_byte": 9.0, "ended": 9.5},
            None,
            [],
            id="a complete response without timings",
        ),
        pytest.param(
            {"queued": 1.0, "ended": 4.0}, None, [("queue", 1, 4)], id="left while it waited"
        ),
        pytest.param({"ended": 4.0}, None, [], id="rejected at once"),
        pytest.param(
            {"queued": 1.0, "forwarded": 2.0, "ended": 4.0},
            None,
            [("queue", 1, 2)],
            id="without a response",
        ),
    ],
)
def test_phases_follow_from_the_marks(
    marks: dict[str, float], usage: Usage | None, expected: list[tuple[str, float, float]]
) -> None:
    assert shown(exchange(**marks, usage=usage)) == expected


@pytest.mark.parametrize(
    ("outage", "expected"),
    [
        ((0, 1), [("queue", 1, 4)]),
        ((0, 3), [("load", 1, 3), ("queue", 3, 4)]),
        ((2, 3), [("queue", 1, 2), ("load", 2, 3), ("queue", 3, 4)]),
        ((2, math.inf), [("queue", 1, 2), ("load", 2, 4)]),
        ((0, math.inf), [("load", 1, 4)]),
        ((4, 5), [("queue", 1, 4)]),
    ],
)
def test_waiting_while_no_engine_is_ready_is_load(
    outage: tuple[float, float], expected: list[tuple[str, float, float]]
) -> None:
    waited = exchange(queued=1, forwarded=4, ended=5)

    assert shown(waited, outage) == expected


_moment = st.floats(0.001, 100, allow_nan=False)


@given(
    marks=st.lists(_moment, min_size=5, max_size=5).map(sorted),
    has=st.tuples(*[st.booleans()] * 4),
    prompting=st.none() | _moment,
    generating=st.none() | _moment,
    outages=st.lists(_moment, max_size=8).map(sorted),
)
def test_phases_are_in_order_and_within_the_exchange(
    marks: list[float],
    has: tuple[bool, bool, bool, bool],
    prompting: float | None,
    generating: float | None,
    outages: list[float],
) -> None:
    queued, forwarded, first_byte, first_token = (
        mark if there else 0.0 for mark, there in zip(marks, has, strict=False)
    )
    found = exchange(
        queued=queued,
        forwarded=forwarded,
        first_byte=first_byte,
        first_token=first_token if forwarded and first_byte else 0.0,
        ended=marks[4],
        usage=timed(prompting, generating),
    )
    pairs = list(zip(outages[::2], outages[1::2], strict=False))
    parts = list(phases(found, [(STARTED_AT + a, STARTED_AT + b) for a, b in pairs]))
    edges = [edge for part in parts for edge in (part.begin, part.end)]

    assert edges == sorted(edges)
    assert all(STARTED_AT <= edge <= found.ended_at for edge in edges)


def test_an_outage_begins_with_the_first_state_that_does_not_serve() -> None:
    outages = Outages()
    outages.note(serves=True, since=1.0)
    outages.note(serves=False, since=5.0)  # backoff
    outages.note(serves=False, since=6.0)  # loading

    assert outages.all() == [(5.0, math.inf)]

    outages.note(serves=True, since=9.0)
    outages.note(serves=True, since=9.0)

    assert outages.all() == [(5.0, 9.0)]


def test_the_memory_of_outages_is_bounded() -> None:
    outages = Outages()
    for n in range(2 * MAX_OUTAGES):
        outages.note(serves=bool(n % 2), since=float(n))
        outages.note(serves=not n % 2, since=n + 0.5)

    assert len(outages.all()) <= MAX_OUTAGES + 1
