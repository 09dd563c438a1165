"""Text, tables and progress bars for people. Rich is imported only when one is shown."""

from __future__ import annotations

import codecs
import io
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final, Protocol, TextIO

from llama_gguf.errors import UserError

CLEAR_LINE: Final = "\r\x1b[K"
"""Moves the cursor to the first column, and erases the line (ECMA-48: CR, EL)."""


ERRORS: Final = "llama_gguf.escape"
"""The error handler for characters that a stream's encoding does not have."""


def _escape(error: UnicodeError) -> tuple[str | bytes, int]:
    """Write a file's name with the bytes that it has, and any other character as an escape."""
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.lookup_error("backslashreplace")(error)


def accept_all_text() -> None:
    """Let the output of this process accept any text.

    A terminal may have no encoding but ASCII, and the name of a file may be no text at all: an
    exception for it would end the process.
    """
    codecs.register_error(ERRORS, _escape)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper) and stream is getattr(sys, f"__{name}__"):
            stream.reconfigure(errors=ERRORS)


class Meter(Protocol):
    """Progress of long work: bytes done, and bytes in total if known."""

    def __call__(self, done: int, total: int | None) -> None: ...


def moves_cursor(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Whether *stream* is a terminal that understands control sequences."""
    return stream.isatty() and environ.get("TERM", "dumb") not in ("", "dumb")


def has_colours(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """The same for colours, unless NO_COLOR is set (https://no-color.org)."""
    return moves_cursor(stream, environ) and not environ.get("NO_COLOR")


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


BAR_COLUMNS: Final = 30


class LoadMeter:
    """A bar on a terminal while a model loads; elsewhere the log shows it.

    The cursor stays in the first column of the bar's line: a log line, of this process or of
    another, erases the bar, which is drawn again below it.

    Args:
        environ: for the kind of terminal.
        after_seconds: a load that finishes earlier shows no bar.
        every_seconds: between two drawings.
    """

    def __init__(
        self,
        environ: Mapping[str, str],
        *,
        after_seconds: float = 2.0,
        every_seconds: float = 0.5,
    ) -> None:
        self._is_possible = moves_cursor(sys.stderr, environ)
        self._after = after_seconds
        self._every = every_seconds
        self._label = ""
        self._share: float | None = None
        self._began_at = 0.0
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def show(self, label: str, share: float | None) -> None:
        """Show *share*, from 0 to 1; None if unknown."""
        self._label, self._share = label, share
        if self._thread is None and self._is_possible:
            self._began_at = time.monotonic()
            self._over.clear()
            self._thread = threading.Thread(target=self._draw, name="load bar", daemon=True)
            self._thread.start()

    def hide(self) -> None:
        thread, self._thread = self._thread, None
        if thread is not None:
            self._over.set()
            thread.join()

    def _draw(self) -> None:
        if self._over.wait(self._after):
            return
        import shutil

        while True:
            seconds = time.monotonic() - self._began_at
            columns = shutil.get_terminal_size().columns
            bar = bar_text(self._label, self._share, seconds)[: columns - 1]
            sys.stderr.write(f"{CLEAR_LINE}{bar}\r")
            if self._over.wait(self._every):
                break
        sys.stderr.write(CLEAR_LINE)


def bar_text(label: str, share: float | None, seconds: float) -> str:
    """A bar of text: *label*, *share* from 0 to 1 if it is known, and the time so far."""
    time_text = f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
    if share is None:
        return f"{label} ... {time_text}"
    done = round(share * BAR_COLUMNS)
    return f"{label} [{'=' * done}{' ' * (BAR_COLUMNS - done)}] {share:4.0%} {time_text}"


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
