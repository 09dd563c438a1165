"""``python -m llama_gguf`` is the command ``llama-gguf``."""

import sys

from llama_gguf.cli.entry import main

sys.exit(main())
