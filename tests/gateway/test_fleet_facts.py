from __future__ import annotations

from llama_gguf.engines.address import EngineAddress
from llama_gguf.engines.status import ChildState, EngineStatus
from llama_gguf.gateway import fleet_facts
from llama_gguf.gateway.endpoints import gauges
from llama_gguf.gateway.replica import Replica
from llama_gguf.values import replace
from tests.support.fakes import Rig
from tests.support.keys import BACKEND_KEY
from tests.support.messages import request
from tests.support.metrics_text import as_json

PEER = "10.0.0.2:8080"
READY = EngineStatus(ChildState.READY, since=0.0, slots=2, model="m", request_tokens=4096)


def with_peer(rig: Rig) -> Replica:
    peer = rig.fleet.add(EngineAddress.from_key(PEER, api_key=BACKEND_KEY), PEER)
    peer.tracker.update(READY)
    return peer


def states(rig: Rig) -> list[object]:
    return [each["state"] for each in fleet_facts.facts(rig.services)]


def test_each_replica_is_listed_with_what_it_does(rig: Rig) -> None:
    with_peer(rig)
    rig.send_request()
    health = rig.client()
    health.send(request("GET", "/health", key=None))
    first, second = health.response.json["replicas"]

    assert (first["replica"], second["replica"]) == ("0", PEER)
    assert {
        "model": "m",
        "context": 4096,
        "slots": 2,
        "cached_ratio": None,
    }.items() <= second.items()
    assert first["running"] + second["running"] == 1
    assert BACKEND_KEY not in str(health.response.json)


def test_the_state_is_the_reason_why_a_replica_gets_no_requests(rig: Rig) -> None:
    peer = with_peer(rig)
    seen = [states(rig)[1]]
    peer.tracker.update(replace(READY, state=ChildState.LOADING))
    seen.append(states(rig)[1])
    peer.tracker.update(replace(READY, model="other"))
    seen.append(states(rig)[1])
    peer.tracker.update(READY)
    rig.fleet.on_refused(peer, 2.0)
    seen.append(states(rig)[1])
    rig.send_request()
    peer.slots.in_use += 1
    rig.fleet.remove(PEER)
    seen.append(states(rig)[1])
    peer.slots.in_use -= 1

    assert seen == ["ready", "loading", "mismatch", "busy", "draining"]


def test_metrics_have_a_series_for_each_replica(rig: Rig) -> None:
    with_peer(rig)
    found = as_json(rig.metrics, gauges(rig.services))

    assert found["llama_gguf_replica_up"] == [
        {"replica": "0", "value": 1},
        {"replica": PEER, "value": 1},
    ]
    assert found["llama_gguf_replica_slots"] == [
        {"replica": "0", "value": 4},
        {"replica": PEER, "value": 2},
    ]


def test_two_engines_that_replace_one_another_are_added_up(rig: Rig) -> None:
    rig.fleet.update(replace(READY, replica="0", address="127.0.0.1:8081"))
    found = as_json(rig.metrics, gauges(rig.services))

    assert found["llama_gguf_replica_slots"] == [{"replica": "0", "value": 6}]
