"""Compares the gateway with nginx and HAProxy, in one run on this machine: ``make bench``.

- ``backend.py`` substitutes for llama-server, so that no model's work hides the gateway's.
- ``load.py`` sends thousands of requests and checks every response.
- ``peers.py`` starts and stops the peers, and measures their CPU time and memory.
- ``__main__.py`` runs the rounds and prints the table.
- ``cost.py`` counts instructions and system calls instead of time: ``make cost``.
- ``keys.py`` measures loading and finding keys: ``python -m perf.keys``.

Compare ratios within a run. CPU times are stable on a shared machine; requests per second and
latencies are not.
"""
