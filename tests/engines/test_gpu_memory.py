from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_gguf.engines.gpu_memory import GpuUse, parse, read

MIB = 1 << 20


def test_each_line_is_a_gpu() -> None:
    text = "0, NVIDIA L4, 5000, 23034, 37\n1, NVIDIA L4, 12, 23034, [N/A]\n"

    assert parse(text) == (
        GpuUse(0, "NVIDIA L4", 5000 * MIB, 23034 * MIB, 0.37),
        GpuUse(1, "NVIDIA L4", 12 * MIB, 23034 * MIB, None),
    )


@pytest.mark.parametrize("text", ["", "No devices were found\n", "0, GB10, [N/A], [N/A], 3\n"])
def test_what_has_no_sizes_is_left_out(text: str) -> None:
    assert parse(text) == ()


@given(st.text())
def test_any_output_can_be_parsed(text: str) -> None:
    parse(text)


@pytest.mark.processes
def test_a_program_that_fails_gives_nothing(tmp_path: Path) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 0, NVIDIA L4, 1, 2, 3\nexit 9\n")
    program.chmod(0o700)

    assert read(str(program)) == ()
    assert read(str(tmp_path / "missing")) == ()
    program.write_text("#!/bin/sh\necho 0, NVIDIA L4, 1, 2, 3\n")
    assert read(str(program)) == (GpuUse(0, "NVIDIA L4", MIB, 2 * MIB, 0.03),)
