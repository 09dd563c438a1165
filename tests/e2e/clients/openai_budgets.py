"""The official Python client with its usual retries, for keys with budgets: ``test_budgets.py``."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from typing import Any

import openai

from tests.e2e.clients.outcomes import MODEL, QUESTION, outcome


def chat() -> Iterator[str]:
    client = openai.OpenAI(base_url=os.environ["BASE_URL"], api_key=os.environ["KEY"])
    create: Any = client.chat.completions.create
    yield str(create(model=MODEL, messages=QUESTION, max_tokens=8).usage.total_tokens)


if __name__ == "__main__":
    sys.stdout.write(json.dumps([outcome(chat()) for _ in range(2)]))
