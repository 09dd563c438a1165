"""The parent process: starts, monitors, restarts and stops gateway and llama-server.

``supervisor/restart_policy.py`` decides, ``supervisor.py`` runs what it decides, ``child.py`` is
the only file that makes processes.
"""
