"""The command ``llama-gguf``: one module per command, each with ``add_arguments`` and ``run``.

A server has ``without_parser``, too: the arguments of a command line so simple that it needs no
parser, or None. With all flags, one takes 3 ms and 0.6 MB.
"""

SERVERS = ("serve", "gateway", "health")
"""The commands that run until they are stopped."""
