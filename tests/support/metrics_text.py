"""The metrics as a client reads them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from llama_gguf.telemetry.formats import json_text
from llama_gguf.telemetry.metrics import EngineMetric, Gauges, Metrics


def as_json(metrics: Metrics, gauges: Gauges, engine: Iterable[EngineMetric] = ()) -> Any:
    """The metrics in JSON, parsed."""
    return json.loads(json_text(metrics, gauges, engine))
