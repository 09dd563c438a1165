"""The installed llama-server behaves as recorded; otherwise the changes are listed."""

from __future__ import annotations

import os

import pytest

from tests.e2e import engine_facts
from tests.e2e.conftest import Served
from tests.e2e.engine_facts import Facts


@pytest.fixture(scope="module")
def observed(served: Served) -> Facts:
    engine = engine_facts.Engine(served.port_backend, served.backend_key)
    facts = engine_facts.observe(engine)
    if os.environ.get("RECORD_ENGINE_FACTS"):
        engine_facts.RECORDED.write_text(engine_facts.written(facts))
    return facts


@pytest.mark.parametrize("heading", engine_facts.recorded())
def test_the_engine_behaves_as_recorded(observed: Facts, heading: str) -> None:
    changed = engine_facts.changes(engine_facts.recorded()[heading], observed[heading])

    assert not changed, "\n".join([f"{heading}:", *changed, engine_facts.RENEW])


def test_all_observed_facts_are_compared(observed: Facts) -> None:
    assert list(observed) == list(engine_facts.recorded())


def test_a_change_is_named() -> None:
    before, now = ["GET /props 200", "GET /slots 200"], ["GET /props 200", "GET /slots 501"]

    assert engine_facts.changes(before, now) == ["gone: GET /slots 200", "new: GET /slots 501"]


def test_a_shape_has_paths_and_kinds_and_no_content() -> None:
    told = {"a": [{"b": "secret", "code": 400}], "c": None}

    assert list(engine_facts.shape(told, shown=["code"])) == [
        "a[].b str",
        "a[].code = 400",
        "c null",
    ]
