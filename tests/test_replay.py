# SPDX-License-Identifier: MIT
"""Recorded programs end in the address space that the real kernel showed, line by line.

``data/WORKLOAD.LIST.CALLS.PROGRAM.maps`` is /proc/PID/maps of the real process after that many
calls of the list (without device and inode). The machine checks each returned address, too.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from mm_machine import Machine

from emu import workload

DATA = Path(__file__).parent / "data"
RECORDED = sorted(path.name for path in DATA.glob("*.maps"))


def test_there_is_a_recording_of_each_workload() -> None:
    assert {name.split(".")[0] for name in RECORDED} == {
        name
        for name in workload.names()
        if workload.load(name).files and not workload.load(name).walkers
    }


@pytest.mark.parametrize(
    "design", ["single", "numa-locks", "single:batch=none", "dynamic:batch=exit+fork+exec"]
)
@pytest.mark.parametrize("name", RECORDED)
def test_replay_ends_in_the_real_maps(name: str, design: str) -> None:
    workload_name, list_name, calls, *_ = name.split(".")
    program = workload.load(workload_name, isolate=True)
    recorded = program.lists[program.list_names.index(f"program.{list_name}")][: int(calls)].copy()
    recorded["work_ns"] = 0
    machine = Machine(
        design, files=tuple(file.name for file in program.files), lists=(*program.lists, recorded)
    )
    machine.attach(0)
    machine.run_list(program.load_list)
    machine.run_list(len(program.lists))
    assert machine.maps() == (DATA / name).read_text().splitlines()
