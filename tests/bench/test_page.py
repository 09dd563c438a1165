from __future__ import annotations

import re
from html.parser import HTMLParser

from llama_gguf_bench.page import page
from tests.support.bench_runs import CIRCUMSTANCES

PAGE = page(
    CIRCUMSTANCES,
    columns=("", "1 stream"),
    rows=[("requests /s", "5.00"), ("<b>", "1")],
    notes=["1 stream: 2 x <script>"],
    plots={"A & B": "<svg viewBox='0 0 1 1'></svg>"},
)


class Tags(HTMLParser):
    """Records all tags, and whether each is closed."""

    VOID = ("meta", "link", "br", "img")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.seen.add(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_plots_precede_the_numbers() -> None:
    text = page(
        CIRCUMSTANCES, columns=("", "a"), rows=[("x", "1")], notes=[], plots={"P": "<svg/>"}
    )

    assert text.index("<svg/>") < text.index("<table>")


def test_every_element_of_the_page_is_closed() -> None:
    tags = Tags()
    tags.feed(PAGE)

    assert tags.open == []
    assert {"html", "style", "table", "figure", "svg", "pre"} <= tags.seen


def test_the_page_loads_nothing_else() -> None:
    tags = Tags()
    tags.feed(PAGE)

    assert not tags.seen & {"script", "link", "img", "iframe"}
    assert not re.search(r"@import|url\(|src=", PAGE)


def test_the_page_has_a_light_and_a_dark_theme() -> None:
    assert "prefers-color-scheme: dark" in PAGE
    assert "color-scheme: light dark" in PAGE


def test_values_are_text_and_never_markup() -> None:
    assert "<script>" not in PAGE
    assert "&lt;script&gt;" in PAGE
    assert "Tiny &lt;1B&gt;" in PAGE
    assert "<figcaption>A &amp; B</figcaption>" in PAGE


def test_the_page_shows_how_to_repeat_the_run() -> None:
    assert "<pre>llama-gguf bench --concurrency 2</pre>" in PAGE
    assert "<td>machine cpu</td><td>a CPU</td>" in PAGE
    assert "<td>settings prompt_tokens</td><td>[64]</td>" in PAGE
    assert "prompts_file" not in PAGE


def test_without_plots_there_is_no_heading_for_them() -> None:
    assert "<h2>Plots" not in page(CIRCUMSTANCES, columns=(), rows=(), notes=(), plots={})
