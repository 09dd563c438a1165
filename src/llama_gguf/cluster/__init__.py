"""Engines on the machines of a Ray cluster: where they run, and how many.

``controller.py`` decides, ``engine_host.py`` runs one engine on its machine, ``gateways.py`` keeps
the gateways informed. Only ``on_ray.py`` imports Ray.
"""
