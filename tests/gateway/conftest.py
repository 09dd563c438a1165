from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Protocol

import pytest

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
