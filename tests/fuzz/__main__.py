"""``make fuzz``: new inputs for some time. Exit status 1 if one finds a fault."""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Final

from llama_gguf.cli.terminal import echo
from tests.fuzz.cases import RequestCase, ResponseCase, cases
from tests.fuzz.runner import failures
from tests.support.progress import progress

MAX_FOUND: Final = 10
PATIENCE: Final = 10
"""Timeout in seconds for one input, which normally takes a millisecond."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    options = parser.parse_args()
    echo(f"{options.seconds} seconds, --seed {options.seed}")
    began = time.monotonic()
    tried = 0
    found: list[str] = []
    with tempfile.TemporaryDirectory() as folder, progress("fuzz", options.seconds) as report:
        for failure in failures(Path(folder), with_a_timeout(options.seed)):
            tried += 1
            if failure is not None:
                found.append(failure)
            passed = time.monotonic() - began
            report(int(passed))
            if passed >= options.seconds or len(found) >= MAX_FOUND:
                break
    for failure in found:
        echo(f"\n{failure}")
    echo(f"{tried:,} inputs, {len(found)} of which found a fault")
    return bool(found)


def with_a_timeout(seed: int) -> Iterator[RequestCase | ResponseCase]:
    """New cases; an alarm interrupts one that hangs, so that it fails like any other."""
    signal.signal(signal.SIGALRM, _on_alarm)
    for case in cases(seed):
        signal.alarm(PATIENCE)
        yield case


def _on_alarm(_: int, frame: FrameType | None) -> None:
    raise TimeoutError("the input takes too long")


if __name__ == "__main__":
    sys.exit(main())
