"""What the commands for a running server share: to find it, and to show facts about it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

from llama_gguf.cli.context import Context
from llama_gguf.supervisor import control_client
from llama_gguf.supervisor.control_client import Server

SERVES: Final = ("ready", "asleep")
"""States in which a request is served."""


def find(context: Context) -> Server:
    """The running server; the one at PORT if that is set and there are several.

    Raises:
        UserError: there is none, or it is not clear which one is meant.
    """
    settings = context.settings
    is_chosen = context.sources["port"] != "default"
    return control_client.find(settings.model.data_dir, settings.listen.port if is_chosen else None)


def age(iso: str) -> str:
    """The time since the moment *iso*, for people."""
    return duration((datetime.now(UTC) - datetime.fromisoformat(iso)).total_seconds())


def duration(seconds: float) -> str:
    """Two units at most."""
    whole = max(int(seconds), 0)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def state_text(part: dict[str, Any]) -> str:
    """The state of a server or a replica, since when, and why."""
    progress = part.get("progress")
    share = f" {progress:.0%}" if progress is not None else ""
    detail = f": {part['detail']}" if part["detail"] else ""
    return f"{part['state']}{share} for {age(part['since'])}{detail}"


def facts_rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """A status as labels and texts."""
    model, gateway = facts["model"], facts["gateway"]
    about = [str(model[name]) for name in ("quantization",) if name in model]
    if "context" in model:
        about.append(f"{model['context']} tokens per request")
    description = f" ({', '.join(about)})" if about else ""
    rows = [
        ("server", f"{facts['server']} {facts['version']}, process {facts['pid']}"),
        ("state", state_text(facts)),
        ("url", f"{facts['url']}/v1"),
        ("model", f"{model['name'] or '-'}{description}"),
        ("data", facts["data_dir"]),
        ("running", duration(facts["uptime_seconds"])),
    ]
    for replica in facts["replicas"]:
        rows.append((f"replica {replica['name']}", _replica_text(replica)))
        if replica["last_exit"]:
            rows.append(("  last exit", replica["last_exit"]))
    rows += [(f"peer {peer['replica']}", peer_text(peer)) for peer in peers(facts)]
    rows += [("gateway", "does not respond")] if gateway is None else gateway_rows(gateway)
    return rows


def peers(facts: dict[str, Any]) -> list[dict[str, Any]]:
    """The replicas that the server does not run itself (PEERS), as its gateway sees them."""
    own = {replica["name"] for replica in facts["replicas"]}
    known = (facts["gateway"] or {}).get("replicas", ())
    return [replica for replica in known if replica["replica"] not in own]


def peer_text(peer: dict[str, Any]) -> str:
    """The state of a peer, and its slots, whose number is unknown until it has responded."""
    slots = f", {peer['running']} of {peer['slots']} slots in use" if peer["slots"] else ""
    return state_text(peer) + slots


def _replica_text(replica: dict[str, Any]) -> str:
    parts = [state_text(replica)]
    parts += [f"process {replica['pid']}"] if replica["pid"] else []
    parts += [f"loaded in {replica['load_seconds']:.1f} s"] if replica["load_seconds"] else []
    parts += [f"{replica['restarts']} restarts"] if replica["restarts"] else []
    return ", ".join(parts)


FULL_SECONDS: Final = 55
"""Of the gateway's measurements, which come every five seconds: a minute, or nearly."""


def gateway_rows(gateway: dict[str, Any]) -> list[tuple[str, str]]:
    slots, queue, recent = gateway["slots"], gateway["queue"], gateway["recent"]
    count, seconds = recent["requests"], round(recent["seconds"])
    rates = (
        f"{count} {'request' if count == 1 else 'requests'}, "
        f"{recent['prompt_tokens_per_second']:.1f} prompt and "
        f"{recent['completion_tokens_per_second']:.1f} output tokens/s"
    )
    first = recent["first_token_p50"]
    rates += f", first token {first:.2f} s" if first is not None else ""
    errors = ", ".join(f"{n} {reason}" for reason, n in gateway["errors"].items())
    return [
        ("slots", f"{slots['used']} of {slots['total']} in use"),
        ("queue", f"{queue['length']} of {queue['size']}"),
        (
            "last minute" if seconds >= FULL_SECONDS or not seconds else f"last {seconds} s",
            rates if seconds else "not measured yet",
        ),
        ("errors", f"{errors or 'none'} in 15 min"),
        ("keys", f"{gateway['keys_loaded']} loaded, {gateway['connections']} connections"),
    ]


KEY_COLUMNS: Final = ("KEY", "REQ/MIN", "TOK/MIN", "REQUESTS", "TOKENS", "ERRORS")


def key_rows(gateway: dict[str, Any]) -> Sequence[tuple[str, ...]]:
    """The usage of the keys that were used last."""
    return [
        (
            key["key_id"],
            str(key["last_minute"]["requests"]),
            str(_tokens(key["last_minute"])),
            str(key["total"]["requests"]),
            str(_tokens(key["total"])),
            str(key["total"]["errors"]),
        )
        for key in gateway["keys"]
    ]


def _tokens(counts: dict[str, int]) -> int:
    return counts["prompt_tokens"] + counts["completion_tokens"]
