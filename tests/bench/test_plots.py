from __future__ import annotations

import random
import re
import xml.etree.ElementTree as ET
from array import array
from functools import cache
from importlib import util
from pathlib import Path

import pytest

from llama_gguf.errors import UserError
from llama_gguf_bench import plots
from llama_gguf_bench.load import Level
from llama_gguf_bench.options import Load
from llama_gguf_bench.overhead import Turns, added
from llama_gguf_bench.records import Record
from llama_gguf_bench.summary import Summary, summarise
from tests.support.bench_runs import level


def results(*levels: Level) -> list[tuple[Level, Summary]]:
    return [(each, summarise(each, {})) for each in levels]


RESULTS = results(level(streams=1, seconds=5), level(streams=4, seconds=5))


def test_there_are_plots_of_latency_over_load_distributions_and_time() -> None:
    assert list(plots.plots_of(RESULTS)) == [
        "Time to first token over load",
        "Whole response over load",
        "Output tokens per second over load",
        "Time to first token, share of requests",
        "Gaps between tokens, share of gaps",
        "Whole response, share of requests",
        "Output tokens per second over time",
        "Time to first token over time",
    ]


def test_responses_in_one_piece_have_no_plots_of_tokens() -> None:
    whole = Record(1.0, 1.0, streamed=False, ended=2.0, output_tokens=5)

    drawn = plots.plots_of(results(Level(Load(streams=1), [whole], begin=0.0, end=3.0)))

    assert list(drawn) == [
        "Whole response, share of requests",
        "Output tokens per second over time",
    ]
    for title, draw in drawn.items():
        assert plots.as_svg(draw, title).startswith("<svg")


@pytest.mark.parametrize("gaps", [[0.0, 0.0], [0.0, 0.01]])
def test_tokens_of_one_read_have_no_gap_to_plot(gaps: list[float]) -> None:
    stream = Record(1.0, 1.0, first=1.5, last=1.6, gaps=array("d", gaps), ended=2.0)
    drawn = plots.plots_of(results(Level(Load(streams=1), [stream], begin=0.0, end=3.0)))

    for title, draw in drawn.items():
        assert plots.as_svg(draw, title).startswith("<svg")


def test_without_counted_requests_nothing_is_drawn() -> None:
    assert plots.plots_of(results(Level(Load(streams=1), []))) == {}


@cache  # drawing takes a tenth of a second
def svg_of(title: str) -> str:
    return plots.as_svg(plots.plots_of(RESULTS)[title], title)


@pytest.mark.parametrize("title", plots.plots_of(RESULTS))
def test_an_svg_is_self_contained_and_uses_the_pages_text_colour(title: str) -> None:
    svg = svg_of(title)

    root = ET.fromstring(svg)  # noqa: S314  # our own output
    assert root.tag.endswith("svg")
    assert "viewBox" in root.attrib
    assert "width" not in root.attrib
    assert "currentColor" in svg
    assert plots.INK not in svg
    assert not re.search(r'(?:href|src|url)\s*[=(]\s*"?(?!#|"#)', svg)
    for reference in re.findall(r'(?:href="|url\()#([^")]+)', svg):
        assert f'id="{reference}"' in svg


def test_ids_of_two_plots_differ() -> None:
    ids = [set(re.findall(r'\bid="([^"]+)"', svg_of(title))) for title in plots.plots_of(RESULTS)]

    assert sum(map(len, ids)) == len(set().union(*ids))


def test_the_same_run_gives_the_same_image() -> None:
    title, draw = next(iter(plots.plots_of(RESULTS).items()))

    assert plots.as_svg(draw, title) == svg_of(title)


def test_all_plots_are_in_one_image(tmp_path: Path) -> None:
    plots.write_image(plots.plots_of(RESULTS), str(tmp_path / "x.png"))

    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_an_unknown_image_format_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--plot .*x\.doc"):
        plots.write_image(plots.plots_of(RESULTS), str(tmp_path / "x.doc"))


def test_overhead_is_drawn_for_each_measure() -> None:
    pair = {"direct": {"ttft": 0.1, "tpot": 0.01}, "gateway": {"ttft": 0.2, "tpot": 0.01}}
    found = [(Turns(n), added([pair] * 9, random.Random(1))) for n in (1, 8)]

    drawn = plots.plots_of_added(found)

    assert list(drawn) == ["Added to time to first token, ms", "Added to time per output token, ms"]
    for title, draw in drawn.items():
        assert "currentColor" in plots.as_svg(draw, title)


def test_long_curves_are_thinned_and_keep_their_ends() -> None:
    values = [float(n) for n in range(100_000)]

    thin = plots.thinned(values)

    assert len(thin) == 400
    assert (thin[0], thin[-1]) == (0.0, 99_999.0)
    assert plots.thinned([1.0, 2.0]) == [1.0, 2.0]


def test_without_matplotlib_the_error_names_the_package_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(plots, "find_spec", lambda name: None)

    with pytest.raises(UserError, match=r"pip install 'llama-gguf-inference\[bench\]'"):
        plots.require()


def test_with_matplotlib_there_is_no_error() -> None:
    assert util.find_spec("matplotlib") is not None
    plots.require()
