from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from typing import Final

import pytest

from llama_gguf.net.threads import off_the_loop


def test_work_is_done_elsewhere_and_its_result_comes_back() -> None:
    assert asyncio.run(off_the_loop(threading.get_ident)) != threading.get_ident()


def test_what_it_raises_comes_back_too() -> None:
    def fail() -> None:
        raise FileNotFoundError("gone")

    with pytest.raises(FileNotFoundError, match="gone"):
        asyncio.run(off_the_loop(fail))


def test_a_result_that_nobody_waits_for_is_let_go() -> None:
    may_end, ended = threading.Event(), threading.Event()

    def work() -> None:
        may_end.wait()
        ended.set()

    async def trial() -> None:
        task = asyncio.ensure_future(off_the_loop(work))
        await asyncio.sleep(0)  # it has begun
        task.cancel()
        may_end.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(trial())
    assert ended.wait(30)


_HANGS: Final = """\
import asyncio, threading
from llama_gguf.net.threads import off_the_loop

async def main():
    task = asyncio.ensure_future(off_the_loop(threading.Event().wait))
    await asyncio.sleep(0)  # it has begun
    task.cancel()

asyncio.run(main())
print("left")
"""


def test_work_that_hangs_keeps_no_process() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _HANGS], check=True, capture_output=True, text=True, timeout=60
    )

    assert (done.stdout, done.stderr) == ("left\n", "")
