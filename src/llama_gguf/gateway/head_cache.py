"""The head that a new connection most likely begins with: the last one whose sender became known.

Clients mostly come in crowds that send the same head: it is parsed, routed and looked up once
(docs/adr/0020-a-crowds-head-is-understood-once.md).
"""

from __future__ import annotations

from dataclasses import dataclass

from llama_gguf.access.authenticator import Principal
from llama_gguf.access.keys import KeyRing
from llama_gguf.http1.known_head import NO_MATCH, KnownHead
from llama_gguf.http1.request import Request


@dataclass(frozen=True, slots=True, repr=False)
class Known:
    """A head, what it means, and whose it is."""

    head: KnownHead
    request: Request
    principal: Principal
    ring: KeyRing
    """The keys among which *principal* was found."""


class HeadCache:
    """One head, for all connections. Kept for a tick at most, since it contains a key."""

    __slots__ = ("known",)

    def __init__(self) -> None:
        self.known: Known | None = None

    def remember(self, known: Known) -> None:
        self.known = known

    def match(self, head: bytes) -> tuple[int, int]:
        """As ``KnownHead.match_secret``; on a match, ``known`` is what *head* means."""
        return NO_MATCH if self.known is None else self.known.head.match_secret(head)

    def forget(self) -> None:
        self.known = None
