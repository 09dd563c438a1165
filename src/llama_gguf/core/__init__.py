"""Pure decisions: no socket, clock, file, environment or log in here.

A function is handed the time and the facts and returns what to do. Tests need no
fakes, and the hot path calls these functions directly.
"""
