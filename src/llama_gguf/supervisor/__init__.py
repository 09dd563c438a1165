"""The parent of all processes: starts, watches, restarts and stops gateway and llama-server.

``restart_policy.py`` decides, ``supervisor.py`` executes its decisions, and only ``child.py``
creates processes. It does not load the data path.
"""
