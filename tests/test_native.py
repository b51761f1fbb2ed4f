# SPDX-License-Identifier: MIT
"""The native engine: figures add up, designs compare, CPUs are placed where they belong."""

from __future__ import annotations

import ctypes
import itertools
import os
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import emu
from emu import _core, coordinator, topology
from emu.engines.native import crossing_ns, place_cpus
from emu.errors import EmuError, InputError
from emu.histogram import decode
from emu.results import CellResult, Run
from emu.schedule import Progress
from emu.topology import Topology

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.usefixtures("nothing_left")


def run(**options: object) -> Run:
    return emu.run(**{"duration": "40ms", "repeats": 1, "cpus": 2} | options)  # type: ignore[arg-type]


def libc_per_exec(cell: CellResult) -> float:
    locks = [lock for lock in cell.locks if lock.file and "libc.so" in lock.file]
    return sum(lock.acquired for lock in locks) / cell.latency_ns["exec"].count


@pytest.mark.parametrize("workload", ["execl", "spawn", "shell"])
def test_latency_counts_are_operations_done(workload: str) -> None:
    result = run(workload=workload, rmap=["single", "numa-trees", "numa-locks"])
    for cell in result.cells:
        assert cell.error is None
        counting = next(phase for phase in cell.phases if phase.counts_ops)
        assert cell.ops == counting.ops == counting.latency_ns[counting.unit].count > 0
        for op, latency in cell.latency_ns.items():
            assert latency.count == sum(phase.latency_ns[op].count for phase in cell.phases)
            if latency.count:
                hdr = decode(latency.hdr)
                assert hdr.get_total_count() + latency.overflow == latency.count
                # The exact maximum lies in the last bucket that counted anything.
                assert hdr.get_max_value() == hdr.get_highest_equivalent_value(latency.max)
        # Whoever forks exits; execs have their own end.
        assert cell.latency_ns["fork"].count == cell.latency_ns["exit"].count
        assert sum(phase.seconds for phase in cell.phases) >= 0.04


def test_a_child_of_the_users_own_is_left_alone() -> None:
    with subprocess.Popen(["true"]) as child:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert run(rmap="single", cpus=1).cells[0].error is None
    assert child.returncode == 0


def test_libc_is_locked_as_often_as_the_recorded_calls_say() -> None:
    """No number of acquisitions is written down anywhere: it follows from the program."""
    cells = run(rmap="single,numa-trees,numa-locks").cells
    per_exec = {cell.rmap: libc_per_exec(cell) for cell in cells}
    # One lock for all trees is taken as often as the lock of one tree ...
    assert per_exec["single"] == per_exec["numa-trees"] == round(per_exec["single"])
    assert 10 <= per_exec["single"] <= 20
    # ... and v2 as posted unlinks each VMA under its own lock instead of in batches.
    assert per_exec["numa-locks"] > per_exec["single"]


def test_result_is_complete() -> None:
    result = run(rmap="single", topology="hygon-12x32", cpus=3)
    (cell,) = result.cells
    assert cell.oversubscribed == (len(topology.host().host_cpus) < 3)
    assert cell.memory.bytes_per_vma >= 64
    assert cell.memory.rmap_bytes_per_file >= 8
    assert cell.host.events > cell.ops
    assert cell.host.peak_rss_bytes > 2**20
    assert 0 < cell.host.start_s < cell.host.wall_s
    assert result.run.status == "done"
    assert result.array("latency_ns.exec.p99").tolist() == [cell.latency_ns["exec"].p99]
    with pytest.raises(InputError, match="ops_per_s"):
        result.array("opps")


def test_oversubscribed_is_marked_everywhere() -> None:
    cpus = 2 * len(topology.host().host_cpus)
    result = run(rmap="single", cpus=cpus, duration="100ms")
    (cell,) = result.cells
    assert cell.error is None
    assert cell.oversubscribed
    assert cell.note is not None
    assert f"{cpus} emulated CPUs shared" in cell.note
    assert "oversubscribed" in str(result)
    assert cell.note in str(result)


def test_numa_penalty_is_named() -> None:
    """What it costs is measured in tests/c/test_machine.c."""
    options = {"rmap": "single", "topology": "generic:sockets=2,nodes=1,cores=12", "cpus": 24}
    for penalty in (False, True):
        result = run(**options, duration="100ms", numa_penalty=penalty)
        (cell,) = result.cells
        assert cell.error is None
        assert cell.numa_penalty == penalty
        assert ("--numa-penalty on" in str(result)) == penalty
        assert cell.note is not None
        assert ("--numa-penalty on" in cell.note) == penalty


def test_many_repeats_keep_their_order_and_seeds() -> None:
    result = run(rmap="single,numa-locks", repeats=2, duration="10ms", seed=5, cpus=1)
    assert [(c.rmap, c.repeat, c.seed) for c in result.cells] == [
        ("single", 0, 5),
        ("numa-locks", 0, 5),
        ("single", 1, 6),
        ("numa-locks", 1, 6),
    ]
    assert result.array("ops").shape == (4,)


def test_a_user_s_own_design_runs_beside_the_built_in(tmp_path: Path) -> None:
    source = tmp_path / "mine.c"
    source.write_text((ROOT / "workers/designs/rmap/single.c").read_text())
    result = run(rmap=["single", str(source)], duration="20ms")
    assert [cell.status for cell in result.cells] == ["ok", "ok"]
    assert libc_per_exec(result.cells[0]) == libc_per_exec(result.cells[1])


def test_progress_is_told() -> None:
    seen: list[tuple[int, int, str, float]] = []

    def progress(now: Progress) -> None:
        ((cell, share),) = now.running
        seen.append((now.done, now.total, cell.rmap, share))

    run(rmap="single,numa-locks", duration="500ms", progress=progress)
    assert {(done, total, rmap) for done, total, rmap, _ in seen} == {
        (0, 2, "single"),
        (1, 2, "numa-locks"),
    }
    shares = [share for done, *_, share in seen if done == 0]
    assert shares == sorted(shares)
    assert 0 < shares[-1] <= 1


def test_works_outside_the_main_thread() -> None:
    """There signals cannot be had; all else works."""
    results: list[Run] = []
    thread = threading.Thread(target=lambda: results.append(run(rmap="single", cpus=1)))
    # Forking beside a waiting thread is what this test is about.
    thread.start()
    thread.join()
    assert results[0].cells[0].error is None


def test_arena_that_fills_up_is_a_failed_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    """Big enough to begin with, too small for what the CPUs map."""
    monkeypatch.setattr(coordinator, "rehearse", lambda plan, stop: None)
    messages = set()
    for mib in itertools.count(1):
        try:
            (cell,) = run(rmap="single", cpus=16, arena_size=f"{mib}M").cells
        except InputError as error:
            messages.add("before")
            assert "--arena-size" in str(error)
            continue
        if cell.ok:
            break
        messages.add("during")
        assert "--arena-size gives more" in (cell.error or "")
    assert messages == {"before", "during"}


def test_what_a_design_takes_is_measured_in_a_full_arena(monkeypatch: pytest.MonkeyPatch) -> None:
    """CPUs that have just found room must not leave too little to measure with."""
    measure = _core.Core.memory

    def fill_first(core: _core.Core) -> dict[str, int]:
        alloc = ctypes.CDLL(str(_core.data_path("lib", "libemu-native.so"))).emu_alloc
        alloc.argtypes = (ctypes.c_size_t, ctypes.c_uint32)
        if not (pid := os.fork()):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            core.cpu_attach(0)
            while True:  # until the machine ends the process, as it does a CPU
                alloc(40000, 0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) > 0
        return measure(core)

    before = run(rmap="single,btree", cpus=1).cells
    monkeypatch.setattr(_core.Core, "memory", fill_first)
    full = run(rmap="single,btree", cpus=1).cells
    assert [cell.error for cell in full] == [None, None]
    assert [cell.memory for cell in full] == [cell.memory for cell in before]


def test_a_core_that_refuses_is_a_failed_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(core: _core.Core) -> dict[str, int]:
        raise _core.CoreError("the arena is full; --arena-size gives more", 12)

    monkeypatch.setattr(_core.Core, "memory", refuse)
    (cell,) = run(rmap="single", cpus=1).cells
    assert "--arena-size gives more" in (cell.error or "")


def test_only_one_machine_a_process() -> None:
    _core.load("native")
    with pytest.raises(EmuError, match="one process runs one machine"):
        _core.load("virtual")


# ---- placement ----


def a_host(nodes: list[int]) -> Topology:
    """A host whose CPU i is on nodes[i]; its real CPU numbers begin at 100."""
    like = topology.load(f"generic:sockets={max(nodes) + 1},nodes=1,cores=1")
    cpus = np.arange(len(nodes), dtype=np.int32)
    return Topology(
        name="host",
        description="",
        origin="",
        costs=like.costs,
        socket_of_cpu=np.array(nodes, dtype=np.int32),
        node_of_cpu=np.array(nodes, dtype=np.int32),
        l3_of_cpu=np.array(nodes, dtype=np.int32),
        core_of_cpu=cpus,
        slit=like.slit,
        host_cpus=tuple(100 + i for i in range(len(nodes))),
        host_nodes=tuple(range(max(nodes) + 1)),
    )


def test_nodes_stand_for_nodes_where_the_host_has_them() -> None:
    host = a_host([0, 1, 0, 1])
    assert place_cpus([0, 1, 0, 1], host) == [100, 101, 102, 103]
    assert place_cpus([1, 1], host) == [101, 103]
    # Four on one node of two CPUs: that would leave two idle, so they are spread.
    assert sorted(place_cpus([0, 0, 0, 0], host)) == [100, 101, 102, 103]
    # Oversubscribed: still on their own node.
    assert set(place_cpus([1] * 6, host)) == {101, 103}


def test_nodes_become_groups_of_neighbours_where_it_has_not() -> None:
    host = a_host([0] * 4)
    assert place_cpus([0, 1, 0, 1], host) == [100, 102, 101, 103]
    assert place_cpus([n for n in range(4) for _ in range(2)], host) == [
        *(100, 100, 101, 101),
        *(102, 102, 103, 103),
    ]


@given(st.lists(st.integers(0, 5), min_size=1, max_size=40), st.integers(1, 3), st.integers(1, 12))
def test_every_cpu_is_placed_and_the_load_is_even(
    node_of_cpu: list[int], host_nodes: int, host_cpus: int
) -> None:
    host = a_host([i % host_nodes for i in range(max(host_cpus, host_nodes))])
    placed = place_cpus(node_of_cpu, host)
    assert set(placed) <= set(host.host_cpus)
    load = [placed.count(cpu) for cpu in host.host_cpus]
    if len(node_of_cpu) <= host.nr_cpus:
        assert max(load) == 1
    elif max(node_of_cpu) >= host_nodes:
        assert max(load) - min(load) <= 1


def test_crossing_costs_what_the_topology_says() -> None:
    machine = topology.load("hygon-12x32")
    ns = crossing_ns(machine)
    first = [int(np.argmax(machine.node_of_cpu == node)) for node in range(machine.nr_nodes)]
    for a, b in itertools.product(range(machine.nr_nodes), repeat=2):
        if a == b:
            assert ns[a][b] == 0
        else:
            between = machine.c2c_ns(first[b], first[a], home_node=a)
            assert ns[a][b] == round(between - machine.value("c2c.base_ns"))
