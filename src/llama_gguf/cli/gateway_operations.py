"""The control socket of a gateway alone; with `serve`, the supervisor has it."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

from llama_gguf.config.settings import Settings
from llama_gguf.errors import UserError
from llama_gguf.gateway import fleet_facts
from llama_gguf.gateway.operator_facts import operator_facts
from llama_gguf.gateway.server import Gateway
from llama_gguf.supervisor.control_socket import (
    CAN_NAME_PEERS,
    ControlSocket,
    Handler,
    Json,
    Report,
)
from llama_gguf.supervisor.operations import replica_facts, server_facts
from llama_gguf.values import Value
from llama_gguf.wall_clock import iso, wall_now


def control_socket(
    settings: Settings, gateway: Gateway
) -> ControlSocket | contextlib.nullcontext[None]:
    """The socket over which a second terminal operates *gateway*; none where peers are unknown."""
    if not CAN_NAME_PEERS:
        return contextlib.nullcontext()
    handlers = _Operations(settings, gateway, wall_now()).handlers()
    return ControlSocket(settings.model.data_dir, settings.listen.port, handlers)


class _Operations(Value):
    """The commands of the control socket of a gateway alone."""

    settings: Settings
    gateway: Gateway
    started_at: float

    def handlers(self) -> Mapping[str, Handler]:
        return {"status": self.status, "restart": self.restart, "stop": self.stop}

    async def status(self, arguments: Json, report: Report) -> Json:
        del arguments, report
        fleet = self.gateway.services.fleet
        status = fleet.status
        facts = operator_facts(self.gateway.services)
        is_draining = self.gateway.services.connections.is_draining
        return {
            **server_facts(self.settings, "gateway", self.started_at),
            "state": "stopping" if is_draining else str(status.state),
            "since": iso(status.since),
            "detail": status.detail,
            "progress": None,
            "model": facts["model"],
            "replicas": [
                {
                    **replica_facts(
                        replica.label, replica.tracker.status, fleet_facts.state(replica)
                    ),
                    "pid": None,
                    "log_file": "",
                }
                for replica in fleet.replicas.values()
            ],
            "gateway": facts,
            "log": [],
        }

    async def restart(self, arguments: Json, report: Report) -> Json:
        del arguments, report
        raise UserError("a gateway alone does not run llama-server: restart that where it runs")

    async def stop(self, arguments: Json, report: Report) -> Json:
        del report
        self.gateway.stop()
        if arguments.get("now") is True:
            self.gateway.stop()
        return {"drain_seconds": self.settings.process.drain_timeout}
