from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from typing import Final

import pytest

from llama_gguf.net.threads import run_detached, start_detached


def test_work_runs_on_another_thread_and_its_result_is_returned() -> None:
    assert asyncio.run(run_detached(threading.get_ident)) != threading.get_ident()


def test_an_error_of_the_work_is_raised() -> None:
    def fail() -> None:
        raise FileNotFoundError("gone")

    with pytest.raises(FileNotFoundError, match="gone"):
        asyncio.run(run_detached(fail))


def test_an_exit_of_the_work_is_raised_and_the_caller_does_not_wait_forever() -> None:
    with pytest.raises(SystemExit):
        asyncio.run(run_detached(sys.exit))


def test_work_can_be_awaited_with_a_time_limit_and_without_a_loop() -> None:
    may_end = threading.Event()
    outcome = start_detached(may_end.wait)
    with pytest.raises(TimeoutError):
        outcome.result(0)
    assert not outcome.cancel()
    may_end.set()

    assert outcome.result(30)


def test_a_result_is_dropped_if_the_caller_was_cancelled() -> None:
    may_end, ended = threading.Event(), threading.Event()

    def work() -> None:
        may_end.wait()
        ended.set()

    async def trial() -> None:
        task = asyncio.ensure_future(run_detached(work))
        await asyncio.sleep(0)  # it has begun
        task.cancel()
        may_end.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(trial())
    assert ended.wait(30)


_HANGS: Final = """\
import asyncio, threading
from llama_gguf.net.threads import run_detached

async def main():
    task = asyncio.ensure_future(run_detached(threading.Event().wait))
    await asyncio.sleep(0)  # it has begun
    task.cancel()

asyncio.run(main())
print("left")
"""


@pytest.mark.processes
def test_work_that_hangs_does_not_keep_the_process_alive() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _HANGS], check=True, capture_output=True, text=True, timeout=60
    )

    assert (done.stdout, done.stderr) == ("left\n", "")
