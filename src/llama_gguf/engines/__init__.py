"""llama-server: where it is, its command line, its status, and signs that it hangs or why it died.

It runs under ``supervisor/``; requests reach it through ``gateway/``.
"""
