from __future__ import annotations

import asyncio
import logging

import pytest

from llama_gguf.engines.address import EngineAddress
from llama_gguf.engines.probe import Probe
from llama_gguf.gateway import metrics_reader
from llama_gguf.gateway.metrics_reader import EngineReader, Readable


class FakeProbe(Probe):
    """An engine that tells what the test says, and who was asked for what."""

    def __init__(self, *texts: bytes | None) -> None:
        super().__init__(EngineAddress("127.0.0.1", 0))
        self.texts = list(texts)
        self.asked: list[str] = []

    async def text(self, path: str) -> bytes | None:
        self.asked.append(path)
        return self.texts.pop(0) if len(self.texts) > 1 else self.texts[0]


def values(reader: EngineReader) -> list[float]:
    return [found.value for found in reader.latest]


def test_what_was_read_last_is_served() -> None:
    probe = FakeProbe(b"llamacpp:n 1\n", b"llamacpp:n 2\n", None)
    only = Readable(probe, "", is_busy=True)
    reader = EngineReader(lambda: [only])
    seen = []
    for _ in range(3):
        asyncio.run(reader.read(only))
        seen.append(values(reader))

    assert seen == [[1], [2], [2]]
    assert probe.asked == ["/metrics"] * 3


def test_it_is_read_while_requests_are_in_flight_and_never_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(metrics_reader, "EVERY_SECONDS", 0.0)
    probe = FakeProbe(b"llamacpp:n 1\n")
    looks: list[bool] = []
    enough = asyncio.Event()

    def is_busy() -> bool:
        looks.append(len(looks) == 5)
        if len(looks) == 12:
            enough.set()
        return looks[-1]

    async def run() -> None:
        reading = asyncio.get_running_loop().create_task(
            EngineReader(lambda: [Readable(probe, "", is_busy=is_busy())]).run()
        )
        await enough.wait()
        reading.cancel()

    asyncio.run(run())

    assert probe.asked == ["/metrics"]


def test_while_nothing_runs_counters_are_served_and_no_gauges(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(metrics_reader, "EVERY_SECONDS", 0.0)
    probe = FakeProbe(b"# TYPE llamacpp:n_total counter\nllamacpp:n_total 1\nllamacpp:now 2\n")
    seen: list[list[float]] = []
    enough = asyncio.Event()

    def is_busy() -> bool:
        seen.append(values(reader))
        if len(seen) == 3:
            enough.set()
        return len(seen) == 1

    reader = EngineReader(lambda: [Readable(probe, "", is_busy=is_busy())])

    async def run() -> None:
        reading = asyncio.get_running_loop().create_task(reader.run())
        await enough.wait()
        reading.cancel()

    asyncio.run(run())

    assert seen == [[], [1, 2], [1]]


def test_an_engine_without_metrics_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    only = Readable(FakeProbe(None), "", is_busy=True)
    reader = EngineReader(lambda: [only])
    asyncio.run(reader.read(only))
    asyncio.run(reader.read(only))

    assert len(caplog.records) == 1
    assert "--metrics" in caplog.text
    assert reader.latest == ()


def test_metrics_of_several_replicas_have_their_labels() -> None:
    replicas = [
        Readable(FakeProbe(b"llamacpp:n %d\n" % n), label, is_busy=True)
        for n, label in enumerate(("a", "b"))
    ]
    reader = EngineReader(lambda: replicas)
    for each in replicas:
        asyncio.run(reader.read(each))

    assert [(found.replica, found.value) for found in reader.latest] == [("a", 0), ("b", 1)]
