"""What restored prompts have spared, by the cached tokens of responses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from llama_gguf.engines.status import ChildState, EngineStatus
from llama_gguf.gateway.spared_prompts import Restored
from tests.support.fakes import Rig


def facts(life: int, restored: Sequence[int], **changes: int) -> dict[str, Any]:
    names = ("bytes", "files", "saves", "save_failures", "restores", "restore_failures")
    zeros = dict.fromkeys(names, 0)
    rest = {"life": life, "restored": list(restored), "seconds_per_token": 0.5}
    return {**zeros, **rest, **changes}


def serve(rig: Rig, life: int, restored: Sequence[int], **changes: int) -> None:
    status = EngineStatus(
        ChildState.READY, since=0.0, slots=4, prompt_cache=facts(life, restored, **changes)
    )
    rig.fleet.update(EngineStatus.from_line(status.to_line()))


def respond(rig: Rig, cached: int) -> None:
    body = (
        b'{"timings":{"cache_n":%d,"prompt_n":10,"prompt_ms":5.0,"prompt_per_token_ms":0.5,'
        b'"prompt_per_second":2000.0,"predicted_n":8,"predicted_ms":80.0,'
        b'"predicted_per_token_ms":10.0}}' % cached
    )
    rig.send_request()
    rig.upstream.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
    assert rig.records


def test_each_restored_conversation_counts_once(rig: Rig) -> None:
    serve(rig, 1, [300, 200])
    respond(rig, 190)  # it continues the one of 200
    respond(rig, 195)  # its next turn: at most the other one is left
    respond(rig, 250)

    spared = rig.services.spared_prompts
    assert spared.tokens == 190 + 195
    assert spared.seconds == pytest.approx(0.5 * spared.tokens)


def test_a_new_life_of_the_engine_counts_again(rig: Rig) -> None:
    serve(rig, 1, [200])
    respond(rig, 190)
    respond(rig, 190)
    serve(rig, 2, [200])
    respond(rig, 190)

    assert rig.services.spared_prompts.tokens == 380


def test_without_saved_prompts_nothing_is_counted_and_nothing_is_shown(rig: Rig) -> None:
    respond(rig, 190)

    assert rig.services.spared_prompts.tokens == 0
    assert rig.services.spared_prompts.facts is None


def test_the_latest_numbers_of_all_engines_are_shown(rig: Rig) -> None:
    serve(rig, 1, [], saves=3, bytes=100)
    status = EngineStatus(
        ChildState.READY,
        since=0.0,
        replica="1",
        address="127.0.0.1:8099",
        prompt_cache=facts(2, [], saves=4, bytes=50),
    )
    rig.fleet.update(status)

    found = rig.services.spared_prompts.facts
    assert found is not None
    assert (found["saves"], found["bytes"], found["spared_tokens"]) == (4, 50, 0)


def test_what_all_prompts_begin_with_is_no_conversation() -> None:
    restored = Restored(1, [200], 0.5)

    assert restored.claim(8) == 0
    assert restored.claim(201) == 0
    assert restored.claim(200) == 200
    assert restored.claim(100) == 0
