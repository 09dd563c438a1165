"""The command ``llm``, configured as in its documentation: a file of models, and a key."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.e2e.clients.outcomes import MODEL, Place, report


class LlmError(Exception):
    """Its output, if its exit status is not 0."""


def send_request(place: Place, *flags: str) -> Iterator[str]:
    home = Path(os.environ["LLM_USER_PATH"])
    model = {"model_id": "mine", "model_name": MODEL, "api_base": f"{place.url}/v1"}
    model["api_key_name"] = "mine"  # without it, none is sent, even with --key
    # JSON is YAML too.
    (home / "extra-openai-models.yaml").write_text(json.dumps([model]))
    llm = str(Path(sys.executable).with_name("llm"))
    options = ["--key", place.key, "--no-log", "-o", "max_tokens", "8", *flags]
    process = subprocess.Popen(
        [llm, "-m", "mine", *options, "Say hello."],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    while piece := os.read(process.stdout.fileno(), 4096):
        yield piece.decode()
    complaint = process.stderr.read().decode()
    if process.wait():
        raise LlmError(complaint)


def chat(place: Place) -> Iterator[str]:
    yield "".join(send_request(place, "--no-stream"))


if __name__ == "__main__":
    report(chat, send_request, retries=True)
