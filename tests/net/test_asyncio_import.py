from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.support.certificates import CA_PEM, issue
from tests.support.file_server import FileServer
from tests.support.processes import DEADLINE_SECONDS

pytestmark = pytest.mark.processes

WITHOUT_TLS: Final = """
import sys
from llama_gguf.net.asyncio_import import import_asyncio
import_asyncio(has_tls=False)
import asyncio
"""
ECHO: Final = """
async def main():
    async def echo(reader, writer):
        writer.write(await reader.readline())
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1")
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    writer.write(b"hello\\n")
    print((await reader.read()).decode().strip(), "ssl" in sys.modules)
    writer.close()
    server.close()

asyncio.run(main())
"""
DOWNLOAD: Final = """
from urllib.request import urlopen
print(urlopen(sys.argv[1]).read().decode())
"""


def output(code: str, *arguments: str, **environ: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={"PYTHONPATH": os.pathsep.join(sys.path)} | environ,
        capture_output=True,
        text=True,
        check=True,
        timeout=DEADLINE_SECONDS,
    )
    return done.stdout.strip()


def test_asyncio_serves_and_connects_without_ssl() -> None:
    assert output(WITHOUT_TLS + ECHO) == "hello False"


def test_after_that_other_modules_can_use_tls(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_bytes(CA_PEM)
    with FileServer(b"content", tls=issue().server_context()) as server:
        url = server.url()

        assert url.startswith("https://")
        assert output(WITHOUT_TLS + DOWNLOAD, url, SSL_CERT_FILE=f"{tmp_path}/ca.pem") == "content"


@pytest.mark.parametrize(
    "before", [WITHOUT_TLS.replace("False", "True"), f"import ssl\n{WITHOUT_TLS}"]
)
def test_asyncio_has_tls_if_it_is_needed_or_if_ssl_is_loaded_already(before: str) -> None:
    assert output(f"{before}print(asyncio.sslproto.ssl is sys.modules['ssl'])") == "True"
