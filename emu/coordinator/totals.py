# SPDX-License-Identifier: MIT
"""What a cell came to: read from the arena after each phase and added up over all CPUs."""

from __future__ import annotations

from collections.abc import Iterable
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
    """A lock class over all CPUs: one record, and one for each call site (LOCK_STAT_DTYPE)."""

    name: str
    file: str | None
    total: NDArray[np.void]
    sites: dict[str, NDArray[np.void]] = field(default_factory=dict)


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
    batches: bool
    """Can the rmap design do what its parameter batch asks?"""


def count_calls(core: _core.Core, plan: Plan) -> int:
    """System calls that the CPUs did in the phase that has just ended."""
    cpus = range(len(plan.node_of_cpu))
    return sum(sum(core.cpu_result(cpu).contents.counts) for cpu in cpus)


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
    by_cpu = [core.hists(cpu) for cpu in cpus]
    hists = {
        op: Histogram.merged(of_cpu[number] for of_cpu in by_cpu)
        for number, op in enumerate(_core.LAT_NAMES)
    }
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
        locks=_gather_locks(core, cpus),
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
        latency=Histogram.merged([latency]),
    )


def _gather_locks(core: _core.Core, cpus: Iterable[int]) -> list[LockTotals]:
    """Lock statistics of all CPUs by class and by the path of the call site."""
    sums: dict[int, dict[str, list[int]]] = {}
    for cpu in cpus:
        stats = core.lock_stats(cpu)
        classes, sites = np.nonzero((stats["acquired"] > 0) | (stats["contended"] > 0))
        paths = {site: core.site_path(cpu, site) for site in set(sites.tolist())}
        # Plain numbers: there are thousands of records on a large machine.
        for class_id, site, record in zip(
            classes.tolist(), sites.tolist(), stats[classes, sites].tolist(), strict=True
        ):
            by_path = sums.setdefault(class_id, {})
            before = by_path.get(paths[site])
            by_path[paths[site]] = (
                [a + b for a, b in zip(before, record, strict=True)] if before else list(record)
            )
    found = []
    for class_id, by_path in sorted(sums.items()):
        name, file = core.lock_class_name(class_id)
        total = _stat([sum(column) for column in zip(*by_path.values(), strict=True)])
        by_site = {path: _stat(record) for path, record in by_path.items()}
        found.append(LockTotals(name, file, total, by_site))
    return found


def _stat(record: list[int]) -> NDArray[np.void]:
    return np.array(tuple(record), _core.LOCK_STAT_DTYPE)
