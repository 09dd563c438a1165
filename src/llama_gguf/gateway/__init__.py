"""The async proxy in front of llama-server.

``client_connection.py`` and ``upstream_connection.py`` are the two Protocols. They call each other
directly, so an event of a stream costs one call from ``UpstreamConnection.data_received`` to the
client's ``transport.write_now``. ``proxied_request.py`` is the life of one request. Decisions are
made in ``http1/``, ``access/`` and ``scheduling/``; ``services.py`` has what all connections share;
``server.py`` starts, reloads and drains.
"""
