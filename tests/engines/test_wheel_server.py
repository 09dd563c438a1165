"""llama-server's flags for the wheel that has the server and no program."""

from __future__ import annotations

from pathlib import Path

import pytest

from llama_gguf.config.settings import Settings
from llama_gguf.engines import wheel_server
from llama_gguf.engines.address import EngineAddress
from llama_gguf.engines.command import engine_argv, listen_flags
from llama_gguf.engines.devices import read_devices
from llama_gguf.engines.flags import complaints, read_flags
from llama_gguf.errors import UserError


def argv(**settings: object) -> list[str]:
    """What `serve` starts an engine with."""
    made = Settings.of(**settings)
    words = engine_argv("llama-gguf-engine", made.engine, model_path="m.gguf", alias="m")
    return [*words[1:], *listen_flags(EngineAddress.of(made.upstream))]


def test_the_flags_of_serve_are_those_of_the_engine() -> None:
    params = wheel_server.parameters(
        argv(ctx=4096, parallel=3, threads=2, ngl=7, port_backend=1234), {"LLAMA_API_KEY": "secret"}
    )

    assert params.model.path == "m.gguf"
    assert params.model_alias == {"m"}
    assert (params.hostnames, params.port) == (["127.0.0.1"], 1234)
    assert (params.n_ctx, params.n_parallel, params.n_gpu_layers) == (4096, 3, 7)
    assert params.cpuparams.n_threads == 2
    assert params.endpoint_metrics
    assert params.api_keys == ["secret"]


def test_extra_args_are_understood_too() -> None:
    words = [
        "-ctk",
        "q8_0",
        "--cache_type_v",
        "q4_0",
        "-fa",
        "on",
        "--no-mmap",
        "--temp",
        "0.5",
        "--rerank",
    ]
    params = wheel_server.parameters(words, {})

    assert params.cache_type_k.name == "GGML_TYPE_Q8_0"
    assert params.cache_type_v.name == "GGML_TYPE_Q4_0"
    assert params.flash_attn_type.name == "LLAMA_FLASH_ATTN_TYPE_ENABLED"
    assert params.load_mode.name == "LLAMA_LOAD_MODE_NONE"
    assert params.sampling.temp == 0.5
    assert params.embedding


def test_a_template_is_read_from_its_file(tmp_path: Path) -> None:
    (tmp_path / "t.jinja").write_text("{{ messages }}")

    params = wheel_server.parameters(["--chat-template-file", str(tmp_path / "t.jinja")], {})

    assert params.chat_template == "{{ messages }}"


def test_a_flag_precedes_the_variable_and_an_empty_variable_is_none() -> None:
    environ = {"LLAMA_ARG_THREADS": "5", "LLAMA_ARG_CTX_SIZE": "512", "LLAMA_ARG_BATCH": ""}
    params = wheel_server.parameters(["-c", "1024"], environ)

    assert (params.n_ctx, params.cpuparams.n_threads, params.n_batch) == (1024, 5, 2048)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rpc", "host:1"], "--rpc is not supported by the engine of the wheel xllamacpp"),
        (["--ctx-size"], "--ctx-size requires a value"),
        (["-c", "many"], "--ctx-size many: invalid literal"),
        (["-ctk", "q9"], "--cache-type-k q9: must be one of f32, f16"),
        (["--chat-template-file", "/nonexistent"], "--chat-template-file /nonexistent: .*No such"),
    ],
)
def test_a_mistake_has_a_clear_message(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        wheel_server.parameters(words, {})


@pytest.mark.parametrize("flag", wheel_server.FLAGS, ids=lambda flag: flag.names[-1])
def test_check_knows_every_flag_from_the_help(flag: wheel_server.Flag) -> None:
    known = read_flags(wheel_server.help_text())

    for name in flag.names:
        assert known[name] == bool(flag.value)
    assert list(complaints(["--rpc", "host:1"], known))


def test_version_and_devices_have_llama_servers_form() -> None:
    assert wheel_server.version_text().startswith("version: ")
    assert read_devices(wheel_server.devices_text()) is not None
