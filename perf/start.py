"""Measures start, help and memory, beside a bare interpreter in the same run.

usage: python -m perf.start [ROUNDS]

The CPU time of a process does not depend on how busy the machine is, as much as its duration does;
rounds alternate between all commands. Memory is the proportional set size (PSS) of proc(5), after a
start with a small model file and a program that stands in for llama-server.
"""

from __future__ import annotations

import http.client
import os
import re
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from llama_gguf.cli.terminal import print_table
from tests.support.processes import free_ports

BARE: Final = "python -c pass"
LIBRARIES: Final = "import asyncio, uvloop, httptools"
PROGRAM: Final = (sys.executable, "-m", "llama_gguf")
COMMANDS: Final[Mapping[str, Sequence[str]]] = {
    BARE: (sys.executable, "-c", "pass"),
    LIBRARIES: (sys.executable, "-c", LIBRARIES),
    "--version": (*PROGRAM, "--version"),
    "--help": (*PROGRAM, "--help"),
    "serve --help": (*PROGRAM, "serve", "--help"),
    "keys list": (*PROGRAM, "keys", "list"),
}
ROUNDS: Final = 9
START_SECONDS: Final = 60.0
SETTLE_SECONDS: Final = 1.0
MODEL: Final = (
    struct.pack("<4sIQQ", b"GGUF", 3, 1, 1)
    + struct.pack("<Q20sIQ5s", 20, b"general.architecture", 8, 5, b"llama")
    + struct.pack("<Q1sIQIQ", 1, b"t", 1, 8, 0, 0)
).ljust(128, b"\0") + bytes(32)
"""The smallest model: its architecture, and one tensor of eight numbers."""
ENGINE: Final = """#!/bin/sh
case "$*" in
--version) echo 'version: 10068 (stand-in)';;
*--list-devices) echo 'Available devices:';;
*) exec sleep 600;;
esac
"""


def cpu_seconds(argv: list[str], environ: Mapping[str, str]) -> float:
    """CPU time of the process *argv*, its imports included."""
    null = (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)
    pid = os.posix_spawn(argv[0], argv, environ, file_actions=[null])
    usage = os.wait4(pid, 0)[2]
    return usage.ru_utime + usage.ru_stime


def pss_bytes(pid: int) -> int:
    """Its memory; what it shares with other processes counts in part."""
    found = re.search(
        r"^Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE
    )
    assert found is not None
    return int(found[1]) * 1024


def seconds_until_200(port: int, begun: float) -> float:
    """Seconds from *begun* to the first response with status 200."""
    while time.monotonic() - begun < START_SECONDS:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/ping")
            if connection.getresponse().status == 200:
                return time.monotonic() - begun
        except OSError:
            time.sleep(0.001)
        finally:
            connection.close()
    raise TimeoutError(f"nothing responds on port {port}")


def started(model: Path, environ: Mapping[str, str]) -> dict[str, float]:
    """The durations of the starts, and the memory of each process."""
    port, port_health, port_backend = free_ports(3)
    env = {
        **environ,
        "HOST": "127.0.0.1",
        "PORT": str(port),
        "PORT_HEALTH": str(port_health),
        "PORT_BACKEND": str(port_backend),
    }
    found: dict[str, float] = {}
    begun = time.monotonic()
    subprocess.run([sys.executable, "-c", LIBRARIES], env=env, check=True)
    found[LIBRARIES] = time.monotonic() - begun
    for argv in (["gateway"], ["serve", str(model)]):
        begun = time.monotonic()
        process = subprocess.Popen([*PROGRAM, *argv], env=env, stderr=subprocess.DEVNULL)
        try:
            if argv[0] == "serve":
                found["serve: health port"] = seconds_until_200(port_health, begun)
            found[f"{argv[0]}: gateway"] = seconds_until_200(port, begun)
            time.sleep(SETTLE_SECONDS)
            found[f"{argv[0]}: memory"] = pss_bytes(process.pid)
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            for child in children:
                if "--listen-fd" in Path(f"/proc/{child}/cmdline").read_text():
                    found["serve: memory of its gateway"] = pss_bytes(int(child))
        finally:
            process.send_signal(signal.SIGINT)
            process.wait()
    return found


def main(rounds: int = ROUNDS) -> int:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        keys, engine, model = folder / "api_keys.txt", folder / "llama-server", folder / "m.gguf"
        keys.write_text(f"alice:{'k' * 32}\n")
        keys.chmod(0o600)
        engine.write_text(ENGINE)
        engine.chmod(0o755)
        model.write_bytes(MODEL)
        environ = {**os.environ, "DATA_DIR": name, "LLAMA_SERVER": str(engine)}
        cpu: dict[str, list[float]] = {command: [] for command in COMMANDS}
        starts: dict[str, list[float]] = {}
        for _ in range(rounds):
            for command, argv in COMMANDS.items():
                cpu[command].append(cpu_seconds([*argv], environ))
            for what, figure in started(model, environ).items():
                starts.setdefault(what, []).append(figure)
    bare = statistics.median(cpu[BARE])
    rows = [(name, statistics.median(figures)) for name, figures in cpu.items()]
    print_table(
        ("command", "CPU, ms", "bare interpreters"),
        [(name, f"{seconds * 1e3:.1f}", f"{seconds / bare:.1f}") for name, seconds in rows],
    )
    medians = {name: statistics.median(figures) for name, figures in starts.items()}
    print_table(
        ("start", "found"),
        [
            (name, f"{value / 1e6:.1f} MB" if "memory" in name else f"{value * 1e3:.0f} ms")
            for name, value in medians.items()
        ],
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS))
