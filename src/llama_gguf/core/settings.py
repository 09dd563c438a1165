"""Every setting, once.

A field of ``Settings`` is an environment variable (its name in capitals) and a
flag (its name with dashes). ``--help``, ``.env.example``, ``docs/settings.md``
and ``llama-gguf check`` are printed from this table, so that they cannot differ.

Units: durations are float seconds, sizes are int bytes.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from llama_gguf.core import masking
from llama_gguf.errors import UserError

Parser = Callable[[str], object]
"""Turns the text of a variable into its value; raises ValueError that says what is wanted."""


MASK: Final = masking.MASK


@dataclass(frozen=True, slots=True)
class About:
    """What is known of a setting besides its name, type and default."""

    section: str
    text: str
    parse: Parser
    shown_default: str | None
    secret: bool


# Parsers: each raises ValueError with what would be right ----------------------------------------


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
        # int() alone would take "+5", "1_000" and digits of other scripts.
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
    # It goes into a header field: RFC 9110 section 5.5 lets nothing invisible in.
    if re.fullmatch(r"[\x21-\x7e]{1,512}", value):
        return value
    raise ValueError("printable ASCII without spaces, 512 characters at most")


def _key_ids(value: str) -> tuple[str, ...]:
    ids = tuple(i.strip() for i in value.split(",") if i.strip())
    if all(re.fullmatch(r"[A-Za-z0-9_-]{1,64}", key_id) for key_id in ids):
        return ids
    raise ValueError("ids of keys, 1 to 64 of A-Z a-z 0-9 _ -, separated by commas")


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
    """One value of every setting. Made once, by ``load``, and handed down."""

    # model
    model_name: str = field(
        default="",
        metadata=_about("model", _text, "the model: a file in MODELS_DIR, or a name `pull` knows"),
    )
    model_path: str = field(
        default="",
        metadata=_about("model", _text, "full path of the model file; wins over MODEL_NAME"),
    )
    data_dir: str = field(
        default="",
        metadata=_about(
            "model",
            _text,
            "where models, logs and keys live",
            shown_default="/runpod-volume if it is there, else /workspace, else /data",
        ),
    )
    models_dir: str = field(
        default="",
        metadata=_about("model", _text, "where model files live", shown_default="$DATA_DIR/models"),
    )

    # engine
    llama_server: str = field(
        default="",
        metadata=_about(
            "engine",
            _text,
            "path of the llama-server binary",
            shown_default="/app/llama-server, else on PATH, else an installed wheel",
        ),
    )
    ngl: int = field(
        default=99,
        metadata=_about("engine", _whole(0, 9999), "layers to put on the GPU; 99 means all"),
    )
    ctx: int = field(
        default=16384,
        metadata=_about(
            "engine", _whole(0, 1 << 30), "context size in tokens; 0 takes the model's own"
        ),
    )
    threads: int = field(
        default=0, metadata=_about("engine", _whole(0, 4096), "CPU threads; 0 lets it choose")
    )
    parallel: int = field(
        default=0,
        metadata=_about(
            "engine", _whole(0, 1024), "slots: requests answered at once; 0 lets it choose"
        ),
    )
    extra_args: str = field(
        default="",
        metadata=_about(
            "engine", _text, "more flags for llama-server, split as a shell would; they win"
        ),
    )
    startup_stall_timeout: float = field(
        default=300.0,
        metadata=_about(
            "engine",
            _seconds(1),
            "seconds without any sign of progress after which a loading engine is given up",
        ),
    )
    max_restarts: int = field(
        default=5,
        metadata=_about(
            "engine",
            _whole(0, 1000),
            "deaths in a row, without a minute of serving in between, before giving up",
        ),
    )
    watchdog_health: float = field(
        default=30.0,
        metadata=_about(
            "engine",
            _seconds(0),
            "seconds in which an engine that serves does not answer its health check, after which "
            "it is restarted; 0 = never",
        ),
    )
    watchdog_stall: float = field(
        default=0.0,
        metadata=_about(
            "engine",
            _seconds(0),
            "seconds in which requests are at the engine and nothing comes back on any of them, "
            "after which it is restarted; 0 = never",
        ),
    )
    idle_stop: float = field(
        default=0.0,
        metadata=_about(
            "engine",
            _seconds(0),
            "seconds without a request after which the engine is stopped, and its GPU memory "
            "free; the next request starts it; 0 = never",
        ),
    )

    # network
    host: str = field(
        default="0.0.0.0",  # noqa: S104  # a server is for others to reach; keys guard it
        metadata=_about("network", _text, "address the gateway and the health server listen on"),
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
            "key the gateway shows to llama-server",
            shown_default="made anew by `serve` at every start",
            secret=True,
        ),
    )
    tls_cert_file: str = field(
        default="",
        metadata=_about(
            "network", _text, "certificate chain (PEM); with TLS_KEY_FILE, PORT speaks HTTPS"
        ),
    )
    tls_key_file: str = field(
        default="",
        metadata=_about("network", _text, "private key of TLS_CERT_FILE (PEM, not encrypted)"),
    )
    max_connections: int = field(
        default=4096,
        metadata=_about(
            "network", _whole(1, 1_000_000), "client connections at once; beyond it, 503"
        ),
    )

    # access
    auth_enabled: bool = field(
        default=True, metadata=_about("access", _flag, "whether requests need an API key")
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
            "where clients show their key: any = Authorization or x-api-key; x-api-key = only "
            "there, for platforms that take Authorization for themselves",
        ),
    )
    admin_key_ids: tuple[str, ...] = field(
        default=(),
        metadata=_about(
            "access",
            _key_ids,
            "ids of the keys that may POST /reload and see everybody's usage, separated by commas; "
            "empty = any key may reload, and each sees its own usage",
        ),
    )
    auth_failures_per_minute: int = field(
        default=30,
        metadata=_about(
            "access", _whole(0, 1_000_000), "wrong keys an address may try in a minute; 0 = any"
        ),
    )
    max_requests_per_minute: int = field(
        default=100,
        metadata=_about(
            "access", _whole(1, 1_000_000_000), "requests a key may make in any 60 seconds"
        ),
    )
    exposed_routes: str = field(
        default="inference",
        metadata=_about(
            "access", _choice("inference", "all"), "which of llama-server's paths clients reach"
        ),
    )
    cors_origins: tuple[str, ...] = field(
        default=(),
        metadata=_about(
            "access",
            _origins,
            "browser origins that may call, separated by commas; * = any; empty = no CORS",
        ),
    )
    metrics_auth_enabled: bool = field(
        default=False, metadata=_about("access", _flag, "whether /metrics needs an API key")
    )
    dashboard: bool = field(
        default=True,
        metadata=_about(
            "access", _flag, "whether /dashboard is there; its numbers need an API key"
        ),
    )
    web_ui: bool = field(
        default=False,
        metadata=_about(
            "access",
            _flag,
            "whether the files of llama-server's web UI are served, without a key; "
            "what it asks needs one",
        ),
    )

    # queue
    max_concurrent_requests: int = field(
        default=0,
        metadata=_about(
            "queue",
            _whole(0, 1_000_000),
            "requests at the engine at once; 0 = as many as it has slots",
        ),
    )
    max_concurrent_per_key: int = field(
        default=0,
        metadata=_about("queue", _whole(0, 1_000_000), "the same for one key; 0 = no cap"),
    )
    max_queue_size: int = field(
        default=256, metadata=_about("queue", _whole(0, 1_000_000), "requests that may wait")
    )
    max_queue_wait: float = field(
        default=300.0,
        metadata=_about(
            "queue", _seconds(0), "seconds a request may wait, also while the model loads"
        ),
    )

    sse_keepalive: float = field(
        default=0.0,
        metadata=_about(
            "queue",
            _seconds(0),
            "seconds after which a stream that has nothing to say yet gets its head, and then a "
            "comment each time, so that proxies do not give it up; 0 = off",
        ),
    )

    # timeouts
    request_timeout: float = field(
        default=300.0,
        metadata=_about(
            "timeouts", _seconds(0.1), "seconds of silence from llama-server before it is given up"
        ),
    )
    max_request_duration: float = field(
        default=0.0,
        metadata=_about("timeouts", _seconds(0), "seconds a whole answer may take; 0 = no cap"),
    )
    backend_connect_timeout: float = field(
        default=10.0,
        metadata=_about("timeouts", _seconds(0.1), "seconds to connect to llama-server"),
    )
    client_header_timeout: float = field(
        default=30.0, metadata=_about("timeouts", _seconds(0.1), "seconds to send a request's head")
    )
    client_body_timeout: float = field(
        default=30.0,
        metadata=_about("timeouts", _seconds(0.1), "seconds of silence within a request's body"),
    )
    keepalive_timeout: float = field(
        default=75.0,
        metadata=_about("timeouts", _seconds(0), "seconds an idle client connection is kept"),
    )
    drain_timeout: float = field(
        default=30.0,
        metadata=_about(
            "timeouts", _seconds(0), "seconds that running requests get to finish after SIGTERM"
        ),
    )

    # sizes
    max_request_body_size: int = field(
        default=10 << 20,
        metadata=_about("sizes", _whole(0, 64 * _GIB), "bytes of one request's body"),
    )
    max_body_memory: int = field(
        default=256 << 20,
        metadata=_about("sizes", _whole(0, 1024 * _GIB), "bytes of all waiting bodies together"),
    )
    max_headers: int = field(
        default=64, metadata=_about("sizes", _whole(1, 1000), "header lines of a request")
    )
    max_header_line_size: int = field(
        default=8192, metadata=_about("sizes", _whole(64, 1 << 20), "bytes of one header line")
    )
    max_request_line_size: int = field(
        default=8192, metadata=_about("sizes", _whole(64, 1 << 20), "bytes of the request line")
    )

    # operation
    health_mode: str = field(
        default="live",
        metadata=_about(
            "operation",
            _choice("live", "ready"),
            "what the health server says: live = 200 always; "
            "ready = 204 while loading, 200 ready, 503 failed or draining",
        ),
    )
    log_format: str = field(
        default="text", metadata=_about("operation", _choice("text", "json"), "text or json lines")
    )
    log_dir: str = field(
        default="",
        metadata=_about("operation", _text, "where logs go", shown_default="$DATA_DIR/logs"),
    )
    log_max_bytes: int = field(
        default=50 << 20,
        metadata=_about(
            "operation",
            _whole(0, 1 << 50),
            "bytes of a log file, after which it is set aside and a new one begun; 0 = never",
        ),
    )
    log_backups: int = field(
        default=5,
        metadata=_about(
            "operation", _whole(0, 10_000), "older log files of each kind that are kept"
        ),
    )
    log_name: str = field(
        default="llama", metadata=_about("operation", _text, "folder of the engine's logs")
    )
    worker_type: str = field(
        default="", metadata=_about("operation", _text, "kind of worker; names the log folder")
    )
    instance_id: str = field(
        default="",
        metadata=_about("operation", _text, "name of this instance", shown_default="the host name"),
    )
    debug_shell: bool = field(
        default=False,
        metadata=_about(
            "operation", _flag, "print the environment without secrets, hold 300 s, leave"
        ),
    )

    @property
    def scheme(self) -> str:
        """Of the gateway's URL."""
        return "https" if self.tls_cert_file else "http"


FIELDS: Final[Mapping[str, dataclasses.Field[Any]]] = {
    f.name: f for f in dataclasses.fields(Settings)
}
ABOUT: Final[Mapping[str, About]] = {name: f.metadata["about"] for name, f in FIELDS.items()}

# What each command uses, and so has flags for. `serve` and `check` use everything.
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
    """What ``load`` found."""

    settings: Settings
    sources: Mapping[str, str]
    """Where each value came from: ``flag``, ``environment`` or ``default``."""
    warnings: tuple[str, ...]


def variable(name: str) -> str:
    """The environment variable of the field *name*."""
    return name.upper()


def flag(name: str) -> str:
    """The command-line flag of the field *name*."""
    return "--" + name.replace("_", "-")


def default_text(name: str) -> str:
    """The default as documentation prints it; empty when there is none."""
    about = ABOUT[name]
    if about.shown_default is not None:
        return about.shown_default
    return as_text(FIELDS[name].default)


def as_text(value: object) -> str:
    """*value* as one would write it into the environment."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return ",".join(value)
    if isinstance(value, float):
        return f"{value:.9f}".rstrip("0").rstrip(".")  # never an exponent, and nothing lost
    return str(value)


def masked(name: str, value: object) -> str:
    """*value* for people to read: nothing of a secret is left."""
    text = as_text(value)
    return MASK if text and ABOUT[name].secret else masking.mask_urls(text)


def load(environ: Mapping[str, str], flags: Mapping[str, str] | None = None) -> Loaded:
    """Read every setting: a flag beats the environment, which beats the default.

    A variable that is there but empty counts as not set, since compose files
    and templates pass empty variables on.

    Args:
        environ: the environment, by variable.
        flags: what was given on the command line, by field name.

    Raises:
        UserError: with one message that names every value that cannot be used.
    """
    loaded, complaint = load_usable(environ, flags)
    if complaint:
        raise UserError(complaint, exit_status=2)
    return loaded


def load_usable(
    environ: Mapping[str, str], flags: Mapping[str, str] | None = None
) -> tuple[Loaded, str]:
    """As ``load``, with what can be used of it, and with the complaint about the rest."""
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
                mistakes.append(f"  {label}={shown} cannot be used; wanted: {wanted}")
            break
    if bool(values.get("tls_cert_file")) != bool(values.get("tls_key_file")):
        mistakes.append("  TLS_CERT_FILE and TLS_KEY_FILE cannot be used one without the other")
    lines = ["These settings cannot be used:", *mistakes, "See docs/settings.md."]
    complaint = "\n".join(lines) if mistakes else ""
    return Loaded(Settings(**values), sources, tuple(_near_misses(environ))), complaint


_NOT_OURS: Final = frozenset({"LOGNAME"})  # login shells set it


def _near_misses(environ: Iterable[str]) -> Iterable[str]:
    """Warn of variables that look like a slip of the pen for one of ours.

    Names under five letters are left out: PORT is one edit from too many words.
    """
    ours = [variable(n) for n in FIELDS]
    for name in sorted(environ):
        if name in ours or name in _NOT_OURS or len(name) < 5:
            continue
        for our in ours:
            if len(our) >= 5 and one_edit_apart(name, our):
                yield f"{name} is not a setting; did you mean {our}?"


def one_edit_apart(a: str, b: str) -> bool:
    """Whether one letter added, left out, changed or swapped turns *a* into *b*."""
    if abs(len(a) - len(b)) > 1 or a == b:
        return False
    start = next(
        (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )
    a, b = a[start:], b[start:]
    return a[1:] == b or a == b[1:] or a[1:] == b[1:] or (a[:2] == b[1::-1] and a[2:] == b[2:])


def resolve(settings: Settings, is_dir: Callable[[str], bool], host_name: str) -> Settings:
    """Fill in the defaults that depend on the machine: folders and the instance's name.

    Platform detection changes DATA_DIR and nothing else (RunPod mounts
    /runpod-volume on serverless workers and /workspace on pods).

    Args:
        settings: what ``load`` read.
        is_dir: tells whether a folder is there.
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
    """The platform that the data folder speaks of, for the log."""
    known = {RUNPOD_VOLUME: "RunPod serverless", WORKSPACE: "RunPod pod or a workspace"}
    return known.get(settings.data_dir, "a machine of your own")
