"""The report as one self-contained HTML file: no script, no font, no request."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Final

from llama_gguf_bench.results import Circumstances

STYLE: Final = """
:root { color-scheme: light dark; --ground: #fdfdfc; --ink: #1d2329; --soft: #5b6670;
  --line: #d9dde1; --row: #f3f5f6; --mark: #9a5b00; }
@media (prefers-color-scheme: dark) { :root { --ground: #14181c; --ink: #dfe5ea;
  --soft: #96a1ab; --line: #333b43; --row: #1b2127; --mark: #e0a545; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 2rem 1.25rem 4rem; background: var(--ground);
  color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.05rem; margin: 2.5rem 0 .75rem; }
p.sub { color: var(--soft); margin: .25rem 0 0; } .scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .9rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; padding-left: .4rem; }
thead th { color: var(--soft); font-weight: 600; }
tbody tr:nth-child(odd) { background: var(--row); }
table.facts td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
table.facts td:first-child { color: var(--soft); white-space: nowrap; vertical-align: top; }
ul.notes { padding-left: 1.1rem; } ul.notes li::marker { color: var(--mark); }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(30rem, 100%), 1fr));
  gap: 1.5rem; }
figure { margin: 0; } figcaption { font-weight: 600; margin-bottom: .25rem; }
svg { width: 100%; height: auto; display: block; color: var(--ink); }
pre { background: var(--row); padding: .75rem 1rem;
  white-space: pre-wrap; overflow-wrap: anywhere; }
"""


def page(
    circumstances: Circumstances,
    *,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    notes: Sequence[str],
    plots: Mapping[str, str],
) -> str:
    """The content of the file.

    Args:
        circumstances: the environment of the run.
        columns: the table's header row.
        rows: its rows.
        notes: remarks on the numbers.
        plots: ``<svg>`` elements by title.
    """
    title = f"llama-gguf bench: {circumstances.url}"
    figures = "".join(
        f"<figure><figcaption>{escape(name)}</figcaption>{svg}</figure>"
        for name, svg in plots.items()
    )
    parts = [
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>",
        f"<h1>{escape(title)}</h1>",
        f'<p class="sub">{escape(_subtitle(circumstances))}</p>',
        f'<h2>Plots</h2><div class="plots">{figures}</div>' if figures else "",
        f"<h2>Numbers</h2>{_table(columns, rows)}",
        _notes(notes),
        f"<h2>Command</h2><pre>{escape(circumstances.command_line)}</pre>",
        _facts(circumstances),
        "</body></html>\n",
    ]
    return "\n".join(parts)


def _subtitle(circumstances: Circumstances) -> str:
    model = circumstances.model.get("name") or ", ".join(circumstances.server.get("models") or ())
    return " · ".join(filter(None, (str(model), circumstances.date)))


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(c)}</th>" for c in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _notes(notes: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f'<ul class="notes">{items}</ul>' if items else ""


def _facts(circumstances: Circumstances) -> str:
    groups = {
        "machine": circumstances.machine,
        "server": circumstances.server,
        "model": circumstances.model,
        "versions": circumstances.versions,
        "settings": circumstances.settings,
    }
    rows = "".join(
        f"<tr><td>{escape(group)} {escape(name)}</td><td>{escape(_text(value))}</td></tr>"
        for group, facts in groups.items()
        for name, value in facts.items()
        if value not in (None, "", [], {})
    )
    return f'<div class="scroll"><table class="facts"><tbody>{rows}</tbody></table></div>'


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
