"""Runs work that may hang, such as on a network file system, on daemon threads.

The event loop's own executor is joined at exit: work that hangs would keep the process alive.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Final, TypeVar

_Result = TypeVar("_Result")

PAUSE_SECONDS: Final = 0.0001
"""Enough for the event loop to acquire the interpreter's lock; with 0 it usually does not."""


def pause() -> None:
    """Let the event loop run. Compiled code does not release the interpreter's lock by itself."""
    time.sleep(PAUSE_SECONDS)


def start_detached(work: Callable[[], _Result]) -> Future[_Result]:
    """Start *work* on a daemon thread, so that it cannot block shutdown."""
    outcome: Future[_Result] = Future()
    outcome.set_running_or_notify_cancel()  # from now on, it cannot be cancelled

    def run() -> None:
        try:
            result = work()
        except BaseException as error:  # raised again where the result is used
            outcome.set_exception(error)
        else:
            outcome.set_result(result)

    threading.Thread(target=run, name="detached work", daemon=True).start()
    return outcome


async def run_detached(work: Callable[[], _Result]) -> _Result:
    """Run *work* on a daemon thread; return its result, or raise its error.

    If the caller is cancelled, the work continues and its outcome is dropped.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[_Result] = loop.create_future()

    def settle(outcome: Future[_Result]) -> None:
        if done.done():  # the caller was cancelled
            return
        error = outcome.exception()
        if error is None:
            done.set_result(outcome.result())
        else:
            done.set_exception(error)

    def notify(outcome: Future[_Result]) -> None:
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(settle, outcome)

    start_detached(work).add_done_callback(notify)
    return await done
