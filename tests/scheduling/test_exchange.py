from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_gguf.errors import IllegalTransition
from llama_gguf.scheduling.exchange import PHASES, TRANSITIONS, Event, Exchange, State
from tests.support.exchanges import new_exchange

E, S = Event, State


def after(*events: Event) -> Exchange:
    found = new_exchange()
    for event in events:
        found.on(event)
    return found


@pytest.mark.parametrize(
    ("events", "state"),
    [
        ([], S.READING),
        ([E.QUEUE], S.QUEUED),
        ([E.QUEUE, E.FORWARD], S.FORWARDING),
        ([E.FORWARD, E.HEAD_SENT], S.STREAMING),
        ([E.QUEUE, E.FORWARD, E.HEAD_SENT, E.RESPONSE_SENT], S.DONE),
        ([E.QUEUE, E.FORWARD, E.RESPONDED], S.DONE),
        ([E.FORWARD, E.REQUEUE, E.FORWARD], S.FORWARDING),
        ([E.QUEUE, E.FORWARD, E.REQUEUE], S.QUEUED),
        ([E.RESPONDED], S.DONE),
        ([E.QUEUE, E.RESPONDED], S.DONE),
        ([E.LOST], S.ABORTED),
        ([E.QUEUE, E.LOST], S.ABORTED),
        ([E.FORWARD, E.LOST], S.ABORTED),
        ([E.FORWARD, E.HEAD_SENT, E.LOST], S.ABORTED),
    ],
    ids=lambda value: " ".join(e.name for e in value) if isinstance(value, list) else None,
)
def test_a_sequence_of_events_leads_to_its_state(events: list[Event], state: State) -> None:
    assert after(*events).state is state


@pytest.mark.parametrize(
    ("events", "then"),
    [
        ([], E.HEAD_SENT),  # a response of the engine to a request that it was not sent
        ([E.RESPONDED], E.RESPONDED),  # a second response
        ([E.FORWARD, E.HEAD_SENT], E.RESPONDED),
        ([E.FORWARD, E.HEAD_SENT, E.RESPONSE_SENT], E.HEAD_SENT),
        ([E.RESPONDED], E.FORWARD),  # forwarded after the gateway has responded
        ([E.FORWARD], E.FORWARD),  # forwarded twice
        ([E.FORWARD], E.QUEUE),
        ([], E.REQUEUE),
        ([E.FORWARD, E.RESPONDED], E.REQUEUE),
        ([E.QUEUE], E.QUEUE),
        ([], E.RESPONSE_SENT),
        ([E.FORWARD], E.RESPONSE_SENT),
        ([E.RESPONDED], E.LOST),  # a final state
        ([E.LOST], E.LOST),
        ([E.QUEUE, E.LOST], E.FORWARD),  # a slot for a client that has disconnected
        ([E.LOST], E.HEAD_SENT),
    ],
    ids=lambda value: " ".join(e.name for e in value) if isinstance(value, list) else value.name,
)
def test_an_illegal_event_raises_and_changes_nothing(events: list[Event], then: Event) -> None:
    found = after(*events)
    before = found.state

    with pytest.raises(IllegalTransition, match=f"{then.name} while {before.name}"):
        found.on(then)

    assert found.state is before


@given(events=st.lists(st.sampled_from(Event), max_size=12))
def test_no_order_of_events_sends_two_heads_or_forwards_twice(
    events: list[Event],
) -> None:
    found = new_exchange()
    happened: list[Event] = []
    for event in events:
        could_reply = found.may_reply
        try:
            found.on(event)
        except IllegalTransition:
            continue
        happened.append(event)
        assert could_reply or not found.may_reply  # a head cannot be unsent
        assert could_reply or event not in (E.HEAD_SENT, E.RESPONDED)

    again = happened.count(E.REQUEUE)
    assert happened.count(E.FORWARD) <= 1 + again
    assert all(happened.count(e) <= 1 for e in Event if e not in (E.FORWARD, E.REQUEUE))


def test_a_status_can_be_sent_only_before_a_head() -> None:
    assert [s for s in State if at(s).may_reply] == [S.READING, S.QUEUED, S.FORWARDING]


def at(state: State) -> Exchange:
    found = new_exchange()
    found.state = state
    return found


def test_each_state_in_which_a_client_can_disconnect_has_a_phase() -> None:
    may_leave = set(TRANSITIONS[E.LOST])

    assert set(PHASES) == may_leave
    # The two open states have the same phases as those without a head.
    assert len(set(PHASES.values())) == len(may_leave) - 2


def test_all_events_are_possible_all_states_reachable_and_only_two_are_final() -> None:
    ends = {S.DONE, S.ABORTED}
    moves = [move for moves in TRANSITIONS.values() for move in moves.items()]

    assert set(TRANSITIONS) == set(Event)
    assert {state for _, state in moves} | {S.READING} == set(State)
    assert {state for state, _ in moves} == set(State) - ends
    back = {(state, then) for state, then in moves if then < state}
    assert back == set(TRANSITIONS[E.REQUEUE].items()), "only REQUEUE leads back"


def test_exchanges_do_not_share_their_numbers() -> None:
    first, second = new_exchange(), new_exchange()
    first.bytes_in, first.status, first.rate_fields = 5, 200, b"x: y"

    assert (second.bytes_in, second.status, second.rate_fields) == (0, 0, b"")
