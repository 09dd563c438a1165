from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from llama_gguf.config.schema import EngineSettings
from llama_gguf.models.slots import Division
from llama_gguf.supervisor import division
from llama_gguf.values import replace
from tests.models.test_memory import facts_of

FACTS = facts_of()  # of a model that was trained with 8192 tokens


def divided(
    environ: Mapping[str, str] | None = None, trained: int | None = 8192, **chosen: Any
) -> tuple[EngineSettings, Division]:
    facts = replace(FACTS, context_length=trained)
    return division.divided(EngineSettings(**chosen), environ or {}, facts)


def shown(
    environ: Mapping[str, str] | None = None, trained: int | None = 8192, **chosen: Any
) -> str:
    return division.text(*divided(environ, trained, **chosen))


def test_by_default_four_slots_divide_the_context() -> None:
    settings, found = divided()

    assert settings == EngineSettings(parallel=4)
    assert (found.slots, found.request_tokens, found.is_shared) == (4, 4096, False)


@pytest.mark.parametrize(
    ("chosen", "slots"),
    [
        ({"ctx": 1024}, 1),
        ({"ctx": 0}, 2),  # of 8192
        ({"extra_args": "-c 8192"}, 2),
        ({"extra_args": "-c 0"}, 2),
        ({"ctx": None}, 1),  # llama-server decides on it
        ({"ctx": None, "extra_args": "-c 8192"}, 2),
        ({"extra_args": "--embeddings"}, 4),
        ({"extra_args": "--no-kv-unified"}, 4),
    ],
    ids=str,
)
def test_the_number_of_slots_follows_from_the_context(chosen: dict[str, Any], slots: int) -> None:
    assert divided(**chosen)[0].parallel == slots


def test_a_context_left_to_llama_server_is_unknown() -> None:
    found = divided(ctx=None)[1]

    assert (found.request_tokens, found.total_tokens) == (None, None)
    assert "only known when llama-server has started" in shown(ctx=None)
    assert divided({"LLAMA_ARG_CTX_SIZE": "4096"}, ctx=None)[1].request_tokens == 4096
    assert divided({"LLAMA_ARG_FIT": "off"}, ctx=None)[1].total_tokens == 8192


@pytest.mark.parametrize(
    ("ctx", "parallel", "note"),
    [(100, 1, "1 slot has 256 tokens"), (1000, 3, "3 slots divide 1536 tokens")],
)
def test_a_context_that_is_rounded_up_is_explained(ctx: int, parallel: int, note: str) -> None:
    text = shown(ctx=ctx, parallel=parallel)

    assert text.startswith(note)
    assert f"(CTX={ctx}, rounded up: llama-server counts in 256)" in text


@pytest.mark.parametrize("ctx", [0, 256, 8192, None])
def test_a_context_that_is_not_rounded_needs_no_explanation(ctx: int | None) -> None:
    assert "rounded" not in shown(ctx=ctx, parallel=1)


@pytest.mark.parametrize("parallel", [1, 3, 64])
def test_a_number_that_is_set_stays(parallel: int) -> None:
    settings, found = divided(parallel=parallel, ctx=1024)

    assert settings.parallel == found.slots == parallel


@pytest.mark.parametrize(
    ("extra_args", "environ", "slots"),
    [
        ("-np 2", {}, 2),
        ("--parallel 8", {}, 8),
        ("", {"LLAMA_ARG_N_PARALLEL": "3"}, 3),
    ],
)
def test_a_number_that_llama_servers_own_flags_set_stays_and_divides(
    extra_args: str, environ: Mapping[str, str], slots: int
) -> None:
    settings, found = divided(environ, extra_args=extra_args)

    assert settings.parallel == 0  # so that --parallel is not passed
    assert (found.slots, found.is_shared) == (slots, False)


@pytest.mark.parametrize(
    ("chosen", "environ"),
    [
        ({"extra_args": "-kvu"}, {}),
        ({"extra_args": "--kv-unified", "parallel": 4}, {}),
        ({"extra_args": "-np -1"}, {}),
        ({}, {"LLAMA_ARG_N_PARALLEL": "-1"}),
        ({}, {"LLAMA_ARG_KV_UNIFIED": "1"}),
    ],
    ids=str,
)
def test_a_context_that_is_shared_by_request_stays_shared_and_is_reported(
    chosen: dict[str, Any], environ: Mapping[str, str]
) -> None:
    settings, found = divided(environ, **chosen)

    assert settings == EngineSettings(**chosen)
    assert (found.slots, found.request_tokens, found.is_shared) == (4, 8192, True)
    assert shown(environ, **chosen) == (
        "4 slots share 16384 tokens; a request may use 8192 of them. But when running requests "
        "together need more, llama-server ends all of them: set PARALLEL instead of -np, -kvu or "
        "their variables to divide the context"
    )


def test_one_slot_shares_with_no_other() -> None:
    assert not divided(extra_args="-kvu", parallel=1)[1].is_shared


@pytest.mark.parametrize(
    ("trained", "chosen"),
    [
        (None, {"ctx": 0}),
        (8192, {"ctx": 0, "extra_args": "--fit-ctx 4096"}),
        (8192, {"ctx": 0, "extra_args": "-fitc 4096"}),
    ],
    ids=str,
)
def test_a_context_that_only_the_engine_knows_is_left_to_one_slot(
    trained: int | None, chosen: dict[str, Any]
) -> None:
    settings, found = divided(trained=trained, **chosen)

    assert settings.parallel == 1
    assert found.request_tokens is None
    assert shown(trained=trained, **chosen) == (
        "1 slot has the context, whose size is only known when llama-server has started"
    )


@pytest.mark.parametrize(
    ("chosen", "text"),
    [
        (
            {"trained": 65536},
            "4 slots divide 16384 tokens; a request may use 4096 of them. "
            "PARALLEL=1 gives one request the whole context",
        ),
        (
            {},
            "4 slots divide 16384 tokens; a request may use 4096 of them. "
            "PARALLEL=1 gives one request 8192 tokens",
        ),
        ({"parallel": 2}, "2 slots divide 16384 tokens; a request may use 8192 of them"),
        ({"ctx": 1024}, "1 slot has 1024 tokens; a request may use 1024 of them"),
        (
            {"extra_args": "-np 4"},  # which PARALLEL does not override
            "4 slots divide 16384 tokens; a request may use 4096 of them",
        ),
    ],
    ids=str,
)
def test_what_a_request_may_use_is_shown_with_the_remedy(chosen: dict[str, Any], text: str) -> None:
    assert shown(**chosen) == text
