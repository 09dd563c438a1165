"""Show the running server live: slots, queue, rates, keys, llama-server's log.

It refreshes every second; q or Ctrl-C leaves. It needs no API key: the server's control
socket is open to the user who runs it.

Exit status: 0, 3 no server runs (or it has ended), 1 another failure.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import shutil
import signal
import sys
import termios
import tty
from collections.abc import Iterator
from types import FrameType
from typing import Any, Final, NoReturn

from llama_gguf.cli.context import Context
from llama_gguf.cli.operate import (
    KEY_COLUMNS,
    duration,
    find,
    gateway_rows,
    key_rows,
    peer_text,
    peers,
    state_text,
)
from llama_gguf.cli.terminal import echo, flush, moves_cursor
from llama_gguf.errors import UserError

DEFAULT_SECONDS: Final = 1.0
LOG_LINES: Final = 40
ONCE_LINES: Final = 200
SLOT_COLUMNS: Final = 32
MIN_LOG_LINES: Final = 4

# Control sequences of xterm: alternate screen, cursor, wrapping; home, erase to the end of a line,
# and of the screen.
_ENTER: Final = "\x1b[?1049h\x1b[?25l\x1b[?7l"
_LEAVE: Final = "\x1b[?7h\x1b[?25h\x1b[?1049l"
_HOME: Final = "\x1b[H"
_ERASE_LINE: Final = "\x1b[K"
_ERASE_BELOW: Final = "\x1b[J"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--once", action="store_true", help="print one picture, and exit")
    parser.add_argument(
        "--every",
        type=float,
        default=DEFAULT_SECONDS,
        metavar="SECONDS",
        help=f"seconds between two pictures [{DEFAULT_SECONDS:g}]",
    )


def run(arguments: argparse.Namespace, context: Context) -> int:
    with find(context) as server:

        def look() -> dict[str, Any]:
            return server.ask("status", log_lines=LOG_LINES)

        if arguments.once or not moves_cursor(sys.stdout, context.environ):
            columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else ONCE_LINES
            echo("\n".join(picture(look(), columns, ONCE_LINES)))
            return 0
        with contextlib.suppress(KeyboardInterrupt), _screen():
            while True:
                size = shutil.get_terminal_size()
                lines = picture(look(), size.columns, size.lines)
                erased = f"{_ERASE_LINE}\n".join(lines)
                flush(f"{_HOME}{erased}{_ERASE_LINE}{_ERASE_BELOW}")
                if _is_over(max(arguments.every, 0.1)):
                    break
    return 0


@contextlib.contextmanager
def _screen() -> Iterator[None]:
    """Use the alternate screen; afterwards the terminal is as before, also after SIGTERM."""

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    handlers = {n: signal.signal(n, leave) for n in (signal.SIGTERM, signal.SIGHUP)}
    keys = sys.stdin.fileno() if sys.stdin.isatty() else None
    modes = None if keys is None else termios.tcgetattr(keys)
    try:
        if keys is not None:
            tty.setcbreak(keys)
        flush(_ENTER)
        yield
    finally:
        with contextlib.suppress(UserError, OSError):  # the terminal may be closed
            flush(_LEAVE)
        if keys is not None and modes is not None:
            with contextlib.suppress(termios.error):
                termios.tcsetattr(keys, termios.TCSADRAIN, modes)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _is_over(seconds: float) -> bool:
    """Wait; whether "q" was pressed meanwhile, or the terminal was closed."""
    if not sys.stdin.isatty():
        select.select([], [], [], seconds)
        return False
    readable, _, _ = select.select([sys.stdin], [], [], seconds)
    return bool(readable) and os.read(sys.stdin.fileno(), 64)[:1] in (b"q", b"Q", b"")


def picture(facts: dict[str, Any], columns: int, lines: int) -> list[str]:
    """The lines of one picture, at most *lines* with at most *columns* characters.

    What has no place is left out: first the oldest lines of the log, then keys, then replicas.
    """
    top = [*_head(facts), ""]
    rest = lines - len(top)
    replicas = _replicas(facts, rest - MIN_LOG_LINES)
    rest -= len(replicas)
    keys = _keys(facts, rest - MIN_LOG_LINES)
    rest -= len(keys)
    log = [_printable(line) for line in facts["log"]]
    shown = ["LLAMA-SERVER", *log[max(len(log) - rest + 1, 0) :]] if log and rest > 1 else []
    return [line[:columns] for line in (*top, *replicas, *keys, *shown)][:lines]


def _head(facts: dict[str, Any]) -> list[str]:
    model, gateway = facts["model"], facts["gateway"]
    title = f"{model['name'] or '-'}  {state_text(facts)}"
    about = f"{facts['url']}/v1  up {duration(facts['uptime_seconds'])}  pid {facts['pid']}"
    if gateway is None:
        return [title, about, "The gateway does not respond."]
    slots = gateway["slots"]
    total, used = slots["total"], slots["used"]
    width = min(total, SLOT_COLUMNS)
    full = round(width * used / total) if total else 0
    bar = f"[{'#' * full}{'.' * (width - full)}]"
    queue = gateway["queue"]
    return [
        title,
        about,
        f"slots {bar} {used} of {total}   queue {queue['length']} of {queue['size']}",
        *(f"{label}: {text}" for label, text in gateway_rows(gateway)[2:]),
    ]


def _replicas(facts: dict[str, Any], most: int) -> list[str]:
    """A line for each of several replicas and peers, those that do not serve first."""
    own, others = facts["replicas"], peers(facts)
    if len(own) + len(others) < 2 or most < 3:
        return []
    named = [(r["state"], f"replica {r['name']}", state_text(r)) for r in own]
    named += [(p["state"], f"peer {p['replica']}", peer_text(p)) for p in others]
    named.sort(key=lambda row: row[0] == "ready")
    wide = max(len(name) for _, name, _ in named)
    rows = [f"{name:<{wide}}  {text}" for _, name, text in named]
    return [*_at_most(rows, most - 1), ""]


def _keys(facts: dict[str, Any], most: int) -> list[str]:
    if facts["gateway"] is None or not facts["gateway"]["keys"] or most < 3:
        return []
    rows = [KEY_COLUMNS, *key_rows(facts["gateway"])]
    wide = max(len(row[0]) for row in rows)
    texts = [f"{row[0]:<{wide}}" + "".join(f"{cell:>10}" for cell in row[1:]) for row in rows]
    return [*_at_most(texts, most - 1), ""]


def _at_most(rows: list[str], most: int) -> list[str]:
    return rows if len(rows) <= most else [*rows[: most - 1], f"... {len(rows) - most + 1} more"]


def _printable(line: str) -> str:
    """*line* without what would move the cursor."""
    return "".join(c if c.isprintable() else " " for c in line)
