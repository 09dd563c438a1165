"""A soak test: a real gateway with all kinds of clients and engine faults, for a long time.

``engine`` and ``client`` are the gateway's peers, both in this process. ``visits`` has what clients
do; ``soak`` starts everything, and checks that all resources are released at the end. ``make soak``
is the long form, ``test_soak`` the short one.
"""
