"""Malformed bytes at the gateway, without sockets: regardless of its input, the gateway passes on
only well-formed messages, and releases all resources.

``cases`` has the invariants, ``mutations`` makes the input. ``make fuzz`` runs new cases for some
time; ``test_fuzz`` runs the same few thousand every time.
"""
