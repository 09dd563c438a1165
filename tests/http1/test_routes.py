from __future__ import annotations

import re
from urllib.parse import unquote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llama_gguf.errors import GatewayError, MethodNotAllowed
from llama_gguf.http1.routes import OPERATIONS, SCOPES, Dialect, Kind, Route, Router
from tests.support.memory import allocated_bytes

SLOT = "needs a slot"
NO_SLOT = "needs no slot"

# llama-server's own list of paths, and what is exposed of it.
EXPOSED = {
    ("POST", "/completion"): SLOT,
    ("POST", "/completions"): SLOT,
    ("POST", "/v1/completions"): SLOT,
    ("POST", "/chat/completions"): SLOT,
    ("POST", "/v1/chat/completions"): SLOT,
    ("POST", "/responses"): SLOT,
    ("POST", "/v1/responses"): SLOT,
    ("POST", "/v1/messages"): SLOT,
    ("POST", "/infill"): SLOT,
    ("POST", "/embedding"): SLOT,
    ("POST", "/embeddings"): SLOT,
    ("POST", "/v1/embeddings"): SLOT,
    ("POST", "/rerank"): SLOT,
    ("POST", "/reranking"): SLOT,
    ("POST", "/v1/rerank"): SLOT,
    ("POST", "/v1/reranking"): SLOT,
    ("POST", "/audio/transcriptions"): SLOT,
    ("POST", "/v1/audio/transcriptions"): SLOT,
    ("POST", "/v1/systemone"): SLOT,
    ("POST", "/tokenize"): NO_SLOT,
    ("POST", "/detokenize"): NO_SLOT,
    ("POST", "/apply-template"): NO_SLOT,
    ("POST", "/chat/completions/input_tokens"): NO_SLOT,
    ("POST", "/v1/chat/completions/input_tokens"): NO_SLOT,
    ("POST", "/responses/input_tokens"): NO_SLOT,
    ("POST", "/v1/responses/input_tokens"): NO_SLOT,
    ("POST", "/v1/messages/count_tokens"): NO_SLOT,
    ("POST", "/v1/chat/completions/control"): NO_SLOT,
    ("GET", "/props"): NO_SLOT,
    ("HEAD", "/props"): NO_SLOT,
    ("GET", "/v1/health"): NO_SLOT,
    ("GET", "/audio/voices"): NO_SLOT,
}
NOT_EXPOSED = (
    *(("GET", "/slots"), ("GET", "/slots/"), ("POST", "/slots/0"), ("POST", "/props")),
    *(("GET", "/lora-adapters"), ("POST", "/lora-adapters"), ("GET", "/tools"), ("POST", "/tools")),
    *(("GET", "/cors-proxy"), ("POST", "/cors-proxy"), ("GET", "/cors-proxy/x")),
    *(("POST", "/models"), ("DELETE", "/models"), ("POST", "/models/load")),
    *(("POST", "/models/unload"), ("GET", "/models/sse"), ("PUT", "/models")),
    *(("POST", "/v1/models"), ("DELETE", "/v1/models"), ("POST", "/v1/models/load")),
    *(("DELETE", "/v1/models/a"), ("GET", "/v1/stream"), ("DELETE", "/v1/stream")),
    *(("GET", "/v1/stream/"), ("GET", "/v1/stream/x"), ("POST", "/v1/streams/lookup")),
    ("GET", "/props/"),
)
UNKNOWN = (
    *(("POST", "/"), ("GET", "/index.html"), ("GET", "/v1"), ("GET", "/v2/models")),
    *(("GET", "/V1/models"), ("GET", "/Props"), ("POST", "/tokenize/"), ("HEAD", "/api/hello")),
    *(("GET", "/ping/"), ("GET", "/PING"), ("GET", "/health/x"), ("GET", "/pings")),
    *(("POST", "/v1/something/new"), ("GET", "/v1/something/new"), ("GET", "/v1/assistants")),
)


def ids(pairs: object) -> object:
    return "{} {}".format(*pairs) if isinstance(pairs, tuple) else pairs


def route(method: str, path: str | bytes, *, expose_all: bool = False) -> Route:
    raw = path.encode() if isinstance(path, str) else path
    return Router(expose_all=expose_all).route(method.encode(), raw)


def facts(found: Route) -> tuple[object, ...]:
    return (
        *(found.kind, found.label, found.scope, found.operation, found.dialect),
        *(found.needs_slot, found.may_stream, found.needs_no_key, found.error),
    )


def refusal(method: str, path: str | bytes, *, expose_all: bool = False) -> GatewayError:
    found = route(method, path, expose_all=expose_all)
    assert found.kind is Kind.REFUSED
    assert found.label == "refused"
    assert found.error is not None
    return found.error


@pytest.mark.parametrize("asked", [*EXPOSED, *NOT_EXPOSED], ids=ids)
def test_every_path_of_the_engine_has_a_scope(asked: tuple[str, str]) -> None:
    found = route(*asked, expose_all=True)

    assert found.kind is Kind.PROXIED
    assert found.scope in SCOPES


@pytest.mark.parametrize(
    ("method", "path", "scope"),
    [
        ("GET", "/v1/models/a", "models"),
        ("POST", "/models/load", "other"),
        ("POST", "/props", "other"),
        ("GET", "/v1", "other"),
        ("GET", "/v1x/chat", "other"),
        ("GET", "/v2/chat", "other"),
        ("GET", "/chats", "other"),
        ("GET", "/v1/v1/chat", "other"),
        ("POST", "/v1/%63hat/completions", "chat"),
        ("GET", "/", "other"),
        ("GET", "/slots", "other"),
    ],
)
def test_a_scope_has_only_the_paths_of_its_kind(method: str, path: str, scope: str) -> None:
    assert route(method, path, expose_all=True).scope == scope


@pytest.mark.parametrize(
    "asked",
    [("GET", "/slots"), ("TRACE", "/ping"), ("GET", "//"), ("POST", "/ping"), ("GET", "/%70ing")],
)
def test_a_remembered_refusal_holds_no_frame_of_the_request_that_it_was_made_for(
    asked: tuple[str, str],
) -> None:
    error = refusal(*asked)

    assert error.__traceback__ is None
    assert (error.__context__, error.__cause__) == (None, None)


# The engine's paths -------------------------------------------------------------------------------


@pytest.mark.parametrize(("asked", "slot"), EXPOSED.items(), ids=ids)
def test_a_path_for_inference_goes_to_the_engine_and_waits_only_if_it_must(
    asked: tuple[str, str], slot: str
) -> None:
    found = route(*asked)

    assert (found.kind, found.error) == (Kind.PROXIED, None)
    assert found.needs_slot == (slot == SLOT)


@pytest.mark.parametrize(
    "asked", [("GET", "/responses/resp_1"), ("GET", "/chat/completions/x")], ids=ids
)
def test_paths_below_an_exposed_path_are_exposed(asked: tuple[str, str]) -> None:
    assert route(*asked).kind is Kind.PROXIED


@pytest.mark.parametrize("asked", NOT_EXPOSED, ids=ids)
def test_any_other_path_is_refused(asked: tuple[str, str]) -> None:
    error = refusal(*asked)

    assert (error.status, error.code) == (403, "route_not_exposed")


@pytest.mark.parametrize("asked", UNKNOWN, ids=ids)
def test_a_path_that_llama_server_does_not_have_is_unknown(asked: tuple[str, str]) -> None:
    error = refusal(*asked)

    assert (error.status, error.code) == (404, "not_found")


@pytest.mark.parametrize("expose_all", [False, True], ids=["inference", "all"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    "path",
    ["/v1/models", "/models", "/v1/models/a.b", "/v1/models/owner/a", "/v1/models/owner%2Fa"],
)
def test_models_are_listed_by_the_gateway(method: str, path: str, *, expose_all: bool) -> None:
    found = route(method, path, expose_all=expose_all)

    assert (found.kind, found.label, found.scope) == (Kind.MODELS, "/v1/models", "models")


def test_paths_that_begin_like_the_engine_s_streams_are_rejected() -> None:
    assert refusal("GET", "/v1/stream_state").status == 403


@pytest.mark.parametrize("asked", [*NOT_EXPOSED, *UNKNOWN], ids=ids)
def test_with_all_exposed_it_goes_to_the_engine_too(asked: tuple[str, str]) -> None:
    assert route(*asked, expose_all=True).kind is Kind.PROXIED


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("expose_all", [False, True])
def test_nothing_that_only_reads_waits_for_a_slot(method: str, expose_all: bool) -> None:
    paths = [path for _, path in (*EXPOSED, *NOT_EXPOSED) if path not in UI_FILES]

    assert not any(route(method, path, expose_all=expose_all).needs_slot for path in paths)


@pytest.mark.parametrize(
    ("path", "dialect"),
    [
        ("/v1/messages", Dialect.ANTHROPIC),
        ("/v1/messages/count_tokens", Dialect.ANTHROPIC),
        ("/v1/chat/completions", Dialect.OPENAI),
        ("/v1/completions", Dialect.OPENAI),
        ("/v1/responses", Dialect.RESPONSES),
        ("/responses", Dialect.RESPONSES),
        ("/v1/responses/input_tokens", Dialect.OPENAI),
    ],
)
def test_the_dialect_of_a_path_is_that_of_its_clients(path: str, dialect: Dialect) -> None:
    assert route("POST", path).dialect is dialect


# Our own paths ------------------------------------------------------------------------------------


@pytest.mark.parametrize("expose_all", [False, True], ids=["inference", "all"])
@pytest.mark.parametrize(
    ("method", "path", "kind"),
    [
        ("GET", "/ping", Kind.PING),
        ("HEAD", "/ping", Kind.PING),
        ("GET", "/health", Kind.HEALTH),
        ("HEAD", "/health", Kind.HEALTH),
        ("GET", "/metrics", Kind.METRICS),
        ("POST", "/reload", Kind.RELOAD),
        ("GET", "/usage", Kind.USAGE),
        ("GET", "/dashboard", Kind.DASHBOARD),
        ("HEAD", "/dashboard/style.css", Kind.DASHBOARD),
        ("GET", "/dashboard/main.js", Kind.DASHBOARD),
        ("GET", "/dashboard/data", Kind.DASHBOARD_DATA),
        ("OPTIONS", "*", Kind.PREFLIGHT),
        ("OPTIONS", "/v1/chat/completions", Kind.PREFLIGHT),
        ("OPTIONS", "/slots", Kind.PREFLIGHT),
        ("OPTIONS", "/ping", Kind.PREFLIGHT),
    ],
)
def test_the_gateway_s_own_paths_never_reach_the_engine(
    method: str, path: str, kind: Kind, expose_all: bool
) -> None:
    found = route(method, path, expose_all=expose_all)

    assert (found.kind, found.needs_slot, found.error) == (kind, False, None)


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("POST", "/ping", "GET, HEAD"),
        ("DELETE", "/health", "GET, HEAD"),
        ("PUT", "/metrics", "GET, HEAD"),
        ("GET", "/reload", "POST"),
        ("HEAD", "/reload", "POST"),
        ("POST", "/usage", "GET, HEAD"),
        ("POST", "/dashboard/data", "GET, HEAD"),
    ],
)
def test_the_gateway_s_own_paths_reject_other_methods_and_name_the_valid_ones(
    method: str, path: str, allow: str
) -> None:
    error = refusal(method, path, expose_all=True)

    assert isinstance(error, MethodNotAllowed)
    assert (error.status, error.allow, error.close) == (405, allow, False)


@pytest.mark.parametrize("method", ["TRACE", "CONNECT"])
@pytest.mark.parametrize("path", ["/", "/ping", "/v1/models", "*"])
def test_trace_and_connect_are_never_served(method: str, path: str) -> None:
    error = refusal(method, path, expose_all=True)

    assert (error.status, error.close) == (405, True)


# Paths that could be read in two ways -------------------------------------------------------------

AMBIGUOUS = (
    *(b"", b"*", b"v1/models", b"//", b"//v1/models", b"/v1//models", b"/v1/models//"),
    *(b"/.", b"/..", b"/./ping", b"/v1/../slots", b"/v1/..", b"/v1/./models", b"/ping/."),
    *(b"/v1%2Fmodels", b"/v1%2fmodels", b"/v1/%2e%2e/slots", b"/v1/.%2E/slots", b"/%2e/ping"),
    *(b"/v1\\models", b"/v1%5cmodels", b"/v1/models%00", b"/v1/mod\x00els", b"/v1/models%"),
    *(b"/v1/models%4", b"/v1/models%zz", b"/v1/ models", b"/v1/models\t", b"/v1/models\r\n"),
    *(b"/v1/models\n", b"/v1/m\xc3\xb6dels", b"/v1/\x7f", b"/v1/%u0041", b"/v1/models%2"),
)


@pytest.mark.parametrize("path", AMBIGUOUS, ids=repr)
@pytest.mark.parametrize("expose_all", [False, True], ids=["inference", "all"])
def test_a_path_that_could_be_read_in_two_ways_is_a_bad_request(
    path: bytes, expose_all: bool
) -> None:
    error = refusal("GET", path, expose_all=expose_all)

    assert (error.status, error.code, error.close) == (400, "bad_request", True)


# A "#" passes llhttp, and llama-server (cpp-httplib) cuts the target there, so that
# `DELETE /v1/stream#x` is `DELETE /v1/stream`.
@pytest.mark.parametrize("path", [b"/v1/stream#x", b"/v1/models#", b"/ping#", b"/v1/#/../slots"])
def test_a_path_with_a_fragment_is_a_bad_request(path: bytes) -> None:
    assert refusal("GET", path, expose_all=True).status == 400


@pytest.mark.parametrize(
    "path", [b"/%70ing", b"/p%69ng", b"/%68ealth", b"/%6Detrics", b"/rel%6fad"]
)
@pytest.mark.parametrize("expose_all", [False, True], ids=["inference", "all"])
def test_no_public_path_is_reached_by_a_disguise(path: bytes, expose_all: bool) -> None:
    assert refusal("GET", path, expose_all=expose_all).status == 400


def test_an_escaped_letter_is_the_letter() -> None:
    assert facts(route("POST", "/v1/%63ompletions")) == facts(route("POST", "/v1/completions"))
    assert refusal("GET", "/sl%6Fts").status == 403


@given(
    method=st.sampled_from(["GET", "POST", "DELETE"]),
    base=st.sampled_from(["/v1/stream", "/v1/streams/lookup", "/slots", "/props", "/cors-proxy"]),
    disguise=st.lists(st.tuples(st.integers(0, 30), st.sampled_from("%x%X%%#?;/.\\"))),
)
@example(method="DELETE", base="/v1/stream", disguise=[(10, "#")])
def test_no_disguise_opens_a_path_that_is_not_exposed(
    method: str, base: str, disguise: list[tuple[int, str]]
) -> None:
    path = base
    for at, sign in disguise:
        if sign == "%":
            place = at % len(path)
            path = f"{path[:place]}%{ord(path[place]):02x}{path[place + 1 :]}"
        else:
            path = path[:at] + sign + path[at:]
    path = path.partition("?")[0]

    found = route(method, path)

    if found.kind is Kind.PROXIED:
        assert is_harmless(method, unquote(path.partition("#")[0]))


def is_harmless(method: str, path: str) -> bool:
    """Whether *method* may reach *path* as cpp-httplib reads it."""
    if path == "/props":
        return method == "GET"
    return not re.match(r"/slots|/v1/streams?(/|$)|/cors-proxy|/props", path)


# What it is for -----------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", EXPOSED)
def test_every_route_that_needs_a_slot_has_an_operation(asked: tuple[str, str]) -> None:
    found = route(*asked)

    assert bool(found.operation) == found.needs_slot
    assert not found.operation or found.label in OPERATIONS


@pytest.mark.parametrize(
    ("path", "operation"),
    [
        ("/v1/chat/completions", "chat"),
        ("/v1/messages", "chat"),
        ("/v1/responses", "chat"),
        ("/v1/completions", "text_completion"),
        ("/completion", "text_completion"),
        ("/v1/embeddings", "embeddings"),
        ("/rerank", "rerank"),
        ("/v1/audio/transcriptions", "transcription"),
        ("/v1/systemone", "other"),
    ],
)
def test_operations_are_named_as_opentelemetry_has_them(path: str, operation: str) -> None:
    assert route("POST", path).operation == operation


# llama-server's web UI ----------------------------------------------------------------------------

# The files of llama-server b1-571d0d5 and of its predecessors.
UI_FILES = (
    *("/", "/index.html", "/_app/immutable/bundle.BFCUc2kz.js", "/_app/version.json", "/sw.js"),
    *("/_app/immutable/assets/bundle.DiMHpwzy.css", "/workbox-b3c04f83.js", "/favicon.ico"),
    *("/favicon-dark.svg", "/apple-touch-icon-180x180.png", "/manifest.webmanifest"),
    *("/apple-splash-portrait-dark-1290x2796.png", "/pwa-64x64.png", "/bundle.js", "/bundle.css"),
    *("/maskable-icon-512x512.png", "/loading.html"),
)


def with_ui(method: str, path: str) -> Route:
    return Router(expose_all=False, web_ui=True).route(method.encode(), path.encode())


@pytest.mark.parametrize("path", UI_FILES)
def test_the_web_ui_s_files_pass_without_a_key_where_it_is_wanted(path: str) -> None:
    found = with_ui("GET", path)

    assert (found.kind, found.label) == (Kind.PROXIED, "web_ui")
    assert found.needs_no_key
    assert not found.needs_slot
    assert facts(with_ui("HEAD", path)) == facts(found)
    assert with_ui("POST", path).kind is Kind.REFUSED
    assert route("GET", path).kind is not Kind.PROXIED


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "PUT"])
def test_nothing_else_passes_without_a_key_because_of_it(method: str) -> None:
    paths = [path for _, path in (*EXPOSED, *NOT_EXPOSED) if path not in UI_FILES]
    others = ["/x", "/_app", "/_app/../slots", "/favicon.ico/x", "/sw.js/", "/apple/props", "//"]
    for path in (*paths, *others):
        assert not with_ui(method, path).needs_no_key, path
        plain = route(method, path)
        assert with_ui(method, path).kind is plain.kind


@given(name=st.text("abcdefghijklmnopqrstuvwxyz0123456789._-/%", max_size=30))
def test_a_file_of_the_web_ui_is_never_a_path_of_the_api(name: str) -> None:
    found = with_ui("GET", f"/{name}")

    if found.needs_no_key:
        assert not re.match(r"v1|props|models|slots|tools|metrics|health|cors-proxy|lora", name)


def test_the_dashboard_s_paths_can_be_switched_off() -> None:
    router = Router(expose_all=False, dashboard=False)

    for path in (b"/dashboard", b"/dashboard/main.js", b"/dashboard/style.css", b"/dashboard/data"):
        assert router.route(b"GET", path).kind is Kind.REFUSED
    for path in (b"/", b"/favicon.ico"):
        assert router.route(b"GET", path).kind is Kind.REFUSED
    assert router.route(b"GET", b"/usage").kind is Kind.USAGE


def test_the_root_is_of_llama_server_where_its_pages_are_exposed() -> None:
    for router in (Router(expose_all=True), Router(expose_all=False, web_ui=True)):
        for path in (b"/", b"/favicon.ico"):
            assert router.route(b"GET", path).kind is Kind.PROXIED


# Bounds -------------------------------------------------------------------------------------------


def test_the_number_of_labels_does_not_depend_on_clients() -> None:
    known = {path for _, path in EXPOSED} | {
        "/ping",
        "/health",
        "/metrics",
        "/reload",
        "/v1/models",
    }
    router = Router(expose_all=True)

    labels = {
        router.route(method, b"/%b/%d" % (prefix, n)).label
        for method in (b"GET", b"POST", b"OPTIONS", b"BREW")
        for prefix in (b"v1", b"audio", b"x", b"v1/models", b".", b"%70ing")
        for n in range(20)
    } | {route(*asked).label for asked in EXPOSED}

    assert labels <= known | {"other", "refused", "preflight"}
    assert "/v1/something/new" not in labels


def test_stored_routes_are_bounded_and_do_not_change() -> None:
    router = Router(expose_all=False)

    def exposed() -> list[tuple[object, ...]]:
        return [facts(router.route(method.encode(), path.encode())) for method, path in EXPOSED]

    first = exposed()

    def route_many() -> None:
        for n in range(20_000):
            router.route(b"GET", b"/v1/%0200d" % n)

    assert allocated_bytes(route_many) < 1_000_000
    assert exposed() == first


def test_a_decision_is_remembered_for_its_method_and_its_path() -> None:
    router = Router(expose_all=False)

    assert router.route(b"GET", b"/v1/new") is router.route(b"GET", b"/v1/new")
    assert router.route(b"GET", b"/props").kind is Kind.PROXIED
    assert router.route(b"POST", b"/props").kind is Kind.REFUSED
    assert router.route(b"GET", b"/props").kind is Kind.PROXIED
