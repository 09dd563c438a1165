"""The engine and its model, before either runs.

``engines/locate.py`` finds llama-server, ``models/model_file.py`` finds and checks the model file, and
``models/pull.py`` fetches models: from the package index (``models/from_wheel.py``), a URL
(``models/from_url.py``) or a model hub (``models/from_hub.py``).
"""
