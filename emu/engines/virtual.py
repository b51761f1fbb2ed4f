# SPDX-License-Identifier: MIT
"""The virtual engine: the same C code on a modelled machine, in virtual time.

All CPUs of a cell are fibers of one process, forked for the cell. What things cost comes from the
topology; ``cost_model`` is the only place that knows both sides.
"""

from __future__ import annotations

import contextlib
import ctypes
import re
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from emu import _core, coordinator, topology
from emu import workload as workloads
from emu.arena import MIB, Arena
from emu.coordinator import CellFailed, CellTotals, DesignFile, Plan, StopFlag
from emu.engines import native
from emu.engines._designs import find_design
from emu.errors import InputError
from emu.experiment import Cell, Experiment
from emu.results import CellResult, Host, Latency, Line, Memory
from emu.topology import Topology

_OUTSTANDING_STORES = 10
"""Line fill buffers of a core: how many stores are on their way before one stalls."""
_LINES = 1000
"""Lines that are looked at for the report: those with the longest waits."""
_EVENT_LIMIT = 20_000_000_000
"""Accesses of a phase after which it counts as hung; ten minutes of the host's time."""
_OF_CPU = re.compile(r" of CPU \d+$")


def _array(values: Sequence[int]) -> ctypes.Array[ctypes.c_uint32]:
    return (ctypes.c_uint32 * len(values))(*values)


def _ps(ns: float) -> int:
    return round(ns * 1000)


def cost_model(machine: Topology, cpus: int) -> _core.CostModel:
    """The first ``cpus`` CPUs of a machine, with what things cost there, as the core wants it."""

    def ps(key: str) -> int:
        return _ps(machine.value(key))

    nodes = range(machine.nr_nodes)
    first_cpu = [int(np.argmax(machine.node_of_cpu == node)) for node in nodes]
    threads = int(np.bincount(machine.core_of_cpu).max())
    model = _core.CostModel(
        bytes=ctypes.sizeof(_core.CostModel),
        nr_cpus=cpus,
        nr_nodes=machine.nr_nodes,
        outstanding_stores=_OUTSTANDING_STORES,
        private_lines=max(64, round(machine.value("cache.l2_kib") * 1024 / 64 / threads)),
        l3_lines=max(64, round(machine.value("cache.l3_kib") * 1024 / 64)),
        access_ps=max(1, ps("cache.access_ns")),
        l3_hit_ps=ps("cache.l3_ns"),
        smt_ps=ps("c2c.smt_ns"),
        c2c_l3_ps=ps("c2c.l3_ns"),
        c2c_base_ps=ps("c2c.base_ns"),
        atomic_ps=ps("atomic.uncontended_ns"),
        occupancy_ps=ps("atomic.contended_ns"),
        futex_wait_ps=ps("kernel.futex_wait_ns"),
        futex_wake_ps=ps("kernel.futex_wake_ns"),
        wake_to_run_ps=ps("kernel.wake_to_run_ns"),
        ipi_send_ps=ps("kernel.ipi_send_ns"),
        ipi_round_trip_ps=ps("kernel.ipi_round_trip_ns"),
        context_switch_ps=ps("kernel.context_switch_ns"),
        event_limit=_EVENT_LIMIT,
    )
    model.node_of_cpu = _array(machine.node_of_cpu[:cpus].tolist())
    # Numbered anew: of the whole machine only the first CPUs are there.
    for name, of_cpu in (("l3_of_cpu", machine.l3_of_cpu), ("core_of_cpu", machine.core_of_cpu)):
        numbers = np.unique(of_cpu[:cpus], return_inverse=True)[1]
        setattr(model, name, _array(numbers.tolist()))
    model.leg_ps = _array([_ps(ns) for ns in machine.leg_ns.ravel().tolist()])
    model.dram_ps = _array(
        [_ps(machine.dram_ns(first_cpu[node], home)) for node in nodes for home in nodes]
    )
    return model


@dataclass(frozen=True)
class _Ran:
    """What comes back from the process of a cell."""

    totals: CellTotals
    lines: list[Line]
    accesses: int


class VirtualEngine:
    """See ``engines.Engine``."""

    def __init__(self, experiment: Experiment) -> None:
        if experiment.numa_penalty:
            raise InputError(
                "--numa-penalty on: the virtual engine models the way of every line; "
                "the penalty is for the native engine"
            )
        self._experiment = experiment
        self._topologies = {name: topology.load(name) for name in experiment.topology}
        self._workloads = {name: workloads.load(name) for name in experiment.workload}
        self.cpus: Mapping[str, tuple[int, ...]] = {
            name: self._cpus(machine) for name, machine in self._topologies.items()
        }
        self._cleanup = contextlib.ExitStack()
        self._designs: dict[tuple[str, str], DesignFile] = {}

    def _cpus(self, machine: Topology) -> tuple[int, ...]:
        wanted = self._experiment.cpus or (machine.nr_cpus,)
        if max(wanted) > machine.nr_cpus:
            raise InputError(
                f"--cpus {max(wanted)}: topology {machine.name} has {machine.nr_cpus} CPUs"
            )
        return wanted

    def prepare(self, cells: Sequence[Cell], stop: StopFlag) -> None:
        """Find and try the designs, rehearse the programs."""
        for kind, texts in (("rmap", self._experiment.rmap), ("mm", self._experiment.mm)):
            for text in texts:
                self._designs[kind, text] = find_design(kind, text, "virtual", self._cleanup)
        rehearsed = set()
        for cell in cells:
            stop.check()
            key = (cell.workload, cell.rmap, cell.mm)
            if key not in rehearsed:
                coordinator.rehearse(self._plan(cell), stop)
                rehearsed.add(key)

    def close(self) -> None:
        """Remove compiled designs."""
        self._cleanup.close()

    def _plan(self, cell: Cell) -> Plan:
        machine = self._topologies[cell.topology]
        return Plan(
            machine="virtual",
            rmap=self._designs["rmap", cell.rmap],
            mm=self._designs["mm", cell.mm],
            workload=self._workloads[cell.workload],
            node_of_cpu=machine.node_of_cpu[: cell.cpus].tolist(),
            nr_nodes=machine.nr_nodes,
            host_cpu_of_cpu=[],
            host_node_of_node=None,
            penalty_ns=None,
            oversubscribed=False,
            seed=cell.seed,
            duration_ns=self._experiment.duration_ns,
            arena_bytes=self._experiment.arena_size,
        )

    def run(
        self, cell: Cell, stop: StopFlag, tick: Callable[[float], None]
    ) -> tuple[CellResult, bool]:
        """Run a cell: its result, and whether it makes sense to go on with others."""
        plan = self._plan(cell)
        result = CellResult(
            rmap=cell.rmap,
            mm=cell.mm,
            topology=cell.topology,
            cpus=cell.cpus,
            workload=cell.workload,
            engine=cell.engine,
            seed=cell.seed,
            repeat=cell.repeat,
            status="ok",
            note="A modelled machine: its costs are the topology's, not this host's.",
            latency_ns={op: Latency() for op in _core.LAT_NAMES},
            memory=Memory(),
            host=Host(),
        )
        began = time.monotonic()
        tick(0.0)
        try:
            ran = coordinator.in_child(run_cell, plan, self._topologies[cell.topology], stop=stop)
            native.fill_in(result, plan, ran.totals)
            result.lines = ran.lines
            result.host.accesses = ran.accesses
        except CellFailed as error:
            result.status, result.error = "failed", str(error)
        result.host.wall_s = time.monotonic() - began
        tick(1.0)
        return result, True


def run_cell(plan: Plan, machine: Topology) -> _Ran:
    """Run one cell in this process, which has loaded no core yet.

    Raises CellFailed, CoreError, or InputError for a design.
    """
    core = _core.load("virtual")
    workload = plan.workload
    cpus = len(plan.node_of_cpu)
    size = plan.arena_bytes
    if not size:
        calls = sum(len(each) for each in workload.lists)
        heap = cpus * (native.CPU_HEAP_BYTES + 4 * calls * native.VMA_BYTES)
        heap += cpus * workload.page_table_bytes
        size = coordinator.arena_overhead(plan) + heap + plan.nr_nodes * MIB
    began = time.monotonic()
    with Arena.anonymous(size) as arena:
        coordinator.set_up(core, replace(plan, arena_bytes=size), arena)
        core.virtual_config(ctypes.byref(cost_model(machine, cpus)))
        phases, calls = [], 0

        def phase(
            number: int,
            once: bool,
            record: bool = False,
            duration_ns: int = 0,
            first: int | None = None,
        ) -> None:
            nonlocal calls
            core.phase_prepare(number, once, record, duration_ns)
            if first is not None:
                core.phase_first(first)
            core.virtual_run_phase()
            calls += coordinator.count_calls(core, plan)

        phase(workload.load_list, once=True)
        start_s = time.monotonic() - began
        for each in workload.phases:
            ns = round(plan.duration_ns * each.share)
            phase(each.list, each.once, each.record, ns, each.first)
            if each.record:
                phases.append(coordinator.gather(core, plan, each.name))
        lines = _lines(core)
        phase(workload.drain_list, once=True)
        try:
            core.check_drained()
        except _core.CoreError as error:
            raise CellFailed(f"after the drain phase {error}") from None
        stats = _core.VirtualStats()
        core.virtual_stats(ctypes.byref(stats))
        core.virtual_end()
        totals = CellTotals(
            phases=phases,
            calls=calls,
            start_s=start_s,
            memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            rmap_bytes_per_file=core.rmap_bytes_per_file(),
            bytes_per_vma=core.bytes_per_vma(),
        )
        core.design_unload()
        return _Ran(totals, lines, stats.accesses)


def _lines(core: _core.Core) -> list[Line]:
    """Lines that were waited for, those of one name together, longest waits first."""
    found = (_core.VirtualLine * _LINES)()
    by_symbol: dict[str, Line] = {}
    for raw in found[: core.virtual_lines(found, _LINES)]:
        symbol = _OF_CPU.sub("", core.text_of("virtual_symbol", raw.offset))
        line = by_symbol.setdefault(
            symbol, Line(symbol=symbol, transfers=0, remote_transfers=0, wait_ns=0)
        )
        line.transfers += raw.transfers
        line.remote_transfers += raw.remote_transfers
        line.wait_ns += raw.wait_ps // 1000
    return sorted(by_symbol.values(), key=lambda line: (-line.wait_ns, line.symbol))
