from __future__ import annotations

import time

from llama_gguf.net.wall_clock import wall_now


def test_it_is_in_posix_seconds() -> None:
    before = time.time_ns() / 1e9

    assert before - 1 <= wall_now() <= time.time_ns() / 1e9 + 1
