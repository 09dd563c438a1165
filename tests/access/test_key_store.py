"""Loading and reloading the keys file."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from llama_gguf.access import key_store as key_store_module
from llama_gguf.access.authenticator import Authenticator
from llama_gguf.access.key_store import KeyStore
from llama_gguf.access.keys import CHARACTERS_PER_PAUSE, KeyRing
from llama_gguf.config.schema import AuthSettings
from llama_gguf.errors import ReloadFailed
from llama_gguf.events import event_of, facts_of
from llama_gguf.files import stamps
from tests.support.fakes import NewRig, Rig, T
from tests.support.keys import KEY, KEYS_TEXT, OTHER_KEY
from tests.support.messages import code_of, request
from tests.support.processes import DEADLINE_SECONDS


def test_loading_returns_the_number_of_keys(rig: Rig) -> None:
    assert rig.services.key_store.load() == 3


def test_an_invalid_line_is_skipped_and_logged_without_its_secret(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    rig.set_keys(f"alice:{KEY}\nsk-secret-in-the-wrong-place\n")
    with caplog.at_level(logging.WARNING):
        assert rig.services.key_store.load() == 1

    (skipped,) = (facts_of(r) for r in caplog.records if event_of(r) == "keys_lines_skipped")
    assert skipped["count"] == 1
    assert str(skipped["lines"]).startswith("['line 2: a line must be")
    assert "sk-secret" not in f"{caplog.text} {skipped}"


def test_any_number_of_invalid_lines_makes_one_bounded_log_entry(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    rig.set_keys(f"alice:{KEY}\n" + "nonsense\n" * 1000)
    with caplog.at_level(logging.INFO):
        assert rig.services.key_store.load() == 1

    (warning,) = [r for r in caplog.records if r.levelno == logging.WARNING]
    lines = facts_of(warning)["lines"]
    assert isinstance(lines, list)
    assert facts_of(warning)["count"] == 1000
    assert [line.partition(":")[0] for line in lines[:-1]] == [f"line {n}" for n in range(2, 12)]
    assert lines[-1] == "and 990 more"


def test_a_file_that_other_users_can_access_causes_a_warning(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    rig.keys_file.chmod(0o644)
    with caplog.at_level(logging.WARNING):
        rig.services.key_store.load()

    assert "chmod 600" in caplog.text


def test_a_failed_load_keeps_the_previous_keys(rig: Rig) -> None:
    rig.set_keys(None)
    with pytest.raises(ReloadFailed, match="not loaded"):
        rig.services.key_store.load()

    assert rig.services.authenticator.holder(KEY.encode()) is not None


def test_an_empty_file_removes_all_keys(rig: Rig) -> None:
    rig.set_keys("")
    assert rig.services.key_store.load() == 0

    assert rig.services.authenticator.holder(KEY.encode()) is None


def test_an_admin_id_without_a_key_causes_a_warning(
    new_rig: NewRig, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        new_rig(admin_key_ids=("alice", "zoe"))

    assert "ADMIN_KEY_IDS names zoe" in caplog.text
    assert "names alice" not in caplog.text


# On request ---------------------------------------------------------------------------------------


class Reader:
    """Replaces the thread: a read continues when the test calls ``go``."""

    def __init__(self) -> None:
        self.waiting: list[asyncio.Event] = []

    async def read(self, work: Callable[[], T]) -> T:
        self.waiting.append(asyncio.Event())
        await self.waiting[-1].wait()
        return work()

    def go(self) -> None:
        self.waiting[-1].set()


def store_of(path: Path, results: list[bool]) -> tuple[KeyStore, Reader]:
    key_store = KeyStore(str(path), Authenticator(AuthSettings()), results.append)
    reader = Reader()
    key_store.off_the_loop = reader.read
    return key_store, reader


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_concurrent_reloads_share_one_read_that_starts_after_all_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_store_module, "REST_SECONDS", 0.0)
    path = tmp_path / "api_keys.txt"
    path.write_text(f"alice:{KEY}\n")
    results: list[bool] = []

    async def trial() -> tuple[list[int], list[int]]:
        key_store, reader = store_of(path, results)
        first = [asyncio.ensure_future(key_store.reload()) for _ in range(1)]
        await turns()  # it is reading already, so the others need a later read
        later = [asyncio.ensure_future(key_store.reload()) for _ in range(20)]
        await turns()
        reader.go()
        await turns()
        path.write_text(KEYS_TEXT)
        reader.go()
        return await asyncio.gather(*first), await asyncio.gather(*later)

    assert asyncio.run(trial()) == ([1], [3] * 20)
    assert results == [True] * 2


def test_frequent_reloads_read_once_a_second_and_none_returns_older_keys(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    results: list[tuple[int, int]] = []

    async def reload(known: int) -> None:
        results.append((known, await rig.services.key_store.reload()))

    tasks = []
    with caplog.at_level(logging.INFO):
        for n in range(1, 101):
            rig.set_keys("".join(f"key-{i}:sk-{i:020}\n" for i in range(n)))
            tasks += [rig.loop.create_task(reload(n)) for _ in range(3)]
            rig.spin()
            rig.advance(0.05)
        rig.advance(key_store_module.REST_SECONDS)

    assert len(results) == 300
    assert all(loaded >= known for known, loaded in results)
    assert caplog.text.count("API keys loaded") <= 100 * 0.05 / key_store_module.REST_SECONDS + 2
    assert rig.metrics.keys_reload["success"] == 1 + caplog.text.count("API keys loaded")


def test_a_reload_after_the_minimum_interval_starts_at_once(rig: Rig) -> None:
    reload = request("POST", "/reload")
    assert len(rig.send_request(reload).responses) == 1
    rig.advance(key_store_module.REST_SECONDS)

    assert len(rig.send_request(reload).responses) == 1
    assert rig.send_request(reload).responses == []


def test_the_minimum_interval_applies_after_a_failed_reload_too(rig: Rig) -> None:
    reload = request("POST", "/reload")
    rig.set_keys(None)
    assert code_of(rig.send_request(reload).response) == "reload_failed"
    rig.set_keys(KEYS_TEXT)
    second = rig.send_request(reload)
    assert second.responses == []
    rig.advance(key_store_module.REST_SECONDS)

    assert second.response.status == 200


def test_a_cancelled_reload_does_not_cancel_concurrent_ones(tmp_path: Path) -> None:
    path = tmp_path / "api_keys.txt"
    path.write_text(KEYS_TEXT)

    async def trial() -> int:
        key_store, reader = store_of(path, [])
        cancelled, other = (asyncio.ensure_future(key_store.reload()) for _ in range(2))
        await turns()
        cancelled.cancel()
        await turns()
        reader.go()
        return await other

    assert asyncio.run(trial()) == 3


def test_each_concurrent_reload_raises_a_failure_that_is_logged_and_counted_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    results: list[bool] = []

    async def trial() -> list[int | BaseException]:
        key_store, reader = store_of(tmp_path / "missing", results)
        both = [asyncio.ensure_future(key_store.reload()) for _ in range(2)]
        await turns()
        reader.go()
        return await asyncio.gather(*both, return_exceptions=True)

    with caplog.at_level(logging.ERROR):
        failures = asyncio.run(trial())

    assert [type(failure) for failure in failures] == [ReloadFailed] * 2
    assert failures[0] is not failures[1], (
        "each caller would add its frames to the other's traceback"
    )
    assert caplog.text.count("there is no keys file") == 1
    assert results == [False]


def test_a_large_file_is_read_with_pauses_for_the_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only one thread runs at a time, and compiled code does not yield to others by itself."""
    path = tmp_path / "api_keys.txt"
    text = "".join(f"key-{i}:sk-{i:020}\n" for i in range(1000))
    path.write_text(text)
    reading_threads: list[str] = []
    monkeypatch.setattr(
        key_store_module, "pause", lambda: reading_threads.append(threading.current_thread().name)
    )
    key_store = KeyStore(str(path), Authenticator(AuthSettings()), lambda _: None)

    assert asyncio.run(key_store.reload()) == 1000
    assert set(reading_threads) == {"detached work"}
    assert len(reading_threads) > len(text) // CHARACTERS_PER_PAUSE / 2


# After a change -----------------------------------------------------------------------------------


def check(key_store: KeyStore, path: Path) -> bool:
    """One check of the file, which is loaded if that is due, as by ``watch``."""
    is_due = key_store.check(stamps.stamp(str(path)))
    if is_due:
        with suppress(ReloadFailed):
            key_store.load()
    return is_due


@pytest.fixture
def watched(tmp_path: Path) -> tuple[KeyStore, Path, Authenticator]:
    path = tmp_path / "api_keys.txt"
    path.write_text(KEYS_TEXT)
    authenticator = Authenticator(AuthSettings())
    key_store = KeyStore(str(path), authenticator, lambda _: None)
    key_store.load()
    return key_store, path, authenticator


Watched = tuple[KeyStore, Path, Authenticator]
_sizes = itertools.count(1)


def write_in_place(path: Path, text: str) -> None:
    """As some editors do. The length always differs: the clock of the file system is coarse."""
    path.write_text(text + "#" * next(_sizes) + "\n")


def put_in_place(path: Path, text: str) -> None:
    """As ``llama-gguf keys`` and mounted secrets do."""
    beside = path.with_name("beside")
    beside.write_text(text)
    os.replace(beside, path)


def test_an_unchanged_file_is_not_read_again(watched: Watched) -> None:
    key_store, path, _ = watched

    assert [check(key_store, path) for _ in range(3)] == [False] * 3


def test_a_replaced_file_is_read_at_once_and_only_once(watched: Watched) -> None:
    key_store, path, authenticator = watched
    put_in_place(path, f"bob:{OTHER_KEY}\n")

    assert [check(key_store, path) for _ in range(3)] == [True, False, False]
    assert authenticator.holder(KEY.encode()) is None


def test_a_mounted_secret_whose_directory_is_switched_counts_as_replaced(tmp_path: Path) -> None:
    for name, text in (("v1", KEYS_TEXT), ("v2", f"bob:{OTHER_KEY}\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "api_keys.txt").write_text(text)
    data, path = tmp_path / "..data", tmp_path / "api_keys.txt"
    data.symlink_to("v1")
    path.symlink_to("..data/api_keys.txt")
    authenticator = Authenticator(AuthSettings())
    key_store = KeyStore(str(path), authenticator, lambda _: None)
    key_store.load()
    (tmp_path / "..data_tmp").symlink_to("v2")
    os.replace(tmp_path / "..data_tmp", data)

    assert [check(key_store, path) for _ in range(2)] == [True, False]
    assert len(authenticator.ring) == 1


def test_a_file_written_in_place_is_read_once_it_no_longer_changes(watched: Watched) -> None:
    key_store, path, authenticator = watched
    checks = []
    for text in ("", f"alice:{KEY}\n"):
        write_in_place(path, text)
        checks.append(check(key_store, path))
    assert len(authenticator.ring) == 3, "the previous keys stay valid until then"
    checks += [check(key_store, path), check(key_store, path)]

    assert checks == [False, False, True, False]
    assert len(authenticator.ring) == 1


def test_a_file_that_is_missing_for_a_moment_removes_no_keys(watched: Watched) -> None:
    key_store, path, authenticator = watched
    path.unlink()
    assert not check(key_store, path)
    path.write_text(f"bob:{OTHER_KEY}\n")

    # At once, unless the file system reused the inode number.
    assert any([check(key_store, path), check(key_store, path)])
    assert len(authenticator.ring) == 1


def test_a_file_that_stays_missing_is_logged_once(
    watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    key_store, path, authenticator = watched
    path.unlink()
    with caplog.at_level(logging.ERROR):
        checks = [check(key_store, path) for _ in range(5)]

    assert checks == [False, True, False, False, False]
    assert caplog.text.count("there is no keys file") == 1
    assert len(authenticator.ring) == 3


def test_a_file_whose_mode_changes_is_read(watched: Watched) -> None:
    key_store, path, _ = watched
    before = stamps.stamp(str(path))
    path.chmod(0o600)

    assert stamps.stamp(str(path)) != before
    assert [check(key_store, path) for _ in range(3)] == [False, True, False]


def test_a_file_created_after_the_start_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "api_keys.txt"
    authenticator = Authenticator(AuthSettings())
    key_store = KeyStore(str(path), authenticator, lambda _: None)
    with pytest.raises(ReloadFailed):
        key_store.load()
    assert not check(key_store, path)
    path.write_text(KEYS_TEXT)

    assert check(key_store, path)
    assert len(authenticator.ring) == len(KeyRing.parse(KEYS_TEXT))


@pytest.mark.slow
def test_a_changed_file_is_reloaded_without_a_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_store_module, "LOOK_SECONDS", 0.001)
    path = tmp_path / "api_keys.txt"
    path.write_text(KEYS_TEXT)
    authenticator = Authenticator(AuthSettings())

    async def changes() -> None:
        loaded = asyncio.Semaphore(0)
        key_store = KeyStore(str(path), authenticator, lambda _: loaded.release())
        key_store.load()
        await loaded.acquire()
        key_store.watch()
        (watcher,) = (t for t in threading.enumerate() if t.name == "watch the keys")
        for text, count in ((f"bob:{OTHER_KEY}\n", 1), (KEYS_TEXT, 3)):
            put_in_place(path, text)
            await loaded.acquire()
            assert len(authenticator.ring) == count
        key_store.watch_no_more()
        watcher.join(DEADLINE_SECONDS)
        assert not watcher.is_alive()

    asyncio.run(asyncio.wait_for(changes(), DEADLINE_SECONDS))


def test_the_watching_thread_ends_when_the_loop_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_store_module, "LOOK_SECONDS", 0.001)
    path = tmp_path / "api_keys.txt"
    key_store = KeyStore(str(path), Authenticator(AuthSettings()), lambda _: None)

    async def begin() -> None:
        key_store.watch()

    asyncio.run(begin())
    (watcher,) = (t for t in threading.enumerate() if t.name == "watch the keys")
    path.write_text(KEYS_TEXT)
    watcher.join(DEADLINE_SECONDS)
    assert not watcher.is_alive()
