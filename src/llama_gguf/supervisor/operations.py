"""The commands of the control socket: what they do, and the facts that ``status`` has.

The facts are JSON for scripts, too: names stay, and new ones may be added. Replicas are always a
list.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from llama_gguf import __version__
from llama_gguf.config.settings import Settings
from llama_gguf.engines.status import EngineStatus
from llama_gguf.supervisor.control_socket import Handler, Json, Report
from llama_gguf.values import Value
from llama_gguf.wall_clock import iso, wall_now

if TYPE_CHECKING:
    from llama_gguf.supervisor.supervisor import Supervisor

MAX_LOG_LINES: Final = 40


def server_facts(settings: Settings, kind: str, started_at: float) -> dict[str, Any]:
    """The facts that do not depend on the engine. *kind*: the command of the server."""
    return {
        "server": kind,
        "version": __version__,
        "pid": os.getpid(),
        "started": iso(started_at),
        "uptime_seconds": round(wall_now() - started_at, 1),
        "url": settings.url,
        "port": settings.listen.port,
        "data_dir": os.path.abspath(settings.model.data_dir),
        "keys_file": os.path.abspath(settings.auth.auth_keys_file),
        "log_dir": os.path.abspath(settings.logs.log_dir),
    }


class Operations(Value):
    """The commands of one ``serve``.

    Args:
        settings: with folders filled in.
        supervisor: of the server.
        model_name: returns the name of the model; empty until it is found.
        started_at: POSIX seconds.
    """

    settings: Settings
    supervisor: Supervisor
    model_name: Callable[[], str]
    started_at: float

    def handlers(self) -> Mapping[str, Handler]:
        return {"status": self.status, "restart": self.restart, "stop": self.stop}

    async def status(self, arguments: Json, report: Report) -> Json:
        """The state of everything; ``log_lines``: how many lines of the engine's output to add."""
        del report
        gateway = await self.supervisor.gateway.facts()
        engines = self.supervisor.engines
        statuses = [engine.status for engine in engines]
        best = EngineStatus.of_all(statuses)
        lines = _count(arguments.get("log_lines"))
        state = "stopping" if self.supervisor.is_leaving else str(best.state)
        return {
            **server_facts(self.settings, "serve", self.started_at),
            "state": state,
            "since": iso(best.since),
            "detail": best.detail,
            "progress": best.progress,
            "model": _model(best, gateway, self.model_name()),
            "replicas": [
                {
                    **replica_facts(engine.status.replica, engine.status),
                    "pid": None if engine.child is None else engine.child.pid,
                    "log_file": engine.log_file,
                }
                for engine in engines
            ],
            "gateway": gateway,
            "log": [
                line
                for engine in engines
                if engine.child is not None
                for line in [*engine.child.last_lines][
                    max(len(engine.child.last_lines) - lines, 0) :
                ]
            ],
        }

    async def restart(self, arguments: Json, report: Report) -> Json:
        """Replace the engines one after the other, even if the client leaves meanwhile."""
        del arguments
        return {"message": await self.supervisor.restart(report)}

    async def stop(self, arguments: Json, report: Report) -> Json:
        """Drain and stop; with ``now``, running requests are cut."""
        del report
        self.supervisor.stop()
        if arguments.get("now") is True:
            self.supervisor.stop()
        return {"drain_seconds": self.settings.process.drain_timeout}


def _count(value: object) -> int:
    return min(value, MAX_LOG_LINES) if isinstance(value, int) and value > 0 else 0


def _model(status: EngineStatus, gateway: Json | None, name: str) -> Json:
    """Name and facts, the same as in /health."""
    if gateway is not None and isinstance(model := gateway["model"], dict) and model["name"]:
        return model
    facts = dict(status.facts)
    facts.pop("engine_version", None)
    if status.request_tokens:
        facts["context"] = status.request_tokens
    return {"name": status.model or name, **facts}


def replica_facts(name: str, status: EngineStatus, state: str = "") -> dict[str, object]:
    """What `status` shows of one engine; *state*, if it is another one for the gateway."""
    return {
        "name": name,
        "address": status.address,
        "state": state or str(status.state),
        "since": iso(status.since),
        "detail": status.detail,
        "progress": status.progress,
        "slots": status.slots,
        "load_seconds": status.load_seconds,
        "last_exit": status.last_exit,
        "restarts": sum(status.restarts.values()),
        "missing_devices": list(status.missing_devices),
    }
