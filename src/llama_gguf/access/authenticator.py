"""Authentication: the loaded keys, the rate limiter of each, and addresses that sent invalid keys.

Nothing here reads a file or a clock: ``key_store.py`` loads the keys, and the time is an argument.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from llama_gguf.access.attributes import NO_ATTRIBUTES, Attributes
from llama_gguf.access.budget_ledger import BudgetLedger
from llama_gguf.access.keys import Key, KeyRing
from llama_gguf.access.rate_limit import FailureLimit, NewLimiter, RateLimiter, local_limiter
from llama_gguf.access.token_budget import NewShare, TokenBudget, has_budget
from llama_gguf.config.schema import AuthSettings
from llama_gguf.errors import AdminKeyRequired, KeyExpired, Limited, Unauthorized
from llama_gguf.http1 import local_response
from llama_gguf.http1.fields import RequestFields, invalid_key, presented_key


class Principal:
    """An authenticated client: one secret of a key, with the key's rate limiter.

    All secrets of a key share its limiter, which exists as long as the key is in the file.

    Args:
        key_id: of the key.
        expires_at: of the secret, in POSIX seconds; None if it never expires.
        limiter: of the key; None if its requests are not counted.
        attributes: of the key.
        budget: of the key; None if it has none.
    """

    __slots__ = (
        "_after_remaining",
        "_before_remaining",
        "attributes",
        "budget",
        "expires_at",
        "key_id",
        "limiter",
    )

    def __init__(
        self,
        key_id: str,
        expires_at: float | None,
        limiter: RateLimiter | None,
        attributes: Attributes = NO_ATTRIBUTES,
        budget: TokenBudget | None = None,
    ) -> None:
        self.key_id = key_id
        self.expires_at = expires_at
        self.limiter = limiter
        self.attributes = attributes
        self.budget = budget
        # Serialised once: only the number differs between the responses to counted requests.
        self._before_remaining = self._after_remaining = b""
        if limiter is not None:
            # Directly after a hit, the reset is always a whole window away.
            lines = local_response.rate_fields(limiter.limit, b"#", limiter.window)
            self._before_remaining, _, self._after_remaining = lines.partition(b"#")

    def fields_after_hit(self, remaining: int) -> bytes:
        """The rate-limit header lines for the response to a request that was just counted.

        Args:
            remaining: what ``RateLimiter.hit`` returned.
        """
        number = str(remaining).encode("ascii")
        return b"".join((self._before_remaining, number, self._after_remaining))

    def fields_at(self, now: float) -> bytes:
        """The rate-limit header lines for the response to a request that is not counted."""
        limiter = self.limiter
        if limiter is None:
            return b""
        remaining = b"%d" % limiter.remaining(now)
        return local_response.rate_fields(limiter.limit, remaining, limiter.reset(now))


class Authenticator:
    """Maps the key that a request presents to a principal, or rejects the request.

    Args:
        settings: which keys there are, and what each may do.
        new_limiter: called once for each key in use.
        new_share: makes the shares of budgets; None if they are not shared with other gateways.
    """

    ANONYMOUS: Final = Principal("-", None, None)
    """The principal where no key is checked: authentication is off, or the path needs no key."""

    def __init__(
        self,
        settings: AuthSettings,
        new_limiter: NewLimiter = local_limiter,
        new_share: NewShare | None = None,
    ) -> None:
        self._is_enabled = settings.auth_enabled
        self._in_authorization = settings.auth_header == "any"
        self._default_limit = settings.max_requests_per_minute
        self._admins = frozenset(settings.admin_key_ids)
        self.failures = FailureLimit(per_minute=settings.auth_failures_per_minute)
        self.ring = KeyRing()
        self._by_digest: dict[bytes, Principal] = {}
        """Made when a secret is first presented; emptied when keys are loaded."""
        self._new_limiter = new_limiter
        self.budgets = BudgetLedger(new_share=new_share)
        """Of all keys that have or had one: a key that is removed and added again continues."""
        self._limiters: dict[str, RateLimiter] = {}
        """By key id, made when a key is first presented."""

    def take(self, ring: KeyRing, gone: Iterable[str]) -> None:
        """Replace all keys by those of *ring*.

        This runs on the event loop, and there may be 100,000 keys: a step per key would delay
        all streams. Principals are therefore made when they are first needed.

        Args:
            ring: the new keys.
            gone: ids of keys in the old ring that are not in the new one.
        """
        self.ring = ring
        self._by_digest = {}
        for key_id in gone:
            self._limiters.pop(key_id, None)

    def _principal(self, key: Key) -> Principal:
        try:
            return self._by_digest[key.digest]
        except KeyError:
            # Limits, scope and expiration on the key's own line apply to its old secrets, too.
            own = self.ring.named(key.key_id) or key
            ends = [end for end in (key.expires_at, own.expires_at) if end is not None]
            principal = Principal(
                key.key_id,
                min(ends, default=None),
                self._limiter(own),
                own.attributes,
                self._budget(own),
            )
            self._by_digest[key.digest] = principal
            return principal

    def _limiter(self, key: Key) -> RateLimiter:
        limit = key.rate_limit or self._default_limit
        limiter = self._limiters.get(key.key_id)
        if limiter is None:
            limiter = self._limiters[key.key_id] = self._new_limiter(key.key_id, limit)
        limiter.limit = limit  # requests that it has admitted still count
        return limiter

    def _budget(self, key: Key) -> TokenBudget | None:
        if not has_budget(key.attributes):
            return None
        budget = self.budgets.of(key.key_id)
        budget.limit(key.attributes)  # what was used still counts
        return budget

    def named(self, key_id: str) -> Principal | None:
        """The principal of the key with this id; None if there is no such key."""
        key = self.ring.named(key_id)
        return None if key is None else self._principal(key)

    def attributes_of(self, key_id: str) -> Attributes:
        """The attributes of the key with this id."""
        key = self.ring.named(key_id)
        return NO_ATTRIBUTES if key is None else key.attributes

    def are_several(self) -> bool:
        """Whether more than one key shares the engine."""
        return len(self.ring) > 1

    def holder(self, presented: bytes) -> Principal | None:
        """The principal whose secret is *presented*, expired or not; None if it is unknown."""
        key = self.ring.look_up(presented)
        return None if key is None else self._principal(key)

    def authenticate(
        self, read: RequestFields, network: str, *, now: float, wall: float
    ) -> Principal:
        """Return the principal whose key a request presents.

        Args:
            read: the fields of the request.
            network: the client's address, as returned by ``network_of``.
            now: on the clock of the limiters.
            wall: POSIX seconds, for expirations.

        Raises:
            Unauthorized, KeyExpired: the key is missing, malformed or unknown; it has expired.
            Limited: the address has sent too many invalid keys; this key was not checked.
        """
        if not self._is_enabled:
            return self.ANONYMOUS
        wait = self.failures.retry_after(network, now)
        if wait:
            raise Limited(
                "Too many invalid keys from this address (AUTH_FAILURES_PER_MINUTE).",
                retry_after=wait,
            )
        presented = presented_key(read, in_authorization=self._in_authorization)
        try:
            return self._known(presented, wall)
        except Unauthorized:  # a missing key, raised above, does not count: it is no guess
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
        """Check that *principal* may operate the gateway.

        Raises:
            AdminKeyRequired: ADMIN_KEY_IDS is set and does not include it.
        """
        if self._admins and principal.key_id not in self._admins:
            raise AdminKeyRequired("This API key is not permitted to do this; see ADMIN_KEY_IDS.")

    def is_admin(self, principal: Principal) -> bool:
        """Whether ADMIN_KEY_IDS includes *principal*."""
        return self.is_admin_id(principal.key_id)

    def is_admin_id(self, key_id: str) -> bool:
        """Whether ADMIN_KEY_IDS includes the key with this id."""
        return key_id in self._admins

    def next_expiry(self, wall: float) -> float | None:
        """Seconds until the next key expires; None if none will."""
        ahead = [key.expires_at - wall for key in self.ring.keys if key.expires_at is not None]
        return min((seconds for seconds in ahead if seconds > 0), default=None)

    def missing_admins(self) -> list[str]:
        """Ids in ADMIN_KEY_IDS that no key has."""
        return sorted(key_id for key_id in self._admins if self.ring.named(key_id) is None)
