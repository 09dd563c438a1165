from __future__ import annotations

import pytest

from llama_gguf.telemetry.formats import ITEMS_PER_PAUSE, Format, negotiated_format, paced


@pytest.mark.parametrize(
    ("accept", "query", "expected"),
    [
        (b"", b"", Format.JSON),
        (b"*/*", b"", Format.JSON),
        (b"application/json", b"", Format.JSON),
        (b"text/plain; version=0.0.4", b"", Format.PROMETHEUS),
        (b"text/html, application/openmetrics-text; version=1.0.0", b"", Format.OPENMETRICS),
        (b"application/openmetrics-text; version=0.0.1", b"", Format.PROMETHEUS),
        (b"*/*", b"format=prometheus", Format.PROMETHEUS),
        (b"*/*", b"a=b&format=prometheus", Format.PROMETHEUS),
        (b"*/*", b"format=prometheus2", Format.JSON),
    ],
)
def test_a_client_gets_a_format_that_it_accepts(
    accept: bytes, query: bytes, expected: Format
) -> None:
    assert negotiated_format(accept, query) is expected


def test_items_are_the_same_with_a_pause_now_and_then() -> None:
    pauses: list[int] = []
    items = range(2 * ITEMS_PER_PAUSE + 1)

    assert [*paced(items, lambda: pauses.append(1))] == [*items]
    assert len(pauses) == 2
    assert [*paced(items, None)] == [*items]
