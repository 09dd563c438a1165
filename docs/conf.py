"""How Sphinx makes the site: `make site`. The pages are Markdown, and read well on GitHub too."""

from __future__ import annotations

from pathlib import Path

from llama_gguf import __version__

project = "llama-gguf-inference"
author = "the authors of llama-gguf-inference"
release = version = __version__
extensions = ["myst_parser", "sphinxcontrib.mermaid"]
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = f"{project} {version}"
html_show_copyright = False
html_static_path = [str(Path(__file__).parent / "_static")]
html_css_files = ["tables.css"]
html_js_files = ["tables.js"]
smartquotes = False  # it would replace the two hyphens of a flag by a dash

myst_heading_anchors = 4  # [limits](behaviour.md#keys-and-limits), as on GitHub
myst_fence_as_directive = ["mermaid"]
myst_enable_extensions = ["deflist"]

# The diagram renderer for the reader's browser. `make site` downloads it with npm, verifies its
# SHA-256 and serves it with the pages; without npm, pages load it from a CDN.
mermaid_version = "11.17.2"
mermaid_sha256 = "6ad2f42c3fc26bbf9e45cbb6d11898972573ea52b33a5f4ff51952899f950ffd"
fetched = Path(__file__).parent.parent / "build" / "mermaid"
if (fetched / mermaid_version).is_dir():
    html_static_path.append(str(fetched))
    mermaid_use_local = f"{mermaid_version}/mermaid.esm.min.mjs"
mermaid_height = "auto"
mermaid_fullscreen_button = "+"  # a character that every font has
