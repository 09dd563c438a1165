"""Tiny models of many architectures, which the real llama-server loads.

Each has a few small layers, and only zeros as data, so that a file is sparse. The shapes of the
tensors are in tiny_models.json. They were found by asking the engine: it reports one missing tensor
or wrong shape after the other, until it loads the model. To do so again, for a new architecture or
a newer engine:

    .venv/bin/python -m tests.support.tiny_models ARCHITECTURE ...
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from llama_gguf.engines.locate import locate
from tests.support.gguf_files import ARRAY, BOOL, F32, U32, Tensor, Typed, header

LAYERS = 6
CONTEXT = 32768
_TENSORS_FILE = Path(__file__).with_suffix(".json")
_TOKENS = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "▁", "a"]
_VOCABULARY: dict[str, object] = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": _TOKENS,
    "tokenizer.ggml.scores": Typed(ARRAY, (F32, [0.0] * len(_TOKENS))),
    "tokenizer.ggml.token_type": Typed(ARRAY, (U32, [2, 3, 3] + [6] * 256 + [1] * 2)),
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.unknown_token_id": 0,
}


def _each(*items: int) -> Typed:
    return Typed(ARRAY, (U32, list(items)))


def _flags(*items: int) -> Typed:
    return Typed(ARRAY, (BOOL, [bool(item) for item in items]))


def _float(value: float) -> Typed:
    return Typed(F32, value)


_BASE: dict[str, object] = {
    "context_length": CONTEXT,
    "embedding_length": 128,
    "block_count": LAYERS,
    "feed_forward_length": 64,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "attention.layer_norm_epsilon": _float(1e-5),
    "attention.layer_norm_rms_epsilon": _float(1e-5),
}
_HEADLESS: dict[str, object] = {"attention.head_count": None, "attention.head_count_kv": None}
_EXPERTS: dict[str, object] = {
    "expert_count": 4,
    "expert_used_count": 2,
    "expert_feed_forward_length": 32,
}
_SHARED_EXPERTS: dict[str, object] = {
    **_EXPERTS,
    "leading_dense_block_count": 1,
    "expert_shared_count": 1,
    "expert_weights_scale": _float(1.0),
    "expert_gating_func": 2,
}
_MLA: dict[str, object] = {
    "attention.head_count_kv": 1,
    "attention.key_length": 96,
    "attention.value_length": 64,
    "attention.key_length_mla": 48,
    "attention.value_length_mla": 32,
    "attention.kv_lora_rank": 64,
    "attention.q_lora_rank": 32,
    "rope.dimension_count": 32,
}
_INDEXER: dict[str, object] = {
    "attention.indexer.key_length": 64,
    "attention.indexer.head_count": 4,
    "attention.indexer.top_k": 16,
}
_MAMBA: dict[str, object] = {
    "embedding_length": 256,
    "attention.key_length": 64,
    "attention.value_length": 64,
    "ssm.conv_kernel": 4,
    "ssm.inner_size": 512,
    "ssm.state_size": 128,
    "ssm.time_step_rank": 8,
    "ssm.group_count": 4,
}
_DELTA: dict[str, object] = {
    "ssm.conv_kernel": 4,
    "ssm.inner_size": 512,
    "ssm.state_size": 128,
    "ssm.time_step_rank": 4,
    "ssm.group_count": 2,
    "attention.key_length": 64,
    "attention.value_length": 64,
    "rope.dimension_sections": _each(8, 8, 8, 8),
}
_LORA_RANKS: dict[str, object] = {
    "attention.decay_lora_rank": 16,
    "attention.iclr_lora_rank": 16,
    "attention.gate_lora_rank": 16,
    "attention.value_residual_mix_lora_rank": 16,
}
_WINDOW: dict[str, object] = {"attention.sliding_window": 128}
_SOME: Typed = _each(0, 0, 2, 0, 0, 2)
METADATA: Mapping[str, Mapping[str, object]] = {
    "llama": {},
    "qwen3moe": _EXPERTS,
    "phi3": _WINDOW,
    "afmoe": {**_SHARED_EXPERTS, **_WINDOW},
    "cohere2moe": {
        **_SHARED_EXPERTS,
        **_WINDOW,
        "attention.sliding_window_pattern": 3,
        "logit_scale": _float(1.0),
    },
    "exaone4": {**_WINDOW, "block_count": 64},
    "mellum": {**_EXPERTS, **_WINDOW, "attention.sliding_window_pattern": 3},
    "qwen35moe": {**_DELTA, **_EXPERTS},
    "lfm2moe": {
        **_SHARED_EXPERTS,
        "embedding_length": 2048,
        "attention.head_count": 64,
        "shortconv.l_cache": 3,
        "attention.head_count_kv": _SOME,
    },
    "nemotron_h_moe": {
        **_MAMBA,
        **_SHARED_EXPERTS,
        "attention.head_count_kv": _each(0, 2, 0, 0, 2, 0),
        "feed_forward_length": _each(0, 0, 64, 0, 0, 64),
        "expert_shared_feed_forward_length": 32,
    },
    "arwkv7": {**_LORA_RANKS, "embedding_length": 512, "wkv.head_size": 64, "token_shift_count": 1},
    "rwkv6qwen2": {"embedding_length": 512, "wkv.head_size": 64, "token_shift_count": 1},
    "cohere2": {**_WINDOW, "logit_scale": _float(1.0)},
    "exaone-moe": {**_SHARED_EXPERTS, **_WINDOW},
    "gemma2": _WINDOW,
    "gemma3": _WINDOW,
    "gemma3n": {**_WINDOW, "block_count": 22, "embedding_length_per_layer_input": 16},
    "gemma4": {
        **_WINDOW,
        "block_count": 8,
        "attention.sliding_window_pattern": _flags(1, 1, 0, 1, 1, 0, 1, 0),
        "attention.key_length": 64,
        "attention.value_length": 64,
        "attention.key_length_swa": 32,
        "attention.value_length_swa": 32,
        "rope.dimension_count_swa": 32,
        "attention.shared_kv_layers": 2,
        "embedding_length_per_layer_input": 16,
    },
    "gpt-oss": {**_EXPERTS, **_WINDOW},
    "llama4": {**_EXPERTS, "block_count": 8, "interleave_moe_layer_step": 1},
    "mimo2": {
        **_EXPERTS,
        **_WINDOW,
        "attention.sliding_window_pattern": _flags(0, 1, 1, 1, 1, 0),
    },
    "olmo2": _WINDOW,
    "plamo3": {**_WINDOW, "attention.sliding_window_pattern": 3},
    "smallthinker": {**_EXPERTS, **_WINDOW, "expert_gating_func": 2},
    "deepseek2": {**_SHARED_EXPERTS, **_MLA},
    "glm-dsa": {**_SHARED_EXPERTS, **_MLA, **_INDEXER},
    "deepseek32": {
        **_SHARED_EXPERTS,
        **_MLA,
        **_INDEXER,
    },
    "glm4moe": {**_SHARED_EXPERTS, "nextn_predict_layers": 1},
    "falcon-h1": _MAMBA,
    "granitehybrid": {**_MAMBA, "attention.head_count_kv": _SOME},
    "jamba": {**_MAMBA, "ssm.time_step_rank": 16, "attention.head_count_kv": _SOME},
    "kimi-linear": {
        **_SHARED_EXPERTS,
        **_MLA,
        "attention.head_count_kv": _each(0, 0, 1, 0, 0, 1),
        "kda.head_dim": 128,
        "ssm.conv_kernel": 4,
    },
    "lfm2": {
        "embedding_length": 2048,
        "attention.head_count": 64,
        "shortconv.l_cache": 3,
        "attention.head_count_kv": _SOME,
    },
    "nemotron_h": {
        **_MAMBA,
        "attention.head_count_kv": _each(0, 2, 0, 0, 2, 0),
        "feed_forward_length": _each(0, 0, 64, 0, 0, 64),
    },
    "plamo2": {
        **_MAMBA,
        "ssm.group_count": 0,
        "attention.head_count": _each(0, 4, 0, 4, 0, 4),
        "attention.head_count_kv": _each(0, 2, 0, 2, 0, 2),
    },
    "qwen35": {**_DELTA, "full_attention_interval": 2},
    "qwen3next": {**_DELTA, **_EXPERTS},
    "mamba": {**_HEADLESS, **_MAMBA, "ssm.time_step_rank": 16},
    "mamba2": {**_HEADLESS, **_MAMBA},
    "rwkv6": {**_HEADLESS, "embedding_length": 512, "wkv.head_size": 64},
    "rwkv7": {**_HEADLESS, **_LORA_RANKS, "embedding_length": 512, "wkv.head_size": 64},
    "dream": {},
    "gemma-embedding": _WINDOW,
}
"""By architecture, its values in addition to ``_BASE``; None removes one."""


def write(architecture: str, path: Path) -> None:
    """Write the tiny model of *architecture*, a file of zeros after its header."""
    metadata, shapes = content(architecture)
    _write(path, metadata, shapes)


def content(architecture: str) -> tuple[dict[str, object], dict[str, list[int]]]:
    """Metadata and tensor shapes of the tiny model of *architecture*."""
    shapes = json.loads(_TENSORS_FILE.read_text())[architecture]
    return _metadata(architecture, _required(architecture)), dict(_expanded(shapes))


def _required(architecture: str) -> dict[str, object]:
    """Further values that the engine requires for some architectures."""
    required: dict[str, dict[str, object]] = {
        "llama4": {"rope.dimension_count": 32},
        "arwkv7": {"rescale_every_n_layers": 6},
        "rwkv6qwen2": {
            "rescale_every_n_layers": 6,
            "time_mix_extra_dim": 16,
            "time_decay_extra_dim": 16,
        },
        "rwkv6": {
            "rescale_every_n_layers": 6,
            "time_mix_extra_dim": 16,
            "time_decay_extra_dim": 16,
        },
    }
    return required.get(architecture, {})


def _metadata(architecture: str, more: Mapping[str, object]) -> dict[str, object]:
    values = {**_BASE, **METADATA[architecture], **more}
    return {
        "general.architecture": architecture,
        **{f"{architecture}.{name}": v for name, v in values.items() if v is not None},
        **_VOCABULARY,
    }


def _write(path: Path, metadata: Mapping[str, object], shapes: Mapping[str, Sequence[int]]) -> None:
    write_file(path, metadata, [Tensor(tuple(dims), name=name) for name, dims in shapes.items()])


def write_file(path: Path, metadata: Mapping[str, object], tensors: Sequence[Tensor]) -> None:
    """Write a file of zeros after its header."""
    head = header(metadata, tensors)
    with path.open("wb") as file:
        file.write(head)
        file.truncate(len(head) + sum(_data_bytes(tensor) for tensor in tensors))


def _data_bytes(tensor: Tensor) -> int:
    size = 4
    for dim in tensor.dims:
        size *= dim
    return -(-size // 32) * 32


def _expanded(shapes: Mapping[str, Any]) -> Iterator[tuple[str, list[int]]]:
    """Names of tensors, for names such as ``blk.0,2.attn_q.weight``."""
    for name, dims in shapes.items():
        if match := re.match(r"blk\.([0-9,]+)\.(.*)", name):
            for layer in match[1].split(","):
                yield f"blk.{layer}.{match[2]}", dims
        else:
            yield name, dims


def _grouped(shapes: Mapping[str, Sequence[int]]) -> dict[str, Sequence[int]]:
    """The reverse of ``_expanded``."""
    layers: defaultdict[tuple[str, tuple[int, ...]], list[str]] = defaultdict(list)
    others: dict[str, Sequence[int]] = {}
    for name, dims in shapes.items():
        if match := re.match(r"blk\.([0-9]+)\.(.*)", name):
            layers[match[2], tuple(dims)].append(match[1])
        else:
            others[name] = dims
    return others | {
        f"blk.{','.join(sorted(numbers, key=int))}.{name}": dims
        for (name, dims), numbers in layers.items()
    }


# Asking the engine ------------------------------------------------------------------------------

_OPTIONAL: Mapping[str, Mapping[str, Sequence[int]]] = {
    "falcon-h1": {"ssm_conv1d.bias": range(6), "ssm_norm.weight": range(6)},
    "granitehybrid": {"ssm_conv1d.bias": (0, 1, 3, 4)},
    "nemotron_h_moe": {"ssm_conv1d.bias": (0, 3)},
    "qwen35moe": {"attn_qkv.weight": (0, 1, 2, 4, 5), "attn_gate.weight": (0, 1, 2, 4, 5)},
    "nemotron_h": {"ssm_conv1d.bias": (0, 3)},
    "phi3": {"attn_qkv.weight": range(6)},
    "qwen35": {"attn_qkv.weight": (0, 2, 4), "attn_gate.weight": (0, 2, 4)},
    "qwen3next": {"attn_qkv.weight": (0, 1, 2, 4, 5), "attn_gate.weight": (0, 1, 2, 4, 5)},
    "rwkv6": {"time_mix_lerp_fused.weight": range(6)},
}
"""Tensors that the engine needs without saying so: it crashes."""


_LOST = 20


def discover(architecture: str) -> dict[str, Sequence[int]]:
    """Ask the engine for the shapes of all tensors of *architecture*.

    Raises:
        RuntimeError: the engine reports something else; the message has its last lines.
    """
    shapes: dict[str, list[int]] = {"token_embd.weight": [1]}
    for name, layers in _OPTIONAL.get(architecture, {}).items():
        shapes |= {f"blk.{layer}.{name}": [1] for layer in layers}
    metadata = _metadata(architecture, _required(architecture))
    lost = 0
    while True:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.gguf"
            _write(path, metadata, shapes)
            output = report(path)
        if match := re.search(r"missing tensor '([^']+)'", output):
            shapes[match[1]] = [1]
        elif match := re.search(r"'([^']+)' has wrong shape; expected +([0-9, ]+), got", output):
            dims = [int(dim) for dim in re.findall(r"[0-9]+", match[2])]
            while len(dims) > 1 and dims[-1] == 1:
                dims.pop()
            shapes[match[1]] = dims
        elif "projected to use" in output:
            return _grouped(shapes)
        elif " E " not in output and "ASSERT" not in output and lost < _LOST:
            lost += 1  # it sometimes exits before it has written its last lines
        else:
            raise RuntimeError(f"{architecture}: {output[-600:]}")


def report(model: Path, *arguments: str, until: str = "projected to use") -> str:
    """What the engine logs before it loads *model*: the sizes of everything.

    Args:
        model: the file.
        arguments: further flags.
        until: the expression for its last line that is needed.
    """
    engine = locate("", "", environ=os.environ)
    lines: list[str] = []
    # The path of a socket is short; pytest's directories are not.
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [engine.path, "-m", model, "--host", f"{folder}/e.sock", "-lv", "5", *arguments],
            env={**os.environ, **engine.environment_changes},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
        )
        assert process.stdout is not None
        try:
            for line in process.stdout:
                lines.append(line)
                if re.search(rf"{until}|error loading model|failed to fit params", line):
                    break
        finally:
            process.kill()
            process.communicate()
    return "".join(lines)


if __name__ == "__main__":
    known = json.loads(_TENSORS_FILE.read_text()) if _TENSORS_FILE.exists() else {}
    for each in sys.argv[1:] or METADATA:
        known[each] = discover(each)
        lines = [f"{json.dumps(name)}: {json.dumps(known[name])}" for name in sorted(known)]
        _TENSORS_FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")
