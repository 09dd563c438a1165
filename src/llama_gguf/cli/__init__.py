"""The command ``llama-gguf``: one module a command, each with ``add_arguments`` and ``run``."""
