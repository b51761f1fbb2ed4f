# SPDX-License-Identifier: MIT
"""A run as plain text of at most 72 columns, for a mail or a commit message."""

from __future__ import annotations

import shlex
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from emu import host, stats
from emu.report.designs import Designs
from emu.report.table import format_ns, sweeps, unit_of
from emu.results import KIND, CellResult, Run
from emu.words import counted

WIDTH = 72
_NAME = 22
_BESIDE = 7
"""Of a line, before the name."""
_SHOWN_SITES = 2


def text(run: Run) -> str:
    """The report: machine, command, mean and interval of every cell, where the CPUs waited."""
    lines = [*_head(run)]
    for engine in dict.fromkeys(cell.engine for cell in run.cells):
        for cells in sweeps(cell for cell in run.cells if cell.engine == engine):
            lines += ["", *_sweep(cells, run)]
    lines += [line for each in _remarks(run) for line in ["", *_wrapped(each)]]
    assert all(len(line) <= WIDTH for line in lines)
    return "".join(f"{line}\n" for line in lines)


def _wrapped(text: str, first: str = "", rest: str = "") -> list[str]:
    return textwrap.wrap(
        text, WIDTH, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False
    )


def _head(run: Run) -> Iterator[str]:
    info = run.run
    yield from _wrapped(f"mm-emu {info.version}, run {info.id}, {info.started}")
    if commit := info.build.get("commit"):
        yield from _wrapped(f"commit {commit}")
    command = shlex.join(["emu", *info.command])
    yield from _wrapped(command, "  $ ", "      ")
    kinds = {cell.engine for cell in run.cells}
    if "native" in kinds:
        for name, about in (info.nodes or {"": info.host}).items():
            parts = [
                *([name] if name else []),
                f"{about.get('cpus', '?')} CPUs, {about.get('model', '?')}",
                f"Linux {about.get('kernel', '?')}",
                *(f"{key} {about[key]}" for key in ("governor", "turbo", "smt") if key in about),
            ]
            yield from _wrapped(f"Measured on: {', '.join(parts)}", rest="  ")
    if "virtual" in kinds:
        machines = dict.fromkeys(cell.topology for cell in run.cells if cell.engine == "virtual")
        text = f"Predicted for: {', '.join(machines)} (a model, in virtual time)"
        yield from _wrapped(text, rest="  ")


def _sweep(cells: Sequence[CellResult], run: Run) -> Iterator[str]:
    good = [cell for cell in cells if cell.ok]
    first, designs = cells[0], Designs(cells)
    common = f", {designs.constant}" if designs.constant else ""
    what = f"{first.workload} on {first.topology}{common}, {first.engine} engine"
    yield from _wrapped(f"{what} ({KIND.get(first.engine, '?')})")
    for note in dict.fromkeys(cell.note for cell in cells if cell.note):
        yield from _wrapped(note, "  ", "  ")
    if not good:
        return
    yield ""
    unit, baseline = f"{unit_of(good[0])}/s", designs.baseline
    times = f"x {_cut(baseline, 15)}" if baseline else ""
    heading = f"{'CPUs':>5}  {'design':<{_NAME}} {unit:>12} {'+-95%':>8} {times:>17}"
    yield _cut(heading.rstrip(), WIDTH)
    by_cell: dict[tuple[int, str], list[CellResult]] = {}
    for cell in good:
        by_cell.setdefault((cell.cpus, designs.name(cell)), []).append(cell)
    shown = _short(list(dict.fromkeys(name for _, name in by_cell)))
    before = None
    for (cpus, name), repeats in sorted(by_cell.items(), key=lambda item: item[0][0]):
        rates = [cell.ops_per_s for cell in repeats]
        estimate = stats.mean(rates)
        spread, value = estimate.plus_minus, estimate.value
        times = ""
        if (base := by_cell.get((cpus, baseline or ""))) and name != baseline:
            ratio = stats.speed_up([cell.ops_per_s for cell in base], rates)
            times = f"{ratio.value:.2f}"
            if ratio.low is not None:
                times += f" {ratio.low:.2f}..{ratio.high:.2f}"
        share = f"{100 * spread / value:.1f}%" if spread is not None and value else "-"
        number = str(cpus) if cpus != before else ""
        before = cpus
        *above, last = shown[name]
        for part in above:
            yield f"{number:>5}  {part}"
            number = ""
        line = f"{number:>5}  {last:<{_NAME}} {value:>12,.0f} {share:>8} {times:>17}"
        yield _cut(line.rstrip(), WIDTH)
    yield from _waiting(good, designs)


def _short(names: Sequence[str]) -> dict[str, list[str]]:
    """Each name in the width of its column, cut; on lines of its own where others look the same."""
    cut = {name: _cut(name, _NAME) for name in names}
    seen = Counter(cut.values())
    wide = WIDTH - _BESIDE
    return {
        name: [short]
        if seen[short] == 1
        else [*(name[at : at + wide] for at in range(0, len(name), wide)), ""]
        for name, short in cut.items()
    }


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 2]}.."


def _waiting(cells: Sequence[CellResult], designs: Designs) -> Iterator[str]:
    """With the most CPUs: latency of exec, and the longest waits by lock and site."""
    most = max(cell.cpus for cell in cells)
    yield ""
    yield from _wrapped(
        f"With {counted(most, 'CPU')}: share of CPU time spent waiting, exec p50/p99, and the "
        "longest waits",
    )
    widest = [cell for cell in cells if cell.cpus == most]
    for name in dict.fromkeys(map(designs.name, widest)):
        repeats = [cell for cell in widest if designs.name(cell) == name]
        share = stats.median([cell.wait_share for cell in repeats]).value
        latency = ""
        if all("exec" in c.latency_ns and c.latency_ns["exec"].count for c in repeats):
            p50, p99 = (
                stats.median([getattr(c.latency_ns["exec"], p) for c in repeats]).value
                for p in ("p50", "p99")
            )
            latency = f", exec {format_ns(p50)} / {format_ns(p99)}"
        yield from _wrapped(f"{name}: {share:.1%}{latency}", "  ", "    ")
        waits: dict[str, int] = {}
        for cell in repeats:
            for lock in cell.locks:
                for site in lock.sites:
                    of = f" of {lock.file.rpartition('/')[2]}" if lock.file else ""
                    where = site.site.rpartition(">")[2] or "-"
                    key = f"{lock.name}{of} in {where}"
                    waits[key] = waits.get(key, 0) + site.wait_ns
        time_ns = sum(cell.cpus * cell.seconds * 1e9 for cell in repeats)
        longest = sorted(waits.items(), key=lambda item: -item[1])[:_SHOWN_SITES]
        for key, wait_ns in longest:
            if wait_ns and time_ns:
                yield from _wrapped(f"{wait_ns / time_ns:6.1%} {key}", "    ", "           ")


def _remarks(run: Run) -> Iterator[str]:
    repeats = 1 + max((cell.repeat for cell in run.cells), default=0)
    if repeats > 1:
        yield (
            f"Up to {repeats} repeats with different seeds. +-95%: half of the 95% bootstrap "
            f"interval of the mean, in percent of it. x a design: ratio of medians, and its "
            "interval."
        )
    else:
        yield "One repeat: there are no intervals."
    yield from _native_remarks(run)
    if run.failed:
        yield f"FAILED: {counted(len(run.failed), 'cell')}; the first: {run.failed[0].error}"
    if run.run.status != "done":
        yield f"The run is not complete ({run.run.status})."


def _native_remarks(run: Run) -> Iterable[str]:
    if not any(cell.engine == "native" for cell in run.cells):
        return
    yield from stats.unstable(run.cells)
    if disturbed := host.disturbances_of_run(run.run.host, run.run.nodes):
        yield f"What disturbs measurements on this machine: {' '.join(disturbed)}"
