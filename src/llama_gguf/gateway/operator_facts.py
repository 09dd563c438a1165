"""What the person who operates a gateway sees of it: ``llama-gguf status`` and ``top``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from llama_gguf.gateway import endpoints

if TYPE_CHECKING:
    from llama_gguf.gateway.services import Services

MAX_KEYS: Final = 20
"""Whose usage is included: those used last. It bounds the size, and the time it takes."""


def operator_facts(services: Services) -> dict[str, object]:
    """The facts of /health, the rates of the last minute, and the usage of the latest keys.

    ``chat_key`` is the id of a key with which the commands of an example work; empty if there is
    none.
    """
    services.recorder.settle()
    usage, keys = services.shown_usage, services.authenticator.ring.keys
    wall = services.clock.wall
    return {
        **endpoints.health_facts(services),
        "connections": len(services.connections),
        "keys_loaded": len(services.authenticator.ring),
        "chat_key": next((key.line_id for key in keys if key.can_chat(wall)), ""),
        "recent": services.history.recent(),
        "errors": services.history.errors(all_runs=False),
        "keys_used": usage.keys_used,
        "keys": usage.latest_views(wall, MAX_KEYS),
    }
