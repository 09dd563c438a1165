"""A real gateway as a process, over real sockets on loopback.

``engine`` is in this process, and the test sends its responses, so that no test depends on speed;
``processes.fake_llama`` starts an engine as a process. Every wait has a deadline; no test sleeps.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest

from tests.support.certificates import issue, trusting
from tests.support.engines import ScriptedEngine
from tests.support.gateways import GatewayProcess, Processes


@pytest.fixture(scope="module")
def shared_processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    processes = Processes(tmp_path_factory.mktemp("wire"))
    yield processes
    processes.close()


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    processes = Processes(tmp_path)
    yield processes
    processes.close()


@pytest.fixture
def engine() -> Iterator[ScriptedEngine]:
    """An engine with four slots, whose responses the test sends."""
    with ScriptedEngine() as engine:
        yield engine


class NewGateway(Protocol):
    def __call__(self, **env: object) -> GatewayProcess: ...


@pytest.fixture
def new_gateway(engine: ScriptedEngine, processes: Processes) -> NewGateway:
    """Starts a gateway in front of ``engine``, with other settings if given."""
    return lambda **env: processes.gateway(("127.0.0.1", engine.port), **env)


@pytest.fixture
def new_tls_gateway(engine: ScriptedEngine, processes: Processes, tmp_path: Path) -> NewGateway:
    """As ``new_gateway``, over TLS; its certificate is in ``tmp_path``."""
    files = issue().write(tmp_path)
    trust = trusting()
    return lambda **env: processes.gateway(
        ("127.0.0.1", engine.port), trust=trust, **{**files, **env}
    )


@pytest.fixture
def gateway(new_gateway: NewGateway) -> GatewayProcess:
    """A gateway in front of ``engine``."""
    return new_gateway()
