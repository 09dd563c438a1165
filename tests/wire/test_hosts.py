"""A gateway and two engines on separate hosts, and a link between them that is cut."""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.gateways import GatewayProcess, Processes
from tests.support.hosts import Hosts
from tests.support.messages import request
from tests.support.processes import until

CHAT: Final = "/v1/chat/completions"
PYTHON: Final = sys.executable


def states(gateway: GatewayProcess) -> list[Any]:
    return [each["state"] for each in gateway.health()["replicas"]]


def test_a_link_that_is_cut_loses_nothing_that_had_not_begun(
    processes: Processes, tmp_path: Path
) -> None:
    refusal = Hosts.refusal()
    if refusal:
        pytest.skip(refusal)
    with Hosts(2) as hosts, socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        engines = [
            processes.fake_llama(host=hosts.address(n), program=hosts.at(n, PYTHON)) for n in (1, 2)
        ]
        peers = ",".join(f"http://{e.address[0]}:{e.address[1]}" for e in engines)
        fd = listener.fileno()
        gateway = processes.gateway(
            ("127.0.0.1", 1),
            program=hosts.at(0, PYTHON, "-m", "llama_gguf"),
            flags=("--listen-fd", str(fd)),
            pass_fds=(fd,),
            port=listener.getsockname()[1],
            PEERS=peers,
        )
        until(lambda: states(gateway) == ["ready"] * 2, lambda: str(gateway.health()))
        held = tmp_path / "held"
        wires = [gateway.connect() for _ in range(6)]
        for wire in wires:
            wire.send(request("POST", CHAT, "x-hold: sent", f"x-until: {held}", body=b"{}"))
        until(lambda: [len(e.seen(CHAT)) for e in engines] == [3, 3], "each engine has three")
        hosts.cut(1)
        held.touch()

        assert [wire.response().status for wire in wires] == [200] * 6
        assert len(engines[1].seen(CHAT)) == 6
        until(lambda: states(gateway) == ["unreachable", "ready"], lambda: str(gateway.health()))
        for _ in range(3):
            with gateway.connect() as wire:
                wire.send(request("POST", CHAT, body=b"{}"))
                assert wire.response().status == 200
        hosts.mend(1)
        until(lambda: states(gateway) == ["ready"] * 2, lambda: str(gateway.health()))
