"""Serves one GGUF model behind an OpenAI-compatible endpoint that can be exposed publicly.

The five-minute map:

- ``cli/`` is the command ``llama-gguf``, and the only reader of the environment.
- ``supervisor/`` is the parent of all processes: it starts, watches, restarts and stops them.
- ``gateway/`` is the async proxy in front of llama-server: a Protocol for a client's connection,
  and one for the connection to llama-server.
- ``scheduling/``, ``access/``, ``engines/``, ``models/`` and ``telemetry/`` are its subjects; they
  do not import each other.
- ``http1/`` is HTTP without sockets, ``net/`` is sockets without HTTP, ``files/`` is logs on disk.
- ``config/`` has the settings, ``events.py`` the log events, ``errors.py`` the errors.
"""

__version__ = "0.1.0.dev0"
