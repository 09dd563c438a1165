from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Protocol

import pytest
import uvloop

from llama_gguf.gateway.poller import EpollPoller, LoopPoller, Poller
from tests.ends import PATIENCE, Play, Scene
from tests.fakes import Rig


class NewRig(Protocol):
    def __call__(self, **settings: Any) -> Rig: ...


@pytest.fixture
def new_rig(tmp_path: Path) -> Iterator[NewRig]:
    """Makes gateways with settings of one's own."""
    with ExitStack() as stack:
        yield lambda **settings: stack.enter_context(closing(Rig(tmp_path, **settings)))


@pytest.fixture
def rig(new_rig: NewRig) -> Rig:
    """A gateway with three keys, in front of an engine with four slots that is ready."""
    return new_rig()


@pytest.fixture(params=[EpollPoller, LoopPoller])
def kind(request: pytest.FixtureRequest) -> type[Poller]:
    kind: type[Poller] = request.param
    return kind


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def play(request: pytest.FixtureRequest, kind: type[Poller]) -> Play:
    async def watched(scene: Scene) -> None:
        with closing(kind(asyncio.get_running_loop())) as poller:
            async with asyncio.timeout(PATIENCE):
                await scene(poller)

    def run(scene: Scene) -> None:
        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(watched(scene))

    return run
