from __future__ import annotations

from llama_gguf.cluster.order import Identity, Order, Report
from llama_gguf.cluster.scaling import Bounds
from llama_gguf.engines.status import ChildState

ORDER = Order(
    model="m",
    bounds=Bounds(0, 8),
    idle_seconds=300.0,
    gpus=0.5,
    cpus=1.0,
    port=8002,
    drain_seconds=30.0,
    version="1",
    settings={"ctx": "4096"},
    key="the-secret",
)


def test_orders_and_reports_are_passed_on_as_plain_dictionaries() -> None:
    report = Report("10.0.0.1", ChildState.READY, identity=Identity("m", "abc", "1"))
    fields = report.to_fields()

    assert Order.from_fields(ORDER.to_fields()) == ORDER
    assert Report.from_fields(fields) == report
    assert Report.from_fields({**fields, "identity": None}).identity is None
    assert {type(value) for value in fields.values()} <= {str, dict, type(None), int, float}


def test_a_report_of_another_version_is_read_so_that_its_reason_is_shown() -> None:
    fields = Report("10.0.0.1", ChildState.FAILED, detail="another version").to_fields()
    del fields["log_file"]

    assert Report.from_fields({**fields, "news": 1}).detail == "another version"


def test_the_key_is_not_in_what_can_be_printed() -> None:
    assert "the-secret" not in repr(ORDER)
