"""From the command to a served model: health, the first requests, the banner, the keys."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import ssl
import stat
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.certificates import CA_PEM, Pair, issue, trusting
from tests.support.file_server import FileServer
from tests.support.gguf_files import gguf
from tests.support.keys import KEY
from tests.support.processes import DEADLINE_SECONDS, environment_of
from tests.support.serve import CHAT, Serve, quoted

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """A running `serve`, shared by tests that do not change it."""
    serve = Serve(tmp_path_factory.mktemp("ready"))
    try:
        yield serve.start_ready("--create-key", LOG_FORMAT="json")
    finally:
        serve.end()


def created_key(serve: Serve) -> str:
    """The key that ``--create-key`` printed."""
    (key,) = {line.strip() for line in serve.out.splitlines() if line.startswith("    sk-")}
    return key


# While the model loads ----------------------------------------------------------------------------


def test_health_and_gateway_respond_during_a_load_and_a_request_waits_for_its_end(
    serve: Serve, pool: ThreadPoolExecutor
) -> None:
    loaded = serve.folder / "loaded"
    serve.start(engine=quoted("--load-until", str(loaded)))
    serve.until(lambda: serve.engine_state() == "loading")

    assert serve.health() == 204
    assert serve.send_request("/ping", key="").status == 200
    health = serve.send_request("/health", key="")
    assert (health.status, health.json["status"]) == (503, "loading")
    waiting = pool.submit(serve.send_request, CHAT, b'{"first": 1}')
    serve.until(lambda: serve.send_request("/health", key="").json["queue"]["length"] == 1)
    assert "Ready:" not in serve.out

    loaded.touch()

    response = waiting.result()
    assert (response.status, response.json) == (200, {"echo": '{"first": 1}'})
    serve.until_ready()
    assert serve.health() == 200
    assert serve.send_request("/health", key="").json["status"] == "ok"


def test_in_live_mode_health_is_200_before_the_model_is_ready(serve: Serve) -> None:
    never = serve.folder / "never"
    serve.start(engine=quoted("--load-until", str(never)), HEALTH_MODE="live")
    serve.until(lambda: serve.engine_state() == "loading")

    assert serve.health() == 200
    assert serve.send_request("/ping", key="").status == 200


# Ready --------------------------------------------------------------------------------------------


def test_the_banner_shows_url_and_model(ready: Serve) -> None:
    url = f"http://127.0.0.1:{ready.port}"

    assert f"Ready: {url}/v1 serves tiny" in ready.out
    assert f"curl -N {url}/v1/chat/completions" in ready.out
    assert f"A new API key, stored in {ready.keys_file}:\n\n    {created_key(ready)}\n" in ready.out


def test_the_curl_of_the_banner_works_as_it_is_pasted(ready: Serve) -> None:
    paragraphs = ready.out.split("\n\n")
    command = next(p for p in paragraphs if p.lstrip().startswith("curl"))

    result = subprocess.run(
        ["sh", "-c", command], capture_output=True, text=True, timeout=30, check=True
    )

    assert result.stdout.startswith("data: ")
    assert result.stdout.endswith("data: [DONE]\n\n")


def test_logs_are_on_standard_error_and_only_text_for_people_on_standard_output(
    ready: Serve,
) -> None:
    assert "llama-server started" in ready.err
    assert "INFO" not in ready.out
    assert '"level"' not in ready.out


def test_with_log_format_json_every_line_on_standard_error_is_json(ready: Serve) -> None:
    assert {json.loads(line)["level"] for line in ready.err.splitlines()} == {"info"}


def test_an_event_has_its_facts_as_fields(ready: Serve) -> None:
    lines = [json.loads(line) for line in ready.err.splitlines()]
    events = {line["event"]: line for line in lines}

    assert events["engine_started"]["pid"] == ready.engine_pid
    assert events["gateway_listens"]["url"] == f"http://127.0.0.1:{ready.port}"
    assert f"--port {ready.port_backend}" in events["engine_command"]["command"]
    assert " --parallel 4 " in events["engine_command"]["command"]
    assert events["engine_ready"]["seconds"] > 0
    assert "other" not in events


def test_the_boot_is_logged(ready: Serve) -> None:
    messages = [json.loads(line)["message"] for line in ready.err.splitlines()]

    facts = [m.split()[0] for m in messages if "  " in m or m.startswith("settings")]
    assert facts[:10] == [
        *("version", "platform", "engine", "model", "context", "gpu", "cpus", "memory", "disk"),
        "settings",
    ]
    assert any("version 0 (fake)" in m for m in messages)
    assert any("4 slots divide 16384 tokens; a request may use 128 of them" in m for m in messages)


def test_the_engines_output_is_in_a_separate_file(ready: Serve) -> None:
    assert f"listening on ('127.0.0.1', {ready.port_backend})" in ready.logged()


def test_an_exchange_is_in_the_access_log_with_the_id_of_its_key(ready: Serve) -> None:
    assert ready.send_request(CHAT, b'{"logged": 1}', key=created_key(ready)).status == 200
    logs = ready.data / "logs"

    written = ready.until(lambda: "".join(f.read_text() for f in logs.glob("api_access.log")))
    assert '"key_id": "default"' in written


def test_settings_by_flag_reach_gateway_and_engine(serve: Serve) -> None:
    # Python's %g formats such a long wait as 1e+06, which no variable accepts.
    flags = ("--max-request-body-size", "10", "--max-queue-wait", "1000000", "--ctx", "512")

    serve.start_ready(*flags, "--auth-enabled", "false")

    assert serve.send_request(CHAT, b"x" * 11, key="").status == 413
    assert "--ctx-size 512 " in serve.err


def test_with_a_certificate_the_gateway_speaks_https_and_the_health_port_http(
    serve: Serve,
) -> None:
    old, new = issue(), issue()
    serve.start_ready(**old.write(serve.folder))

    assert f"\nReady: https://127.0.0.1:{serve.port}/v1 serves " in serve.out
    assert serve.health() == 200
    address = ("127.0.0.1", serve.port)
    client = http.client.HTTPSConnection(*address, timeout=DEADLINE_SECONDS, context=trusting())
    with closing(client):
        client.request("POST", CHAT, b"{}", {"Authorization": f"Bearer {KEY}"})
        assert client.getresponse().status == 200

    assert ssl.get_server_certificate(address).encode() == old.chain
    new.write(serve.folder)
    serve.signal(signal.SIGHUP)
    serve.until(lambda: ssl.get_server_certificate(address).encode() == new.chain)


# A model that is not here yet ---------------------------------------------------------------------


@pytest.mark.parametrize("tls", [None, issue()], ids=["http", "https"])
def test_a_missing_model_is_fetched_and_served(serve: Serve, tls: Pair | None) -> None:
    (serve.folder / "ca.pem").write_bytes(CA_PEM)
    trusts = {"SSL_CERT_FILE": f"{serve.folder}/ca.pem"}
    with FileServer(gguf(), tls=None if tls is None else tls.server_context()) as server:
        serve.start_command("serve", server.url("/far.gguf"), **trusts).until_ready()

        assert serve.send_request(CHAT, b"{}").status == 200
        assert (serve.data / "models" / "far.gguf").read_bytes() == gguf()
        assert "/v1 serves far\n" in serve.out
        assert "Serve it:" not in serve.out
        assert serve.stop() == 0

        serve.start_command("serve", server.url("/far.gguf")).until_ready()


def test_it_imports_no_module_of_the_current_directory(serve: Serve) -> None:
    for name in ("json", "logging", "typing"):
        (serve.folder / f"{name}.py").write_text("raise SystemExit(9)\n")
    with FileServer(gguf()) as server:
        serve.start_command("serve", server.url("/far.gguf")).until_ready()

        assert serve.send_request(CHAT, b"{}").status == 200


def test_a_model_that_cannot_be_fetched_ends_it_with_the_reason(serve: Serve) -> None:
    with FileServer(gguf()) as server:
        server.behaviour.status = 404

        serve.start_command("serve", server.url("/far.gguf"))

        assert serve.wait() == 1
    assert "does not exist (status 404)" in serve.err
    assert "Traceback" not in serve.err


# Keys ---------------------------------------------------------------------------------------------


def test_create_key_makes_a_private_key_once_and_each_start_a_new_engine_key(
    tmp_path: Path,
) -> None:
    serve = Serve(tmp_path)
    try:
        serve.start_ready("--create-key")
        key = created_key(serve)
        assert stat.S_IMODE(serve.keys_file.stat().st_mode) == 0o600
        assert serve.send_request(CHAT, b"{}", key=key).status == 200
        first = environment_of(serve.engine_pid)["LLAMA_API_KEY"]
        assert serve.stop() == 0
        stored = serve.keys_file.read_bytes()

        serve.start_ready("--create-key")

        assert "A new API key" not in serve.out
        assert key not in serve.out
        assert serve.keys_file.read_bytes() == stored
        assert serve.send_request(CHAT, b"{}", key=key).status == 200
        second = environment_of(serve.engine_pid)["LLAMA_API_KEY"]
        assert first != second
        assert first.startswith("gateway-")
        assert len(first) == len("gateway-") + 64
    finally:
        serve.end()


def test_without_keys_every_request_is_rejected_and_the_log_shows_how_to_create_one(
    serve: Serve,
) -> None:
    serve.keys_file.unlink()

    serve.start_ready()

    assert serve.send_request(CHAT, b"{}").status == 401
    assert serve.send_request("/v1/models").status == 401
    assert serve.send_request("/ping", key="").status == 200
    assert f"llama-gguf keys generate --file {serve.keys_file}" in serve.err

    serve.add_key()
    serve.signal(signal.SIGHUP)

    serve.until(lambda: serve.send_request(CHAT, b"{}").status == 200)


def test_create_key_without_a_writable_file_exits_with_the_reason(serve: Serve) -> None:
    serve.keys_file.unlink()
    nowhere = "/proc/nowhere/api_keys.txt"

    serve.start("--create-key", AUTH_KEYS_FILE=nowhere)

    assert serve.wait() == 1
    assert f"cannot write the keys file {nowhere}" in serve.err
    assert "Traceback" not in serve.err


# Where things cannot be written -------------------------------------------------------------------


def test_a_log_folder_that_cannot_be_used_is_reported_and_serving_continues(serve: Serve) -> None:
    (serve.data / "logs").write_text("a file where the folder should be")

    serve.start_ready()

    assert serve.send_request(CHAT, b"{}").status == 200
    assert f"The engine log {serve.data}/logs/llama/" in serve.err
    serve.until_printed("api_access.log")


def test_a_data_folder_that_cannot_be_created_is_reported_and_serving_continues(
    serve: Serve,
) -> None:
    keys = str(shutil.copy(serve.keys_file, serve.folder / "keys"))

    serve.start_ready(DATA_DIR="/proc/nowhere", AUTH_KEYS_FILE=keys)

    assert serve.send_request(CHAT, b"{}").status == 200
    assert "cannot be written" in serve.err


@pytest.mark.parametrize("output", ["a pipe without a reader", "a full disk"])
def test_a_banner_that_cannot_be_written_does_not_stop_serving(serve: Serve, output: str) -> None:
    # As with `llama-gguf serve | head -1`.
    if output == "a full disk":
        serve.stdout = os.open("/dev/full", os.O_WRONLY)
    else:
        reading, serve.stdout = os.pipe()
        os.close(reading)
    try:
        serve.start()
    finally:
        os.close(serve.stdout)

    serve.until(lambda: serve.health() == 200)

    assert serve.send_request(CHAT, b"{}").status == 200
    assert serve.stop() == 0
    assert "Traceback" not in serve.err


def test_a_keys_file_that_cannot_be_read_does_not_stop_serving(serve: Serve) -> None:
    serve.keys_file.write_bytes(b"alice:\xff\xfe\n")

    serve.start_ready()

    assert serve.send_request(CHAT, b"{}").status == 401
    assert "is not UTF-8 text" in serve.err


# The engine's address -----------------------------------------------------------------------------


def test_a_unix_socket_serves_and_does_not_stop_the_next_start(serve: Serve) -> None:
    socket_path = serve.folder / "engine.sock"
    engine = "--keep-stale-socket"  # as llama-server does, after SIGTERM and after SIGKILL
    serve.start_ready(engine=engine, BACKEND_SOCKET=str(socket_path))
    assert serve.send_request(CHAT, b'{"over": "a socket"}').status == 200
    assert serve.stop() == 0

    serve.start_ready(engine=engine, BACKEND_SOCKET=str(socket_path))

    assert serve.send_request(CHAT, b"{}").status == 200
