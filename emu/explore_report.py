# SPDX-License-Identifier: MIT
"""Shows what ``explore`` found: the interleaving, a column a CPU; all scenarios; for Perfetto."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table

from emu import _core
from emu.explore import Event, Finding, Result
from emu.report.trace import meta
from emu.terminal import LOOK
from emu.words import counted

_ROWS = 48
_NOTES = 24


def number(value: int, names: Mapping[int, str]) -> str:
    """A value as it is read best: small ones decimal, pointers by what they point to."""
    if value in names:
        return f"&{names[value]}"
    if value < 1024:
        return str(value)
    if value >= 2**63:
        return f"-{2**64 - value:#x}" if 2**64 - value < 2**32 else f"{value:#x}"
    return f"{value:#x}"


def cell(event: Event, names: Mapping[int, str]) -> str:
    """What a CPU did, in the words of its column."""
    if event.what == "note":
        return f"-- {event.name}"
    if event.order == "ordinary":
        what = f"{event.what}s {event.name}"
    elif event.what in ("fence", "lock", "unlock"):
        what = f"{event.what} {event.name}".strip()
    elif event.what == "read" or event.before == event.after:
        what = f"{event.name} = {number(event.after, names)}"
    else:
        what = f"{event.name}: {number(event.before, names)} -> {number(event.after, names)}"
    if event.is_stale:
        what += " (an older value)"
    place = event.places[0] if event.places else ""
    function, _, line = place.partition(" ")
    return f"{function}:{line.rpartition(':')[2]} {what}" if line else f"{function} {what}"


_INSIDE_LOCKS = re.compile(
    r"\.(owner|osq|wait_lock|wait_first|wait_last)$|wake_token|waiter\.|osq_node|qspin_node|on_cpu"
)
_ABOUT_LOCKS = ("data race", "deadlock", "livelock", "assertion", "starvation")


def that_matter(finding: Finding) -> list[Event]:
    """Notes, and steps at which a CPU changed or looked at what others look at or change.

    How a lock came by its state matters only where the lock may be what is wrong.
    """
    events: Sequence[Event] = finding.events
    if finding.kind not in _ABOUT_LOCKS:
        events = [event for event in events if not _inside_lock(event)]
    kept: list[Event] = []
    last: dict[tuple[int, str], tuple[int, str]] = {}
    for event in events:
        if event.what == "note":
            kept.append(event)
            continue
        if not event.shared:
            continue
        key, value = (event.cpu, event.name), (event.after, event.what)
        # The same look again, as a spinner does it, says nothing new.
        if event.what == "read" and last.get(key) == value:
            continue
        last[key] = value
        kept.append(event)
    return kept


def _inside_lock(event: Event) -> bool:
    if event.what == "note":
        return False
    looks = event.what == "read" or event.before == event.after
    return bool(_INSIDE_LOCKS.search(event.name)) or (looks and event.name.endswith(".count"))


def _fit(events: list[Event], critical: Event | None) -> list[Event]:
    """What fits on a page: notes, which tell the story, and the last steps."""
    if len(events) <= _ROWS:
        return events
    notes = [event for event in events if event.what == "note"][-_NOTES:]
    steps = [event for event in events if event.what != "note"][-(_ROWS - len(notes)) :]
    wanted = {id(event) for event in (*notes, *steps)} | {id(critical)}
    return [event for event in events if id(event) in wanted]


def _wrap(text: str, width: int) -> list[str]:
    lines = []
    while len(text) > width:
        cut = text.rfind(" ", 1, width)
        cut = cut if cut > width // 3 else width
        lines.append(text[:cut])
        text = "  " + text[cut:].lstrip()
    return [*lines, text]


def interleaving(finding: Finding, cpus: int, width: int = 120) -> list[str]:
    """The failing run, a column a CPU, a row a step; ``*`` marks the critical step."""
    events = that_matter(finding)
    column = max(24, (width - 8) // cpus - 3)
    critical = None
    if finding.critical is not None and finding.critical > 0:
        critical = next((e for e in events if e.decisions >= finding.critical), None)
    everything = len(events)
    events = _fit(events, critical)
    left_out = everything - len(events)
    head_line = " | ".join(f"CPU{cpu}".ljust(column) for cpu in range(cpus)).rstrip()
    lines = [f"  step  {head_line}"]
    if left_out:
        lines.append(f"        ({counted(left_out, 'step')} left out)")
    for event in events:
        mark = "*" if event is critical else " "
        for row, text in enumerate(_wrap(cell(event, finding.names), column)):
            cells = ["".ljust(column)] * cpus
            if event.cpu < cpus:
                cells[event.cpu] = text.ljust(column)
            else:
                cells[0] = text.ljust(column)
            step = f"{event.step:6}" if not row else " " * 6
            lines.append(f"{mark if not row else ' '}{step} {' | '.join(cells)}".rstrip())
    return lines


def explain(result: Result, width: int = 120) -> list[str]:
    """A finding in full: what, where, how it came about, how to see it again."""
    finding = result.finding
    if finding is None:
        return []
    unit = result.unit
    lines = [
        f"{finding.kind}: {unit.design}, scenario {unit.scenario.name}, "
        f"after {counted(finding.after, 'schedule', ',')} ({finding.by}, "
        f"seed {unit.seed}, {result.memory})",
        *(f"  {line}" for line in finding.text.splitlines()),
    ]
    if finding.events:
        lines += ["", *interleaving(finding, unit.scenario.cpus, width)]
        if finding.critical:
            lines.append(
                "  * the first step after which every continuation that was tried (by chance) fails"
            )
        elif finding.critical == 0:
            lines.append("  Every order that was tried (by chance) fails.")
    if finding.command:
        lines += ["", f"  again: {finding.command}"]
    return lines


_SUMMARY_ROWS = 30
_KINDS = ("rmap", "mm", "lock", "litmus")
"""Kinds of scenarios, as the summary shows them."""


def _name(result: Result) -> str:
    kind = result.unit.scenario.kind
    return result.unit.design if kind in _core.NAME_OF_KIND else f"({kind})"


def table(results: Sequence[Result]) -> Table:
    """A row a scenario; where that would be more than fit on a screen, a row a design."""
    by_design: dict[str, list[Result]] = {}
    for result in sorted(results, key=lambda r: (_KINDS.index(r.unit.scenario.kind), _name(r))):
        by_design.setdefault(_name(result), []).append(result)
    table = Table(box=None, **LOOK)
    for heading in ("design", "scenario", "found"):
        table.add_column(heading)
    for heading in ("schedules", "per CPU second", "longest"):
        table.add_column(heading, justify="right")
    table.add_column("coverage")
    groups = list(by_design.values())
    if len(results) <= _SUMMARY_ROWS:
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
    return table


def litmus_lines(results: Sequence[Result]) -> Iterator[str]:
    """What litmus tests came to, where all orders were tried."""
    for result in results:
        if result.unit.scenario.kind == "litmus" and result.unit.policy == "exhaustive":
            yield f"{result.unit.scenario.name}: {_outcomes(result)}"


def _outcomes(result: Result) -> str:
    """ "2 outcomes: 0 0, 1 1", without the numbers that no outcome has."""
    used = max((i + 1 for values in result.outcomes for i in range(8) if values[i]), default=1)
    texts = sorted(" ".join(map(str, values[:used])) for values in result.outcomes)
    return f"{counted(len(texts), 'outcome')}: {', '.join(texts)}"


def perfetto(finding: Finding) -> str:
    """The failing run as Chrome's JSON trace, which Perfetto reads: a track a CPU, 1 us a step."""
    rows: list[dict[str, Any]] = []
    for at, event in enumerate(finding.events):
        rows.append(
            {
                "name": event.name if event.what == "note" else cell(event, finding.names),
                "ph": "X",
                "ts": at,
                "dur": 1,
                # Of another process Perfetto takes thread 0 to be the one of the process's number.
                "pid": 0,
                "tid": event.cpu,
                "args": {"order": event.order, "stack": list(event.places), "step": event.step},
            }
        )
    rows += [
        meta("thread_name", 0, cpu, {"name": f"CPU{cpu}"})
        for cpu in sorted({event.cpu for event in finding.events})
    ]
    rows.append(meta("process_name", 0, None, {"name": "failing run"}))
    return json.dumps({"traceEvents": rows})
