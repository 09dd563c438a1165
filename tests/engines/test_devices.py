from __future__ import annotations

import pytest

from llama_gguf.engines.devices import (
    Device,
    DeviceHistory,
    degraded,
    read_devices,
)

# Outputs of `llama-server --list-devices`, of builds of different ages.
CUDA = """\
Available devices:
  CUDA0: NVIDIA GeForce RTX 3080 Ti (11909 MiB, 11650 MiB free)
  CUDA1: NVIDIA RTX PRO 4000 Blackwell SFF Edition (24026 MiB, 23795 MiB free)
ggml_cuda_init: found 2 CUDA devices (Total VRAM: 35936 MiB):
  Device 0: NVIDIA GeForce RTX 3080 Ti, compute capability 8.6, VMM: yes, VRAM: 11909 MiB
load_backend: loaded CUDA backend from /usr/lib/ollama/cuda_v13/libggml-cuda.so
"""
VULKAN = """\
ggml_vulkan: Found 1 Vulkan devices:
ggml_vulkan: 0 = NVIDIA GeForce RTX 2060 (NVIDIA) | uma: 0 | fp16: 1 | bf16: 1 | warp size: 32
Available devices:
  Vulkan0: NVIDIA GeForce RTX 2060 (6144 MiB, 5136 MiB free)
"""
METAL = """\
0.00.000.088 I srv  llama_server: initializing ...
Available devices:
  BLAS: Accelerate (0 MiB, 0 MiB free)
  MTL0: Apple M1 Pro (12124 MiB, 12123 MiB free)
"""
RPC = """\
Available devices:
  RPC0: 127.0.0.1:50998 (24105 MiB, 24105 MiB free)
  RPC1: 127.0.0.1:50999 (24105 MiB, 24105 MiB free)
"""
RPC_ONE_GONE = """\
0.00.177.960 E Failed to connect to 127.0.0.1:50998
Available devices:
  RPC0: 127.0.0.1:50999 (24105 MiB, 24105 MiB free)
"""
RPC_OLD = """\
ggml_cuda_init: found 1 CUDA devices:
Available devices:
  CUDA0: NVIDIA L4 (23034 MiB, 22563 MiB free)
  RPC[10.0.0.2:50052]: RPC[10.0.0.2:50052] (11909 MiB, 11650 MiB free)
"""
CPU = "Available devices:\n"


def read(output: str) -> tuple[Device, ...]:
    devices = read_devices(output)
    assert devices is not None
    return devices


def devices(*names: str) -> list[Device]:
    return [Device(name, 1, 1) for name in names]


@pytest.mark.parametrize(
    ("output", "names"),
    [
        (CUDA, ["NVIDIA GeForce RTX 3080 Ti", "NVIDIA RTX PRO 4000 Blackwell SFF Edition"]),
        (VULKAN, ["NVIDIA GeForce RTX 2060"]),
        (METAL, ["Accelerate", "Apple M1 Pro"]),
        (RPC, ["127.0.0.1:50998", "127.0.0.1:50999"]),
        (RPC_ONE_GONE, ["127.0.0.1:50999"]),
        (RPC_OLD, ["NVIDIA L4", "RPC[10.0.0.2:50052]"]),
        (CPU, []),
    ],
)
def test_the_devices_of_each_backend_are_read(output: str, names: list[str]) -> None:
    assert [device.name.partition(" (")[2].removesuffix(")") for device in read(output)] == names


def test_the_memory_of_a_device_is_read() -> None:
    text = "Available devices:\n  CUDA1: A card (with brackets) (2 MiB, 1 MiB free)\n"

    assert read(text) == (Device("CUDA1 (A card (with brackets))", 2 << 20, 1 << 20),)


def test_an_output_without_a_list_has_no_devices_to_compare() -> None:
    assert read_devices("error: invalid argument: --list-devices") is None


def test_an_engine_that_has_all_devices_lacks_none() -> None:
    history = DeviceHistory()

    assert history.missing(read(CUDA)) == ()
    assert history.missing(read(CUDA)) == ()


def test_a_peer_that_is_gone_is_missing_although_another_has_its_number() -> None:
    history = DeviceHistory()
    history.missing(read(RPC))

    assert history.missing(read(RPC_ONE_GONE)) == ("RPC (127.0.0.1:50998)",)


def test_one_of_two_equal_gpus_is_missed() -> None:
    history = DeviceHistory()
    history.missing(devices("CUDA0 (NVIDIA L4)", "CUDA1 (NVIDIA L4)"))

    assert history.missing(devices("CUDA0 (NVIDIA L4)")) == ("CUDA (NVIDIA L4)",)
    assert history.missing([]) == ("CUDA (NVIDIA L4)", "CUDA (NVIDIA L4)")


def test_the_peer_of_an_older_build_is_missed() -> None:
    history = DeviceHistory()
    history.missing(read(RPC_OLD))

    assert history.missing(devices("CUDA0 (NVIDIA L4)")) == (
        "RPC[10.0.0.2:50052] (RPC[10.0.0.2:50052])",
    )


def test_a_device_is_missed_until_it_is_back() -> None:
    history = DeviceHistory()
    history.missing(read(VULKAN))
    history.missing(read(CPU))

    assert history.missing(read(CPU)) == ("Vulkan (NVIDIA GeForce RTX 2060)",)
    assert history.missing(read(VULKAN)) == ()


def test_free_memory_and_new_devices_do_not_matter() -> None:
    history = DeviceHistory()
    history.missing([Device("CUDA0 (NVIDIA L4)", 24, 23)])

    assert history.missing([Device("CUDA0 (NVIDIA L4)", 24, 1), *read(RPC)]) == ()


def test_the_missing_devices_are_named_in_one_sentence() -> None:
    assert degraded(("CUDA (L4)", "RPC (peer:1)")) == (
        "It runs without devices that it had before: CUDA (L4), RPC (peer:1)"
    )
    assert degraded(()) == ""
