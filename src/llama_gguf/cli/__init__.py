"""The command ``llama-gguf``: one module per command, each with ``add_arguments`` and ``run``."""

SERVERS = ("serve", "gateway", "health")
"""The commands that run until they are stopped."""
