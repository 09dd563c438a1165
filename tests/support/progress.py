"""Progress of long runs: a bar on a terminal, otherwise a line per tenth."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yields a function, to be called with the part of *total* that is done."""
    if not sys.stderr.isatty():
        yield _Lines(label, total)
        return
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import Progress  # noqa: PLC0415

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task(label, total=total)
        yield lambda done: bar.update(task, completed=done)


class _Lines:
    def __init__(self, label: str, total: int) -> None:
        self._label = label
        self._total = total
        self._next_tenth = 1

    def __call__(self, done: int) -> None:
        tenth = 10 * done // self._total
        if tenth >= self._next_tenth:
            sys.stderr.write(f"{self._label}  {10 * tenth} % of {self._total}\n")
            self._next_tenth = tenth + 1
