"""One engine in this process, with ``fake_llama.py`` as llama-server: what Ray would start."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llama_gguf import __version__
from llama_gguf.cluster.engine_host import PORT_STRIDE, EngineHost, fingerprint, free_port
from llama_gguf.cluster.engine_host import vulkan_flags as flags_for
from llama_gguf.cluster.order import Order, Report
from llama_gguf.engines.devices import Device
from llama_gguf.engines.status import ChildState
from llama_gguf.errors import UserError
from tests.cluster.test_order import ORDER
from tests.support.clients import status_or_none
from tests.support.engines import FAKE_LLAMA
from tests.support.file_server import FileServer
from tests.support.gguf_files import gguf
from tests.support.keys import BACKEND_KEY
from tests.support.processes import (
    children,
    environment_of,
    free_ports,
    row_of_ports,
    until,
    until_gone,
)

HOST = "127.0.0.1"


@pytest.fixture
def order(tmp_path: Path) -> Order:
    model = tmp_path / "tiny.gguf"
    model.write_bytes(gguf())
    engine = tmp_path / "llama-server"
    engine.write_text(f'#!/bin/sh\nexec {sys.executable} {FAKE_LLAMA} "$@"\n')
    engine.chmod(0o755)
    settings = {
        "model_path": str(model),
        "llama_server": str(engine),
        "port_backend": str(row_of_ports(4)),
    }
    return replace(ORDER, gpus=0.0, cpus=2.0, settings=settings, key=BACKEND_KEY)


@pytest.fixture
def host_of(tmp_path: Path) -> Iterator[Callable[..., EngineHost]]:
    hosts = []

    def make(order: Order, number: int = 0, *, version: str = __version__, **environ: str) -> Any:
        found = EngineHost(
            version,
            order.to_fields(),
            number,
            machine=HOST,
            gpu_ids=[],
            environ={"PATH": os.defpath, "DATA_DIR": str(tmp_path / "data"), **environ},
        )
        found.start()
        hosts.append(found)
        return found

    yield make
    for each in hosts:
        each.stop(20.0)


def until_state(host: EngineHost, state: ChildState) -> Report:
    until(lambda: host.report.state is state, lambda: repr(host.report))
    return host.report


def server_of(report: Report) -> int:
    """The process of its llama-server."""
    return next(
        pid for pid, line in children(os.getpid()).items() if report.address.split(":")[1] in line
    )


@pytest.mark.processes
def test_it_serves_on_the_address_of_its_machine_until_it_is_stopped(
    order: Order, host_of: Callable[..., EngineHost]
) -> None:
    host = host_of(order, 1)
    report = until_state(host, ChildState.READY)
    port = int(order.settings["port_backend"]) + 1
    pid = server_of(report)

    assert (report.machine, report.address) == (HOST, f"{HOST}:{port}")
    assert report.slots
    assert report.identity is not None
    assert report.identity.model == "tiny"
    assert "server-1" in report.log_file
    assert host.stop(20.0)
    until_gone(pid)
    assert host.report.state is ChildState.STOPPED
    assert status_or_none(port) is None


@pytest.mark.processes
def test_the_key_is_passed_in_the_environment_and_what_is_rays_is_not(
    order: Order, host_of: Callable[..., EngineHost]
) -> None:
    host = host_of(order, RAY_AUTH_TOKEN="of the cluster", BACKEND_API_KEY="another")
    environ = environment_of(server_of(until_state(host, ChildState.READY)))

    assert environ["LLAMA_API_KEY"] == BACKEND_KEY
    assert "RAY_AUTH_TOKEN" not in environ


@pytest.mark.processes
def test_without_gpus_it_has_as_many_threads_as_cpus_are_reserved(
    order: Order, host_of: Callable[..., EngineHost]
) -> None:
    pid = server_of(until_state(host_of(order), ChildState.READY))

    assert "--n-gpu-layers 0 --threads 2" in children(os.getpid())[pid]


@pytest.mark.processes
def test_settings_of_serve_in_the_environment_of_a_machine_have_no_effect(
    order: Order, host_of: Callable[..., EngineHost]
) -> None:
    host = host_of(order, PROMPT_CACHE="true", REPLICAS="3", IDLE_STOP="1", BACKEND_SOCKET="/s")
    report = until_state(host, ChildState.READY)

    assert report.address.startswith(f"{HOST}:")
    assert "--slot-save-path" not in children(os.getpid())[server_of(report)]


@pytest.mark.processes
def test_the_model_is_fetched_where_it_is_missing(
    order: Order, host_of: Callable[..., EngineHost], tmp_path: Path
) -> None:
    settings = {name: v for name, v in order.settings.items() if name != "model_path"}
    with FileServer(gguf()) as files:
        wanted = replace(order, settings={**settings, "model_name": files.url("/other.gguf")})
        several = [host_of(wanted, number) for number in range(2)]
        reports = [until_state(host, ChildState.READY) for host in several]

        assert len([each for each in files.seen if each.range is None]) == 1
    assert {each.identity and each.identity.model for each in reports} == {"other"}
    assert (tmp_path / "data" / "models" / "other.gguf").exists()


@pytest.mark.parametrize(
    ("version", "changes", "reason"),
    [
        ("0.0.1", {}, "install the same version on each machine"),
        (__version__, {"model_path": "/no/such.gguf"}, "/no/such.gguf"),
        (__version__, {"llama_server": "/no/llama-server"}, "LLAMA_SERVER=/no/llama-server"),
        (__version__, {"ctx": "many"}, "CTX"),
    ],
)
def test_what_cannot_be_started_is_reported_with_its_reason(
    order: Order,
    host_of: Callable[..., EngineHost],
    version: str,
    changes: dict[str, str],
    reason: str,
) -> None:
    wrong = replace(order, settings={**order.settings, **changes})
    report = until_state(host_of(wrong, version=version), ChildState.FAILED)

    assert reason.lower() in report.detail.lower()


@pytest.mark.processes
def test_an_engine_that_cannot_load_the_model_is_given_up_with_its_reason(
    order: Order, host_of: Callable[..., EngineHost], tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho 'error: out of memory'\nexit 1\n")
    broken.chmod(0o755)
    wrong = replace(order, settings={**order.settings, "llama_server": str(broken)})

    assert until_state(host_of(wrong), ChildState.FAILED).detail.startswith("exit status 1")


def test_a_port_that_is_taken_is_passed_over() -> None:
    (first,) = free_ports(1)
    first = min(first, 60_000)
    with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
        taken = stack.enter_context(socket.socket())
        taken.bind((HOST, first))
        taken.listen()
        found = free_port(HOST, first)
        assert found > first
        assert (found - first) % PORT_STRIDE == 0


def test_without_a_free_port_the_reason_is_clear() -> None:
    with pytest.raises(UserError, match="PORT_BACKEND"):
        free_port(HOST, 1 << 16)


@pytest.mark.parametrize(
    ("names", "ids", "flags"),
    [
        (["Vulkan0", "Vulkan1"], ["1"], "--device Vulkan1"),
        (["Vulkan0", "Vulkan1", "Vulkan2"], ["0", "2"], "--device Vulkan0,Vulkan2"),
        (["Vulkan0"], ["1"], ""),  # the others are hidden already
        (["CUDA0", "CUDA1"], ["1"], ""),
        (["Vulkan0", "Vulkan1"], ["5"], ""),
        ([], ["0"], ""),
    ],
)
def test_vulkan_uses_the_gpus_that_are_reserved(
    names: list[str], ids: list[str], flags: str
) -> None:
    assert flags_for([Device(f"{name} (A GPU)", 0, 0) for name in names], ids) == flags


def test_a_fingerprint_differs_with_size_beginning_and_end(tmp_path: Path) -> None:
    found = set()
    for number, content in enumerate((b"a" * 3_000_000, b"a" * 2_999_999 + b"b", b"a" * 3_000_001)):
        path = tmp_path / str(number)
        path.write_bytes(content)
        found.add(fingerprint([str(path)]))
        assert fingerprint([str(path)]) in found

    assert len(found) == 3
