"""A request to one of the gateway's own paths.

It is responded to at once, except for what waits for a file: a reload, and what administrators do
on the dashboard.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Final

from llama_gguf.access.authenticator import Authenticator
from llama_gguf.errors import GatewayError
from llama_gguf.gateway import dashboard, endpoints, large_responses
from llama_gguf.gateway.budgets import rate_fields
from llama_gguf.gateway.client import Client
from llama_gguf.http1.local_response import LocalResponse
from llama_gguf.http1.routes import Kind
from llama_gguf.net.connector import Cancellable
from llama_gguf.scheduling.exchange import Event, Exchange

if TYPE_CHECKING:
    from llama_gguf.gateway.services import Services

_Work = Callable[[], Coroutine[object, object, LocalResponse]]

_FOR_ADMINS: Final = frozenset([Kind.DASHBOARD_LOG, Kind.DASHBOARD_KEYS])


def serve(services: Services, client: Client, exchange: Exchange) -> Cancellable | None:
    """Respond to *exchange*.

    Returns:
        What is still under way.

    Raises:
        GatewayError: the request is refused.
    """
    request = exchange.request
    route = request.route
    if route.kind is Kind.HOME and dashboard.is_wanted(request):
        client.respond(exchange, dashboard.redirection())
        return None
    if route.error is not None:
        client.respond_error(exchange, route.error)
        return None
    principal = Authenticator.ANONYMOUS
    if endpoints.needs_key(route.kind, services.routes):
        principal = client.authenticate(exchange)
        exchange.rate_fields = rate_fields(services, principal, exchange.started_at)
    if route.kind is Kind.RELOAD:
        services.authenticator.check_admin(principal)
        work = partial(_reload, services)
        return _respond_later(services, client, exchange, work, name="POST /reload")
    if route.kind in _FOR_ADMINS:
        # Imported at the first request: the gateway starts without what edits keys.
        from llama_gguf.gateway import dashboard_admin  # noqa: PLC0415

        dashboard_admin.check(services, principal)
        work = partial(dashboard_admin.respond, route.kind, request, services, principal)
        return _respond_later(services, client, exchange, work, name="dashboard")
    large = large_responses.of(route.kind, request, services, principal)
    if large is not None:
        return _respond_later(services, client, exchange, large, name="many keys")
    client.respond(exchange, endpoints.respond(route.kind, request, services, principal))
    return None


def _respond_later(
    services: Services, client: Client, exchange: Exchange, work: _Work, *, name: str
) -> Cancellable:
    client.settle_body(exchange.request)
    exchange.on(Event.FORWARD)
    return services.loop.create_task(_respond(client, exchange, work), name=name)


async def _respond(client: Client, exchange: Exchange, work: _Work) -> None:
    """Respond with the result of *work*, which begins here: the task may be cancelled before."""
    try:
        try:
            response = await work()
        except GatewayError as error:
            client.respond_error(exchange, error)
        else:
            client.respond(exchange, response)
    except Exception:  # a bug in the gateway, or no thread could be started
        client.on_bug()


async def _reload(services: Services) -> LocalResponse:
    return endpoints.reloaded(await services.key_store.reload())
