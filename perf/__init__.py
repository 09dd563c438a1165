"""The gateway beside nginx and HAProxy, in one run on this machine: ``make bench``.

- ``backend.py`` stands in for llama-server, so that no model's work hides the gateway's.
- ``load.py`` asks, by the thousand, and checks every answer.
- ``peers.py`` starts and ends what is compared, and reads off its CPU time and memory.
- ``__main__.py`` runs the rounds and prints the table.
- ``cost.py`` counts instructions and system calls instead of time: ``make cost``.

Ratios within a run are what counts. CPU times hold still on a machine that others use too;
requests per second and latencies do not.
"""
