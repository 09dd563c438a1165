from __future__ import annotations

from llama_gguf.cli.context import with_model
from llama_gguf.config.settings import Settings


def test_the_model_of_the_command_line_takes_precedence_over_both_variables() -> None:
    before = Settings.of(model_name="by-name", model_path="/by/path.gguf")

    assert with_model(before, None) is before
    after = with_model(before, "mine")
    assert (after.model.model_name, after.model.model_path) == ("mine", "")
