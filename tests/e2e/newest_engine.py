"""Prints the path of the engine in the environment of ``make drift``: the newest of a wheel."""

from __future__ import annotations

import os
import sys

from llama_gguf.engines.locate import locate

if __name__ == "__main__":
    sys.stdout.write(f"{locate('', '', environ=os.environ, image_path='').path}\n")
