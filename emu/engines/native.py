"""The native engine: the machine is the machine, one OS process an emulated CPU.

This module looks up what a cell's names stand for, decides where its CPUs run on the host and how
much memory they need, lets the coordinator run it, and puts the totals into a result.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import msgspec
import numpy as np
from numpy.typing import NDArray

from emu import _core, coordinator, topology
from emu import workload as workloads
from emu.arena import MIB, memory_available
from emu.coordinator import (
    CellFailed,
    CellTotals,
    DesignFile,
    LockTotals,
    PhaseTotals,
    Plan,
    StopFlag,
    WalkerTotals,
)
from emu.engines._designs import find_design
from emu.errors import InputError, about
from emu.experiment import Cell, Experiment
from emu.histogram import Histogram
from emu.live import Inside
from emu.results import (
    CellResult,
    Latency,
    Lock,
    LockTimes,
    Memory,
    Phase,
    Site,
    Walker,
    find_bottleneck,
)
from emu.topology import Topology
from emu.words import counted

_WORKER_BYTES = 4 * MIB
"""What a worker costs besides the arena: 3.2 MiB measured at 384 CPUs."""


def place_cpus(node_of_cpu: Sequence[int], host: Topology) -> list[int]:
    """The host CPU for each emulated CPU.

    Where the host has a node for each emulated one, and CPUs enough in each, nodes stand for nodes.
    Elsewhere the emulated CPUs, in order of their nodes, are laid along the host's, in order of
    theirs: an emulated node becomes a group of neighbouring host CPUs.
    """
    host_order = sorted(range(host.nr_cpus), key=lambda cpu: (host.node_of_cpu[cpu], cpu))
    order = sorted(range(len(node_of_cpu)), key=lambda cpu: (node_of_cpu[cpu], cpu))
    fits = len(order) <= len(host_order)
    host_cpu = [0] * len(node_of_cpu)
    if max(node_of_cpu) < host.nr_nodes:
        of_node = [
            [cpu for cpu in host_order if host.node_of_cpu[cpu] == node]
            for node in range(host.nr_nodes)
        ]
        used = [0] * host.nr_nodes
        for cpu in order:
            node = node_of_cpu[cpu]
            host_cpu[cpu] = host.host_cpus[of_node[node][used[node] % len(of_node[node])]]
            used[node] += 1
        if not fits or len(set(host_cpu)) == len(host_cpu):
            return host_cpu
    for place, cpu in enumerate(order):
        index = place if fits else place * len(host_order) // len(order)
        host_cpu[cpu] = host.host_cpus[host_order[index]]
    return host_cpu


def crossing_ns(machine: Topology) -> list[list[int]]:
    """[from][to]: what a line's way to another node costs more than a way inside one, ns.

    Two legs of the topology's cost model, for a line whose home is where it comes from.
    """
    return [[round(ns) for ns in row] for row in (machine.leg_ns + machine.leg_ns.T).tolist()]


class NativeEngine:
    """See ``engines.Engine``."""

    def __init__(self, experiment: Experiment) -> None:
        self._experiment = experiment
        self._host = topology.host()
        self._topologies = {name: topology.load(name) for name in experiment.topology}
        self._workloads = {
            name: workloads.load(name, isolate=experiment.isolate) for name in experiment.workload
        }
        self.cpus: Mapping[str, tuple[int, ...]] = {
            name: self._cpus(machine) for name, machine in self._topologies.items()
        }
        self._cleanup = contextlib.ExitStack()
        self._designs: dict[tuple[str, str], DesignFile] = {}

    @about("cpus")
    def _cpus(self, machine: Topology) -> tuple[int, ...]:
        wanted = self._experiment.cpus or (min(machine.nr_cpus, self._host.nr_cpus),)
        if machine.name != "host" and max(wanted) > machine.nr_cpus:
            raise InputError(
                f"--cpus {max(wanted)}: topology {machine.name} has "
                f"{counted(machine.nr_cpus, 'CPU')}"
            )
        return wanted

    def prepare(self, cells: Sequence[Cell], stop: StopFlag) -> None:
        """Find and try the designs, rehearse the programs, see that memory suffices."""
        for kind, texts in (("rmap", self._experiment.rmap), ("mm", self._experiment.mm)):
            for text in texts:
                self._designs[kind, text] = find_design(kind, text, "native", self._cleanup)
        rehearsed = set()
        for cell in cells:
            stop.check()
            key = (cell.workload, cell.rmap, cell.mm)
            plan = self._plan(cell)
            self._check_memory(plan)
            if key not in rehearsed:
                coordinator.rehearse(plan, stop)
                rehearsed.add(key)

    def close(self) -> None:
        """Remove compiled designs."""
        self._cleanup.close()

    def _plan(self, cell: Cell) -> Plan:
        machine, host = self._topologies[cell.topology], self._host
        node_of_cpu = [int(machine.node_of_cpu[i % machine.nr_cpus]) for i in range(cell.cpus)]
        host_cpus = place_cpus(node_of_cpu, host)
        host_nodes = None
        if host.nr_nodes > 1:
            real_node = dict(zip(host.host_cpus, host.node_of_cpu.tolist(), strict=True))
            host_nodes = [-1] * machine.nr_nodes
            for node, host_cpu in zip(node_of_cpu, host_cpus, strict=True):
                host_nodes[node] = host.host_nodes[real_node[host_cpu]]
        plan = Plan(
            machine="native",
            rmap=self._designs["rmap", cell.rmap],
            mm=self._designs["mm", cell.mm],
            workload=self._workloads[cell.workload],
            node_of_cpu=node_of_cpu,
            nr_nodes=machine.nr_nodes,
            host_cpu_of_cpu=host_cpus,
            host_node_of_node=host_nodes,
            penalty_ns=crossing_ns(machine) if self._experiment.numa_penalty else None,
            oversubscribed=len(set(host_cpus)) < cell.cpus,
            seed=cell.seed,
            duration_ns=self._experiment.duration_ns,
            arena_bytes=self._experiment.arena_size,
        )
        if plan.arena_bytes:
            return plan
        return replace(plan, arena_bytes=coordinator.arena_needed(plan))

    def _check_memory(self, plan: Plan) -> None:
        cpus = len(plan.node_of_cpu)
        needed = plan.arena_bytes + cpus * _WORKER_BYTES
        available = memory_available()
        if needed > available:
            raise InputError(
                f"{cpus} CPUs need {needed // MIB} MiB of memory, {plan.arena_bytes // MIB} of it "
                f"for the arena, and {available // MIB} are available; "
                "fewer --cpus or a smaller --arena-size"
            )

    def run(
        self,
        cell: Cell,
        stop: StopFlag,
        tick: Callable[[float, Callable[[], Inside]], None],
    ) -> tuple[CellResult, bool]:
        """Run a cell: its result, and whether it makes sense to go on with others."""
        plan = self._plan(cell)
        result = CellResult.of(
            cell,
            status="ok",
            oversubscribed=plan.oversubscribed,
            note=self._note(cell, plan),
            numa_penalty=plan.penalty_ns is not None,
            latency_ns={op: Latency() for op in _core.LAT_NAMES},
        )
        began = time.monotonic()
        go_on = True
        try:
            totals = coordinator.run(plan, stop, tick)
        except CellFailed as error:
            result.status, result.error = "failed", str(error)
            go_on = not error.outside
        else:
            try:
                fill_in(result, plan, totals)
                result.bottleneck = find_bottleneck(result, {})
            except (ArithmeticError, LookupError, ValueError) as error:
                result.status = "failed"
                result.error = f"what the CPUs left in the arena is damaged: {error!r}"
        result.host.wall_s = time.monotonic() - began
        return result, go_on

    def _note(self, cell: Cell, plan: Plan) -> str | None:
        """What must be known to read the figures: one sentence each, or None."""
        sentences = []
        shared = len(set(plan.host_cpu_of_cpu))
        if plan.oversubscribed:
            sentences.append(
                f"{cell.cpus} emulated CPUs shared {counted(shared, 'host CPU')}, so these figures "
                "show that the designs work, not how they scale."
            )
        used_nodes = len(set(plan.node_of_cpu))
        if used_nodes > self._host.nr_nodes:
            sentences.append(
                f"{used_nodes} emulated nodes are groups of host CPUs on {self._host.nr_nodes} "
                "host node(s), so a cache line travels between them as on this host"
                + (
                    ", plus the topology's extra time for lock and tree lines (--numa-penalty on)."
                    if plan.penalty_ns
                    else "."
                )
            )
        elif plan.penalty_ns:
            sentences.append(
                "Lock and tree lines that change node cost the topology's extra time "
                "(--numa-penalty on)."
            )
        return " ".join(sentences) or None


def fill_in(result: CellResult, plan: Plan, totals: CellTotals) -> None:
    """Put a cell's totals into its result."""
    cpus = len(plan.node_of_cpu)
    unit_of = {phase.name: phase.unit for phase in plan.workload.phases}
    # The first that is recorded is what the workload is about.
    counting = totals.phases[0].name
    merged: dict[str, Histogram] = {}
    for phase in totals.phases:
        for op, histogram in phase.hists.items():
            merged[op] = merged[op] + histogram if op in merged else histogram
        unit = unit_of[phase.name]
        result.phases.append(
            Phase(
                name=phase.name,
                unit=unit,
                ops=phase.counts[unit],
                seconds=phase.seconds,
                counts_ops=phase.name == counting,
                wait_share=_wait_share(phase, cpus),
                latency_ns={op: _latency(histogram) for op, histogram in phase.hists.items()},
                locks=[_lock(lock) for lock in phase.locks],
                walkers=[_walker(walker) for walker in phase.walkers],
            )
        )
    result.latency_ns = {op: _latency(histogram) for op, histogram in merged.items()}
    for done in result.phases:
        if done.counts_ops:
            result.ops, result.seconds = done.ops, done.seconds
            result.ops_per_s = done.ops / done.seconds if done.ops else 0.0
            result.wait_share, result.locks = done.wait_share, done.locks
            result.walkers = done.walkers
    result.memory = Memory(**totals.rmap_memory)
    result.host.events = totals.calls
    result.host.peak_rss_bytes = totals.memory_bytes
    result.host.start_s = totals.start_s


def _wait_share(phase: PhaseTotals, cpus: int) -> float:
    return phase.wait_ns / (cpus * phase.seconds * 1e9) if phase.wait_ns else 0.0


def _latency(histogram: Histogram) -> Latency:
    if not histogram.count:
        return Latency()
    return Latency(
        count=histogram.count,
        mean=histogram.mean,
        max=histogram.max_ns,
        overflow=histogram.overflow,
        hdr=histogram.encode(),
        **histogram.percentiles(),
    )


def _walker(walker: WalkerTotals) -> Walker:
    values = vars(walker) | {"latency_ns": _latency(walker.latency)}
    del values["latency"]
    return Walker(**values)


def _lock_times(stat: NDArray[np.void]) -> LockTimes:
    timed = int(stat["hold_samples"])
    scale = int(stat["acquired"]) / timed if timed else 0.0
    return LockTimes(
        acquired=int(stat["acquired"]),
        contended=int(stat["contended"]),
        wait_ns=int(stat["wait_ns"]),
        hold_ns=round(int(stat["hold_ns"]) * scale),
        wait_min_ns=int(stat["wait_min_ns"]),
        wait_max_ns=int(stat["wait_max_ns"]),
        hold_min_ns=int(stat["hold_min_ns"]),
        hold_max_ns=int(stat["hold_max_ns"]),
    )


def _lock(lock: LockTotals) -> Lock:
    modes = {mode: _lock_times(stat) for mode, stat in lock.modes.items()}
    times = msgspec.structs.asdict(_lock_times(lock.total))
    # Each mode's is scaled up by its own samples.
    times["hold_ns"] = sum(each.hold_ns for each in modes.values())
    return Lock(
        name=lock.name,
        file=lock.file,
        **times,
        modes=modes,
        sites=[
            Site(
                site=path,
                acquired=int(stat["acquired"]),
                contended=int(stat["contended"]),
                wait_ns=int(stat["wait_ns"]),
            )
            for path, stat in sorted(lock.sites.items(), key=lambda kv: -int(kv[1]["wait_ns"]))
        ],
    )
