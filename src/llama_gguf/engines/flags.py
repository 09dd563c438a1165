"""The flags in ``llama-server --help``, compared with EXTRA_ARGS before it starts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

_NAMES: Final = r"-{1,2}[A-Za-z][\w-]*(?:, +-{1,2}[A-Za-z][\w-]*)*"


def read_flags(text: str) -> dict[str, bool]:
    """Every flag in the help *text*, and whether it takes a value.

    A line starts with the flag's names, separated by commas, and then its value, up to two
    spaces or the end of the line.
    """
    flags: dict[str, bool] = {}
    for line in text.splitlines():
        names = re.match(_NAMES, line)
        if names is not None:
            takes_value = re.match(r" \S", line[names.end() :]) is not None
            flags |= dict.fromkeys(re.split(r", +", names[0]), takes_value)
    return flags


def complaints(words: Sequence[str], flags: Mapping[str, bool]) -> Iterator[str]:
    """The mistakes in EXTRA_ARGS, a sentence each.

    Args:
        words: EXTRA_ARGS, split.
        flags: the result of ``read_flags`` for the engine's help.
    """
    at = 0
    while at < len(words):
        word = words[at]
        # llama-server accepts "_" for "-" in the names of flags.
        flag = word.replace("_", "-") if word.startswith("--") else word
        at += 1
        if flag not in flags:
            yield _unknown(word, flag, flags)
        elif flags[flag]:
            if at == len(words):
                yield f"{word} requires a value"
            at += 1


def _unknown(word: str, flag: str, flags: Mapping[str, bool]) -> str:
    name, equals, _ = flag.partition("=")
    if equals and name in flags:
        return f"{word}: its value must be a separate word, after a space"
    if not word.startswith("-"):
        return f"{word} is not the value of a flag: check the words before it"
    return f"llama-server has no flag {word}{question(flag, flags)}"


def question(flag: str, flags: Iterable[str]) -> str:
    """The most similar of *flags* as a question, for an error message; empty if there is none."""
    import difflib  # noqa: PLC0415  # only for errors

    near = difflib.get_close_matches(flag, flags, n=1, cutoff=0.7)
    return f"; did you mean {near[0]}?" if near else ""
