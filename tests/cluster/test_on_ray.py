"""Real engines on a real Ray cluster of two machines: `make test-ray`.

The model is a tiny one, which the first machine fetches from a server of the test. Long streams are
in progress for certain, since their clients do not read on.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from llama_gguf.errors import UserError
from tests.support import tiny_models
from tests.support.clients import Wire, send_request
from tests.support.file_server import FileServer
from tests.support.messages import request
from tests.support.processes import free_port, row_of_ports, tethered, until
from tests.support.ray_cluster import SECOND

pytestmark = [pytest.mark.ray, pytest.mark.processes, pytest.mark.timeout(300)]

ROOT: Final = Path(__file__).parents[2]
KEY: Final = "the-secret-key-of-the-engines"
CHAT: Final = "/v1/chat/completions"
SECONDS: Final = 120.0
LONG: Final = 4000
NAME: Final = "m" * 4000
"""Tokens of a stream, and the model's name in each of its events: they fill all buffers between the
engine and a client that does not read."""


class Cluster:
    """The cluster, and the command `llama-gguf ray` on its head."""

    def __init__(self, folder: Path, model: FileServer) -> None:
        self.folder = folder
        self.model = model.url("/tiny.gguf")
        self.environ = {
            **os.environ,
            "BACKEND_API_KEY": KEY,
            "DATA_DIR": str(folder / "data"),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",  # else engines get no time beside other tests
            "PYTHONPATH": str(ROOT),
        }
        self.process = subprocess.Popen(
            tethered(sys.executable, "-m", "tests.support.ray_cluster"),
            env=self.environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.environ["RAY_ADDRESS"] = self._response()
        self.port = free_port()
        self.engine_port = row_of_ports(8)

    def _response(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def order(self, command: str) -> None:
        """Have ``ray_cluster.py`` do something."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{command}\n")
        self.process.stdin.flush()
        assert self._response() == "done"

    def ray(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "llama_gguf", "ray", *arguments],
            env=self.environ,
            capture_output=True,
            text=True,
            check=False,
            timeout=SECONDS,
        )

    def up(self, *arguments: str) -> str:
        ports = ["--controller-port", str(self.port), "--port-backend", str(self.engine_port)]
        done = self.ray("up", self.model, *ports, "--cpus", "1", *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def status(self) -> dict[str, Any]:
        done = self.ray("status", "--json")
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def machines(self) -> list[str]:
        """Of the engines that are ready."""
        return [each["machine"] for each in self.status()["engines"] if each["state"] == "ready"]

    def until_ready(self, number: int) -> list[str]:
        def have() -> list[str]:
            found = self.machines()
            return found if len(found) == number else []

        return until(have, f"{number} engines", seconds=SECONDS)

    def until_none(self) -> None:
        until(lambda: not self.status()["engines"], "no engine", seconds=SECONDS)

    def end(self) -> None:
        self.ray("down")
        assert self.process.stdin is not None
        self.process.communicate(timeout=SECONDS)


class Gateway:
    """`llama-gguf gateway` that follows the cluster."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, key: str) -> None:
        self.process = process
        self.port = port
        self.key = key

    def health(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(send_request(self.port, "/health", seconds=SECONDS).body)
        return found

    def until_serves(self, number: int) -> None:
        def serves() -> bool:
            found = self.health()
            ready = [each for each in found.get("replicas", ()) if each["state"] == "ready"]
            return len(ready) == number or (number == 1 and found["status"] == "ok")

        until(serves, "replicas", seconds=SECONDS)

    def chat(self, **more: Any) -> int:
        return send_request(
            self.port, CHAT, _body(max_tokens=8, **more), key=self.key, seconds=SECONDS
        ).status

    def stream(self) -> Wire:
        """A stream that has begun, and does not end before it is read."""
        wire = Wire(("127.0.0.1", self.port), seconds=SECONDS)
        body = _body(max_tokens=LONG, stream=True)
        wire.send(request("POST", CHAT, "Connection: close", body=body, key=self.key))
        wire.read_until(b"data: ")
        return wire


_numbers: Final = itertools.count()


def _body(**more: Any) -> bytes:
    """Of a new conversation, which goes to the least busy engine."""
    message = {"role": "user", "content": f"Hello, number {next(_numbers)}."}
    return json.dumps({"messages": [message], "ignore_eos": True, **more}).encode()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("cluster")
    tiny_models.write("llama", folder / "tiny.gguf")
    with FileServer((folder / "tiny.gguf").read_bytes()) as model:
        found = Cluster(folder, model)
        try:
            yield found
        finally:
            found.end()


@contextmanager
def gateway(cluster: Cluster, address: str, **environ: str) -> Iterator[Gateway]:
    folder, port = cluster.folder / "gateway", free_port()
    keys = [
        sys.executable,
        "-m",
        "llama_gguf",
        "keys",
        "generate",
        "--json",
        "--rate-limit=1000000",
    ]
    made = subprocess.run(
        [*keys, "--data-dir", str(folder)], capture_output=True, check=True, env=cluster.environ
    )
    process = subprocess.Popen(
        tethered(
            *(sys.executable, "-m", "llama_gguf", "gateway", "--host", "127.0.0.1"),
            *("--port", str(port), "--data-dir", str(folder), "--peers", address),
        ),
        env={**cluster.environ, **environ},
        stderr=subprocess.DEVNULL,
    )
    try:
        found = Gateway(process, port, json.loads(made.stdout)["key"])
        until(lambda: _listens(found), "the gateway", seconds=SECONDS)
        yield found
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def _listens(found: Gateway) -> bool:
    try:
        found.health()
    except ConnectionRefusedError:
        return False
    return True


def address_in(text: str) -> str:
    """What `ray up` shows for PEERS."""
    return next(word for word in text.split() if word.startswith("PEERS=")).removeprefix("PEERS=")


def test_what_cannot_be_is_refused_with_what_to_do(cluster: Cluster) -> None:
    cases: Mapping[tuple[str, ...], str] = {
        ("status", "--address", f"127.0.0.1:{free_port()}"): "ray start --head",
        ("status", "--address", "nonsense"): "responds at nonsense. Start it",
        ("status", "--address", "ray://127.0.0.1:10001"): "--address=HEAD:6379",
        ("up", "tiny.gguf", "--gpus", "1"): "--gpus 0 uses CPUs",
        ("up", "tiny.gguf", "--cpus", "64"): "127.0.0.2: 2 CPUs, 0 GPUs",
        ("up", "no_such.gguf", "--cpus", "1"): "no_such.gguf",
    }
    for arguments, expected in cases.items():
        done = cluster.ray(*arguments)
        assert (done.returncode != 0, expected in done.stderr) == (True, True), done.stderr
    assert cluster.ray("status").returncode == 3


def test_what_ray_prints_is_not_among_the_output(cluster: Cluster) -> None:
    program = (
        "from llama_gguf.cluster.on_ray import connected\n"
        f"with connected({cluster.environ['RAY_ADDRESS']!r}):\n"
        "    print('as Ray does')\n"
        "print('ours')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=cluster.environ,
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout == "ours\n"
    assert "as Ray does" in done.stderr


def test_engines_follow_the_requests_from_none_to_the_most_and_back(cluster: Cluster) -> None:
    text = cluster.up("--replicas", "0..2", "--idle", "4", "--ctx", "4096", "--parallel", "1")
    with gateway(cluster, address_in(text)) as served:
        cluster.until_none()
        until(
            lambda: served.health()["status"] == "asleep", "a gateway that knows", seconds=SECONDS
        )

        assert served.chat() == 200  # held until an engine has been started
        waiting = _keep_busy(served, clients=4)
        cluster.until_ready(2)
        waiting.set()
        cluster.until_none()
        assert served.chat() == 200
    assert _places_of(KEY, cluster.folder) == []
    other = cluster.ray("up", cluster.model, "--cpus", "1", "--ctx", "8192")
    assert "CTX" in other.stderr
    assert "llama-gguf ray down" in other.stderr
    assert cluster.ray("down").returncode == 0
    assert cluster.ray("status").returncode == 3


def _keep_busy(served: Gateway, *, clients: int) -> threading.Event:
    """Clients that send one request after the other, until the event is set."""
    enough = threading.Event()

    def send() -> None:
        while not enough.is_set():
            assert served.chat() == 200

    for _ in range(clients):
        threading.Thread(target=send, daemon=True).start()
    return enough


def _places_of(secret: str, folder: Path) -> list[str]:
    """Command lines and logs that contain *secret*."""
    text = secret.encode()
    logs = [Path("/tmp/ray/session_latest/logs"), folder]  # noqa: S108  # of Ray
    files = [file for each in logs for file in each.rglob("*") if file.is_file()]
    found = [str(file) for file in files if text in file.read_bytes()]
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if text in process.read_bytes():
                found.append(str(process))
        except OSError:
            continue
    return found


def test_a_machine_that_dies_cuts_only_what_had_begun_there(cluster: Cluster) -> None:
    size = ["--ctx", "8192", "--parallel", "1", "--extra-args", f"--alias {NAME}"]
    text = cluster.up("--replicas", "2", *size)
    while len(set(cluster.until_ready(2))) < 2:  # Ray spreads them if it can
        cluster.ray("down")
        text = cluster.up("--replicas", "2", *size)
    results: list[int] = []
    with gateway(cluster, address_in(text)) as served:
        served.until_serves(2)
        streams = [served.stream(), served.stream()]
        waiting = [threading.Thread(target=lambda: results.append(served.chat())) for _ in range(4)]
        for each in waiting:
            each.start()
        until(lambda: served.health()["queue"]["length"] == 4, "four that wait")
        cluster.order("kill")
        # In this order, whichever it is: one of them ends with the other's machine.
        ends = [_end_of(stream) for stream in streams]
        for each in waiting:
            each.join(SECONDS)

        assert sorted(ends) == ["[DONE]", "error"]
        assert results == [200] * 4
        machines = cluster.until_ready(2)
        assert SECOND not in machines
        served.until_serves(2)
        assert served.chat() == 200
    cluster.order("add")
    assert cluster.ray("down").returncode == 0


def _end_of(stream: Wire) -> str:
    with stream:
        try:
            rest = stream.read_rest()
        except ConnectionResetError:
            rest = stream.buffer
    if b"[DONE]" in rest:
        return "[DONE]"
    return "error" if b'"error"' in rest else "cut"


def test_a_controller_that_dies_is_started_again_and_finds_its_engines(cluster: Cluster) -> None:
    text = cluster.up("--replicas", "1")
    with gateway(cluster, address_in(text)) as served:
        served.until_serves(1)
        before = cluster.status()["engines"]
        (process,) = [
            int(each.parent.name)
            for each in Path("/proc").glob("[0-9]*/cmdline")
            if _is_controller(each)
        ]
        os.kill(process, signal.SIGKILL)

        until(lambda: _has_gateway(cluster), "the gateway that connects again", seconds=SECONDS)
        after = cluster.status()["engines"]
        assert served.chat() == 200
    assert [each["log_file"] for each in after] == [each["log_file"] for each in before]


def _is_controller(file: Path) -> bool:
    try:
        return file.read_bytes().startswith(b"ray::ControllerActor")
    except OSError:
        return False


def _has_gateway(cluster: Cluster) -> bool:
    done = cluster.ray("status", "--json")
    return done.returncode == 0 and bool(json.loads(done.stdout)["gateways"])


def test_a_cluster_that_has_ended_without_a_trace_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llama_gguf.cluster import on_ray  # noqa: PLC0415  # this module is read without Ray, too

    head = tmp_path / "head"
    head.write_text(f"127.0.0.1:{free_port()}")
    monkeypatch.setattr(on_ray, "HEAD_FILE", str(head))

    with pytest.raises(UserError, match="ray stop"), on_ray.connected(""):
        pass
