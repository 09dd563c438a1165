"""Responses about many keys, and the first metrics: the same as others, in small steps."""

from __future__ import annotations

import importlib
import json
import re
import sys
import threading
from collections.abc import Coroutine
from types import ModuleType
from typing import Any, Final

import pytest

from llama_gguf.access.authenticator import Authenticator
from llama_gguf.gateway import dashboard, endpoints, large_responses
from llama_gguf.gateway.large_responses import KEYS_PER_STEP, MANY_KEYS
from llama_gguf.http1.local_response import LocalResponse
from llama_gguf.http1.parser import parse_request
from llama_gguf.http1.request import Request
from llama_gguf.http1.routes import Kind
from llama_gguf.telemetry.batch import COUNTS
from llama_gguf.telemetry.formats import paced
from tests.support.fakes import NewRig, Rig
from tests.support.messages import request

KEYS: Final = MANY_KEYS + 50
COUNTED: Final = [1] * len(COUNTS)


def key_id(number: int) -> str:
    return f"key-{number:04}"


def secret(number: int) -> str:
    return f"sk-{number:040}"


def used(rig: Rig, numbers: range) -> Rig:
    """*rig*, after requests of the keys with these numbers."""
    for number in numbers:
        assert rig.services.authenticator.named(key_id(number)) is not None
        rig.services.usage.add(key_id(number), COUNTED, rig.services.clock.wall)
        rig.services.metrics.count_tokens(key_id(number), COUNTED)
    return rig


@pytest.fixture
def rig(new_rig: NewRig) -> Rig:
    lines = [f"{key_id(n)}:{secret(n)} tokens_per_day=1000\n" for n in range(KEYS)]
    return used(new_rig(keys="".join(lines), admin_key_ids=(key_id(0),)), range(KEYS))


def get(rig: Rig, target: str, *fields: str) -> Request:
    return rig.services.reader.understand(parse_request(request("GET", target, *fields)), cors=b"")


def large(rig: Rig, target: str, *fields: str, key: int = 0) -> Coroutine[Any, Any, LocalResponse]:
    """The work of a large response to *target*."""
    found = get(rig, target, *fields)
    principal = rig.services.authenticator.named(key_id(key))
    assert principal is not None
    work = large_responses.of(found.route.kind, found, rig.services, principal)
    assert work is not None
    return work()


def test_the_usage_of_many_keys_has_the_same_facts_as_that_of_few(rig: Rig) -> None:
    work = large(rig, "/usage")
    body = rig.loop.run_until_complete(work).body

    administrator = rig.services.authenticator.named(key_id(0))
    assert administrator is not None
    assert json.loads(body) == json.loads(dashboard.usage(administrator, rig.services).body)
    assert [each["key_id"] for each in json.loads(body)["keys"]] == [*map(key_id, range(KEYS))]


def test_between_a_few_keys_the_loop_runs(rig: Rig) -> None:
    steps = sum(1 for _ in large(rig, "/usage").__await__())

    assert steps == -(-KEYS // KEYS_PER_STEP) + 1  # and one that joins them


def test_a_client_gets_the_usage_of_many_keys(rig: Rig) -> None:
    client = rig.send_request(request("GET", "/usage", key=secret(0)))
    rig.loop.spin()

    assert len(client.response.json["keys"]) == KEYS


def test_the_dashboard_of_many_keys_has_the_same_facts_as_that_of_few(rig: Rig) -> None:
    found = get(rig, "/dashboard/data?range=3600")
    administrator = rig.services.authenticator.named(key_id(0))
    assert administrator is not None
    work = large(rig, "/dashboard/data?range=3600")

    response = rig.loop.run_until_complete(work)

    whole = endpoints.respond(Kind.DASHBOARD_DATA, found, rig.services, administrator)
    assert json.loads(response.body) == json.loads(whole.body)
    assert (response.content_type, response.fields) == (whole.content_type, whole.fields)
    client = rig.send_request(request("GET", "/dashboard/data?range=3600", key=secret(0)))
    rig.loop.spin()
    assert len(client.response.json["keys"]) == dashboard.MAX_KEYS_SHOWN + 1


def test_the_dashboard_of_one_key_is_not_large(rig: Rig) -> None:
    found, principal = get(rig, "/dashboard/data"), rig.services.authenticator.named(key_id(1))
    assert principal is not None

    assert large_responses.of(Kind.DASHBOARD_DATA, found, rig.services, principal) is None


def without_times(text: bytes) -> list[bytes]:
    """Its lines but those about the process and the time, which differ between two scrapes."""
    changing = rb"process_|uptime|expiry"
    return [line for line in text.splitlines() if not re.search(changing, line)]


@pytest.mark.parametrize("accept", ["*/*", "text/plain", "application/openmetrics-text"])
def test_the_metrics_of_many_keys_are_the_same_as_those_of_few(accept: str, rig: Rig) -> None:
    work = large(rig, "/metrics", f"Accept: {accept}")
    rig.services.scrapes.clear()
    sliced = rig.loop.run_until_complete(work)
    rig.services.scrapes.clear()
    whole = endpoints.respond(Kind.METRICS, get(rig, "/metrics", f"Accept: {accept}"), rig.services)

    assert without_times(sliced.body) == without_times(whole.body)
    assert sliced.content_type == whole.content_type
    assert key_id(KEYS - 1).encode() in sliced.body


def test_scrapes_at_the_same_time_share_one_rendering(rig: Rig) -> None:
    first, second = (
        rig.loop.create_task(large(rig, "/metrics"), name=name) for name in ("first", "second")
    )

    assert rig.loop.run_until_complete(first) is rig.loop.run_until_complete(second)
    assert not rig.services.renderings


def test_a_scrape_that_cannot_be_made_is_cut_and_the_next_one_is_tried_again(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def no_thread(_work: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(large_responses, "run_detached", no_thread)
        client = rig.send_request(request("GET", "/prometheus/metrics", key=secret(0)))
        rig.loop.spin()
    assert client.was_cut
    assert "new thread" in caplog.text
    assert not rig.services.renderings
    assert b"llama_gguf" in rig.loop.run_until_complete(large(rig, "/metrics")).body


def test_the_gauges_of_a_scrape_do_not_change_on_its_way(rig: Rig) -> None:
    gauges = endpoints.gauges(rig.services)
    moves, replica = rig.services.fleet.moves, next(iter(rig.services.fleet.replicas.values()))
    assert gauges.session_moves is not moves
    assert gauges.replicas[0].ejections is not replica.ejections


def test_metrics_that_are_held_are_not_rendered_again(rig: Rig) -> None:
    wanted = endpoints.metrics_format(get(rig, "/metrics"))
    held = LocalResponse(200, b"held")
    endpoints.hold_metrics(rig.services, wanted, held, seconds=1.0)

    assert rig.loop.run_until_complete(large(rig, "/metrics")) is held


def test_what_is_counted_while_the_metrics_are_rendered_does_not_change_them(rig: Rig) -> None:
    before = rig.services.metrics.snapshot()
    rig.services.metrics.count_tokens("another", COUNTED)
    rig.services.metrics.queue_waits.observe([1.0])
    rig.services.metrics.durations["chat"].observe([1.0])

    assert not any(key == "another" for key, _ in before.tokens)
    assert before.queue_waits.sum == 0.0
    assert not before.durations


@pytest.mark.parametrize("path", ["/usage", "/metrics", "/ping", "/dashboard/data"])
def test_few_keys_need_no_steps(path: str, new_rig: NewRig) -> None:
    rig = new_rig(admin_key_ids=("alice",))
    found = get(rig, path)
    alice = rig.services.authenticator.named("alice")
    assert alice is not None

    assert large_responses.of(found.route.kind, found, rig.services, alice) is None


def test_the_usage_of_one_key_among_many_needs_no_steps(rig: Rig) -> None:
    found = get(rig, "/usage")
    one = rig.services.authenticator.named(key_id(7))
    assert one is not None

    assert large_responses.of(found.route.kind, found, rig.services, one) is None


def test_the_page_gets_the_keys_that_were_used_last_and_their_number(rig: Rig) -> None:
    used(rig, range(3, 5))
    client = rig.send_request(request("GET", "/dashboard/data", key=secret(0)))

    found = client.response.json
    ids = [each["key_id"] for each in found["keys"]]
    assert found["keys_used"] == KEYS
    assert ids[0] == key_id(0)  # the one that asks
    assert len(ids) == dashboard.MAX_KEYS_SHOWN + 1
    assert {key_id(3), key_id(4), key_id(KEYS - 1)} < {*ids}
    assert key_id(5) not in ids


def test_work_on_a_thread_pauses_now_and_then() -> None:
    pauses: list[None] = []

    assert [*paced(range(1000), lambda: pauses.append(None))] == [*range(1000)]
    assert len(pauses) == 7


@pytest.mark.parametrize("accept", ["*/*", "text/plain", "application/openmetrics-text"])
def test_the_first_metrics_of_few_keys_import_what_renders_them_on_a_thread(
    accept: str, new_rig: NewRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = new_rig()
    for name in ("metrics_json", "exposition"):
        monkeypatch.delitem(sys.modules, f"llama_gguf.telemetry.{name}", raising=False)
    threads: list[int] = []
    import_module = importlib.import_module

    def noted(name: str) -> ModuleType:
        threads.append(threading.get_ident())
        return import_module(name)

    monkeypatch.setattr(endpoints, "import_module", noted)
    found = get(rig, "/metrics", f"Accept: {accept}")
    work = large_responses.of(Kind.METRICS, found, rig.services, Authenticator.ANONYMOUS)
    assert work is not None

    first = rig.loop.run_until_complete(work())

    assert threads
    assert threading.get_ident() not in threads
    assert b"llama_gguf_requests" in first.body
    assert large_responses.of(Kind.METRICS, found, rig.services, Authenticator.ANONYMOUS) is None
