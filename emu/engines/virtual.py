# SPDX-License-Identifier: MIT
"""The virtual engine: the same C code on a modelled machine, in virtual time.

All CPUs of a cell are fibers of one process, forked for the cell. What things cost comes from the
topology; ``cost_model`` is the only place that knows both sides.
"""

from __future__ import annotations

import contextlib
import ctypes
import resource
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from emu import _core, coordinator, live, topology
from emu import workload as workloads
from emu.arena import MIB, Arena, memory_available
from emu.coordinator import CellFailed, CellTotals, Child, DesignFile, PhaseTotals, Plan, StopFlag
from emu.engines import _sites, native
from emu.engines._designs import find_design
from emu.engines._slices import Recorder
from emu.errors import EmuError, InputError, about
from emu.experiment import Cell, Experiment
from emu.live import Inside
from emu.report import trace
from emu.results import ByCpu, CellResult, Latency, Line, Wait, find_bottleneck
from emu.topology import MAX_CPUS, Topology
from emu.words import counted

_CELL_BYTES = 64 * MIB
_CPU_BYTES = 2 * MIB
"""Memory of a cell for each of its CPUs: 0.6 MiB measured with execl."""
_MAX_DURATION_NS = 120 * 10**9
"""The clock has 47 bits of ps (TIME_BITS), 140 s; warm-up, load and drain need some, too."""
_EVENT_LIMIT = 1_000_000_000
"""Accesses after which a phase counts as hung if no call has ended meanwhile, by any CPU: 5 to 30
seconds of the host's time. No call takes a hundredth of that."""


def _array(values: Sequence[int]) -> ctypes.Array[ctypes.c_uint32]:
    return (ctypes.c_uint32 * len(values))(*values)


def _ps(ns: float) -> int:
    return round(ns * 1000)


def cost_model(machine: Topology, tasks: int) -> _core.CostModel:
    """What things cost on a machine's first CPUs, up to one a task, as the core wants it."""
    cpus = min(tasks, machine.nr_cpus)

    def ps(key: str) -> int:
        return _ps(machine.value(key))

    nodes = range(machine.nr_nodes)
    first_cpu = [int(np.argmax(machine.node_of_cpu == node)) for node in nodes]
    threads = int(np.bincount(machine.core_of_cpu).max())
    model = _core.CostModel(
        bytes=ctypes.sizeof(_core.CostModel),
        nr_cpus=cpus,
        nr_nodes=machine.nr_nodes,
        outstanding_stores=round(machine.value("core.outstanding_stores")),
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
        ipi_each_ps=ps("kernel.ipi_each_ns"),
        ipi_handler_ps=ps("kernel.ipi_handler_ns"),
        context_switch_ps=ps("kernel.context_switch_ns"),
        smt_speed_permille=max(1, round(1000 * machine.value("core.smt_speed"))),
        time_slice_ps=max(1, ps("kernel.time_slice_ns")),
        event_limit=_EVENT_LIMIT,
    )
    # What the wake was measured with is the shallowest state: deeper ones add to it.
    for name in topology.IDLE_STATES:
        if residency_ps := ps(f"idle.{name}_residency_ns"):
            state = model.idle_states[model.nr_idle_states]
            state.empties = name in ("c3", "c6")
            state.residency_ps = residency_ps
            state.exit_ps = max(0, ps(f"idle.{name}_exit_ns") - ps("idle.c1_exit_ns"))
            model.nr_idle_states += 1
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
    by_cpu: list[ByCpu]
    """For each phase."""
    lines: list[Line]
    waits: list[Wait]
    node_transfers: list[list[int]]
    accesses: int
    trace: trace.Trace | None
    line_waits: Counter[str]
    """Of the phase that counts, ns by name of the line."""


class VirtualEngine:
    """See ``engines.Engine``."""

    def __init__(self, experiment: Experiment) -> None:
        with about("numa_penalty"):
            if experiment.numa_penalty:
                raise InputError(
                    "--numa-penalty on: the virtual engine models the way of every line; "
                    "the penalty is for the native engine"
                )
        with about("duration"):
            if experiment.duration_ns > _MAX_DURATION_NS:
                raise InputError(
                    f"--duration {experiment.duration_ns / 1e9:g}s: the clock of the virtual "
                    f"engine goes to 140 s, so at most {_MAX_DURATION_NS / 1e9:g}s can be asked for"
                )
        self._experiment = experiment
        self._topologies = {name: topology.load(name) for name in experiment.topology}
        self._workloads = {
            name: workloads.load(name, isolate=experiment.isolate) for name in experiment.workload
        }
        self.cpus: Mapping[str, tuple[int, ...]] = {
            name: self._cpus(machine) for name, machine in self._topologies.items()
        }
        self._cleanup = contextlib.ExitStack()
        self._designs: dict[tuple[str, str], DesignFile] = {}
        self.trace: trace.Window | None = None
        """Of each cell that is run, over the last one's."""
        self.watched: Path | None = None
        """See ``engines.ManyAtOnce``."""

    @about("cpus")
    def _cpus(self, machine: Topology) -> tuple[int, ...]:
        wanted = self._experiment.cpus or (machine.nr_cpus,)
        if max(wanted) > MAX_CPUS - 1:
            raise InputError(f"--cpus {max(wanted)}: at most {MAX_CPUS - 1} tasks can be emulated")
        return wanted

    def prepare(self, cells: Sequence[Cell], stop: StopFlag) -> None:
        """Find and try the designs, rehearse the programs."""
        for kind, texts in (("rmap", self._experiment.rmap), ("mm", self._experiment.mm)):
            for text in texts:
                self._designs[kind, text] = find_design(kind, text, "virtual", self._cleanup)
        rehearsed = set()
        for cell in cells:
            stop.check()
            self._check_memory(cell)
            key = (cell.workload, cell.rmap, cell.mm)
            if key not in rehearsed:
                coordinator.rehearse(self._plan(cell), stop)
                rehearsed.add(key)

    def bytes_of(self, cell: Cell) -> int:
        """See ``engines.ManyAtOnce``."""
        return _CELL_BYTES + cell.cpus * _CPU_BYTES + self._bytes_of_vmas(cell)

    def _bytes_of_vmas(self, cell: Cell) -> int:
        return cell.cpus * self._workloads[cell.workload].most_vmas * coordinator.VMA_BYTES

    def _check_memory(self, cell: Cell) -> None:
        """An arena's memory is taken as it is used: only what must be used is asked for."""
        needed, available = self._bytes_of_vmas(cell), memory_available()
        if needed > available:
            vmas = self._workloads[cell.workload].most_vmas
            raise InputError(
                f"{cell.workload} has up to {vmas:,} VMAs a CPU; on {cell.cpus} they need "
                f"{needed // MIB:,} MiB of memory, and {available // MIB:,} are available; "
                "fewer --cpus"
            )

    def close(self) -> None:
        """Remove compiled designs."""
        self._cleanup.close()

    def run_on(self, machine: Topology, cell: Cell, stop: StopFlag) -> CellResult:
        """Run a cell on a machine that differs from the cell's own in its numbers only."""
        own = self._topologies[cell.topology]
        self._topologies[cell.topology] = machine
        try:
            job = self.start(cell)
        finally:
            self._topologies[cell.topology] = own
        try:
            while not job.ready():
                coordinator.first_ready([job.child], 0.05)
                stop.check()
            return job.finish()[0]
        except BaseException:
            job.close()
            raise

    def machine(self, cell: Cell) -> Topology:
        """What the cell's topology stands for."""
        return self._topologies[cell.topology]

    def _plan(self, cell: Cell) -> Plan:
        machine = self._topologies[cell.topology]
        return Plan(
            machine="virtual",
            rmap=self._designs["rmap", cell.rmap],
            mm=self._designs["mm", cell.mm],
            workload=self._workloads[cell.workload].scaled(
                machine.value("kernel.work_scale") or 1.0
            ),
            node_of_cpu=np.resize(machine.node_of_cpu[: cell.cpus], cell.cpus).tolist(),
            nr_nodes=machine.nr_nodes,
            host_cpu_of_cpu=[],
            host_node_of_node=None,
            penalty_ns=None,
            oversubscribed=cell.cpus > machine.nr_cpus,
            seed=cell.seed,
            duration_ns=self._experiment.duration_ns,
            arena_bytes=self._experiment.arena_size,
            nr_hw_cpus=min(cell.cpus, machine.nr_cpus),
        )

    def start(self, cell: Cell) -> VirtualJob:
        """Start a cell in a process of its own."""
        plan, machine = self._plan(cell), self._topologies[cell.topology]
        cpus = counted(plan.nr_hw_cpus, "CPU")
        result = CellResult.of(
            cell,
            status="ok",
            oversubscribed=plan.oversubscribed,
            note="A modelled machine: its costs are the topology's, not this host's."
            + (f" {cell.cpus} tasks shared {cpus}." if plan.oversubscribed else ""),
            latency_ns={op: Latency() for op in _core.LAT_NAMES},
        )
        child: Child[_Ran | Inside] = coordinator.Child(
            run_cell, plan, machine, self.trace, self.watched, talks=True
        )
        return VirtualJob(result, plan, child, self.trace, str(cell))


class VirtualJob:
    """See ``engines.Job``."""

    def __init__(
        self,
        result: CellResult,
        plan: Plan,
        child: Child[_Ran | Inside],
        window: trace.Window | None,
        name: str,
    ) -> None:
        self.child = child
        self.notice: str | None = None
        self.inside: Inside | None = None
        self._answer: _Ran | EmuError | None = None
        self._result, self._plan, self._window, self._name = result, plan, window, name
        self._began = time.monotonic()

    def ready(self) -> bool:
        """Is the result there? Takes in what the cell has told."""
        while self._answer is None and self.child.ready():
            try:
                said = self.child.result()
            except EmuError as error:
                self._answer = error
                continue
            if isinstance(said, Inside):
                self.inside = said
            else:
                self._answer = said
        return self._answer is not None

    def finish(self) -> tuple[CellResult, bool]:
        """What came out, once it is ready, and whether a failure was its own."""
        return self._finished(self._fill_in)

    def fail(self, error: CellFailed) -> tuple[CellResult, bool]:
        """End it now: its result is that it failed, and whether that was its own."""

        def failed() -> None:
            raise error

        return self._finished(failed)

    def close(self) -> None:
        """End it now; there is no result."""
        self.child.close()

    def _finished(self, fill_in: Callable[[], None]) -> tuple[CellResult, bool]:
        own = True
        try:
            fill_in()
        except CellFailed as error:
            self._result.status, self._result.error = "failed", str(error)
            own = not error.outside
        finally:
            self.child.close()
        self._result.host.wall_s = time.monotonic() - self._began
        return self._result, own

    def _fill_in(self) -> None:
        ran = self._answer
        if isinstance(ran, EmuError):
            raise ran
        assert ran is not None
        native.fill_in(self._result, self._plan, ran.totals)
        self._result.lines, self._result.waits = ran.lines, ran.waits
        self._result.node_transfers = ran.node_transfers
        self._result.bottleneck = find_bottleneck(self._result, ran.line_waits)
        for phase, by_cpu in zip(self._result.phases, ran.by_cpu, strict=True):
            phase.time_stack = time_stack(by_cpu)
            if phase.counts_ops:
                self._result.time_stack, self._result.by_cpu = phase.time_stack, by_cpu
        self._result.host.accesses = ran.accesses
        if self._window and ran.trace:
            trace.write(ran.trace, self._plan.node_of_cpu, self._name, self._window)
            if not ran.trace.slices:
                self.notice = (
                    f"--trace {self._window.file}: nothing is in the window; the phase took "
                    f"{ran.totals.phases[0].seconds * 1e6:.3f} us (--trace-window)"
                )
            elif ran.trace.full_ns is not None:
                self.notice = (
                    f"--trace {self._window.file}: there was room up to "
                    f"{ran.trace.full_ns / 1000:.3f} us of the phase; what ended later is missing"
                )


def run_cell(
    plan: Plan,
    machine: Topology,
    window: trace.Window | None = None,
    watched: Path | None = None,
    tell: Callable[[Inside], None] = lambda _: None,
) -> _Ran:
    """Run one cell in this process, which has loaded no core yet. Traced: its first recorded phase.

    While somebody watches the directory ``watched``, ``tell`` is told how it looks inside.

    Raises CellFailed, CoreError, or InputError for a design.
    """
    core = _core.load("virtual")
    workload = plan.workload
    cpus = len(plan.node_of_cpu)
    size = plan.arena_bytes or coordinator.arena_needed(plan)
    began = time.monotonic()
    with Arena.private(size) as arena:
        coordinator.set_up(core, replace(plan, arena_bytes=size), arena)
        core.virtual_config(ctypes.byref(cost_model(machine, cpus)))
        phases: list[PhaseTotals] = []
        by_cpu: list[ByCpu] = []
        calls, traced = 0, None

        def phase(
            name: str,
            number: int,
            once: bool,
            record: bool = False,
            duration_ns: int = 0,
            first: int | None = None,
            charged: bool = True,
        ) -> None:
            nonlocal calls
            core.phase_prepare(number, once, record, duration_ns)
            if first is not None:
                core.phase_first(first)
            with live.telling(tell, watched, lambda: live.look(core, plan, name)):
                (core.virtual_run_phase if charged else core.virtual_run_uncharged)()
            calls += coordinator.count_calls(core, plan)

        phase("load", workload.load_list, once=True)
        start_s = time.monotonic() - began
        line_waits: Counter[str] = Counter()
        for each in workload.phases:
            recorder = Recorder(core, window) if window and each.record and not phases else None
            ns = round(plan.duration_ns * each.share)
            phase(each.name, each.list, each.once, each.record, ns, each.first)
            if each.name == workload.counting_phase:
                # The first that is recorded: of what was before nothing is counted.
                line_waits = _sites.line_waits(core)
            if recorder:
                traced = recorder.finish()
            if each.record:
                phases.append(coordinator.gather(core, plan, each.name))
                by_cpu.append(_by_cpu(core, plan, each.unit))
        lines, waits, node_transfers = _sites.read(core, plan.nr_nodes)
        # What it takes is in no result: it only has to leave nothing behind.
        phase("drain", workload.drain_list, once=True, charged=False)
        try:
            core.check_drained()
        except _core.CoreError as error:
            raise CellFailed(f"after the drain phase {error}") from None
        memory = core.memory()
        stats = _core.VirtualStats()
        core.virtual_stats(ctypes.byref(stats))
        core.virtual_end()
        totals = CellTotals(
            phases=phases,
            calls=calls,
            start_s=start_s,
            memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            rmap_memory=memory,
        )
        core.design_unload()
        accesses = stats.accesses
        return _Ran(totals, by_cpu, lines, waits, node_transfers, accesses, traced, line_waits)


def time_stack(by_cpu: ByCpu) -> dict[str, float]:
    """The shares of all CPUs together."""
    sums = {name: sum(time_ps) for name, time_ps in by_cpu.time_ps.items()}
    whole = sum(sums.values())
    return {name: time_ps / whole if whole else 0.0 for name, time_ps in sums.items()}


def _by_cpu(core: _core.Core, plan: Plan, unit: str) -> ByCpu:
    """What the phase came to that has just ended; tasks of one CPU together."""
    cpus = plan.nr_hw_cpus or len(plan.node_of_cpu)
    found = ByCpu(
        node=plan.node_of_cpu[:cpus],
        ops=[0] * cpus,
        transfers=[0] * cpus,
        remote_transfers=[0] * cpus,
        time_ps={name: [0] * cpus for name in _core.STACK_NAMES},
    )
    spent = _core.VirtualCpu()
    for task, ops in enumerate(coordinator.ops_by_task(core, plan, unit)):
        cpu = task % cpus
        core.virtual_cpu(task, ctypes.byref(spent))
        found.ops[cpu] += ops
        found.transfers[cpu] += spent.transfers
        found.remote_transfers[cpu] += spent.remote_transfers
        for name, time_ps in zip(_core.STACK_NAMES, spent.stack_ps, strict=True):
            found.time_ps[name][cpu] += time_ps
    return found
