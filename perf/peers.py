"""The compared programs: how each is started, and its use of CPU and memory.

All do the same work with one thread: check the client's key, count the request against a rate
limit, replace the key by the backend's, write an access log, keep connections on both sides,
forward events as they arrive.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import shlex
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from perf import backend

KEY: Final = "sk-benchmarks-0123456789abcdef0123456789"
START_SECONDS: Final = 30.0
STOP_SECONDS: Final = 5.0
OUTPUT: Final = "output"
SOCKET: Final = "backend.sock"
_LAST_LINES: Final = 5

_NGINX_CONF: Final = """
daemon off;
master_process off;
worker_processes 1;
pid nginx.pid;
events { worker_connections 4096; }
http {
    access_log access.log combined buffer=64k flush=1s;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    client_max_body_size 10m;
    keepalive_requests 1000000000;
    map_hash_bucket_size 128;
    map $http_authorization $is_known { default 0; "Bearer @KEY@" 1; }
    limit_req_zone $http_authorization zone=keys:1m rate=6000000r/m;
    upstream backend {
        server 127.0.0.1:@BACKEND_PORT@;
        keepalive 1024;
        keepalive_requests 1000000000;
    }
    server {
        listen 127.0.0.1:@PORT@ backlog=4096;
        location = /ping { return 200; }
        location / {
            if ($is_known = 0) { return 401; }
            limit_req zone=keys burst=1000000 nodelay;
            proxy_pass http://backend;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Authorization "Bearer @BACKEND_KEY@";
            proxy_buffering off;
            proxy_read_timeout 300s;
        }
    }
}
"""
_HAPROXY_CFG: Final = """
global
    nbthread 1
    maxconn 4096
    log stdout format raw local0
defaults
    mode http
    log global
    option httplog
    option http-no-delay
    http-reuse always
    timeout connect 10s
    timeout client 300s
    timeout server 300s
frontend clients
    bind 127.0.0.1:@PORT@ backlog 4096
    http-request return status 200 if { path /ping }
    http-request deny deny_status 401 unless { req.hdr(authorization) -m str "Bearer @KEY@" }
    stick-table type string len 64 size 10k expire 2m store http_req_rate(60s)
    http-request track-sc0 req.hdr(authorization)
    http-request deny deny_status 429 if { sc_http_req_rate(0) gt 100000000 }
    http-request set-header Authorization "Bearer @BACKEND_KEY@"
    default_backend engine
backend engine
    server engine 127.0.0.1:@BACKEND_PORT@
"""


class PeerFailed(Exception):
    """A peer did not start, or did not do its work; the message states which."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A program to compare. ``@NAME@`` is replaced at its start."""

    name: str
    command: Sequence[str]
    config: str = ""
    """The content of the file ``@FOLDER@/config``."""
    environment: Mapping[str, str] = field(default_factory=dict)


UNIX: Final = "-unix"
"""The suffix of a peer's name that connects to the backend over its unix socket."""
_NGINX: Final = ("nginx", "-e", "stderr", "-p", "@FOLDER@", "-c", "@FOLDER@/config")
NGINX: Final = Peer("nginx", _NGINX, _NGINX_CONF)
NGINX_UNIX: Final = Peer(
    "nginx-unix",
    _NGINX,
    _NGINX_CONF.replace("127.0.0.1:@BACKEND_PORT@", "unix:@BACKEND_SOCKET@"),
)
HAPROXY: Final = Peer("haproxy", ("haproxy", "-db", "-f", "@FOLDER@/config"), _HAPROXY_CFG)


def gateway(name: str, command: str) -> Peer:
    """Our gateway, run by *command*: ``llama-gguf`` of this or another installation."""
    settings = {
        "HOST": "127.0.0.1",
        "PORT": "@PORT@",
        "PORT_BACKEND": "@BACKEND_PORT@",
        "BACKEND_API_KEY": "@BACKEND_KEY@",
        "DATA_DIR": "@FOLDER@",
        "AUTH_KEYS_FILE": "@FOLDER@/config",
        "MAX_REQUESTS_PER_MINUTE": "100000000",
        "MAX_CONCURRENT_REQUESTS": "4096",
    }
    if name.endswith(UNIX):
        settings["BACKEND_SOCKET"] = "@BACKEND_SOCKET@"
    return Peer(name, (*shlex.split(command), "gateway"), "benchmarks:@KEY@\n", settings)


class Running:
    """A process that was started at *begin*, with its children."""

    def __init__(
        self, process: subprocess.Popen[bytes], begin: float, *, port: int, folder: Path
    ) -> None:
        self._process = process
        self._begin = begin
        self._output = folder / OUTPUT
        self.port = port
        self.socket_path = folder / SOCKET
        """The socket of the backend; other peers have none."""

    def wait_until_ready(self) -> float:
        """Wait for a 200 on /ping; return the seconds since the start.

        Raises:
            PeerFailed: it exited, or does not respond.
        """
        while (seconds := time.perf_counter() - self._begin) < START_SECONDS:
            if self._process.poll() is not None:
                break
            with contextlib.suppress(OSError, http.client.HTTPException):
                if self.status_of("GET", "/ping", backend.KEY) == 200:
                    return seconds
            time.sleep(0.002)
        last = self._output.read_text("utf-8", "replace").splitlines()[-_LAST_LINES:]
        raise PeerFailed("\n".join(["it did not start; its last output:", *(last or ["nothing"])]))

    def status_of(self, method: str, path: str, key: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        with contextlib.closing(connection):
            connection.request(method, path, headers={"Authorization": f"Bearer {key}"})
            return connection.getresponse().status

    def cpu_ns(self) -> int:
        """CPU time of all threads, in user and kernel mode."""
        # proc(5): the first number is the time on the CPU, more precise than the ticks of `stat`.
        threads = [t for pid in self._tree() for t in Path(f"/proc/{pid}/task").iterdir()]
        return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads)

    def resident_kib(self) -> int:
        rollups = [Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in self._tree()]
        return sum(int(rollup.partition("\nRss:")[2].split()[0]) for rollup in rollups)

    def _tree(self) -> Iterator[int]:
        remaining = [self._process.pid]
        while remaining:
            pid = remaining.pop()
            yield pid
            for thread in Path(f"/proc/{pid}/task").iterdir():
                remaining += map(int, (thread / "children").read_text().split())


@contextlib.contextmanager
def started(peer: Peer, behind: Running | None = None) -> Iterator[Running]:
    """Run *peer* on a free port in front of the backend *behind*, until the block ends.

    It inherits no variable of our environment.
    """
    with TemporaryDirectory(prefix="benchmarks-") as folder:
        port = _free_port()
        values = {
            "FOLDER": folder,
            "PORT": str(port),
            "KEY": KEY,
            "BACKEND_PORT": str(behind.port if behind else 0),
            "BACKEND_SOCKET": str(behind.socket_path if behind else ""),
            "BACKEND_KEY": backend.KEY,
        }
        config = Path(folder, "config")
        config.touch(mode=0o600)
        config.write_text(_filled(peer.config, values))
        with Path(folder, OUTPUT).open("wb") as output:
            begin = time.perf_counter()
            process = subprocess.Popen(
                [_filled(word, values) for word in peer.command],
                executable=shutil.which(peer.command[0]),
                env={name: _filled(text, values) for name, text in peer.environment.items()},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for this process, which then ends the peers
            )
            try:
                yield Running(process, begin, port=port, folder=Path(folder))
            finally:
                _end(process)


def _filled(text: str, values: Mapping[str, str]) -> str:
    for name, value in values.items():
        text = text.replace(f"@{name}@", value)
    return text


def _free_port() -> int:
    with socket.socket() as unbound:
        unbound.bind(("127.0.0.1", 0))
        port: int = unbound.getsockname()[1]
        return port


def _end(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
