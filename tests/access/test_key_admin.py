from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import pytest

from llama_gguf.access import key_admin
from llama_gguf.errors import UserError

NEVER = 4_000_000_000.0


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "api_keys.txt")


def test_a_created_key_is_in_the_file_with_its_settings(path: str) -> None:
    new = key_admin.create(path, name="first", rate_limit=5, expires_at=NEVER, hashed=True)

    (key,) = key_admin.keys_in(path).keys
    assert key == new.key
    assert key.digest == sha256(new.secret.encode()).digest()
    assert (key.key_id, key.rate_limit, key.expires_at, key.hashed) == ("first", 5, NEVER, True)


def test_a_name_in_use_is_rejected(path: str) -> None:
    key_admin.create(path, name="first")

    with pytest.raises(UserError, match="already has a key first"):
        key_admin.create(path, name="first")


def test_no_secret_is_in_a_repr(path: str) -> None:
    new = key_admin.create(path, name="first")
    rotated = key_admin.rotate(path, "first", grace_ends=None)
    secret = "sk-of-another-file-0123456789"
    other = f"other:{secret}\n"
    merged = key_admin.import_keys(path, other, source="it", prefix="key", hashes=False)

    assert secret in merged.text
    shown = repr((new, rotated, merged))
    assert not [made for made in (new.secret, rotated.new.secret, secret) if made in shown]


def test_a_rotation_ends_the_old_secret_or_keeps_it_for_the_grace_period(path: str) -> None:
    key_admin.create(path, name="first")

    with_grace = key_admin.rotate(path, "first", grace_ends=NEVER)
    without = key_admin.rotate(path, "first", grace_ends=None)

    assert ([key.expires_at for key in with_grace.kept], with_grace.ended) == ([NEVER], 0)
    assert (without.kept, without.ended) == ((), 2)
    assert [key.line_id for key in key_admin.keys_in(path).keys] == ["first"]


def test_a_misspelt_id_is_reported_with_the_one_that_is_meant(path: str) -> None:
    key_admin.create(path, name="alice")

    with pytest.raises(UserError, match=r"'alcie' in \S+; did you mean alice\? Else list its keys"):
        key_admin.remove(path, "alcie")
    with pytest.raises(UserError, match=r"'zebra' in \S+; list its keys"):
        key_admin.remove(path, "zebra")


def test_a_failed_change_leaves_the_file_as_it_was(path: str) -> None:
    key_admin.create(path, name="first")
    before = Path(path).read_text()

    with pytest.raises(UserError, match="there is no key 'second'"):
        key_admin.remove(path, "second")
    with pytest.raises(UserError, match=r"nothing was imported[^\n]+\n  line 2"):
        key_admin.import_keys(
            path, "a:sk-0123456789abcdef\nb:\n", source="other", prefix="x", hashes=False
        )

    assert Path(path).read_text() == before


def test_a_missing_keys_file_has_no_keys(path: str) -> None:
    assert len(key_admin.keys_in(path)) == 0


def test_a_dangling_link_is_not_a_missing_file(path: str) -> None:
    Path(path).symlink_to(f"{path}.gone")

    with pytest.raises(UserError):
        key_admin.keys_in(path)
