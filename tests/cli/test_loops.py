from __future__ import annotations

import asyncio
import sys

import pytest
import uvloop

from llama_gguf.cli.loops import loop_factory


def test_the_fast_loop_is_taken_where_there_is_one() -> None:
    assert loop_factory() is uvloop.Loop


def test_without_it_asyncio_s_own_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)

    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        assert isinstance(runner.get_loop(), asyncio.BaseEventLoop)
