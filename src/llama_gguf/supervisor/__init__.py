"""The parent of all processes: starts, watches, restarts and stops gateway and llama-server.

``restart_policy.py`` decides, ``managed_process.py`` executes its decisions, and only ``child.py``
creates processes. ``supervisor.py`` handles signals and the order of stopping. The data path is
not loaded here.
"""
