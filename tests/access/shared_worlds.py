"""Several gateways that share limits in a real Valkey, with a clock and network of the test's own.

The script runs as it is, but for two calls: its time is the test's, and messages wait in a list
until the test delivers them. Calls and replies take as long as the test wants.
"""

from __future__ import annotations

from importlib import resources
from typing import Any, Final

from llama_gguf.access.share import LOCAL, StoreState
from llama_gguf.access.shared_limits import (
    KEPT_SECONDS,
    RATE,
    RATE_SECONDS,
    Call,
    SharedLimits,
    digest_of,
    window_name,
)
from llama_gguf.access.shared_rate import SharedRate
from tests.support.stores import Client

_TIME: Final = "redis.call('TIME')"
_PUBLISH: Final = "redis.call('PUBLISH', channel,"
_TEXT: Final = (
    resources.files("llama_gguf.access").joinpath("shared_limits.lua").read_text(encoding="utf-8")
)
assert _TIME in _TEXT
assert _PUBLISH in _TEXT
SCRIPT: Final = _TEXT.replace(_TIME, "redis.call('HMGET', 'test:time', 's', 'us')").replace(
    _PUBLISH, "redis.call('RPUSH', 'test:messages',"
)
NAME: Final = window_name(digest_of("alice"), RATE)
START: Final = 1_800_000_000.0


class Node:
    """One gateway, whose clock is *behind* the store's by some seconds."""

    def __init__(
        self, world: World, name: str, *, limit: int, behind: float = 0.0, outage: int = LOCAL
    ) -> None:
        self.world = world
        self.behind = behind
        self.state = StoreState(outage, START)
        self.machine = SharedLimits(self.state, name, "channel", self._find)
        self.limit = limit
        self.rate: SharedRate | None = None
        self._replies: list[tuple[Call, Any, float]] = []

    def _find(self, name: str) -> bool:
        if name != NAME or self.rate is not None:
            return False
        self.limiter()
        return True

    def limiter(self) -> SharedRate:
        if self.rate is None:
            share = self.machine.share(
                NAME, limit=self.limit, length=RATE_SECONDS, kept_seconds=KEPT_SECONDS, counts={}
            )
            self.rate = SharedRate(self.limit, share)
        return self.rate

    @property
    def now(self) -> float:
        return self.world.now - START - self.behind

    def hit(self) -> bool:
        admitted = self.limiter().hit(self.now) >= 0
        if admitted:
            self.world.admitted.append(self.world.now)
        return admitted

    def send(self, *, is_lost: bool = False) -> None:
        """Send what is due. The store does it; its reply comes with ``receive``, or never."""
        if self._replies:
            return
        call = self.machine.next_call()
        if call is None:
            return
        reply = self.world.run(call)
        if not is_lost:
            self._replies.append((call, reply, self.now))

    def receive(self) -> None:
        replies, self._replies = self._replies, []
        for call, reply, sent_at in replies:
            self.machine.on_reply(call, reply, sent_at, self.now)
            if self.machine.is_short:
                self.machine.retry_short()

    def drop(self) -> None:
        """A reply is lost; the connection is made again before anything is decided."""
        self._replies = []

    def lose(self) -> None:
        """The connection is lost, and the reply that was on its way with it."""
        self._replies = []
        self.machine.on_lost()


class World:
    def __init__(self, client: Client, gateways: int, *, limit: int, **options: Any) -> None:
        self.client = client
        client.do("FLUSHALL")
        self.now = START
        self.admitted: list[float] = []
        self.nodes = [Node(self, f"g{n}", limit=limit, **options) for n in range(gateways)]
        self.join()

    def join(self) -> None:
        for _ in range(3):
            self.settle()

    def settle(self) -> None:
        """Deliver everything that is on its way, and send what is due."""
        for node in self.nodes:
            node.send()
            node.receive()
        self.deliver()

    def converge(self) -> None:
        for _ in range(12):
            self.settle()

    def deliver(self) -> None:
        """Deliver all messages."""
        messages = self.client.do("LRANGE", "test:messages", "0", "-1")
        self.client.do("DEL", "test:messages")
        for name in messages:
            for node in self.nodes:
                node.machine.on_recall(name.decode())

    def pulse(self) -> None:
        for node in self.nodes:
            node.machine.pulse()

    def pass_time(self, seconds: float) -> None:
        """With all that gateways do each second."""
        end = self.now + seconds
        while self.now < end:
            self.now = min(self.now + 1.0, end)
            self.pulse()
            self.converge()

    def run(self, call: Call) -> Any:
        second, rest = divmod(self.now, 1)
        self.client.do("HSET", "test:time", "s", str(int(second)), "us", str(int(rest * 1e6)))
        return self.client.do("EVAL", SCRIPT, str(len(call.keys)), *call.keys, *call.arguments)
