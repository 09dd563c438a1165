from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from llama_gguf.config.schema import EngineSettings
from llama_gguf.models.engine_options import ALL, AUTO, Options, files, options


def options_of(
    words: str = "", environ: Mapping[str, str] | None = None, **settings: Any
) -> Options:
    return options(EngineSettings(**settings), words.split(), environ or {})


def test_without_extra_flags_the_settings_apply() -> None:
    assert options_of(ctx=512, parallel=2, ngl=3) == Options(ctx=512, parallel=2, ngl=3)


def test_what_is_left_to_llama_server_is_fitted_or_comes_from_its_variables() -> None:
    assert options_of(ctx=None, ngl=None) == Options(ctx=0, parallel=0, ngl=AUTO, fits_ctx=True)
    assert not options_of("-fit off", ctx=None).fits_ctx
    assert not options_of("-c 0", ctx=None).fits_ctx
    variables = {"LLAMA_ARG_CTX_SIZE": "4096", "LLAMA_ARG_N_GPU_LAYERS": "3"}
    assert options_of(environ=variables, ctx=None, ngl=None) == Options(ctx=4096, parallel=0, ngl=3)
    assert options_of(environ=variables, ctx=512, ngl=1) == Options(ctx=512, parallel=0, ngl=1)


def test_the_last_of_repeated_flags_applies() -> None:
    assert options_of("-c 1024 --ctx_size 2048 -ngl all -np 3 -np x", ctx=512) == Options(
        ctx=2048, parallel=3, ngl=ALL
    )
    assert options_of("-ctk Q8_0 --cache-type-v q4_0 -no-kvu -kvu -nkvo -fa off -ub 64") == Options(
        ctx=16384,
        parallel=0,
        ngl=99,
        ubatch=64,
        type_k="q8_0",
        type_v="q4_0",
        unified=True,
        kv_offload=False,
        flash_attn="off",
    )


def test_all_rpc_servers_apply_although_the_flag_is_repeated() -> None:
    found = options_of("--rpc a:1,b:2 --rpc c:3", {"LLAMA_ARG_RPC": "d:4"})

    assert found.rpc == ("d:4", "a:1", "b:2", "c:3")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("-ngl auto", {"ngl": AUTO}),
        ("--cpu-moe", {"cpu_moe_layers": ALL}),
        ("--n-cpu-moe 7", {"cpu_moe_layers": 7}),
        (
            "-ot exps=CPU,a=CUDA1 -ot b=CPU",
            {"overrides": (("exps", "CPU"), ("a", "CUDA1"), ("b", "CPU"))},
        ),
        ("--device none", {"devices": ()}),
        ("-dev CUDA1,CUDA0", {"devices": ("CUDA1", "CUDA0")}),
        (
            "-ts 3,1.5 -sm row -mg 1",
            {"tensor_split": (3.0, 1.5), "split_mode": "row", "main_gpu": 1},
        ),
        ("-ts 3,x", {}),
        (
            "--mmproj p.gguf --no-mmproj-offload",
            {"projector": "p.gguf", "projector_offload": False},
        ),
        (
            "-md d.gguf -ngld 0 -ctkd q8_0",
            {"draft": "d.gguf", "draft_ngl": 0, "draft_type_k": "q8_0"},
        ),
        ("--lora a,b --lora-scaled c:0.5", {"adapters": ("a", "b", "c")}),
        ("--no-mmap --mlock", {"mmap": False, "mlock": True}),
        ("-fit off --swa-full", {"fit": False, "swa_full": True}),
    ],
)
def test_every_flag_that_affects_memory_is_read(words: str, expected: dict[str, Any]) -> None:
    assert options_of(words) == Options(**{"ctx": 16384, "parallel": 0, "ngl": 99} | expected)


def test_variables_of_llama_cpp_apply_unless_a_flag_overrides_them() -> None:
    environ = {"LLAMA_ARG_N_PARALLEL": "2", "LLAMA_ARG_CACHE_TYPE_K": "q8_0"}

    assert options_of(environ=environ) == Options(ctx=16384, parallel=2, ngl=99, type_k="q8_0")
    assert options_of("-ctk f32", environ=environ, parallel=8).parallel == 8
    assert options_of("-ctk f32", environ=environ).type_k == "f32"
    assert options_of(environ={"LLAMA_ARG_CTX_SIZE": "1"}).ctx == 16384


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"LLAMA_ARG_KV_OFFLOAD": "0"}, {"kv_offload": False}),
        ({"LLAMA_ARG_NO_KV_OFFLOAD": "1"}, {"kv_offload": False}),
        ({"LLAMA_ARG_KV_OFFLOAD": "on"}, {}),
        ({"LLAMA_ARG_MMAP": "false"}, {"mmap": False}),
        ({"LLAMA_ARG_CPU_MOE": "1"}, {"cpu_moe_layers": ALL}),
        ({"LLAMA_ARG_MMPROJ": "p.gguf"}, {"projector": "p.gguf"}),
        ({"LLAMA_ARG_N_PARALLEL": "", "LLAMA_ARG_NO_MMAP": ""}, {}),
    ],
)
def test_switches_may_be_variables_too(environ: dict[str, str], expected: dict[str, Any]) -> None:
    assert options_of(environ=environ) == Options(
        **{"ctx": 16384, "parallel": 0, "ngl": 99} | expected
    )


def test_a_flag_without_its_value_is_ignored() -> None:
    assert options_of("-c") == Options(ctx=16384, parallel=0, ngl=99)


def test_slots_whose_number_is_left_to_the_engine_share_the_context_whatever_else_is_set() -> None:
    assert options_of("--no-kv-unified").shares_context
    assert not options_of("--no-kv-unified", parallel=4).shares_context
    assert options_of("-kvu", parallel=4).shares_context
    assert options_of("-np -1").shares_context


def test_files_are_found_in_extra_args() -> None:
    words = "--lora a.gguf,b.gguf --chat_template_file c.jinja --lora-scaled x:1:0.5 -c 1 --mmproj"

    assert files(words.split()) == [
        ("--lora", "a.gguf"),
        ("--lora", "b.gguf"),
        ("--chat-template-file", "c.jinja"),
        ("--lora-scaled", "x:1"),
    ]
