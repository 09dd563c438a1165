"""What follows when a request cannot be completed: one decision, its cases numbered.

The first case that applies:

1. REQUEUE: nothing of the request has been sent, or a replica has refused it with 429 or 503, and
   it may wait for an engine, or there is another one that is ready. It is queued again, as often as
   needed. Only requests that use a slot wait.
2. RETRY: a kept connection was closed before any byte of the response arrived, and the request is
   a GET or HEAD. It is sent once more, on a new connection. RFC 9110 section 9.2.2 allows that
   for idempotent requests only; these two are safe (section 9.2.1), and therefore idempotent.
3. REFUSE: an engine died while it worked on the request, and the next one has broken the connection
   with it too. It is not sent to a third one.
4. REPLAY: the connection was lost, nothing of the response's body has reached the client, and the
   request was sent again fewer than MAX_REPLAYS times. It is queued and sent again. RFC 9110
   section 9.2.2 allows that for requests that are known to have no side effects: those that use a
   slot.
5. RESPOND: nothing has been sent to the client. It gets an error response.
6. BREAK_OFF: the head has been sent, so the status is final. The response is cut, so that the
   client can detect that it is incomplete. In a stream, an error event is sent first, unless an
   event is incomplete: its bytes would become a part of that event.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

from llama_gguf.errors import UpstreamBusy, UpstreamClosedKept, UpstreamError, UpstreamLost
from llama_gguf.scheduling.exchange import Exchange


class Action(enum.IntEnum):
    REQUEUE = 0
    RETRY = 1
    REFUSE = 2
    REPLAY = 3
    RESPOND = 4
    BREAK_OFF = 5


class Failure(NamedTuple):
    """How the engine failed a request.

    Args:
        error: the reason.
        was_sent: whether the engine may have received anything of the request.
        has_begun: whether the client has received anything of the response's body; comments of a
            stream do not count.
        may_wait: whether the request may wait for an engine.
        has_other: whether another replica can take it now.
        deaths: engines that are known to have died while they worked on the request, before this
            failure.
    """

    error: UpstreamError
    was_sent: bool
    has_begun: bool
    may_wait: bool
    deaths: int
    has_other: bool = False


def decide(failure: Failure, exchange: Exchange, *, max_replays: int) -> Action:
    """Decide what follows *failure* of the request of *exchange*."""
    is_lost = isinstance(failure.error, UpstreamLost)
    may_run_again = failure.may_wait and exchange.request.route.needs_slot
    was_processed = failure.was_sent and not isinstance(failure.error, UpstreamBusy)
    if not was_processed and (may_run_again or failure.has_other):
        return Action.REQUEUE  # 1
    if (
        isinstance(failure.error, UpstreamClosedKept)
        and exchange.request.is_idempotent
        and not exchange.has_retried
    ):
        return Action.RETRY  # 2
    if not failure.has_begun:
        if failure.deaths and is_lost:
            return Action.REFUSE  # 3
        if is_lost and may_run_again and exchange.replays < max_replays:
            return Action.REPLAY  # 4
    if exchange.may_reply:
        return Action.RESPOND  # 5
    return Action.BREAK_OFF  # 6
