# SPDX-License-Identifier: MIT
"""What a cell came to: read from the arena after each phase and added up over all CPUs."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from emu import _core
from emu.coordinator.plan import Plan
from emu.coordinator.stop import CellFailed
from emu.histogram import Histogram
from emu.workload import WALKER_KINDS


@dataclass
class LockTotals:
    """A lock class over all CPUs: a LOCK_STAT_DTYPE for each mode and for each call site."""

    name: str
    file: str | None
    modes: dict[str, NDArray[np.void]]
    sites: dict[str, NDArray[np.void]] = field(default_factory=dict)

    @property
    def total(self) -> NDArray[np.void]:
        """However the lock was taken."""
        return _sum(np.stack([*self.modes.values()]))


@dataclass
class WalkerTotals:
    """What a walker did in a phase. ``done``, ``refused`` and ``lost`` add up to its attempts."""

    kind: str
    file: str
    cpu: int
    first: int
    last: int
    at_once: int
    every_ns: int
    done: int
    refused: int
    lost: int
    vmas: int
    pages: int
    latency: Histogram


@dataclass
class PhaseTotals:
    """What a recorded phase came to. ``seconds``: from the start line to the last CPU's end."""

    name: str
    seconds: float
    wait_ns: int
    counts: dict[str, int]
    hists: dict[str, Histogram]
    locks: list[LockTotals]
    walkers: list[WalkerTotals]


@dataclass
class CellTotals:
    """What a cell came to."""

    phases: list[PhaseTotals]
    calls: int
    start_s: float
    memory_bytes: int
    rmap_memory: dict[str, int]
    """The fields of results.Memory."""


def count_calls(core: _core.Core, plan: Plan) -> int:
    """System calls that the CPUs did in the phase that has just ended."""
    cpus = range(len(plan.node_of_cpu))
    return sum(sum(core.cpu_result(cpu).contents.counts) for cpu in cpus)


def ops_by_task(core: _core.Core, plan: Plan, unit: str) -> list[int]:
    """How many of a unit each task did in the phase that has just ended."""
    tasks = range(len(plan.node_of_cpu))
    if unit == "fault":  # as gather() counts them
        return [core.faults(task) for task in tasks]
    results = [core.cpu_result(task).contents for task in tasks]
    if unit == "iteration":
        return [result.iterations for result in results]
    return [result.counts[_core.CALL_NAMES.index(unit)] for result in results]


def gather(core: _core.Core, plan: Plan, name: str) -> PhaseTotals:
    """Add up what the CPUs left in the arena. Raises CellFailed when it does not add up."""
    cpus = range(len(plan.node_of_cpu))
    status = core.phase_status().contents
    results = [core.cpu_result(cpu).contents for cpu in cpus]
    counts = {
        op: sum(result.counts[number] for result in results)
        for number, op in enumerate(_core.CALL_NAMES)
    }
    counts["iteration"] = sum(result.iterations for result in results)
    records = core.hists(len(cpus))
    hists = {op: Histogram.merged(records[:, number]) for number, op in enumerate(_core.LAT_NAMES)}
    # A call that touches pages makes as many faults as there are pages missing.
    counts["fault"] = hists["fault"].count
    for op, histogram in hists.items():
        if op in counts and histogram.count != counts[op]:
            raise CellFailed(
                f"BUG: phase {name} counted {counts[op]} of {op} and {histogram.count} latencies"
            )
    return PhaseTotals(
        name=name,
        seconds=(max(result.end_ns for result in results) - status.start_ns) / 1e9,
        wait_ns=sum(result.wait_ns for result in results),
        counts=counts,
        hists=hists,
        locks=gather_locks(core),
        walkers=[_gather_walker(core, plan, i) for i in range(len(plan.workload.walkers))],
    )


def _gather_walker(core: _core.Core, plan: Plan, number: int) -> WalkerTotals:
    walker, latency = core.walker(number)
    return WalkerTotals(
        kind=WALKER_KINDS[walker.kind],
        file=plan.workload.files[walker.file].name,
        cpu=walker.cpu,
        first=walker.first,
        last=walker.last,
        at_once=walker.at_once,
        every_ns=walker.every_ns,
        done=walker.done,
        refused=walker.refused,
        lost=walker.lost,
        vmas=walker.vmas,
        pages=walker.pages,
        latency=Histogram.merged(latency),
    )


def gather_locks(core: _core.Core) -> list[LockTotals]:
    """Lock statistics of all CPUs by class and by the path of the call site."""
    stats = core.lock_stats()
    path_of = functools.cache(core.site_path)
    found = []
    for class_id in np.flatnonzero(stats["acquired"].any(axis=(1, 2))).tolist():
        of_class = stats[class_id]
        by_path: dict[str, list[int]] = {}
        for site in np.flatnonzero(of_class["acquired"].any(axis=0)).tolist():
            by_path.setdefault(path_of(site), []).append(site)
        name, file = core.lock_class_name(class_id)
        by_site = {path: _sum(of_class[:, sites].ravel()) for path, sites in by_path.items()}
        by_mode = {
            mode: _sum(records)
            for mode, records in zip(_core.LOCK_MODES, of_class, strict=True)
            if records["acquired"].any()
        }
        found.append(LockTotals(name, file, by_mode, by_site))
    return found


def _sum(records: NDArray[np.void]) -> NDArray[np.void]:
    total = np.zeros((), _core.LOCK_STAT_DTYPE)
    for times, count in (("wait", "contended"), ("hold", "hold_samples")):
        timed = records[records[count] > 0]
        total[f"{times}_min_ns"] = timed[f"{times}_min_ns"].min() if len(timed) else 0
        total[f"{times}_max_ns"] = records[f"{times}_max_ns"].max()
        for name in (count, f"{times}_ns"):
            total[name] = records[name].sum()
    total["acquired"] = records["acquired"].sum()
    return total
