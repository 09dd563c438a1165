"""Whose request it is, and whether its key may send it now.

``check_scope`` is called when a key is looked up, and not for each request: its result depends on
the head and the connection alone. ``authorise`` counts a request towards the rate of its key, and
``budgets.reserve``, when its body is whole, towards its budget; ``take_back`` undoes both for a
request that is refused later, without an engine having worked on it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llama_gguf.access.authenticator import Authenticator, Principal
from llama_gguf.access.networks import contain
from llama_gguf.errors import Limited, OutsideKeyScope, PayloadTooLarge
from llama_gguf.gateway import budgets
from llama_gguf.gateway.client import Client
from llama_gguf.scheduling.exchange import Exchange

if TYPE_CHECKING:
    from llama_gguf.gateway.services import Services


def authorise(services: Services, client: Client, exchange: Exchange, length: int) -> str:
    """Find out whose request it is, and count it.

    Args:
        services: of the gateway.
        client: that sent it.
        exchange: of the request.
        length: of its body; 0 if that is not known.

    Returns:
        The key's id.

    Raises:
        Unauthorized, KeyExpired: its key is missing, unknown or expired.
        OutsideKeyScope: its key may not be used for this route, or from this address.
        Limited: its key is over its rate, or its address has tried too many wrong keys.
        QuotaExceeded: its key has used its budget.
        LimitsUnavailable: its limits are not known.
        PayloadTooLarge, Draining: it is refused for every key. It is counted before, so that the
            refusal has the fields of the rate.
    """
    known = client.known
    principal = known.principal
    authenticator = services.authenticator
    if (
        principal is None
        or known.ring is not authenticator.ring
        or client.network in authenticator.failures.addresses
    ):
        principal = _authenticate(client, exchange, length)
    exchange.key_id = principal.key_id
    limiter = principal.limiter
    if limiter is not None:
        if exchange.request.route.needs_slot:
            remaining = limiter.hit(exchange.started_at)
            if remaining < 0:
                raise _over_rate(services, exchange, principal)
            exchange.is_counted = True
            exchange.rate_fields = principal.fields_after_hit(remaining)
        else:
            exchange.rate_fields = principal.fields_at(exchange.started_at)
    budget = principal.budget
    if budget is not None:
        if exchange.request.route.needs_slot:
            exchange.has_budget = True  # its header lines are made when it is reserved, or refused
            budgets.check(services, budget)
        else:
            exchange.rate_fields += budgets.token_fields(services, budget)
    if services.connections.is_draining:
        raise services.connections.draining()
    if length > services.max_body_size:
        raise too_large(services.max_body_size)
    return principal.key_id


def too_large(largest: int) -> PayloadTooLarge:
    return PayloadTooLarge(
        f"The request body is larger than {largest} bytes (MAX_REQUEST_BODY_SIZE).", close=True
    )


def _authenticate(client: Client, exchange: Exchange, length: int) -> Principal:
    request = exchange.request
    if request.route.needs_no_key:
        if request.is_chunked or length:  # memory for bodies is for keys
            raise PayloadTooLarge("A request to this path must not have a body.", close=True)
        return Authenticator.ANONYMOUS
    return client.authenticate(exchange)


def check_scope(principal: Principal, exchange: Exchange) -> None:
    """Check that the key may be used for the route, and from the address of its client.

    Raises:
        OutsideKeyScope: it may not; the message contains nothing about other keys.
    """
    attributes = principal.attributes
    scope = exchange.request.route.scope
    if attributes.routes and scope not in attributes.routes:
        reason = f"limited to some routes, and '{scope}' is not one of them."
    elif attributes.networks and not contain(attributes.networks, exchange.address):
        reason = f"limited to some networks, and {exchange.address} is in none of them."
    else:
        return
    exchange.rate_fields = principal.fields_at(exchange.started_at)
    raise OutsideKeyScope(f"This API key is {reason}")


def _over_rate(services: Services, exchange: Exchange, principal: Principal) -> Limited:
    """The refusal of a request over the rate of its key.

    Raises:
        LimitsUnavailable: the rate is not known, and SHARED_LIMITS_OUTAGE is closed.
    """
    now = exchange.started_at
    exchange.rate_fields = budgets.rate_fields(services, principal, now)
    services.metrics.rate_limited[exchange.key_id, "requests"] += 1
    limiter = principal.limiter
    assert limiter is not None
    if services.shared is not None:
        services.shared.check_closed()
    is_usual = limiter.limit == services.auth.max_requests_per_minute
    setting = "MAX_REQUESTS_PER_MINUTE" if is_usual else "the key's own limit"
    return Limited(
        f"Rate limit reached for this API key: {limiter.limit} per 60 seconds ({setting}).",
        retry_after=limiter.retry_after(now),
    )


def take_back(services: Services, exchange: Exchange) -> None:
    """A request that is refused costs its key nothing."""
    exchange.is_counted = False
    budgets.give_back(services, exchange)
    principal = services.authenticator.named(exchange.key_id)
    if principal is not None and principal.limiter is not None:
        principal.limiter.take_back(exchange.started_at)
        exchange.rate_fields = budgets.rate_fields(services, principal, services.clock.now())
