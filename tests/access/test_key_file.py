from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from llama_gguf.access import key_file
from llama_gguf.errors import UserError

OLD = "# ours\nalice:sk-secret-of-alice\n"
NEW = OLD + "bob:sk-secret-of-bob-1\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "api_keys.txt"
    path.write_text(OLD)
    path.chmod(0o600)
    return path


def to_new(_: str) -> str:
    return NEW


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def only_file(path: Path) -> bool:
    return os.listdir(path.parent) == [path.name]


# read ---------------------------------------------------------------------------------------------


def test_line_ends_are_preserved(path: Path) -> None:
    path.write_bytes(b"\xef\xbb\xbf# a\r\n\r# b\n")

    assert key_file.read(str(path)) == "\ufeff# a\r\n\r# b\n"


def test_the_error_for_a_missing_file_shows_how_to_create_one(tmp_path: Path) -> None:
    path = f"{tmp_path}/no/keys.txt"

    with pytest.raises(UserError) as caught:
        key_file.read(path)

    assert str(caught.value) == (
        f"there is no keys file {path}; to use another file, set AUTH_KEYS_FILE or DATA_DIR\n"
        f"Create the first key with: llama-gguf keys generate --file {path}"
    )
    assert caught.value.exit_status == 1


def test_a_directory_is_rejected(tmp_path: Path) -> None:
    # Docker creates one at the path of a file to mount that does not exist.
    with pytest.raises(
        UserError,
        match=r"is a directory; specify the keys file in it\. A container runtime creates",
    ):
        key_file.read(str(tmp_path))


def test_the_error_for_an_unreadable_file_gives_the_reason(path: Path) -> None:
    with pytest.raises(
        UserError, match=r"cannot read the keys file .*: Not a directory\nA part of"
    ):
        key_file.read(f"{path}/below")


def test_the_error_for_invalid_utf_8_gives_the_line_and_none_of_its_bytes(path: Path) -> None:
    path.write_bytes(OLD.encode() + b"carol:\xff\xfesecret\n")

    with pytest.raises(UserError) as caught:
        key_file.read(str(path))

    assert "is not UTF-8 text (line 3)" in str(caught.value)
    assert "secret" not in str(caught.value)
    assert caught.value.__suppress_context__  # a traceback would show the bytes


# warn_if_exposed ----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o620, 0o602, 0o666])
def test_a_file_that_other_users_can_access_causes_a_warning(path: Path, mode: int) -> None:
    path.chmod(mode)

    assert key_file.warn_if_exposed(str(path)) == (
        f"other users can access {path} (mode {mode:04o}); restrict it with: chmod 600 {path}"
    )


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o700, 0o611])
def test_a_file_that_only_its_owner_can_access_causes_no_warning(path: Path, mode: int) -> None:
    path.chmod(mode)

    assert key_file.warn_if_exposed(str(path)) is None


@pytest.mark.parametrize(
    ("mode", "owner", "reader", "is_exposed"),
    [
        (0o440, 0, 10001, False),  # a Secret, mounted by Kubernetes with defaultMode 0440
        (0o444, 0, 10001, True),
        (0o460, 0, 10001, True),
        (0o440, 0, 0, True),
        (0o440, 10001, 10001, True),
    ],
)
def test_a_file_of_root_may_be_readable_by_the_group_of_its_reader(
    mode: int, owner: int, reader: int, *, is_exposed: bool
) -> None:
    assert key_file.is_exposed(mode, owner=owner, reader=reader) is is_exposed


def test_a_missing_file_causes_no_warning(tmp_path: Path) -> None:
    assert key_file.warn_if_exposed(f"{tmp_path}/none") is None


# edit ---------------------------------------------------------------------------------------------


def test_an_edit_writes_the_changed_text(path: Path) -> None:
    key_file.edit(str(path), lambda text: f"{text}# \u00e4\r\n")

    assert path.read_bytes() == f"{OLD}# \u00e4\r\n".encode()
    assert only_file(path)


def test_a_missing_file_counts_as_empty_and_is_created_with_its_directory(tmp_path: Path) -> None:
    path = tmp_path / "new" / "api_keys.txt"

    key_file.edit(str(path), lambda text: f"[{text}]")

    assert path.read_text() == "[]"
    assert (mode_of(path), mode_of(path.parent)) == (0o600, 0o700)


def test_an_edited_file_is_not_accessible_to_other_users(path: Path) -> None:
    path.chmod(0o644)

    key_file.edit(str(path), to_new)

    assert mode_of(path) == 0o600


def test_an_edit_without_changes_does_not_replace_the_file(path: Path) -> None:
    before = path.stat()

    key_file.edit(str(path), lambda text: text)

    assert path.stat() == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may change the owner")
def test_an_edit_by_root_keeps_the_owner(path: Path) -> None:
    os.chown(path, 12345, 54321)

    key_file.edit(str(path), to_new)

    assert (path.stat().st_uid, path.stat().st_gid) == (12345, 54321)


def test_a_symlink_is_kept_and_its_target_is_replaced(path: Path, tmp_path: Path) -> None:
    (tmp_path / "links").mkdir()
    link = tmp_path / "links" / "keys"
    link.symlink_to("../api_keys.txt")

    key_file.edit(str(link), to_new)

    assert os.readlink(link) == "../api_keys.txt"
    assert path.read_text() == NEW
    assert os.listdir(link.parent) == ["keys"]


def test_a_symlink_to_a_missing_file_is_followed(tmp_path: Path) -> None:
    link = tmp_path / "keys"
    link.symlink_to("volume/api_keys.txt")

    key_file.edit(str(link), to_new)

    assert link.is_symlink()
    assert (tmp_path / "volume" / "api_keys.txt").read_text() == NEW


def test_a_reader_with_the_old_file_open_reads_all_of_it(path: Path) -> None:
    with path.open() as reader:
        key_file.edit(str(path), to_new)

        assert reader.read() == OLD


def test_a_change_that_raises_leaves_the_file_unchanged(path: Path) -> None:
    def change(text: str) -> str:
        raise UserError("no")

    with pytest.raises(UserError, match=r"^no$"):
        key_file.edit(str(path), change)

    assert path.read_text() == OLD
    assert only_file(path)


def test_a_failed_rename_leaves_no_temporary_file(tmp_path: Path) -> None:
    path = tmp_path / "keys"

    def change(_: str) -> str:
        path.mkdir()  # a file cannot be renamed over a directory
        return NEW

    with pytest.raises(UserError, match="cannot write the keys file"):
        key_file.edit(str(path), change)

    assert path.is_dir()
    assert only_file(path)


@pytest.mark.parametrize("below", ["", "/below"])
def test_the_error_for_a_directory_that_cannot_be_created_gives_the_reason(
    path: Path, below: str
) -> None:
    with pytest.raises(UserError) as caught:
        key_file.edit(f"{path}{below}/keys", to_new)

    assert str(caught.value) == (
        f"cannot write the keys file {path}{below}/keys: Not a directory\n"
        "A part of the path is a file and not a directory: check the path. "
        "To use another file: --file, AUTH_KEYS_FILE, DATA_DIR"
    )


def test_the_error_for_a_bind_mounted_file_suggests_mounting_its_directory() -> None:
    error = OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    assert "mount its directory instead" in key_file._not_written("/data/api_keys.txt", error)


def test_a_device_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    link = tmp_path / "keys"
    link.symlink_to(os.devnull)

    with pytest.raises(UserError, match="/dev/null is not a regular file"):
        key_file.edit(str(link), to_new)

    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


def test_a_pipe_is_rejected_without_blocking(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "keys")

    with pytest.raises(UserError, match="is not a regular file"):
        key_file.edit(f"{tmp_path}/keys", to_new)


def test_a_directory_cannot_be_edited(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a directory; specify the keys file in it"):
        key_file.edit(str(tmp_path), to_new)


# Processes ----------------------------------------------------------------------------------------

# The child prints "there" at the point of interest, and waits for input or a signal.
CHILD = """
import sys
from llama_gguf.access import key_file

def wait(*_):
    sys.stdout.write("there\\n")
    sys.stdout.flush()
    sys.stdin.readline()

def change(text):
    if where == "change":
        wait()
    return text + added

path, added, where = sys.argv[1:]
if where == "synced":
    key_file.os.fsync = wait
if where == "renamed":
    key_file._settle = wait
key_file.edit(path, change)
"""


@contextmanager
def child_at(path: Path, added: str, where: str) -> Iterator[subprocess.Popen[str]]:
    argv = [sys.executable, "-c", CHILD, str(path), added, where]
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, text=True) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "there\n"
            yield child
        finally:
            child.kill()


@pytest.mark.processes
@pytest.mark.parametrize(
    ("where", "text"), [("change", OLD), ("synced", OLD), ("renamed", OLD + "new\n")]
)
def test_a_process_killed_during_an_edit_leaves_the_complete_old_or_new_file(
    path: Path, where: str, text: str
) -> None:
    with child_at(path, "new\n", where) as child:
        child.kill()
        assert child.wait() == -signal.SIGKILL

    assert path.read_text() == text
    assert all(mode_of(path.parent / name) == 0o600 for name in os.listdir(path.parent))


@pytest.mark.processes
def test_a_killed_process_holds_no_lock(path: Path) -> None:
    with child_at(path, "new\n", "change") as child:
        child.kill()
        child.wait()

    key_file.edit(str(path), to_new)

    assert path.read_text() == NEW
    assert only_file(path)


@pytest.mark.processes
def test_an_edit_holds_the_lock_while_it_computes_the_change(path: Path) -> None:
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        with child_at(path, "new\n", "change"), pytest.raises(BlockingIOError):
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(folder, fcntl.LOCK_EX)
    finally:
        os.close(folder)


def failing_with(number: int) -> Callable[[int, int], None]:
    def flock(_descriptor: int, _operation: int) -> None:
        raise OSError(number, os.strerror(number))

    return flock


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_no_obstacle(path: Path, number: int) -> None:
    key_file.edit(str(path), to_new, failing_with(number))

    assert path.read_text() == NEW
    assert only_file(path)


def test_any_other_failure_to_lock_is_reported(path: Path) -> None:
    with pytest.raises(UserError, match="cannot write the keys file"):
        key_file.edit(str(path), to_new, failing_with(errno.EIO))

    assert path.read_text() == OLD


@pytest.mark.processes
def test_a_concurrent_edit_sees_the_result_of_the_first(path: Path) -> None:
    with child_at(path, "one\n", "change") as first:
        argv = [sys.executable, "-c", CHILD, str(path), "two\n", "nowhere"]
        with subprocess.Popen(argv) as second:
            first.communicate("go\n")
            assert second.wait() == 0

    assert path.read_text() == OLD + "one\ntwo\n"


@pytest.mark.processes
def test_a_full_disk_leaves_the_old_file_and_no_temporary_file(path: Path) -> None:
    limited = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
        "import sys; from llama_gguf.access import key_file\n"
        "key_file.edit(sys.argv[1], lambda text: text + 'x' * 1000)\n"
    )
    argv = [sys.executable, "-c", limited, str(path)]

    done = subprocess.run(argv, capture_output=True, text=True, check=False)

    assert "cannot write the keys file" in done.stderr
    assert path.read_text() == OLD
    assert only_file(path)


@pytest.mark.processes
def test_the_module_imports_nothing_heavy() -> None:
    listing = "import sys, llama_gguf.access.key_file; print(*sys.modules)"
    argv = [sys.executable, "-c", listing]

    done = subprocess.run(argv, capture_output=True, text=True, check=True)

    heavy = {"rich", "tempfile", "asyncio", "argparse", "secrets", "pathlib", "random"}
    # The start of a virtual environment may import pathlib and other modules.
    blank = subprocess.run(
        [sys.executable, "-c", "import sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert not heavy & (set(done.stdout.split()) - set(blank.stdout.split()))
