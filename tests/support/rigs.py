from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Final, Protocol

import pytest
import uvloop

from llama_gguf.net.event_loop import TrafficLoop
from llama_gguf.net.poller import EpollPoller, LoopPoller, poller
from tests.support.ends import NewPoller, Play, Scene, watched
from tests.support.fakes import Rig


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


Way = tuple[NewPoller, Callable[[], asyncio.AbstractEventLoop]]
WAYS: Final[dict[str, Way]] = {
    "within": (poller, TrafficLoop),
    **{
        f"{kind.__name__}-{name}": (kind, new_loop)
        for kind in (EpollPoller, LoopPoller)
        for name, new_loop in (
            ("asyncio", asyncio.new_event_loop),
            ("uvloop", uvloop.new_event_loop),
        )
    },
}
"""How sockets may be watched: by what, and in which loop."""


@pytest.fixture(params=WAYS)
def play(request: pytest.FixtureRequest) -> Play:
    new_poller, new_loop = WAYS[request.param]

    def run(scene: Scene) -> None:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(watched(scene, new_poller))

    return run
