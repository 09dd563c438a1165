"""The async proxy in front of llama-server.

``client.py`` and ``upstream_connection.py`` are the two Protocols, joined by plain calls, so
that an event of a stream costs one call from ``upstream.data_received`` to
``client.transport.write_now``. What they decide by is in ``core/``; what they share is
in ``services.py``; ``server.py`` starts, reloads and drains. Sockets are in
``net/listener.py`` and ``net/connector.py`` until they are connected, then in ``net/transport.py``;
``net/poller.py`` watches them, within ``net/event_loop.py``.
"""
