from __future__ import annotations

import os
from pathlib import Path

import pytest

from llama_gguf.engines import machine


def nvidia_smi(folder: Path, script: str) -> str:
    """A PATH with an nvidia-smi that runs this line of shell."""
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return str(folder)


def test_system_cpus_and_memory_are_reported() -> None:
    here = machine.look("")

    assert here.system.startswith("Linux ")
    assert 1 <= here.cpus <= (os.cpu_count() or 1)
    assert here.memory_total is not None
    assert here.memory_available is not None
    assert 1 << 20 < here.memory_available <= here.memory_total


@pytest.mark.parametrize(
    ("cpus", "cores", "cpu_limit", "threads"),
    [
        (16, 8, None, 0),
        (16, 8, 12.0, 0),
        (16, 8, 8.0, 0),
        (96, 48, 7.65, 7),  # with 8, all would wait for the one that cannot run
        (16, 8, 0.5, 1),
        (4, 8, None, 4),  # cpuset, taskset
        (4, 8, 2.0, 2),
    ],
)
def test_threads_are_limited_to_those_that_can_run_at_once(
    cpus: int, cores: int, cpu_limit: float | None, threads: int
) -> None:
    here = machine.Machine("Linux", cpus, cores, cpu_limit, None, None, ())

    assert here.thread_limit == threads


def test_without_affinity_all_cpus_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")

    assert machine.look("").cpus == os.cpu_count()


def test_cores_are_counted_once_for_all_their_cpus(tmp_path: Path) -> None:
    for number, siblings in enumerate(["5", "a", "5", "a"]):
        folder = tmp_path / f"cpu{number}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings").write_text(f"{siblings}\n")
    (tmp_path / "cpufreq").mkdir()

    assert machine._cores(str(tmp_path)) == 2
    assert machine._cores(str(tmp_path / "missing")) == os.cpu_count()


# GPUs ---------------------------------------------------------------------------------------------


def test_without_nvidia_smi_no_gpu_is_reported(tmp_path: Path) -> None:
    here = machine.look(str(tmp_path))

    assert here.gpus == ()
    assert here.gpu_text == "none found: CPU mode"


@pytest.mark.processes
def test_every_gpu_is_reported(tmp_path: Path) -> None:
    first, second = "NVIDIA L4, 23034 MiB, 22563 MiB, 550.54", "NVIDIA L4, 23034 MiB, 7 MiB, 550.54"

    here = machine.look(nvidia_smi(tmp_path, f"echo '{first}'; echo; echo ' {second} '"))

    assert here.gpus == (first, second)
    assert here.gpu_text == f"{first}; {second}"


@pytest.mark.processes
def test_nvidia_smi_is_run_for_csv_and_not_for_its_table(tmp_path: Path) -> None:
    here = machine.look(nvidia_smi(tmp_path, 'echo "$@"'))

    assert here.gpus == (
        "--query-gpu=name,memory.total,memory.free,driver_version --format=csv,noheader",
    )


@pytest.mark.processes
@pytest.mark.parametrize(
    "script",
    ["echo 'NVIDIA-SMI has failed: no driver'; exit 9", "kill -SEGV $$", "exit 0", "exec sleep 60"],
    ids=["no-driver", "crash", "silent", "hang"],
)
def test_an_nvidia_smi_that_does_not_work_is_no_gpu(
    tmp_path: Path, script: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_NVIDIA_SMI_SECONDS", 0.3)

    assert machine.look(nvidia_smi(tmp_path, script)).gpus == ()


@pytest.mark.processes
def test_an_nvidia_smi_whose_output_is_not_text_does_no_harm(tmp_path: Path) -> None:
    machine.look(nvidia_smi(tmp_path, r"printf 'NVIDIA \377\n'"))


@pytest.mark.processes
def test_an_nvidia_smi_that_cannot_be_run_is_no_gpu(tmp_path: Path) -> None:
    (tmp_path / "nvidia-smi").write_text("no program")
    (tmp_path / "nvidia-smi").chmod(0o755)

    assert machine.look(str(tmp_path)).gpus == ()


# The disk -----------------------------------------------------------------------------------------


def test_free_space_is_that_of_the_folders_disk(tmp_path: Path) -> None:
    assert (machine.free_disk(str(tmp_path)) or 0) > 0


@pytest.mark.parametrize("name", ["new", "new/and/deeper", "file/below"])
def test_a_missing_folder_has_the_space_of_its_nearest_existing_parent(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / "file").touch()

    assert (machine.free_disk(str(tmp_path / name)) or 0) > 0


@pytest.mark.parametrize("folder", ["", "relative/folder", "/", "/no/such/folder"])
def test_any_folder_has_a_result(folder: str) -> None:
    assert (machine.free_disk(folder) or 0) > 0
