"""For all tests: hypothesis tries the same examples in each run, without a deadline."""

from __future__ import annotations

import signal

from hypothesis import settings

settings.register_profile("deterministic", derandomize=True, deadline=None)
settings.load_profile("deterministic")

pytest_plugins = ["tests.support.fakes", "tests.support.endpoints"]  # new_rig, rig and play

# `make check &` in a script ignores SIGINT, and every process of a test would inherit that:
# none would react to Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
