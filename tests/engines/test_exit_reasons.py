from __future__ import annotations

import signal

import pytest

from llama_gguf.engines.exit_reasons import exit_status, explain, is_oom_of, oom_kills, status_text

LOAD_FAILED = [
    "llama_model_load_from_file_impl: failed to load model",
    "common_init_from_params: failed to load model '/data/models/a.gguf'",
    "srv    load_model: failed to load model, '/data/models/a.gguf'",
    "srv    operator(): operator(): cleaning up before exit...",
    "main: exiting due to model loading error",
]

# The last output of llama-server (or its loader), and words that reason and advice must contain.
LAST_LINES = {
    "a flag it does not know": (
        ["error: invalid argument: --foo-bar"],
        ["flags", "EXTRA_ARGS", "--help"],
    ),
    "a value that it cannot use": (
        ['error while handling argument "--ctx-size": stoi', "usage:"],
        ["flags", "EXTRA_ARGS"],
    ),
    "a port that is taken": (
        [
            "start: couldn't bind HTTP server socket, hostname: 127.0.0.1, port: 18098",
            "main: exiting due to HTTP server error",
        ],
        ["port is taken", "PORT_BACKEND"],
    ),
    "a unix socket that it cannot create": (
        [
            "start: couldn't bind HTTP server socket, hostname: /missing/e.sock, port: 8080",
            "main: exiting due to HTTP server error",
        ],
        ["unix socket", "BACKEND_SOCKET"],
    ),
    "a file that was cut off": (
        [
            "llama_model_load: error loading model: tensor 'token_embd.weight' data is not within"
            " the file bounds, model is corrupted or incomplete",
            *LOAD_FAILED,
        ],
        ["incomplete", "again"],
    ),
    "a GPU that is full": (
        [
            "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 8192.00 MiB on device 0:"
            " cudaMalloc failed: out of memory",
            "alloc_tensor_range: failed to allocate CUDA0 buffer of size 8589934592",
            "llama_model_load: error loading model: unable to allocate CUDA0 buffer",
            *LOAD_FAILED,
        ],
        ["GPU", "memory", "NGL"],
    ),
    "a Vulkan GPU that is full": (
        [
            "ggml_vulkan: Device memory allocation of size 1073741824 failed.",
            "ggml_vulkan: vk::Device::allocateMemory: ErrorOutOfDeviceMemory",
            *LOAD_FAILED,
        ],
        ["GPU", "memory"],
    ),
    "a GPU that fails": (
        ["CUDA error: an illegal memory access was encountered", "  current device: 0"],
        ["GPU", "dmesg"],
    ),
    "a driver that is too old": (
        ["ggml_cuda_init: CUDA driver version is insufficient for CUDA runtime version"],
        ["driver", "Update"],
    ),
    "a GPU that it does not support": (
        ["CUDA error: no kernel image is available for execution on the device"],
        ["does not support this kind", "LLAMA_SERVER"],
    ),
    "a machine that is full": (
        ["ggml_aligned_malloc: insufficient memory", "terminate called after std::bad_alloc"],
        ["memory", "CTX"],
    ),
    "an architecture that it does not know": (
        [
            "llama_model_load: error loading model: error loading model architecture:"
            " unknown model architecture: 'foo'",
            *LOAD_FAILED,
        ],
        ["architecture", "LLAMA_SERVER"],
    ),
    "a library that is missing": (
        [
            "/app/llama-server: error while loading shared libraries: libcudart.so.12: cannot open"
            " shared object file: No such file or directory"
        ],
        ["library"],
    ),
    "a model that does not load for another reason": (
        ["gguf_init_from_file_impl: invalid magic characters: 'abcd'", *LOAD_FAILED],
        ["cannot load the model", "last lines"],
    ),
    "more slots than it can have": (
        ["llama_init_from_model: failed to initialize the context: n_seq_max must be <= 256"],
        ["256 requests", "PARALLEL", "-np"],
    ),
    "a variable whose value it rejects": (
        ['error while handling environment variable "LLAMA_ARG_N_PARALLEL": stoi'],
        ["rejected", "variable LLAMA_ARG_N_PARALLEL", "unset"],
    ),
    "an RPC server that is gone": (
        ["ggml-rpc.cpp:498: Remote RPC server crashed or returned malformed response"],
        ["connection", "--rpc", "ggml-rpc-server"],
    ),
    "an unknown line": (["something new"], ["error", "last lines"]),
    "no words at all": ([], ["without any output", "llama-gguf check"]),
}


@pytest.mark.parametrize(("last_lines", "wanted"), LAST_LINES.values(), ids=LAST_LINES.keys())
def test_the_last_lines_determine_reason_and_advice(
    last_lines: list[str], wanted: list[str]
) -> None:
    said = " ".join(explain(1, last_lines))

    assert [word for word in wanted if word not in said] == []


@pytest.mark.parametrize("returncode", [0, 1, -signal.SIGABRT])
def test_lines_that_do_not_exist_are_not_referred_to(returncode: int) -> None:
    said = " ".join(explain(returncode, []))

    assert "without any output" in said
    assert "last lines" not in said
    assert "last lines" in " ".join(explain(returncode, ["something new"]))


@pytest.mark.parametrize(
    "line", ["cudaMalloc failed: out of memory", "terminate called after std::bad_alloc"]
)
def test_fewer_slots_are_no_remedy_for_lack_of_memory(line: str) -> None:
    # They divide the context, which needs as much memory as before.
    assert "PARALLEL" not in " ".join(explain(1, [line]))
    assert "PARALLEL" not in " ".join(explain(-signal.SIGKILL, []))


@pytest.mark.parametrize(
    "line",
    [
        "srv  log_server_r: done request: POST /v1/chat/completions 127.0.0.1 200",
        "llama_kv_cache: size = 512.00 MiB, device memory: 8 GiB",
        "slot release: id 0 | stop processing: n_tokens = 20, truncated = 0",
    ],
)
def test_an_ordinary_line_is_no_reason(line: str) -> None:
    assert explain(1, [line]) == explain(1, ["something new"])


@pytest.mark.parametrize(
    ("number", "wanted"),
    [
        (signal.SIGKILL, "memory"),
        (signal.SIGILL, "CPU"),
        (signal.SIGSEGV, "crashed"),
        (signal.SIGBUS, "truncated"),
        (signal.SIGABRT, "aborted"),
        (signal.SIGTERM, "another process"),
        (signal.SIGHUP, "another process"),
    ],
)
def test_without_a_known_line_the_signal_determines_the_reason(
    number: signal.Signals, wanted: str
) -> None:
    assert wanted in explain(-number, ["slot launch_slot_: id 0 | processing task"])[0]


def test_a_known_line_takes_precedence_over_the_signal() -> None:
    abort = explain(-signal.SIGABRT, LAST_LINES["a GPU that is full"][0])

    assert abort == explain(1, LAST_LINES["a GPU that is full"][0])


def test_without_its_rpc_server_a_lack_of_memory_has_that_cause() -> None:
    lines = ["0.0 E Failed to connect to 10.0.0.2:50052", "failed to allocate buffer for kv cache"]

    for status, is_killed in ((-signal.SIGSEGV, False), (-signal.SIGKILL, True)):
        reason, advice = explain(status, lines, was_out_of_memory=is_killed)
        assert "The RPC server at 10.0.0.2:50052 did not respond" in reason
        assert advice.startswith("Start ggml-rpc-server there, or remove its address from --rpc. ")
    assert "RPC" not in explain(1, [lines[0], "error: invalid argument: -x"])[0]


@pytest.mark.parametrize("returncode", [-200, -63, 0, 255])
def test_every_death_has_a_reason_and_advice(returncode: int) -> None:
    assert all(explain(returncode, []))


def test_an_exit_without_an_error_is_not_reported_as_one() -> None:
    assert explain(0, []) != explain(1, [])


@pytest.mark.parametrize(
    ("returncode", "status"), [(0, 1), (1, 1), (2, 2), (127, 127), (-9, 137), (-15, 143), (-1, 129)]
)
def test_our_exit_status_is_the_childs_and_never_0(returncode: int, status: int) -> None:
    assert exit_status(returncode) == status


@pytest.mark.parametrize(
    ("returncode", "text"),
    [
        (0, "exit status 0"),
        (3, "exit status 3"),
        (-9, "signal SIGKILL"),
        (-11, "signal SIGSEGV"),
        (-200, "signal 200"),
    ],
)
def test_a_status_is_shown_in_words(returncode: int, text: str) -> None:
    assert status_text(returncode) == text


# What the kernel reports -------------------------------------------------------------------------


@pytest.mark.parametrize("returncode", [-signal.SIGKILL, 128 + signal.SIGKILL])
def test_a_kill_while_the_kernel_freed_memory_is_attributed_to_it(returncode: int) -> None:
    reason, advice = explain(returncode, ["CUDA error: whatever"], was_out_of_memory=True)

    assert reason == "The kernel killed it because memory ran out."
    assert "CTX" in advice


def test_the_kernel_freeing_memory_explains_no_other_death() -> None:
    assert explain(1, [], was_out_of_memory=True) == explain(1, [])


@pytest.mark.parametrize(
    ("events", "kills"),
    [
        ("low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 0\n", 2),
        ("oom_kill_disable 0\nunder_oom 0\noom_kill 5\n", 5),
        ("oom_kill_disable 1\nunder_oom 0\n", 0),
        ("", 0),
    ],
    ids=["v2", "v1", "old", "nothing"],
)
def test_a_control_groups_count_of_kills_is_read(events: str, kills: int) -> None:
    assert oom_kills(events) == kills


def test_the_kernels_log_names_the_killed_process() -> None:
    line = "6,1,2,-;Out of memory: Killed process 311 (llama-server) total-vm:1kB"

    assert is_oom_of(311, line)
    assert not is_oom_of(31, line)
