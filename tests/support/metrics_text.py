"""The metrics as a client reads them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from llama_gguf.telemetry.gauges import EngineMetric, Gauges
from llama_gguf.telemetry.metrics import Metrics
from llama_gguf.telemetry.metrics_json import render


def as_json(metrics: Metrics, gauges: Gauges, engine: Iterable[EngineMetric] = ()) -> Any:
    """The metrics in JSON, parsed."""
    return json.loads(render(metrics, gauges, engine)[0])
