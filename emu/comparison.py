# SPDX-License-Identifier: MIT
"""Two runs side by side: what differs, by how much, and whether that is hardly chance.

Cells belong together when they agree in engine, workload, topology, CPUs and both designs. A side
that is narrowed to one design ("last:single") is compared with the design that the other side has.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from emu import stats
from emu.errors import InputError, unknown
from emu.results import KIND, CellResult, Run
from emu.words import counted

_LATENCIES = ("exec", "fork", "exit")
_PERCENTILES = ("p50", "p99")
LAYOUTS = ("plain", "lkp", "mmtests")


@dataclass(frozen=True)
class Side:
    """A run, or its cells of one design."""

    name: str
    run: Run
    cells: Sequence[CellResult]
    design: tuple[str, str] | None = None
    """("rmap", "single") when narrowed to that."""


def side(name: str, load: Callable[[str], Run]) -> Side:
    """The side that "RUN" or "RUN:DESIGN" names. Raises InputError for a design it has not."""
    run_name, _, design = name.partition(":")
    run = load(run_name)
    good = [cell for cell in run.cells if cell.ok]
    if not good:
        raise InputError(f"{name}: no cell of this run has finished well")
    if not design:
        return Side(run.run.id, run, good)
    for kind in ("rmap", "mm"):
        found = [cell for cell in good if getattr(cell, kind) == design]
        if found:
            return Side(design, run, found, (kind, design))
    raise unknown("design in this run", design, dict.fromkeys(cell.rmap for cell in good))


@dataclass(frozen=True)
class Difference:
    """A metric of cells that belong together. ``p``: see ``stats.p_value``."""

    engine: str
    cell: str
    metric: str
    unit: str
    higher_is_better: bool
    base: Sequence[float]
    other: Sequence[float]
    ratio: stats.Estimate
    p: float

    @property
    def differs(self) -> bool:
        """Is it hardly chance?"""
        return self.p < stats.SIGNIFICANT

    @property
    def better(self) -> bool:
        """Is the other side better? Means something where they differ."""
        return (self.ratio.value > 1) == self.higher_is_better


@dataclass
class Comparison:
    """Two runs compared; prints as a table."""

    base: Side
    other: Side
    differences: list[Difference] = field(default_factory=list)

    def __str__(self) -> str:
        return self.text()

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"

    @property
    def any_difference(self) -> bool:
        """Does anything differ?"""
        return any(each.differs for each in self.differences)

    def text(self, layout: str = "plain") -> str:
        """The table: "plain", or as "lkp" and "mmtests" print theirs. Raises InputError."""
        tables = {"plain": _plain, "lkp": _lkp, "mmtests": _mmtests}
        if layout not in tables:
            raise unknown("layout", layout, tables)
        lines: list[str] = []
        for engine in dict.fromkeys(each.engine for each in self.differences):
            chosen = [each for each in self.differences if each.engine == engine]
            lines += [f"{engine} engine, {KIND.get(engine, '?')}:", ""]
            lines += [line.rstrip() for line in tables[layout](self, chosen)]
            lines.append("")
        return "\n".join([*lines, *self._remarks()])

    def _remarks(self) -> Iterator[str]:
        few = min(min(len(each.base), len(each.other)) for each in self.differences)
        number = sum(each.differs for each in self.differences)
        if number:
            chance = stats.SIGNIFICANT * len(self.differences)
            yield (
                f"{number} of {len(self.differences)} figures differ (p < {stats.SIGNIFICANT}; "
                f"where nothing differs, chance lets {chance:.1f} of so many seem to)."
            )
        elif few >= stats.REPEATS_TO_TELL or self._same():
            yield "No difference."
        if few < stats.REPEATS_TO_TELL and not self._same():
            yield (
                f"Some have {counted(few, 'repeat')} on a side: to tell whether they differ takes "
                f"{stats.REPEATS_TO_TELL}."
            )
        yield from dict.fromkeys(
            line for each in (self.base, self.other) for line in stats.unstable(each.cells)
        )
        hosts = [each.run.run.host for each in (self.base, self.other)]
        if any(each.engine == "native" for each in self.differences):
            for key in ("model", "kernel", "governor", "turbo", "smt", "transparent_hugepages"):
                values = [str(host.get(key, "?")) for host in hosts]
                if values[0] != values[1]:
                    yield f"The machines differ: {key} is {values[0]} and {values[1]}."

    def _same(self) -> bool:
        return all(sorted(each.base) == sorted(each.other) for each in self.differences)


def compare(base: Side, other: Side) -> Comparison:
    """Compare all that the two have in common. Raises InputError for nothing."""
    free = {each.design[0] for each in (base, other) if each.design}
    axes = [a for a in ("workload", "topology", "mm", "rmap") if a not in free]
    groups: list[dict[tuple[object, ...], list[CellResult]]] = []
    for each in (base, other):
        for kind in sorted(free):
            # Else they would be taken for repeats of one.
            if len(names := dict.fromkeys(getattr(cell, kind) for cell in each.cells)) > 1:
                raise InputError(
                    f"{each.name} has several {kind} designs, of which one is to be compared: "
                    f"RUN:DESIGN with one of {', '.join(names)}"
                )
        groups.append({})
        for cell in each.cells:
            key = (cell.engine, *(getattr(cell, axis) for axis in axes), cell.cpus)
            groups[-1].setdefault(key, []).append(cell)
    common = [key for key in groups[0] if key in groups[1]]
    if not common:
        raise InputError(
            f"{base.name} and {other.name} have no cell in common; RUN:DESIGN compares one design "
            "with another"
        )
    telling = [
        index for index in range(1, len(axes) + 1) if len({key[index] for key in common}) > 1
    ]
    found = Comparison(base, other)
    for key in common:
        words = [str(key[index]) for index in telling]
        name = ", ".join([*words, counted(key[-1], "CPU")])
        found.differences += _of_cells(str(key[0]), name, groups[0][key], groups[1][key])
    return found


def _of_cells(
    engine: str, name: str, base: Sequence[CellResult], other: Sequence[CellResult]
) -> Iterator[Difference]:
    unit = next((phase.unit for phase in base[0].phases if phase.counts_ops), "op")

    def difference(
        metric: str, unit: str, higher: bool, value: Callable[[CellResult], float]
    ) -> Difference:
        before, after = ([value(cell) for cell in cells] for cells in (base, other))
        return Difference(
            engine=engine,
            cell=name,
            metric=metric,
            unit=unit,
            higher_is_better=higher,
            base=before,
            other=after,
            ratio=stats.speed_up(before, after),
            p=stats.p_value(before, after),
        )

    yield difference(f"{unit}_per_s", f"{unit}/s", True, lambda cell: cell.ops_per_s)
    for op in _LATENCIES:
        if all(op in cell.latency_ns and cell.latency_ns[op].count for cell in (*base, *other)):
            for percentile in _PERCENTILES:

                def latency(cell: CellResult, op: str = op, percentile: str = percentile) -> float:
                    return float(getattr(cell.latency_ns[op], percentile)) / 1000

                yield difference(f"{op}_{percentile}_us", "us", False, latency)


def _aligned(rows: Sequence[Sequence[str]], left: Sequence[int]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(
            text.ljust(width) if number in left else text.rjust(width)
            for number, (text, width) in enumerate(zip(row, widths, strict=True))
        )


def _plain(of: Comparison, differences: Sequence[Difference]) -> Iterator[str]:
    rows = [
        ["cell", "figure", of.base.name, "+-", of.other.name, "+-", "times", "interval", "p", ""]
    ]
    for each in differences:
        base, other = stats.median(each.base), stats.median(each.other)
        low, high = each.ratio.low, each.ratio.high
        verdict = "no difference"
        if each.differs:
            verdict = "better" if each.better else "worse"
        elif min(len(each.base), len(each.other)) < stats.REPEATS_TO_TELL:
            same = sorted(each.base) == sorted(each.other)
            verdict = "no difference" if same else "too few repeats"
        rows.append(
            [
                *(each.cell, each.metric),
                *(_number(base.value), _number(base.plus_minus)),
                *(_number(other.value), _number(other.plus_minus)),
                f"{each.ratio.value:.3f}",
                f"{low:.3f}..{high:.3f}" if low is not None else "-",
                f"{each.p:.3f}",
                verdict,
            ]
        )
    yield from _aligned(rows, (0, 1, 9))


def _lkp(of: Comparison, differences: Sequence[Difference]) -> Iterator[str]:
    """Value and relative deviation, change, value and deviation, name: as lkp's reports."""
    names = [of.base.name[:25], of.other.name[:30]]
    yield f"{names[0]:>25}  {names[1]:>30}"
    yield f"{'-' * 25}  {'-' * 30}"
    yield f"{'%stddev':>25}  {'%change':>13} {'%stddev':>16}"
    yield f"{chr(92):>25}  {'|':>13} {chr(92):>16}"
    for each in differences:
        means = [stats.mean(sample).value for sample in (each.base, each.other)]
        change = f"{100 * (means[1] / means[0] - 1):+.1f}%" if each.differs and means[0] else "~"
        yield (
            f"{_number(means[0]):>18}{_stddev(each.base)}  {change:>13} "
            f"{_number(means[1]):>9}{_stddev(each.other)}  "
            f"{each.cell.replace(', ', '/').replace(' ', '')}.{each.metric}"
        )


def _stddev(sample: Sequence[float]) -> str:
    deviation = stats.deviation(sample)
    # lkp leaves out what rounds to nothing.
    shown = deviation is not None and round(100 * deviation) >= 1
    return f" ± {100 * deviation:2.0f}%" if shown and deviation is not None else " " * 7


def _mmtests(of: Comparison, differences: Sequence[Difference]) -> Iterator[str]:
    """Means, harmonic for rates, and the gain: (not significant), *significant*."""
    rows = [["", "", of.base.name, "", of.other.name, ""]]
    for each in differences:
        kind = "Hmean" if each.higher_is_better else "Amean"
        means = [
            _mean(sample, harmonic=each.higher_is_better) for sample in (each.base, each.other)
        ]
        gain = means[1] / means[0] - 1 if means[0] else 0.0
        # + 0.0: no "-0.00%"
        percent = f"{round(100 * (gain if each.higher_is_better else -gain), 2) + 0.0:7.2f}%"
        marked = f"*{percent}*" if each.differs else f"~ ({percent})"
        name = f"{each.metric}-{each.cell.replace(', ', '-').replace(' ', '')}"
        zero = f"({0:7.2f}%)"
        rows.append([kind, name, _number(means[0]), zero, _number(means[1]), marked])
    yield from _aligned(rows, (0, 1))


def _mean(sample: Sequence[float], *, harmonic: bool) -> float:
    if harmonic and all(value > 0 for value in sample):
        return len(sample) / math.fsum(1 / value for value in sample)
    return math.fsum(sample) / len(sample)


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}" if value else "0"
