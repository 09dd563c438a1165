"""Every setting, declared once: type, default, parser and meaning, in the group that needs it.

A setting is an environment variable (its name in capitals), a key of the configuration file (its
name) and a flag (its name with dashes, or an alias). A
group is what one part of the program reads; the part gets its group and no more. The section of
a setting is its heading on the pages, which list the settings of a section in this order.

Units: durations are float seconds, sizes are int bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar, Final, TypeVar, cast

from llama_gguf.config.parsers import (
    Parser,
    api_key,
    boolean,
    choice,
    host_name,
    http_url,
    key_ids,
    names,
    networks,
    origins,
    path,
    peers,
    seconds,
    store_url,
    text,
    whole,
    whole_or,
)
from llama_gguf.values import Value

T = TypeVar("T")

SECTIONS: Final = (
    "model",
    "engine",
    "network",
    "access",
    "queue",
    "timeouts",
    "sizes",
    "operation",
)
"""In the order of the pages."""

DEFAULT_KEEPALIVE: Final = 15.0
DEFAULT_SLOTS: Final = 4
"""If the engine does not report its number: llama-server's default (-np auto)."""

MAX_PARALLEL: Final = 256
"""LLAMA_MAX_SEQ of llama.cpp: with more slots, llama-server crashes when it starts."""

MAX_REPLICAS: Final = 64

_GIB: Final = 1 << 30


def _setting(
    section: str,
    default: T,
    parse: Parser,
    meaning: str,
    *,
    shown_default: str | None = None,
    secret: bool = False,
    aliases: tuple[str, ...] = (),
) -> T:
    """Declare a setting, in a ``Group``.

    Args:
        section: one of ``SECTIONS``.
        default: its value unless it is set.
        parse: converts the text of its variable or flag.
        meaning: for people, in one sentence.
        shown_default: shown on the pages instead of the default.
        secret: never shown, and never set by a flag.
        aliases: further flags, such as those of llama-server.
    """
    about = {
        "default": default,
        "section": section,
        "parse": parse,
        "text": meaning,
        "shown_default": shown_default,
        "secret": secret,
        "aliases": aliases,
    }
    return cast("T", about)  # ``Group`` replaces it with the default


class Group(Value):
    """What one part of the program reads: fields that ``_setting`` declares."""

    declared: ClassVar[Mapping[str, Mapping[str, Any]]]
    """By the setting's name."""

    def __init_subclass__(cls) -> None:
        cls.declared = {name: vars(cls)[name] for name in cls.__annotations__}
        for name, about in cls.declared.items():
            setattr(cls, name, about["default"])
        super().__init_subclass__(
            hidden=[n for n, about in cls.declared.items() if about["secret"]]
        )


_model, _engine, _network, _access, _queue, _timeouts, _sizes, _operation = (
    partial(_setting, section) for section in SECTIONS
)
_port_number = whole(1, 65535)


class ModelSettings(Group):
    """Which model is served, and the directories of models and of all data."""

    model_name: str = _model(
        "",
        text,
        "model to serve: a file in MODELS_DIR, or a name that `pull` accepts",
        aliases=("-m", "--model"),
    )
    model_path: str = _model("", path, "full path of the model file; overrides MODEL_NAME")
    data_dir: str = _model(
        "",
        path,
        "directory of models, logs and keys",
        shown_default="the first of /runpod-volume, /workspace, /data that exists, else /data if "
        "it can be created, else ~/.local/share/llama-gguf",
    )
    models_dir: str = _model("", path, "directory of model files", shown_default="$DATA_DIR/models")


class EngineSettings(Group):
    """The llama-server binary, and its command line."""

    llama_server: str = _engine(
        "",
        path,
        "path of the llama-server binary",
        shown_default="/app/llama-server, else from PATH, else from an installed wheel",
    )
    ngl: int | None = _engine(
        99,
        whole_or(0, 9999, auto=None, all=9999),
        "model layers on the GPU; 99 or all = all; auto = as many as fit, by llama-server's --fit",
        aliases=("-ngl", "--n-gpu-layers", "--gpu-layers"),
    )
    ctx: int | None = _engine(
        16384,
        whole_or(0, 1 << 30, auto=None),
        "context size in tokens, of all slots together; 0 = the model's; auto = the model's, or "
        "what fits into memory, by llama-server's --fit",
        aliases=("-c", "--ctx-size"),
    )
    threads: int = _engine(
        0,
        whole(0, 4096),
        "CPU threads; 0 = one per core, at most as many as can run at once",
        aliases=("-t",),
    )
    parallel: int = _engine(
        0,
        whole(0, MAX_PARALLEL),
        "slots: requests processed at once, which divide CTX; 0 = one per 4096 tokens, up to 4",
        aliases=("-np",),
    )
    replicas: int | str = _engine(
        1,
        whole_or(1, MAX_REPLICAS, auto="auto"),
        "llama-server processes, which divide GPUs and THREADS and listen on PORT_BACKEND and the "
        "ports after it; auto = one per GPU if the model fits on each, else 1",
    )
    extra_args: str = _engine(
        "", text, "additional flags for llama-server, split as in a shell; they take precedence"
    )


class SupervisionSettings(Group):
    """When the engine is stopped or restarted."""

    startup_stall_timeout: float = _engine(
        300.0,
        seconds(1),
        "seconds without progress after which an engine that loads its model is terminated",
    )
    max_restarts: int = _engine(
        5,
        whole(0, 1000),
        "deaths in a row, without a minute of serving in between, before `serve` gives up",
    )
    watchdog_health: float = _engine(
        30.0,
        seconds(0),
        "seconds without a response to the health check after which a ready engine is "
        "restarted; 0 = never",
    )
    watchdog_stall: float = _engine(
        0.0,
        seconds(0),
        "seconds in which no running request receives any data, after which the engine is "
        "restarted; 0 = never",
    )
    idle_stop: float = _engine(
        0.0,
        seconds(0),
        "seconds without a request after which the engine is stopped, which frees its GPU "
        "memory; the next request starts it; 0 = never",
    )


class PromptCacheSettings(Group):
    """Whether prompts that the engine has computed are kept on disk."""

    prompt_cache: bool = _engine(
        False,
        boolean,
        "whether the prompts that llama-server has in its slots are saved before it is stopped, "
        "and restored when it starts, so that known conversations continue at once",
    )
    prompt_cache_size: int = _engine(
        8 * _GIB, whole(0, 1 << 50), "maximum bytes of all saved prompts together, on disk"
    )
    prompt_cache_dir: str = _engine(
        "",
        path,
        "directory of saved prompts; they contain what clients have sent",
        shown_default="$DATA_DIR/cache",
    )


class ListenSettings(Group):
    """Where gateway and health server listen."""

    host: str = _network(
        "0.0.0.0",  # noqa: S104  # a server is for others to reach; keys guard it
        host_name,
        "listening address of gateway and health server",
    )
    port: int = _network(8000, _port_number, "port of the gateway", aliases=("-p",))
    port_health: int = _network(8001, _port_number, "port of the health server")
    health_mode: str = _operation(
        "live",
        choice("live", "ready"),
        "status of the health server: live = always 200; "
        "ready = 204 while loading, 200 ready, 503 failed or draining",
    )


class UpstreamSettings(Group):
    """The address of the engine, as a peer, and its API key."""

    port_backend: int = _network(8080, _port_number, "port of llama-server")
    backend_host: str = _network("127.0.0.1", host_name, "address of llama-server")
    backend_socket: str = _network(
        "", path, "unix socket of llama-server, instead of a TCP port", shown_default=""
    )
    backend_api_key: str = _network(
        "",
        api_key,
        "API key that the gateway sends to llama-server",
        shown_default="generated by `serve` at each start",
        secret=True,
    )
    peers: tuple[str, ...] = _network(
        (),
        peers,
        "engines on other machines or ports, separated by commas: http://HOST:PORT, "
        "https://HOST:PORT, unix:/PATH, dns+http://NAME:PORT for every address of a name, or "
        "ray://HOST:PORT for those of `llama-gguf ray up` (ray:// = on this machine's cluster); "
        "each may be a llama-server or another llama-gguf, with the key BACKEND_API_KEY",
    )
    peers_ca_file: str = _network(
        "",
        text,
        "certificates (PEM) of the issuers of https peers",
        shown_default="those that the system trusts",
    )

    @property
    def has_https_peers(self) -> bool:
        """Whether some of ``peers`` are connected to by TLS."""
        return any("https://" in peer for peer in self.peers)


class TlsSettings(Group):
    """The certificate of the gateway."""

    tls_cert_file: str = _network(
        "", path, "certificate chain (PEM); with TLS_KEY_FILE, PORT serves HTTPS"
    )
    tls_key_file: str = _network("", path, "private key of TLS_CERT_FILE (PEM, not encrypted)")

    @property
    def scheme(self) -> str:
        """The scheme of the gateway's URL."""
        return "https" if self.tls_cert_file else "http"


class AuthSettings(Group):
    """API keys, and what each may do."""

    auth_enabled: bool = _access(True, boolean, "whether requests require an API key")
    auth_keys_file: str = _access(
        "", path, "file with the API keys", shown_default="$DATA_DIR/api_keys.txt"
    )
    auth_header: str = _access(
        "any",
        choice("any", "x-api-key"),
        "header with the client's key: any = Authorization or x-api-key; x-api-key = only that "
        "one, for platforms that use Authorization themselves",
    )
    admin_key_ids: tuple[str, ...] = _access(
        (),
        key_ids,
        "ids of the keys that may POST /reload, see the usage of all keys, and manage keys on the "
        "dashboard, separated by commas; empty = any key may reload, and each sees only its own "
        "usage",
    )
    auth_failures_per_minute: int = _access(
        30, whole(0, 1_000_000), "invalid keys an address may send in a minute; 0 = no limit"
    )
    trusted_proxies: tuple[str, ...] = _access(
        (),
        networks,
        "addresses or networks of reverse proxies, separated by commas, whose X-Forwarded-For "
        "states the client's address; empty = none",
    )
    max_requests_per_minute: int = _access(
        100, whole(1, 1_000_000_000), "requests a key may send in any 60 seconds"
    )


class SharedLimitSettings(Group):
    """Where several gateways share the limits of keys."""

    shared_limits: str = _access(
        "",
        store_url,
        "Redis or Valkey server by which several gateways share rates, budgets and usage of keys: "
        "redis://HOST:PORT/DATABASE, rediss:// for TLS, or unix:///PATH; with USER:PASSWORD@ if "
        "it needs them; requires the extra redis",
        secret=True,
    )
    shared_limits_ca_file: str = _access(
        "",
        path,
        "certificates (PEM) of the issuers of a rediss server",
        shown_default="those that the system trusts",
    )
    shared_limits_outage: str = _access(
        "local",
        choice("local", "open", "closed"),
        "while the server cannot be reached: local = each gateway admits its part of what was "
        "left; open = limits do not apply; closed = requests with a key get 503",
    )


class RouteSettings(Group):
    """Which paths are served, and to whom."""

    exposed_routes: str = _access(
        "inference",
        choice("inference", "all"),
        "paths of llama-server that clients can reach: inference or all",
    )
    cors_origins: tuple[str, ...] = _access(
        (),
        origins,
        "allowed origins of browser requests, separated by commas; * = any; empty = no CORS",
    )
    metrics_auth_enabled: bool = _access(False, boolean, "whether /metrics requires an API key")
    dashboard: bool = _access(
        True, boolean, "whether /dashboard is served; its data requires an API key"
    )
    web_ui: bool = _access(
        False,
        boolean,
        "whether llama-server's web UI is served; its files need no key, its requests do",
    )
    model_aliases: tuple[str, ...] = _access(
        (),
        names,
        "further names of the model in /v1/models, separated by commas, for clients that only "
        "use a name that is listed; requests may have any name",
    )


class QueueSettings(Group):
    """Slots, and the queue before them."""

    max_concurrent_requests: int = _queue(
        0, whole(0, 1_000_000), "requests at the engine at once; 0 = the number of its slots"
    )
    max_concurrent_per_key: int = _queue(
        0, whole(0, 1_000_000), "requests of one key, running or waiting; 0 = no limit"
    )
    max_queue_size: int = _queue(256, whole(0, 1_000_000), "requests that may wait for a slot")
    max_queue_wait: float = _queue(
        300.0, seconds(0), "seconds a request may wait for a slot, also while the model loads"
    )
    affinity: str = _queue(
        "session",
        choice("session", "off"),
        "with several replicas, where a request goes: session = to the one that has its "
        "conversation in the cache, unless that is too busy; off = to the least busy",
    )
    max_replays: int = _queue(
        1,
        whole(0, 1_000_000),
        "times a request is sent again whose engine failed before its response began; 0 = never",
    )


class TimeoutSettings(Group):
    """Time limits of requests that wait, or are with the engine."""

    request_timeout: float = _timeouts(
        300.0, seconds(0.1), "seconds without data from llama-server after which a request fails"
    )
    max_request_duration: float = _timeouts(
        0.0,
        seconds(0),
        "seconds a whole response may take, without its wait for a slot; 0 = no limit",
    )
    backend_connect_timeout: float = _timeouts(
        10.0, seconds(0.1), "seconds to connect to llama-server"
    )
    sse_keepalive: float = _timeouts(
        DEFAULT_KEEPALIVE,
        seconds(0),
        "seconds of silence after which a stream gets its head, and then a comment each time, "
        "so that neither proxies nor agents close it; 0 = off",
    )
    responses_keepalive: str = _timeouts(
        "hold",
        choice("hold", "events"),
        "what a silent stream of Responses gets, whose clients ignore comments: hold = no head "
        "before the engine's first event; events = own events, for proxies that close it",
    )


class ClientLimits(Group):
    """Limits on clients: their number, how slow they may be, and how much they may send."""

    max_connections: int = _network(
        4096, whole(1, 1_000_000), "client connections at once; further ones get 503"
    )
    client_header_timeout: float = _timeouts(
        30.0, seconds(0.1), "seconds a client may take to send a request's head"
    )
    client_body_timeout: float = _timeouts(
        30.0, seconds(0.1), "seconds without data while a client sends a request's body"
    )
    keepalive_timeout: float = _timeouts(
        75.0, seconds(0), "seconds an idle client connection stays open"
    )
    max_request_body_size: int = _sizes(
        100 << 20,  # llama-server's own limit (CPPHTTPLIB_PAYLOAD_MAX_LENGTH), in both builds
        whole(0, 64 * _GIB),
        "maximum bytes of one request's body; llama-server accepts no more than the default",
        shown_default="104857600, or MAX_BODY_MEMORY if that is less",
    )
    max_body_memory: int = _sizes(
        256 << 20,
        whole(0, 1024 * _GIB),
        "maximum bytes of all incomplete and waiting bodies together",
    )
    max_headers: int = _sizes(64, whole(1, 1000), "maximum number of header lines of a request")
    max_header_line_size: int = _sizes(8192, whole(64, 1 << 20), "maximum bytes of one header line")
    max_request_line_size: int = _sizes(
        8192, whole(64, 1 << 20), "maximum bytes of the request line"
    )


class LogSettings(Group):
    """The format of logs, and their files."""

    log_format: str = _operation(
        "text", choice("text", "json"), "text, or json for one object a line"
    )
    log_level: str = _operation(
        "info",
        choice("debug", "info", "warning", "error"),
        "lowest level on standard error; llama-server's own lines need warning, or debug for all "
        "of them; the files have them in any case",
    )
    log_requests: bool = _operation(
        False, boolean, "whether standard error has a line per request of clients"
    )
    log_dir: str = _operation("", path, "directory of logs", shown_default="$DATA_DIR/logs")
    log_max_bytes: int = _operation(
        50 << 20, whole(0, 1 << 50), "bytes at which a log file is rotated; 0 = never"
    )
    log_backups: int = _operation(5, whole(0, 10_000), "older log files to keep, of each kind")
    log_name: str = _operation("llama", text, "directory of llama-server's logs, in LOG_DIR")
    worker_type: str = _operation("", text, "kind of worker; if set, LOG_NAME is llama-WORKER_TYPE")
    instance_id: str = _operation("", text, "name of this instance", shown_default="the host name")


class TraceSettings(Group):
    """Where traces of requests are sent."""

    otel_exporter_otlp_endpoint: str = _operation(
        "",
        http_url,
        "base URL of an OpenTelemetry collector (OTLP over HTTP, usually port 4318) that gets a "
        "trace of each request; requires the extra otel",
    )


class ProcessSettings(Group):
    """How the program itself runs and stops."""

    drain_timeout: float = _timeouts(
        30.0, seconds(0), "seconds running requests may take to finish after SIGTERM"
    )
    config_file: str = _operation(
        "",
        path,
        "TOML file with settings by their names; variables and flags take precedence",
        aliases=("--config",),
    )
    debug_shell: bool = _operation(
        False, boolean, "print the environment without secrets, wait 300 s, exit"
    )
