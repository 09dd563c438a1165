from __future__ import annotations

import threading

from llama_gguf.cli.guard import within
from llama_gguf.errors import UserError


def test_a_result_is_returned() -> None:
    assert within(30, lambda: 7) == (7, "")
    assert within(30, lambda: None) == (None, "")


def test_a_failure_is_returned_as_text() -> None:
    assert within(30, lambda: 1 // 0) == (
        None,
        "ZeroDivisionError: integer division or modulo by zero",
    )


def test_a_user_error_is_returned_without_its_type() -> None:
    def work() -> None:
        raise UserError("No model is named.")

    assert within(30, work) == (None, "No model is named.")


def test_work_that_hangs_is_abandoned() -> None:
    for_ever = threading.Event()

    assert within(0.01, for_ever.wait) == (None, "it did not finish within 0.01 s")

    for_ever.set()
