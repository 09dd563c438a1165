"""The connection to the store, with a real Valkey; whole gateways are in ``tests/wire``."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from llama_gguf.access.authenticator import Authenticator
from llama_gguf.access.keys import KeyRing
from llama_gguf.access.rate_limit import RateLimiter
from llama_gguf.access.shared_limits import digest_of
from llama_gguf.access.shared_rate import SharedRate
from llama_gguf.config.settings import Settings
from llama_gguf.errors import LimitsUnavailable
from llama_gguf.gateway import shared_store
from llama_gguf.gateway.shared_store import SharedStore
from llama_gguf.net.clock import Clock
from llama_gguf.telemetry.batch import COUNTS
from llama_gguf.wall_clock import wall_now
from tests.support.keys import KEY
from tests.support.processes import DEADLINE_SECONDS
from tests.support.stores import Store, store

pytestmark = pytest.mark.processes

RING = KeyRing.parse(f"alice:{KEY} tokens_per_day=1000\n")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Store]:
    with store(tmp_path) as running:
        yield running


async def until(look: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not look():
        assert time.monotonic() < deadline, look
        await asyncio.sleep(0.01)


Play = Callable[[SharedStore, Authenticator], Awaitable[None]]


def play(server: Store, scene: Play, **settings: object) -> None:
    """Run *scene* with the store of a gateway with one key, which has a budget."""
    asyncio.run(played(server.url, scene, **settings))


async def played(url: str, scene: Play, **settings: object) -> None:
    """As ``play``, of a server at *url*."""
    loop = asyncio.get_running_loop()
    chosen = Settings.of(shared_limits=url, **settings)
    shared = SharedStore(chosen.shared, loop, Clock())
    authenticator = Authenticator(chosen.auth, shared.new_limiter, shared.new_share)
    authenticator.take(RING, ())
    tasks = [
        loop.create_task(shared.follow(), name="follow"),
        loop.create_task(shared.follow_keys(authenticator), name="keys"),
    ]
    try:
        await scene(shared, authenticator)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await shared.leave()


def limiter_of(authenticator: Authenticator) -> RateLimiter:
    principal = authenticator.named("alice")
    assert principal is not None
    assert principal.limiter is not None
    return principal.limiter


def test_the_budgets_of_all_keys_are_known_without_a_request(server: Store) -> None:
    day = int(float(server.do("TIME")[0]) // 86_400)
    server.do("HSET", f"llama-gguf:{digest_of('alice')}:tokens_per_day", str(day), "400")

    async def scene(shared: SharedStore, authenticator: Authenticator) -> None:
        del shared
        budget = authenticator.budgets.of("alice")
        await until(lambda: budget.counts[1] == {day: 400})

    play(server, scene)


def test_the_start_waits_for_the_first_reply(server: Store) -> None:
    async def scene(shared: SharedStore, authenticator: Authenticator) -> None:
        del authenticator
        await shared.wait_for_first()
        assert shared.state.is_up

    play(server, scene)


def test_the_start_does_not_wait_for_a_server_that_is_not_there(
    server: Store, caplog: pytest.LogCaptureFixture
) -> None:
    server.kill()

    async def scene(shared: SharedStore, authenticator: Authenticator) -> None:
        await shared.wait_for_first()
        assert not shared.state.is_up
        assert limiter_of(authenticator).hit(5.0) >= 0

    play(server, scene)
    assert "SHARED_LIMITS_OUTAGE=local applies" in caplog.text


def test_scripts_that_the_server_has_forgotten_are_loaded_again(server: Store) -> None:
    async def scene(shared: SharedStore, authenticator: Authenticator) -> None:
        await until(lambda: shared.state.is_up)
        server.do("SCRIPT", "FLUSH")
        await until(lambda: not shared.state.is_up)
        await until(lambda: shared.state.is_up)
        assert limiter_of(authenticator).hit(time.monotonic()) >= 0
        await until(
            lambda: server.do("EXISTS", f"llama-gguf:{digest_of('alice')}:requests_per_minute")
        )

    play(server, scene)


def test_a_server_that_stops_responding_is_lost_and_comes_back(
    server: Store, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    async def scene(shared: SharedStore, authenticator: Authenticator) -> None:
        await until(lambda: shared.state.is_up)
        server.send(signal.SIGSTOP)
        await until(lambda: not shared.state.is_up)
        assert limiter_of(authenticator).hit(time.monotonic()) >= 0
        assert shared.gauges().local_decisions == 1
        server.send(signal.SIGCONT)
        await until(lambda: shared.state.is_up)
        assert shared.gauges().outages == 1
        assert shared.facts() == {"up": True, "gateways": 1}

    play(server, scene)
    events = [getattr(record, "event", "") for record in caplog.records]
    assert events.count("shared_limits_connected") == 2
    assert "no reply within 0.5 seconds" in caplog.text


def test_a_full_server_is_an_outage_that_is_logged_once(
    server: Store, caplog: pytest.LogCaptureFixture
) -> None:
    async def scene(shared: SharedStore, authenticator: Authenticator) -> None:
        await until(lambda: shared.state.is_up)
        server.do("CONFIG", "SET", "maxmemory-policy", "noeviction")
        server.do("CONFIG", "SET", "maxmemory", "1")
        await until(lambda: not shared.state.is_up)
        for _ in range(5):
            assert limiter_of(authenticator).hit(time.monotonic()) >= 0
        connections = server.client_count()
        await until(lambda: server.client_count() >= connections + 3)  # it has tried again
        server.do("CONFIG", "SET", "maxmemory", "0")
        await until(lambda: shared.state.is_up)

    play(server, scene)
    lost = [r for r in caplog.records if getattr(r, "event", "") == "shared_limits_lost"]
    assert [r.getMessage() for r in lost] == [lost[0].getMessage()]
    assert "used memory > 'maxmemory'" in caplog.text


def test_closed_refuses_while_the_server_is_lost(server: Store) -> None:
    async def scene(shared: SharedStore, authenticator: Authenticator) -> None:
        await until(lambda: shared.state.is_up)
        shared.check_closed()
        assert limiter_of(authenticator).hit(time.monotonic()) >= 0
        server.kill()
        await until(lambda: not shared.state.is_up)
        assert limiter_of(authenticator).hit(time.monotonic()) < 0
        with pytest.raises(LimitsUnavailable) as caught:
            shared.check_closed()
        assert caught.value.retry_after

    play(server, scene, shared_limits_outage="closed")


def test_a_gateway_that_leaves_reports_what_it_has_used(server: Store) -> None:
    name = f"llama-gguf:{digest_of('alice')}:requests_per_minute"

    async def scene(shared: SharedStore, authenticator: Authenticator) -> None:
        await until(lambda: shared.state.is_up)
        limiter = limiter_of(authenticator)
        await until(lambda: not shared.state.dirty)
        for _ in range(7):
            limiter.hit(time.monotonic())

    play(server, scene)
    fields = server.do("HGETALL", name)
    amounts = dict(zip(fields[::2], fields[1::2], strict=True))
    assert sum(int(n) for field, n in amounts.items() if not field.startswith(b"g:")) == 7
    assert not [field for field in amounts if field.startswith(b"g:")]


def test_keys_that_are_removed_are_forgotten(server: Store) -> None:
    async def scene(shared: SharedStore, authenticator: Authenticator) -> None:
        limiter_of(authenticator)
        name = f"llama-gguf:{digest_of('alice')}:requests_per_minute"
        assert shared.limits.has(name)
        authenticator.take(KeyRing.parse(""), ("alice",))
        await until(lambda: not shared.limits.has(name))

    play(server, scene)


def test_a_limit_that_has_changed_applies_to_the_share_without_a_request(server: Store) -> None:
    async def scene(shared: SharedStore, authenticator: Authenticator) -> None:
        del shared
        limiter = limiter_of(authenticator)
        assert isinstance(limiter, SharedRate)
        await asyncio.sleep(0)  # the keys before are known
        authenticator.take(KeyRing.parse(f"alice:{KEY}:20\n"), ())
        await until(lambda: limiter.share.limit == 20)

    play(server, scene)


def test_what_many_keys_have_used_is_reported_by_a_gateway_that_leaves(server: Store) -> None:
    ids = [f"key-{number}" for number in range(200)]

    async def scene(shared: SharedStore, authenticator: Authenticator) -> None:
        lines = [f"{key_id}:{key_id}-0123456789abcdef\n" for key_id in ids]
        authenticator.take(KeyRing.parse("".join(lines)), ())
        await until(lambda: shared.state.is_up)
        for key_id in ids:
            principal = authenticator.named(key_id)
            assert principal is not None
            assert principal.limiter is not None
            assert principal.limiter.hit(time.monotonic()) >= 0
            shared.usage.totals.add(key_id, [1] * len(COUNTS), wall_now())

    play(server, scene)
    names = [f"llama-gguf:{digest_of(key_id)}:requests_per_minute" for key_id in ids]
    assert all(server.do("EXISTS", name) for name in names)
    assert all(server.do("EXISTS", f"llama-gguf:usage:{digest_of(key_id)}") for key_id in ids)


HELLO = b"%1\r\n$7\r\nversion\r\n$5\r\n7.0.0\r\n"
LOADED = b"$40\r\n" + b"a" * 40 + b"\r\n"
SUBSCRIBED = b">3\r\n$9\r\nsubscribe\r\n$1\r\nx\r\n:1\r\n"


@pytest.mark.parametrize(
    "replies",
    [
        (HELLO, b""),
        (HELLO, LOADED, LOADED, b""),
        (HELLO, LOADED, LOADED, SUBSCRIBED + b"garbage\r\n"),
        (HELLO, b":1\r\n", b"$1\r\n\xff\r\n", SUBSCRIBED, b"-NOSCRIPT\r\n"),
    ],
    ids=["silent", "silent later", "garbage", "no hashes"],
)
def test_a_program_that_only_begins_as_a_server_is_an_outage_until_there_is_one(
    server: Store,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    replies: tuple[bytes, ...],
) -> None:
    monkeypatch.setattr(shared_store, "CONNECT_SECONDS", 0.2)
    path = server.folder / "program.sock"

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer):
            for reply in replies:
                await reader.read(65536)
                writer.write(reply)
            while await reader.read(65536):
                pass

    async def scene(shared: SharedStore, authenticator: Authenticator) -> None:
        del authenticator
        await until(lambda: "cannot be used" in caplog.text)
        path.unlink()
        path.symlink_to(server.path)
        await until(lambda: shared.state.is_up)

    async def run() -> None:
        async with await asyncio.start_unix_server(serve, path):
            await played(f"unix://{path}", scene)

    asyncio.run(run())
