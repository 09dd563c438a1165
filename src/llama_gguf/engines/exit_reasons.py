"""Why llama-server died, and what an operator can do about it."""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from typing import Final

from llama_gguf.values import Value


class Cause(Value):
    pattern: str
    """Searched for in the last lines of output, in any case."""
    reason: str
    """``{name}`` is replaced by the group of that name of the pattern."""
    advice: str


def _cause(pattern: str, reason: str, advice: str) -> Cause:
    return Cause(f"(?i){pattern}", reason, advice)


SMALLER: Final = "Lower CTX, lower NGL, or take a smaller quantisation."
"""For both kinds of memory: on the GPU fewer layers help, in main memory a smaller model.

Not a lower PARALLEL: the slots divide CTX, so that fewer of them need as much memory.
"""
_LESS_MEMORY: Final = (
    "Lower CTX, take a smaller quantisation, or give the machine or container more memory."
)

# The first match counts, so specific causes precede general ones.
_SEE_LINES: Final = "See its last lines."
CAUSES: Final = (
    _cause(
        r"(?:cuda|hip|rocm|vulkan|metal|device)[^\n]*out ?of ?(?:device ?)?memory"
        r"|cudaMalloc failed|failed to allocate (?:CUDA|ROCm|Vulkan)\w* buffer",
        "The GPU does not have enough free memory.",
        SMALLER,
    ),
    _cause(
        r"Remote RPC server crashed",
        "The connection to a machine that computes a part of the model (--rpc) was lost.",
        "Start ggml-rpc-server there again, or remove its address from --rpc. If it does not come "
        "back, llama-server starts without it, and needs the memory for its part.",
    ),
    _cause(
        r"failed to (?:apply|load) lora adapter",
        "llama-server cannot load a LoRA adapter.",
        "Check --lora in EXTRA_ARGS: the file must exist, and be an adapter for this model.",
    ),
    _cause(
        r"failed to load CLIP model|failed to load multimodal model",
        "llama-server cannot load the multimodal projector.",
        "Check --mmproj in EXTRA_ARGS: the file must exist, and belong to this model.",
    ),
    _cause(
        r"failed to load draft model",
        "llama-server cannot load the draft model.",
        "Check --model-draft in EXTRA_ARGS: the file must exist, and be a model that this "
        "llama-server knows.",
    ),
    _cause(
        r"cache type (?P<type>\w+) with block size \d+ does not divide n_embd_head_(?P<of>[kv])",
        "The type {type} of the KV cache does not suit this model: a block does not divide a head.",
        "Use another type, such as f16, for --cache-type-{of} in EXTRA_ARGS.",
    ),
    _cause(
        r"n_seq_max must be <= (?P<most>\d+)",
        "llama-server processes no more than {most} requests at once.",
        "Lower PARALLEL, or -np in EXTRA_ARGS, to {most} or less.",
    ),
    _cause(
        r"V cache quantization requires flash_attn",
        "A quantised V cache needs flash attention, which is off.",
        "Remove --flash-attn off from EXTRA_ARGS, or use --cache-type-v f16.",
    ),
    _cause(
        r"error while handling environment variable \"(?P<variable>\w+)\"",
        "llama-server rejected the value of the environment variable {variable}.",
        "Correct or unset {variable}: llama-server reads it itself.",
    ),
    _cause(
        r"invalid device: (?P<device>[\w.:-]+)",
        "There is no device {device} for llama-server.",
        "Correct --device in EXTRA_ARGS: `llama-server --list-devices` lists the devices. One "
        "called RPC is missing while ggml-rpc-server does not run at its address.",
    ),
    _cause(
        r"error while handling argument \"(?P<flag>[\w-]+)\": (?:error: )?"
        r"(?:failed to open file|not a directory)",
        "A file or directory that {flag} names does not exist.",
        "Correct {flag} in EXTRA_ARGS.",
    ),
    _cause(
        r"invalid argument: |unknown argument|error while handling argument",
        "llama-server rejected one of its flags, or the value of one.",
        "Check EXTRA_ARGS against `llama-server --help` of this build.",
    ),
    _cause(
        r"couldn't bind[^\n]*hostname: \S*\.sock\b",
        "llama-server cannot create its unix socket.",
        "Check that the directory of BACKEND_SOCKET exists and is writable.",
    ),
    _cause(
        r"couldn't bind|address already in use",
        "The engine's port is taken.",
        "Set PORT_BACKEND to a free port, or stop the process that listens there.",
    ),
    _cause(
        r"CUDA driver version is insufficient|forward compatibility was attempted",
        "The GPU's driver is too old for this build of llama-server.",
        "Update the driver, or use a build for an older CUDA: set LLAMA_SERVER to it.",
    ),
    _cause(
        r"no kernel image is available",
        "This build of llama-server does not support this kind of GPU.",
        "Use another build: set LLAMA_SERVER to its llama-server. NGL=0 runs without the GPU.",
    ),
    _cause(
        r"CUDA error|ggml_cuda_error|ErrorDeviceLost",
        "The GPU or its driver failed.",
        "If it happens again, look at `nvidia-smi -q` and `dmesg` for Xid errors, or try another "
        "build: set LLAMA_SERVER to its llama-server.",
    ),
    _cause(
        r"unknown (?:model )?architecture",
        "This llama-server is too old for the model, or does not support its architecture.",
        "Use a newer llama.cpp build: set LLAMA_SERVER to its llama-server.",
    ),
    _cause(
        r"not within the file bounds|corrupted or incomplete",
        "The model file is incomplete.",
        "Fetch it again.",
    ),
    _cause(
        r"unable to allocate|failed to allocate|bad_alloc|cannot allocate memory",
        "There is not enough memory for the model and its context.",
        SMALLER,
    ),
    _cause(
        r"error while loading shared libraries",
        "llama-server needs a library that is not installed.",
        "Install the library, or use another build: set LLAMA_SERVER to its llama-server.",
    ),
    _cause(
        r"failed to create (?:llama_)?context",
        "llama-server cannot create the model's context.",
        "See its last lines. Often a flag in EXTRA_ARGS does not suit the model.",
    ),
    _cause(
        r"failed to load model|error loading model",
        "llama-server cannot load the model.",
        _SEE_LINES,
    ),
)

_SIGNALS: Final = {
    signal.SIGKILL: (
        "It was killed from outside, most often because memory ran out.",
        _LESS_MEMORY,
    ),
    signal.SIGILL: (
        "This build of llama-server uses instructions that this CPU does not have.",
        "Use another build: set LLAMA_SERVER to its llama-server.",
    ),
    signal.SIGSEGV: (
        "It crashed: flags that do not suit the model, or a bug in llama-server or a driver.",
        "Run `llama-gguf check`, which looks at flags and files. llama-server may have lost its "
        "last lines: start it again to see them. Else try another build, or NGL=0 to run without "
        "the GPU.",
    ),
    signal.SIGBUS: (
        "It read past the end of a file: the model file was truncated, or its disk failed.",
        "Check the file and its volume.",
    ),
    signal.SIGABRT: ("It aborted.", _SEE_LINES),
}
_UNREACHABLE: Final = r"Failed to connect to (\S+:\d+)"
_NUMBERS: Final = frozenset(s.value for s in signal.Signals)

OUT_OF_MEMORY: Final = ("The kernel killed it because memory ran out.", _LESS_MEMORY)


def status_text(returncode: int) -> str:
    """``exit status 1`` or ``signal SIGKILL``."""
    if returncode >= 0:
        return f"exit status {returncode}"
    try:
        return f"signal {signal.Signals(-returncode).name}"
    except ValueError:
        return f"signal {-returncode}"


def exit_status(returncode: int) -> int:
    """Our exit status after a child died with *returncode*; never 0.

    A signal becomes 128 plus its number, as in a shell.
    """
    return 128 - returncode if returncode < 0 else returncode or 1


def explain(
    returncode: int, last_lines: Sequence[str], *, was_out_of_memory: bool = False
) -> tuple[str, str]:
    """Reason and advice for an unexpected death.

    1. It was killed, and the kernel reports lack of memory.
    2. A known cause in its last lines.
    3. Its signal, or its exit status.

    If memory is the cause, and a RPC server did not respond at the start, its memory is missing.

    Args:
        returncode: as ``subprocess`` has it: below zero for a signal.
        last_lines: of its output.
        was_out_of_memory: whether the kernel has killed a process for lack of memory meanwhile.
    """
    output = "\n".join(last_lines)
    reason, advice = _explain(returncode, output, was_out_of_memory=was_out_of_memory)
    missing = re.search(_UNREACHABLE, output)
    if missing is None or advice not in (SMALLER, _LESS_MEMORY):
        return reason, advice
    return (
        f"{reason} The RPC server at {missing[1]} did not respond, so its memory is missing.",
        f"Start ggml-rpc-server there, or remove its address from --rpc. {advice}",
    )


def _explain(returncode: int, output: str, *, was_out_of_memory: bool) -> tuple[str, str]:
    if was_out_of_memory and returncode in (-signal.SIGKILL, 128 + signal.SIGKILL):  # 1
        return OUT_OF_MEMORY
    for cause in CAUSES:  # 2
        if match := re.search(cause.pattern, output):
            words = match.groupdict()
            return cause.reason.format(**words), cause.advice.format(**words)
    reason, advice = _explain_status(returncode)  # 3
    if advice == _SEE_LINES and not output:
        return (
            f"{reason[:-1]}, and without any output.",
            "Run `llama-gguf check`, or start it again: llama-server sometimes loses its lines.",
        )
    return reason, advice


def _explain_status(returncode: int) -> tuple[str, str]:
    if returncode < 0:
        known = _SIGNALS.get(signal.Signals(-returncode)) if -returncode in _NUMBERS else None
        return known or (
            "It was stopped by a signal from another process.",
            "Find the process that sent it.",
        )
    if returncode == 0:
        return "It exited without an error.", _SEE_LINES
    return "It exited with an error.", _SEE_LINES


def oom_kills(events: str) -> int:
    """The number of processes of a control group that were killed for lack of memory.

    Args:
        events: the text of cgroup v2's memory.events, or of v1's memory.oom_control.
    """
    match = re.search(r"^oom_kill (\d+)$", events, re.MULTILINE)
    return int(match[1]) if match else 0


def is_oom_of(pid: int, kernel_log: str) -> bool:
    """Whether *pid* was killed for lack of memory, according to the kernel's log."""
    return re.search(rf"Killed process {pid}\b", kernel_log) is not None
