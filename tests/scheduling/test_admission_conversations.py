"""What sessions are worth: conversations on several engines, simulated with a fake clock."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from typing import Final

import pytest

from llama_gguf.errors import GatewayError
from llama_gguf.scheduling.admission import Admission, SlotLease
from llama_gguf.scheduling.balancer import Balancer, Slots
from llama_gguf.scheduling.sessions import NO_SESSION

ENGINES: Final = 3
SLOTS: Final = 2
CONVERSATIONS: Final = 18
TURNS: Final = 6
FIRST, QUESTION, REPLY = 150, 25, 16  # tokens
PROMPT_TOKENS_PER_SECOND: Final = 2000
REPLY_SECONDS: Final = 0.4
THINK_SECONDS: Final = 0.2


class Simulation:
    """Conversations whose client has *at_once* requests at most."""

    def __init__(self, *, at_once: int, has_sessions: bool, seed: int) -> None:
        self.random = random.Random(seed)
        self.has_sessions = has_sessions
        self.balancer: Balancer[int] = Balancer()
        for engine in range(ENGINES):
            self.balancer.add(Slots(engine, SLOTS))
        self.admission = Admission(self.balancer, queue_size=1000)
        self.now = 0.0
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.numbers = itertools.count()
        self.permits = at_once
        self.held_back: list[Turn] = []
        self.computed = 0
        self.least = 0

    def at(self, when: float, act: Callable[[], None]) -> None:
        heapq.heappush(self.events, (when, next(self.numbers), act))

    def send(self, turn: Turn) -> None:
        if not self.permits:
            self.held_back.append(turn)
            return
        self.permits -= 1
        granted = self.admission.arrive(turn, turn.key_id, turn.session)
        if isinstance(granted, SlotLease):
            turn.on_slot(granted)

    def done(self) -> None:
        self.permits += 1
        if self.held_back:
            self.send(self.held_back.pop(0))

    def run(self) -> float:
        """The prompt tokens that are computed, over the least possible."""
        for number in range(1, CONVERSATIONS + 1):
            self.send(Turn(self, number if self.has_sessions else NO_SESSION))
        while self.events:
            self.now, _, act = heapq.heappop(self.events)
            act()
        return self.computed / self.least


class Turn:
    """The next request of a conversation."""

    key_id = "alice"

    def __init__(self, simulation: Simulation, session: int) -> None:
        self.simulation = simulation
        self.session = session
        self.size = FIRST
        self.seen = 0
        self.turns = 0
        self.cached: dict[int, int] = {}
        """Tokens that an engine need not compute."""

    def on_slot(self, lease: SlotLease[int]) -> None:
        simulation = self.simulation
        computed = self.size - self.cached.get(lease.engine, 0)
        simulation.computed += computed
        simulation.least += self.size - self.seen
        duration = REPLY_SECONDS * simulation.random.uniform(0.5, 1.5)

        def end() -> None:
            self.seen = self.size = self.size + REPLY
            self.cached[lease.engine] = self.seen
            self.size += QUESTION
            self.turns += 1
            lease.release()
            simulation.done()
            if self.turns < TURNS:
                pause = simulation.random.uniform(0, THINK_SECONDS)
                simulation.at(simulation.now + pause, lambda: simulation.send(self))

        simulation.at(simulation.now + computed / PROMPT_TOKENS_PER_SECOND + duration, end)

    def on_refused(self, error: GatewayError) -> None:
        raise AssertionError(error)


@pytest.mark.parametrize("at_once", [ENGINES * SLOTS, CONVERSATIONS])
def test_sessions_save_more_than_half_of_the_prompt_work(at_once: int) -> None:
    def works(*, has_sessions: bool) -> list[float]:
        return [
            Simulation(at_once=at_once, has_sessions=has_sessions, seed=seed).run()
            for seed in range(10)
        ]

    assert min(works(has_sessions=False)) > 2.2
    assert sum(works(has_sessions=True)) / 10 < 1.1
