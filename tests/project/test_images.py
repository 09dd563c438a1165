"""The image's files: health check, entrypoint, locks. tests/e2e/test_image.py builds it."""

from __future__ import annotations

import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support import certificates
from tests.support.containers import ROOT
from tests.support.processes import free_port

HEALTHCHECK: Final = ROOT / "docker" / "healthcheck.py"


# The health check ---------------------------------------------------------------------------------


class Gateway(BaseHTTPRequestHandler):
    """Responds like `GET /health` of a gateway."""

    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status if self.path == "/health" else 404)
        self.end_headers()
        self.wfile.write(b'{"status": "..."}')

    def log_message(self, format: str, *args: Any) -> None:  # the name in http.server
        pass


@contextmanager
def gateway(
    status: int, pair: certificates.Pair | None = None, folder: Path = ROOT
) -> Iterator[int]:
    handler = type("Handler", (Gateway,), {"status": status})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        if pair is not None:
            files = pair.write(folder)
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(files["TLS_CERT_FILE"], files["TLS_KEY_FILE"])
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def healthcheck(**environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-I", HEALTHCHECK],
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.processes
@pytest.mark.parametrize(("status", "exit_status"), [(200, 0), (503, 1)])
def test_the_health_check_reports_whether_a_request_would_be_served(
    status: int, exit_status: int
) -> None:
    with gateway(status) as port:
        checked = healthcheck(PORT=str(port), HOST="0.0.0.0")  # noqa: S104

    assert checked.returncode == exit_status
    assert checked.stdout == '{"status": "..."}\n'


@pytest.mark.processes
def test_the_health_check_reaches_the_gateway_without_the_proxy_of_the_container() -> None:
    # Docker passes the proxy in its configuration to all containers.
    with gateway(200) as port:
        checked = healthcheck(PORT=str(port), http_proxy=f"http://127.0.0.1:{free_port()}")

    assert checked.returncode == 0, checked.stdout


@pytest.mark.processes
def test_the_health_check_reads_the_variables_as_serve_does() -> None:
    # `docker run --env-file` leaves quotes, and the end of a line in a file of Windows.
    with gateway(200) as port:
        checked = healthcheck(PORT=f'"{port}"', HOST="0.0.0.0\r", TLS_CERT_FILE='""')

    assert checked.returncode == 0, checked.stderr


@pytest.mark.processes
def test_the_health_check_uses_tls_if_the_gateway_does(tmp_path: Path) -> None:
    with gateway(200, certificates.issue("api.example"), tmp_path) as port:
        checked = healthcheck(PORT=str(port), TLS_CERT_FILE=str(tmp_path / "cert.pem"))

    assert checked.returncode == 0


@pytest.mark.processes
def test_the_health_check_reports_a_missing_gateway_without_traceback() -> None:
    checked = healthcheck(PORT=str(free_port()))

    assert checked.returncode == 1
    assert "refused" in checked.stdout
    assert checked.stderr == ""


# The build ----------------------------------------------------------------------------------------


def test_dockerignore_includes_all_files_that_the_build_copies() -> None:
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text()
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    copied = {
        source
        for line in dockerfile.splitlines()
        if line.startswith("COPY ") and "--from" not in line
        for source in line.split()[1:-1]
        if not source.startswith("--")
    }

    assert ignored[1] == "*", "everything is kept out that is not named"
    let_in = {line[1:] for line in ignored if line.startswith("!")}
    assert {s for s in copied if s not in let_in and s.split("/")[0] not in let_in} == set()
    assert all((ROOT / source).exists() for source in copied)


@pytest.mark.parametrize("lock", ["image.txt", "build.txt"])
def test_every_package_of_the_image_is_locked_by_its_hash(lock: str) -> None:
    text = (ROOT / "locks" / lock).read_text()
    packages = [line for line in text.splitlines() if line and line[0] not in " #"]

    assert packages
    assert all("==" in line and line.endswith("\\") for line in packages)
    assert "://" not in text, "where a package comes from is each machine's own matter"


def test_the_image_has_the_versions_that_a_clone_has() -> None:
    image, clone = (
        dict(
            line.split(" ")[0].split("==")
            for line in (ROOT / "locks" / lock).read_text().splitlines()
            if "==" in line and line[0] != " "
        )
        for lock in ("image.txt", "run.txt")
    )

    different = {name for name in image.keys() & clone.keys() if image[name] != clone[name]}
    assert not different, "`make lock` takes both anew"
    assert {"httptools", "uvloop", "huggingface-hub"} <= image.keys()


@pytest.mark.processes
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["my model.gguf", "--port", "1"], "serve my model.gguf --port 1"),
        ([], "serve"),
        (["gateway", "--port", "1"], "gateway --port 1"),
        (["m.gguf", "gateway"], "serve m.gguf gateway"),
    ],
)
def test_the_entrypoint_is_replaced_by_serve_or_gateway(
    tmp_path: Path, arguments: list[str], expected: str
) -> None:
    stand_in = tmp_path / "llama-gguf"
    stand_in.write_text('#!/bin/sh\necho "$$" "$@"\n')
    stand_in.chmod(0o755)

    with subprocess.Popen(
        [ROOT / "scripts" / "start.sh", *arguments],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.communicate()[0] == f"{process.pid} {expected}\n"
