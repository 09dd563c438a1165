"""The async proxy in front of llama-server.

``client.py`` and ``upstream.py`` are the only files with sockets in them: one
Protocol each, joined by plain calls, so that an event of a stream costs one call
from ``upstream.data_received`` to ``client.transport.write``. What they decide by
is in ``core/``; what they share is in ``shared.py``; ``server.py`` starts, reloads
and drains.
"""
