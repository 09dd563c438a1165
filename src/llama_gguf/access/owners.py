"""Names for the owners of what is stored of clients' content, so that it goes with its key."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from llama_gguf.access import key_file
from llama_gguf.access.keys import Key, KeyRing
from llama_gguf.digests import sha256
from llama_gguf.errors import UserError
from llama_gguf.net.threads import pause

ANYONE: Final = "-"
"""The owner where no key is required."""


def owner_of(ring: KeyRing, key_id: str) -> str:
    """The owner named *key_id*: a key that is added again under an old id is another one."""
    key = ring.named(key_id)
    return _name(key) if key is not None else key_id


def _name(key: Key) -> str:
    return f"{key.key_id}:{sha256(key.digest).hexdigest()[:16]}"


class KeysFile:
    """The owners in a keys file.

    Args:
        path: of the file; empty if no key is required, and nothing is ever revoked.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def revoked(self, owners: Collection[str]) -> set[str]:
        """Those of *owners* whose key is not in the file any more. Reads it, so it may block.

        If it cannot be read, the loaded keys stay in force, and none is revoked.
        """
        if not self.path or not set(owners) - {ANYONE}:
            return set()
        try:
            ring = KeyRing.parse(key_file.read(self.path), pause)
        except UserError:
            return set()
        return {
            owner
            for owner in owners
            if owner not in (ANYONE, owner_of(ring, owner.rpartition(":")[0]))
        }
