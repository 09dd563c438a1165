"""Displays of `serve` and of downloads for tests."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from llama_gguf.models.progress import Meter


@contextmanager
def no_meter(label: str) -> Iterator[Meter]:
    yield lambda done, total: None


class FakeDisplay:
    """Records what is shown; ``show_ready`` waits for ``may_show``, as on a hanging disk."""

    def __init__(self) -> None:
        self.calls: list[object] = []
        self.may_show = threading.Event()
        self.is_shown = threading.Event()

    def on_checked(self) -> None:
        self.calls.append("checked")

    def download_meter(self, label: str) -> AbstractContextManager[Meter]:
        raise NotImplementedError

    def show_load(self, model: str, share: float | None) -> None:
        self.calls.append(share)

    def hide_load(self) -> None:
        self.calls.append("hidden")

    def show_ready(self, model: str, context: int | None, chat_key: str | None) -> None:
        self.may_show.wait(30)
        self.calls.append(f"ready {chat_key}")
        self.is_shown.set()
