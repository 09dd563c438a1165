from __future__ import annotations

from pathlib import Path

import pytest

from llama_gguf.access.keys import hashed
from llama_gguf.cli import bench_facts
from llama_gguf.cli.context import Context
from llama_gguf.config.load import load
from llama_gguf.config.platform import resolve
from llama_gguf.errors import UserError
from llama_gguf_bench.connection import parse_target
from llama_gguf_bench.options import Load, Options
from llama_gguf_bench.server import Server
from tests.support.gguf_files import gguf

PLAIN = "sk-plain-0123456789"
RICH = "sk-rich-01234567890"
KEYS = f"""\
# a comment: with-a-colon-0123456789
a:{PLAIN}
b:{RICH}:5000
c:sk-gone-0123456789:9000:2001-01-01T00:00:00Z
d:{hashed("sk-hidden-0123456789")}:9999
nonsense
"""
HERE = "http://127.0.0.1:8000"


def context(tmp_path: Path, **environ: str) -> Context:
    path = tmp_path / "keys.txt"
    path.write_text(KEYS)
    path.chmod(0o600)
    loaded = load({"AUTH_KEYS_FILE": str(path), "DATA_DIR": str(tmp_path)})
    resolved = resolve(
        loaded.settings,
        environ={},
        is_dir=lambda path: True,
        is_writable=lambda path: True,
        host_name="host",
    )
    return Context(settings=resolved, sources=loaded.sources, environ=environ)


def test_the_key_of_the_environment_takes_precedence(tmp_path: Path) -> None:
    given = {"LLAMA_API_KEY": "sk-first", "OPENAI_API_KEY": "sk-second"}

    assert bench_facts.endpoint_key("https://far", context(tmp_path, **given)) == "sk-first"
    del given["LLAMA_API_KEY"]
    assert bench_facts.endpoint_key(HERE, context(tmp_path, **given)) == "sk-second"


def test_on_this_machine_the_key_with_the_highest_limit_is_used(tmp_path: Path) -> None:
    assert bench_facts.endpoint_key(HERE, context(tmp_path)) == RICH
    assert bench_facts.endpoint_key("unix:/run/x.sock", context(tmp_path)) == RICH


@pytest.mark.parametrize("url", ["https://far", "http://127.0.0.1.far", "http://[", "x"])
def test_a_key_of_this_machine_is_never_sent_to_another(url: str, tmp_path: Path) -> None:
    assert bench_facts.endpoint_key(url, context(tmp_path)) == ""


def test_a_key_that_may_not_chat_from_here_is_not_used(tmp_path: Path) -> None:
    made = context(tmp_path)
    with (tmp_path / "keys.txt").open("a") as file:
        file.write("x:sk-elsewhere-0123456:9000 from=192.0.2.1\n")
        file.write("y:sk-embeddings-012345:9000 routes=embeddings\n")
        file.write("z:sk-heavy-01234567890:8000 routes=chat weight=4\n")

    assert bench_facts.endpoint_key(HERE, made) == "sk-heavy-01234567890"


def test_without_a_keys_file_no_key_is_sent(tmp_path: Path) -> None:
    made = context(tmp_path)
    (tmp_path / "keys.txt").unlink()

    assert bench_facts.endpoint_key(HERE, made) == ""


def test_a_key_that_contains_a_line_break_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="LLAMA_API_KEY contains characters that a key cannot have"
    ) as refused:
        bench_facts.endpoint_key(HERE, context(tmp_path, LLAMA_API_KEY="sk-a\r\nX: b"))

    assert "sk-a" not in str(refused.value)


def test_the_models_header_is_read_if_its_file_is_on_this_machine(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(gguf())
    server = Server(models=("m",), model_path=str(tmp_path / "m.gguf"), model={"n_params": 7})

    def model(url: str) -> object:
        return bench_facts.circumstances(
            parse_target(url), "", Options(loads=(Load(streams=1),)), server,
            context(tmp_path), command=("bench",),
        ).model  # fmt: skip

    assert model(HERE) != server.model
    assert model("https://far") == server.model
    server.model_path = "/nowhere.gguf"
    assert model(HERE) == server.model


def test_circumstances_contain_what_a_repetition_needs(tmp_path: Path) -> None:
    target = parse_target(HERE, key="sk-secret")
    options = Options(loads=(Load(streams=1),), shared_prefix=100)

    found = bench_facts.circumstances(
        target, "http://127.0.0.1:8080", options,
        Server(models=("tiny",), engine="b1", gateway="1.0", slots=4), context(tmp_path),
        command=("bench", "--rate", "1"),
    )  # fmt: skip

    assert found.command_line == "llama-gguf bench --rate 1"
    assert found.versions.keys() >= {"llama-gguf", "python", "httptools"}
    assert found.machine["whose"] == "load generator and server"
    assert "secret" not in str(found)
    first, second = bench_facts.heading(found)
    assert (
        first
        == f"{HERE} against http://127.0.0.1:8080 · tiny · llama.cpp b1 · gateway 1.0 · 4 slots"
    )
    assert second.startswith(
        "128 prompt tokens after 100 shared ones · 64 output tokens · streamed"
    )


@pytest.mark.processes
def test_the_cpus_name_is_the_kernels(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor : 0\nmodel name\t: A fine CPU\n")

    assert bench_facts.cpu_name(str(tmp_path / "cpuinfo")) == "A fine CPU"
    assert isinstance(bench_facts.cpu_name("/nowhere"), str)


def test_the_limit_on_open_files_is_raised_to_the_hard_limit() -> None:
    import resource  # noqa: PLC0415

    bench_facts.raise_open_files()

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert soft == hard
