"""The options of llama-server that affect its memory, from settings, flags and variables."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from llama_gguf.config.schema import DEFAULT_SLOTS, EngineSettings
from llama_gguf.values import Value, replace

BATCH: Final = 2048
UBATCH: Final = 512
CACHE_RAM_BYTES: Final = 8192 << 20
"""llama-server's default for ``--cache-ram``: the limit for its cache of earlier prompts in RAM."""
AUTO: Final = -1
"""For NGL and slots: llama-server decides."""
ALL: Final = 1 << 20
"""More than the layers of any model."""
_OFF: Final = frozenset(("off", "0", "false", "disabled"))
_ON: Final = frozenset(("on", "1", "true", "enabled"))


class Options(Value):
    ctx: int
    """Of all slots together; 0 = that of the model, or what ``fits_ctx`` makes of it."""
    parallel: int
    """0 or less leaves the number to llama-server."""
    ngl: int
    """``AUTO``, or the number of layers on GPUs."""
    batch: int = BATCH
    ubatch: int = UBATCH
    type_k: str = "f16"
    type_v: str = "f16"
    unified: bool = False
    kv_offload: bool = True
    flash_attn: str = "auto"
    swa_full: bool = False
    cache_ram_mib: int = CACHE_RAM_BYTES >> 20
    mmap: bool = True
    mlock: bool = False
    fit: bool = True
    """Whether llama-server fits what is not set into memory."""
    fits_ctx: bool = False
    """Whether the context is one of those."""
    devices: tuple[str, ...] | None = None
    """The names of the GPUs to use; None for all, empty for none."""
    rpc: tuple[str, ...] = ()
    """Addresses of RPC servers: each one is a GPU to the engine."""
    split_mode: str = "layer"
    tensor_split: tuple[float, ...] = ()
    main_gpu: int = 0
    cpu_moe_layers: int = 0
    """The experts of that many layers, from the first, are in RAM."""
    overrides: tuple[tuple[str, str], ...] = ()
    """Patterns of tensor names, and the buffer for them: ``CPU``, or a device."""
    projector: str = ""
    projector_offload: bool = True
    draft: str = ""
    draft_ngl: int = AUTO
    draft_type_k: str = "f16"
    draft_type_v: str = "f16"
    adapters: tuple[str, ...] = ()
    """Files of LoRA adapters and control vectors."""

    @property
    def slots(self) -> int:
        return self.parallel if self.parallel > 0 else DEFAULT_SLOTS

    @property
    def shares_context(self) -> bool:
        """Whether all slots share the context; always if their number is left to the engine."""
        return self.parallel <= 0 or self.unified

    @property
    def has_flash_attention(self) -> bool:
        return self.flash_attn not in _OFF

    def draft_options(self) -> Options:
        """The options that apply to the draft model."""
        return replace(
            self,
            ngl=self.draft_ngl,
            type_k=self.draft_type_k,
            type_v=self.draft_type_v,
            cpu_moe_layers=0,
            overrides=(),
            draft="",
            projector="",
            adapters=(),
        )


def _number(value: str) -> int | None:
    return int(value) if re.fullmatch(r"-?[0-9]{1,9}", value) else None


def _layers(value: str) -> int | None:
    return {"all": ALL, "auto": AUTO}.get(value, _number(value))


def _names(value: str) -> tuple[str, ...]:
    return () if value == "none" else tuple(value.split(","))


def _shares(value: str) -> tuple[float, ...] | None:
    parts = re.split(r"[,/]+", value)
    if not all(re.fullmatch(r"[0-9]+(\.[0-9]*)?|\.[0-9]+", part) for part in parts):
        return None
    return tuple(map(float, parts))


def _overrides(value: str) -> tuple[tuple[str, str], ...]:
    pairs = (part.rpartition("=") for part in value.split(","))
    return tuple((pattern, buffer) for pattern, equals, buffer in pairs if equals)


def _files(value: str) -> tuple[str, ...]:
    return tuple(filter(None, value.split(",")))


def _scaled_files(value: str) -> tuple[str, ...]:
    return tuple(re.sub(r":[^:/]*$", "", file) for file in _files(value))


# By flag: the field of Options, and the reading of the flag's value, None if it is invalid.
_Reading = tuple[str, Callable[[str], Any]]
_VALUES: Final[Mapping[str, _Reading]] = {
    flag: (field, reading)
    for flags, field, reading in (
        ("-c --ctx-size", "ctx", _number),
        ("-np --parallel", "parallel", _number),
        ("-ngl --gpu-layers --n-gpu-layers", "ngl", _layers),
        ("-b --batch-size", "batch", _number),
        ("-ub --ubatch-size", "ubatch", _number),
        ("-ctk --cache-type-k", "type_k", str.lower),
        ("-ctv --cache-type-v", "type_v", str.lower),
        ("-cram --cache-ram", "cache_ram_mib", _number),
        ("-fa --flash-attn", "flash_attn", str.lower),
        ("-fit --fit", "fit", lambda value: value not in _OFF),
        ("-dev --device", "devices", _names),
        ("-sm --split-mode", "split_mode", str),
        ("-ts --tensor-split", "tensor_split", _shares),
        ("-mg --main-gpu", "main_gpu", _number),
        ("-ncmoe --n-cpu-moe", "cpu_moe_layers", _number),
        ("-mm --mmproj", "projector", str),
        ("-md --model-draft --spec-draft-model", "draft", str),
        ("-ngld --gpu-layers-draft --n-gpu-layers-draft --spec-draft-ngl", "draft_ngl", _layers),
        ("-ctkd --cache-type-k-draft --spec-draft-type-k", "draft_type_k", str.lower),
        ("-ctvd --cache-type-v-draft --spec-draft-type-v", "draft_type_v", str.lower),
    )
    for flag in flags.split()
}
# These add to what earlier ones of them have set.
_LISTS: Final[Mapping[str, _Reading]] = {
    "-ot": ("overrides", _overrides),
    "--override-tensor": ("overrides", _overrides),
    # Although the engine warns that it uses only the last one.
    "--rpc": ("rpc", _files),
    "--lora": ("adapters", _files),
    "--lora-scaled": ("adapters", _scaled_files),
    "--control-vector": ("adapters", _files),
    "--control-vector-scaled": ("adapters", _scaled_files),
}
_SWITCHES: Final[Mapping[str, tuple[str, Any]]] = {
    flag: (field, state)
    for flags, field, state in (
        ("-kvu --kv-unified", "unified", True),
        ("-no-kvu --no-kv-unified", "unified", False),
        ("-kvo --kv-offload", "kv_offload", True),
        ("-nkvo --no-kv-offload", "kv_offload", False),
        ("--swa-full", "swa_full", True),
        ("-cmoe --cpu-moe", "cpu_moe_layers", ALL),
        ("--mmap", "mmap", True),
        ("--no-mmap", "mmap", False),
        ("--mlock", "mlock", True),
        ("--mmproj-offload", "projector_offload", True),
        ("--no-mmproj-offload", "projector_offload", False),
    )
    for flag in flags.split()
}
# Variables of llama-server that none of our flags overrides, by name after LLAMA_ARG_.
_VARIABLES: Final[Mapping[str, str]] = {
    "N_PARALLEL": "-np",
    "BATCH": "-b",
    "UBATCH": "-ub",
    "CACHE_TYPE_K": "-ctk",
    "CACHE_TYPE_V": "-ctv",
    "CACHE_RAM": "-cram",
    "FLASH_ATTN": "-fa",
    "FIT": "-fit",
    "DEVICE": "-dev",
    "RPC": "--rpc",
    "SPLIT_MODE": "-sm",
    "TENSOR_SPLIT": "-ts",
    "MAIN_GPU": "-mg",
    "N_CPU_MOE": "-ncmoe",
    "OVERRIDE_TENSOR": "-ot",
    "MMPROJ": "-mm",
    "SPEC_DRAFT_MODEL": "-md",
    "N_GPU_LAYERS_DRAFT": "-ngld",
    "SPEC_DRAFT_CACHE_TYPE_K": "-ctkd",
    "SPEC_DRAFT_CACHE_TYPE_V": "-ctvd",
}
_SWITCH_VARIABLES: Final[Mapping[str, tuple[str, str]]] = {
    "KV_UNIFIED": ("-kvu", "-no-kvu"),
    "KV_OFFLOAD": ("-kvo", "-nkvo"),
    "SWA_FULL": ("--swa-full", ""),
    "CPU_MOE": ("-cmoe", ""),
    "MMAP": ("--mmap", "--no-mmap"),
    "MLOCK": ("--mlock", ""),
    "MMPROJ_OFFLOAD": ("--mmproj-offload", "--no-mmproj-offload"),
}


def options(settings: EngineSettings, words: Sequence[str], environ: Mapping[str, str]) -> Options:
    """The options that result from the settings, EXTRA_ARGS and llama.cpp's own variables.

    Invalid values are ignored here: llama-server reports them.

    Args:
        settings: CTX, PARALLEL, NGL.
        words: EXTRA_ARGS, split; of repeated flags, the last one applies.
        environ: the environment of llama-server.
    """
    arguments = _from_variables(environ)
    # Our flags override these variables, unless the setting leaves the value to llama-server.
    for ours, name, theirs in (
        (settings.ctx, "CTX_SIZE", "-c"),
        (settings.ngl, "N_GPU_LAYERS", "-ngl"),
    ):
        if ours is None and (variable := environ.get(f"LLAMA_ARG_{name}", "")):
            arguments += [theirs, variable]
    if settings.parallel:
        arguments += ["-np", str(settings.parallel)]
    arguments += words
    found: dict[str, Any] = {
        "ctx": AUTO if settings.ctx is None else settings.ctx,
        "parallel": 0,
        "ngl": AUTO if settings.ngl is None else settings.ngl,
    }
    for flag, value in zip(arguments, [*arguments, ""][1:], strict=True):
        _take(found, flag if flag[:2] != "--" else flag.replace("_", "-"), value)
    if found["ctx"] == AUTO:
        found |= {"ctx": 0, "fits_ctx": found.get("fit", True)}
    return Options(**found)


def _from_variables(environ: Mapping[str, str]) -> list[str]:
    arguments: list[str] = []
    for name, flag in _VARIABLES.items():
        if value := environ.get(f"LLAMA_ARG_{name}", ""):
            arguments += [flag, value]
    for name, (on, off) in _SWITCH_VARIABLES.items():
        value = environ.get(f"LLAMA_ARG_{name}", "").lower()
        # The engine takes any value of a negated variable for a yes.
        if value in _OFF or environ.get(f"LLAMA_ARG_NO_{name}"):
            arguments += [off] if off else []
        elif value in _ON:
            arguments.append(on)
    return arguments


def _take(found: dict[str, Any], flag: str, value: str) -> None:
    if flag in _SWITCHES:
        field, state = _SWITCHES[flag]
        found[field] = state
    elif flag in _VALUES:
        field, reading = _VALUES[flag]
        if value and (chosen := reading(value)) is not None:
            found[field] = chosen
    elif flag in _LISTS:
        field, reading = _LISTS[flag]
        found[field] = (*found.get(field, ()), *reading(value))


def _words(text: str) -> list[str]:
    return text.split()


# By flag: how the files in its value are read.
_FILES: Final[Mapping[str, Callable[[str], tuple[str, ...]]]] = {
    "--lora": _files,
    "--lora-scaled": _scaled_files,
    "--control-vector": _files,
    "--control-vector-scaled": _scaled_files,
} | dict.fromkeys(
    _words(
        "-mm --mmproj -md --model-draft --spec-draft-model --grammar-file -jf --json-schema-"
        " file --chat-template-file -lcs --lookup-cache-static --ui-config-file --webui-"
        " config-file -mv --model-vocoder --slot-save-path --media-path --path"
    ),
    lambda value: (value,),
)


def files(words: Sequence[str]) -> list[tuple[str, str]]:
    """The flags in EXTRA_ARGS that name files or directories, each with its path.

    Args:
        words: EXTRA_ARGS, split.
    """
    flags = (word.replace("_", "-") if word.startswith("--") else word for word in words)
    return [
        (flag, path)
        for flag, value in zip(flags, [*words, ""][1:], strict=False)
        if flag in _FILES and value
        for path in _FILES[flag](value)
    ]
