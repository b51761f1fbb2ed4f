# SPDX-License-Identifier: MIT
"""`emu check --suite explore`: scenarios in many orders, and what goes wrong. See cli_check."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import typer
from rich.table import Table

from emu import _core, explore, explore_report
from emu.coordinator import Interrupted, StopFlag
from emu.errors import InputError, unknown
from emu.experiment import parse_duration
from emu.explore import Result, Unit
from emu.files import write_output
from emu.progress import ProgressBar
from emu.terminal import plain_console, printable

_ROWS = 30
_MEMORY = ("c11", "sc")
_ORDER = ("rmap", "mm", "lock", "litmus")
"""Kinds of scenarios, as the summary shows them."""


@dataclass(frozen=True)
class Options:
    """What the options of `emu check` say; see there."""

    scenario: str | None
    policy: str
    schedules: int
    time: str
    seed: int
    depth: int
    preemptions: int | None
    memory: str
    mm: str
    replay: str | None
    trace: Path | None
    jobs: int | None


def run(designs: Sequence[str], options: Options) -> bool:
    """Explore and print; no designs: all that are built in. Was anything found?

    Raises InputError, typer.Exit on a signal.
    """
    policy, scenario, replay = options.policy, options.scenario, options.replay
    if policy not in explore.POLICIES[:4]:
        raise unknown("policy", policy, explore.POLICIES[:4])
    if options.memory not in _MEMORY:
        raise unknown("memory model", options.memory, _MEMORY)
    if replay is not None and (not scenario or len(designs) > 1):
        raise InputError("--replay TEXT: one design and --scenario NAME belong to it")
    seconds = parse_duration(options.time, "time") / 1e9
    with contextlib.ExitStack() as cleanup:
        stop = cleanup.enter_context(StopFlag())
        if scenario == "list":
            _list_scenarios()
            return False
        wanted = explore.find_scenarios(scenario, cleanup, options.seed) if scenario else None
        if designs and wanted is None:
            # The locks are no part of what is named.
            wanted = [each for each in explore.scenarios() if each.kind in _core.NAME_OF_KIND]
        names = designs or explore.built_in_designs(*_kinds(wanted))
        units = [
            replace(
                unit,
                policy="replay" if replay is not None else policy,
                seed=options.seed,
                schedules=options.schedules,
                depth=options.depth,
                preemptions=options.preemptions,
                sequential=options.memory == "sc",
                replay=replay or "",
            )
            for unit in explore.make_units(names, wanted, cleanup, mm=options.mm)
        ]
        if replay is not None and len(units) != 1:
            raise InputError("--replay TEXT: one design and --scenario NAME belong to it")
        results, interrupted = _run(units, seconds, stop, options.jobs)
    if options.trace and (first := next((r.finding for r in results if r.finding), None)):
        write_output(options.trace, explore_report.perfetto(first).encode())
    if results:
        _summary(results)
    if interrupted:
        raise typer.Exit(130)
    return any(result.finding for result in results)


def _kinds(wanted: list[explore.Scenario] | None) -> list[str]:
    """Of the designs that the scenarios are about; all scenarios: all."""
    kinds = list(_core.NAME_OF_KIND)
    return [kind for kind in kinds if wanted is None or any(e.kind == kind for e in wanted)]


def _run(
    units: list[Unit], seconds: float, stop: StopFlag, jobs: int | None
) -> tuple[list[Result], bool]:
    """The results, and whether a signal came; what is found is printed at once."""
    width = shutil.get_terminal_size((120, 50)).columns
    results: list[Result] = []
    with ProgressBar() as bar:

        def progress(done: int, total: int, schedules: int) -> None:
            bar.update(done, total, f"{schedules:,} schedules")

        try:
            for result in explore.check(
                units, seconds=seconds, stop=stop, jobs=jobs, progress=progress
            ):
                if result.finding and result.unit.scenario.name.startswith("program:"):
                    result = explore.shrink(result, stop)
                results.append(result)
                if result.finding:
                    bar.clear()
                    lines = explore_report.explain(result, max(width, 100))
                    print(printable("\n".join(lines)), end="\n\n")
                    sys.stdout.flush()
        except Interrupted:
            return results, True
    return results, False


def _name(result: Result) -> str:
    kind = result.unit.scenario.kind
    return result.unit.design if kind in _core.NAME_OF_KIND else f"({kind})"


def _summary(results: list[Result]) -> None:
    """A row a scenario; where that would be more than fit on a screen, a row a design."""
    by_design: dict[str, list[Result]] = {}
    for result in sorted(results, key=lambda r: (_ORDER.index(r.unit.scenario.kind), _name(r))):
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
