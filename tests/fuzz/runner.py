"""Checks cases, each on a gateway that the ones before have left as it was."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from tests.fuzz.cases import SETTINGS, RequestCase, ResponseCase, check
from tests.support.fakes import Rig

CASES_PER_RIG: Final = 200


class Complaints(logging.Handler):
    """What the gateway's log says that is more than a message."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


@contextmanager
def listening() -> Iterator[Complaints]:
    complaints = Complaints()
    logger = logging.getLogger("llama_gguf")
    logger.addHandler(complaints)
    try:
        yield complaints
    finally:
        logger.removeHandler(complaints)


def failures(folder: Path, cases: Iterable[RequestCase | ResponseCase]) -> Iterator[str | None]:
    """What is wrong with each of *cases*, with the case; None when nothing is."""
    rig = Rig(folder, **SETTINGS)
    with listening() as complaints:
        for number, case in enumerate(cases, 1):
            failure = _failure_of(case, rig, complaints)
            yield failure
            if failure is not None or not number % CASES_PER_RIG:
                with suppress(Exception):  # what is wrong with it has been said
                    rig.close()
                rig = Rig(folder, **SETTINGS)
    rig.close()


def _failure_of(case: RequestCase | ResponseCase, rig: Rig, complaints: Complaints) -> str | None:
    complaints.lines.clear()
    try:
        case.check(rig)
        check(not complaints.lines, *complaints.lines)
    # Whatever it is: bytes from outside are no reason for any.
    except Exception as error:
        return f"{type(error).__name__}: {error}\n{case}"
    return None
