"""``make hostile``: all scenarios. Exit status 1 if a bound is broken."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from fnmatch import fnmatch
from pathlib import Path

from llama_gguf.cli.terminal import echo, print_table
from tests.hostile.runner import OURS, Outcome, Run
from tests.hostile.scenarios import SCENARIOS
from tests.support.progress import progress

COLUMNS = ("scenario", "MB above idle", "ms between events", "control", "served", "slowest ms", "")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.hostile", description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each attack")
    parser.add_argument("--only", default="*", metavar="NAME", help="such as leavers or 'unread*'")
    parser.add_argument("--gateway", help="path of another llama-gguf, such as a compiled one")
    parser.add_argument("--json", action="store_true", help="print the outcomes as JSON")
    options = parser.parse_args()
    names = [name for name in SCENARIOS if fnmatch(name, options.only)]
    if not names:
        parser.error(f"no scenario has the name {options.only}; there are {', '.join(SCENARIOS)}")
    program = (options.gateway,) if options.gateway else OURS
    outcomes = []
    with progress("hostile", len(names)) as report:
        for done, name in enumerate(names, 1):
            outcomes.append(run(name, options.seconds, program))
            report(done)
    if options.json:
        echo(json.dumps([asdict(outcome) for outcome in outcomes], indent=1))
    else:
        show(outcomes)
    return any(outcome.broken for outcome in outcomes)


def run(name: str, seconds: float, program: tuple[str, ...]) -> Outcome:
    with tempfile.TemporaryDirectory() as folder:
        one = Run(name, SCENARIOS[name], seconds=seconds, folder=Path(folder), program=program)
        return asyncio.run(one.run())


def show(outcomes: Sequence[Outcome]) -> None:
    """Print measured values, each with its bound."""
    rows = []
    for o in outcomes:
        bounds = SCENARIOS[o.name]
        slowest = f" / {bounds.slowest_ms:.0f}" if bounds.slowest_ms else ""
        rows.append(
            (
                o.name,
                f"{o.resident_mb:.1f} / {bounds.resident_mb:.0f}",
                f"{o.gap_ms:.0f} / {bounds.gap_ms:.0f}",
                f"{o.noise_ms:.0f}",
                str(o.served),
                f"{o.slowest_ms:.0f}{slowest}",
                "BROKEN" if o.broken else "holds",
            )
        )
    print_table(COLUMNS, rows)
    echo("")
    for o in outcomes:
        for what in o.broken:
            echo(f"BROKEN: {o.name}: {what}")
    if not any(o.broken for o in outcomes):
        echo("All bounds hold, and everything was released.")


if __name__ == "__main__":
    sys.exit(main())
