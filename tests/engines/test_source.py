from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

import pytest

from llama_gguf.engines.cluster_source import ClusterSource
from llama_gguf.engines.source import EngineSource, PeerSource, look_up, source_of
from tests.support.keys import BACKEND_KEY

NAME = "dns+http://engines.example:8080"


class Resolver:
    """What a name has now."""

    def __init__(self, *hosts: str) -> None:
        self.hosts: Sequence[str] = hosts
        self.fails = False

    async def look_up(self, name: str, port: int) -> Sequence[str]:
        assert (name, port) == ("engines.example", 8080)
        if self.fails:
            raise OSError(-2, "Name or service not known")
        return self.hosts


def keys(source: PeerSource) -> list[str]:
    return [address.key for address in source.addresses]


def test_each_peer_is_one_engine_with_the_key_of_all() -> None:
    source = PeerSource(["http://a.example:81", "https://[::1]:82", "unix:/run/e"], BACKEND_KEY)
    every: EngineSource = source
    asyncio.run(every.follow())

    assert keys(source) == ["a.example:81", "[::1]:82", "unix:/run/e"]
    assert [address.has_tls for address in source.addresses] == [False, True, False]
    assert {address.api_key for address in source.addresses} == {BACKEND_KEY}


def test_a_name_is_every_one_of_its_addresses_and_they_come_and_go() -> None:
    resolver, changes = Resolver("10.0.0.2", "10.0.0.1", "fd00::1"), []
    source = PeerSource([NAME], look_up=resolver.look_up)
    source.on_change = lambda: changes.append(keys(source))
    for hosts in (resolver.hosts, ("fd00::1", "10.0.0.1", "10.0.0.2"), ("10.0.0.3",)):
        resolver.hosts = hosts
        asyncio.run(source.resolve(NAME))

    assert changes == [
        ["10.0.0.1:8080", "10.0.0.2:8080", "[fd00::1]:8080"],
        ["10.0.0.3:8080"],
    ]
    assert source.addresses[0].authority == "engines.example:8080"


def test_a_look_up_that_fails_keeps_the_last_addresses_and_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    resolver = Resolver("10.0.0.1")
    source = PeerSource([NAME], BACKEND_KEY, look_up=resolver.look_up)
    asyncio.run(source.resolve(NAME))
    resolver.fails = True
    for _ in range(3):
        asyncio.run(source.resolve(NAME))

    assert keys(source) == ["10.0.0.1:8080"]
    assert [record.levelno for record in caplog.records].count(logging.WARNING) == 1
    assert BACKEND_KEY not in caplog.text


def test_a_peer_that_is_named_twice_is_one_engine() -> None:
    source = PeerSource(["http://10.0.0.1:8080", NAME], look_up=Resolver("10.0.0.1").look_up)
    asyncio.run(source.resolve(NAME))

    assert keys(source) == ["10.0.0.1:8080"]


def test_the_systems_resolver_is_asked() -> None:
    assert set(asyncio.run(look_up("localhost", 80))) & {"127.0.0.1", "::1"}


def test_each_form_has_its_source_and_several_are_one() -> None:
    assert isinstance(source_of(["http://a.example:81"]), PeerSource)
    assert isinstance(source_of(["ray://"]), ClusterSource)
    several = source_of(["http://a.example:81", "ray://b.example:8002", "http://a.example:81"])
    changes: list[None] = []
    several.on_change = lambda: changes.append(None)
    several.on_change()

    assert [address.key for address in several.addresses] == ["a.example:81"]
    assert (several.absence, len(changes)) == (None, 1)


def test_why_there_is_no_engine_is_what_the_first_source_knows() -> None:
    several = source_of(["dns+http://none.example:81", "ray://b.example:8002"])
    several.wake()

    assert several.absence is not None
    assert several.absence.detail == "The controller of the cluster has not responded yet."
