"""For all tests: hypothesis tries the same examples every time, and takes the time it needs."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("deterministic", derandomize=True, deadline=None)
settings.load_profile("deterministic")
