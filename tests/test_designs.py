# SPDX-License-Identifier: MIT
"""What the designs of a run are called, and what it says of those of the process side."""

from __future__ import annotations

import pytest
from test_report import made_cell

import emu
from emu.report.designs import Designs
from emu.report.table import plain_text


@pytest.mark.parametrize(
    ("pairs", "heading", "names", "baseline", "constant"),
    [
        ("numa-locks/spf single/spf", "rmap", ["numa-locks", "single"], "single", "mm spf"),
        ("single/spf", "rmap", ["single"], "single", "mm spf"),
        ("btree/spf", "rmap", ["btree"], None, "mm spf"),
        (
            "btree/spf btree/mmap-sem-rbtree",
            "mm",
            ["spf", "mmap-sem-rbtree"],
            "mmap-sem-rbtree",
            "rmap btree",
        ),
        ("btree/spf btree/pt-extents", "mm", ["spf", "pt-extents"], None, "rmap btree"),
        (
            "btree/spf single/spf single/mmap-sem-rbtree",
            "rmap + mm",
            ["btree + spf", "single + spf", "single + mmap-sem-rbtree"],
            "single + mmap-sem-rbtree",
            "",
        ),
    ],
)
def test_designs_are_called_by_what_differs(
    pairs: str, heading: str, names: list[str], baseline: str | None, constant: str
) -> None:
    cells = [
        made_cell(rmap=rmap, mm=mm)
        for rmap, mm in (pair.split("/") for pair in pairs.split())
        for _ in range(2)
    ]
    designs = Designs(cells)
    assert (designs.heading, designs.names()) == (heading, names)
    assert (designs.baseline, designs.constant) == (baseline, constant)
    assert [designs.name(cell) for cell in cells[::2]] == names


def test_mm_designs_stand_side_by_side_with_what_limits_each() -> None:
    run = emu.run(
        engine="virtual",
        topology="xeon-e7-8870-8s",
        workload="fault",
        rmap="single",
        mm="mmap-sem-rbtree,pt-extents",
        cpus="20",
        duration="2ms",
    )
    slow, fast = run.cells
    # Nobody waits for the lock: its readers wait for its line.
    assert slow.bottleneck is not None
    assert (slow.bottleneck.name, slow.bottleneck.kind) == ("mmap_lock", "lock")
    assert slow.bottleneck.share > 0.3
    assert slow.wait_share < 0.1
    assert fast.bottleneck is None or fast.bottleneck.name != "mmap_lock"
    text = plain_text(run)
    assert "x mmap-sem-rbtree" in text
    (row,) = (
        line for line in text.splitlines() if line.startswith("pt-extents  ") and "fault" in line
    )
    assert row.split()[1] == "fault"
    assert row.split()[-1] == f"{fast.latency_ns['fault'].count:,}"


def test_waiting_for_mmap_lock_has_the_call_as_its_site() -> None:
    (cell,) = emu.run(
        engine="virtual",
        topology="xeon-e7-8870-8s",
        workload="mmap-page",
        rmap="single",
        mm="mmap-sem-rbtree",
        cpus="20",
        duration="2ms",
    ).cells
    (lock,) = (lock for lock in cell.locks if lock.name == "mmap_lock")
    assert {site.site for site in lock.sites if site.wait_ns} == {
        "emu_sys_mmap",
        "emu_sys_munmap",
        "emu_sys_fault",
    }
