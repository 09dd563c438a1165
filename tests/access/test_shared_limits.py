"""Several gateways, the real script in a real Valkey, and time and network of the test's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_gguf.access.share import CREDIT_PART
from llama_gguf.access.shared_limits import (
    GATEWAYS,
    MAX_WINDOWS,
    NEW_PULSES,
    RATE,
    SharedLimits,
    digest_in,
)
from tests.access.shared_worlds import NAME, Node, World
from tests.support.stores import REDIS, Client, store

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module", params=["valkey", "redis"])
def client(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Client]:
    if request.param == "redis" and REDIS is None:
        pytest.skip("redis-server is not installed")
    program = REDIS or "" if request.param == "redis" else ""
    folder = tmp_path_factory.mktemp("store")
    with store(folder, program=program) as running, closing(running.client()) as connected:
        yield connected


def hits(node: Node, attempts: int) -> int:
    return sum(node.hit() for _ in range(attempts))


# One gateway needs more than its part -------------------------------------------------------------


def test_all_gateways_at_once_admit_the_limit_together_before_any_call(client: Client) -> None:
    world = World(client, 3, limit=60)

    assert [hits(node, 80) for node in world.nodes] == [20, 20, 20]
    world.converge()
    assert [hits(node, 10) for node in world.nodes] == [0, 0, 0]


def test_a_gateway_gets_the_whole_limit_while_the_others_are_idle(client: Client) -> None:
    world = World(client, 3, limit=60)
    world.pass_time(NEW_PULSES)
    busy, *idle = world.nodes
    for _ in range(200):
        busy.hit()
        world.settle()

    assert len(world.admitted) == 60
    assert [hits(node, 5) for node in idle] == [0, 0]


def test_the_window_opens_again_for_all_of_them(client: Client) -> None:
    world = World(client, 2, limit=60)
    for _ in range(200):
        world.nodes[0].hit()
        world.settle()

    world.pass_time(62)

    assert [hits(node, 80) for node in world.nodes] == [30, 30]


operations = st.lists(
    st.one_of(
        st.tuples(st.just("hit"), st.integers(0, 3)),
        st.tuples(st.just("send"), st.integers(0, 3)),
        st.tuples(st.just("receive"), st.integers(0, 3)),
        st.tuples(st.just("lose"), st.integers(0, 3)),
        st.tuples(st.just("wait"), st.sampled_from([1, 400, 2500])),
        st.sampled_from([("deliver", 0), ("pulse", 0), ("burst", 0), ("converge", 0)]),
    ),
    max_size=80,
)


@settings(max_examples=200, deadline=None)
@given(
    operations=operations,
    gateways=st.integers(2, 4),
    limit=st.sampled_from([1, 3, 10, 60]),
    are_new=st.booleans(),
)
def test_no_order_of_calls_admits_more_than_the_limit(
    client: Client, operations: list[tuple[str, int]], gateways: int, limit: int, *, are_new: bool
) -> None:
    world = World(client, gateways, limit=limit)
    most = max(limit, gateways) + (limit < gateways)
    if are_new:
        most += gateways * max(limit // CREDIT_PART, 1)
    else:
        world.pass_time(NEW_PULSES)
    begin = world.now
    for what, number in operations:
        node = world.nodes[number % gateways]
        if what == "hit":
            node.hit()
        elif what == "burst":
            hits(node, 70)
        elif what == "send":
            node.send()
        elif what == "receive":
            node.receive()
        elif what == "lose":  # only this connection: the call is sent again
            node.drop()
        elif what == "wait":
            world.now += number / 1000
        else:
            getattr(world, what)()
        if world.now - begin > 4.5:  # later, gateways that were silent have left
            break

    assert len(world.admitted) <= most


def test_clocks_of_gateways_do_not_matter(client: Client) -> None:
    world = World(client, 2, limit=10)
    world.nodes[1].behind = -7200
    world.pulse()
    world.converge()
    assert hits(world.nodes[0], 3) == 3
    world.converge()

    assert hits(world.nodes[1], 1) == 1
    world.converge()
    assert world.nodes[1].limiter().remaining(world.nodes[1].now) == 6
    world.pass_time(62)
    assert world.nodes[1].limiter().remaining(world.nodes[1].now) == 10


# Calls that are lost ------------------------------------------------------------------------------


def test_a_call_whose_reply_is_lost_counts_once(client: Client) -> None:
    world = World(client, 2, limit=60)
    node = world.nodes[0]
    assert hits(node, 5) == 5
    node.send(is_lost=True)
    hits(node, 2)

    world.converge()

    assert node.limiter().remaining(node.now) == 53
    assert world.nodes[1].limiter() is not None
    world.pulse()
    world.converge()
    assert world.nodes[1].limiter().remaining(world.nodes[1].now) == 53


def test_what_was_admitted_during_an_outage_is_reported_after_it(client: Client) -> None:
    world = World(client, 2, limit=60)
    for node in world.nodes:
        node.lose()
    assert [hits(node, 80) for node in world.nodes] == [30, 30]

    world.pulse()
    world.converge()
    world.pulse()
    world.converge()

    assert [hits(node, 80) for node in world.nodes] == [0, 0]
    assert [node.limiter().remaining(node.now) for node in world.nodes] == [0, 0]


def test_a_limit_that_is_lowered_while_shares_are_held_admits_no_more(client: Client) -> None:
    world = World(client, 2, limit=60)
    assert [hits(node, 5) for node in world.nodes] == [5, 5]
    world.pass_time(2)  # both know of all 10
    for node in world.nodes:
        node.limiter().limit = 20
    for _ in range(40):
        for node in world.nodes:
            node.hit()
        world.settle()

    assert len(world.admitted) == 20


def test_a_gateway_without_requests_does_not_keep_a_share_of_the_limit_before(
    client: Client,
) -> None:
    world = World(client, 2, limit=60)
    one, idle = world.nodes
    assert [hits(node, 1) for node in world.nodes] == [1, 1]
    world.converge()
    one.limiter().limit = 20
    idle.machine.change_limit(NAME, 20)
    for _ in range(40):
        one.hit()
        world.settle()

    assert len(world.admitted) == 20


# Gateways come and go -----------------------------------------------------------------------------


def test_a_gateway_that_leaves_leaves_its_part_to_the_others(client: Client) -> None:
    world = World(client, 2, limit=60)
    stays, leaves = world.nodes
    assert hits(leaves, 5) == 5
    call = leaves.machine.next_call(leaves=True)
    assert call is not None
    world.run(call)
    world.nodes = [stays]
    world.pulse()
    world.converge()
    for _ in range(100):
        stays.hit()
        world.settle()

    assert stays.state.gateways == 1
    assert len(world.admitted) == 60


def test_a_gateway_that_dies_leaves_its_part_after_some_seconds(client: Client) -> None:
    world = World(client, 2, limit=60)
    assert hits(world.nodes[1], 5) == 5
    world.settle()
    del world.nodes[1]

    world.pass_time(6)
    for _ in range(100):
        world.nodes[0].hit()
        world.settle()

    assert len(world.admitted) == 60


def test_a_gateway_that_was_cut_off_gets_a_new_share(client: Client) -> None:
    world = World(client, 2, limit=60)
    cut = world.nodes.pop()
    assert hits(cut, 3) == 3
    cut.lose()
    world.pass_time(7)
    for _ in range(100):
        world.nodes[0].hit()
        world.settle()
    assert len(world.admitted) == 3 + 60  # it was alone, and the others' requests were not known

    world.nodes.append(cut)
    world.pulse()
    world.converge()

    assert hits(cut, 10) == 0


def test_a_new_gateway_makes_the_others_give_back(client: Client) -> None:
    world = World(client, 1, limit=60)
    world.nodes[0].limiter()
    world.converge()
    assert world.nodes[0].limiter().share.held == 60

    world.nodes.append(Node(world, "new", limit=60))
    world.converge()  # without a pulse of the other one: it is notified

    assert world.nodes[0].state.gateways == 2
    assert sum(hits(node, 80) for node in world.nodes) == 60


# A store that has lost its data -------------------------------------------------------------------


def test_an_empty_store_gets_what_the_gateways_know(client: Client) -> None:
    world = World(client, 2, limit=60)
    for node in world.nodes:
        hits(node, 20)
    world.converge()
    client.do("FLUSHALL")

    world.pulse()
    world.converge()
    world.pulse()
    world.converge()

    assert sum(hits(node, 80) for node in world.nodes) == 20
    fresh = Node(world, "fresh", limit=60)
    world.nodes.append(fresh)
    world.pulse()
    world.converge()
    assert hits(fresh, 10) == 0


def test_changes_are_found_in_a_store_whose_clock_is_behind_that_of_the_lost_one(
    client: Client,
) -> None:
    world = World(client, 2, limit=60)
    world.pass_time(100)
    client.do("FLUSHALL")
    world.now -= 50
    one, other = world.nodes
    world.nodes = [one]
    world.pulse()
    world.converge()
    assert hits(one, 5) == 5
    world.converge()
    world.now += 1

    world.nodes = [one, other]
    for _ in range(2):
        world.pulse()
        world.converge()

    assert other.limiter().remaining(other.now) == 55


# What is stored -----------------------------------------------------------------------------------


def test_nothing_but_digests_and_amounts_is_stored(client: Client) -> None:
    world = World(client, 1, limit=60)
    hits(world.nodes[0], 3)
    world.settle()

    names = {name.decode() for name in client.do("KEYS", "llama-gguf:*")}
    assert NAME in names
    stored = [client.do("HGETALL", name) for name in names if client.do("TYPE", name) == b"hash"]
    assert "alice" not in repr((names, stored))
    assert 0 < client.do("TTL", NAME) <= 120


def test_a_window_of_a_key_that_is_unknown_here_can_be_given_back(client: Client) -> None:
    world = World(client, 2, limit=60)
    stranger = SharedLimits(world.nodes[1].state, "stranger", "channel", lambda _: False)

    stranger.on_recall(NAME)
    call = stranger.next_call()
    assert call is not None
    world.run(call)

    assert dict(zip(*[iter(client.do("HGETALL", NAME))] * 2, strict=True))[b"g:stranger"] == b"0"


def test_a_message_of_another_program_is_ignored(client: Client) -> None:
    machine = World(client, 1, limit=60).nodes[0].machine
    machine.next_call()

    machine.on_recall("theirs")

    assert not machine.has("theirs")


def test_many_windows_are_divided_into_calls(client: Client) -> None:
    world = World(client, 1, limit=60)
    machine = world.nodes[0].machine
    for number in range(150):
        machine.share(f"llama-gguf:{number}:x", limit=9, length=61, kept_seconds=9, counts={})

    sizes = []
    while (call := machine.next_call()) is not None and call.shares:
        sizes.append(len(call.shares))
        machine.on_reply(call, world.run(call), 0.0, 0.0)

    assert sizes == [MAX_WINDOWS, MAX_WINDOWS, 150 - 2 * MAX_WINDOWS]


def test_rates_of_keys_that_are_gone_are_forgotten_and_budgets_kept(client: Client) -> None:
    world = World(client, 1, limit=60)
    machine = world.nodes[0].machine
    world.nodes[0].limiter()
    budget = NAME.replace(RATE, "tokens_per_day")
    machine.share(budget, limit=9, length=0, kept_seconds=9, counts={})
    assert machine.has(NAME)

    machine.keep_only({"another"})

    assert not machine.has(NAME)
    assert machine.has(budget)  # its counts are kept, too
    assert digest_in(NAME) != "another"


def test_gateways_that_were_silent_for_an_hour_are_removed(client: Client) -> None:
    world = World(client, 2, limit=60)
    del world.nodes[1]

    world.now += 3601
    world.pulse()
    world.settle()

    assert b"g1" not in client.do("HKEYS", GATEWAYS)
