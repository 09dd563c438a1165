"""Runs work that may hang, such as network file systems, on a daemon thread."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final, TypeVar

_Result = TypeVar("_Result")

PAUSE_SECONDS: Final = 0.0001
"""Long enough for the loop to take the interpreter's lock; with 0 it mostly does not."""


def pause() -> None:
    """Let the loop run. Code that is compiled does not release the interpreter's lock by itself."""
    time.sleep(PAUSE_SECONDS)


async def off_the_loop(work: Callable[[], _Result]) -> _Result:
    """Do *work* on a thread of its own, and return or raise what it does.

    The loop's own threads would be joined at exit: one that hangs would keep the process.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[_Result] = loop.create_future()

    def settle(result: _Result | None, error: BaseException | None) -> None:
        if done.done():  # whoever waited has left
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # type: ignore[arg-type]  # without an error there is one

    def run() -> None:
        result: _Result | None = None
        failure: BaseException | None = None
        try:
            result = work()
        except Exception as error:  # whatever it is, it is for the one who waits
            failure = error
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, result, failure)

    threading.Thread(target=run, name="file work", daemon=True).start()
    return await done
