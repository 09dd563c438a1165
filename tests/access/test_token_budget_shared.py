"""Budgets that several gateways share, with the real script in a real Valkey."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from llama_gguf.access.attributes import Attributes
from llama_gguf.access.budget_ledger import BudgetLedger
from llama_gguf.access.share import LOCAL, OPEN, Share
from llama_gguf.access.shared_limits import EXPIRY_SECONDS, digest_of, window_name
from llama_gguf.access.token_budget import (
    DAY_SECONDS,
    NAMES,
    SHARE_WAIT,
    TOKENS_PER_MINUTE,
    TokenBudget,
    period_of,
)
from tests.access.shared_worlds import Node, World
from tests.support.stores import Client, store

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with store(tmp_path_factory.mktemp("s")) as running, closing(running.client()) as connected:
        yield connected


class Budgeted(Node):
    """A gateway with the budget of one key."""

    budget: TokenBudget

    def share_budget(self, attributes: Attributes, ledger: BudgetLedger | None = None) -> None:
        self.ledger = ledger or BudgetLedger(new_share=self._new_share)
        self.budget = self.ledger.of("alice")
        self.budget.limit(attributes)

    def _new_share(self, key_id: str, window: int, limit: int, counts: dict[int, int]) -> Share:
        slides = window == TOKENS_PER_MINUTE
        share = self.machine.share(
            window_name(digest_of(key_id), NAMES[window]),
            limit=limit,
            length=60 if slides else 0,
            kept_seconds=120 if slides else EXPIRY_SECONDS[window],
            counts=counts,
        )
        share.period = 0 if slides else period_of(window, self.world.now)
        return share

    def use(self, tokens: int, attempts: int = 1) -> int:
        """Admit requests of *tokens* each; how many of *attempts* were."""
        found = 0
        now = self.world.now
        for _ in range(attempts):
            if self.budget.exceeded(now, now) is None:
                self.budget.reserve(tokens, now, now)
                found += 1
        return found

    def used(self) -> list[float]:
        return [state.used for state in self.budget.states(self.world.now, self.world.now)]


class Budgets(World):
    def __init__(self, client: Client, attributes: Attributes, gateways: int = 2) -> None:
        super().__init__(client, 0, limit=1)
        self.budgeted = [Budgeted(self, f"g{n}", limit=1) for n in range(gateways)]
        self.nodes = list(self.budgeted)
        for node in self.budgeted:
            node.share_budget(attributes)
        self.meet()

    def meet(self) -> None:
        for _ in range(3):
            self.pulse()
            self.converge()


PER_DAY = Attributes(tokens_per_day=1000)


def test_a_budget_holds_over_all_gateways(client: Client) -> None:
    world = Budgets(client, PER_DAY)
    admitted = 0
    for _ in range(30):
        for node in world.budgeted:
            admitted += node.use(50)
            world.settle()

    # The limit, and at most one estimate of each gateway.
    assert 20 <= admitted <= 22
    world.meet()
    assert [node.used() for node in world.budgeted] == [[50 * admitted]] * 2


def test_before_any_call_the_gateways_admit_the_budget_together(client: Client) -> None:
    world = Budgets(client, PER_DAY)

    assert [node.use(50, 100) for node in world.budgeted] == [10, 10]


def test_one_gateway_may_use_all_of_it(client: Client) -> None:
    world = Budgets(client, PER_DAY)
    admitted = 0
    for _ in range(200):
        admitted += world.budgeted[0].use(10)
        world.settle()

    assert 100 <= admitted <= 101
    world.meet()
    assert world.budgeted[1].use(10) == 0


@pytest.mark.parametrize(
    ("attributes", "seconds"),
    [
        (Attributes(tokens_per_minute=1000), 61),
        (Attributes(tokens_per_day=1000), DAY_SECONDS),
        (Attributes(tokens_per_month=1000), 32 * DAY_SECONDS),
    ],
)
def test_each_window_opens_again(client: Client, attributes: Attributes, seconds: int) -> None:
    world = Budgets(client, attributes)
    for node in world.budgeted:
        node.use(100, 100)
    world.meet()
    assert [node.use(100) for node in world.budgeted] == [0, 0]

    world.now += seconds
    world.meet()

    assert [node.use(100, 100) for node in world.budgeted] == [5, 5]


def test_engine_seconds_are_shared(client: Client) -> None:
    world = Budgets(client, Attributes(engine_seconds_per_day=10))

    assert [node.use(1, 100) for node in world.budgeted] == [5, 5]  # a second is estimated for each
    world.meet()
    assert [node.used() for node in world.budgeted] == [[10.0], [10.0]]


def test_what_a_request_did_not_use_is_given_back_to_all(client: Client) -> None:
    world = Budgets(client, PER_DAY)
    one, other = world.budgeted
    now = world.now
    reserved = one.budget.reserve(900, now, now)
    world.meet()
    assert other.used() == [900]

    one.budget.settle(reserved, 100, 0, now=now, wall=now)
    world.meet()

    assert other.used() == [100]


def test_a_budget_that_is_used_up_says_until_when_and_a_missing_share_a_second(
    client: Client,
) -> None:
    world = Budgets(client, PER_DAY)
    node = world.budgeted[0]
    node.use(50, 100)
    refused = node.budget.exceeded(world.now, world.now)
    assert refused is not None
    assert refused.is_share
    assert refused.wait == SHARE_WAIT

    world.budgeted[1].use(50, 100)
    world.meet()

    refused = node.budget.exceeded(world.now, world.now)
    assert refused is not None
    assert not refused.is_share
    assert 0 < refused.wait <= DAY_SECONDS


def test_a_new_gateway_knows_what_was_used_before_its_first_request(client: Client) -> None:
    world = Budgets(client, PER_DAY)
    world.budgeted[0].use(100, 5)
    world.meet()

    fresh = Budgeted(world, "fresh", limit=1)
    world.nodes.append(fresh)
    fresh.share_budget(PER_DAY)
    world.meet()

    assert fresh.used() == [500]


def test_an_empty_store_reopens_no_budget(client: Client) -> None:
    world = Budgets(client, PER_DAY)
    for node in world.budgeted:
        node.use(100, 5)
    world.meet()
    client.do("FLUSHALL")

    world.meet()

    assert [node.use(100) for node in world.budgeted] == [0, 0]
    assert [node.used() for node in world.budgeted] == [[1000], [1000]]


def test_a_budget_from_the_file_survives_an_empty_store_and_a_restart(client: Client) -> None:
    world = Budgets(client, PER_DAY)
    world.budgeted[0].use(100, 4)
    world.meet()
    text = world.budgeted[0].ledger.dump()
    world.nodes.clear()
    client.do("FLUSHALL")

    again = Budgeted(world, "again", limit=1)
    ledger = BudgetLedger(new_share=again._new_share)
    ledger.rebase(BudgetLedger.load(text), world.now)
    again.share_budget(PER_DAY, ledger)
    world.nodes.append(again)
    world.meet()

    assert again.used() == [400]
    assert (
        client.do(
            "HGET", window_name(digest_of("alice"), NAMES[1]), str(int(world.now // DAY_SECONDS))
        )
        == b"400"
    )


@pytest.mark.parametrize(("outage", "admitted"), [(LOCAL, [3, 3]), (OPEN, [50, 50])])
def test_in_an_outage_the_policy_decides(client: Client, outage: int, admitted: list[int]) -> None:
    world = Budgets(client, PER_DAY)
    world.budgeted[0].use(100, 4)
    world.meet()
    for node in world.budgeted:
        node.state.outage = outage
        node.lose()

    assert [node.use(100, 50) for node in world.budgeted] == admitted


def test_a_limit_that_is_raised_applies_at_all_gateways(client: Client) -> None:
    world = Budgets(client, PER_DAY)
    for node in world.budgeted:
        node.use(100, 100)
    world.meet()

    for node in world.budgeted:
        node.budget.limit(Attributes(tokens_per_day=2000))
    world.meet()

    assert [node.use(100, 100) for node in world.budgeted] == [5, 5]
