"""Traces, if the gateway has a collector for them; without, none of their modules is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from llama_gguf.config.settings import Settings
from llama_gguf.errors import how_to_install
from llama_gguf.events import EventLog
from llama_gguf.net.clock import Clock
from llama_gguf.wall_clock import wall_now

if TYPE_CHECKING:
    from llama_gguf.telemetry.traces import Traces

_log: Final = EventLog(__name__)


def traces_of(settings: Settings, clock: Clock) -> Traces | None:
    """The sink of traces; None without a collector, or without the packages of the extra."""
    endpoint = settings.traces.otel_exporter_otlp_endpoint
    if not endpoint:
        return None
    from urllib.parse import urlsplit  # noqa: PLC0415

    try:
        from llama_gguf.telemetry.traces import Traces, exporter_to  # noqa: PLC0415
    except ImportError as error:
        # Platforms set the variable for every container: it must not prevent the start.
        _log.warning(
            "traces_need_packages",
            "No traces are sent to OTEL_EXPORTER_OTLP_ENDPOINT: {package} is missing; {advice}",
            package=error.name,
            advice=how_to_install("otel"),
        )
        return None
    parts = urlsplit(endpoint)
    return Traces(
        exporter_to(endpoint),
        parts.netloc.rpartition("@")[2],  # without a login
        instance_id=settings.logs.instance_id,
        requires_keys=settings.auth.auth_enabled,
        offset=lambda: wall_now() - clock.now(),
    )
