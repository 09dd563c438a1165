"""Names the server of ours that has a port which a new server wants."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Set
from contextlib import suppress
from typing import Any, Final

from llama_gguf.config.settings import Settings
from llama_gguf.engines import processes
from llama_gguf.errors import UserError
from llama_gguf.supervisor import control_client

_PORTS: Final = frozenset({"port", "port_health", "port_backend"})


def explained(error: UserError, settings: Settings) -> UserError:
    """*error*, which may be about a port that is taken, with the servers of ours in the way."""
    if not _PORTS.intersection(error.settings):
        return error
    return UserError(f"{error}{_text(settings)}", error.exit_status, settings=error.settings)


def _text(settings: Settings) -> str:
    """Lines that name the servers of ours in the way, and what to do; empty if there is none."""
    found = list(_running(settings))
    if not found:
        return ""
    lines = ["", "In the way is:"]
    for facts in found:
        where = f" --data-dir {shlex.quote(facts['data_dir'])} --port {facts['port']}"
        lines += [
            f"  {control_client.summary(facts)}",
            f"    see it:   llama-gguf status{where}",
            f"    stop it:  llama-gguf stop{where}",
        ]
    lines.append("To run a second server beside it, set PORT, PORT_HEALTH and PORT_BACKEND.")
    return "\n".join(lines)


def _running(settings: Settings) -> Iterator[dict[str, Any]]:
    """The status of each server of ours that has one of the ports."""
    listen = settings.listen
    wanted = {listen.port, listen.port_health, settings.upstream.port_backend}
    holders = dict(_holders(wanted))
    folders = dict.fromkeys([settings.model.data_dir, *filter(None, holders.values())])
    seen: set[int] = set()
    for folder in folders:
        with suppress(UserError):
            for server in control_client.servers(folder):
                with server, suppress(UserError):
                    facts = server.ask("status")
                    has_port = facts["port"] in wanted or facts["pid"] in holders
                    if has_port and facts["pid"] not in seen:
                        seen.add(facts["pid"])
                        yield facts


def _holders(wanted: Set[int]) -> Iterator[tuple[int, str]]:
    """The processes of ours that listen on one of the ports, and their parents; with DATA_DIR."""
    found = processes.look()
    ours = [pid for pid, process in found.items() if process.is_ours]
    for listener in processes.listeners(ours):
        if listener.port in wanted and listener.pid is not None:
            # The gateway and the engine of `serve` have it in their environment.
            folder = processes.environ_of(listener.pid).get("DATA_DIR", "")
            if folder:
                folder = os.path.join(processes.directory_of(listener.pid), folder)
            yield listener.pid, folder
            yield found[listener.pid].parent, folder
