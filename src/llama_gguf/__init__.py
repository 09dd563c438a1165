"""Serves one GGUF model behind an OpenAI-compatible endpoint that can be exposed publicly.

The five-minute map:

- ``core/`` decides: settings, keys, limits, the queue, header rules, states. It
  is plain synchronous code that is handed the time and never does I/O.
- ``gateway/`` is the async proxy in front of llama-server: one Protocol for a
  client's connection, one for the connection to llama-server.
- ``engine/`` finds llama-server and the model, and fetches models.
- ``supervisor/health_server.py`` answers the platform's health checks on a port of its own.
- ``engines/probe.py`` asks llama-server how it is.
- ``supervisor/`` starts all of these, watches them and stops them.
- ``cli/`` is the command ``llama-gguf``, and the only reader of the environment.
"""

__version__ = "0.1.0.dev0"
