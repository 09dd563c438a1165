from __future__ import annotations

import math

import pytest

from llama_gguf.engines import roster
from llama_gguf.engines.roster import Demand, Hello, Refused, Roster
from llama_gguf.engines.status import ChildState
from llama_gguf.values import replace

HELLO = Hello("1.2", "secret")
ROSTER = Roster(
    7, ("10.0.0.1:8080", "[fd00::1]:8080"), ChildState.LOADING, "so far", 0.5, "m", "1.2"
)
DEMAND = Demand(7, 3, {"10.0.0.1:8080": 2}, 1)


def test_each_message_is_one_line_that_is_read_again() -> None:
    lines = [roster.to_line(each) for each in (HELLO, ROSTER, DEMAND)]

    assert [line.count(b"\n") for line in lines] == [1, 1, 1]
    assert roster.read_hello(lines[0]) == HELLO
    assert roster.read_roster(lines[1]) == ROSTER
    assert roster.read_demand(lines[2]) == DEMAND


def test_the_key_is_not_in_what_can_be_printed() -> None:
    assert "secret" not in repr(HELLO)


def test_a_refusal_is_raised_with_its_reason() -> None:
    with pytest.raises(Refused, match="another key"):
        roster.read_roster(roster.refusal("another key"))


@pytest.mark.parametrize(
    "line",
    [
        b"GET / HTTP/1.1\r\n",
        b"[]\n",
        b"[" * 100_000,
        b"{}\n",
        b'{"version": 1, "key": "k"}\n',
        b'{"revision": "1", "queued": 0, "running": {}}\n',
        b'{"revision": -1, "queued": 0, "running": {"a": 0}}\n',
        b'{"revision": 1, "queued": 0, "running": {"a": null}}\n',
        b'{"revision": 1, "addresses": [1], "state": "ready", "detail": "", "version": ""}\n',
        b'{"revision": 1, "addresses": [], "state": "no state", "detail": "", "version": ""}\n',
        b"\xff\n",
    ],
)
def test_what_is_no_message_is_an_error_for_every_reader(line: bytes) -> None:
    for read in (roster.read_hello, roster.read_demand, roster.read_roster):
        with pytest.raises(ValueError, match=r"."):
            read(line)


@pytest.mark.parametrize(
    "addresses",
    [["engine"], ["10.0.0.1:0"], ["10.0.0.1:65536"], ["a b:80"], ["a\r\nX: 1:80"], ["h:1"] * 65],
)
def test_what_is_no_list_of_addresses_is_no_roster(addresses: list[str]) -> None:
    line = roster.to_line(replace(ROSTER, addresses=tuple(addresses)))

    with pytest.raises(ValueError, match="addresses"):
        roster.read_roster(line)


@pytest.mark.parametrize("progress", [math.nan, math.inf, -1.0, 1.5])
def test_a_progress_that_is_no_part_is_none(progress: float) -> None:
    line = roster.to_line(replace(ROSTER, progress=progress))

    assert roster.read_roster(line).progress is None
