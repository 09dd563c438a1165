from __future__ import annotations

import json

from llama_gguf.access.keys import KeyRing, hashed
from llama_gguf.gateway.operator_facts import MAX_KEYS, operator_facts
from llama_gguf.telemetry.batch import COUNTS
from llama_gguf.telemetry.timeseries import History
from tests.support.fakes import NewRig
from tests.support.messages import request
from tests.telemetry.test_timeseries import reading


def test_the_facts_include_those_of_health(new_rig: NewRig) -> None:
    rig = new_rig()

    facts = operator_facts(rig.services)

    health = json.loads(rig.send_request(request("GET", "/health", key=None)).response.body)
    for name in ("status", "model", "slots", "queue", "engine"):
        assert facts[name] == health[name]


def test_errors_of_an_earlier_run_are_left_out(new_rig: NewRig) -> None:
    services = new_rig().services
    start = services.history._began_at
    earlier = History(start - 10)
    earlier.take(reading(errors={"queue_full": 5}), start - 5)
    services.history.restore(earlier.snapshot().dump())

    assert services.history.errors() == {"queue_full": 5}
    assert operator_facts(services)["errors"] == {}


def test_only_the_keys_that_were_used_last_are_included(new_rig: NewRig) -> None:
    services = new_rig().services
    for n in range(MAX_KEYS + 5):
        services.usage.add(f"key-{n}", [1] * len(COUNTS), services.clock.wall)

    facts = operator_facts(services)

    assert facts["keys_used"] == MAX_KEYS + 5
    shown = [key["key_id"] for key in facts["keys"]]  # type: ignore[attr-defined]
    assert shown == [f"key-{n}" for n in range(MAX_KEYS + 4, 4, -1)]


def test_the_facts_fit_a_line_of_the_channel(new_rig: NewRig) -> None:
    services = new_rig().services
    for n in range(MAX_KEYS):
        services.usage.add("k" * 60 + f"{n:04}", [10**12] * len(COUNTS), services.clock.wall)

    assert len(json.dumps(operator_facts(services))) < 1 << 15


def test_the_key_to_chat_with_is_the_first_one_that_can(new_rig: NewRig) -> None:
    services = new_rig().services
    secrets = [letter * 32 for letter in "abcde"]
    lines = [
        f"hashed:{hashed(secrets[0])}",
        f"expired:{secrets[1]}::2020-01-01",
        f"embedder:{secrets[2]} routes=embeddings",
        f"chatter:{secrets[3]}",
        f"other:{secrets[4]}",
    ]

    services.authenticator.take(KeyRing(), [])
    assert operator_facts(services)["chat_key"] == ""
    services.authenticator.take(KeyRing.parse("\n".join(lines)), [])
    assert operator_facts(services)["chat_key"] == "chatter"
