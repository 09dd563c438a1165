from __future__ import annotations

import asyncio
import logging
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from llama_gguf.telemetry.usage_store import USAGE, Kind, UsageStore
from llama_gguf.telemetry.usage_totals import LINES_PER_PAUSE, UsageTotals
from tests.support.processes import DEADLINE_SECONDS

NOW = 1_800_000_000.0
ONE = (1, 0, 10, 20, 5, 0)


def used(now: float = NOW) -> UsageTotals:
    totals = UsageTotals(now)
    totals.add("alice", ONE, now)
    return totals


def store_at(path: Path) -> UsageStore[UsageTotals]:
    return UsageStore(USAGE, str(path), lambda: NOW)


def update(store: UsageStore[UsageTotals], totals: UsageTotals) -> None:
    asyncio.run(asyncio.wait_for(store.update(totals), DEADLINE_SECONDS))


def requests_in(path: Path) -> int:
    """The requests of all keys that the next gateway would load."""
    return requests_of(store_at(path).load(NOW))


def requests_of(totals: UsageTotals, window: str = "total") -> int:
    views: list[Any] = totals.views(NOW)
    return sum(view[window]["requests"] for view in views)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "usage" / "here.json"


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]


def test_the_usage_is_loaded_by_the_next_gateway(path: Path) -> None:
    totals = used()
    update(store_at(path), totals)
    again = store_at(path).load(NOW + 1)

    assert again.views(NOW + 1) == totals.views(NOW + 1)
    assert again.since == NOW
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert sorted(p.name for p in path.parent.iterdir()) == ["here.json", "here.json.lock"]


def test_the_loop_runs_between_the_texts_of_a_few_keys(path: Path) -> None:
    totals = UsageTotals(NOW)
    for number in range(LINES_PER_PAUSE * 5):
        totals.add(f"key-{number}", ONE, NOW)

    work = store_at(path).update(totals)
    steps = [work.send(None) for _ in range(5)]
    work.close()

    assert steps == [None] * 5  # as asyncio.sleep(0) yields; a future would be the write
    update(store_at(path), totals)
    assert store_at(path).load(NOW).views(NOW) == totals.views(NOW)


def test_without_a_file_counting_begins_at_0(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    totals = UsageStore(USAGE, str(path)).load(NOW)

    assert (totals.since, totals.views(NOW), warnings(caplog)) == (NOW, [], [])


@pytest.mark.parametrize("content", [b"", b"{", b'{"format":99}', b"\xff\xfe", b"[]"])
def test_an_unreadable_file_is_renamed_and_logged(
    content: bytes, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    totals = UsageStore(USAGE, str(path)).load(NOW)

    assert totals.views(NOW) == []
    (warning,) = warnings(caplog)
    assert str(path) in warning
    assert "renamed to" in warning
    assert path.with_name("here.json.unreadable").read_bytes() == content


def test_a_file_that_cannot_be_renamed_either_is_not_said_to_be(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "here.json"

    totals = UsageStore(USAGE, str(path)).load(NOW)

    assert totals.views(NOW) == []
    assert warnings(caplog) == [
        f"The usage in {path} cannot be read: Not a directory. Counting begins at zero"
    ]


def test_a_file_is_never_read_half_written(path: Path) -> None:
    store, totals = store_at(path), used()
    update(store, totals)
    before = path.read_text()
    path.with_name("here.json.new").mkdir()  # so that the next write fails
    totals.add("bob", ONE, NOW)
    update(store, totals)

    assert path.read_text() == before


def test_the_file_is_updated_periodically(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    often = Kind(USAGE.name, 0.001, USAGE.new, USAGE.load)
    totals, store, written = used(), UsageStore(often, str(path), lambda: NOW), []

    async def run() -> None:
        update_once = store.update
        looked = asyncio.Event()

        async def update(totals: UsageTotals) -> None:
            await update_once(totals)
            written.append(requests_in(path))
            looked.set()

        monkeypatch.setattr(store, "update", update)
        keeping = asyncio.get_running_loop().create_task(store.keep(totals))
        await looked.wait()
        totals.add("bob", ONE, NOW)
        looked.clear()
        await looked.wait()
        keeping.cancel()

    asyncio.run(asyncio.wait_for(run(), DEADLINE_SECONDS))

    assert (written[0], written[-1]) == (1, 2)


# The end ------------------------------------------------------------------------------------------


def test_the_last_numbers_are_written_at_the_end(path: Path) -> None:
    totals, store = used(), store_at(path)
    store.write_last(totals, within_seconds=DEADLINE_SECONDS)

    assert store_at(path).load(NOW).views(NOW) == totals.views(NOW)


def test_the_end_waits_for_a_write_that_is_under_way(path: Path) -> None:
    totals, store = used(), store_at(path)
    entered, may_go = threading.Event(), threading.Event()
    replace = store._replace

    def slow(text: str) -> None:
        entered.set()
        may_go.wait(DEADLINE_SECONDS)
        replace(text)

    store._replace = slow  # type: ignore[method-assign]

    async def run() -> None:
        looking = asyncio.ensure_future(store.update(totals))
        await asyncio.to_thread(entered.wait, DEADLINE_SECONDS)
        looking.cancel()
        totals.add("alice", ONE, NOW)
        threading.Timer(0.01, may_go.set).start()
        store.write_last(totals, within_seconds=DEADLINE_SECONDS)

    asyncio.run(run())

    assert requests_in(path) == 2


def test_usage_that_is_lost_at_the_end_is_logged(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path.parent.write_text("a file where the folder should be")
    store = store_at(path)
    store.write_last(used(), within_seconds=DEADLINE_SECONDS)

    assert [str(path) in warning for warning in warnings(caplog)] == [True, True]
    assert "is lost" in warnings(caplog)[1]


# A disk that fails --------------------------------------------------------------------------------


Failing = Callable[[Path], AbstractContextManager[None]]


@contextmanager
def no_folder(path: Path) -> Iterator[None]:
    path.parent.rename(path.parent.with_name("elsewhere"))
    path.parent.write_text("a file where the folder should be")
    yield
    path.parent.unlink()
    path.parent.with_name("elsewhere").rename(path.parent)


@contextmanager
def full_disk(path: Path) -> Iterator[None]:
    path.with_name("here.json.new").symlink_to("/dev/full")
    yield
    path.with_name("here.json.new").unlink()


@contextmanager
def no_replacing(path: Path) -> Iterator[None]:
    path.with_name("here.json.new").mkdir()
    yield
    path.with_name("here.json.new").rmdir()


@pytest.mark.parametrize("failing", [no_folder, full_disk, no_replacing])
@pytest.mark.parametrize("is_last", [False, True])
def test_usage_is_written_as_soon_as_that_is_possible_again(
    failing: Failing, is_last: bool, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store, totals = store_at(path), used()
    update(store, totals)
    with failing(path):
        totals.add("alice", ONE, NOW)
        update(store, totals)
        update(store, totals)
    if is_last:
        store.write_last(totals, within_seconds=DEADLINE_SECONDS)
    else:
        update(store, totals)

    assert requests_in(path) == 2
    (warning,) = warnings(caplog)
    assert str(path) in warning


def test_each_failure_after_a_success_is_logged(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store, totals = store_at(path), used()
    update(store, totals)
    for _ in range(2):
        with full_disk(path):
            totals.add("alice", ONE, NOW)
            update(store, totals)
        update(store, totals)

    assert len(warnings(caplog)) == 2


# More than one gateway ----------------------------------------------------------------------------


@pytest.fixture
def two(
    path: Path,
) -> tuple[
    tuple[UsageStore[UsageTotals], UsageTotals], tuple[UsageStore[UsageTotals], UsageTotals]
]:
    """Two gateways that were started with one file, which has a request of alice's."""
    update(store_at(path), used())
    one, other = store_at(path), store_at(path)
    return (one, one.load(NOW)), (other, other.load(NOW))


Two = tuple[
    tuple[UsageStore[UsageTotals], UsageTotals], tuple[UsageStore[UsageTotals], UsageTotals]
]


def test_two_gateways_count_into_one_file(two: Two, path: Path) -> None:
    for n in range(10):
        store, totals = two[n % 2]
        totals.add("alice", ONE, NOW)
        totals.add(f"key-{n}", ONE, NOW)
        update(store, totals)

    assert requests_in(path) == 21
    assert requests_of(store_at(path).load(NOW), "last_minute") == 21


def test_each_gateway_loads_the_counts_of_the_other(two: Two) -> None:
    (store, totals), (other_store, other) = two
    other.add("bob", ONE, NOW)
    update(other_store, other)
    update(store, totals)

    assert totals.views(NOW) == other.views(NOW)


def test_usage_during_a_write_is_counted_once(two: Two, path: Path) -> None:
    (store, totals), (other_store, other) = two
    other.add("alice", ONE, NOW)
    update(other_store, other)
    totals.add("alice", ONE, NOW)

    async def run() -> None:
        looking = asyncio.ensure_future(store.update(totals))
        await asyncio.sleep(0)
        totals.add("alice", ONE, NOW)
        await looking

    asyncio.run(run())
    seen = requests_of(totals)
    update(store, totals)

    assert (seen, requests_in(path)) == (4, 4)


def test_after_a_failed_write_the_counts_are_added_to_those_of_the_other(
    two: Two, path: Path
) -> None:
    (store, totals), (other_store, other) = two
    with full_disk(path):
        totals.add("alice", ONE, NOW)
        update(store, totals)
    other.add("alice", ONE, NOW)
    update(other_store, other)
    update(store, totals)

    assert requests_in(path) == 3


def test_two_gateways_that_stop_both_write_their_counts(two: Two, path: Path) -> None:
    for store, totals in two:
        totals.add("alice", ONE, NOW)
        store.write_last(totals, within_seconds=DEADLINE_SECONDS)

    assert requests_in(path) == 3


def test_a_stop_during_an_update_keeps_the_counts_of_the_other(two: Two, path: Path) -> None:
    """The previous update has read it, and is cancelled before it is added to our totals."""
    (store, totals), (other_store, other) = two
    other.add("bob", ONE, NOW)
    update(other_store, other)
    totals.add("alice", ONE, NOW)

    async def run() -> None:
        looking = asyncio.ensure_future(store.update(totals))
        await asyncio.sleep(0)
        looking.cancel()
        totals.add("alice", ONE, NOW)
        store.write_last(totals, within_seconds=DEADLINE_SECONDS)

    asyncio.run(run())

    assert requests_in(path) == 4


def test_a_file_that_breaks_while_two_count_is_written_again_by_one(
    two: Two, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (store, totals), (other_store, other) = two
    path.write_text("{")
    for number, (f, kept) in enumerate([(store, totals), (other_store, other)]):
        kept.add(f"key-{number}", ONE, NOW)
        update(f, kept)

    assert requests_in(path) == 3
    assert len(warnings(caplog)) == 1


@pytest.mark.parametrize("content", [None, "{"])
@pytest.mark.parametrize("is_last", [False, True])
def test_a_file_that_goes_missing_or_breaks_is_written_again_though_nothing_is_new(
    content: str | None, is_last: bool, path: Path
) -> None:
    store, totals = store_at(path), used()
    update(store, totals)
    path.unlink()
    if content is not None:
        path.write_text(content)
    if is_last:
        store.write_last(totals, within_seconds=DEADLINE_SECONDS)
    else:
        update(store, totals)
        update(store, totals)

    assert requests_in(path) == 1


def test_an_unchanged_file_is_not_written(path: Path) -> None:
    store, totals = store_at(path), used()
    update(store, totals)
    before = path.stat()
    update(store, totals)
    store.write_last(totals, within_seconds=DEADLINE_SECONDS)
    fresh = store_at(path.with_name("other.json"))
    fresh.write_last(UsageTotals(NOW), within_seconds=DEADLINE_SECONDS)

    assert path.stat() == before
    assert not path.with_name("other.json").exists()


@pytest.mark.processes
def test_gateways_that_write_at_the_same_time_lose_nothing(path: Path) -> None:
    program = (
        "import asyncio, sys\n"
        "from llama_gguf.telemetry.usage_store import USAGE, UsageStore\n"
        "store = UsageStore(USAGE, sys.argv[1])\n"
        "totals = store.load(1.8e9)\n"
        "async def run():\n"
        "    for n in range(50):\n"
        "        totals.add('alice', (1, 0, 10, 20, 5, 0), 1.8e9)\n"
        "        await store.update(totals)\n"
        "asyncio.run(run())\n"
    )
    running = [subprocess.Popen([sys.executable, "-c", program, str(path)]) for _ in range(3)]

    assert [process.wait(DEADLINE_SECONDS) for process in running] == [0] * 3
    assert requests_in(path) == 150
