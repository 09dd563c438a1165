"""llama-server: where it is, its command line, its status, signs of a hang, reasons of an exit.

It runs under ``supervisor/``; requests reach it through ``gateway/``.
"""
