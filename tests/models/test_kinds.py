from __future__ import annotations

import pytest

from llama_gguf.models.gguf_values import GgufValue
from llama_gguf.models.kinds import ADAPTER, CONTROL_VECTOR, PROJECTOR, VOCABULARY, Kind, kind_of


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ({"general.architecture": "llama"}, None),
        ({"general.architecture": "llama", "general.type": "model"}, None),
        ({"general.architecture": "a newer one", "general.type": "a newer one"}, None),
        ({"general.architecture": "llama", "general.type": "adapter"}, ADAPTER),
        (
            {
                "general.architecture": "llama",
                "general.type": "adapter",
                "adapter.type": "control_vector",
            },
            CONTROL_VECTOR,
        ),
        ({"general.architecture": "llama", "general.type": "vocab"}, VOCABULARY),
        ({"general.architecture": "clip"}, PROJECTOR),
    ],
)
def test_the_type_precedes_the_architecture(
    values: dict[str, GgufValue], kind: Kind | None
) -> None:
    assert kind_of(values) is kind


def test_a_file_without_an_architecture_is_no_model() -> None:
    for values in ({}, {"general.architecture": 7}):
        kind = kind_of(values)

        assert kind is not None
        assert "does not name an architecture" in kind.what
