from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_gguf.engines.activity import GREETING, Activity

counts = st.integers(0, 1 << 50)


@given(
    activity=st.builds(
        Activity,
        acknowledged_revision=counts,
        busy=counts,
        running=counts,
        responses=counts,
        data_ticks=counts,
        engine_requested=st.booleans(),
    )
)
def test_an_activity_is_one_line_and_is_read_back_unchanged(
    activity: Activity,
) -> None:
    line = activity.to_line()

    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert line != GREETING
    assert Activity.from_line(line) == activity


@pytest.mark.parametrize("line", [b"", b"[]", b'{"idle": 1}', b"\n"])
def test_a_line_that_is_no_activity_is_rejected(line: bytes) -> None:
    with pytest.raises((ValueError, TypeError)):
        Activity.from_line(line)
