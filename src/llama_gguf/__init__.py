"""Serves one GGUF model behind an OpenAI-compatible endpoint that can be exposed publicly.

The five-minute map:

- ``cli/`` is the command ``llama-gguf``, and the only reader of the environment.
- ``supervisor/`` is the parent of all processes: it starts, monitors, restarts and stops them.
- ``gateway/`` is the async proxy in front of llama-server: a Protocol for the client's connection,
  and one for the connection to llama-server.
- ``scheduling/`` decides which request runs, ``access/`` who may send requests and how many.
- ``engines/`` is llama-server: its command line, health and exit. ``models/`` is model files and
  downloads. ``telemetry/`` is metrics, the access log and token usage.
- ``http1/`` is HTTP without sockets, ``net/`` is sockets without HTTP, ``files/`` is log files and
  the detection of changed files.
- ``config/`` has the settings, ``events.py`` the log events, ``errors.py`` the errors.

A module imports only from layers below its own: docs/architecture.md.
"""

__version__ = "0.1.0.dev0"
