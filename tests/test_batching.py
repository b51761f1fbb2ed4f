# SPDX-License-Identifier: MIT
"""What batch=... of every rmap design changes: how often libc's lock is taken, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from emu_command import emu

from emu import _core

MODES = ("none", "exit", "exit+fork", "exit+fork+exec")
ENGINES = {
    "virtual": ("--engine", "virtual", "--topology", "hygon-12x32", "--duration", "4ms"),
    "native": ("--engine", "native", "--duration", "40ms", "--repeats", "1"),
}
LIBC_VMAS = 5
"""Of a process: four segments, one of them in two by RELRO."""


def cells(
    engine: str, workload: str, *designs: str, mm: str = "per-vma-lock"
) -> list[dict[str, Any]]:
    rmap = ",".join(designs)
    done = emu(
        *("run", "--cpus", "1", "--workload", workload, "--rmap", rmap, "--json", "-"),
        *("--mm", mm, *ENGINES[engine]),
    )
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)["cells"]
    return found


def libc_locks(cell: dict[str, Any]) -> float:
    """Acquisitions of locks of libc's i_mmap for each operation of the counting phase."""
    acquired = sum(lock["acquired"] for lock in cell["locks"] if lock["file"] == "libc.so.6")
    return float(acquired / cell["ops"])


@pytest.mark.parametrize(
    ("workload", "execs", "forks"),
    [("execl", 1, 0), ("shell", 3, 3), ("spawn", 0, 1), ("sysexec", 1, 1)],
)
def test_acquisitions_for_each_iteration(workload: str, execs: int, forks: int) -> None:
    """The same on both engines. A process that execs or exits unlinks all its VMAs at once."""
    designs = [f"single:batch={mode}" for mode in MODES]
    locks = {
        engine: [libc_locks(cell) for cell in cells(engine, workload, *designs)]
        for engine in ENGINES
    }
    assert locks["native"] == locks["virtual"]
    by_mode = dict(zip(MODES, locks["virtual"], strict=True))
    gone = execs + forks
    assert by_mode["none"] - by_mode["exit"] == gone * (LIBC_VMAS - 1)
    assert by_mode["exit"] - by_mode["exit+fork"] == forks * (LIBC_VMAS - 1)
    # Linked once by each exec and each fork, unlinked once.
    assert by_mode["exit+fork+exec"] == 2 * gone
    assert (by_mode["exit+fork"] > by_mode["exit+fork+exec"]) == bool(execs)


PROFILE = {
    "exit_mmap": (15.50, 4.20),
    "load_elf_binary>exec_mmap>exit_mmap": (14.69, 4.04),
    "mmap_region>vms_complete_munmap_vmas": (12.48, 16.76),
    "dup_mmap": (15.19, 20.53),
    "mmap_region>vms_gather_munmap_vmas>__split_vma": (15.63, 20.92),
    "mprotect_fixup>__split_vma": (3.19, 4.24),
    "mmap_region>vma_merge": (3.12, 4.18),
    "mmap_region>vma_link_file": (9.24, 12.40),
}
"""Share of all cycles, %, in down_write() of i_mmap_rwsem by caller, before and after exit and
munmap unlinked a file's VMAs together: UnixBench sysexec on Linux 6.9, Debian 12, 224 CPUs, where
one acquisition waits as long as another (kernel test robot, lkml 2024-08-08, lkp-spr-2sp4)."""


def test_the_lock_is_taken_where_linux_takes_it() -> None:
    for after, cell in enumerate(
        cells("virtual", "sysexec", "single:batch=none", "single:batch=exit")
    ):
        libc = next(lock for lock in cell["locks"] if lock["file"] == "libc.so.6")
        taken = {
            start: sum(site["acquired"] for site in libc["sites"] if site["site"].startswith(start))
            / cell["ops"]
            for start in PROFILE
        }
        total = libc["acquired"] / cell["ops"]
        assert sum(taken.values()) == total == (29, 21)[after]
        cycles = sum(shares[after] for shares in PROFILE.values())
        measured = {start: shares[after] / cycles * total for start, shares in PROFILE.items()}
        assert taken == pytest.approx(measured, abs=0.25)


def test_exit_is_the_default() -> None:
    plain, asked = cells("virtual", "spawn", "single", "single:batch=exit")
    assert plain["locks"] == asked["locks"]
    assert plain["latency_ns"] == asked["latency_ns"]


def test_a_design_that_spreads_a_process_loses_batching() -> None:
    """By VMA it takes a shard's lock for nearly each of them, by CPU one for all."""
    spread, together = (
        libc_locks(cell)
        for cell in cells(
            "virtual",
            "spawn",
            "outer-inner:shards=4096,by=vma,batch=exit+fork",
            "outer-inner:shards=4096,by=cpu,batch=exit+fork",
        )
    )
    # Fork and exit of a child: each takes the outer lock, and the shards' within.
    assert together == 2 * (1 + 1)
    assert spread > together


@pytest.mark.parametrize("mode", MODES)
def test_numa_locks_takes_its_lock_for_each_vma(mode: str) -> None:
    """As posted: the same run, whatever it is handed at once."""
    plain, asked = cells("virtual", "spawn", "numa-locks", f"numa-locks:batch={mode}")
    assert libc_locks(plain) == libc_locks(asked) == 2 * LIBC_VMAS


@pytest.mark.parametrize("design", _core.design_names("rmap"))
def test_every_design_takes_it(design: str) -> None:
    """Never more acquisitions, and the calls of the program are the same."""
    found = cells("virtual", "shell", *(f"{design}:batch={mode}" for mode in MODES))
    locks = [libc_locks(cell) for cell in found]
    assert locks == sorted(locks, reverse=True)
    for cell in found:
        assert cell["ops"] > 0


HOLES = """\
name = "holes"
description = "what has a page table in its middle is mapped over, and a part of that unmapped"
load = "load"

[files]
program = 1
lib = 8192

[image.program]
mmap_base = 0x7ffff7fff000
calls = ["mmap(0x400000, 4096, PROT_READ, MAP_PRIVATE|MAP_FIXED_NOREPLACE, program, 0)"]

[program.load]
calls = ["exec(program)"]

[program.body]
calls = [
  "exec(program)",
  "mmap(0x100000000, 0x1000000, PROT_READ|PROT_WRITE, MAP_PRIVATE|MAP_FIXED|MAP_ANONYMOUS, -1, 0)",
  "fault(0x100c00000, 4096, PROT_WRITE)",
  "mmap(0x100000000, 0x1000000, PROT_READ, MAP_PRIVATE|MAP_FIXED, lib, 0)",
  "munmap(0x100400000, 0xc00000)",
]

[[phase]]
name = "body"
list = "body"
unit = "exec"
"""


@pytest.mark.parametrize("mm", ["mmap-sem-rbtree", "per-vma-lock", "pt-extents"])
def test_page_tables_of_holes_are_freed(mm: str, tmp_path: Path) -> None:
    """What mapping at once leaves free: the cell fails where the arena has lost an object."""
    workload = tmp_path / "holes.toml"
    workload.write_text(HOLES)
    for engine in ENGINES:
        (cell,) = cells(engine, f"{workload}", "single:batch=exit+fork+exec", mm=mm)
        assert cell["status"] == "ok" and cell["ops"] > 10


def test_a_wrong_mode_is_refused() -> None:
    done = emu("run", "--rmap", "single:batch=fork", "--engine", "virtual", "--cpus", "1")
    assert done.returncode == 2
    assert "parameter batch must be one of none, exit, exit+fork, exit+fork+exec" in done.stderr
