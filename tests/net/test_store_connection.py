from __future__ import annotations

import asyncio
import signal
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from llama_gguf.config.store_address import StoreAddress
from llama_gguf.net.store_connection import Greeting, StoreError, connect
from tests.support.certificates import CA_PEM, issue
from tests.support.processes import free_port, free_ports
from tests.support.stores import Store, TlsFront, store

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with store(tmp_path_factory.mktemp("s"), "--requirepass", "s3cret") as running:
        with closing(running.client()) as client:
            client.do("AUTH", "s3cret")
            client.do("ACL", "SETUSER", "gate", "on", ">p@ss", "~*", "&*", "+@all")
        yield running


def at(url: str, context: ssl.SSLContext | None = None, *words: str) -> tuple[Greeting, Any]:
    """The greeting of the server at *url*, and its reply to *words*."""

    async def run() -> tuple[Greeting, Any]:
        connection, greeting = await connect(
            StoreAddress.of(url), context, lambda _: None, lambda _: None, seconds=20
        )
        try:
            return greeting, await connection.ask(*words) if words else None
        finally:
            connection.close()

    return asyncio.run(run())


def error_at(url: str, context: ssl.SSLContext | None = None, seconds: float = 20) -> str:
    async def run() -> None:
        await connect(
            StoreAddress.of(url), context, lambda _: None, lambda _: None, seconds=seconds
        )

    with pytest.raises(StoreError) as caught:
        asyncio.run(run())
    return str(caught.value)


@contextmanager
def replying(text: bytes) -> Iterator[str]:
    """A server that sends *text* to its client, regardless of what that sends; its URL."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            client, _ = listener.accept()
            with client:
                client.sendall(text)
                client.recv(65536)
                client.recv(65536)  # until the client closes

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"redis://127.0.0.1:{listener.getsockname()[1]}"
        thread.join()


# Logging in ---------------------------------------------------------------------------------------


def test_a_server_reports_what_it_is(server: Store) -> None:
    greeting, _ = at(f"unix://:s3cret@{server.path}")

    assert str(greeting).startswith("Valkey 9.")


def test_a_password_an_acl_user_and_a_database_are_used(server: Store) -> None:
    url = f"unix://gate:p%40ss@{server.path}?db=3"

    assert at(url, None, "ACL", "WHOAMI")[1] == b"gate"
    assert at(url, None, "SET", "in-database-3", "1")[1] == b"OK"
    assert at(f"unix://:s3cret@{server.path}", None, "EXISTS", "in-database-3")[1] == 0


@pytest.mark.parametrize("login", ["", ":wrong-secret@", "nobody:wrong-secret@"])
def test_a_wrong_login_is_reported_without_it(server: Store, login: str) -> None:
    reason = error_at(f"unix://{login}{server.path}")

    assert "NOAUTH" in reason or "WRONGPASS" in reason
    assert "wrong-secret" not in reason


def test_a_database_that_does_not_exist_is_reported(server: Store) -> None:
    assert "DB index is out of range" in error_at(f"unix://:s3cret@{server.path}?db=99")


# TLS ----------------------------------------------------------------------------------------------


@contextmanager
def with_tls(server: Store, tmp_path: Path, *names: str) -> Iterator[TlsFront]:
    files = issue(*names).write(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files["TLS_CERT_FILE"], files["TLS_KEY_FILE"])
    with closing(TlsFront(server.path, context)) as front:
        yield front


def test_a_server_with_tls_is_verified(server: Store, tmp_path: Path) -> None:
    trusting = ssl.create_default_context(cadata=CA_PEM.decode())
    with with_tls(server, tmp_path) as front:
        url = f"rediss://:s3cret@127.0.0.1:{front.port}"

        assert str(at(url, trusting)[0]).startswith("Valkey")
        assert "certificate is not accepted" in error_at(url, ssl.create_default_context())
        assert "certificate is not accepted" in error_at(
            url.replace("127.0.0.1", "localhost"), trusting
        )


def test_a_server_without_tls_is_reported() -> None:
    with replying(b"-ERR Protocol error\r\n") as url:
        reason = error_at(url.replace("redis:", "rediss:"), ssl.create_default_context())

    assert reason.startswith("TLS cannot be used: ")
    with replying(b"") as url:
        reason = error_at(url.replace("redis:", "rediss:"), ssl.create_default_context(), 0.2)
    assert reason.endswith("if it has no TLS, its address begins with redis://")


# Servers that cannot be used ----------------------------------------------------------------------


def test_a_node_of_a_cluster_is_refused(tmp_path: Path) -> None:
    # Its nodes' own port would be 10,000 higher, which may be taken.
    port, port_of_nodes = free_ports(2)
    cluster = ("--cluster-enabled", "yes", "--cluster-port", str(port_of_nodes))
    with store(tmp_path, *cluster, port=port) as node:
        assert "node of a cluster" in error_at(node.url)


def test_a_replica_is_refused(tmp_path: Path) -> None:
    with store(tmp_path, "--replicaof", "127.0.0.1 1") as replica:
        assert "is a replica" in error_at(replica.url)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"-ERR unknown command 'HELLO'\r\n", "older than Redis 6"),
        (b"%1\r\n$4\r\nmode\r\n$8\r\nsentinel\r\n", "is a Sentinel"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "something else than Redis's protocol"),
        (b"*0\r\n", "does not reply to HELLO as Redis does"),
        (b"+OK\r\n", "does not reply to HELLO as Redis does"),
        (b":1\r\n", "does not reply to HELLO as Redis does"),
    ],
)
def test_other_servers_are_refused(text: bytes, reason: str) -> None:
    with replying(text) as url:
        assert reason in error_at(url)


def test_a_password_that_a_server_repeats_is_not_in_the_reason() -> None:
    with replying(b"-ERR what is HELLO 3 AUTH default s3cret?\r\n") as url:
        reason = error_at(url.replace("//", "//:s3cret@"))

    assert reason == "the server does not accept HELLO with a password"


def test_a_server_that_is_not_there_is_reported(tmp_path: Path) -> None:
    assert error_at(f"redis://127.0.0.1:{free_port()}") == "Connection refused"
    assert error_at(f"unix://{tmp_path}/missing") == "No such file or directory"
    assert "is not found" in error_at("redis://missing.invalid")


def test_a_server_that_does_not_respond_is_given_up() -> None:
    with replying(b"") as url:
        assert error_at(url, seconds=0.1) == "no response within 0.1 seconds"


# Losing it ----------------------------------------------------------------------------------------


def test_a_lost_connection_is_reported_once_and_ends_what_was_asked(tmp_path: Path) -> None:
    lost: list[str] = []

    async def run(server: Store) -> None:
        address = StoreAddress.of(server.url)
        connection, _ = await connect(address, None, lambda _: None, lost.append)
        server.send(signal.SIGSTOP)
        asking = asyncio.create_task(connection.ask("PING"))
        await asyncio.sleep(0)
        server.kill()
        with pytest.raises(StoreError):
            await asking
        connection.close("again")
        with pytest.raises(StoreError):
            await connection.ask("PING")

    with store(tmp_path) as server:
        asyncio.run(run(server))

    assert len(lost) == 1


def test_messages_of_the_channel_arrive_between_replies(server: Store) -> None:
    received: list[str] = []

    async def run() -> None:
        address = StoreAddress.of(f"unix://:s3cret@{server.path}")
        connection, _ = await connect(address, None, received.append, lambda _: None)
        try:
            await connection.ask("SUBSCRIBE", "news")
            assert await connection.ask("PUBLISH", "news", "one") == 1
            assert await connection.ask("ECHO", "still in step") == b"still in step"
        finally:
            connection.close()

    asyncio.run(run())
    assert received == ["one"]
