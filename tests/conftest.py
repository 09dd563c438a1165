"""For all tests: hypothesis tries the same examples every time, and takes the time it needs."""

from __future__ import annotations

import gc
import signal

from hypothesis import settings

settings.register_profile("deterministic", derandomize=True, deadline=None)
settings.load_profile("deterministic")

pytest_plugins = [
    "tests.support.rigs",  # the fixtures new_rig, rig and play
    "tests.support.process_guard",
]

# `make check &` of a script leaves SIGINT ignored, which every process of a test would inherit:
# none would heed a Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """Exempt the modules and thousands of test items from each full garbage collection."""
    gc.collect()
    gc.freeze()
