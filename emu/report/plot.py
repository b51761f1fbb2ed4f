# SPDX-License-Identifier: MIT
"""A plot of the HTML report as an image for a paper: PNG or SVG, drawn by matplotlib.

What is drawn comes from ``emu.report.figures``, made for plotly; here is what of plotly's words it
uses, and nothing else. No browser is needed.
"""

from __future__ import annotations

import html
import io
import re
from typing import Any

from emu.errors import InputError, unknown
from emu.report.figures import Figure, Section, Variant, sections
from emu.results import KIND, Run

FORMATS = ("png", "svg")
_DPI = 200
_WIDTH_INCH = 6.4
_HEIGHT_INCH = 4.0
_PIXELS_PER_INCH = 100
"""Of the heights that figures ask for."""
_HALF_WIDTH = 36
"""Letters of a legend that has room for another beside it."""
_DASHES = {"solid": "-", "dash": "--", "dot": ":", "dashdot": "-."}
_MARKERS = {
    "circle": "o",
    "square": "s",
    "diamond": "D",
    "triangle-up": "^",
    "x": "x",
    "cross": "P",
    "star": "*",
    "hexagon": "h",
}


def image(run: Run, form: str, which: str | None) -> bytes:
    """The plot ``which``: "KEY" or "KEY:WORD=VALUE,…", as "latency:operation=fork,cpus=64".

    The words are what a reader of the page chooses by, and ``section``, its number from 1. None:
    the first plot. Raises InputError for a plot that the run has not, and without matplotlib.
    """
    section, figure, variant = find(run, which)
    try:
        import matplotlib
    except ImportError:
        raise InputError(f"--format {form} needs matplotlib: pip install 'mm-emu[plots]'") from None
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    height = _HEIGHT_INCH
    if tall := variant.layout.get("tall"):
        # The page has title and legend outside.
        height = tall / _PIXELS_PER_INCH + 0.8 + 0.2 * len(variant.traces)
    # Text stays text, and the same run gives the same file.
    style: Any = {"svg.fonttype": "none", "svg.hashsalt": "mm-emu", "font.size": 9}
    with matplotlib.rc_context(style):
        canvas = Canvas(figsize=(_WIDTH_INCH, height), layout="constrained")
        FigureCanvasAgg(canvas)
        axes = canvas.add_subplot()
        _draw(canvas, axes, variant)
        chosen = ", ".join(f"{key} {value}" for key, value in variant.choice.items())
        kind = KIND.get(section.engine, section.engine)
        lines = [figure.title + (f" ({chosen})" if chosen else ""), f"{section.title}, {kind}"]
        canvas.suptitle("\n".join(map(_verbatim, lines)), fontsize=9, x=0.01, ha="left")
        out = io.BytesIO()
        canvas.savefig(out, format=form, dpi=_DPI, metadata={"Date": None} if form == "svg" else {})
    return out.getvalue()


def find(run: Run, which: str | None) -> tuple[Section, Figure, Variant]:
    """What of the report is meant. Raises InputError that names what there is."""
    found = [section for section in sections(run) if section.figures]
    if not found:
        raise InputError("no cell of this run ran to its end: there is nothing to draw")
    key, _, rest = (which or found[0].figures[0].key).partition(":")
    words = _words(which or "", rest)
    number = words.pop("section", "1")
    if not number.isdecimal() or not 1 <= int(number) <= len(found):
        titles = "; ".join(f"{n}: {each.title}" for n, each in enumerate(found, 1))
        raise InputError(f"--plot {which}: no section {number}; there are {titles}")
    section = found[int(number) - 1]
    figures = {figure.key: figure for figure in section.figures}
    if key not in figures:
        raise unknown("plot", key, figures)
    variants = figures[key].variants
    names = {name.lower(): name for name in variants[-1].choice}
    for word, value in words.items():
        if word not in names:
            raise InputError(
                f"--plot {which}: {key} is not chosen by {word}, but by "
                f"{', '.join(['section', *names])}"
            )
        values = list(dict.fromkeys(each.choice[names[word]] for each in variants))
        if value not in values:
            raise unknown(f"{word} in this plot", value, values)
        variants = [each for each in variants if each.choice[names[word]] == value]
    if not variants:
        raise InputError(f"--plot {which}: there is nothing for this choice")
    return section, figures[key], variants[-1]


def _words(which: str, text: str) -> dict[str, str]:
    """ "operation=fork,design=outer-inner:shards=64,by=cpu": values may have commas and "="."""
    if not text:
        return {}
    names = "operation|cpus|design|walker|section"
    if not re.match(rf"({names})=", text):
        raise InputError(f'--plot {which}: words as "latency:operation=fork,cpus=64"')
    parts = re.split(rf",(?=(?:{names})=)", text)
    return dict(part.split("=", 1) for part in parts)


# ---- drawing ----


def _verbatim(text: str) -> str:
    """A name that matplotlib shows as it is."""
    return html.unescape(text).replace("$", r"\$")


def _draw(canvas: Any, axes: Any, variant: Variant) -> None:
    layout = variant.layout
    lowest: dict[Any, float] = {}
    for trace in variant.traces:
        if trace["type"] == "heatmap":
            _heatmap(canvas, axes, trace)
        elif trace["type"] == "bar":
            _bars(axes, trace, variant, lowest)
        else:
            _line(axes, trace)
    for name in ("x", "y"):
        _axis(axes, name, layout.get(f"{name}axis", {}))
    for shape in layout.get("shapes", ()):
        line = shape["line"]
        axes.axhline(shape["y0"], color=line["color"], linestyle=_DASHES[line["dash"]], zorder=0)
    if variant.traces[0]["type"] != "heatmap":
        axes.grid(visible=True, color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    if len(variant.traces) > 1:
        longest = max(len(trace["name"]) for trace in variant.traces)
        canvas.legend(
            loc="outside lower center",
            ncols=2 if longest <= _HALF_WIDTH else 1,
            fontsize=8,
            frameon=False,
            handlelength=2.5,
        )


def _line(axes: Any, trace: dict[str, Any]) -> None:
    line, marker = trace["line"], trace.get("marker", {})
    options = {
        "color": line["color"],
        "linestyle": _DASHES[line.get("dash", "solid")],
        "linewidth": 1.4,
        "marker": _MARKERS.get(marker.get("symbol", ""), ""),
        "markersize": 4,
        "drawstyle": "steps-post" if line.get("shape") == "hv" else "default",
        "label": _verbatim(trace["name"]),
    }
    bars = trace.get("error_y")
    if bars:
        span = (bars["arrayminus"], bars["array"])
        axes.errorbar(trace["x"], trace["y"], yerr=span, capsize=2, elinewidth=0.9, **options)
    else:
        axes.plot(trace["x"], trace["y"], **options)


def _bars(axes: Any, trace: dict[str, Any], variant: Variant, lowest: dict[Any, float]) -> None:
    """Lying bars, on top of each other or side by side."""
    names = [_verbatim(name) for name in trace["y"]]
    at = list(range(len(names)))
    axes.set_yticks(at, names)
    colour, label = trace["marker"]["color"], _verbatim(trace["name"])
    values = [value or 0.0 for value in trace["x"]]
    if variant.layout["barmode"] == "stack":
        left = [lowest.get(name, 0.0) for name in names]
        axes.barh(at, values, left=left, height=0.7, color=colour, label=label)
        lowest.update({n: a + b for n, a, b in zip(names, left, values, strict=True)})
        return
    height = 0.8 / len(variant.traces)
    number = variant.traces.index(trace)
    places = [y - 0.4 + height * (number + 0.5) for y in at]
    drawn = axes.barh(places, values, height=height, color=colour, label=label)
    axes.bar_label(drawn, labels=[f"{value:,.0f}" for value in values], padding=2, fontsize=7)


def _heatmap(canvas: Any, axes: Any, trace: dict[str, Any]) -> None:
    values = [[float("nan") if each is None else each for each in row] for row in trace["z"]]
    drawn = axes.imshow(values, cmap="viridis", vmin=trace["zmin"], aspect="equal")
    canvas.colorbar(drawn, ax=axes, label="lines")


def _axis(axes: Any, name: str, of: dict[str, Any]) -> None:
    text = of.get("title", {}).get("text")
    if text:
        getattr(axes, f"set_{name}label")(_verbatim(text))
    axis = getattr(axes, f"{name}axis")
    if of.get("type") == "log":
        getattr(axes, f"set_{name}scale")("log")
        axis.set_minor_locator(_nothing())
    if "tickvals" in of:
        texts = [_verbatim(each) for each in of["ticktext"]]
        axis.set_ticks(of["tickvals"], texts, fontsize=7.5)
    if "range" in of:
        getattr(axes, f"set_{name}lim")(*(10**each for each in of["range"]))
    elif of.get("rangemode") == "tozero":
        getattr(axes, f"set_{name}lim")(left=0) if name == "x" else axes.set_ylim(bottom=0)
    if of.get("tickformat") == ".0%":
        axis.set_major_formatter(_percent())
    if of.get("autorange") == "reversed" and not axis.get_inverted():
        axis.set_inverted(True)


def _nothing() -> Any:
    from matplotlib.ticker import NullLocator

    return NullLocator()


def _percent() -> Any:
    from matplotlib.ticker import PercentFormatter

    return PercentFormatter(1.0, decimals=0)
