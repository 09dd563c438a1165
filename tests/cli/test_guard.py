from __future__ import annotations

import threading

from llama_gguf.cli.guard import within
from llama_gguf.errors import UserError


def test_what_works_is_handed_on() -> None:
    assert within(30, lambda: 7) == (7, "")
    assert within(30, lambda: None) == (None, "")


def test_what_fails_is_told() -> None:
    assert within(30, lambda: 1 // 0) == (
        None,
        "ZeroDivisionError: integer division or modulo by zero",
    )


def test_what_is_wrong_with_what_people_did_is_told_in_its_words_alone() -> None:
    def work() -> None:
        raise UserError("No model is named.")

    assert within(30, work) == (None, "No model is named.")


def test_what_hangs_is_left_behind() -> None:
    for_ever = threading.Event()

    assert within(0.01, for_ever.wait) == (None, "it did not finish within 0.01 s")

    for_ever.set()
