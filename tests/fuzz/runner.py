"""Checks cases, one after the other on the same gateway, which each must leave unchanged."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from tests.fuzz.cases import SETTINGS, RequestCase, ResponseCase, check
from tests.support.fakes import Rig

CASES_PER_RIG: Final = 200


class Warnings(logging.Handler):
    """Collects log entries of the level WARNING and above."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


@contextmanager
def logged_warnings() -> Iterator[Warnings]:
    warnings = Warnings()
    logger = logging.getLogger("llama_gguf")
    logger.addHandler(warnings)
    try:
        yield warnings
    finally:
        logger.removeHandler(warnings)


def failures(folder: Path, cases: Iterable[RequestCase | ResponseCase]) -> Iterator[str | None]:
    """For each of *cases* the failure, with the case as Python; None if it passes."""
    rig = Rig(folder, **SETTINGS)
    with logged_warnings() as warnings:
        for number, case in enumerate(cases, 1):
            failure = _failure_of(case, rig, warnings)
            yield failure
            if failure is not None or not number % CASES_PER_RIG:
                with suppress(Exception):  # the failure has been reported already
                    rig.close()
                rig = Rig(folder, **SETTINGS)
    rig.close()


def _failure_of(case: RequestCase | ResponseCase, rig: Rig, warnings: Warnings) -> str | None:
    warnings.lines.clear()
    try:
        case.check(rig)
        check(not warnings.lines, *warnings.lines)
    # Any exception is a failure: no input may cause one.
    except Exception as error:
        return f"{type(error).__name__}: {error}\n{case}"
    return None
