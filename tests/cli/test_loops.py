from __future__ import annotations

import asyncio
import sys

import pytest
import uvloop

from llama_gguf.cli.loops import gateway_loop, loop_factory
from llama_gguf.config.schema import TlsSettings
from llama_gguf.net.event_loop import TrafficLoop


def test_uvloop_is_used_if_installed() -> None:
    assert loop_factory() is uvloop.Loop


def test_without_uvloop_asyncios_loop_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)

    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        assert isinstance(runner.get_loop(), asyncio.BaseEventLoop)


def test_a_gateways_loop_waits_in_the_poller_of_its_traffic(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert gateway_loop(TlsSettings()) is TrafficLoop
    assert gateway_loop(TlsSettings(tls_cert_file="cert", tls_key_file="key")) is uvloop.Loop
    monkeypatch.setattr(sys, "platform", "darwin")
    assert gateway_loop(TlsSettings()) is uvloop.Loop
