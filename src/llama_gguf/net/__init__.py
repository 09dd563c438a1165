"""Sockets and the event loop. No module here knows HTTP.

``listener.py`` accepts and ``connector.py`` connects; ``transport.py`` does the I/O of a connected
socket, woken by ``poller.py`` within ``event_loop.py``.
"""
