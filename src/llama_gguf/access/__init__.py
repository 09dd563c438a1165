"""API keys: their file, authentication, and rate limits.

Only ``key_file.py`` and ``key_store.py`` do I/O.
"""
