"""Regular expressions behave the same in every supported Python."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

SOURCES: Final = Path(__file__).parents[2] / "src"
POSSESSIVE_GROUP: Final = re.compile(r"(?<![\\(])\)(?:[*+?]|\{\d+(?:,\d*)?\})\+|\(\?>")


def test_the_search_finds_possessive_groups() -> None:
    assert POSSESSIVE_GROUP.search(r"a(?:b|c)*+d")
    assert POSSESSIVE_GROUP.search(r"(?>ab)")
    assert not POSSESSIVE_GROUP.search(r"(?:[^a]*+b)*\)++")


def test_no_group_is_possessive_which_fails_to_match_before_python_3_11_5() -> None:
    found = [
        f"{path.relative_to(SOURCES)}:{number}: {line.strip()}"
        for path in sorted(SOURCES.rglob("*.py"))
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if POSSESSIVE_GROUP.search(line)
    ]

    assert not found, "Debian 12 has Python 3.11.2: make the group's quantifier greedy"
