"""All groups of settings together, and the table of all settings.

``--help``, ``.env.example``, ``docs/settings.md`` and ``llama-gguf check`` are generated from the
table, so that they cannot differ. Only what composes the program has ``Settings``; a part of it
has its groups, from ``schema.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, Self

from llama_gguf.config import masking
from llama_gguf.config.parsers import Parser, as_text
from llama_gguf.config.schema import (
    SECTIONS,
    AuthSettings,
    ClientLimits,
    EngineSettings,
    ListenSettings,
    LogSettings,
    ModelSettings,
    ProcessSettings,
    PromptCacheSettings,
    QueueSettings,
    RouteSettings,
    SharedLimitSettings,
    SupervisionSettings,
    TimeoutSettings,
    TlsSettings,
    TraceSettings,
    UpstreamSettings,
)
from llama_gguf.values import Value, replace


class Settings(Value):
    """A value for every setting. Created once, by ``load``; its groups are passed down."""

    model: ModelSettings = ModelSettings()
    engine: EngineSettings = EngineSettings()
    supervision: SupervisionSettings = SupervisionSettings()
    prompts: PromptCacheSettings = PromptCacheSettings()
    listen: ListenSettings = ListenSettings()
    upstream: UpstreamSettings = UpstreamSettings()
    tls: TlsSettings = TlsSettings()
    auth: AuthSettings = AuthSettings()
    shared: SharedLimitSettings = SharedLimitSettings()
    routes: RouteSettings = RouteSettings()
    queue: QueueSettings = QueueSettings()
    timeouts: TimeoutSettings = TimeoutSettings()
    limits: ClientLimits = ClientLimits()
    logs: LogSettings = LogSettings()
    traces: TraceSettings = TraceSettings()
    process: ProcessSettings = ProcessSettings()

    @classmethod
    def of(cls, **values: Any) -> Self:
        """The settings with *values*, by the settings' names, and defaults for the others.

        Raises:
            KeyError: there is no setting of a name.
        """
        chosen: dict[str, dict[str, Any]] = {}
        for name, value in values.items():
            chosen.setdefault(SETTINGS[name].group, {})[name] = value
        return cls(**{group: replace(_GROUPS[group], **own) for group, own in chosen.items()})

    @property
    def url(self) -> str:
        """The gateway's base URL on this machine."""
        host, port = self.listen.host, self.listen.port
        host = "127.0.0.1" if host in ("0.0.0.0", "::") else host  # noqa: S104
        return f"{self.tls.scheme}://{f'[{host}]' if ':' in host else host}:{port}"

    @property
    def gateway_has_tls(self) -> bool:
        """Whether the gateway has TLS connections: with clients, peers or the store of limits."""
        if self.tls.tls_cert_file or self.upstream.has_https_peers:
            return True
        if not self.shared.shared_limits:
            return False
        from llama_gguf.config.store_address import StoreAddress  # noqa: PLC0415

        return StoreAddress.of(self.shared.shared_limits).has_tls

    def value(self, name: str) -> object:
        """The value of the setting *name*."""
        return getattr(getattr(self, SETTINGS[name].group), name)


class Setting(Value):
    """The declaration of a setting."""

    name: str
    group: str
    default: object
    section: str
    parse: Parser
    text: str
    shown_default: str | None
    secret: bool
    aliases: tuple[str, ...]


_GROUPS: Final[Mapping[str, Any]] = vars(Settings())
"""The defaults."""


def _declared() -> Iterator[Setting]:
    for group, defaults in _GROUPS.items():
        for name, about in defaults.declared.items():
            yield Setting(name, group, **about)


SETTINGS: Final[Mapping[str, Setting]] = {
    setting.name: setting
    for setting in sorted(_declared(), key=lambda setting: SECTIONS.index(setting.section))
}
"""By name, in the order of the pages."""

FIRST: Final = (
    *("model_name", "data_dir", "ctx", "ngl", "parallel", "host", "port"),
    *("max_requests_per_minute", "extra_args", "config_file"),
)
"""The settings that matter most, in the order of `serve --help`."""

# The settings that each command uses, and has flags for. `serve` and `check` use all.
_PLACES: Final = ("data_dir",)
_GATEWAY: Final = (
    *_PLACES,
    *("host", "port", "port_backend", "backend_host", "backend_socket", "backend_api_key"),
    *("peers", "peers_ca_file", "tls_cert_file", "tls_key_file", "max_connections"),
    *(n for n, s in SETTINGS.items() if s.section in ("access", "queue", "timeouts", "sizes")),
    *("log_format", "log_level", "log_requests", "log_dir", "instance_id"),
    *("log_max_bytes", "log_backups", "config_file"),
    "otel_exporter_otlp_endpoint",
)
USED_BY: Final[Mapping[str, tuple[str, ...]]] = {
    "serve": tuple(SETTINGS),
    "check": tuple(SETTINGS),
    "diagnose": tuple(SETTINGS),
    "gateway": _GATEWAY,
    "health": (
        *("host", "port_health", "health_mode", "port_backend", "backend_host"),
        *("backend_socket", "backend_api_key", "log_format", "log_level", "config_file"),
    ),
    "status": (*_PLACES, "port", "config_file"),
    "top": (*_PLACES, "port", "config_file"),
    "logs": (*_PLACES, "log_dir", "log_name", "worker_type", "config_file"),
    "restart": (*_PLACES, "port", "config_file"),
    "stop": (*_PLACES, "port", "config_file"),
    "keys": (*_PLACES, "auth_keys_file", "config_file"),
    "pull": (*_PLACES, "models_dir", "config_file"),
    "ray": (
        *("model_name", "model_path", *_PLACES, "models_dir", "llama_server", "ngl", "ctx"),
        *("threads", "parallel", "extra_args", "startup_stall_timeout", "max_restarts"),
        *("watchdog_health", "port_backend", "backend_api_key", "drain_timeout"),
        *("log_dir", "log_max_bytes", "log_backups", "log_name", "config_file"),
    ),
    "bench": (*_PLACES, "host", "port", "backend_api_key", "auth_keys_file", "config_file"),
    "completion": (),
}


def variable(name: str) -> str:
    """The environment variable of the setting *name*."""
    return name.upper()


def flag(name: str) -> str:
    """The command-line flag of the setting *name*."""
    return "--" + name.replace("_", "-")


def flags(name: str) -> tuple[str, ...]:
    """All flags of the setting *name*: short ones first, its own last."""
    return (*SETTINGS[name].aliases, flag(name))


def default_text(name: str) -> str:
    """The default as in the documentation; empty if there is none."""
    setting = SETTINGS[name]
    return as_text(setting.default) if setting.shown_default is None else setting.shown_default


def masked(name: str, value: object) -> str:
    """*value* for display, without secrets."""
    text = as_text(value)
    return masking.MASK if text and SETTINGS[name].secret else masking.mask_urls(text)
