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
import llama_gguf.events
from llama_gguf.net.asyncio_import import import_asyncio
import_asyncio(has_tls=False, has_processes=False)
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
    "before", [WITHOUT_TLS.replace("has_tls=False", "has_tls=True"), f"import ssl\n{WITHOUT_TLS}"]
)
def test_asyncio_has_tls_if_it_is_needed_or_if_ssl_is_loaded_already(before: str) -> None:
    assert output(f"{before}print(asyncio.sslproto.ssl is sys.modules['ssl'])") == "True"


# Stand-ins ----------------------------------------------------------------------------------------

REST: Final = """
import os, signal

async def main():
    class Awaitable:
        def __await__(self):
            yield from asyncio.sleep(0).__await__()
            return "awaited"

    loop = asyncio.get_running_loop()
    was_called = asyncio.Event()
    loop.add_signal_handler(signal.SIGUSR1, was_called.set)
    os.kill(os.getpid(), signal.SIGUSR1)
    await was_called.wait()
    rare = {"asyncio.sslproto", "inspect", "linecache", "locale", "subprocess", "traceback"}
    print(sorted(rare & sys.modules.keys()))

    async def handler():
        pass

    try:
        loop.add_signal_handler(signal.SIGUSR1, handler)
    except TypeError as error:
        print(error)
    print(await asyncio.ensure_future(Awaitable()))
    child = await asyncio.create_subprocess_exec("echo", "out", stdout=asyncio.subprocess.PIPE)
    print((await child.communicate())[0].decode().strip(), await child.wait())
    import subprocess
    print(subprocess.run(["echo", "text"], capture_output=True, encoding="locale").stdout.strip())

asyncio.run(main())
import inspect, subprocess
print(inspect.isfunction(main), subprocess.run(["true"]).returncode)
print(asyncio.subprocess.PIPE == subprocess.PIPE, asyncio.subprocess.STDOUT == subprocess.STDOUT,
      asyncio.subprocess.DEVNULL == subprocess.DEVNULL)
"""


@pytest.mark.parametrize(
    ("before", "loaded"),
    [
        (WITHOUT_TLS, []),
        (WITHOUT_TLS.replace("has_processes=False", "has_processes=True"), ["subprocess"]),
    ],
)
def test_what_asyncio_rarely_uses_is_imported_when_it_is_used(
    before: str, loaded: list[str]
) -> None:
    assert output(before + REST, PATH=os.environ["PATH"]).splitlines() == [
        str(loaded),
        "coroutines cannot be used with add_signal_handler()",
        "awaited",
        "out 0",
        "text",
        "True 0",
        "True True True",
    ]


def logged_without_and_with_stand_ins(body: str) -> tuple[str, str]:
    """What *body* logs, on the same lines of code in both cases."""
    code = f"import sys, asyncio, logging; logging.basicConfig(stream=sys.stdout)\n{body}"
    with_them = ";".join(WITHOUT_TLS.strip().splitlines())
    return output(f"import llama_gguf.events\n{code}"), output(f"{with_them}\n{code}")


DEBUG: Final = """
async def fail():
    raise ValueError("lost")

async def main():
    asyncio.create_task(fail(), name="failing")
    await asyncio.sleep(0)
    await asyncio.sleep(0)

asyncio.run(main(), debug=True)
"""


def test_in_debug_mode_a_lost_exception_is_logged_as_without_stand_ins() -> None:
    usual, printed = logged_without_and_with_stand_ins(DEBUG)

    assert "source_traceback: Object created at" in printed
    assert printed.endswith("ValueError: lost")
    assert printed == usual


FAILING: Final = """
import functools

def fail():
    raise ValueError("failed")

@functools.wraps(fail)
def wrapper():
    fail()

async def main():
    loop = asyncio.get_running_loop()
    for callback in (fail, wrapper, functools.partial(fail)):
        loop.call_soon(callback)
    await asyncio.sleep(0)
    await asyncio.sleep(0)

asyncio.run(main())
"""


def test_callbacks_that_raise_are_logged_as_without_stand_ins() -> None:
    usual, printed = logged_without_and_with_stand_ins(FAILING)

    assert printed.count("ValueError: failed") == 3
    assert printed == usual


WITHOUT_DESCRIPTORS: Final = """
import os, resource

def fail():
    raise ValueError("failed")

async def main():
    handled = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda loop, context: handled.append(context["exception"]))
    resource.setrlimit(resource.RLIMIT_NOFILE, (20, 20))
    while True:
        try:
            os.open(os.devnull, os.O_RDONLY)
        except OSError:
            break
    loop.call_soon(fail)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    print(handled)

asyncio.run(main())
"""


def test_without_file_descriptors_a_callback_that_raises_does_not_end_the_loop() -> None:
    assert output(WITHOUT_TLS + WITHOUT_DESCRIPTORS) == "[ValueError('failed')]"
