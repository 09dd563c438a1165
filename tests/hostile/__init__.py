"""Hostile clients against a real gateway, and their cost for the gateway and for other clients.

``scenarios`` is the table: attack, settings and bounds of each. ``runner`` starts an engine and
gateways, runs one scenario and judges it by what ``measures`` observes. ``make hostile`` runs all
scenarios; ``test_hostile`` runs the cheap ones without judging durations.
"""
