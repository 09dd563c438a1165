"""The command ``llama-gguf``: one module per command, each with ``add_arguments`` and ``run``."""
