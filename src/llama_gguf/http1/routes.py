"""Routes by method and path: local, forwarded (with or without a slot), or rejected.

A path is matched after RFC 3986 normalisation, and forwarded as received. Where the two could
differ in meaning (an encoded slash, dot segments, empty segments), the path is ambiguous and the
request is rejected.
"""

from __future__ import annotations

import enum
import re
from typing import Final

from llama_gguf.errors import (
    BadRequest,
    GatewayError,
    MethodNotAllowed,
    NotFound,
    RouteNotExposed,
)
from llama_gguf.memo import BoundedMemo


class Kind(enum.IntEnum):
    PING = 0
    HEALTH = 1
    METRICS = 2
    RELOAD = 3
    PREFLIGHT = 4
    PROXIED = 5
    REFUSED = 6
    USAGE = 7
    DASHBOARD = 8
    DASHBOARD_DATA = 9
    DASHBOARD_LOG = 10
    DASHBOARD_KEYS = 11
    HOME = 12
    MODELS = 13
    OPENAPI = 14


class Dialect(enum.IntEnum):
    """How clients of a path read errors and silence."""

    OPENAI = 0  # chat and completions, and all that has no streams
    RESPONSES = 1
    ANTHROPIC = 2


class Route:
    """What is done with requests of one method and path. Immutable, since routes are stored."""

    __slots__ = (
        "dialect",
        "error",
        "kind",
        "label",
        "may_stream",
        "needs_no_key",
        "needs_slot",
        "operation",
        "scope",
    )

    def __init__(
        self,
        kind: Kind,
        label: str,
        *,
        needs_slot: bool = False,
        may_stream: bool = False,
        scope: str = "",
        operation: str = "",
        needs_no_key: bool = False,
        dialect: Dialect = Dialect.OPENAI,
        error: GatewayError | None = None,
    ) -> None:
        self.kind: Final = kind
        self.label: Final = label
        """For metrics: from a bounded set, which does not depend on what clients send."""
        self.needs_slot: Final = needs_slot
        self.may_stream: Final = may_stream
        """The response is an event stream if the body requests it."""
        self.scope: Final = scope
        """One of ``SCOPES``: keys may be limited to some of them. Empty where no key is needed."""
        self.operation: Final = operation
        """The kind of work that needs the slot, by OpenTelemetry's name if it has one."""
        self.needs_no_key: Final = needs_no_key
        self.dialect: Final = dialect
        self.error: Final = error
        """The reason if it is rejected. Never raised, since routes are stored: each raise would
        extend its traceback, whose frames refer to the rejected request, with its key."""


SCOPES: Final = (
    "chat",
    "completions",
    "responses",
    "messages",
    "embeddings",
    "rerank",
    "audio",
    "tokenize",
    "models",
    "usage",
    "metrics",
    "admin",
    "other",
)
"""Names for groups of paths, to which a key may be limited."""
_OTHER_SCOPE: Final = "other"
# By the first segment of a path, without /v1: what only counts the tokens of a request belongs to
# the same scope as that request.
_SCOPE_BY_SEGMENT: Final = {
    "chat": "chat",
    "completion": "completions",
    "completions": "completions",
    "infill": "completions",
    "responses": "responses",
    "messages": "messages",
    "embedding": "embeddings",
    "embeddings": "embeddings",
    "rerank": "rerank",
    "reranking": "rerank",
    "audio": "audio",
    "tokenize": "tokenize",
    "detokenize": "tokenize",
    "apply-template": "tokenize",
    "models": "models",
    "props": "models",
}
_LOCAL_SCOPES: Final = {
    Kind.METRICS: "metrics",
    Kind.RELOAD: "admin",
    Kind.USAGE: "usage",
    Kind.DASHBOARD_DATA: "usage",
    Kind.DASHBOARD_LOG: "admin",
    Kind.DASHBOARD_KEYS: "admin",
}

_LOCAL: Final = {
    b"/ping": (Kind.PING, "GET, HEAD"),
    b"/health": (Kind.HEALTH, "GET, HEAD"),
    b"/metrics": (Kind.METRICS, "GET, HEAD"),
    b"/prometheus/metrics": (Kind.METRICS, "GET, HEAD"),  # text for every client
    b"/openapi.json": (Kind.OPENAPI, "GET, HEAD"),
    b"/reload": (Kind.RELOAD, "POST"),
    b"/usage": (Kind.USAGE, "GET, HEAD"),
}
PAGE_FILES: Final = {
    "dashboard/style.css": b"text/css; charset=utf-8",
    "dashboard/icon.svg": b"image/svg+xml",
    **{
        f"dashboard/{name}.js": b"text/javascript; charset=utf-8"
        for name in (
            *("access", "charts", "chat", "elements", "engine", "formats", "keys", "main"),
            *("requests", "server"),
        )
    },
}
"""The dashboard's files and their types. Relative to ``/``, as the page names them."""
_DASHBOARD: Final = {
    b"/dashboard": (Kind.DASHBOARD, "GET, HEAD"),
    **{f"/{name}".encode(): (Kind.DASHBOARD, "GET, HEAD") for name in PAGE_FILES},
    b"/favicon.ico": (Kind.DASHBOARD, "GET, HEAD"),
    b"/dashboard/data": (Kind.DASHBOARD_DATA, "GET, HEAD"),
    b"/dashboard/log": (Kind.DASHBOARD_LOG, "GET, HEAD"),
    b"/dashboard/keys": (Kind.DASHBOARD_KEYS, "GET, HEAD, POST"),
}
# Paths of llama-server that generate or embed, and therefore need a slot; with their operation.
_SLOT: Final = {
    "/completion": "text_completion",
    "/completions": "text_completion",
    "/v1/completions": "text_completion",
    "/chat/completions": "chat",
    "/v1/chat/completions": "chat",
    "/responses": "chat",
    "/v1/responses": "chat",
    "/infill": "text_completion",
    "/embedding": "embeddings",
    "/embeddings": "embeddings",
    "/v1/embeddings": "embeddings",
    "/rerank": "rerank",
    "/reranking": "rerank",
    "/v1/rerank": "rerank",
    "/v1/reranking": "rerank",
    "/v1/messages": "chat",
    "/audio/transcriptions": "transcription",
    "/v1/audio/transcriptions": "transcription",
}
OPERATIONS: Final = frozenset([*_SLOT, "other"])
"""Labels of routes that generate or embed, not only query."""
_STREAM: Final = frozenset(
    [
        "/completion",
        "/completions",
        "/v1/completions",
        "/chat/completions",
        "/v1/chat/completions",
        "/responses",
        "/v1/responses",
        "/infill",
        "/v1/messages",
    ]
)
"""Those of them whose response is a stream on demand."""
# Related paths that only count or transform text.
_NO_SLOT: Final = frozenset(
    [
        "/tokenize",
        "/detokenize",
        "/apply-template",
        "/chat/completions/input_tokens",
        "/v1/chat/completions/input_tokens",
        "/responses/input_tokens",
        "/v1/responses/input_tokens",
        "/v1/messages/count_tokens",
        "/v1/chat/completions/control",
    ]
)
# Others that are forwarded: what newer builds have, and what is below a path.
_OTHER_EXPOSED: Final = frozenset(["/v1/systemone", "/v1/health"])
_EXPOSED_PREFIXES: Final = (
    "/audio/",
    "/v1/audio/",
    "/chat/completions/",
    "/v1/chat/completions/",
    "/responses/",
    "/v1/responses/",
)
_MODELS: Final = frozenset(["/v1/models", "/models"])
_MODEL_PREFIX: Final = "/v1/models/"
A_MODEL: Final = "/v1/models/{model}"
"""The template of the paths with this prefix, as OpenAPI writes it."""
_ESCAPED_MODEL: Final = (
    rb"/v1/models/(?:[A-Za-z0-9_~:@+-]|%[0-9A-Fa-f]{2})(?:[A-Za-z0-9._~:@+-]|%[0-9A-Fa-f]{2})*"
)
"""One segment: OpenAI's libraries escape the slash of ``owner/name``."""
# These act on more than the client's own request: not for ordinary keys.
_NEVER: Final = (
    r"(?s)/(?:v1/stream.*|(?:v1/)?models(?:/.*)?"
    r"|(?:slots|props|lora-adapters|tools|cors-proxy)(?:/.*)?)"
)
# llama-server's web UI, whose files it serves without a key: names of several versions.
_WEB_UI: Final = (
    r"/(?:|index\.html|loading\.html|bundle\.(?:js|css)|_app/[A-Za-z0-9._/-]{1,200}"
    r"|sw\.js|workbox-[0-9a-f]{1,40}\.js|build\.json|manifest\.webmanifest"
    r"|(?:favicon|apple|pwa|maskable)[a-z0-9-]{0,80}\.(?:ico|svg|png))"
)

_AMBIGUOUS: Final = re.compile(
    rb"//|/\.{1,2}(?:/|$)|%2f|%5c|%00|%2e|\\|#|[^\x21-\x7e]|%(?![0-9a-f]{2})", re.IGNORECASE
)
_ESCAPE: Final = re.compile(rb"%([0-9A-Fa-f]{2})")
_UNRESERVED: Final = frozenset(
    b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~"
)


def normalised(path: bytes) -> str:
    """*path* with unreserved characters unescaped (RFC 3986 section 6.2.2.2).

    Raises:
        BadRequest: it is ambiguous.
    """
    if not path.startswith(b"/") or _AMBIGUOUS.search(path):
        raise BadRequest(
            "The path is ambiguous; send it without escaped slashes or dots, dot "
            "segments, empty segments or control characters."
        )
    if b"%" in path:
        path = _ESCAPE.sub(_unescape, path)
    return path.decode("ascii")


def _unescape(match: re.Match[bytes]) -> bytes:
    value = int(match[1], 16)
    return bytes((value,)) if value in _UNRESERVED else match[0].upper()


class Router:
    """Decides routes. Each decision is stored, since few paths are in use.

    Args:
        expose_all: forward every path of llama-server, with a key.
        dashboard: serve the dashboard.
        web_ui: forward the files of llama-server's web UI, without a key.
    """

    def __init__(self, *, expose_all: bool, dashboard: bool = True, web_ui: bool = False) -> None:
        self.exposes_all = expose_all
        self._local_paths = _LOCAL | _DASHBOARD if dashboard else _LOCAL
        self._has_home = dashboard and not (web_ui or expose_all)
        """Else ``/`` and the icon are those of llama-server, or of none."""
        if not self._has_home:
            self._local_paths = {k: v for k, v in self._local_paths.items() if k != b"/favicon.ico"}
        self._has_web_ui = web_ui
        self._routes = BoundedMemo(self._decide_or_refuse, max_entries=512)
        """By method and path."""

    def route(self, method: bytes, path: bytes) -> Route:
        """Decide *method* on *path* (without the query)."""
        return self._routes[method, path]

    def known(self) -> list[tuple[str, str]]:
        """Method and path of every route that is in a table, and ``A_MODEL``.

        HEAD, which is like GET, is left out.
        """
        local = [
            (method, path.decode())
            for path, (_, allow) in self._local_paths.items()
            for method in allow.split(", ")
            if method != "HEAD"
        ]
        posts = [("POST", path) for path in (*_SLOT, *sorted(_NO_SLOT))]
        gets = [("GET", path) for path in ("/v1/models", A_MODEL, "/models", "/props")]
        return [*local, *posts, *gets]

    def _decide_or_refuse(self, method_and_path: tuple[bytes, bytes]) -> Route:
        method, path = method_and_path
        try:
            return self._decide(method.decode("ascii"), path)
        except GatewayError as error:
            return Route(Kind.REFUSED, "refused", error=error.with_traceback(None))

    def _decide(self, method: str, path: bytes) -> Route:
        if method in ("TRACE", "CONNECT"):
            raise MethodNotAllowed(
                f"{method} is not supported.", allow="GET, HEAD, POST, OPTIONS", close=True
            )
        if method == "OPTIONS":
            return Route(Kind.PREFLIGHT, "preflight")
        is_model = path.startswith(_MODEL_PREFIX.encode())
        if method in _READS and is_model and re.fullmatch(_ESCAPED_MODEL, path):
            return _MODELS_ROUTE  # local, so that an escaped slash is not ambiguous
        plain = normalised(path)
        if path == b"/" and self._has_home and method in ("GET", "HEAD"):
            error = NotFound(f"Unknown path: {method} /")
            return Route(Kind.HOME, "/", error=error)
        if path in self._local_paths:
            return _local(method, path, *self._local_paths[path])
        if path.decode() != plain and plain.encode() in self._local_paths:
            # /%70ing is /ping by RFC 3986, but the gateway's own paths have only one spelling.
            raise BadRequest("Send this path without percent-encoding.")
        return self._proxied(method, plain)

    def _proxied(self, method: str, path: str) -> Route:
        dialect = _dialect_of(path)
        scope = _scope_of(method, path)
        if method in _READS and (path in _MODELS or path.startswith(_MODEL_PREFIX)):
            return _MODELS_ROUTE
        if path in _SLOT and method == "POST":
            return Route(
                Kind.PROXIED,
                path,
                needs_slot=True,
                may_stream=path in _STREAM,
                scope=scope,
                operation=_SLOT[path],
                dialect=dialect,
            )
        if path in _SLOT or path in _NO_SLOT:
            return Route(Kind.PROXIED, path, scope=scope, dialect=dialect)
        if self._has_web_ui and method in _READS and re.fullmatch(_WEB_UI, path):
            return Route(Kind.PROXIED, "web_ui", needs_no_key=True)
        if self.exposes_all or _is_exposed(method, path):
            known = path if path == "/props" else "other"
            needs_slot = method == "POST" and path.startswith("/v1/")
            return Route(
                Kind.PROXIED,
                known,
                needs_slot=needs_slot,
                scope=scope,
                operation="other" if needs_slot else "",
                dialect=dialect,
            )
        if re.fullmatch(_NEVER, path):
            raise RouteNotExposed(f"{method} {path} is not exposed; see EXPOSED_ROUTES.")
        raise NotFound(f"Unknown path: {method} {path}")


_READS: Final = ("GET", "HEAD")
_MODELS_ROUTE: Final = Route(Kind.MODELS, "/v1/models", scope="models")


def _local(method: str, path: bytes, kind: Kind, allow: str) -> Route:
    if method not in allow.split(", "):
        raise MethodNotAllowed(
            f"{path.decode()} supports only {allow.replace(', ', ' and ')}.", allow=allow
        )
    return Route(kind, path.decode(), scope=_LOCAL_SCOPES.get(kind, ""))


def _dialect_of(path: str) -> Dialect:
    if path.startswith("/v1/messages"):
        return Dialect.ANTHROPIC
    return Dialect.RESPONSES if path in ("/responses", "/v1/responses") else Dialect.OPENAI


def _scope_of(method: str, path: str) -> str:
    segment = path.removeprefix("/v1/").removeprefix("/").partition("/")[0]
    scope = _SCOPE_BY_SEGMENT.get(segment, _OTHER_SCOPE)
    if scope == "models" and method not in ("GET", "HEAD"):
        return _OTHER_SCOPE  # it loads or changes a model
    return scope


def _is_exposed(method: str, path: str) -> bool:
    if path in _OTHER_EXPOSED or path.startswith(_EXPOSED_PREFIXES):
        return True
    return path == "/props" and method in _READS
