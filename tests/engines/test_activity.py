from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_gguf.engines.activity import GREETING, Activity, ReplicaActivity

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
        replicas=st.dictionaries(st.text(), st.builds(ReplicaActivity, counts, counts, counts)),
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
    with pytest.raises((ValueError, KeyError, TypeError)):
        Activity.from_line(line)


def test_a_replica_is_busy_with_its_own_requests_only() -> None:
    of_second = ReplicaActivity(acknowledged_revision=7, running=1, responses=5, data_ticks=3)
    activity = Activity(9, busy=4, running=3, responses=20, replicas={"b:2": of_second})

    assert activity.of("b:2") == Activity(7, busy=1, running=1, responses=5, data_ticks=3)


def test_a_replica_that_the_gateway_does_not_know_has_acknowledged_nothing() -> None:
    assert Activity(9, busy=4, running=3).of("b:2") == Activity()
