from __future__ import annotations

from llama_gguf.engines.address import EngineAddress
from llama_gguf.engines.source import EngineSource, StaticSource


def test_a_static_source_has_the_addresses_that_it_was_given() -> None:
    addresses = (EngineAddress("127.0.0.1", 1), EngineAddress("127.0.0.1", 2))
    source: EngineSource = StaticSource(*addresses)
    source.on_change()

    assert source.addresses == addresses
