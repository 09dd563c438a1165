"""Tables and progress bars for people. Rich is imported only when one is shown."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from llama_gguf.errors import UserError

if TYPE_CHECKING:
    from rich.progress import Progress


class Meter(Protocol):
    """Progress of long work: bytes done, and bytes in total if known."""

    def __call__(self, done: int, total: int | None) -> None: ...


def echo(text: str) -> None:
    """Write one line (or several) to standard output; raises as ``flush`` does."""
    flush(text + "\n")


def flush(text: str = "") -> None:
    """Write *text* to standard output, and flush it.

    If that fails, later output is discarded, so that it fails only once.

    Raises:
        BrokenPipeError: the reader has exited.
        UserError: it cannot be written for another reason, such as a full disk.
    """
    try:
        sys.stdout.write(text)  # fails itself with PYTHONUNBUFFERED, and if the text is long
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            raise
        raise UserError(f"the output cannot be written: {error.strerror}") from None


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table that fits the terminal; in a pipe nothing is truncated or wrapped."""
    if not sys.stdout.isatty():
        _print_plain([columns, *rows])
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console(highlight=False, markup=False, emoji=False).print(table)


def _print_plain(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        echo("  ".join(cells).rstrip())


@contextmanager
def download_meter(label: str) -> Iterator[Meter]:
    """Show the progress of a download: a bar on a terminal, elsewhere a line every 10 %."""
    if not sys.stderr.isatty():
        yield _LineMeter(label)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    ) as progress:
        task = progress.add_task(label, total=None)

        def report(done: int, total: int | None) -> None:
            progress.update(task, completed=done, total=total)

        yield report


@contextmanager
def progress_meter() -> Iterator[Callable[[str, float], None]]:
    """Show progress from 0 to 1: a bar and the time left on a terminal, elsewhere labels."""
    if not sys.stderr.isatty():
        yield _LabelMeter()
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        TextColumn("left"),
        console=Console(stderr=True),
        transient=True,
    ) as progress:
        task = progress.add_task("", total=1.0)
        yield lambda label, share: progress.update(task, description=label, completed=share)


class _LabelMeter:
    """For logs: a line whenever the part of the label before its colon changes."""

    def __init__(self) -> None:
        self._last = ""

    def __call__(self, label: str, share: float) -> None:
        name = label.partition(":")[0]
        if name != self._last:
            self._last = name
            sys.stderr.write(f"{name} ...\n")


class LoadMeter:
    """A bar on a terminal while a model loads; elsewhere the log shows it.

    Args:
        after_seconds: a load that finishes earlier shows no bar.
    """

    def __init__(self, after_seconds: float = 2.0) -> None:
        self._after = after_seconds
        self._progress: Progress | None = None
        self._timer: threading.Timer | None = None

    def show(self, label: str, share: float | None) -> None:
        """Show *share*, from 0 to 1; None if unknown."""
        if not sys.stderr.isatty():
            return
        if self._progress is None:
            self._progress = _load_bar(label)
            self._timer = threading.Timer(self._after, self._progress.start)
            self._timer.daemon = True
            self._timer.start()
        total = None if share is None else 1.0
        self._progress.update(self._progress.task_ids[0], completed=share or 0.0, total=total)

    def hide(self) -> None:
        progress, self._progress = self._progress, None
        if self._timer is not None:
            self._timer.cancel()
            self._timer.join()  # it may be about to show the bar
        if progress is not None:
            progress.stop()


def _load_bar(label: str) -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    bar = Progress(
        TextColumn("{task.description}", markup=False),
        *(BarColumn(), TextColumn("{task.percentage:>3.0f} %"), TimeElapsedColumn()),
        console=Console(stderr=True),
        transient=True,
    )
    bar.add_task(label, total=None)
    return bar


class _LineMeter:
    """For logs: ``label 30 % of 98.4 MB``, at most ten lines."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._next_percent = 0

    def __call__(self, done: int, total: int | None) -> None:
        if not total:
            return
        percent = 100 * done // total
        if percent >= self._next_percent:
            sys.stderr.write(f"{self._label}  {percent} % of {total / 1e6:.1f} MB\n")
            self._next_percent = percent - percent % 10 + 10
