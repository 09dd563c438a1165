"""For all tests: hypothesis tries the same examples in each run, without a deadline."""

from __future__ import annotations

import gc
import signal

from hypothesis import settings

settings.register_profile("deterministic", derandomize=True, deadline=None)
settings.load_profile("deterministic")

pytest_plugins = [
    "tests.support.fakes",  # the fixtures new_rig and rig
    "tests.support.endpoints",  # the fixture play
    "tests.support.process_guard",
]

# `make check &` in a script ignores SIGINT, and every process of a test would inherit that:
# none would react to Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# `nohup make check` ignores SIGHUP, and a server of a test would survive its terminal.
signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_collection_finish() -> None:
    """Exempt the modules and thousands of test items from each full garbage collection."""
    gc.collect()
    gc.freeze()
