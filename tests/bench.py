# SPDX-License-Identifier: MIT
"""Runs the benchmarks of tests/c and prints figures and ratios: ``bench.py FOLDER_OF_PROGRAMS``.

Each program prints lines "name<TAB>ns". All are run in turn, three times, and medians compared,
because single figures of a shared machine mean little. Nothing here passes or fails: the aims are
printed beside what came out.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from pathlib import Path

ROUNDS = 3

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
    ("execl_384_single_access", None, 25.0),
    ("execl_384_numa-locks_access", None, 25.0),
    ("execl_4096_numa-locks_exec", "execl_384_numa-locks_exec", 1.6),
    ("section_384_on_384_locks", None, 333.0),
    ("section_384_on_1_locks", None, 333.0),
]


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


if __name__ == "__main__":
    main()
