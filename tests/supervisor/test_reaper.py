"""In separate processes, since a process decides for all its descendants who adopts orphans."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from tests.support.processes import until_gone

pytestmark = pytest.mark.processes

PRELUDE = """
import asyncio, ctypes, os, signal, subprocess
from llama_gguf.supervisor import reaper as orphans

def become_reaper():
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER

"""


def run(script: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", PRELUDE + script],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_an_orphaned_zombie_is_reaped_and_our_own_child_is_not() -> None:
    script = """
become_reaper()
async def main():
    # Two processes deep, so that the inner one loses its parent, and becomes our zombie.
    outer = await asyncio.create_subprocess_exec(
        "sh", "-c", "sh -c 'exit 3' & echo $!; exec sleep 0", stdout=subprocess.PIPE)
    orphan = int(await outer.stdout.readline())
    await outer.wait()
    ours = await asyncio.create_subprocess_exec("sh", "-c", "exit 5")
    reaping = asyncio.get_running_loop().create_task(orphans.keep_reaping(0.01))
    async with asyncio.timeout(20):
        while os.path.exists(f"/proc/{orphan}"):
            await asyncio.sleep(0.01)
        print(await ours.wait())
    reaping.cancel()
asyncio.run(main())
"""
    assert run(script) == "5"


def test_all_remaining_processes_are_killed_with_their_descendants() -> None:
    script = """
child = subprocess.Popen(
    ["sh", "-c", "setsid sleep 60 & echo $!; exec sleep 60"], stdout=subprocess.PIPE)
grandchild = int(child.stdout.readline())
orphans.kill_all()
print(child.wait(), grandchild)
"""
    status, grandchild = map(int, run(script).split())

    assert status == -signal.SIGKILL
    until_gone(grandchild)
