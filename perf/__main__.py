"""Compares the gateway with nginx and HAProxy, measured in turn on this machine.

Peers: ours, nginx, haproxy; and NAME=COMMAND for the gateway of another installation, such as
compiled=/path/to/venv/bin/llama-gguf, which is started as `COMMAND gateway`. A peer whose name
ends in -unix connects to the backend over a unix socket: ours-unix, nginx-unix, NAME-unix=….

Exit status: 0 done, 1 a peer did not start or sent a wrong response, 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import resource
import shutil
import signal
import statistics
import sys
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import uvloop

from llama_gguf.cli.terminal import echo, print_table
from perf import backend, load, peers
from perf.load import Answers
from perf.peers import Peer, PeerFailed, Running

MEASURES: Final = {
    "request_cpu_us": "CPU per request, us",
    "event_cpu_us": "CPU per event, us",
    "event_p50_us": "latency of an event, p50, us",
    "event_p99_us": "latency of an event, p99, us",
    "requests_per_second": "requests per second",
    "stream_kib": "memory per open stream, KiB",
    "start_ms": "start to first response, ms",
}
REFERENCE: Final = "nginx"
Values = Mapping[str, float]


def main(argv: Sequence[str]) -> int:
    parser = _parser()
    arguments = parser.parse_args(argv)
    if len({peer.name for peer in arguments.peers}) < len(arguments.peers):
        parser.error("two peers have the same name")
    if arguments.json and not arguments.json.parent.is_dir():
        parser.error(f"--json: there is no directory {arguments.json.parent}")
    wanted = _installed(arguments.peers)
    signal.signal(
        signal.SIGTERM, signal.default_int_handler
    )  # like Ctrl-C, so that no process remains
    try:
        rounds, problems = _run(wanted, arguments.rounds, arguments.seconds)
    except KeyboardInterrupt:
        return 130
    medians = {name: _medians(values) for name, values in rounds.items() if values}
    if medians:
        _print(medians)
    if arguments.json:
        found = {"machine": _machine(), "medians": medians, "rounds": rounds, "problems": problems}
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    for problem in dict.fromkeys(problems):
        _note(problem)
    return 1 if problems or not medians else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m perf",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=3, help="rounds for each peer [3]")
    parser.add_argument(
        "--seconds", type=float, default=4, help="seconds of requests in each round [4]"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="also write all figures to this file"
    )
    names = ("ours", "nginx", "haproxy")
    parser.add_argument("peers", nargs="*", type=_peer, default=[_peer(name) for name in names])
    return parser


def _peer(text: str) -> Peer:
    name, _, command = text.partition("=")
    if command:
        return peers.gateway(name, command)
    ours = [peers.gateway(own, f"{sys.executable} -m llama_gguf") for own in ("ours", "ours-unix")]
    for peer in (*ours, peers.NGINX, peers.NGINX_UNIX, peers.HAPROXY):
        if peer.name == name:
            return peer
    raise argparse.ArgumentTypeError(f"unknown peer {name}; use NAME=COMMAND for a gateway")


def _installed(wanted: Sequence[Peer]) -> list[Peer]:
    missing = [peer for peer in wanted if shutil.which(peer.command[0]) is None]
    for peer in missing:
        _note(f"{peer.name} is skipped: {peer.command[0]} is not installed")
    if packages := {p.command[0] for p in missing} & {"nginx", "haproxy"}:
        _note(f"to install it: apt-get install {' '.join(sorted(packages))}")
    return [peer for peer in wanted if peer not in missing]


# Measuring ----------------------------------------------------------------------------------------


def _run(
    wanted: Sequence[Peer], rounds: int, seconds: float
) -> tuple[dict[str, list[Values]], list[str]]:
    """Return the measurements of each round, by peer, and the failures."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # the peers inherit it
    found: dict[str, list[Values]] = {peer.name: [] for peer in wanted}
    problems: list[str] = []
    stand_in = Peer(
        "backend", (sys.executable, backend.__file__, "@PORT@", f"@FOLDER@/{peers.SOCKET}")
    )
    with peers.started(stand_in) as behind:
        behind.wait_until_ready()
        for number in range(1, rounds + 1):
            for peer in wanted:
                _note(f"round {number} of {rounds}: {peer.name}")
                try:
                    with peers.started(peer, behind) as running:
                        found[peer.name].append(_measure(running, seconds))
                except (PeerFailed, OSError) as error:
                    problems.append(f"{peer.name}: {error}")
    return found, problems


def _measure(peer: Running, seconds: float) -> Values:
    """Raises PeerFailed if a response was wrong, since the measurements would be meaningless."""
    start_seconds = peer.wait_until_ready()
    if peer.status_of("POST", "/v1/chat/completions", "not-the-key-0123456789") != 401:
        raise PeerFailed("it accepts an invalid key")
    _whole(load.requests(peer.port, peers.KEY, seconds=min(seconds, 1)))  # warm-up

    before = peer.cpu_ns()
    requests = _whole(load.requests(peer.port, peers.KEY, seconds=seconds))
    between = peer.cpu_ns()
    streams = _whole(load.streams(peer.port, peers.KEY, count=64, events=200, tick_ms=20))
    after = peer.cpu_ns()

    resident = [peer.resident_kib()]
    many = load.streams(
        peer.port,
        peers.KEY,
        count=500,
        events=4,
        tick_ms=500,
        on_settled=lambda: resident.append(peer.resident_kib()),
    )
    _whole(many)
    latencies = streams.latencies_ns
    return {
        "request_cpu_us": (between - before) / requests.whole / 1000,
        "event_cpu_us": (after - between) / len(latencies) / 1000,
        "event_p50_us": latencies[len(latencies) // 2] / 1000,
        "event_p99_us": latencies[len(latencies) * 99 // 100] / 1000,
        "requests_per_second": requests.whole / requests.seconds,
        "stream_kib": (resident[1] - resident[0]) / 500,
        "start_ms": start_seconds * 1000,
    }


def _whole(asking: Coroutine[None, None, Answers]) -> Answers:
    answers = uvloop.run(asking)
    if answers.wrong:
        reasons = ", ".join(f"{reason} ({count} x)" for reason, count in answers.wrong.items())
        raise PeerFailed(f"it sent wrong responses: {reasons}")
    return answers


# Output -------------------------------------------------------------------------------------------


def _medians(rounds: Sequence[Values]) -> Values:
    return {measure: statistics.median(r[measure] for r in rounds) for measure in MEASURES}


def _print(medians: Mapping[str, Values]) -> None:
    echo(", ".join(f"{name} {value}" for name, value in _machine().items()))
    if REFERENCE in medians:
        echo(f"in brackets: relative to {REFERENCE}")
    rows = [[label, *_cells(measure, medians)] for measure, label in MEASURES.items()]
    print_table(["median of the rounds", *(f"{name:>8}" for name in medians)], rows)


def _cells(measure: str, medians: Mapping[str, Values]) -> Iterator[str]:
    reference = medians[REFERENCE][measure] if REFERENCE in medians else 0.0
    for values in medians.values():
        value = values[measure]
        ratio = f" ({value / reference:.2f})" if reference else ""
        yield f"{value:8.{0 if value >= 1000 else 1}f}{ratio}"


def _machine() -> dict[str, str]:
    about = Path("/proc/cpuinfo").read_text("utf-8")
    models = re.findall(r"^model name\s*: (.*)", about, re.MULTILINE) or [platform.machine()]
    return {
        "CPU": models[0],
        "cores": str(len(os.sched_getaffinity(0))),
        "Python": platform.python_version(),
    }


def _note(text: str) -> None:
    sys.stderr.write(text + "\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
