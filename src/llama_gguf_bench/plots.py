"""The plots, made with matplotlib: one image file, or SVG for the HTML page.

Imports matplotlib only when something is drawn; the extra ``[bench]`` installs it. In the SVG,
text and axes are ``currentColor`` and the background is transparent, so that the page decides
between light and dark. Colour-blind people can distinguish the colours on both.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Final

from llama_gguf.errors import UserError, how_to_install
from llama_gguf_bench.load import Level
from llama_gguf_bench.overhead import MEASURES, Added, Turns
from llama_gguf_bench.records import Record
from llama_gguf_bench.summary import Span, Summary, slices

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS: Final = ("#3b82c4", "#d9791f", "#2f9e6e", "#b45bb0", "#c7574a", "#8a8d29", "#4fa8b8")
"""Their contrast is at least 3, on white and on near black."""
INK: Final = "#010203"
"""A placeholder for ``currentColor``, replaced when the SVG is written."""
SIZE: Final = (6.4, 3.6)
_TIMELINE_SLICES: Final = 60
_SETTINGS: Final[Mapping[str, Any]] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "llama-gguf bench",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "figure.constrained_layout.use": True,
}
_COLOURED: Final = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")

Results = Sequence[tuple[Level, Summary]]
Draw = Callable[["Axes"], None]


def require() -> None:
    """Raises UserError if matplotlib is missing: better before a run than after it."""
    if find_spec("matplotlib") is None:
        raise UserError(f"--html and --plot require matplotlib: {how_to_install('bench')}", 2)


def plots_of(results: Results) -> dict[str, Draw]:
    """The possible plots of *results*, by title."""
    drawn: dict[str, Draw] = {}
    if not any(summary.counted for _, summary in results):
        return drawn
    if len(results) > 1:
        for name, title in (
            ("ttft_seconds", "Time to first token over load"),
            ("latency_seconds", "Whole response over load"),
        ):
            if any(f"{name}.p50" in s.metrics for _, s in results):
                drawn[title] = _over_load(results, name)
        drawn["Output tokens per second over load"] = _throughput_over_load(results)
    for title, values in (
        ("Time to first token, share of requests", _ttfts),
        ("Gaps between tokens, share of gaps", _gaps),
        ("Whole response, share of requests", _latencies),
    ):
        if any(values(level) for level, _ in results):
            drawn[title] = _cdf(results, values)
    drawn["Output tokens per second over time"] = _timeline(results)
    if any(_ttfts(level) for level, _ in results):
        drawn["Time to first token over time"] = _starts(results)
    return drawn


def plots_of_added(found: Sequence[tuple[Turns, Mapping[str, Added]]]) -> dict[str, Draw]:
    return {
        f"Added to {title}, ms": _added(found, name)
        for name, title in MEASURES.items()
        if any(name in measures for _, measures in found)
    }


# Plots --------------------------------------------------------------------------------------------


def _over_load(results: Results, name: str) -> Draw:
    def draw(axes: Axes) -> None:
        for q, colour in zip(("p50", "p90", "p99"), COLOURS, strict=False):
            points = [
                (place, s.metrics[f"{name}.{q}"].value * 1e3)
                for place, (_, s) in enumerate(results)
                if f"{name}.{q}" in s.metrics
            ]
            xs, ys = zip(*points, strict=True)
            axes.plot(xs, ys, marker="o", markersize=4, color=colour, label=q)
        _label_loads(axes, results)
        axes.set_ylabel("ms")
        axes.set_ylim(bottom=0)
        axes.legend()

    return draw


def _throughput_over_load(results: Results) -> Draw:
    def draw(axes: Axes) -> None:
        for name, label, colour in (
            ("output_tokens_per_second", "total", COLOURS[0]),
            ("stream_output_tokens_per_second", "one stream (median)", COLOURS[1]),
        ):
            points = [
                (place, s.metrics[name].value)
                for place, (_, s) in enumerate(results)
                if name in s.metrics
            ]
            if points:
                xs, ys = zip(*points, strict=True)
                axes.plot(xs, ys, marker="o", markersize=4, color=colour, label=label)
        _label_loads(axes, results)
        axes.set_ylabel("tokens/s")
        axes.set_ylim(bottom=0)
        axes.legend()

    return draw


def _label_loads(axes: Axes, results: Results) -> None:
    axes.set_xticks(range(len(results)), [level.load.text for level, _ in results])


def _ttfts(level: Level) -> list[float]:
    return [v for r in level.counted if r.ok and (v := r.ttft) is not None]


def _latencies(level: Level) -> list[float]:
    return [v for r in level.counted if r.ok and (v := r.latency) is not None]


def _gaps(level: Level) -> list[float]:
    return [gap for r in level.counted if r.ok for gap in r.gaps]


def _cdf(results: Results, values: Callable[[Level], list[float]]) -> Draw:
    def draw(axes: Axes) -> None:
        for colour, (level, _) in _coloured(results):
            found = thinned(sorted(values(level)))
            shares = [100 * i / max(1, len(found) - 1) for i in range(len(found))]
            # Events of one read have a gap of zero, which a logarithmic axis cannot show.
            points = [(v * 1e3, share) for v, share in zip(found, shares, strict=True) if v > 0]
            if points:
                axes.plot(*zip(*points, strict=True), color=colour, label=level.load.text)
        axes.set_xlabel("ms")
        axes.set_ylabel("% of all are no longer")
        axes.set_ylim(0, 100)
        if axes.lines:
            axes.set_xscale("log")
            _plain_numbers(axes)
            axes.legend()

    return draw


def _plain_numbers(axes: Axes) -> None:
    """Labels 5, 20 and 100 instead of powers of ten, as the range is often under a decade."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter  # noqa: PLC0415

    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=12))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _timeline(results: Results) -> Draw:
    def draw(axes: Axes) -> None:
        for colour, (level, _) in _coloured(results):
            spans = [span for record in level.records for span in _token_spans(record)]
            last = max((end for _, _, end in spans), default=0.0)
            if last <= 0:
                continue
            step = last / _TIMELINE_SLICES
            rates = [n / step for n in slices(spans, begin=0, end=last, count=_TIMELINE_SLICES)]
            times = [step * (i + 0.5) for i in range(_TIMELINE_SLICES)]
            axes.plot(times, rates, color=colour, label=level.load.text, linewidth=1.2)
        axes.set_ylabel("tokens/s")
        _label_time(axes, results)

    return draw


def _token_spans(record: Record) -> list[Span]:
    """Tokens at their arrival; those of a response in one piece are spread over its duration."""
    if record.first is None:
        end = record.ended
        return [] if end is None else [(float(record.output_tokens), record.started, end)]
    moments = list(accumulate(record.gaps, initial=record.first))
    return [(record.output_tokens / len(moments), moment, moment) for moment in moments]


def _starts(results: Results) -> Draw:
    def draw(axes: Axes) -> None:
        for colour, (level, _) in _coloured(results):
            points = [(r.intended, 1e3 * t) for r in level.records if (t := r.ttft) is not None]
            if points:
                xs, ys = zip(*points, strict=True)
                axes.plot(xs, ys, ".", markersize=4, color=colour, label=level.load.text)
        axes.set_ylabel("ms")
        _label_time(axes, results)

    return draw


def _label_time(axes: Axes, results: Results) -> None:
    axes.axvline(results[0][0].begin, color=INK, linewidth=0.6, linestyle=":", alpha=0.6)
    axes.set_xlabel("s since the load began; the dotted line ends the warm-up")
    axes.set_ylim(bottom=0)
    axes.legend()


def _added(found: Sequence[tuple[Turns, Mapping[str, Added]]], name: str) -> Draw:
    def draw(axes: Axes) -> None:
        rows = [(turns, measures[name].median) for turns, measures in found if name in measures]
        for place, (_, e) in enumerate(rows):
            low, high = (e.value if bound is None else bound for bound in (e.low, e.high))
            axes.plot([place, place], [low * 1e3, high * 1e3], color=COLOURS[0], linewidth=3)
            axes.plot([place], [e.value * 1e3], "o", color=COLOURS[0], markersize=6)
        axes.axhline(0, color=INK, linewidth=0.8)
        axes.set_xticks(range(len(rows)), [str(turns.streams) for turns, _ in rows])
        axes.set_xlim(-0.5, len(rows) - 0.5)
        axes.set_xlabel("streams at once; median of the differences, 95 %")
        axes.set_ylabel("ms")

    return draw


def _coloured(results: Results) -> Iterator[tuple[str, tuple[Level, Summary]]]:
    for i, result in enumerate(results):
        yield COLOURS[i % len(COLOURS)], result


def thinned(ordered: Sequence[float], most: int = 400) -> Sequence[float]:
    """*count* of the sorted values, evenly spaced and with both ends: enough for a curve."""
    if len(ordered) <= most:
        return ordered
    return [ordered[round(i * (len(ordered) - 1) / (most - 1))] for i in range(most)]


# Output -------------------------------------------------------------------------------------------


@contextmanager
def _figure(ink: str, **size: Any) -> Iterator[Figure]:
    from matplotlib import rc_context  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415  # no pyplot: no windows, no global state

    settings: Any = {**_SETTINGS, **dict.fromkeys(_COLOURED, ink)}
    with rc_context(settings):
        yield Figure(**size)


def as_svg(draw: Draw, title: str) -> str:
    """One plot as an ``<svg>`` element that uses the page's text colour."""
    with _figure(INK, figsize=SIZE) as figure:
        draw(figure.add_subplot())
        figure.patch.set_alpha(0)
        for axes in figure.axes:
            axes.patch.set_alpha(0)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return _for_page(out.getvalue(), title)


def _for_page(svg: str, title: str) -> str:
    """Only the element: no XML declaration, no links; its ids differ from those of other plots."""
    element = svg[svg.index("<svg") :]
    element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    prefix = re.sub(r"\W+", "-", title.lower())
    element = re.sub(r'\bid="', f'id="{prefix}-', element)
    element = re.sub(r'(url\(|xlink:href=")#', rf"\1#{prefix}-", element)
    element = re.sub(
        r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" role="img">', element, count=1
    )
    element = element.replace("xlink:href", "href")
    return element.replace(INK, "currentColor")


def write_image(drawn: Mapping[str, Draw], path: str) -> None:
    """All plots in one image file.

    Raises:
        UserError: it cannot be written, or its extension names no known format.
    """
    rows = -(-len(drawn) // 2)
    with _figure("#222222", figsize=(2 * SIZE[0], rows * SIZE[1])) as figure:
        for place, (title, draw) in enumerate(drawn.items(), start=1):
            axes = figure.add_subplot(rows, 2, place)
            draw(axes)
            axes.set_title(title)
        try:
            figure.savefig(path, dpi=150)
        except (OSError, ValueError) as error:
            raise UserError(f"--plot {path}: {error}") from None
