"""A gateway that may open no file any more."""

from __future__ import annotations

import resource
import time
from contextlib import ExitStack
from typing import Final

from tests.fakes import request
from tests.wire.conftest import GatewayProcess

PING: Final = request("GET", "/ping", key=None)
PATIENCE: Final = 20.0
"""Seconds after which what has not come is taken for never coming."""


def is_pinged(gateway: GatewayProcess) -> bool:
    """Whether a new connection is let in and answered."""
    try:
        return gateway.ask(PING).status == 200
    except (OSError, AssertionError):  # closed as soon as it was accepted
        return False


def test_open_connections_go_on_and_new_ones_are_let_in_when_others_have_gone(
    gateway: GatewayProcess,
) -> None:
    resource.prlimit(gateway.process.pid, resource.RLIMIT_NOFILE, (40, 40))
    with gateway.connect() as first:
        first.send(PING)
        assert first.answer().status == 200
        with ExitStack() as crowd:
            for _ in range(60):
                crowd.enter_context(gateway.connect())
            assert not is_pinged(gateway)
            first.send(PING)
            assert first.answer().status == 200
        end = time.monotonic() + PATIENCE
        while not is_pinged(gateway):
            assert time.monotonic() < end, "nobody is let in any more"
