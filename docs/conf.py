"""How `make site` makes HTML of these pages."""

from __future__ import annotations

from llama_gguf import __version__

project = "llama-gguf-inference"
version = release = __version__
extensions = ["myst_parser"]
html_theme = "furo"
html_title = f"{project} {version}"
myst_heading_anchors = 3
# Links out of docs/ are for readers of the repository; README.md is one of them.
suppress_warnings = ["myst.xref_missing"]
