"""The usage of keys at several gateways, with the real script in a real Valkey."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from importlib import resources
from typing import Any, Final

import pytest

from llama_gguf.telemetry.batch import COUNTS
from llama_gguf.telemetry.shared_usage import MAX_KEYS, PREFIX, SharedUsage
from tests.support.stores import Client, store

pytestmark = pytest.mark.processes

SCRIPT: Final = (
    resources.files("llama_gguf.telemetry").joinpath("shared_usage.lua").read_text(encoding="utf-8")
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with store(tmp_path_factory.mktemp("s")) as running, closing(running.client()) as connected:
        yield connected


@pytest.fixture
def client(server: Client) -> Client:
    server.do("FLUSHALL")
    return server


def digest_of(key_id: str) -> str:
    return f"digest-of-{key_id}"


def key_of(digest: str) -> str | None:
    return digest.removeprefix("digest-of-")


class Node:
    def __init__(self, client: Client, name: str) -> None:
        self.client = client
        self.now = float(client.do("TIME")[0])  # windows are those of the server's clock
        self.usage = SharedUsage(name, digest_of, self.now)

    def add(self, key_id: str, requests: int = 1, now: float | None = None) -> None:
        counts = [requests, 0, 10 * requests, 5 * requests, 0, 0]
        self.usage.totals.add(key_id, counts, self.now if now is None else now)

    def call(self) -> list[Any]:
        words = (
            "EVAL",
            SCRIPT,
            str(len(self.usage.keys)),
            *self.usage.keys,
            *self.usage.next_call(),
        )
        found: list[Any] = self.client.do(*words)
        return found

    def synchronise(self) -> None:
        while self.usage.on_reply(self.call(), key_of, self.now):
            pass

    def requests(self, key_id: str, window: str = "total") -> int:
        view: Any = self.usage.totals.view(key_id, self.now)
        return int(view[window]["requests"])


@pytest.fixture
def nodes(client: Client) -> list[Node]:
    return [Node(client, "one"), Node(client, "other")]


def test_every_gateway_shows_the_sum(nodes: list[Node]) -> None:
    one, other = nodes
    one.add("alice", 3)
    other.add("alice", 4)
    other.add("bob")
    for node in (one, other, one):
        node.synchronise()

    for node in nodes:
        assert node.requests("alice") == node.requests("alice", "last_minute") == 7
        assert node.requests("bob", "last_day") == 1
        assert [view["key_id"] for view in node.usage.totals.views(node.now)] == ["alice", "bob"]
    view: Any = one.usage.totals.view("alice", one.now)
    assert view["total"] == dict(zip(COUNTS, [7, 0, 70, 35, 0, 0], strict=True))


def test_what_is_not_sent_yet_is_shown_where_it_was_counted(nodes: list[Node]) -> None:
    one, other = nodes
    other.add("alice", 4)
    other.synchronise()
    one.add("alice", 3)
    call = one.call()
    one.add("alice", 2)

    one.usage.on_reply(call, key_of, one.now)

    assert one.requests("alice") == 9
    one.synchronise()
    assert one.requests("alice") == 9


def test_a_call_whose_reply_is_lost_counts_once(nodes: list[Node]) -> None:
    one, other = nodes
    one.add("alice", 3)
    one.call()

    one.synchronise()
    other.synchronise()

    assert one.requests("alice") == other.requests("alice") == 3


def test_windows_end_and_totals_stay(nodes: list[Node], client: Client) -> None:
    one, other = nodes
    one.add("alice", 3, now=one.now - 2 * 86_400)
    one.synchronise()
    one.add("alice", 1)
    one.synchronise()
    other.synchronise()

    assert other.requests("alice") == 4
    assert other.requests("alice", "last_day") == 1
    fields = client.do("HKEYS", PREFIX + digest_of("alice"))
    assert len(fields) == 4  # the total and one span of each window


def test_many_keys_are_divided_into_calls(nodes: list[Node]) -> None:
    one, other = nodes
    for number in range(2 * MAX_KEYS + 50):
        one.add(f"key-{number}")
    one.synchronise()
    other.synchronise()

    assert len(other.usage.totals.views(other.now)) == 2 * MAX_KEYS + 50
    assert other.requests("key-7") == 1


def test_only_changes_are_read(nodes: list[Node]) -> None:
    one, other = nodes
    one.add("alice")
    one.synchronise()
    other.synchronise()
    one.add("bob")
    one.synchronise()

    _, _, _, changed = other.call()

    assert digest_of("bob").encode() in [digest for digest, _ in changed]
    assert len(changed) <= 2


def test_keys_that_are_not_known_here_are_not_shown_until_they_are(nodes: list[Node]) -> None:
    one, other = nodes
    one.add("alice")
    one.synchronise()
    other.usage.on_reply(other.call(), lambda _: None, other.now)
    assert other.usage.totals.views(other.now) == []

    other.usage.look_again()
    other.synchronise()

    assert other.requests("alice") == 1


def test_usage_has_been_counted_since_the_store_was_first_used(nodes: list[Node]) -> None:
    one, other = nodes
    one.synchronise()
    other.usage.totals.since += 500
    other.synchronise()

    assert other.usage.totals.since == one.usage.totals.since


def test_neither_ids_of_keys_nor_anything_but_numbers_is_stored(
    nodes: list[Node], client: Client
) -> None:
    nodes[0].add("alice")
    nodes[0].synchronise()

    assert client.do("HGET", PREFIX + digest_of("alice"), "total") == b"1,0,10,5,0,0"
    assert set(client.do("KEYS", "*")) == {
        *(name.encode() for name in nodes[0].usage.keys),
        (PREFIX + digest_of("alice")).encode(),
    }
