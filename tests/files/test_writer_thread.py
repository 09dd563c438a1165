"""The queue in front of a terminal or disk that may block."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable

from llama_gguf.files.writer_thread import JOB_BYTES, WriterThread

SECONDS = 10.0


class Sink:
    """The destination of writes: blocked until ``open`` is set."""

    def __init__(self, max_bytes: int = 1 << 20) -> None:
        self.written: list[str] = []
        self.open = threading.Event()
        self.is_writing = threading.Event()
        self.has_reported = threading.Event()
        self.thread = WriterThread("a test", max_bytes=max_bytes, on_lost=self._on_lost)
        self.thread.start()

    def _on_lost(self, lines: int) -> None:
        self.written.append(f"{lines} lost")
        self.has_reported.set()

    def job(self, text: str) -> Callable[[], None]:
        def write() -> None:
            self.is_writing.set()
            assert self.open.wait(SECONDS)
            self.written.append(text)

        return write

    def hand_over(self, *texts: str) -> None:
        """One line each, of as many bytes as it has characters."""
        for text in texts:
            self.thread.write(self.job(text), size=len(text), lines=1)

    def block(self) -> None:
        """Return when a first line is being written, and the queue is empty."""
        self.hand_over("first")
        assert self.is_writing.wait(SECONDS)


def test_jobs_are_written_in_order() -> None:
    sink = Sink()
    sink.open.set()
    texts = [f"line {n}" for n in range(1000)]

    sink.hand_over(*texts)

    assert sink.thread.close(SECONDS)
    assert sink.written == texts


def test_the_queue_is_bounded_and_lost_lines_are_reported_after_the_gap() -> None:
    sink = Sink(max_bytes=2 * (JOB_BYTES + 4))
    sink.block()
    sink.hand_over("aaaa", "bbbb", "cccc", "dd")  # the third is too much; so one gap begins

    sink.open.set()

    assert sink.thread.close(SECONDS)
    assert sink.written == ["first", "aaaa", "bbbb", "2 lost"]


def test_after_a_gap_everything_is_written_again() -> None:
    sink = Sink(max_bytes=JOB_BYTES + 4)
    sink.block()
    sink.hand_over("aaaa", "bbbb")
    sink.open.set()
    assert sink.has_reported.wait(SECONDS)

    sink.hand_over("cccc")

    assert sink.thread.close(SECONDS)
    assert sink.written == ["first", "aaaa", "1 lost", "cccc"]


def test_a_job_without_lines_is_never_dropped_and_keeps_its_place() -> None:
    sink = Sink(max_bytes=JOB_BYTES + 4)
    sink.block()
    sink.hand_over("aaaa", "bbbb")
    sink.thread.run(sink.job("opened again"))

    sink.open.set()

    assert sink.thread.close(SECONDS)
    assert sink.written == ["first", "aaaa", "opened again", "1 lost"]


def test_a_line_that_is_longer_than_the_bound_is_written_when_nothing_waits() -> None:
    sink = Sink(max_bytes=JOB_BYTES + 4)
    sink.open.set()

    sink.hand_over("a long line")

    assert sink.thread.close(SECONDS)
    assert sink.written == ["a long line"]


def test_empty_lines_without_end_are_bounded_too() -> None:
    sink = Sink(max_bytes=10 * JOB_BYTES)
    sink.block()
    sink.hand_over(*[""] * 1000)

    sink.open.set()

    assert sink.thread.close(SECONDS)
    assert sink.written == ["first", *[""] * 10, "990 lost"]


def test_closing_does_not_wait_for_a_blocked_write() -> None:
    sink = Sink()
    sink.block()
    sink.hand_over("never")

    assert not sink.thread.close(within_seconds=0.0)

    sink.open.set()  # lets the thread end
    assert sink.thread.close(SECONDS)


def test_a_signal_handler_may_write_while_its_thread_hands_something_over() -> None:
    sink = Sink()
    sink.open.set()
    interruptions = 0

    def interrupt(*_: object) -> None:
        nonlocal interruptions
        interruptions += 1
        sink.hand_over("from the handler")

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.0001, 0.0001)
    try:
        count = 0
        while interruptions < 200:
            count += 1
            sink.thread.write(sink.job("interrupted"), size=1, lines=1)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)

    assert sink.thread.close(SECONDS)
    lost = sum(int(text.split()[0]) for text in sink.written if text.endswith("lost"))
    written = [text for text in sink.written if not text.endswith("lost")]
    assert len(written) + lost == count + interruptions
