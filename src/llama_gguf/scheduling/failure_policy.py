"""What follows when a request cannot be completed: one decision, its cases numbered.

1. The engine refused the connection, so it has nothing of the request, and it may come back: the
   request is queued again for the restarted engine. Only a request that uses a slot waits.
2. A kept connection turned out to be closed before any byte of the response had come, and the
   request is a GET or HEAD: it is sent once more on a new connection. RFC 9110 section 9.2.2 allows
   that for idempotent requests only, and section 9.2.1 makes these two safe.
3. No byte of a response has been sent to the client: it gets an error response.
4. The head has been sent: the response is broken off. Behind a whole event of a stream, an error
   event comes first; everywhere else its bytes would be taken for a part of the response.
"""

from __future__ import annotations

import enum

from llama_gguf.errors import GatewayError, UpstreamClosedKept, UpstreamRefused
from llama_gguf.scheduling.exchange import Exchange


class Action(enum.IntEnum):
    REQUEUE = 0
    RETRY = 1
    RESPOND = 2
    BREAK_OFF = 3


def decide(error: GatewayError, exchange: Exchange, *, may_come_back: bool) -> Action:
    """Decide what follows *error*.

    Args:
        error: what went wrong.
        exchange: the request, and how far its response has come.
        may_come_back: whether this request may wait for the engine.
    """
    if isinstance(error, UpstreamRefused) and may_come_back:
        return Action.REQUEUE  # 1
    if (
        isinstance(error, UpstreamClosedKept)
        and exchange.request.is_idempotent
        and not exchange.has_retried
    ):
        return Action.RETRY  # 2
    if exchange.may_reply:
        return Action.RESPOND  # 3
    return Action.BREAK_OFF  # 4
