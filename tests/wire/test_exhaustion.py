"""A gateway that has used up its file descriptors."""

from __future__ import annotations

import resource
import socket
import sys
import time
from contextlib import ExitStack
from typing import Final

import pytest

from tests.support.engines import ScriptedEngine
from tests.support.gateways import GatewayProcess
from tests.support.keys import KEY
from tests.support.messages import OK, request
from tests.wire.conftest import NewGateway

PING: Final = request("GET", "/ping", key=None)
PATIENCE: Final = 20.0
"""Seconds until an event is considered to never occur."""


def is_pinged(gateway: GatewayProcess) -> bool:
    """Whether a new connection is accepted and gets a response."""
    try:
        return gateway.send_request(PING).status == 200
    except (OSError, AssertionError):  # closed as soon as it was accepted
        return False


def test_open_connections_continue_and_new_ones_are_accepted_when_others_have_closed(
    gateway: GatewayProcess,
) -> None:
    resource.prlimit(gateway.process.pid, resource.RLIMIT_NOFILE, (40, 40))
    with gateway.connect() as first:
        first.send(PING)
        assert first.response().status == 200
        with ExitStack() as crowd:
            for _ in range(60):
                crowd.enter_context(gateway.connect())
            assert not is_pinged(gateway)
            first.send(PING)
            assert first.response().status == 200
        end = time.monotonic() + PATIENCE
        while not is_pinged(gateway):
            assert time.monotonic() < end, "no connection is accepted any more"


STRANGERS: Final = 260
FILES: Final = 200
CLOSING: Final = OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")


@pytest.fixture(params=["plain", "TLS"])
def small_gateway(
    request: pytest.FixtureRequest, new_gateway: NewGateway, new_tls_gateway: NewGateway
) -> GatewayProcess:
    """One that may open few files, because of the hard limit at its start."""
    new = new_gateway if request.param == "plain" else new_tls_gateway
    return new(program=(sys.executable, "-c", FEW_FILES))


FEW_FILES: Final = f"""
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_NOFILE, ({FILES}, {FILES}))
sys.argv[0] = "llama-gguf"
runpy.run_module("llama_gguf", run_name="__main__", alter_sys=True)
"""


def test_idle_connections_leave_file_descriptors_for_the_engine(
    small_gateway: GatewayProcess, engine: ScriptedEngine
) -> None:
    """Idle connections, without even the first bytes of a handshake."""
    with small_gateway.connect() as wire:
        wire.send(PING)
        assert wire.response().status == 200
        with ExitStack() as crowd:
            for _ in range(STRANGERS):
                address = ("127.0.0.1", small_gateway.port)
                crowd.enter_context(socket.create_connection(address, timeout=PATIENCE))
            for _ in range(3):
                wire.send(request(body=b"{}", key=KEY))
                engine.visit().finish(CLOSING)
                assert wire.response().status == 200
