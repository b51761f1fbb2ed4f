# SPDX-License-Identifier: MIT
"""A program is run once by itself before any cell: what cannot run is refused in its own words."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import multiprocess

from emu import _core
from emu.arena import MIB, Arena
from emu.coordinator.plan import Plan, arena_needed, set_up
from emu.coordinator.processes import FORK, no_process, start
from emu.coordinator.stop import HANG_S, StopFlag
from emu.errors import EmuError, InputError
from emu.workers import cpu as worker

_REHEARSAL_BYTES = 256 * MIB
"""At least: the design may be one that needs much."""


def rehearse(plan: Plan, stop: StopFlag) -> None:
    """Run the program once on one CPU, strictly, in a process and an arena of its own.

    A design that crashes or hangs here is no business of the rehearsal: its cells will say so.

    Raises InputError when the designs do not load or a call of the program cannot be done.
    """
    context = _context(plan.machine)
    try:
        ours, theirs = context.Pipe(duplex=False)
    except OSError as error:
        raise no_process(error) from None
    arguments = (plan, theirs, os.devnull, os.getpid())
    process = context.Process(target=_rehearse, args=arguments, daemon=True)
    start(process)
    theirs.close()
    try:
        give_up = time.monotonic() + HANG_S
        while not ours.poll(0.05) and time.monotonic() < give_up:
            stop.check()
        problem = ours.recv() if ours.poll(0) else None
    except EOFError:
        problem = None
    finally:
        process.kill()
        process.join()
        process.close()
        ours.close()
    if problem:
        raise InputError(problem)


def _context(machine: str) -> Any:
    """How to start a process for ``machine``: afresh where another one is loaded, else a fork."""
    other = _core.is_any_loaded() and not _core.is_loaded(machine)
    return multiprocess.get_context("spawn") if other else FORK


def _rehearse(plan: Plan, answer: Any, stderr: str, parent_pid: int) -> None:
    worker.be_a_child(parent_pid)
    with Path(stderr).open("ab", buffering=0) as file:
        os.dup2(file.fileno(), 2)
    try:
        answer.send(_rehearse_alone(plan))
    except EmuError as error:
        answer.send(str(error))


def _rehearse_alone(plan: Plan) -> str | None:
    """The first thing that goes wrong, in one line."""
    core, workload = _core.load(plan.machine), plan.workload
    alone = replace(plan, node_of_cpu=plan.node_of_cpu[:1], nr_hw_cpus=0, host_node_of_node=None)
    with Arena.anonymous(max(_REHEARSAL_BYTES, arena_needed(alone))) as arena:
        set_up(core, alone, arena, strict=True)
        core.cpu_attach(0)
        order = [workload.load_list, *(phase.list for phase in workload.phases)]
        order += [phase.first for phase in workload.phases if phase.first is not None]
        for number in (*order, workload.drain_list):
            if failed := core.list_run(number):
                index, reason = failed
                call = workload.describe_call(number, index)
                # The core names the call in its own words, unless the failure is not the call's.
                own = reason.startswith(call.text.partition("(")[0] + "(")
                return f"{call.place if own else call}: {reason}"
    return None
