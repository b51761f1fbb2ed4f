# SPDX-License-Identifier: MIT
"""A program is run once by itself before any cell: what cannot run is refused in its own words."""

from __future__ import annotations

import contextlib
from dataclasses import replace

from emu import _core
from emu.arena import MIB, Arena
from emu.coordinator.plan import Plan, arena_needed, set_up
from emu.coordinator.processes import in_child
from emu.coordinator.stop import HANG_S, CellFailed, StopFlag
from emu.errors import EmuError, InputError, about

_REHEARSAL_BYTES = 256 * MIB
"""At least: the design may be one that needs much."""


def rehearse(plan: Plan, stop: StopFlag) -> None:
    """Run the program once on one CPU, strictly, in a process and an arena of its own.

    A design that crashes or hangs here is no business of the rehearsal: its cells will say so.

    Raises InputError when the designs do not load or a call of the program cannot be done.
    """
    with contextlib.suppress(CellFailed):
        in_child(_rehearse, plan, stop=stop, limit_s=HANG_S)


def _rehearse(plan: Plan) -> None:
    """Raises InputError for the first thing that goes wrong."""
    try:
        failed = _failed_call(plan)
    except InputError:
        raise
    except EmuError as error:
        raise InputError(str(error)) from None
    if failed:
        with about("workload"):
            raise InputError(failed)


def _failed_call(plan: Plan) -> str | None:
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
