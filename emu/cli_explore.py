# SPDX-License-Identifier: MIT
"""`emu check`: run small scenarios in many orders and tell what goes wrong. Mounted by emu.cli."""

from __future__ import annotations

import contextlib
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from emu import explore, explore_report
from emu.coordinator import Interrupted, StopFlag
from emu.errors import InputError
from emu.experiment import parse_duration, unknown
from emu.explore import Result, Unit
from emu.report.table import plain_console
from emu.results import write_atomically

_PROGRESS_AFTER_S = 2.0
_ROWS = 30
_MEMORY = ("c11", "sc")


class _ProgressLine:
    """One line on a terminal, from two seconds on; gone at the end."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._console = Console(stderr=True)
        self._shown = False

    def update(self, done: int, total: int, schedules: int) -> None:
        """So far: units done, of all; schedules."""
        seconds = time.monotonic() - self._began
        if self._console.is_terminal and seconds >= _PROGRESS_AFTER_S:
            self._write(f"{done}/{total} scenarios, {schedules:,} schedules, {seconds:.0f} s")

    def clear(self) -> None:
        """Make room for something else."""
        if self._shown:
            self._write("")
        self._shown = False

    def _write(self, text: str) -> None:
        self._console.file.write(f"\r\x1b[K{text}")
        self._console.file.flush()
        self._shown = True


def check(
    designs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[DESIGN...]",
            help="rmap designs: a name, name:k=v, or ./FILE.c.  Default: all that are built in",
        ),
    ] = None,
    scenario: Annotated[
        str | None,
        typer.Option(
            metavar="S,S|FILE.c|random:N|list",
            help="Scenarios by name, those of a file, N programs made by chance, or list to see "
            "what there is.  Default: all of designs and locks",
        ),
    ] = None,
    policy: Annotated[
        str,
        typer.Option(
            metavar="P", help="random, pct, mixed (both in turn) or exhaustive: who goes next."
        ),
    ] = "mixed",
    schedules: Annotated[
        int, typer.Option(metavar="N", min=0, help="At most so many a scenario; 0: as time allows.")
    ] = 0,
    duration: Annotated[
        str, typer.Option("--time", metavar="60s", help="For all scenarios together.")
    ] = "60s",
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Of what is by chance.")] = 1,
    depth: Annotated[
        int, typer.Option(metavar="D", min=0, max=8, help="pct: bugs of this depth; 0: 2 to 5.")
    ] = 0,
    preemptions: Annotated[
        int | None,
        typer.Option(metavar="N", min=0, help="exhaustive: at most so many.  Default: any number"),
    ] = None,
    memory: Annotated[
        str, typer.Option(metavar="c11|sc", help="What loads may return: see docs/checking.md.")
    ] = "c11",
    mm: Annotated[str, typer.Option(metavar="M", help="mm design.")] = "mmap-sem-rbtree",
    replay: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Run this one schedule, out of a report.")
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the first failing run for Perfetto, as JSON."),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="At a time.  Default: CPUs of this host")
    ] = None,
) -> None:
    """Run small scenarios in many orders: find missed VMAs, deadlocks, data races and more.

    Exit status 1 when something was found.

    Example: emu check numa-locks --scenario split-walk --time 10s

    Example: emu check ./mine.c --policy pct --seed 7

    Example: emu check --scenario turns-4x2 --policy exhaustive
    """
    if policy not in explore.POLICIES[:4]:
        raise unknown("policy", policy, explore.POLICIES[:4])
    if memory not in _MEMORY:
        raise unknown("memory model", memory, _MEMORY)
    if replay is not None and (not scenario or len(designs or []) > 1):
        raise InputError("--replay TEXT: one design and --scenario NAME belong to it")
    seconds = parse_duration(duration) / 1e9
    with contextlib.ExitStack() as cleanup:
        stop = cleanup.enter_context(StopFlag())
        if scenario == "list":
            _list_scenarios()
            return
        wanted = explore.find_scenarios(scenario, cleanup, seed) if scenario else None
        names = designs or (explore.built_in_designs() if _needs_designs(wanted) else ["single"])
        units = [
            replace(
                unit,
                policy="replay" if replay is not None else policy,
                seed=seed,
                schedules=schedules,
                depth=depth,
                preemptions=preemptions,
                sequential=memory == "sc",
                replay=replay or "",
            )
            for unit in explore.make_units(names, wanted, cleanup, mm=mm)
        ]
        if replay is not None and len(units) != 1:
            raise InputError("--replay TEXT: one design and --scenario NAME belong to it")
        results, interrupted = _run(units, seconds, stop, jobs)
    if trace and (first := next((r.finding for r in results if r.finding), None)):
        write_atomically(trace, explore_report.perfetto(first).encode())
    if results:
        _summary(results)
    if interrupted:
        raise typer.Exit(130)
    if any(result.finding for result in results):
        raise typer.Exit(1)


def _needs_designs(wanted: list[explore.Scenario] | None) -> bool:
    return wanted is None or any(each.kind == "rmap" for each in wanted)


def _run(
    units: list[Unit], seconds: float, stop: StopFlag, jobs: int | None
) -> tuple[list[Result], bool]:
    """The results, and whether a signal came; what is found is printed at once."""
    line = _ProgressLine()
    width = shutil.get_terminal_size((120, 50)).columns
    results: list[Result] = []
    try:
        for result in explore.check(
            units, seconds=seconds, stop=stop, jobs=jobs, progress=line.update
        ):
            if result.finding and result.unit.scenario.name.startswith("program:"):
                result = explore.shrink(result, stop)
            results.append(result)
            if result.finding:
                line.clear()
                print("\n".join(explore_report.explain(result, max(width, 100))), end="\n\n")
                sys.stdout.flush()
    except Interrupted:
        return results, True
    finally:
        line.clear()
    return results, False


def _name(result: Result) -> str:
    kind = result.unit.scenario.kind
    return result.unit.rmap.name if kind == "rmap" else f"({kind})"


def _summary(results: list[Result]) -> None:
    """A row a scenario; where that would be more than fit on a screen, a row a design."""
    by_design: dict[str, list[Result]] = {}
    for result in sorted(results, key=lambda r: (r.unit.scenario.kind != "rmap", _name(r))):
        by_design.setdefault(_name(result), []).append(result)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for heading in ("design", "scenario", "found"):
        table.add_column(heading)
    for heading in ("schedules", "per CPU second", "longest"):
        table.add_column(heading, justify="right")
    table.add_column("coverage")
    groups = list(by_design.values())
    if len(results) <= _ROWS:
        groups = [[result] for group in groups for result in group]
    for group in groups:
        found = [result for result in group if result.finding]
        cpu_seconds = sum(result.cpu_seconds for result in group)
        schedules = sum(result.schedules for result in group)
        table.add_row(
            _name(group[0]),
            group[0].unit.scenario.name if len(group) == 1 else f"{len(group)} scenarios",
            ", ".join(sorted({r.finding.kind for r in found if r.finding})) or "-",
            f"{schedules:,}",
            f"{sum(r.schedules + r.cut for r in group) / max(cpu_seconds, 1e-9):,.0f}",
            f"{max(result.longest for result in group)} steps",
            f"{', '.join(sorted({result.coverage for result in group}))}, {group[0].memory}",
        )
    plain_console(sys.stdout).print(table)
    for result in results:
        if result.unit.scenario.kind == "litmus" and result.unit.policy == "exhaustive":
            print(f"{result.unit.scenario.name}: {_outcomes(result)}")
    count = sum(result.finding is not None for result in results)
    runs = sum(result.schedules for result in results)
    print(f"{len(results)} scenarios, {runs:,} schedules: {count or 'nothing'} found")


def _outcomes(result: Result) -> str:
    """ "2 outcomes: 0 0, 1 1", without the numbers that no outcome has."""
    used = max((i + 1 for values in result.outcomes for i in range(8) if values[i]), default=1)
    texts = sorted(" ".join(map(str, values[:used])) for values in result.outcomes)
    return f"{len(texts)} outcome{'s' if len(texts) != 1 else ''}: {', '.join(texts)}"


def _list_scenarios() -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for heading in ("scenario", "of", "CPUs", "what it does"):
        table.add_column(heading)
    for each in explore.scenarios():
        table.add_row(each.name, each.kind, str(each.cpus), each.help)
    plain_console(sys.stdout).print(table)
