"""A gateway in front of several engines (PEERS): who serves, and what a failure of one costs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from tests.support.certificates import CA_PEM, issue, trusting
from tests.support.clients import Wire
from tests.support.engines import ScriptedEngine
from tests.support.gateways import FakeLlama, GatewayProcess, Processes
from tests.support.messages import OK, code_of, request
from tests.support.processes import until

CHAT: Final = "/v1/chat/completions"
STREAM: Final = b'{"stream": true}'
NOWHERE: Final = ("127.0.0.1", 1)


def url(engine: FakeLlama) -> str:
    assert isinstance(engine.address, tuple)
    return f"http://127.0.0.1:{engine.address[1]}"


def in_front_of(processes: Processes, *engines: FakeLlama, **settings: Any) -> GatewayProcess:
    """A gateway with *engines* as its peers, all of them known."""
    peers = ",".join(map(url, engines))
    gateway = processes.gateway(NOWHERE, PEERS=peers, **settings)
    until(lambda: len(serving(gateway)) == len(engines), lambda: str(gateway.health()))
    return gateway


def replicas(gateway: GatewayProcess) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = gateway.health()["replicas"]
    return found


def serving(gateway: GatewayProcess) -> list[str]:
    return [each["replica"] for each in replicas(gateway) if each["state"] == "ready"]


def state_of(gateway: GatewayProcess, engine: FakeLlama) -> dict[str, Any]:
    label = url(engine).removeprefix("http://")
    return next(each for each in replicas(gateway) if each["replica"] == label)


def post(gateway: GatewayProcess, *fields: str, body: bytes = b"{}") -> Wire:
    wire = gateway.connect()
    wire.send(request("POST", CHAT, *fields, body=body))
    return wire


def streams(gateway: GatewayProcess, count: int, file: Path) -> list[Wire]:
    """Streams under way, which end when *file* exists."""
    wires = [post(gateway, f"x-until: {file}", "x-events: 1", body=STREAM) for _ in range(count)]
    for wire in wires:
        while b'{"n":0}' not in wire.buffer:
            assert wire.receive()
    return wires


def served(*engines: FakeLlama) -> list[int]:
    return [len(engine.seen(CHAT)) for engine in engines]


def test_requests_are_spread_and_each_is_logged_with_its_replica(
    processes: Processes, tmp_path: Path
) -> None:
    first, second = processes.fake_llama(), processes.fake_llama()
    gateway = in_front_of(processes, first, second)
    held = tmp_path / "held"
    wires = streams(gateway, 4, held)
    held.touch()
    for wire in wires:
        assert wire.response().status == 200

    assert served(first, second) == [2, 2]
    until(lambda: len(gateway.logged()) == 4, lambda: str(gateway.logged()))
    assert {line["replica"] for line in gateway.logged()} == {
        url(engine).removeprefix("http://") for engine in (first, second)
    }


def test_one_of_three_is_killed_and_only_its_streams_are_cut(
    processes: Processes, tmp_path: Path
) -> None:
    engines = [processes.fake_llama() for _ in range(3)]
    gateway = in_front_of(processes, *engines)
    held = tmp_path / "held"
    wires = streams(gateway, 6, held)
    waiting = [post(gateway, "x-work-ms: 500") for _ in range(6)]
    until(lambda: sum(served(*engines)) == 12, lambda: str(served(*engines)))
    engines[0].process.kill()
    more = [post(gateway) for _ in range(6)]
    held.touch()

    assert [wire.response().status for wire in waiting + more] == [200] * 12
    ends = [wire.response() for wire in wires]
    assert sorted(response.is_whole for response in ends) == [False] * 2 + [True] * 4


def test_an_engine_that_hangs_is_left_out_and_what_had_not_begun_goes_elsewhere(
    processes: Processes,
) -> None:
    hanging, other = processes.fake_llama(), processes.fake_llama()
    gateway = in_front_of(processes, hanging, other)
    os.kill(hanging.process.pid, signal.SIGSTOP)
    wires = [post(gateway) for _ in range(4)]

    assert [wire.response().status for wire in wires] == [200] * 4
    assert served(other) == [4]
    assert state_of(gateway, hanging)["state"] == "unreachable"
    os.kill(hanging.process.pid, signal.SIGCONT)
    until(lambda: len(serving(gateway)) == 2, lambda: str(replicas(gateway)))


def test_an_engine_that_responds_with_errors_to_everything_is_ejected(
    processes: Processes,
) -> None:
    broken, good = processes.fake_llama("--error", "500"), processes.fake_llama()
    gateway = in_front_of(processes, broken, good)
    statuses = []
    for _ in range(60):
        wires = [post(gateway) for _ in range(2)]
        statuses += [wire.response().status for wire in wires]
        if state_of(gateway, broken)["state"] == "ejected":
            break

    assert state_of(gateway, broken)["state"] == "ejected"
    assert 200 in statuses
    assert "responds with errors to everything" in gateway.log
    assert [post(gateway).response().status for _ in range(3)] == [200] * 3


def test_an_engine_with_another_model_gets_no_requests(processes: Processes) -> None:
    first, second = processes.fake_llama(), processes.fake_llama("--model", "other")
    gateway = processes.gateway(NOWHERE, PEERS=f"{url(first)},{url(second)}", MODEL_NAME="fake")
    until(lambda: state_of(gateway, second)["state"] == "mismatch", lambda: str(gateway.health()))
    for _ in range(4):
        assert post(gateway).response().status == 200

    assert served(first, second) == [4, 0]
    assert "its model is other, and fake is served" in state_of(gateway, second)["detail"]
    assert "its model is other" in gateway.log


def test_the_queue_holds_while_all_are_down_and_the_first_that_is_back_serves(
    processes: Processes,
) -> None:
    first, second = processes.fake_llama(), processes.fake_llama()
    gateway = in_front_of(processes, first, second)
    for engine in (first, second):
        engine.process.kill()
        engine.process.wait()
    wires = [post(gateway) for _ in range(3)]
    until(lambda: gateway.health()["queue"]["length"] == 3, lambda: str(gateway.health()))
    assert isinstance(second.address, tuple)
    back = processes.fake_llama("--port", str(second.address[1]))

    assert [wire.response().status for wire in wires] == [200] * 3
    assert served(back) == [3]


def test_a_loading_llama_server_s_refusal_is_not_passed_on(
    processes: Processes, tmp_path: Path
) -> None:
    first, second = processes.fake_llama(), processes.fake_llama()
    gateway = in_front_of(processes, first, second)
    first.process.kill()
    first.process.wait()
    assert isinstance(first.address, tuple)
    loading = processes.fake_llama(
        "--port", str(first.address[1]), "--load-until", str(tmp_path / "never")
    )

    assert [post(gateway).response().status for _ in range(8)] == [200] * 8
    assert served(second)[0] >= 8 - len(loading.seen(CHAT))


def test_a_gateway_may_be_a_peer_and_its_full_queue_is_not_passed_on(
    processes: Processes, tmp_path: Path
) -> None:
    """Each of two gateways has one slot and no queue."""
    engines = [processes.fake_llama(), processes.fake_llama()]
    inner = [
        processes.gateway(
            engine.address,
            AUTH_ENABLED="false",
            MAX_CONCURRENT_REQUESTS=1,
            MAX_QUEUE_SIZE=0,
        )
        for engine in engines
    ]
    peers = ",".join(f"http://127.0.0.1:{each.port}" for each in inner)
    gateway = processes.gateway(NOWHERE, PEERS=peers)
    until(lambda: len(serving(gateway)) == 2, lambda: str(gateway.health()))
    assert gateway.health()["slots"]["total"] == 2
    held = tmp_path / "held"
    (direct,) = streams(inner[0], 1, held)

    assert [post(gateway).response().status for _ in range(4)] == [200] * 4
    assert served(engines[1]) == [4]
    (too,) = streams(inner[1], 1, held)
    refused = post(gateway).response()
    assert (refused.status, code_of(refused)) == (503, "queue_full")
    assert 0 < float(refused["retry-after-ms"]) <= 5000
    held.touch()
    for wire in (direct, too):
        assert wire.response().status == 200


def test_an_https_peer_is_verified_by_the_named_issuer(
    processes: Processes, tmp_path: Path
) -> None:
    engine = processes.fake_llama()
    files: dict[str, Any] = issue("localhost").write(tmp_path)
    ca = tmp_path / "ca.pem"
    ca.write_bytes(CA_PEM)
    inner = processes.gateway(
        engine.address, AUTH_ENABLED="false", wait_for=None, trust=trusting(), **files
    )
    peer = f"https://localhost:{inner.port}"
    gateway = processes.gateway(NOWHERE, PEERS=peer, PEERS_CA_FILE=ca)
    assert post(gateway).response().status == 200
    wary = processes.gateway(NOWHERE, PEERS=peer, wait_for=503)
    until(
        lambda: "certificate is not accepted" in wary.health()["engine"]["detail"],
        lambda: str(wary.health()),
    )


def test_a_unix_socket_may_be_a_peer(processes: Processes, tmp_path: Path) -> None:
    engine = processes.fake_llama(socket_path=tmp_path / "e.sock")
    gateway = processes.gateway(NOWHERE, PEERS=f"unix:{engine.address}")

    assert post(gateway).response().status == 200


def test_every_address_of_a_name_is_a_peer(processes: Processes) -> None:
    with ScriptedEngine() as engine:
        gateway = processes.gateway(NOWHERE, PEERS=f"dns+http://localhost:{engine.port}")
        wire = post(gateway)
        engine.visit().finish(OK)
        assert wire.response().status == 200


def test_a_wrong_peer_is_a_clear_error_without_its_login() -> None:
    made = subprocess.run(
        [sys.executable, "-m", "llama_gguf", "gateway"],
        env={"PATH": "/usr/bin:/bin", "PEERS": "http://user:secret@10.0.0.1:8080"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert made.returncode == 2
    assert "PEERS" in made.stderr
    assert "secret" not in made.stderr
