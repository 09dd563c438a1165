"""Authentication: the loaded keys, the usage of each, and addresses with invalid keys.

Nothing here reads a file or a clock; ``key_store.py`` brings the keys.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from llama_gguf.access.keys import Key, KeyRing
from llama_gguf.access.rate_limit import FailureLimit, SlidingWindow
from llama_gguf.config.settings import Settings
from llama_gguf.errors import AdminKeyRequired, KeyExpired, Limited, Unauthorized
from llama_gguf.http1 import local_response
from llama_gguf.http1.fields import RequestFields, invalid_key, presented_key


class Principal:
    """Who asks: a secret of a key, with the key's window.

    The window stays while the key stays in the file, and is services by all of its secrets.

    Args:
        key_id: of the key.
        expires_at: of the secret, in POSIX seconds; None where it never expires.
        window: None where nothing is counted.
    """

    __slots__ = ("_after_left", "_before_left", "expires_at", "key_id", "window")

    def __init__(self, key_id: str, expires_at: float | None, window: SlidingWindow | None) -> None:
        self.key_id = key_id
        self.expires_at = expires_at
        self.window = window
        # What the hot path asks for, one step nearer.
        self._before_left = self._after_left = b""
        if window is not None:
            # After a hit, it takes a whole window until nothing counts any more.
            lines = local_response.rate_fields(window.limit, b"#", window.window)
            self._before_left, _, self._after_left = lines.partition(b"#")

    def fields_after_hit(self, left: int) -> bytes:
        """The lines for an answer to what was counted; *left* requests remain."""
        return b"".join((self._before_left, str(left).encode("ascii"), self._after_left))

    def fields_at(self, now: float) -> bytes:
        """The lines for an answer to what counts for nothing."""
        window = self.window
        if window is None:
            return b""
        remaining = b"%d" % window.remaining(now)
        return local_response.rate_fields(window.limit, remaining, window.reset(now))


class Authenticator:
    """All who may ask.

    Args:
        settings: of the gateway.
    """

    ANONYMOUS: Final = Principal("-", None, None)
    """Whoever asks, where nobody checks keys."""

    def __init__(self, settings: Settings) -> None:
        self._are_checked = settings.auth_enabled
        self._in_authorization = settings.auth_header == "any"
        self._default_limit = settings.max_requests_per_minute
        self._admins = frozenset(settings.admin_key_ids)
        self.failures = FailureLimit(per_minute=settings.auth_failures_per_minute)
        self.ring = KeyRing()
        self._by_digest: dict[bytes, Principal] = {}
        """Those that have asked since the ring was taken."""
        self._windows: dict[str, SlidingWindow] = {}
        """Of the keys that have asked, by key id."""

    def take(self, ring: KeyRing, gone: Iterable[str]) -> None:
        """Let in the keys of *ring*, and no others from now on.

        Nothing is done here for each key, since there may be 100,000 and all streams wait
        meanwhile: principals are made when they ask.

        Args:
            ring: the new one.
            gone: ids of keys that the old ring had.
        """
        self.ring = ring
        self._by_digest = {}
        for key_id in gone:
            self._windows.pop(key_id, None)

    def _principal(self, key: Key) -> Principal:
        try:
            return self._by_digest[key.digest]
        except KeyError:
            # Limit and end on the key's own line apply to its old secrets, too.
            own = self.ring.named(key.key_id) or key
            ends = [end for end in (key.expires_at, own.expires_at) if end is not None]
            principal = Principal(key.key_id, min(ends, default=None), self._window(own))
            self._by_digest[key.digest] = principal
            return principal

    def _window(self, key: Key) -> SlidingWindow:
        limit = key.rate_limit or self._default_limit
        window = self._windows.get(key.key_id)
        if window is None:
            window = self._windows[key.key_id] = SlidingWindow(limit=limit)
        window.limit = limit  # what it has admitted still counts
        return window

    def named(self, key_id: str) -> Principal | None:
        key = self.ring.named(key_id)
        return None if key is None else self._principal(key)

    def are_several(self) -> bool:
        """Whether what is services is services by more than one key."""
        return len(self.ring) > 1

    def holder(self, presented: bytes) -> Principal | None:
        """Who shows the key *presented*; None when nobody does."""
        key = self.ring.look_up(presented)
        return None if key is None else self._principal(key)

    def authenticate(
        self, read: RequestFields, network: str, *, now: float, wall: float
    ) -> Principal:
        """Find out who asks.

        Args:
            read: the fields of the request.
            network: where it comes from, by ``network_of``.
            now: on the clock of the windows.
            wall: POSIX seconds.

        Raises:
            Unauthorized, KeyExpired: nobody who may.
            Limited: this address has tried too many wrong keys; this one was not looked at.
        """
        if not self._are_checked:
            return self.ANONYMOUS
        wait = self.failures.retry_after(network, now)
        if wait:
            raise Limited("Too many invalid keys from this address.", retry_after=wait)
        presented = presented_key(read, in_authorization=self._in_authorization)
        try:
            return self._known(presented, wall)
        except Unauthorized:  # to show no key at all is no guess
            self.failures.failed(network, now)
            raise

    def _known(self, presented: bytes, wall: float) -> Principal:
        found = self.holder(presented)
        if found is None:
            raise invalid_key()
        if found.expires_at is not None and wall >= found.expires_at:
            raise KeyExpired("This API key has expired.")
        return found

    def check_admin(self, principal: Principal) -> None:
        """Make sure that *principal* may operate the gateway.

        Raises:
            AdminKeyRequired: ADMIN_KEY_IDS names others.
        """
        if self._admins and principal.key_id not in self._admins:
            raise AdminKeyRequired("This API key is not permitted to do this; see ADMIN_KEY_IDS.")

    def is_admin(self, principal: Principal) -> bool:
        """Whether ADMIN_KEY_IDS names *principal*."""
        return principal.key_id in self._admins

    def next_expiry(self, wall: float) -> float | None:
        """Seconds until the next key expires; None when none will."""
        ahead = [key.expires_at - wall for key in self.ring.keys if key.expires_at is not None]
        return min((seconds for seconds in ahead if seconds > 0), default=None)

    def missing_admins(self) -> list[str]:
        """Ids that ADMIN_KEY_IDS names, and no key has."""
        return sorted(key_id for key_id in self._admins if self.ring.named(key_id) is None)
