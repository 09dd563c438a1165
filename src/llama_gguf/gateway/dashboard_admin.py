"""What the dashboard offers to administrators: the engine's log, and changes of keys.

Only keys in ADMIN_KEY_IDS are administrators: an empty list means that there are none. A request
has to show its key in a header field, which no browser adds by itself, so that another site cannot
make one with a visitor's rights. The parameters of a change are in the query and contain no secret;
that of a new key is in the response, and nowhere else: the file gets its digest.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl

from llama_gguf.access import attributes, key_admin
from llama_gguf.access.attributes import NO_ATTRIBUTES, Attributes
from llama_gguf.access.keys import Key
from llama_gguf.access.moments import format_moment, parse_duration
from llama_gguf.config.parsers import whole
from llama_gguf.errors import AdminKeyRequired, InvalidKeyChange, UserError
from llama_gguf.events import EventLog
from llama_gguf.gateway import engine_log
from llama_gguf.http1 import local_response
from llama_gguf.http1.local_response import LocalResponse
from llama_gguf.http1.routes import SCOPES, Kind
from llama_gguf.net.threads import run_detached
from llama_gguf.wall_clock import wall_now

if TYPE_CHECKING:
    from llama_gguf.access.authenticator import Principal
    from llama_gguf.gateway.services import Services
    from llama_gguf.http1.request import Request

_log: Final = EventLog(__name__)

MAX_KEYS_SHOWN: Final = 500
_NOT_STORED: Final = (b"Cache-Control: no-store\r\n",)
_RATE_LIMIT: Final = "rate_limit"
_EXPIRES: Final = "expires"
_requests_per_minute: Final = whole(1, 1_000_000)


def check(services: Services, principal: Principal) -> None:
    """Check that *principal* is an administrator. Without authentication, there is none.

    Raises:
        AdminKeyRequired: it is not in ADMIN_KEY_IDS.
    """
    if not (services.auth.auth_enabled and services.authenticator.is_admin(principal)):
        raise AdminKeyRequired("This API key is not permitted to do this; see ADMIN_KEY_IDS.")


async def respond(
    kind: Kind, request: Request, services: Services, principal: Principal
) -> LocalResponse:
    """The response to a request of an administrator.

    Raises:
        GatewayError: the change is invalid, or the file cannot be written.
    """
    if kind is Kind.DASHBOARD_LOG:
        logs = services.logs
        return _json(await run_detached(lambda: engine_log.tail(logs)))
    if request.head.method == b"POST":
        return _json(await _change(query_of(request), services, principal))
    return _json(keys_view(services))


def query_of(request: Request) -> dict[str, str]:
    """The parameters in the query of *request*; of repeated ones, the last."""
    text = request.head.target.partition(b"?")[2].decode("ascii", "replace")
    return dict(parse_qsl(text, keep_blank_values=True, max_num_fields=32))


def keys_view(services: Services) -> dict[str, object]:
    """The keys that are loaded, without secrets."""
    authenticator = services.authenticator
    ring = authenticator.ring
    current = [key for key in ring.keys[: 2 * MAX_KEYS_SHOWN] if not key.is_retired]
    return {
        "keys": [
            {
                "key_id": key.key_id,
                "is_admin": authenticator.is_admin_id(key.key_id),
                "rate_limit": key.rate_limit,
                "expires": None if key.expires_at is None else format_moment(key.expires_at),
                "attributes": attributes.as_text(key.attributes),
            }
            for key in current[:MAX_KEYS_SHOWN]
        ],
        "total": len(ring),
        "scopes": list(SCOPES),
    }


async def _change(
    wanted: Mapping[str, str], services: Services, principal: Principal
) -> dict[str, object]:
    action, name = wanted.get("action", ""), wanted.get("name", "")
    if action not in _ACTIONS:
        raise InvalidKeyChange(f"action must be one of {', '.join(_ACTIONS)}.")
    if action == "revoke" and name == principal.key_id:
        raise InvalidKeyChange(
            "A key cannot revoke itself here; use `llama-gguf keys remove` on the server."
        )
    path = services.auth.auth_keys_file
    do = _ACTIONS[action](path, name, _limits_of(wanted))
    try:
        done = await run_detached(do)
    except UserError as error:
        raise InvalidKeyChange(str(error)) from None
    await services.key_store.reload()
    _log.info(
        "key_changed",
        "Key {key_id}: {action} on the dashboard by {admin}",
        key_id=name,
        action=action,
        admin=principal.key_id,
    )
    return {"status": "ok", "key_id": name, **done}


Work = Callable[[], dict[str, object]]


def _create(path: str, name: str, limits: Mapping[str, Any]) -> Work:
    given = dict(limits)
    rate_limit, expires_at = given.pop(_RATE_LIMIT, None), given.pop(_EXPIRES, None)

    def work() -> dict[str, object]:
        new = key_admin.create(
            path,
            name=name,
            rate_limit=rate_limit,
            expires_at=expires_at,
            hashed=True,
            attributes=Attributes(**given),
        )
        return {"secret": new.secret}

    return work


def _set(path: str, name: str, limits: Mapping[str, Any]) -> Work:
    given = dict(limits)
    own = {
        field: given.pop(name)
        for name, field in ((_RATE_LIMIT, "rate_limit"), (_EXPIRES, "expires_at"))
        if name in given
    }

    def changed(old: Key) -> Key:
        return old._replace(attributes=old.attributes._replace(**given), **own)

    def work() -> dict[str, object]:
        key_admin.change(path, name, changed)
        return {}

    return work


def _revoke(path: str, name: str, _limits: Mapping[str, Any]) -> Work:
    return lambda: {"ended": key_admin.remove(path, name)}


_ACTIONS: Final[Mapping[str, Callable[[str, str, Mapping[str, Any]], Work]]] = {
    "create": _create,
    "set": _set,
    "revoke": _revoke,
}


def _limits_of(wanted: Mapping[str, str]) -> dict[str, Any]:
    """The limits that are given, parsed; an empty text is the default, which is no limit.

    Raises:
        InvalidKeyChange: a value is invalid.
    """
    found: dict[str, Any] = {}
    for name, text in wanted.items():
        if name in ("action", "name"):
            continue
        try:
            if name == _RATE_LIMIT:
                found[name] = _requests_per_minute(text) if text else None
            elif name == _EXPIRES:
                found[name] = parse_duration(text, wall_now()) if text else None
            elif name in attributes.NAMES:
                field = attributes.field_of(name)
                default = getattr(NO_ATTRIBUTES, field)
                found[field] = attributes.parse_value(name, text) if text else default
            else:
                raise InvalidKeyChange(f"There is no limit {name[:64]!a}.")
        except ValueError as form:
            raise InvalidKeyChange(f"{name} must be: {form}.") from None
    return found


def _json(content: object) -> LocalResponse:
    return LocalResponse(200, json.dumps(content).encode(), local_response.JSON, _NOT_STORED)
