"""API keys: their file, who presented which, and how many requests each may send.

Only ``key_file.py`` and ``key_store.py`` do I/O.
"""
