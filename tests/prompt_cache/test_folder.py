"""The folder of states: what is kept, replaced, removed, and survives damage."""

from __future__ import annotations

import os
import stat
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import pytest

from llama_gguf.prompt_cache.entry import HEADER_BYTES, Entry
from llama_gguf.prompt_cache.folder import Folder
from llama_gguf.wall_clock import wall_now
from tests.prompt_cache.states import state

A, B, C, D, E, F = (letter * 16 for letter in "abcdef")
_ENDLESS = f'{{"name": "{A}", "validity": "v", "tokens": 1e999}}'


class Store(Folder):
    """A folder, and an engine that writes to it."""

    def __init__(self, path: Path, max_bytes: int = 10_000, instance: str = "box") -> None:
        super().__init__(str(path), max_bytes, instance)
        self.open()

    def save(
        self,
        name: str,
        tokens: Sequence[int],
        *,
        used_at: float = 1.0,
        owners: tuple[str, ...] = ("ann:1",),
        validity: str = "v",
        is_size_known: bool = True,
    ) -> Entry:
        data = state(tokens)
        file = Path(self.path, self.begin(name, len(data) if is_size_known else 0, used_at))
        file.write_bytes(data)
        entry = Entry(name, validity, len(tokens), len(data), used_at, owners)
        self.commit(entry)
        return entry

    @property
    def names(self) -> list[str]:
        return sorted(entry.name for entry in self.entries())


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


def files(store: Store) -> set[str]:
    return set(os.listdir(store.path))


def test_a_state_is_kept_with_its_description(store: Store) -> None:
    entry = store.save(A, [1, 2, 3])

    assert store.entries() == [entry]
    assert files(store) == {f"{A}.state", f"{A}.json"}
    assert store.tokens_of(A) == (1, 2, 3)
    assert Store(Path(store.path)).entries() == [entry]


def test_only_this_user_can_read_what_is_kept(store: Store) -> None:
    store.save(A, [1, 2, 3])

    assert stat.S_IMODE(os.stat(store.path).st_mode) == 0o700
    modes = {stat.S_IMODE(os.stat(Path(store.path, name)).st_mode) for name in files(store)}
    assert modes == {0o600}


def test_a_continued_conversation_replaces_its_earlier_state(store: Store) -> None:
    store.save(A, [1, 2, 3])
    store.save(B, [1, 2, 9])
    store.save(C, [1, 2, 3, 4])

    assert store.names == [B, C]


def test_the_same_tokens_of_another_model_replace_nothing(store: Store) -> None:
    store.save(A, [1, 2, 3])
    store.save(B, [1, 2, 3], validity="w")

    assert store.names == [A, B]


def test_the_least_recently_used_make_room(tmp_path: Path) -> None:
    size = len(state([1, 2]))
    store = Store(tmp_path / "cache", max_bytes=2 * size)
    store.save(A, [1, 2], used_at=3.0)
    store.save(B, [3, 4], used_at=1.0)
    store.save(C, [5, 6], used_at=2.0)

    assert store.names == [A, C]


def test_a_state_takes_no_room_from_those_that_were_used_after_it(tmp_path: Path) -> None:
    store = Store(tmp_path / "cache", max_bytes=len(state([1, 2])))
    store.save(A, [1, 2], used_at=3.0)
    with pytest.raises(OSError, match="PROMPT_CACHE_SIZE"):
        store.save(B, [3, 4], used_at=2.0)

    assert store.names == [A]


def test_a_state_that_was_larger_than_expected_and_can_never_fit_removes_nothing(
    tmp_path: Path,
) -> None:
    store = Store(tmp_path / "cache", max_bytes=len(state([1, 2])))
    store.save(A, [1, 2])
    with pytest.raises(OSError, match="PROMPT_CACHE_SIZE"):
        store.save(B, range(1000), used_at=2.0, is_size_known=False)

    assert store.names == [A]
    assert files(store) == {f"{A}.state", f"{A}.json"}


def test_states_of_a_clock_that_was_wrong_make_room_first(tmp_path: Path) -> None:
    store = Store(tmp_path / "cache", max_bytes=2 * len(state([1, 2])))
    store.save(A, [1, 2], used_at=wall_now() + 10_000)
    store.save(B, [3, 4], used_at=2.0)
    store.save(C, [5, 6], used_at=3.0)

    assert store.names == [B, C]


def test_a_number_of_tokens_that_the_file_cannot_have_is_not_believed(store: Store) -> None:
    store.save(A, [1, 2, 3])
    with open(Path(store.path, f"{A}.state"), "r+b") as file:
        file.seek(HEADER_BYTES - 4)
        file.write(b"\xff" * 4)

    tracemalloc.start()
    assert store.tokens_of(A) == ()
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_a_state_that_can_never_fit_is_refused_and_removes_nothing(store: Store) -> None:
    store.save(A, [1, 2, 3])
    with pytest.raises(OSError, match="PROMPT_CACHE_SIZE"):
        store.begin(B, 10_001, 1.0)

    assert store.names == [A]


def test_a_file_that_was_cut_short_is_no_state(store: Store) -> None:
    store.save(A, [1, 2, 3])
    os.truncate(Path(store.path, f"{A}.state"), 13)

    assert store.entries() == []
    assert files(store) == set()


def test_a_file_that_the_engine_did_not_finish_is_not_kept(store: Store) -> None:
    name = store.begin(A, 10, 1.0)
    Path(store.path, name).write_bytes(state([1, 2, 3])[:-1])
    with pytest.raises(OSError, match="shorter"):
        store.commit(Entry(A, "v", 3, len(state([1, 2, 3])), 1.0, ("ann:1",)))

    assert files(store) == set()


def test_a_file_of_another_form_is_not_kept(store: Store) -> None:
    name = store.begin(A, 10, 1.0)
    Path(store.path, name).write_bytes(b"something else")
    with pytest.raises(OSError, match="another form"):
        store.commit(Entry(A, "v", 3, 14, 1.0, ("ann:1",)))

    assert files(store) == set()


@pytest.mark.parametrize("text", ["{", "[]", '{"name": "x"}', "[" * 100_000, _ENDLESS])
def test_damaged_descriptions_are_removed_with_their_states(store: Store, text: str) -> None:
    store.save(A, [1, 2, 3])
    Path(store.path, f"{A}.json").write_text(text)

    assert store.entries() == []
    assert files(store) == set()


def test_what_may_belong_to_a_revoked_key_is_removed(store: Store) -> None:
    store.save(A, [1], owners=("ann:1",))
    store.save(B, [2], owners=("bob:2",))
    store.save(C, [3], owners=("ann:1", "bob:2"))

    assert store.owners() == {"ann:1", "bob:2"}
    assert store.remove_of({"bob:2", "eve:3"}) == 2
    assert store.names == [A]
    assert files(store) == {f"{A}.state", f"{A}.json"}


def test_states_that_killed_an_engine_are_not_restored_again(store: Store) -> None:
    store.save(A, [1])
    store.save(B, [2])
    store.begin_restore("127.0.0.1:8080", [A])
    store.begin_restore("127.0.0.1:8081", [B])  # another engine, which still restores

    again = Store(Path(store.path))
    assert Store(Path(store.path), instance="another").drop_failed("127.0.0.1:8080") == 0
    assert again.drop_failed("127.0.0.1:8080") == 1
    assert again.names == [B]
    assert again.drop_failed("127.0.0.1:8080") == 0


def test_a_restore_that_has_ended_is_forgotten(store: Store) -> None:
    store.save(A, [1])
    store.begin_restore("unix:/run/engine.sock", [A])
    store.end_restore("unix:/run/engine.sock")

    assert store.drop_failed("unix:/run/engine.sock") == 0
    assert store.names == [A]
    assert files(store) == {f"{A}.state", f"{A}.json"}


def test_leftovers_of_a_crash_are_removed_when_they_are_old(store: Store) -> None:
    store.save(A, [1])
    for name in (f"{D}.saving", f"{E}.state", f"{F}.saving"):
        Path(store.path, name).write_bytes(b"x")
    for name in (f"{D}.saving", f"{E}.state"):
        os.utime(Path(store.path, name), (1.0, 1.0))

    Store(Path(store.path))  # another instance may be writing the third one
    assert files(store) == {f"{A}.state", f"{A}.json", f"{F}.saving"}


def test_files_of_others_in_its_folder_are_left_alone(tmp_path: Path) -> None:
    others = ["config.json", "usage.json", "old.saving", "model.state", "restoring.txt"]
    for name in others:
        (tmp_path / name).write_text("{}")
        os.utime(tmp_path / name, (1.0, 1.0))
    tmp_path.chmod(0o755)
    store = Store(tmp_path)
    store.save(A, [1, 2, 3])

    assert store.names == [A]
    store.remove(A)
    assert files(store) == {*others}
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755


def test_a_folder_without_other_files_is_closed_to_others(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.save(A, [1])
    store.note("digest x", "abc")
    store.begin_restore("unix:/run/engine.sock", [A])
    tmp_path.chmod(0o755)
    Store(tmp_path)

    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o700


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        Store(tmp_path / "file" / "cache")


def test_what_was_found_out_of_models_is_remembered(store: Store) -> None:
    store.note("digest x", "abc")
    store.note("helps y", False)

    again = Store(Path(store.path))
    assert again.noted("digest x") == "abc"
    assert again.noted("helps y") is False
    assert again.noted("helps z") is None
    assert again.entries() == []


def test_notes_that_are_damaged_are_forgotten(store: Store) -> None:
    store.note("helps y", True)
    Path(store.path, "models.json").write_text("[1]")

    assert store.noted("helps y") is None
    store.note("helps y", False)
    assert store.noted("helps y") is False
