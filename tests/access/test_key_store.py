"""When the keys are read, and what is kept when they cannot be."""

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
from llama_gguf.access.keys import LINES_PER_PAUSE, KeyRing
from llama_gguf.config.settings import Settings
from llama_gguf.errors import ReloadFailed
from llama_gguf.events import event_of, facts_of
from llama_gguf.files import stamps
from tests.support.ends import PATIENCE
from tests.support.fakes import KEY, KEYS_TEXT, OTHER_KEY, Rig, T, code_of, request
from tests.support.rigs import NewRig


def test_loading_keys_says_how_many(rig: Rig) -> None:
    assert rig.services.key_store.load() == 3


def test_a_bad_line_is_skipped_and_named_without_its_secret(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    rig.set_keys(f"alice:{KEY}\nsk-secret-in-the-wrong-place\n")
    with caplog.at_level(logging.WARNING):
        assert rig.services.key_store.load() == 1

    (skipped,) = (facts_of(r) for r in caplog.records if event_of(r) == "keys_lines_skipped")
    assert skipped["count"] == 1
    assert str(skipped["lines"]).startswith("['line 2: a line must be")
    assert "sk-secret" not in f"{caplog.text} {skipped}"


def test_bad_lines_are_named_in_one_line_of_the_log_however_many_there_are(
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


def test_a_file_open_to_others_is_warned_about(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    rig.keys_file.chmod(0o644)
    with caplog.at_level(logging.WARNING):
        rig.services.key_store.load()

    assert "chmod 600" in caplog.text


def test_a_failed_load_keeps_the_old_set(rig: Rig) -> None:
    rig.set_keys(None)
    with pytest.raises(ReloadFailed, match="not loaded"):
        rig.services.key_store.load()

    assert rig.services.authenticator.holder(KEY.encode()) is not None


def test_an_empty_file_is_a_set_of_no_keys(rig: Rig) -> None:
    rig.set_keys("")
    assert rig.services.key_store.load() == 0

    assert rig.services.authenticator.holder(KEY.encode()) is None


def test_an_administrator_without_a_key_is_warned_about(
    new_rig: NewRig, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        new_rig(admin_key_ids=("alice", "zoe"))

    assert "ADMIN_KEY_IDS names zoe" in caplog.text
    assert "names alice" not in caplog.text


# Asked --------------------------------------------------------------------------------------------


class Reader:
    """Reads when a test says so."""

    def __init__(self) -> None:
        self.waiting: list[asyncio.Event] = []

    async def read(self, work: Callable[[], T]) -> T:
        self.waiting.append(asyncio.Event())
        await self.waiting[-1].wait()
        return work()

    def go(self) -> None:
        self.waiting[-1].set()


def reloads_of(path: Path, results: list[str]) -> tuple[KeyStore, Reader]:
    reloads = KeyStore(str(path), Authenticator(Settings()), results.append)
    reader = Reader()
    reloads.off_the_loop = reader.read
    return reloads, reader


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_many_who_ask_share_one_read_that_begins_after_they_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_store_module, "REST_SECONDS", 0.0)
    path = tmp_path / "api_keys.txt"
    path.write_text(f"alice:{KEY}\n")
    results: list[str] = []

    async def trial() -> tuple[list[int], list[int]]:
        reloads, reader = reloads_of(path, results)
        first = [asyncio.ensure_future(reloads.reload()) for _ in range(1)]
        await turns()  # its read is under way, so the others need one that begins later
        later = [asyncio.ensure_future(reloads.reload()) for _ in range(20)]
        await turns()
        reader.go()
        await turns()
        path.write_text(KEYS_TEXT)
        reader.go()
        return await asyncio.gather(*first), await asyncio.gather(*later)

    assert asyncio.run(trial()) == ([1], [3] * 20)
    assert results == ["success"] * 2


def test_reloads_read_once_a_second_and_each_returns_what_was_written_before_it(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    """However many ask, and whenever."""
    results: list[tuple[int, int]] = []

    async def ask(known: int) -> None:
        results.append((known, await rig.services.key_store.reload()))

    tasks = []
    with caplog.at_level(logging.INFO):
        for n in range(1, 101):
            rig.set_keys("".join(f"key-{i}:sk-{i:020}\n" for i in range(n)))
            tasks += [rig.loop.create_task(ask(n)) for _ in range(3)]
            rig.spin()
            rig.advance(0.05)
        rig.advance(key_store_module.REST_SECONDS)

    assert len(results) == 300
    assert all(loaded >= known for known, loaded in results)
    assert caplog.text.count("API keys loaded") <= 100 * 0.05 / key_store_module.REST_SECONDS + 2
    assert rig.services.recorder.metrics.keys_reload["success"] == 1 + caplog.text.count(
        "API keys loaded"
    )


def test_a_reload_after_a_rest_begins_at_once(rig: Rig) -> None:
    reload = request("POST", "/reload")
    assert len(rig.ask(reload).answers) == 1
    rig.advance(key_store_module.REST_SECONDS)

    assert len(rig.ask(reload).answers) == 1
    assert rig.ask(reload).answers == []


def test_a_failed_reload_is_followed_by_a_rest_too(rig: Rig) -> None:
    reload = request("POST", "/reload")
    rig.set_keys(None)
    assert code_of(rig.ask(reload).answer) == "reload_failed"
    rig.set_keys(KEYS_TEXT)
    second = rig.ask(reload)
    assert second.answers == []
    rig.advance(key_store_module.REST_SECONDS)

    assert second.answer.status == 200


def test_who_leaves_while_the_file_is_read_leaves_the_others_their_answer(tmp_path: Path) -> None:
    path = tmp_path / "api_keys.txt"
    path.write_text(KEYS_TEXT)

    async def trial() -> int:
        reloads, reader = reloads_of(path, [])
        leaver, stayer = (asyncio.ensure_future(reloads.reload()) for _ in range(2))
        await turns()
        leaver.cancel()
        await turns()
        reader.go()
        return await stayer

    assert asyncio.run(trial()) == 3


def test_a_failure_is_told_to_whoever_asked_and_logged_and_counted_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    results: list[str] = []

    async def trial() -> list[int | BaseException]:
        reloads, reader = reloads_of(tmp_path / "missing", results)
        both = [asyncio.ensure_future(reloads.reload()) for _ in range(2)]
        await turns()
        reader.go()
        return await asyncio.gather(*both, return_exceptions=True)

    with caplog.at_level(logging.ERROR):
        failures = asyncio.run(trial())

    assert [type(failure) for failure in failures] == [ReloadFailed] * 2
    assert failures[0] is not failures[1], "each would add its frames to the other's traceback"
    assert caplog.text.count("there is no keys file") == 1
    assert results == ["failure"]


def test_a_large_file_is_read_with_pauses_for_the_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interpreter runs one thread at a time, and a compiled parser gives way to none."""
    path = tmp_path / "api_keys.txt"
    path.write_text("".join(f"key-{i}:sk-{i:020}\n" for i in range(1000)))
    reading_threads: list[str] = []
    monkeypatch.setattr(
        key_store_module, "pause", lambda: reading_threads.append(threading.current_thread().name)
    )
    reloads = KeyStore(str(path), Authenticator(Settings()), lambda _: None)

    assert asyncio.run(reloads.reload()) == 1000
    assert reading_threads == ["file work"] * (1000 // LINES_PER_PAUSE)


# By itself ----------------------------------------------------------------------------------------


def look(reloads: KeyStore, path: Path) -> bool:
    """One look; reads the file when that is due, as ``watch`` does."""
    is_due = reloads.is_due(stamps.stamp(str(path)))
    if is_due:
        with suppress(ReloadFailed):
            reloads.load()
    return is_due


@pytest.fixture
def watched(tmp_path: Path) -> tuple[KeyStore, Path, Authenticator]:
    path = tmp_path / "api_keys.txt"
    path.write_text(KEYS_TEXT)
    principals = Authenticator(Settings())
    reloads = KeyStore(str(path), principals, lambda _: None)
    reloads.load()
    return reloads, path, principals


Watched = tuple[KeyStore, Path, Authenticator]
_sizes = itertools.count(1)


def write_in_place(path: Path, text: str) -> None:
    """As an editor does that keeps the file. Never as long as before: the clock may be coarse."""
    path.write_text(text + "#" * next(_sizes) + "\n")


def put_in_place(path: Path, text: str) -> None:
    """As ``llama-gguf keys`` does, and a mounted secret."""
    beside = path.with_name("beside")
    beside.write_text(text)
    os.replace(beside, path)


def test_a_file_that_stays_is_not_read_again(watched: Watched) -> None:
    reloads, path, _ = watched

    assert [look(reloads, path) for _ in range(3)] == [False] * 3


def test_another_file_in_its_place_is_read_at_once_and_once(watched: Watched) -> None:
    reloads, path, principals = watched
    put_in_place(path, f"bob:{OTHER_KEY}\n")

    assert [look(reloads, path) for _ in range(3)] == [True, False, False]
    assert principals.holder(KEY.encode()) is None


def test_a_secret_whose_folder_is_switched_counts_as_another_file(tmp_path: Path) -> None:
    for name, text in (("v1", KEYS_TEXT), ("v2", f"bob:{OTHER_KEY}\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "api_keys.txt").write_text(text)
    data, path = tmp_path / "..data", tmp_path / "api_keys.txt"
    data.symlink_to("v1")
    path.symlink_to("..data/api_keys.txt")
    principals = Authenticator(Settings())
    reloads = KeyStore(str(path), principals, lambda _: None)
    reloads.load()
    (tmp_path / "..data_tmp").symlink_to("v2")
    os.replace(tmp_path / "..data_tmp", data)

    assert [look(reloads, path) for _ in range(2)] == [True, False]
    assert len(principals.ring) == 1


def test_a_file_that_is_being_written_is_read_when_it_has_come_to_rest(watched: Watched) -> None:
    reloads, path, principals = watched
    looks = []
    for text in ("", f"alice:{KEY}\n"):
        write_in_place(path, text)
        looks.append(look(reloads, path))
    assert len(principals.ring) == 3, "nobody is locked out meanwhile"
    looks += [look(reloads, path), look(reloads, path)]

    assert looks == [False, False, True, False]
    assert len(principals.ring) == 1


def test_a_file_that_is_gone_for_a_moment_locks_nobody_out(watched: Watched) -> None:
    reloads, path, principals = watched
    path.unlink()
    assert not look(reloads, path)
    path.write_text(f"bob:{OTHER_KEY}\n")

    # At once, unless it got the number of the old one.
    assert any([look(reloads, path), look(reloads, path)])
    assert len(principals.ring) == 1


def test_a_file_that_stays_away_is_complained_about_once(
    watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    reloads, path, principals = watched
    path.unlink()
    with caplog.at_level(logging.ERROR):
        looks = [look(reloads, path) for _ in range(5)]

    assert looks == [False, True, False, False, False]
    assert caplog.text.count("there is no keys file") == 1
    assert len(principals.ring) == 3


def test_a_file_whose_mode_is_mended_is_read(watched: Watched) -> None:
    reloads, path, _ = watched
    before = stamps.stamp(str(path))
    path.chmod(0o600)

    assert stamps.stamp(str(path)) != before
    assert [look(reloads, path) for _ in range(3)] == [False, True, False]


def test_a_file_that_comes_later_is_taken_up(tmp_path: Path) -> None:
    path = tmp_path / "api_keys.txt"
    principals = Authenticator(Settings())
    reloads = KeyStore(str(path), principals, lambda _: None)
    with pytest.raises(ReloadFailed):
        reloads.load()
    assert not look(reloads, path)
    path.write_text(KEYS_TEXT)

    assert look(reloads, path)
    assert len(principals.ring) == len(KeyRing.parse(KEYS_TEXT))


def test_a_change_is_taken_up_without_anybody_asking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_store_module, "LOOK_SECONDS", 0.001)
    path = tmp_path / "api_keys.txt"
    path.write_text(KEYS_TEXT)
    principals = Authenticator(Settings())

    async def changes() -> None:
        loaded = asyncio.Semaphore(0)
        reloads = KeyStore(str(path), principals, lambda _: loaded.release())
        reloads.load()
        await loaded.acquire()
        reloads.watch()
        (watcher,) = (t for t in threading.enumerate() if t.name == "watch the keys")
        for text, count in ((f"bob:{OTHER_KEY}\n", 1), (KEYS_TEXT, 3)):
            put_in_place(path, text)
            await loaded.acquire()
            assert len(principals.ring) == count
        reloads.watch_no_more()
        watcher.join(PATIENCE)
        assert not watcher.is_alive()

    asyncio.run(asyncio.wait_for(changes(), PATIENCE))


def test_a_loop_that_has_gone_is_told_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_store_module, "LOOK_SECONDS", 0.001)
    path = tmp_path / "api_keys.txt"
    reloads = KeyStore(str(path), Authenticator(Settings()), lambda _: None)

    async def begin() -> None:
        reloads.watch()

    asyncio.run(begin())
    (watcher,) = (t for t in threading.enumerate() if t.name == "watch the keys")
    path.write_text(KEYS_TEXT)
    watcher.join(PATIENCE)
    assert not watcher.is_alive()
