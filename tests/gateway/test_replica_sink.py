from __future__ import annotations

import pytest

from llama_gguf.engines.address import EngineAddress
from llama_gguf.engines.status import ChildState, EngineStatus
from llama_gguf.gateway.replica_sink import HALF_LIFE_SECONDS, RATE_HALF_LIFE_SECONDS, Tokens
from llama_gguf.telemetry.batch import Batch
from tests.support.fakes import Rig

BODY = (
    b'{"timings":{"cache_n":30,"prompt_n":10,"prompt_ms":5.0,"prompt_per_token_ms":0.5,'
    b'"prompt_per_second":2000.0,"predicted_n":8,"predicted_ms":80.0,"predicted_per_token_ms":10.0}}'
)
WHOLE = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY)


def test_the_cached_part_of_the_prompt_is_read_from_the_engines_timings(rig: Rig) -> None:
    rig.send_request()
    rig.upstream.send(WHOLE)

    assert rig.records
    assert rig.services.replica_sink.tokens_of("0").cached_ratio == pytest.approx(0.75)


def test_a_replica_that_has_gone_is_forgotten(rig: Rig) -> None:
    rig.fleet.add(EngineAddress("127.0.0.1", 8081), "1").tracker.update(
        EngineStatus(ChildState.READY, since=0.0, slots=4, model="m")
    )
    for _ in range(2):
        rig.send_request()
    for upstream in rig.upstreams:
        upstream.send(WHOLE)
    assert rig.records
    assert rig.services.replica_sink.tokens_of("1").cached_ratio is not None
    rig.fleet.remove("127.0.0.1:8081")
    rig.services.replica_sink.take(Batch([], 0.0))

    assert rig.services.replica_sink.tokens_of("1").cached_ratio is None


def test_old_responses_count_less() -> None:
    tokens = Tokens()
    tokens.add(0.0, prompt=100, cached=0, completion=0)
    tokens.add(HALF_LIFE_SECONDS, prompt=50, cached=50, completion=0)

    assert tokens.cached_ratio == pytest.approx(0.5)


def test_before_the_first_response_there_is_no_ratio() -> None:
    assert Tokens().cached_ratio is None


def test_the_rate_of_tokens_falls_to_nothing_when_nothing_comes() -> None:
    tokens = Tokens()
    for second in range(100):
        tokens.add(float(second), prompt=1, cached=0, completion=20)

    assert tokens.per_second(99.0) == pytest.approx(20, rel=0.1)
    assert tokens.per_second(99.0 + 20 * RATE_HALF_LIFE_SECONDS) == pytest.approx(0, abs=0.01)
