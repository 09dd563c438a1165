"""The head that a new connection most likely begins with: the last authenticated head.

Clients mostly come in crowds that send the same head: it is parsed, routed and looked up once
(docs/adr/0020-a-crowds-head-is-understood-once.md).
"""

from __future__ import annotations

from llama_gguf.access.authenticator import Principal
from llama_gguf.access.keys import KeyRing
from llama_gguf.http1.known_head import KnownHead
from llama_gguf.http1.request import Request


class Known:
    """A head, what it means, and whose it is. Never changed, since connections share it.

    Args:
        head: as received.
        request: what it means.
        principal: whose it is; None until that is known, or where it has to be found each time.
        ring: the keys among which *principal* was found.
    """

    __slots__ = ("head", "principal", "request", "ring")

    def __init__(
        self, head: KnownHead, request: Request, principal: Principal | None, ring: KeyRing
    ) -> None:
        self.head = head
        self.request = request
        self.principal = principal
        self.ring = ring


class HeadCache:
    """One head, for all connections. Kept for a tick at most, since it contains a key.

    Args:
        nothing: stands for a connection without a head that can be used again.
    """

    __slots__ = ("_known", "nothing")

    def __init__(self, nothing: Known) -> None:
        self.nothing = nothing
        self._known: Known | None = None

    def remember(self, known: Known) -> None:
        self._known = known

    def match(self, head: bytes) -> tuple[Known | None, int]:
        """What *head* means, and its Content-Length; None if it is another head."""
        known = self._known
        if known is None:
            return None, 0
        end, length = known.head.match_secret(head)
        return (known if end >= 0 else None), length

    def forget(self) -> None:
        self._known = None
