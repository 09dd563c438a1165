"""Programs that are each a user of one client library: see ``test_client_libraries.py``."""
