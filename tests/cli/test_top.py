from __future__ import annotations

from typing import Any

import pytest

from llama_gguf.cli.top import picture
from tests.cli.test_operate import COUNTS, GATEWAY, PEER, facts, replica

KEYS = [{"key_id": f"key-{n}", "total": COUNTS, "last_minute": COUNTS} for n in range(20)]
FULL: dict[str, Any] = facts(
    log=[f"line {n} " + "x" * 200 for n in range(40)],
    replicas=[replica(name=str(n)) for n in range(8)],
    gateway={**GATEWAY, "keys": KEYS},
)


@pytest.mark.parametrize("columns", [20, 80, 200])
@pytest.mark.parametrize("lines", [3, 10, 24, 60])
def test_a_picture_fits_any_terminal(columns: int, lines: int) -> None:
    shown = picture(FULL, columns, lines)

    assert len(shown) <= lines
    assert max(map(len, shown)) <= columns


def test_a_terminal_of_80_by_24_shows_slots_replicas_keys_and_the_end_of_the_log() -> None:
    text = "\n".join(picture(FULL, 80, 24))

    assert "tiny  ready" in text
    assert "slots [#...] 1 of 4   queue 3 of 256" in text
    assert "line 39 " in text
    assert "KEY " in text or "replica 0" in text


def test_what_has_no_place_is_counted() -> None:
    text = "\n".join(picture(FULL, 100, 40))

    assert "more" in text
    assert "replica 7" in text


def test_one_replica_has_no_list_of_replicas() -> None:
    assert not any(line.startswith("replica") for line in picture(facts(), 80, 24))


def test_states_are_below_each_other_however_long_the_names_are() -> None:
    name = "a-machine-with-a-long-name.example:8000"
    others = [{**PEER, "replica": name}, {**PEER, "replica": "b:1"}]

    shown = picture(facts(gateway={**GATEWAY, "replicas": others}), 120, 40)

    rows = [line for line in shown if line.startswith(("replica ", "peer "))]
    assert len(rows) == 3
    assert {line.index("ready for") for line in rows} == {len(f"peer {name}  ")}


def test_a_gateway_that_does_not_respond_is_shown() -> None:
    assert "The gateway does not respond." in picture(facts(gateway=None), 80, 24)


def test_no_output_of_the_engine_can_move_the_cursor() -> None:
    shown = picture(facts(log=["a\x1b[2J\rb\tc"]), 80, 24)

    assert shown[-1] == "a [2J b c"
