"""The server of the wheel xllamacpp as a program with llama-server's flags: ``llama-gguf-engine``.

It takes the flags of llama-server that ``serve`` uses, and those below for EXTRA_ARGS. The wheel is
built for Linux and macOS, on x86-64 and arm64: docs/adr/0005-where-the-engine-comes-from.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any, Final

from llama_gguf.engines.locate import LIBRARY_WHEEL, PROGRAM
from llama_gguf.errors import UserError

Apply = Callable[[Any, str], None]
"""Sets a value in xllamacpp's ``CommonParams``."""


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag of llama-server.

    Args:
        names: as llama-server has them.
        apply: sets it; the value is empty for a switch.
        value: the name of its value in the help; empty for a switch.
        variable: that sets it as well.
    """

    names: tuple[str, ...]
    apply: Apply
    value: str = "N"
    variable: str = ""


def _set(path: str, convert: Callable[[str], Any] = int) -> Apply:
    """Set the attribute at *path* to the converted value."""
    *owners, name = path.split(".")

    def apply(params: Any, value: str) -> None:
        for owner in owners:
            params = getattr(params, owner)
        setattr(params, name, convert(value))

    return apply


def _switch(path: str, value: object) -> Apply:
    return _set(path, lambda _: value)


def _member(enum: str, prefix: str) -> Callable[[str], Any]:
    """A converter to the member of an enumeration of xllamacpp that a flag's value names."""

    def convert(value: str) -> Any:
        members = getattr(_wheel(), enum).__members__
        try:
            return members[prefix + value.upper()]
        except KeyError:
            names = ", ".join(name.removeprefix(prefix).lower() for name in members)
            raise ValueError(f"must be one of {names}") from None

    return convert


def _layers(value: str) -> int:
    return {"auto": -1, "all": -2}[value] if value in ("auto", "all") else int(value)


def _flash(value: str) -> Any:
    names = {"on": "ENABLED", "off": "DISABLED", "auto": "AUTO"}
    return _member("llama_flash_attn_type", "LLAMA_FLASH_ATTN_TYPE_")(names.get(value, value))


def _rerank(params: Any, _value: str) -> None:
    params.embedding = True
    params.pooling_type = _member("llama_pooling_type", "LLAMA_POOLING_TYPE_")("rank")


def _read(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read()


_CACHE_TYPE: Final = _member("ggml_type", "GGML_TYPE_")
_LOAD: Final = "llama_load_mode", "LLAMA_LOAD_MODE_"


def _load_mode(name: str) -> Apply:
    return _set("load_mode", lambda _: _member(*_LOAD)(name))


FLAGS: Final = (
    Flag(("-m", "--model"), _set("model.path", str), "FNAME"),
    Flag(("-a", "--alias"), _set("model_alias", lambda names: set(names.split(","))), "STRING"),
    Flag(("--host",), _set("hostnames", lambda host: [host]), "HOST"),
    Flag(("--port",), _set("port"), "PORT"),
    Flag(("-c", "--ctx-size"), _set("n_ctx"), variable="LLAMA_ARG_CTX_SIZE"),
    Flag(("-ngl", "--gpu-layers", "--n-gpu-layers"), _set("n_gpu_layers", _layers)),
    Flag(("-t", "--threads"), _set("cpuparams.n_threads"), variable="LLAMA_ARG_THREADS"),
    Flag(("-tb", "--threads-batch"), _set("cpuparams_batch.n_threads")),
    Flag(("--threads-http",), _set("n_threads_http")),
    Flag(("-np", "--parallel"), _set("n_parallel"), variable="LLAMA_ARG_N_PARALLEL"),
    Flag(("-kvu", "--kv-unified"), _switch("kv_unified", value=True), ""),
    Flag(("-no-kvu", "--no-kv-unified"), _switch("kv_unified", value=False), ""),
    Flag(("-b", "--batch-size"), _set("n_batch"), variable="LLAMA_ARG_BATCH"),
    Flag(("-ub", "--ubatch-size"), _set("n_ubatch"), variable="LLAMA_ARG_UBATCH"),
    Flag(("-n", "--predict", "--n-predict"), _set("n_predict")),
    Flag(("-fa", "--flash-attn"), _set("flash_attn_type", _flash), "[on|off|auto]"),
    Flag(("-ctk", "--cache-type-k"), _set("cache_type_k", _CACHE_TYPE), "TYPE"),
    Flag(("-ctv", "--cache-type-v"), _set("cache_type_v", _CACHE_TYPE), "TYPE"),
    Flag(("-cram", "--cache-ram"), _set("cache_ram_mib")),
    Flag(("--cache-reuse",), _set("n_cache_reuse")),
    Flag(("--swa-full",), _switch("swa_full", value=True), ""),
    Flag(("--mlock",), _load_mode("mmap_mlock"), ""),
    Flag(("--mmap",), _load_mode("mmap"), ""),
    Flag(("--no-mmap",), _load_mode("none"), ""),
    Flag(("--no-warmup",), _switch("warmup", value=False), ""),
    Flag(("--metrics",), _switch("endpoint_metrics", value=True), ""),
    Flag(("--slots",), _switch("endpoint_slots", value=True), ""),
    Flag(("--no-slots",), _switch("endpoint_slots", value=False), ""),
    Flag(("--slot-save-path",), _set("slot_save_path", str), "PATH"),
    Flag(("-sps", "--slot-prompt-similarity"), _set("slot_prompt_similarity", float)),
    Flag(("--sleep-idle-seconds",), _set("sleep_idle_seconds"), "SECONDS"),
    Flag(("--sse-ping-interval",), _set("sse_ping_interval"), "SECONDS"),
    Flag(("-to", "--timeout"), _set("timeout_read")),
    Flag(("--no-ui", "--no-webui"), _switch("ui", value=False), ""),
    Flag(("--jinja",), _switch("use_jinja", value=True), ""),
    Flag(("--no-jinja",), _switch("use_jinja", value=False), ""),
    Flag(("--chat-template",), _set("chat_template", str), "TEMPLATE"),
    Flag(("--chat-template-file",), _set("chat_template", _read), "FNAME"),
    Flag(
        ("--reasoning-format",),
        _set("reasoning_format", _member("common_reasoning_format", "COMMON_REASONING_FORMAT_")),
        "FORMAT",
    ),
    Flag(("-mm", "--mmproj"), _set("mmproj.path", str), "FILE"),
    Flag(("--no-mmproj",), _switch("no_mmproj", value=True), ""),
    Flag(("--embedding", "--embeddings"), _switch("embedding", value=True), ""),
    Flag(("--rerank", "--reranking"), _rerank, ""),
    Flag(
        ("--pooling",),
        _set("pooling_type", _member("llama_pooling_type", "LLAMA_POOLING_TYPE_")),
        "TYPE",
    ),
    Flag(("-lv", "--verbosity", "--log-verbosity"), _set("verbosity")),
    Flag(("-v", "--verbose", "--log-verbose"), _switch("verbosity", value=9), ""),
    Flag(("-s", "--seed"), _set("sampling.seed"), "SEED"),
    Flag(("--temp", "--temperature"), _set("sampling.temp", float)),
    Flag(("--top-k",), _set("sampling.top_k")),
    Flag(("--top-p",), _set("sampling.top_p", float)),
    Flag(("--min-p",), _set("sampling.min_p", float)),
    Flag(("--repeat-penalty",), _set("sampling.penalty_repeat", float)),
    Flag(("--rope-freq-base",), _set("rope_freq_base", float)),
    Flag(("--rope-freq-scale",), _set("rope_freq_scale", float)),
    Flag(("--context-shift",), _switch("ctx_shift", value=True), ""),
    Flag(("--no-context-shift",), _switch("ctx_shift", value=False), ""),
    Flag(("--fit",), _set("fit_params", lambda value: value in ("on", "1", "true")), "[on|off]"),
)
_BY_NAME: Final = {name: flag for flag in FLAGS for name in flag.names}
_OTHERS: Final = {"--help": "", "--version": "", "--list-devices": ""}


def _wheel() -> Any:
    import xllamacpp  # noqa: PLC0415 - only this process needs it, and it loads llama.cpp

    return xllamacpp


def read_arguments(words: Sequence[str], environ: Mapping[str, str]) -> Iterator[tuple[Flag, str]]:
    """The flags that variables set, and then those of the command line, with their values.

    Raises:
        UserError: a flag is not supported, or lacks its value.
    """
    for flag in FLAGS:
        if environ.get(flag.variable):
            yield flag, environ[flag.variable]
    rest = iter(words)
    for word in rest:
        name = word.replace("_", "-") if word.startswith("--") else word
        found = _BY_NAME.get(name)
        if found is None:
            raise UserError(
                f"{word} is not supported by the engine of the wheel {LIBRARY_WHEEL}; "
                f"`{PROGRAM} --help` lists what is. LLAMA_SERVER can name another llama-server.",
                exit_status=1,
            )
        value = next(rest, None) if found.value else ""
        if value is None:
            raise UserError(f"{word} requires a value", exit_status=1)
        yield found, value


def parameters(words: Sequence[str], environ: Mapping[str, str]) -> Any:
    """Xllamacpp's ``CommonParams`` for a command line.

    Raises:
        UserError: a flag is not supported, or its value is invalid.
    """
    params = _wheel().CommonParams()
    params.port = 8080
    key = environ.get("LLAMA_API_KEY")
    if key:
        params.api_keys = [key]
    for flag, value in read_arguments(words, environ):
        try:
            flag.apply(params, value)
        except (ValueError, OSError) as error:
            raise UserError(f"{flag.names[-1]} {value}: {error}", exit_status=1) from None
    return params


def start(params: Any) -> object:
    """A running server, which stops when the result is dropped.

    Raises:
        RuntimeError: it could not start; llama.cpp has logged the reason.
    """
    server: object = _wheel().Server(params)
    return server


def help_text() -> str:
    """In the form of llama-server's, which ``check`` compares with EXTRA_ARGS."""
    lines = [f"{', '.join(flag.names)} {flag.value}".rstrip() for flag in FLAGS]
    return "\n".join([*lines, *_OTHERS]) + "\n"


def version_text() -> str:
    """In the form of llama-server's ``--version``."""
    version = metadata.version(LIBRARY_WHEEL)
    return f"version: {version.rpartition('.')[2]} ({LIBRARY_WHEEL} {version})\n"


def devices_text() -> str:
    """In the form of llama-server's ``--list-devices``."""
    lines = ["Available devices:"]
    for device in _wheel().get_device_info():
        if not device["type"].name.endswith("_CPU"):
            total, free = device["memory_total"] >> 20, device["memory_free"] >> 20
            name, text = device["name"], device["description"]
            lines.append(f"  {name}: {text} ({total} MiB, {free} MiB free)")
    return "\n".join(lines) + "\n"
