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

import msgspec

from emu import _core, live
from emu.arena import Arena, run_directory
from emu.coordinator.plan import Plan, set_up
from emu.coordinator.processes import on_cpus
from emu.coordinator.stop import CellFailed, StopFlag
from emu.coordinator.totals import CellTotals, PhaseTotals, count_calls, gather
from emu.coordinator.workers import Workers
from emu.errors import InputError

_DRAINED_S = 60
"""More than looking at the emptiest of the largest arenas takes on a busy host."""


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
            try:
                set_up(core, plan, arena)
            except _core.CoreError as error:
                raise InputError(str(error)) from None
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

                    def progress(
                        elapsed_ns: int, before_ns: int = done_ns, name: str = phase.name
                    ) -> None:
                        share = min(1.0, (before_ns + elapsed_ns) / all_ns)
                        tick(share, lambda: live.look(core, plan, name))

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
                        phases.append(gather(core, plan, phase.name))
                memory = arena.used_bytes() + _private_bytes([os.getpid(), *workers.pids])
                workers.phase("drain", workload.drain_list, once=True)
                calls += count_calls(core, plan)
                rmap_memory = _check_drained(core, stop)
                workers.finish()
                return CellTotals(
                    phases=phases,
                    calls=calls,
                    start_s=start_s,
                    memory_bytes=memory,
                    rmap_memory=rmap_memory,
                    batches=core.design_batches(),
                )
    except _core.CoreError as error:
        raise CellFailed(str(error)) from None
    finally:
        core.design_unload()


def _check_drained(core: _core.Core, stop: StopFlag) -> dict[str, int]:
    """See that nothing is left; ``Core.memory()``. Raises CellFailed.

    In a process of its own: trees that a CPU, or anybody, has damaged may have no end, or lead
    anywhere.
    """
    reader, writer = os.pipe()

    def look() -> None:
        try:
            core.check_drained()
            answer: dict[str, int] | str = core.memory()
        except _core.CoreError as error:
            answer = str(error)
        os.write(writer, msgspec.json.encode(answer))

    try:
        on_cpus(core, 1, look, progress=stop.check, doing=lambda _: None, hang_s=_DRAINED_S)
        said = msgspec.json.decode(os.read(reader, 65536), type=dict[str, int] | str)
    except CellFailed as error:
        what = f"after the drain phase the arena cannot be looked at: {error}"
        raise CellFailed(what, outside=error.outside) from None
    finally:
        os.close(reader)
        os.close(writer)
    if isinstance(said, str):
        raise CellFailed(f"after the drain phase {said}")
    return said


def _private_bytes(pids: Iterable[int]) -> int:
    """Memory of processes without the arena; pages that several share count once in all."""
    kib = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith(("Pss_Anon:", "Pss_File:")):
                    kib += int(line.split()[1])
    return kib * 1024
