"""Names of owners, and which of them are revoked."""

from __future__ import annotations

from pathlib import Path

from llama_gguf.access.keys import KeyRing
from llama_gguf.access.owners import ANYONE, KeysFile, owner_of

ANN = "ann:sk-aaaaaaaaaaaaaaaaaaaaaaaa\n"
BOB = "bob:sk-bbbbbbbbbbbbbbbbbbbbbbbb\n"


def owners(text: str) -> dict[str, str]:
    ring = KeyRing.parse(text)
    return {key.key_id: owner_of(ring, key.key_id) for key in ring.keys}


def test_an_owner_is_named_by_id_and_secret_and_reveals_neither_secret_nor_digest() -> None:
    names = owners(ANN + BOB)

    assert names["ann"].startswith("ann:")
    assert len(set(names.values())) == 2
    assert "sk-" not in names["ann"]
    assert owners(ANN.replace("aaaa", "cccc"))["ann"] != names["ann"]


def test_a_removed_or_rotated_key_is_revoked_and_others_are_not(tmp_path: Path) -> None:
    file = tmp_path / "keys.txt"
    file.write_text(ANN + BOB)
    names = owners(ANN + BOB)
    known = KeysFile(str(file))
    assert known.revoked([*names.values(), ANYONE]) == set()

    file.write_text(ANN)
    assert known.revoked(names.values()) == {names["bob"]}
    file.write_text(ANN.replace("aaaa", "cccc") + BOB)
    assert known.revoked(names.values()) == {names["ann"]}


def test_an_id_without_a_key_is_revoked(tmp_path: Path) -> None:
    file = tmp_path / "keys.txt"
    file.write_text(ANN)

    assert KeysFile(str(file)).revoked([owner_of(KeyRing.parse(ANN), "eve")]) == {"eve"}


def test_a_file_that_cannot_be_read_revokes_none(tmp_path: Path) -> None:
    assert KeysFile(str(tmp_path / "none")).revoked(["ann:1"]) == set()


def test_without_keys_none_is_revoked() -> None:
    assert KeysFile("").revoked(["ann:1", ANYONE]) == set()
