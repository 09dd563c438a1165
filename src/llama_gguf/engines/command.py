"""llama-server's command line and environment, made from settings and facts."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Final

from llama_gguf.config.schema import EngineSettings
from llama_gguf.engines.address import EngineAddress
from llama_gguf.errors import UserError

# Variables that an image or a platform may have set, and that would expose the engine, change
# its address or make it serve another model. (Flags override some of these variables, but we
# pass no flag that overrides LLAMA_ARG_API_PREFIX or LLAMA_ARG_TOOLS.)
_REFUSED: Final = re.compile(
    r"LLAMA_ARG_(?:HOST|PORT|REUSE_PORT|API_PREFIX|API_KEY.*|SSL_.*|CORS_.*|TOOLS.*|AGENT|MCP_.*"
    r"|UI_MCP_PROXY|STATIC_PATH|MEDIA_PATH|ENDPOINT_PROPS|MODEL|MODEL_URL|MODELS_.*|HF_.*|DOCKER_REPO|ALIAS|LOG_FILE)"
    r"|LLAMA_API_KEY|AIP_.*"
)
OPTION_PREFIX: Final = "LLAMA_ARG_"
"""Of the variables that llama-server reads as flags."""
_SEEN: Final = "whose value other users of the machine could read"
_OURS: Final = "which `serve` sets itself"
_IN_THE_WAY: Final = "which would prevent the gateway from reaching the engine"
_NOT_EXTRA: Final[Mapping[str, tuple[str, str]]] = {
    "--api-key": (_SEEN, "Set BACKEND_API_KEY instead."),
    "--hf-token": (_SEEN, "`llama-gguf pull` fetches models with HF_TOKEN."),
    "-hft": (_SEEN, "`llama-gguf pull` fetches models with HF_TOKEN."),
    "--host": (
        _OURS,
        "Clients connect to HOST; for the engine, set BACKEND_HOST or BACKEND_SOCKET.",
    ),
    "--port": (_OURS, "Clients connect to PORT; for the engine, set PORT_BACKEND."),
    "--model": (_OURS, "Set MODEL_NAME or MODEL_PATH instead."),
    "-m": (_OURS, "Set MODEL_NAME or MODEL_PATH instead."),
    "--api-prefix": (_IN_THE_WAY, "Remove it."),
    "--ssl-cert-file": (_IN_THE_WAY, "Set TLS_CERT_FILE instead."),
    "--ssl-key-file": (_IN_THE_WAY, "Set TLS_KEY_FILE instead."),
}
# The engine does not need them.
_SECRETS: Final = frozenset(
    {
        "BACKEND_API_KEY",
        "HF_TOKEN",
        "HUGGING_FACE_HUB_TOKEN",
        "OTEL_EXPORTER_OTLP_HEADERS",
        "OTEL_EXPORTER_OTLP_TRACES_HEADERS",
        "SHARED_LIMITS",
    }
)


def engine_argv(
    binary: str,
    settings: EngineSettings,
    *,
    model_path: str,
    alias: str,
) -> list[str]:
    """The command line of llama-server, without its address. No secret is ever in it.

    Args:
        binary: path of llama-server.
        settings: NGL, CTX, and so on.
        model_path: the GGUF file, or the first of its parts.
        alias: the name that ``/v1/models`` shows instead of a path.
    """
    argv = [binary, "--model", model_path, "--alias", alias]
    # Without a flag, llama-server fits the value into memory; `--ctx-size 0` would prevent that.
    if settings.ctx is not None:
        argv += ["--ctx-size", str(settings.ctx)]
    if settings.ngl is not None:
        argv += ["--n-gpu-layers", str(settings.ngl)]
    if settings.threads:
        argv += ["--threads", str(settings.threads)]
    if settings.parallel:
        argv += ["--parallel", str(settings.parallel)]
    return [*argv, "--metrics", *extra_args(settings)]


def listen_flags(address: EngineAddress) -> list[str]:
    """The flags with the *address* on which llama-server listens.

    Raises:
        UserError: BACKEND_SOCKET is a name that llama-server would take for a host.
    """
    path = address.socket
    if not path:
        return ["--host", address.host, "--port", str(address.port)]
    if not path.endswith(".sock"):
        raise UserError(
            f"BACKEND_SOCKET={path} must end in .sock: llama-server treats any other name as "
            "a host.",
            exit_status=2,
        )
    return ["--host", path]


def extra_args(settings: EngineSettings) -> list[str]:
    """EXTRA_ARGS as a shell would split them.

    Raises:
        UserError: a quote is not closed, a secret would be in argv, or a flag would separate the
            engine from the gateway or contradict its other settings.
    """
    try:
        words = shlex.split(settings.extra_args)
    except ValueError as error:
        raise UserError(
            f"EXTRA_ARGS cannot be split as in a shell: {error}. Check its quotes.",
            exit_status=2,
        ) from None
    for word in words:
        # llama-server accepts "_" for "-" in the names of flags.
        flag = word.partition("=")[0].replace("_", "-")
        if flag in _NOT_EXTRA:
            wrong, instead = _NOT_EXTRA[flag]
            raise UserError(f"EXTRA_ARGS has {flag}, {wrong}. {instead}", exit_status=2)
    return words


def _is_empty_option(name: str, value: str) -> bool:
    """Whether llama-server would exit for it: Compose passes empty variables on."""
    return name.startswith(OPTION_PREFIX) and not value.strip()


def engine_environment(
    environ: Mapping[str, str], *, api_key: str, changes: Mapping[str, str]
) -> tuple[dict[str, str], tuple[str, ...]]:
    """The environment of llama-server, and the variables that it does not get.

    An empty LLAMA_ARG_* counts as not set, as everywhere here.

    The key is passed in ``LLAMA_API_KEY``, which, unlike argv, only the same user can read.

    Args:
        environ: our own.
        api_key: the key that the gateway sends.
        changes: variables that the engine needs to find its libraries.
    """
    kept_back = tuple(sorted(name for name in environ if _REFUSED.fullmatch(name)))
    passed = {
        name: value
        for name, value in environ.items()
        if name not in kept_back and name not in _SECRETS and not _is_empty_option(name, value)
    }
    return {**passed, **changes, "LLAMA_API_KEY": api_key}, kept_back
