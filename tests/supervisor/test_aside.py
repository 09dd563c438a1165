from __future__ import annotations

import asyncio
import threading

import pytest

from llama_gguf.supervisor.aside import in_thread


def test_the_result_is_returned() -> None:
    assert asyncio.run(in_thread(lambda: threading.current_thread().name)) == "slow work"


def test_the_error_is_raised() -> None:
    def fail() -> None:
        raise ValueError("the reason")

    with pytest.raises(ValueError, match="the reason"):
        asyncio.run(in_thread(fail))


def test_work_that_hangs_does_not_block_the_exit() -> None:
    goes_on = threading.Event()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        working = loop.create_task(in_thread(lambda: goes_on.wait(60)))
        await asyncio.sleep(0)
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)

    asyncio.run(main())  # with the loop's default executor, this would take a minute
    goes_on.set()
