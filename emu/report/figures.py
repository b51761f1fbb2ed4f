# SPDX-License-Identifier: MIT
"""What the HTML report draws: plots as plotly's JSON, from cells. No HTML here.

``sections`` gives one section for each workload, topology, mm design and engine. Its figures have
variants where a reader may choose (a number of CPUs, an operation); all are made ahead, so that the
page can do without us. Names go into plots escaped, since plotly reads a little HTML.
"""

from __future__ import annotations

import html
import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emu import stats
from emu.histogram import decode, new_hdr
from emu.report.designs import Designs
from emu.report.table import sweeps, unit_of
from emu.results import KIND, CellResult, Run
from emu.words import counted

COLOURS = (
    "#3b82c4",
    "#e07b1a",
    "#2a9d6f",
    "#c45fa0",
    "#b0902c",
    "#7a6ad8",
    "#d1495b",
    "#4f9aa3",
)
"""They are told apart on white and on black."""
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "cross", "star", "hexagon")
_DASHES = ("solid", "dash", "dot", "dashdot")
_GREY = "#8a8f98"
_SHOWN_STACKS = 8
_SEEN = 0.001
"""A share that is smaller everywhere is among the others."""
_MOST_NODE_PAIRS = 200_000
_POINTS_PER_DECADE = 12
_BESIDE = 0.15
"""Of a logarithmic axis, in decades, below and above the values: room for a tick or two."""
_APART = 0.08
"""Of the width: what a number of three digits takes on a phone."""
_STEPS = ((1,), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7))
_FEWEST_TICKS = 3
_TIME_COLOURS = {
    "own_work": "#2a9d6f",
    "tree_work": "#8ab661",
    "line_stalls": "#e07b1a",
    "spinning": "#d1495b",
    "asleep": "#7a6ad8",
    "runqueue": "#3b82c4",
    "other_locks": "#c45fa0",
}


@dataclass(frozen=True)
class Variant:
    """Traces and layout as plotly has them. ``choice``: what a reader chooses it by."""

    traces: list[dict[str, Any]]
    layout: dict[str, Any]
    choice: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Figure:
    """A plot; the last variant is shown first."""

    key: str
    title: str
    about: str
    variants: list[Variant]


@dataclass(frozen=True)
class Section:
    """What belongs to one workload, topology and engine."""

    title: str
    engine: str
    kind: str
    """"measured" or "predicted"."""
    note: str
    cells: list[CellResult]
    figures: list[Figure]


def sections(run: Run) -> list[Section]:
    """A section for each sweep of the run; one whose cells all failed has no figures."""
    designs = Designs(run.cells)
    return [_section(cells, designs) for cells in sweeps(run.cells)]


def _section(cells: list[CellResult], designs: Designs) -> Section:
    first, common = cells[0], Designs(cells).constant
    sweep = Sweep([cell for cell in cells if cell.ok], designs)
    made = [make(sweep) for make in FIGURES] if sweep.cells else []
    return Section(
        title=f"{first.workload} on {first.topology}{common and f', {common}'}",
        engine=first.engine,
        kind=KIND.get(first.engine, first.engine),
        note=" ".join(dict.fromkeys(cell.note for cell in cells if cell.note)),
        cells=cells,
        figures=[figure for figure in made if figure and figure.variants],
    )


class Sweep:
    """Cells that ran to their end and differ in design, number of CPUs and repeat only."""

    def __init__(self, cells: list[CellResult], designs: Designs) -> None:
        self.cells, self.name = cells, designs.name
        self.cpus = sorted({cell.cpus for cell in cells})
        ran = {designs.name(cell) for cell in cells}
        self.number = {name: n for n, name in enumerate(designs.names()) if name in ran}
        """Of all designs of the run: a design looks the same everywhere."""
        self.base = designs.baseline if designs.baseline in ran else next(iter(self.number), "")
        """The simplest design, as in the tables; else the first of the run."""
        self._repeats: dict[tuple[str, int], list[CellResult]] = {}
        for cell in cells:
            self._repeats.setdefault((designs.name(cell), cell.cpus), []).append(cell)

    @property
    def designs(self) -> list[str]:
        """In the order of the run."""
        return list(self.number)

    @property
    def unit(self) -> str:
        """What is counted."""
        return unit_of(self.cells[0])

    def repeats(self, design: str, cpus: int) -> list[CellResult]:
        """The repeats; none where it was not run or failed."""
        return self._repeats.get((design, cpus), [])

    def rates(self, design: str, cpus: int) -> list[float]:
        """Operations per second of the repeats."""
        return [cell.ops_per_s for cell in self.repeats(design, cpus)]

    def look(self, design: str) -> dict[str, Any]:
        """Colour, dash and symbol of a design's line."""
        number = self.number[design]
        colour = COLOURS[number % len(COLOURS)]
        dash = _DASHES[number // len(COLOURS) % len(_DASHES)]
        return {
            "type": "scatter",
            "name": escape(design),
            "line": {"color": colour, "dash": dash, "width": 2},
            "marker": {"color": colour, "symbol": _SYMBOLS[number % len(_SYMBOLS)], "size": 7},
        }

    def cpu_axis(self) -> dict[str, Any]:
        """Numbers of CPUs, logarithmic; those have no tick for which a phone has no room."""
        span = math.log(self.cpus[-1] / self.cpus[0])
        ticks = self.cpus[-1:]
        for cpus in reversed(self.cpus):
            if math.log(ticks[0] / cpus) >= _APART * span > 0:
                ticks.insert(0, cpus)
        return {
            "title": {"text": "CPUs"},
            "type": "log",
            "tickvals": ticks,
            "ticktext": [str(cpus) for cpus in ticks],
            "tickangle": 0,
        }


def escape(name: str) -> str:
    """Text that plotly shows as it is."""
    return html.escape(name, quote=False)


def _short(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _curve(
    sweep: Sweep, design: str, points: Iterable[tuple[int, stats.Estimate]]
) -> dict[str, Any]:
    """Values over CPUs, with intervals where there are any."""
    found = [(cpus, each) for cpus, each in points if math.isfinite(each.value)]
    trace = sweep.look(design) | {
        "mode": "lines+markers",
        "x": [cpus for cpus, _ in found],
        "y": [_short(each.value) for _, each in found],
    }
    if any(each.low is not None for _, each in found):
        trace["error_y"] = {
            "type": "data",
            "symmetric": False,
            "array": [_short((each.high or each.value) - each.value) for _, each in found],
            "arrayminus": [
                _short(each.value - (each.value if each.low is None else each.low))
                for _, each in found
            ],
            "thickness": 1.2,
            "width": 3,
        }
    return trace


# ---- the figures ----


def scaling(sweep: Sweep) -> Figure:
    """Throughput over CPUs."""
    traces = [
        _curve(
            sweep,
            design,
            (
                (cpus, stats.median(sweep.rates(design, cpus)))
                for cpus in sweep.cpus
                if sweep.rates(design, cpus)
            ),
        )
        for design in sweep.designs
    ]
    layout = {
        "xaxis": sweep.cpu_axis(),
        "yaxis": _log_axis(
            f"{sweep.unit}/s",
            [cell.ops_per_s for cell in sweep.cells],
            ("", "k", "M", "G"),
        )
        | {"hoverformat": ".4s"},
    }
    about = f"Median {sweep.unit}s per second over numbers of CPUs; both axes are logarithmic."
    return Figure("scaling", "Throughput", about + _bars(sweep), [Variant(traces, layout)])


def _bars(sweep: Sweep) -> str:
    most = max(len(repeats) for repeats in sweep._repeats.values())
    if most < 2:
        return " One repeat: there are no intervals."
    return f" Bars: 95% bootstrap interval of up to {most} repeats."


def speed_up(sweep: Sweep) -> Figure | None:
    """Ratio of each design to the simplest."""
    base = sweep.base
    others = [design for design in sweep.designs if design != base]
    if not others:
        return None
    traces = []
    for design in others:
        pairs = ((cpus, sweep.rates(base, cpus), sweep.rates(design, cpus)) for cpus in sweep.cpus)
        points = [(cpus, stats.speed_up(old, new)) for cpus, old, new in pairs if old and new]
        traces.append(_curve(sweep, design, points))
    layout = {
        "xaxis": sweep.cpu_axis(),
        "yaxis": {"title": {"text": f"times {escape(base)}"}, "rangemode": "tozero"},
        "shapes": [
            {
                "type": "line",
                "xref": "paper",
                "x0": 0,
                "x1": 1,
                "y0": 1,
                "y1": 1,
                "line": {"color": sweep.look(base)["line"]["color"], "dash": "dot"},
            }
        ],
    }
    about = f"How many times the throughput of {base} (dotted: 1)."
    return Figure(
        "speed-up", f"Speed-up over {base}", about + _bars(sweep), [Variant(traces, layout)]
    )


@lru_cache(maxsize=1)
def _bucket_ns() -> NDArray[np.int64]:
    """The largest value of each bucket of a histogram, ns."""
    hdr = new_hdr()
    tops = (
        hdr.get_highest_equivalent_value(hdr.get_value_from_index(index))
        for index in range(hdr.counts_len)
    )
    return np.fromiter(tops, np.int64, hdr.counts_len)


def percentile_curve(cells: Sequence[CellResult], op: str) -> tuple[list[float], list[float]]:
    """1 / (1 - quantile) and latency in ns, over all repeats; empty where nothing is known.

    A value beyond the histogram's range counts as the largest.
    """
    counts: NDArray[np.int64] = np.zeros(len(_bucket_ns()), np.int64)
    overflow, most = 0, 0
    for cell in cells:
        latency = cell.latency_ns.get(op)
        if latency and latency.hdr:
            counts += np.fromiter(decode(latency.hdr).counts, np.int64, len(counts))
            overflow += latency.overflow
            most = max(most, latency.max)
    total = int(counts.sum()) + overflow
    if not total:
        return [], []
    # The same for all curves, but for where each ends.
    steps = np.arange(math.ceil(math.log10(total) * _POINTS_PER_DECADE))
    inverse = np.append(10 ** (steps / _POINTS_PER_DECADE), float(total))
    ranks = np.maximum(1, np.ceil((1 - 1 / inverse) * total - 1e-9))
    buckets = np.searchsorted(np.cumsum(counts), ranks)
    inside = buckets < len(counts)
    values = np.where(inside, _bucket_ns()[np.minimum(buckets, len(counts) - 1)], most)
    values = np.minimum(values, most)
    return [float(f"{x:.6g}") for x in inverse], [float(value) for value in values]


def latency(sweep: Sweep) -> Figure:
    """Latency by percentile, the tail stretched."""
    variants = []
    ops = list(dict.fromkeys(op for cell in sweep.cells for op in cell.latency_ns))
    ops = [op for op in ops if op != "exec"] + [op for op in ops if op == "exec"]
    for op in ops:
        for cpus in sweep.cpus:
            traces = []
            longest = 10.0
            for design in sweep.designs:
                x, y = percentile_curve(sweep.repeats(design, cpus), op)
                if x:
                    look = sweep.look(design) | {"mode": "lines", "x": x, "y": y}
                    look["line"] = look["line"] | {"shape": "hv"}
                    del look["marker"]
                    traces.append(look)
                    longest = max(longest, x[-1])
            nines = range(1 + math.ceil(math.log10(longest)))
            layout = {
                "xaxis": {
                    "title": {"text": "percentile"},
                    "says": "percentile",
                    "type": "log",
                    "tickvals": [10**nine for nine in nines],
                    "ticktext": [percentile_name(nine) for nine in nines],
                },
                "yaxis": time_axis(op, [value for trace in traces for value in trace["y"]]),
            }
            if traces:
                variants.append(Variant(traces, layout, {"Operation": op, "CPUs": str(cpus)}))
    about = "How long an operation takes: all repeats together; the tail is stretched."
    return Figure("latency", "Latency by percentile", about, variants)


def percentile_name(nines: int) -> str:
    """Of 1 - 10**-nines: "0%", "90%", "99%", "99.9%"."""
    return f"{100 * (1 - 10.0**-nines):.{max(0, nines - 2)}f}%"


def time_axis(title: str, values_ns: Sequence[float]) -> dict[str, Any]:
    """A logarithmic axis of times, its ticks in the units that people say."""
    return _log_axis(title, values_ns, ("ns", "µs", "ms", "s"), " ") | {"says": "time"}


def _log_axis(
    title: str, values: Sequence[float], units: Sequence[str], space: str = ""
) -> dict[str, Any]:
    """With as few ticks within each decade as do: three or more in all."""
    shown = [value for value in values if value > 0] or [1.0]
    low, high = math.log10(min(shown)) - _BESIDE, math.log10(max(shown)) + _BESIDE
    ticks: list[tuple[float, str]] = []
    for steps in _STEPS:
        if len(ticks) < _FEWEST_TICKS:
            ticks = [
                (step * 10.0**power, f"{step * 10 ** (power % 3):g}{space}{units[power // 3]}")
                for power in range(3 * len(units))
                for step in steps
                if low <= math.log10(step) + power <= high
            ]
    return {
        "title": {"text": escape(title)},
        "type": "log",
        "tickvals": [at for at, _ in ticks],
        "ticktext": [text.strip() for _, text in ticks],
        "range": [low, high],
    }


def _stacked(
    sweep: Sweep,
    of: Callable[[Sequence[CellResult]], Mapping[str, float]],
    look: Callable[[str, int], tuple[str, str]],
    axis: str,
    order: Sequence[str] = (),
) -> list[Variant]:
    """For each number of CPUs a bar for each design, made of shares of the CPUs' time.

    The largest come first, or what ``order`` says; what is small is added up.
    """
    variants = []
    for cpus in sweep.cpus:
        shares = {
            design: of(sweep.repeats(design, cpus))
            for design in sweep.designs
            if sweep.repeats(design, cpus)
        }
        totals: Counter[str] = Counter()
        for share in shares.values():
            totals.update(share)
        most = {name: max(share.get(name, 0.0) for share in shares.values()) for name in totals}
        largest = {name for name, _ in totals.most_common(_SHOWN_STACKS) if most[name] > _SEEN}
        names = [name for name in order or dict(totals.most_common()) if name in largest]
        bars = {name: [share.get(name, 0.0) for share in shares.values()] for name in names}
        rest = [
            sum(part for name, part in share.items() if name not in bars)
            for share in shares.values()
        ]
        traces = []
        for number, (name, values) in enumerate(bars.items()):
            title, colour = look(name, number)
            traces.append(_bar(list(shares), values, title, colour))
        if any(part > 1e-6 for part in rest):
            traces.append(_bar(list(shares), rest, "others", _GREY))
        layout = {
            "barmode": "stack",
            "xaxis": {
                "title": {"text": axis},
                "says": "share",
                "tickformat": ".3~%",
                "rangemode": "tozero",
            },
            "yaxis": {"autorange": "reversed", "type": "category"},
            "tall": 100 + 40 * len(shares),
        }
        if traces:
            variants.append(Variant(traces, layout, {"CPUs": str(cpus)}))
    return variants


def _bar(
    designs: Sequence[str], values: Sequence[float], title: str, colour: str
) -> dict[str, Any]:
    return {
        "type": "bar",
        "orientation": "h",
        "name": escape(title),
        "y": [escape(design) for design in designs],
        "x": [_short(value) for value in values],
        "marker": {"color": colour},
        "hovertemplate": "%{y}: %{x:.2%}<br>%{fullData.name}<extra></extra>",
    }


def _cpu_time_ns(cells: Iterable[CellResult]) -> float:
    return sum(cell.cpus * cell.seconds * 1e9 for cell in cells)


def waiting_by_lock_and_site(cells: Sequence[CellResult]) -> dict[str, float]:
    """Shares of the CPUs' time, over all repeats."""
    waits: Counter[str] = Counter()
    for cell in cells:
        for lock in cell.locks:
            of = f" of {lock.file.rpartition('/')[2]}" if lock.file else ""
            for site in lock.sites:
                waits[f"{lock.name}{of} in {site.site.rpartition('>')[2] or '-'}"] += site.wait_ns
    time_ns = _cpu_time_ns(cells)
    return {name: wait_ns / time_ns for name, wait_ns in waits.items()} if time_ns else {}


def waiting(sweep: Sweep) -> Figure:
    """Waiting by lock and site."""
    variants = _stacked(
        sweep,
        waiting_by_lock_and_site,
        lambda name, number: (name, COLOURS[number % len(COLOURS)]),
        "share of all CPUs' time",
    )
    about = "Time spent waiting for a lock, by lock and by the function that wanted it."
    return Figure("waiting", "Waiting by lock and site", about, variants)


def _mean_time_stack(cells: Sequence[CellResult]) -> dict[str, float]:
    names = list(dict.fromkeys(name for cell in cells for name in cell.time_stack))
    return {name: statistics.fmean(c.time_stack.get(name, 0.0) for c in cells) for name in names}


def time_stacks(sweep: Sweep) -> Figure:
    """Where all time went (virtual engine)."""

    def look(name: str, number: int) -> tuple[str, str]:
        colour = _TIME_COLOURS.get(name, COLOURS[number % len(COLOURS)])
        return name.replace("_", " "), colour

    variants = _stacked(
        sweep, _mean_time_stack, look, "share of all tasks' time", list(_TIME_COLOURS)
    )
    about = "Where the time of all tasks went, computing included; the parts add up to 100%."
    return Figure("time-stacks", "Time stacks", about, variants)


def transfers(sweep: Sweep) -> Figure:
    """Cache lines from node to node (virtual engine)."""
    variants: list[Variant] = []
    pairs = 0
    for cpus in reversed(sweep.cpus):
        for design in reversed(sweep.designs):
            cells = [cell for cell in sweep.repeats(design, cpus) if cell.node_transfers]
            if not cells:
                continue
            tables = [np.array(cell.node_transfers, float) for cell in cells]
            counts = np.mean([each for each in tables if each.shape == tables[0].shape], axis=0)
            pairs += counts.size
            if variants and pairs > _MOST_NODE_PAIRS:
                continue
            trace = {
                "type": "heatmap",
                "z": [[_short(value) for value in row] for row in counts.tolist()],
                "colorscale": "Viridis",
                "zmin": 0,
                "zmax": max(1.0, float(counts.max())),
                "xgap": 1,
                "ygap": 1,
                "colorbar": {"thickness": 12},
                "hovertemplate": "from node %{x} to node %{y}: %{z:,.0f} lines<extra></extra>",
            }
            layout = {
                "xaxis": {"title": {"text": "from node"}, "dtick": max(1, len(counts) // 16)},
                "yaxis": {
                    "title": {"text": "to node"},
                    "dtick": max(1, len(counts) // 16),
                    "autorange": "reversed",
                },
                "square": True,
            }
            variants.append(Variant([trace], layout, {"Design": design, "CPUs": str(cpus)}))
    about = (
        "Lines that came out of another CPU's cache, by the nodes of both: all phases, a repeat."
    )
    return Figure("transfers", "Cache lines between nodes", about, variants[::-1])


def walkers(sweep: Sweep) -> Figure:
    """What a walk takes, over CPUs."""
    variants = []
    first = sweep.cells[0]
    for number, walker in enumerate(first.walkers):
        traces = []
        values = []
        for design in sweep.designs:
            for percentile, dash in (("p50", "solid"), ("p99", "dot")):
                points = []
                for cpus in sweep.cpus:
                    done = [
                        float(getattr(cell.walkers[number].latency_ns, percentile))
                        for cell in sweep.repeats(design, cpus)
                        if cell.walkers[number].done
                    ]
                    if done:
                        points.append((cpus, stats.median(done)))
                        values += done
                trace = _curve(sweep, design, points)
                trace["name"] += f" {percentile}"
                trace["line"] = trace["line"] | {"dash": dash}
                if points:
                    traces.append(trace)
        layout = {"xaxis": sweep.cpu_axis(), "yaxis": time_axis("a walk", values)}
        name = f"{number + 1}: {walker.kind} of {walker.file.rpartition('/')[2]}"
        if traces:
            variants.append(Variant(traces, layout, {"Walker": name}))
    about = "How long a walk over all mappings of a file takes: median and 99th percentile."
    return Figure("walkers", "What a walker pays", about, variants[::-1])


def memory(sweep: Sweep) -> Figure:
    """What a design's index takes."""
    columns = {
        "a file never mapped": "rmap_bytes_per_file",
        "a file mapped once": "rmap_bytes_per_mapped_file",
        "a file after the run": "rmap_bytes_per_used_file",
        "a VMA": "bytes_per_vma",
    }
    most = sweep.cpus[-1]
    designs = [design for design in sweep.designs if sweep.repeats(design, most)]
    traces = []
    for number, (title, name) in enumerate(columns.items()):
        taken = [
            max(getattr(cell.memory, name) for cell in sweep.repeats(design, most))
            for design in designs
        ]
        traces.append(
            {
                "type": "bar",
                "orientation": "h",
                "name": title,
                "y": [escape(design) for design in designs],
                "x": taken,
                "marker": {"color": COLOURS[number]},
                "texttemplate": "%{x:,}",
                "textposition": "auto",
                "hovertemplate": "%{y}, %{fullData.name}: %{x:,} bytes<extra></extra>",
            }
        )
    layout = {
        "barmode": "group",
        "xaxis": {"title": {"text": "bytes"}, "rangemode": "tozero"},
        "yaxis": {"autorange": "reversed", "type": "category"},
        "tall": 100 + 64 * len(designs),
    }
    about = f"Bytes of the index, of the file that takes most, with {counted(most, 'CPU')}."
    # Micro workloads have no files.
    some = any(value for trace in traces for value in trace["x"])
    return Figure("memory", "Memory", about, [Variant(traces, layout)] if some else [])


FIGURES: tuple[Callable[[Sweep], Figure | None], ...] = (
    scaling,
    speed_up,
    latency,
    waiting,
    time_stacks,
    transfers,
    walkers,
    memory,
)
