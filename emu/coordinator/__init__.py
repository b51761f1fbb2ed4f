# SPDX-License-Identifier: MIT
"""The coordinator: starts the workers of a cell, takes them through its phases, and cleans up.

The only package that starts processes, but for those that `emu record` and `emu calibrate` look at.

    cell.py       a native cell from its arena to its totals
    workers.py    its workers: forked, taken through phases, watched, ended
    plan.py       what a cell is to be, laid out in an arena; the virtual engine's too
    totals.py     what it came to
    rehearsal.py  its program once by itself, before any cell
    processes.py  children that do one thing and answer
    tools.py      compiler, git, addr2line
    stop.py       what ends a cell before its time
"""

from __future__ import annotations

from emu.coordinator.cell import run
from emu.coordinator.plan import VMA_BYTES, DesignFile, Plan, arena_needed, set_up
from emu.coordinator.processes import Child, first_ready, in_child, on_cpus, run_apart
from emu.coordinator.rehearsal import rehearse
from emu.coordinator.stop import CellFailed, Deadline, Interrupted, StopFlag
from emu.coordinator.tools import commit_of, compile_design, source_lines
from emu.coordinator.totals import (
    CellTotals,
    LockTotals,
    PhaseTotals,
    WalkerTotals,
    count_calls,
    gather,
    ops_by_task,
)

__all__ = [
    "VMA_BYTES",
    "CellFailed",
    "CellTotals",
    "Child",
    "Deadline",
    "DesignFile",
    "Interrupted",
    "LockTotals",
    "PhaseTotals",
    "Plan",
    "StopFlag",
    "WalkerTotals",
    "arena_needed",
    "commit_of",
    "compile_design",
    "count_calls",
    "first_ready",
    "gather",
    "in_child",
    "on_cpus",
    "ops_by_task",
    "rehearse",
    "run",
    "run_apart",
    "set_up",
    "source_lines",
]
