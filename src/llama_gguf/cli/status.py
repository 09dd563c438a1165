"""Show the state of the server that runs with the same DATA_DIR.

It needs no API key: the server's control socket is open to the user who runs it. If
several servers share DATA_DIR, --port chooses one.

Exit status: 0 requests are served, 3 no server runs, 4 one runs and does not serve yet
or any more, 1 another failure.
"""

from __future__ import annotations

import argparse
import json
from typing import Final

from llama_gguf.cli.context import Context
from llama_gguf.cli.operate import SERVES, facts_rows, find
from llama_gguf.cli.terminal import echo

NOT_SERVING: Final = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON, for scripts")


def run(arguments: argparse.Namespace, context: Context) -> int:
    with find(context) as server:
        facts = server.ask("status")
    if arguments.json:
        facts.pop("ok")
        facts.pop("log")
        echo(json.dumps(facts, indent=1))
    else:
        rows = facts_rows(facts)
        width = max(len(label) for label, _ in rows)
        echo("\n".join(f"{label:<{width}}  {text}" for label, text in rows))
    return 0 if facts["state"] in SERVES else NOT_SERVING
