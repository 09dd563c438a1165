"""One program per client library: see ``test_client_libraries.py``."""
