"""How replicas divide GPUs and threads."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from llama_gguf.config.schema import EngineSettings
from llama_gguf.engines.devices import Device
from llama_gguf.engines.machine import Machine
from llama_gguf.errors import UserError
from llama_gguf.models import memory
from llama_gguf.models.engine_options import Options
from llama_gguf.models.gguf import ModelFacts
from llama_gguf.models.model_file import read_model
from llama_gguf.supervisor.shares import Share, count, shares, with_thread_share
from llama_gguf.values import replace
from tests.support.gguf_files import gguf

GIB = 1 << 30
ALL = Options(ctx=512, parallel=1, ngl=99)


def gpus(kind: str, number: int, free: int = 24 * GIB) -> list[Device]:
    return [Device(f"{kind}{n} (card)", 24 * GIB, free) for n in range(number)]


def environs(parts: Sequence[Share]) -> list[dict[str, str]]:
    return [dict(part.environ) for part in parts]


def flags(parts: Sequence[Share]) -> list[tuple[str, ...]]:
    return [part.flags for part in parts]


# GPUs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "variable"), [("CUDA", "CUDA_VISIBLE_DEVICES"), ("ROCm", "HIP_VISIBLE_DEVICES")]
)
def test_each_replica_sees_its_gpu_only(kind: str, variable: str) -> None:
    parts = shares(2, ALL, {}, gpus(kind, 2))

    assert environs(parts) == [{variable: "0"}, {variable: "1"}]
    assert flags(parts) == [(), ()]
    assert [part.text for part in parts] == [f"{kind}0", f"{kind}1"]


@pytest.mark.parametrize(
    ("visible", "first", "second"), [("2,3", "2", "3"), ("GPU-a, GPU-b", "GPU-a", "GPU-b")]
)
def test_what_the_user_has_made_visible_is_divided(visible: str, first: str, second: str) -> None:
    parts = shares(2, ALL, {"CUDA_VISIBLE_DEVICES": visible}, gpus("CUDA", 2))

    assert [each["CUDA_VISIBLE_DEVICES"] for each in environs(parts)] == [first, second]


def test_hip_also_reads_the_variable_of_cuda() -> None:
    parts = shares(2, ALL, {"CUDA_VISIBLE_DEVICES": "4,5"}, gpus("ROCm", 2))

    assert [each["HIP_VISIBLE_DEVICES"] for each in environs(parts)] == ["4", "5"]


@pytest.mark.parametrize(
    ("kind", "environ"),
    [
        ("Vulkan", {}),
        ("SYCL", {}),
        ("CUDA", {"CUDA_VISIBLE_DEVICES": "0,1,-1,2"}),  # CUDA stops at -1
    ],
)
def test_without_a_variable_that_selects_by_position_a_flag_does(
    kind: str, environ: dict[str, str]
) -> None:
    parts = shares(2, ALL, environ, gpus(kind, 2))

    assert environs(parts) == [{}, {}]
    assert flags(parts) == [("--device", f"{kind}0"), ("--device", f"{kind}1")]


def test_the_users_devices_are_divided_by_their_own_flag() -> None:
    chosen = replace(ALL, devices=("CUDA3", "CUDA1"))
    parts = shares(2, chosen, {}, gpus("CUDA", 4))

    assert flags(parts) == [("--device", "CUDA3"), ("--device", "CUDA1")]
    assert environs(parts) == [{}, {}]


def test_several_gpus_for_each_replica_are_neighbours() -> None:
    parts = shares(2, ALL, {}, gpus("CUDA", 5))

    assert [each["CUDA_VISIBLE_DEVICES"] for each in environs(parts)] == ["0,1", "2,3,4"]


def test_replicas_beyond_the_number_of_gpus_share_them() -> None:
    parts = shares(3, ALL, {}, gpus("CUDA", 2))

    assert [each["CUDA_VISIBLE_DEVICES"] for each in environs(parts)] == ["0", "1", "0"]


def test_a_gpu_that_two_backends_list_is_one_gpu() -> None:
    parts = shares(2, ALL, {}, [*gpus("CUDA", 2), *gpus("Vulkan", 2)])

    assert [part.text for part in parts] == ["CUDA0", "CUDA1"]


@pytest.mark.parametrize(
    ("chosen", "devices"),
    [
        (ALL, []),
        (ALL, None),
        (ALL, gpus("CUDA", 1)),
        (replace(ALL, ngl=0), gpus("CUDA", 2)),
        (replace(ALL, split_mode="none", main_gpu=1), gpus("CUDA", 2)),
    ],
    ids=["no GPU", "unknown", "one", "on the CPU", "one chosen"],
)
def test_nothing_is_divided_where_there_are_no_two_gpus(
    chosen: Options, devices: list[Device] | None
) -> None:
    assert shares(2, chosen, {}, devices) == (Share(), Share())


def test_replicas_cannot_share_rpc_servers() -> None:
    chosen = replace(ALL, rpc=("a:1",))

    with pytest.raises(UserError, match="one llama-server at a time") as raised:
        shares(2, chosen, {}, gpus("CUDA", 2))
    assert raised.value.exit_status == 2
    assert shares(1, chosen, {}, gpus("CUDA", 2)) == (Share(),)


@pytest.mark.parametrize("changes", [{"tensor_split": (3.0, 1.0)}, {"main_gpu": 1}])
def test_flags_that_number_the_gpus_cannot_be_divided(changes: dict[str, object]) -> None:
    chosen = replace(ALL, **changes)  # type: ignore[arg-type]

    with pytest.raises(UserError, match="--tensor-split and --main-gpu"):
        shares(2, chosen, {}, gpus("CUDA", 2))
    assert shares(1, chosen, {}, gpus("CUDA", 2)) == (Share(),)


# Their number -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> ModelFacts:
    path = tmp_path_factory.mktemp("models") / "m.gguf"
    path.write_bytes(gguf())
    return read_model(str(path)).facts


def test_auto_is_one_replica_for_each_gpu_that_the_model_fits_on(facts: ModelFacts) -> None:
    assert memory.need(facts, ALL) is not None
    small = gpus("CUDA", 2, free=1 << 20)

    assert count("auto", facts, ALL, gpus("CUDA", 3)) == 3
    assert count("auto", facts, ALL, [*gpus("CUDA", 2), *small]) == 1
    assert count("auto", facts, ALL, gpus("CUDA", 1)) == 1
    assert count("auto", facts, ALL, None) == 1
    assert count("auto", facts, replace(ALL, ngl=0), gpus("CUDA", 3)) == 1
    assert count(5, facts, ALL, None) == 5


# Threads ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("threads", "environ", "cpu_limit", "number", "expected"),
    [
        (0, {}, 2.5, 1, 2),
        (0, {}, None, 1, 0),
        (6, {}, 2.5, 1, 6),
        (0, {"LLAMA_ARG_THREADS": "3"}, 2.5, 1, 0),
        (0, {"LLAMA_ARG_THREADS": ""}, 2.5, 1, 2),
        (0, {}, None, 4, 2),  # of 8 cores
        (0, {}, 4.0, 3, 1),
        (12, {}, 4.0, 3, 4),
        (0, {}, 1.0, 3, 1),
        (0, {"LLAMA_ARG_THREADS": "3"}, 2.5, 2, 0),
    ],
)
def test_replicas_divide_the_threads_that_can_run_at_once(
    threads: int,
    environ: dict[str, str],
    cpu_limit: float | None,
    number: int,
    expected: int,
) -> None:
    here = Machine("Linux", 16, 8, cpu_limit, None, None, ())
    settings = EngineSettings(threads=threads)

    assert with_thread_share(settings, environ, here, number).threads == expected
