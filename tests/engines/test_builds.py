from __future__ import annotations

import pytest

from llama_gguf.engines import builds
from llama_gguf.engines.builds import NEWEST_TESTED, OLDEST_TESTED


@pytest.mark.parametrize(
    ("version", "wheel_version", "build"),
    [
        ("11549 (0bc3d2e)", "", 11549),
        ("b11549", "", 11549),
        ("11549 (xllamacpp 2026.10.11549)", "2026.10.11549", 11549),
        ("1 (571d0d5)", "0.10068.0", 10068),  # built without history
        ("1 (571d0d5)", "", None),
        ("unknown", "0.2.14", None),
        ("custom-fork", "", None),
    ],
)
def test_the_number_of_a_build_is_found_in_its_version_or_that_of_its_wheel(
    version: str, wheel_version: str, build: int | None
) -> None:
    assert builds.build_of(version, wheel_version) == build


def test_only_builds_older_than_the_tested_ones_are_old() -> None:
    assert builds.is_old(OLDEST_TESTED - 1)
    assert not builds.is_old(OLDEST_TESTED)
    assert not builds.is_old(NEWEST_TESTED + 1)


def test_a_build_is_compared_with_those_that_are_tested() -> None:
    assert builds.tested_text(9000) == f"older than {OLDEST_TESTED}, the oldest tested"
    assert builds.tested_text(99999) == f"newer than {NEWEST_TESTED}, the newest tested"
    assert (
        builds.tested_text(OLDEST_TESTED)
        == f"one of those tested, {OLDEST_TESTED} to {NEWEST_TESTED}"
    )
