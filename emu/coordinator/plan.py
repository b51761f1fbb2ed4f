# SPDX-License-Identifier: MIT
"""What a cell is to be, and how it is laid out in an arena."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from pathlib import Path

from emu import _core
from emu.arena import MIB, Arena
from emu.errors import InputError, about
from emu.workload import WALKER_KINDS, Workload

_CPU_HEAP_BYTES = 2 * MIB
"""Arena for a CPU's first slabs of each size."""
VMA_BYTES = 512
"""Arena for a VMA: the struct and its share of a slab and of trees, and a spare."""


@dataclass(frozen=True)
class DesignFile:
    """A design to load: its shared object and its parameters "k=v,k=v"."""

    name: str
    path: Path
    params: str = ""


@dataclass(frozen=True)
class Plan:
    """All that is needed to run one cell; what the names in it stand for has been looked up."""

    machine: str
    rmap: DesignFile
    mm: DesignFile
    workload: Workload
    node_of_cpu: list[int]
    nr_nodes: int
    host_cpu_of_cpu: list[int]
    host_node_of_node: list[int] | None
    """For mbind; None where the host has one node."""
    penalty_ns: list[list[int]] | None
    oversubscribed: bool
    seed: int
    duration_ns: int
    arena_bytes: int
    nr_hw_cpus: int = 0
    """CPUs that the tasks share (virtual engine); 0: each has one."""


def set_up(core: _core.Core, plan: Plan, arena: Arena, *, strict: bool = False) -> None:
    """Load the designs and lay out the arena. Raises InputError for a design, else CoreError."""
    workload = plan.workload
    for kind, design in (("rmap", plan.rmap), ("mm", plan.mm)):
        params = design.params.encode() or None
        try:
            core.design_load(_core.NAME_OF_KIND.index(kind), os.fsencode(design.path), params)
        except _core.CoreError as error:
            hint = "; `emu list designs` shows what each takes" if params else ""
            with about(kind):
                raise InputError(f"--{kind} {design.name}: {error}{hint}") from None
    config = _config(plan, strict=strict)
    core.arena_format(arena.base, arena.size, ctypes.byref(config))
    shared = len(workload.files) - workload.private_files
    for number, (name, pages) in enumerate(workload.files):
        for _ in range(1 if number < shared else len(plan.node_of_cpu)):
            file = core.file_add(os.fsencode(name), pages)
            if workload.cold_permille:
                core.file_cold(file, workload.cold_permille, workload.read_ns)
    for add, table in (
        (core.background_add, workload.uses.entry_table()),
        (core.use_add, workload.uses.use_table(plan.nr_hw_cpus or len(plan.node_of_cpu))),
    ):
        for number in range(len(table)):
            add(table.ctypes.data + number * table.itemsize)
    for calls in workload.lists:
        core.list_add(calls.ctypes.data, len(calls))
    for number, walker in enumerate(workload.walkers):
        core.walker_add(
            WALKER_KINDS.index(walker.kind),
            (number if walker.cpu is None else walker.cpu) % len(plan.node_of_cpu),
            walker.file,
            walker.first,
            walker.last,
            walker.at_once,
            walker.every_ns,
        )
    core.boot()


def _config(plan: Plan, *, strict: bool = False) -> _core.Config:
    workload = plan.workload
    return _core.make_config(
        node_of_cpu=plan.node_of_cpu,
        nr_nodes=plan.nr_nodes,
        nr_files=len(workload.files) + workload.private_files * (len(plan.node_of_cpu) - 1),
        nr_lists=len(workload.lists),
        nr_walkers=len(workload.walkers),
        nr_calls=sum(len(calls) for calls in workload.lists),
        seed=plan.seed,
        oversubscribed=plan.oversubscribed,
        work_jitter_permille=workload.work_jitter_permille,
        vma_change_ns=workload.vma_change_ns,
        nr_hw_cpus=plan.nr_hw_cpus,
        strict=strict,
        share_mm=workload.share_mm,
        penalty_ns=plan.penalty_ns,
        host_node_of_node=plan.host_node_of_node,
        nr_backgrounds=len(workload.uses.entries),
        nr_uses=workload.uses.nr_uses,
        nr_background_classes=workload.uses.lock_classes,
        nr_private_files=workload.private_files,
    )


def arena_needed(plan: Plan) -> int:
    """Bytes of an arena in which the plan's programs have room. Loads the machine."""
    cpus, config = len(plan.node_of_cpu), _config(plan)
    # Every call of a list may leave a VMA or two, and processes may wait for their children.
    calls = sum(len(each) for each in plan.workload.lists)
    heap = cpus * (_CPU_HEAP_BYTES + 4 * calls * VMA_BYTES + plan.workload.page_table_bytes)
    overhead = int(_core.load(plan.machine).arena_overhead(ctypes.byref(config)))
    return overhead + heap + plan.nr_nodes * MIB
