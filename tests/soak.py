# SPDX-License-Identifier: MIT
"""Long runs, by hand. Exit status 1 when something drifts, is lost or does not add up.

``python tests/soak.py native --minutes 60``: all CPUs, with walkers, in cells of 20 s. No memory
grows (this process, the arena, /dev/shm), no CPU sleeps for ever (the coordinator's watchdog
fails the cell), and every operation has exactly one latency.

``python tests/soak.py virtual --cpus 4096 --virtual-ms 10000``: one cell of the virtual engine; its
time and memory. Host time goes by accesses, so that the one lock of ``single``, which lets few CPUs
do anything at a time, makes ten seconds feasible. Two shorter ones say what a long one will take.

``python tests/soak.py explore --minutes 60``: ``emu check --suite explore`` on all designs.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import emu
from emu.histogram import decode
from emu.results import CellResult, Run
from emu.topology import host

MIB = 1 << 20
WORKLOADS = ("execl-walkers", "shell", "mixed")
DESIGNS = ("single", "numa-locks", "outer-percpu", "dynamic", "btree")
WARM_UP = len(WORKLOADS)
"""Rounds until everything that is made once has been made."""
GROWTH_BYTES = 16 * MIB


def own_bytes() -> int:
    """Memory of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("/proc/self/status has no VmRSS")


def shared_bytes() -> int:
    """What of ours is in /dev/shm now."""
    return sum(path.stat().st_size for path in Path("/dev/shm").glob(f"emu-{os.getpid()}-*"))


def check_balance(cell: CellResult) -> int:
    """Every operation has one latency, and every walk an end; the operations. Exits if not."""
    operations = 0
    for phase in cell.phases:
        for op, latency in phase.latency_ns.items():
            counted = decode(latency.hdr).get_total_count() if latency.hdr else 0
            if counted + latency.overflow != latency.count:
                raise SystemExit(f"{cell.rmap}: {op} has {latency.count} and {counted} in buckets")
        unit = phase.latency_ns.get(phase.unit)
        if unit is not None and unit.count != phase.ops:
            raise SystemExit(f"{cell.rmap}: {phase.ops} operations and {unit.count} latencies")
        for walker in phase.walkers:
            if walker.latency_ns.count != walker.done or walker.lost:
                raise SystemExit(f"{cell.rmap}: a walker has {walker}")
        operations += sum(latency.count for latency in phase.latency_ns.values())
    return operations


def native(minutes: float, cell_s: float) -> int:
    """Rounds of one workload each, all designs in turn."""
    end = time.monotonic() + minutes * 60
    cpus = max(2, host().nr_cpus)
    operations = cells = number = 0
    settled: int | None = None
    used: dict[tuple[str, str], int] = {}
    with tempfile.TemporaryDirectory() as folder:
        while time.monotonic() < end or number <= WARM_UP:
            workload = WORKLOADS[number % len(WORKLOADS)]
            run: Run = emu.run(
                workload=workload,
                rmap=list(DESIGNS),
                cpus=cpus,
                duration=f"{cell_s:g}s",
                repeats=1,
                seed=number + 1,
                store=Path(folder) / f"{number}",
            )
            number += 1
            for cell in run.cells:
                cells += 1
                if not cell.ok:
                    raise SystemExit(f"{workload}, {cell.rmap}: {cell.error}")
                operations += check_balance(cell)
                key = (workload, cell.rmap)
                first = used.setdefault(key, cell.host.peak_rss_bytes)
                if cell.host.peak_rss_bytes > 1.5 * first + GROWTH_BYTES:
                    raise SystemExit(f"{key}: {first} bytes grew to {cell.host.peak_rss_bytes}")
            if left := shared_bytes():
                raise SystemExit(f"{left} bytes are left in /dev/shm")
            now = own_bytes()
            if number == WARM_UP:
                settled = now
            print(
                f"round {number}, {workload}: {cells} cells, {operations} operations, "
                f"this process {now // MIB} MiB",
                flush=True,
            )
            if settled is not None and now > settled + GROWTH_BYTES:
                raise SystemExit(f"this process grew from {settled} to {now} bytes")
    print(f"{minutes:g} minutes: {cells} cells, {operations} operations, each with its latency")
    return 0


def virtual(cpus: int, virtual_ms: float, rmap: str, workload: str) -> int:
    """One cell on a made-up machine of 64 CPUs a node."""
    nodes = max(1, cpus // 64)
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        run = emu.run(
            engine="virtual",
            topology=f"generic:sockets={nodes},nodes=1,cores={-(-cpus // nodes)}",
            cpus=cpus,
            rmap=rmap,
            workload=workload,
            duration=f"{virtual_ms:g}ms",
            timeout="1440m",
            store=Path(folder) / "store",
        )
        took_s = time.monotonic() - began
    if not run.cells:
        raise SystemExit("interrupted")
    (cell,) = run.cells
    if not cell.ok:
        raise SystemExit(str(cell.error))
    operations = check_balance(cell)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    print(
        f"{cpus} CPUs, {virtual_ms:g} ms of virtual time, {workload} on {rmap}: {took_s:.1f} s, "
        f"{cell.host.start_s:.1f} of them for the first exec, {peak // MIB} MiB, "
        f"{operations} operations, {cell.host.accesses} accesses"
    )
    return 0


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("native", "virtual", "explore"))
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--cell-s", type=float, default=20.0, help="measured time of a native cell")
    parser.add_argument("--cpus", type=int, default=4096)
    parser.add_argument("--virtual-ms", type=float, default=10_000.0)
    parser.add_argument("--rmap", default="single")
    parser.add_argument("--workload", default="execl")
    given = parser.parse_args()
    if given.what == "native":
        return native(given.minutes, given.cell_s)
    if given.what == "virtual":
        return virtual(given.cpus, given.virtual_ms, given.rmap, given.workload)
    time_s = f"{given.minutes * 60:g}s"
    command = [sys.executable, "-m", "emu", "check", "--suite", "explore", "--time", time_s]
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
