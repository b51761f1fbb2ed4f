# SPDX-License-Identifier: MIT
"""A native cell from its arena to its totals.

Arena, core and designs are set up here; one worker a CPU is forked; the workload's phases follow
one another; the drain phase must leave the trees and the arena empty. Whatever happens in between,
no process, no socket and no shared memory outlives ``run``.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from emu import _core, live
from emu.arena import Arena, run_directory
from emu.coordinator.plan import Plan, set_up
from emu.coordinator.processes import ChildDied, in_child
from emu.coordinator.stop import CellFailed, StopFlag
from emu.coordinator.totals import CellTotals, PhaseTotals, count_calls, gather
from emu.coordinator.workers import Workers
from emu.errors import InputError

_LOOK_S = 60
"""More than looking at the largest of arenas takes on a busy host."""
_T = TypeVar("_T")


def run(
    plan: Plan, stop: StopFlag, tick: Callable[[float, Callable[[], live.Inside]], None]
) -> CellTotals:
    """Run one cell; ``tick`` is called every 0.1 s or so with the share that is done, and with what
    tells how it looks inside at that moment.

    Raises CellFailed, Interrupted, or InputError when memory or limits do not allow it.
    """
    core = _core.load(plan.machine)
    workload = plan.workload
    try:
        with Arena.create(plan.arena_bytes) as arena:
            # What crashes or hangs in the designs' own code must not do so here.
            in_child(_try_set_up, plan, stop=stop, what="the set-up of the cell", limit_s=_LOOK_S)
            _set_up(core, plan, arena)
            arena.reserve()
            with run_directory() as directory, Workers(plan, core, directory, stop) as workers:
                start_s = workers.start()
                phases: list[PhaseTotals] = []
                calls = 0
                workers.phase("load", workload.load_list, once=True)
                calls += count_calls(core, plan)
                done_ns = 0
                all_ns = plan.duration_ns * sum(phase.share for phase in workload.phases) or 1
                for phase in workload.phases:
                    share_ns = round(plan.duration_ns * phase.share)

                    def inside(name: str = phase.name) -> live.Inside:
                        when = f"in phase {name}"
                        return _read(live.look, core, plan, name, when=when, stop=stop)

                    def progress(
                        elapsed_ns: int,
                        before_ns: int = done_ns,
                        inside: Callable[[], live.Inside] = inside,
                    ) -> None:
                        tick(min(1.0, (before_ns + elapsed_ns) / all_ns), inside)

                    workers.phase(
                        phase.name,
                        phase.list,
                        first=phase.first,
                        once=phase.once,
                        record=phase.record,
                        duration_ns=share_ns,
                        progress=progress,
                    )
                    done_ns += share_ns
                    calls += count_calls(core, plan)
                    if phase.record:
                        when = f"after phase {phase.name}"
                        phases.append(_read(gather, core, plan, phase.name, when=when, stop=stop))
                memory = arena.used_bytes() + _private_bytes([os.getpid(), *workers.pids])
                workers.phase("drain", workload.drain_list, once=True)
                calls += count_calls(core, plan)
                when = "after the drain phase"
                rmap_memory = _read(_look_at_drained, core, when=when, stop=stop)
                workers.finish()
                return CellTotals(
                    phases=phases,
                    calls=calls,
                    start_s=start_s,
                    memory_bytes=memory,
                    rmap_memory=rmap_memory,
                )
    except _core.CoreError as error:
        raise CellFailed(str(error)) from None
    finally:
        core.design_unload()


def _try_set_up(plan: Plan) -> None:
    with Arena.anonymous(plan.arena_bytes) as arena:
        _set_up(_core.load(plan.machine), plan, arena)


def _set_up(core: _core.Core, plan: Plan, arena: Arena) -> None:
    try:
        set_up(core, plan, arena)
    except _core.CoreError as error:
        raise InputError(str(error)) from None


def _read(work: Callable[..., _T], *arguments: Any, when: str, stop: StopFlag) -> _T:
    """What ``work(*arguments)`` finds in the arena. Raises what it raises, or CellFailed.

    In a process of its own: what a CPU, or anybody, has damaged may have no end, or lead anywhere.
    """
    try:
        return in_child(
            work, *arguments, stop=stop, what="who looked", limit_s=_LOOK_S, keeps_core=True
        )
    except ChildDied as error:
        what = f"{when} the arena cannot be looked at: {error}"
        raise CellFailed(what, outside=error.outside) from None


def _look_at_drained(core: _core.Core) -> dict[str, int]:
    """See that nothing is left; ``Core.memory()``. Raises CellFailed."""
    try:
        core.check_drained()
        return core.memory()
    except _core.CoreError as error:
        raise CellFailed(f"after the drain phase {error}") from None


def _private_bytes(pids: Iterable[int]) -> int:
    """Memory of processes without the arena; pages that several share count once in all."""
    kib = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith(("Pss_Anon:", "Pss_File:")):
                    kib += int(line.split()[1])
    return kib * 1024
