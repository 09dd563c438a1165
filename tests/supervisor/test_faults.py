"""The table of faults: what is lost, whether it recovers, what remains. Real processes.

Every fault hits a ``serve`` to which four clients send requests without a pause. The same is
checked for each row: no connection is ever refused, no request is lost with an engine, and none but
those in the gateway with that, every client gets responses again, and in the end no additional
process or file remains.
"""

from __future__ import annotations

import http.client
import os
import signal
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import pytest

from tests.support.keys import KEY
from tests.support.processes import DEADLINE_SECONDS, children, until, until_gone
from tests.support.serve import CHAT, Serve, quoted

pytestmark = pytest.mark.processes

CLIENTS: Final = 4
DONE: Final = b"data: [DONE]"


class Crowd:
    """Clients that send one request after the other, each on a new connection."""

    def __init__(self, serve: Serve, pool: ThreadPoolExecutor) -> None:
        self._serve = serve
        self._stop = threading.Event()
        self._outcomes: list[Counter[str]] = [Counter() for _ in range(CLIENTS)]
        self._clients: list[Future[None]] = [pool.submit(self._ask, o) for o in self._outcomes]

    def _ask(self, outcomes: Counter[str]) -> None:
        while not self._stop.is_set():
            outcomes[self._ask_once()] += 1

    def _ask_once(self) -> str:
        address = ("127.0.0.1", self._serve.port)
        connection = http.client.HTTPConnection(*address, timeout=DEADLINE_SECONDS)
        try:
            connection.request("POST", CHAT, b"{}", {"authorization": f"Bearer {KEY}"})
            return str(connection.getresponse().status)
        except ConnectionRefusedError:
            return "refused"
        except (ConnectionError, http.client.RemoteDisconnected):
            return "cut"
        finally:
            connection.close()

    def until_all_have_responses(self, times: int = 3) -> None:
        """Wait until each client has received *times* more responses."""
        before = [o["200"] for o in self._outcomes]
        self._serve.until(
            lambda: all(o["200"] >= b + times for o, b in zip(self._outcomes, before, strict=True))
        )

    def leave(self) -> list[Counter[str]]:
        """Stop the clients, and return the outcomes of each."""
        self._stop.set()
        for client in self._clients:
            client.result(DEADLINE_SECONDS)
        return self._outcomes


@dataclass(frozen=True)
class Fault:
    strike: Callable[[Serve], None]
    logged: str
    """A part of its line in the log."""
    engine: str = ""
    settings: dict[str, str] = field(default_factory=dict)
    lost: int = 0
    """Requests that one client may lose: one that is cut, one that reaches the dying process."""
    keeps_engine: bool = False


def kill_engine(number: signal.Signals) -> Callable[[Serve], None]:
    return lambda serve: os.kill(serve.engine_pid, number)


def kill_gateway(serve: Serve) -> None:
    killed = serve.gateway_pid
    os.kill(killed, signal.SIGKILL)
    serve.until(lambda: serve.gateway_pid not in (0, killed))


def storm(serve: Serve) -> None:
    for _ in range(200):
        serve.signal(signal.SIGHUP)
        serve.signal(signal.SIGUSR1)


def silence(serve: Serve) -> None:
    """Take all slots with requests to which the engine never responds."""
    for _ in range(4):
        client = socket.create_connection(("127.0.0.1", serve.port))
        client.sendall(
            f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
            "x-fault: silence\r\nContent-Length: 2\r\n\r\n{}".encode()
        )
        serve.sockets.append(client)


RECOVERABLE: Final = {
    "the engine is killed": Fault(kill_engine(signal.SIGKILL), "died (signal SIGKILL)"),
    "the engine crashes": Fault(kill_engine(signal.SIGSEGV), "died (signal SIGSEGV). It crashed: "),
    "the engine leaves without an error": Fault(
        kill_engine(signal.SIGTERM), "died (exit status 0). It exited without an error"
    ),
    "the engine is wedged": Fault(
        kill_engine(signal.SIGSTOP),
        "It did not respond for 1 s.",
        settings={"WATCHDOG_HEALTH": "1"},
    ),
    "nothing comes back from the engine": Fault(
        silence,
        "It sent nothing on any of its 4 requests for 1 s.",
        settings={"WATCHDOG_STALL": "1"},
    ),
    "the gateway is killed": Fault(
        kill_gateway, "The gateway died (signal SIGKILL)", keeps_engine=True, lost=2
    ),
    "a storm of signals": Fault(storm, "API keys loaded", keeps_engine=True),
}


@pytest.fixture
def crowd_pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(CLIENTS) as pool:
        yield pool


@pytest.mark.parametrize("fault", RECOVERABLE.values(), ids=RECOVERABLE.keys())
def test_a_fault_costs_only_the_requests_that_it_cut_and_is_recovered_from(
    serve: Serve, crowd_pool: ThreadPoolExecutor, fault: Fault
) -> None:
    usual = {"MAX_REQUESTS_PER_MINUTE": "1000000", "DRAIN_TIMEOUT": "5"}
    serve.start_ready(engine=fault.engine, **usual, **fault.settings)
    engine = serve.engine_pid
    crowd = Crowd(serve, crowd_pool)
    crowd.until_all_have_responses()

    fault.strike(serve)
    serve.until_printed(fault.logged)
    if not fault.keeps_engine:
        serve.until(lambda: serve.engine_pid not in (0, engine))
    serve.until(lambda: serve.health() == 200)
    crowd.until_all_have_responses()

    for outcomes in crowd.leave():
        lost = outcomes.total() - outcomes["200"]
        assert set(outcomes) <= {"200", "502", "cut"}, outcomes
        assert lost <= fault.lost, outcomes
    assert (serve.engine_pid == engine) == fault.keeps_engine
    serve.close()
    assert serve.stop() == 0
    leaves_nothing(serve)


def leaves_nothing(serve: Serve) -> None:
    until(lambda: not serve.processes(), lambda: str(serve.processes()))
    kinds = {p.name.split("_")[-2] if p.name[:4].isdigit() else p.name for p in files(serve.data)}
    usage = f"{socket.gethostname()}.json"
    logs = {"api_access.log", "server", "boot", "latest.txt"}
    locks = {f"{usage}.lock", "control.sock.lock"}
    assert kinds <= {"api_keys.txt", *logs, usage, *locks}
    assert "Traceback" not in serve.err


def files(folder: Path) -> list[Path]:
    return [p for p in folder.rglob("*") if p.is_file()]


# What ends it -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class End:
    engine: str
    status: int
    logged: str
    settings: dict[str, str] = field(default_factory=dict)


ENDS: Final = {
    "exit at load": End("--exit-at-load 7", 7, "died (exit status 7)"),
    "exit 0 at load": End("--exit-at-load 0", 1, "died (exit status 0)"),
    "crash at load": End("--die-at-load SIGSEGV", 139, "died (signal SIGSEGV)"),
    "never ready": End(
        "--hang-at-load",
        128 + signal.SIGTERM,
        "no visible progress for 1 s",
        {"STARTUP_STALL_TIMEOUT": "1"},
    ),
    "never ready, and deaf": End(
        quoted("--load-until", "/nowhere", "--ignore-sigterm"),
        128 + signal.SIGKILL,
        "no visible progress for 1 s",
        {"STARTUP_STALL_TIMEOUT": "1"},
    ),
}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS.keys())
def test_a_first_load_that_fails_is_the_end_with_its_status(serve: Serve, end: End) -> None:
    serve.start(engine=end.engine, **end.settings)

    assert serve.wait() == end.status
    assert end.logged in serve.err
    assert f"Giving up on llama-server; serve exits with status {end.status}" in serve.err
    leaves_nothing(serve)


def test_a_slow_load_is_awaited_and_reported(serve: Serve) -> None:
    loaded = serve.folder / "loaded"
    # It spends CPU time, as a load does, and shows no other progress.
    busy = f"while ! test -e {loaded}; do :; done; touch {serve.folder}/go"
    script = serve.engine.read_text().removeprefix("#!/bin/sh\n")
    serve.write_engine(
        f'case "$*" in --version | *--list-devices) exit;; esac; ({busy}) & {script}'
    )
    serve.start(engine=quoted("--load-until", str(serve.folder / "go")), STARTUP_STALL_TIMEOUT="1")
    began = datetime.now(UTC)
    serve.until(lambda: datetime.now(UTC) - began > timedelta(seconds=2.5))
    assert serve.health() == 204

    loaded.touch()

    serve.until_ready()
    assert serve.send_request(CHAT, b"{}").status == 200
    assert serve.stop() == 0
    leaves_nothing(serve)


def test_a_port_that_is_taken_ends_it_at_once(serve: Serve) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", serve.port_backend))
        taken.listen()

        serve.start()

        assert serve.wait() == 1
    assert "To use another port, set PORT_BACKEND" in serve.err
    leaves_nothing(serve)


# Disks --------------------------------------------------------------------------------------------


def test_a_full_disk_is_reported_once_and_has_no_other_effect(serve: Serve) -> None:
    logs = serve.data / "logs"
    names = ["api_access.log"]
    now = datetime.now(UTC)
    for second in range(-5, 60):  # regardless of the second in which it is started
        stamp = (now + timedelta(seconds=second)).strftime("%Y%m%dT%H%M%SZ")
        names += [f"llama/{stamp}_server_box.log", f"_boot/{stamp}_boot_box.log"]
    for name in names:
        (logs / name).parent.mkdir(parents=True, exist_ok=True)
        (logs / name).symlink_to("/dev/full")

    serve.start_ready(INSTANCE_ID="box", LOG_BACKUPS="1000")

    assert serve.send_request(CHAT, b"{}").status == 200
    for what in ("The engine log", "The boot log", "The access log"):
        serve.until_printed(what)
        assert serve.err.count(f"WARNING {what}") == 1
    serve.until_printed("No space left on device")
    assert serve.stop() == 0
    assert not serve.processes()


def test_a_log_folder_that_cannot_be_written_is_reported_and_has_no_other_effect(
    serve: Serve,
) -> None:
    serve.start_ready(LOG_DIR="/proc/nowhere")

    assert serve.send_request(CHAT, b"{}").status == 200
    serve.until_printed("The engine log /proc/nowhere/")
    assert serve.stop() == 0
    leaves_nothing(serve)


# The supervisor -----------------------------------------------------------------------------------


def test_a_killed_supervisor_leaves_nothing(serve: Serve) -> None:
    serve.start_ready(engine="--ignore-sigterm")
    stream = serve.stream()

    serve.signal(signal.SIGKILL)

    assert serve.wait() == -signal.SIGKILL
    assert DONE not in stream.rest()
    leaves_nothing(serve)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("hanging", ["--version", "--list-devices"])
def test_a_signal_to_stop_before_anything_runs_is_a_clean_end(
    serve: Serve, number: signal.Signals, hanging: str
) -> None:
    # The engine's version and devices are read before it is started, and one of them hangs here.
    serve.write_engine(f'case "$*" in *{hanging}) sleep 60;; esac')
    serve.start()
    serve.until(lambda: any("sleep" in command for command in serve.processes().values()))

    serve.signal(number)

    assert serve.process.wait(5) == 0
    leaves_nothing(serve)


def test_a_signal_to_stop_during_a_load_is_a_clean_end(serve: Serve) -> None:
    serve.start(engine=quoted("--load-until", str(serve.folder / "never")))
    serve.until(lambda: serve.engine_state() == "loading")

    assert serve.stop() == 0
    leaves_nothing(serve)


def test_a_signal_to_stop_during_a_stream_finishes_it(serve: Serve) -> None:
    serve.start_ready()
    stream = serve.stream()
    serve.signal(signal.SIGTERM)
    serve.until_printed("Draining")

    serve.end_streams()

    assert DONE in stream.rest()
    assert serve.wait() == 0
    leaves_nothing(serve)


def test_a_second_signal_cuts_the_stream_and_kills_an_engine_that_ignores_sigterm(
    serve: Serve,
) -> None:
    serve.start_ready(engine="--ignore-sigterm")
    gateway = serve.gateway_pid
    stream = serve.stream()
    serve.signal(signal.SIGTERM)
    serve.until_printed("Draining")

    serve.signal(signal.SIGTERM)

    assert DONE not in stream.rest()
    until_gone(gateway)
    assert serve.process.wait(5) == 0
    leaves_nothing(serve)


# As PID 1 -----------------------------------------------------------------------------------------


def test_orphans_whose_parent_it_becomes_do_not_stay_zombies(serve: Serve) -> None:
    pid_file = serve.folder / "orphan"
    orphan = f"(setsid sh -c 'echo $$ > {pid_file}; exec sleep 0.2' &)"
    script = serve.engine.read_text().removeprefix("#!/bin/sh\n")
    serve.write_engine(
        f'case "$*" in --version | *--list-devices) ;; *) {orphan} ;; esac\n{script}'
    )
    serve.is_subreaper = True
    serve.start_ready()
    orphan_pid = int(serve.until(lambda: pid_file.exists() and pid_file.read_text()))

    # Not `is_running`: the point is that it is reaped, so that no zombie stays.
    serve.until(lambda: not Path(f"/proc/{orphan_pid}").exists())

    serve.until_printed(f"Reaped process {orphan_pid}, whose parent had exited")
    assert len(children(serve.pid)) == 2
    assert serve.stop() == 0
    leaves_nothing(serve)
