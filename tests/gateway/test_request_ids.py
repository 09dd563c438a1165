from __future__ import annotations

import re

from llama_gguf.gateway.request_ids import RequestIds


def test_they_are_unique_among_gateways() -> None:
    first, second = RequestIds(), RequestIds()

    assert first.next() != first.next()
    assert first.next()[:16] != second.next()[:16]


def test_they_go_on_being_unique_and_keep_their_form() -> None:
    ids = RequestIds()
    found = [ids.next() for _ in range(1000)]

    assert len(set(found)) == len(found)
    assert all(re.fullmatch(rb"req-[0-9a-f]{12}-[0-9a-f]{8}", one) for one in found)
