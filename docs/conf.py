"""How Sphinx makes the site: `make site`. The pages are Markdown, and read well on GitHub too."""

from __future__ import annotations

from llama_gguf import __version__

project = "llama-gguf-inference"
author = "the authors of llama-gguf-inference"
release = version = __version__
extensions = ["myst_parser", "sphinxcontrib.mermaid"]
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = f"{project} {version}"
html_show_copyright = False

myst_heading_anchors = 4  # [limits](behaviour.md#keys-and-limits), as on GitHub
myst_fence_as_directive = ["mermaid"]
myst_enable_extensions = ["deflist"]
