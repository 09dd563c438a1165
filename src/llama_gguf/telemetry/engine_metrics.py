"""llama-server's metrics, parsed from its text format and renamed with our prefix.

Its names have a colon, which Prometheus reserves for recording rules, and another prefix than the
gateway's. Nothing that it sends can grow without bound.
"""

from __future__ import annotations

import math
import re
from typing import Final

from llama_gguf.telemetry.gauges import EngineMetric

PREFIX: Final = "llama_gguf_engine_"
MAX_METRICS: Final = 64
MAX_TEXT_BYTES: Final = 65536
# Gauges that are rates, although their unit is that of a time.
_RENAMED: Final = {
    "prompt_tokens_seconds": "prompt_tokens_per_second",
    "predicted_tokens_seconds": "predicted_tokens_per_second",
}
_ABOUT: Final = r"# (HELP|TYPE) llamacpp:([a-z][a-z0-9_]{0,60}) ([\x20-\x7e]{1,200})"
_VALUE: Final = r"llamacpp:([a-z][a-z0-9_]{0,60}) ([0-9.eE+-]{1,32})"


def parse(text: bytes) -> tuple[EngineMetric, ...]:
    """The metrics in *text*, as llama-server writes them; other lines are ignored."""
    about: dict[tuple[str, str], str] = {}
    found: dict[str, EngineMetric] = {}
    for line in text[:MAX_TEXT_BYTES].decode("ascii", "replace").splitlines():
        if match := re.fullmatch(_ABOUT, line):
            keyword, name, declared = match.groups()
            about[keyword, name] = declared
        elif match := re.fullmatch(_VALUE, line):
            name, value = match[1], _number(match[2])
            if value is not None and len(found) < MAX_METRICS:
                kind, help_text = about.get(("TYPE", name), ""), about.get(("HELP", name), "")
                metric = _metric(name, kind, help_text, value)
                found[metric.name] = metric
    return tuple(found.values())


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _metric(name: str, kind: str, about: str, value: float) -> EngineMetric:
    # Its n_tokens_max is declared a counter, but is a maximum: names of counters end in _total.
    is_counter = kind == "counter" and name.endswith("_total")
    ours = PREFIX + _RENAMED.get(name, name)
    help_text = f"llama-server: {about.strip().rstrip('.') or name}."
    return EngineMetric(
        ours.removesuffix("_total"), "counter" if is_counter else "gauge", help_text, value
    )
