"""What follows when a request cannot be completed: one decision, its cases numbered.

The first case that applies:

1. REQUEUE: the engine refused the connection, so it has received nothing of the request, and it
   is expected to be restarted. The request is queued again. Only requests that use a slot wait.
2. RETRY: a kept connection was closed before any byte of the response arrived, and the request is
   a GET or HEAD. It is sent once more, on a new connection. RFC 9110 section 9.2.2 allows that
   for idempotent requests only; these two are safe (section 9.2.1), and therefore idempotent.
3. RESPOND: nothing has been sent to the client. It gets an error response.
4. BREAK_OFF: the head has been sent, so the status is final. The response is cut, so that the
   client can detect that it is incomplete. If a stream was cut after a complete event, an error
   event is sent first; elsewhere its bytes would be taken for part of the response.
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
        error: why the request cannot be completed.
        exchange: the request, and the state of its response.
        may_come_back: whether the engine may be restarted, and this request may wait for it.
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
