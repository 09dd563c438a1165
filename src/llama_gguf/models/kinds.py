"""Names the GGUF files that are not models which llama-server can serve."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from llama_gguf.models.cache import DIFFUSION
from llama_gguf.models.gguf_values import GgufValue, text
from llama_gguf.values import Value


class Kind(Value):
    what: str
    """Such as "a LoRA adapter"."""
    advice: str
    """A sentence on its use; ``{path}`` is replaced by the file's path."""


PROJECTOR: Final = Kind(
    "a multimodal projector, a part of a model",
    "Serve the model that it belongs to, with EXTRA_ARGS='--mmproj {path}'.",
)
ADAPTER: Final = Kind(
    "a LoRA adapter, a change of a model",
    "Serve the model that it was made for, with EXTRA_ARGS='--lora {path}'.",
)
CONTROL_VECTOR: Final = Kind(
    "a control vector, a change of a model",
    "Serve the model that it was made for, with EXTRA_ARGS='--control-vector {path}'.",
)
DRAFT: Final = Kind(
    "a draft model, which only predicts tokens for another one",
    "Serve the model that it was made for, with EXTRA_ARGS='--model-draft {path}'.",
)
_IMATRIX: Final = Kind(
    "an importance matrix, which is used to quantise a model", "Serve the quantised model instead."
)
VOCABULARY: Final = Kind("only a vocabulary, without tensors", "Fetch the model itself.")
_DIFFUSION: Final = Kind(
    "a diffusion language model, which llama-server does not serve", "Use another model."
)
_IMAGES: Final = Kind(
    "a model that makes images or video, which llama-server does not serve", "Use another model."
)
_NAMELESS: Final = Kind(
    "not a model: its header does not name an architecture", "Use another file."
)

_TYPES: Final[Mapping[str, Kind]] = {
    "adapter": ADAPTER,
    "controlvector": CONTROL_VECTOR,
    "imatrix": _IMATRIX,
    "mmproj": PROJECTOR,
    "vocab": VOCABULARY,
}
"""By ``general.type``."""
_ARCHITECTURES: Final[Mapping[str, Kind]] = {
    "clip": PROJECTOR,
    "controlvector": CONTROL_VECTOR,
    "imatrix": _IMATRIX,
    **dict.fromkeys(("dflash", "eagle3", "gemma4-assistant"), DRAFT),
    **dict.fromkeys(DIFFUSION, _DIFFUSION),
    # As the tools for stable-diffusion.cpp and ComfyUI name them.
    **dict.fromkeys(("aura", "cosmos", "flux", "hidream", "hyvid", "ltxv", "lumina2"), _IMAGES),
    **dict.fromkeys(("qwen_image", "sd1", "sd3", "sdxl", "wan"), _IMAGES),
}


def kind_of(values: Mapping[str, GgufValue]) -> Kind | None:
    """What a file with this metadata is; None for a model.

    ``general.type`` has precedence: an adapter has the architecture of its model.
    """
    kind = _TYPES.get(text(values, "general.type"))
    if kind is ADAPTER and text(values, "adapter.type") == "control_vector":
        return CONTROL_VECTOR
    if kind is not None:
        return kind
    architecture = text(values, "general.architecture")
    return _ARCHITECTURES.get(architecture) if architecture else _NAMELESS
