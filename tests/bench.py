# SPDX-License-Identifier: MIT
"""Runs the benchmarks of tests/c and prints figures and ratios: ``bench.py FOLDER_OF_PROGRAMS``.

Each program prints lines "name<TAB>ns". All are run in turn, three times, and medians compared,
because single figures of a shared machine mean little. Nothing here passes or fails: the aims are
printed beside what came out.

SimPy, which knows processes and locks but no caches, takes its turn with the same actors that the
virtual machine runs with all of its costs.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import simpy

ROUNDS = 3
DESIGNS = ("single", "numa-trees", "numa-locks")

# What is compared: figure, with what, and the aim for the ratio (or for ns, when with nothing).
RATIOS: list[tuple[str, str | None, float | None]] = [
    ("down_write_up_write", "cas_seq_cst_store", 2.0),
    ("down_write_up_write", "cas_release_store", None),
    ("down_write_up_write", "pthread_rwlock_wrlock_unlock", 1.0),
    ("down_read_up_read", "cas_seq_cst_store", None),
    ("two_processes_rwsem", "two_processes_pthread_mutex", None),
    ("emu_hist_record", None, 10.0),
    ("remove_insert_hot_6000", None, 80.0),
    ("remove_insert_hot_100000", "remove_insert_hot_10", None),
    ("remove_insert_cold_6000", "remove_insert_hot_6000", None),
    *((f"execl_4096_{design}_exec", f"execl_384_{design}_exec", 1.6) for design in DESIGNS),
]

ACTORS, LOCKS, SECTIONS, HOLD_US, THINK_US = 384, (1, 12, 384), 200, 1, 5


def simpy_section_ns(locks: int) -> float:
    """Host ns a critical section: actors that lock, hold, unlock and think, in SimPy."""
    machine = simpy.Environment()
    resources = [simpy.Resource(machine) for _ in range(locks)]

    def actor(lock: simpy.Resource) -> Generator[Any, Any, None]:
        for _ in range(SECTIONS):
            with lock.request() as mine:
                yield mine
                yield machine.timeout(HOLD_US)
            yield machine.timeout(THINK_US)

    for number in range(ACTORS):
        machine.process(actor(resources[number % locks]))
    began = time.process_time()
    machine.run()
    return (time.process_time() - began) * 1e9 / (ACTORS * SECTIONS)


def print_virtual(median: dict[str, float]) -> None:
    """The virtual machine's speed, in what it does per second of the host."""
    print(
        f"\n{'execl on 384 CPUs':20}{'accesses/s':>12}{'host/virtual time':>19}{'us/exec':>9}  aim"
    )
    for design in DESIGNS:
        access_ns, exec_ns, slow_down = (
            median[f"execl_384_{design}_{what}"] for what in ("access", "exec", "slow_down")
        )
        print(f"{design:20}{1e3 / access_ns:10.1f} M{slow_down:19.0f}{exec_ns / 1e3:9.1f}  40 M")
    sections = f"{ACTORS} actors: critical sections/s"
    print(f"\n{sections:36}{'SimPy':>9}{'virtual':>9}{'ratio':>7}  aim")
    for locks in LOCKS:
        peer, own = (median[f"{what}_{ACTORS}_on_{locks}_locks"] for what in ("simpy", "section"))
        print(
            f"{f'on {locks} lock' + ('s' if locks > 1 else ''):36}{1e3 / peer:7.2f} M"
            f"{1e3 / own:7.2f} M{peer / own:7.1f}  3 M"
        )


def main() -> None:
    """Run, then print all figures and the ratios."""
    programs = sorted(Path(sys.argv[1]).glob("bench_*"))
    if not programs:
        sys.exit(f"bench.py: no bench_* in {sys.argv[1]}")
    figures: dict[str, list[float]] = {}
    for turn in range(ROUNDS):
        for program in programs:
            if sys.stderr.isatty():
                print(f"\rround {turn + 1} of {ROUNDS}: {program.name:20}", end="", file=sys.stderr)
            out = subprocess.run([program], check=True, capture_output=True, text=True).stdout
            for line in out.splitlines():
                name, ns = line.split("\t")
                figures.setdefault(name, []).append(float(ns))
        for locks in LOCKS:
            name = f"simpy_{ACTORS}_on_{locks}_locks"
            figures.setdefault(name, []).append(simpy_section_ns(locks))
    if sys.stderr.isatty():
        print(f"\r{' ':40}\r", end="", file=sys.stderr)

    print(f"{'figure':32}{'median ns':>10}{'min':>9}{'max':>9}")
    for name, values in figures.items():
        median = statistics.median(values)
        print(f"{name:32}{median:10.2f}{min(values):9.2f}{max(values):9.2f}")
    print(f"\n{'ratio of medians':62}{'':>6}  aim")
    for name, base, aim in RATIOS:
        if name not in figures or (base and base not in figures):
            continue
        value = statistics.median(figures[name])
        what = f"{name} ns"
        if base:
            value /= statistics.median(figures[base])
            what = f"{name} / {base}"
        print(f"{what:62}{value:6.2f}  {f'at most {aim:g}' if aim else ''}".rstrip())
    print_virtual({name: statistics.median(values) for name, values in figures.items()})


if __name__ == "__main__":
    main()
