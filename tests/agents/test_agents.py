"""Agents through what an engine does to them: a slow prompt, a restart, a busy key, a full context.

Each is run once with a patience that is shorter than what happens, so that these tests show in
seconds what the agents' own time-outs show in minutes. ``make test-agents`` runs them; they are not
among the usual tests, since the programs are large.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agents import clis
from tests.agents.clis import AGENTS, Agent, Outcome
from tests.agents.engine import CONTEXT, TEXT, AgentEngine, Fault
from tests.support.clients import Wire
from tests.support.gateways import GatewayProcess, Processes
from tests.support.keys import KEY
from tests.support.messages import request
from tests.support.processes import until

pytestmark = [pytest.mark.agents, pytest.mark.processes, pytest.mark.timeout(600)]

PROMPT_SECONDS = 20.0
PATIENCE_SECONDS = 10.0
KEEPALIVE_SECONDS = 1.0


@pytest.fixture(scope="session", autouse=True)
def installed() -> None:
    clis.install()


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    processes = Processes(tmp_path)
    yield processes
    processes.close()


@pytest.fixture(params=list(AGENTS))
def agent(request: pytest.FixtureRequest) -> Agent:
    return AGENTS[request.param]


def gateway_for(processes: Processes, engine: AgentEngine, *, per_key: int = 0) -> GatewayProcess:
    return processes.gateway(
        ("127.0.0.1", engine.server_port),
        SSE_KEEPALIVE=KEEPALIVE_SECONDS,
        MAX_CONCURRENT_PER_KEY=per_key,
    )


def run(agent: Agent, gateway: GatewayProcess, *, patience: float = 60.0) -> Outcome:
    folder = gateway.folder / "agent"
    folder.mkdir()
    return agent.run(folder, f"http://127.0.0.1:{gateway.port}", KEY, patience=patience)


def requests_of(engine: AgentEngine, agent: Agent) -> int:
    assert {path for path, _, _ in engine.requests} == {agent.path}
    return len(engine.requests)


def test_a_prompt_that_takes_longer_than_an_agents_patience_is_waited_for(
    agent: Agent, processes: Processes
) -> None:
    with AgentEngine(PROMPT_SECONDS) as engine:
        gateway = gateway_for(processes, engine)
        outcome = run(agent, gateway, patience=PATIENCE_SECONDS)

        assert outcome.status == 0, outcome.output
        assert TEXT in outcome.output
        assert requests_of(engine, agent) == (2 if agent.name == "opencode" else 1)  # and a title


def test_an_engine_that_dies_while_it_reads_the_prompt_goes_unnoticed(
    agent: Agent, processes: Processes
) -> None:
    # Longer than a death takes, or OpenCode would end while its title is being sent again.
    with AgentEngine(prompt_seconds=4.0, faults=(Fault.DIES,)) as engine:
        gateway = gateway_for(processes, engine)
        outcome = run(agent, gateway)

        assert outcome.status == 0, outcome.output
        assert TEXT in outcome.output
        until(lambda: any(line.get("replays") == "1" for line in gateway.logged()), "a replay")
        statuses = {line["status"] for line in gateway.logged()}
        assert statuses == {"200"}


def test_a_key_that_is_busy_delays_an_agent_and_no_more(agent: Agent, processes: Processes) -> None:
    with AgentEngine(prompt_seconds=120.0) as engine:
        gateway = gateway_for(processes, engine, per_key=1)

        def release_after_a_refusal() -> None:
            until(lambda: was_refused(gateway), "a 429", seconds=100)
            engine.release.set()

        with Wire(("127.0.0.1", gateway.port), seconds=150) as other:
            other.send(request("POST", agent.path, body=b"{}"))
            until(lambda: bool(engine.requests), "the other request")
            watcher = threading.Thread(target=release_after_a_refusal)
            watcher.start()
            outcome = run(agent, gateway)
            watcher.join()

    assert outcome.status == 0, outcome.output
    assert TEXT in outcome.output
    assert was_refused(gateway)


def was_refused(gateway: GatewayProcess) -> bool:
    return any(
        (line["status"], line["outcome"]) == ("429", "concurrency_limit_exceeded")
        for line in gateway.logged()
    )


SEES_OVERFLOW = {
    "codex": "ran out of room in the model's context window",
    "claude": f"(limit {CONTEXT})",
    "opencode": TEXT,
}
"""What the user sees: OpenCode compacts the conversation and continues."""


def test_a_prompt_that_is_too_long_is_recognised(agent: Agent, processes: Processes) -> None:
    # OpenCode sends a request for a title before or beside the prompt.
    count = 2 if agent.name == "opencode" else 1
    with AgentEngine(faults=(Fault.OVERFLOWS,) * count) as engine:
        outcome = run(agent, gateway_for(processes, engine))

        assert SEES_OVERFLOW[agent.name] in outcome.output
        assert requests_of(engine, agent) == (4 if agent.name == "opencode" else 1)
