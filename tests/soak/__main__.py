"""``make soak``: the long form. Exit status 1 if it finds a fault."""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
from pathlib import Path

from llama_gguf.cli.terminal import echo, print_table
from tests.soak.soak import Outcome, Size, Soak
from tests.support.progress import progress


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--requests", type=int, default=200_000)
    parser.add_argument("--streams", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    size = Size(**vars(parser.parse_args()))
    echo(f"{size.requests} requests and {size.streams} streams, --seed {size.seed}")
    with (
        tempfile.TemporaryDirectory() as folder,
        progress("soak", size.requests + size.streams) as report,
    ):
        outcome = asyncio.run(Soak(size, Path(folder), report).run())
    show(outcome)
    for fault in outcome.faults:
        echo(f"WRONG: {fault}")
    if outcome.faults:
        echo(f"{len(outcome.faults)} faults; --seed {size.seed}")
    else:
        echo("All responses were correct, and all resources are released.")
    return bool(outcome.faults)


def show(outcome: Outcome) -> None:
    figures = sorted(outcome.tally.items())
    figures += [(f"clients that left: {p}", n) for p, n in sorted(outcome.disconnects.items())]
    print_table(("what", "how many"), [(name, f"{number:,}") for name, number in figures])
    echo("")
    print_table(
        ("the gateway holds", "descriptors", "threads", "resident MB"),
        [
            (when, str(held.descriptors), str(held.threads), f"{held.resident_bytes / 1e6:.1f}")
            for when, held in outcome.held.items()
        ],
    )
    echo(f"\n{outcome.seconds:.0f} seconds")


if __name__ == "__main__":
    sys.exit(main())
