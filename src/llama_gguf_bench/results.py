"""The result file of a run: its numbers, and the information needed to repeat it.

Durations are in seconds. ``format`` changes if a reader of the old format would misinterpret the
new one.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from llama_gguf.errors import UserError
from llama_gguf_bench.estimates import Estimate
from llama_gguf_bench.load import Level
from llama_gguf_bench.options import Load
from llama_gguf_bench.records import Record
from llama_gguf_bench.summary import Summary
from llama_gguf_bench.summary import as_json as summary_json

FORMAT: Final = "llama-gguf bench 1"


@dataclass(frozen=True, slots=True)
class Circumstances:
    """The information needed to repeat a run."""

    url: str
    backend_url: str
    date: str
    command: tuple[str, ...]
    versions: Mapping[str, str]
    machine: Mapping[str, Any]
    server: Mapping[str, Any]
    model: Mapping[str, Any]
    settings: Mapping[str, Any]

    @property
    def command_line(self) -> str:
        return shlex.join(self.command)

    def as_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "date": self.date,
            "command": self.command_line,
            "url": self.url,
            "backend_url": self.backend_url,
            "versions": dict(self.versions),
            "machine": dict(self.machine),
            "server": dict(self.server),
            "model": dict(self.model),
            "settings": dict(self.settings),
        }


def level_json(level: Level, summary: Summary) -> dict[str, Any]:
    return {
        "load": {"streams": level.load.streams, "rate": level.load.rate},
        "window_seconds": [round(level.begin, 6), round(level.end, 6)],
        "interrupted": level.interrupted,
        "generator": level.generator.as_json()
        | {"lateness_p99_seconds": round(lateness(level.records), 6)},
        "sent_again": level.sent_again,
        "server": level.server,
        **summary_json(summary),
        "records": [record.as_json() for record in level.records],
    }


def lateness(records: Sequence[Record]) -> float:
    """The delay of requests against their intended times: the 99th percentile, in seconds."""
    late = sorted(r.started - r.intended for r in records)
    return late[int(0.99 * (len(late) - 1))] if late else 0.0


# Reading ----------------------------------------------------------------------------------------

Metrics = dict[str, Estimate]


@dataclass(frozen=True, slots=True)
class Run:
    """The part of a result file that a comparison needs."""

    name: str
    document: Mapping[str, Any]
    levels: Mapping[str, Metrics]
    """Estimates by metric, by load such as ``4 streams`` or ``2/s``."""


def read(name: str, text: str) -> Run:
    """Read a result file, as written by ``--json``.

    Raises:
        UserError: it is not a result file, or its format is unknown to this version.
    """
    try:
        document = json.loads(text)
        if document["format"] != FORMAT:
            raise UserError(f"{name} has the format {document['format']!r}, not {FORMAT!r}.", 2)
        levels = {
            _load_text(level["load"]): _metrics(level) for level in document.get("levels", [])
        }
        levels |= {
            f"added at {turns['streams']}": _added(turns) for turns in document.get("overhead", [])
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{name} is not a file written by `llama-gguf bench --json`.", 2) from None
    return Run(name, document, levels)


def _load_text(load: Mapping[str, Any]) -> str:
    return Load(streams=load["streams"], rate=load["rate"]).text


def _metrics(level: Mapping[str, Any]) -> Metrics:
    return {name: Estimate.from_json(e) for name, e in level["metrics"].items()}


def _added(turns: Mapping[str, Any]) -> Metrics:
    return {
        f"added_{name}": Estimate.from_json(one["median_difference"])
        for name, one in turns["added"].items()
    }
