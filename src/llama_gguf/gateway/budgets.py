"""Whether a key's budget admits a request, and what is reserved of it.

``budget_sink.py`` replaces that by what the request has used, in the recorder's batches. A request
of a key with a budget settles these first, so that all ended ones count when it is decided.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from llama_gguf.access.token_budget import (
    NAMES,
    TOKENS_PER_MINUTE,
    Exceeded,
    TokenBudget,
    WindowState,
    choices_in,
    estimate,
)
from llama_gguf.errors import GatewayError, Limited, QuotaExceeded
from llama_gguf.http1 import local_response
from llama_gguf.telemetry.gauges import Budgets

if TYPE_CHECKING:
    from llama_gguf.access.authenticator import Principal
    from llama_gguf.gateway.services import Services
    from llama_gguf.scheduling.exchange import Exchange

_MANY_TEXTS: Final = frozenset(["embeddings", "rerank"])
"""Operations whose request may have several texts, each as long as the context."""


def check(services: Services, budget: TokenBudget) -> None:
    """Check that a request of the key with *budget* would be admitted now.

    Raises:
        Limited, QuotaExceeded: it would not.
        LimitsUnavailable: that is not known, and SHARED_LIMITS_OUTAGE is closed.
    """
    services.recorder.settle()
    now, wall = services.clock.limits_now(), services.clock.limits_wall()
    exceeded = budget.exceeded(now, wall)
    if exceeded is not None:
        if services.shared is not None:
            services.shared.check_closed()
        services.metrics.rate_limited[budget.key_id, NAMES[exceeded.window]] += 1
        raise _refusal(exceeded)


def reserve(services: Services, exchange: Exchange, body: bytes | bytearray) -> None:
    """Reserve what the request with this *body* is expected to use, if its key has a budget.

    Raises:
        Limited, QuotaExceeded: the budget was used up while the body arrived.
    """
    principal = services.authenticator.named(exchange.key_id)
    if principal is None or principal.budget is None:
        return
    budget = principal.budget
    check(services, budget)
    has_many_texts = exchange.request.route.operation in _MANY_TEXTS
    most = None if has_many_texts else services.fleet.status.request_tokens
    now, wall = services.clock.limits_now(), services.clock.limits_wall()
    choices = choices_in(body)
    reservation = budget.reserve(estimate(body, most, choices), now, wall)
    reservation.choices = choices
    exchange.reservation = reservation
    exchange.rate_fields += token_fields(services, budget)


def give_back(services: Services, exchange: Exchange) -> None:
    """Give back all that is reserved for a request that was not sent to an engine."""
    reservation, exchange.reservation = exchange.reservation, None
    if reservation is not None:
        services.authenticator.budgets.of(exchange.key_id).settle(
            reservation, 0, 0, now=services.clock.limits_now(), wall=services.clock.limits_wall()
        )


def rate_fields(services: Services, principal: Principal, now: float) -> bytes:
    """The header lines with the limits of a key, for a request that does not count."""
    fields = principal.fields_at(now)
    return fields if principal.budget is None else fields + token_fields(services, principal.budget)


def token_fields(services: Services, budget: TokenBudget) -> bytes:
    """The header lines with the shortest window of tokens in *budget*; none without one."""
    services.recorder.settle()
    state = budget.shortest_of_tokens(services.clock.limits_now(), services.clock.limits_wall())
    if state is None:
        return b""
    return local_response.token_fields(state.limit, int(state.remaining), state.resets_in)


def states_of(services: Services, key_id: str) -> list[WindowState]:
    """The windows in the budget of a key, as they are now; none without a budget."""
    services.recorder.settle()
    principal = services.authenticator.named(key_id)
    if principal is None or principal.budget is None:
        return []
    return principal.budget.states(services.clock.limits_now(), services.clock.limits_wall())


def view(services: Services, key_id: str) -> dict[str, dict[str, float]]:
    """The budget of a key, for programs: the windows by name."""
    return {
        state.name: {
            "limit": state.limit,
            "used": state.used,
            "remaining": state.remaining,
            "resets_in_seconds": round(state.resets_in, 1),
        }
        for state in states_of(services, key_id)
    }


def gauges(services: Services, key_ids: Iterable[str]) -> tuple[Budgets, Budgets]:
    """The budgets of these keys for the metrics: of tokens, and of engine-seconds."""
    tokens: dict[tuple[str, str], tuple[float, float, float]] = {}
    seconds: dict[tuple[str, str], tuple[float, float, float]] = {}
    for key_id in key_ids:
        for state in states_of(services, key_id):
            amount, _, window = state.name.rpartition("_per_")
            into = tokens if amount == "tokens" else seconds
            into[key_id, window] = (state.limit, state.used, state.remaining)
    return tokens, seconds


def _refusal(exceeded: Exceeded) -> GatewayError:
    amount, _, window = NAMES[exceeded.window].rpartition("_per_")
    what = f"{exceeded.limit} {amount.replace('_', '-')} per {window}"
    if exceeded.window == TOKENS_PER_MINUTE or exceeded.is_share:
        return Limited(f"Token limit reached for this API key: {what}.", retry_after=exceeded.wait)
    return QuotaExceeded(
        f"This API key has used its budget of {what} (UTC). It resets in "
        f"{_duration(exceeded.wait)}, at the end of the {window}.",
        retry_after=exceeded.wait,
    )


def _duration(seconds: float) -> str:
    """*seconds* in the two largest units, rounded up to a minute."""
    minutes = max(1, math.ceil(seconds / 60))
    days, hours = minutes // 1440, minutes // 60 % 24
    parts = [(days, "d"), (hours, "h"), (minutes % 60, "min")]
    return " ".join([f"{n} {unit}" for n, unit in parts if n][:2])
