from __future__ import annotations

import os
import subprocess

import pytest


def test_a_test_without_the_mark_cannot_start_a_process() -> None:
    with pytest.raises(AssertionError, match="without @pytest"):
        subprocess.run(["true"], check=True)
    with pytest.raises(AssertionError, match="without @pytest"):
        os.fork()


@pytest.mark.processes
def test_a_test_with_the_mark_can_start_a_process() -> None:
    subprocess.run(["true"], check=True)
