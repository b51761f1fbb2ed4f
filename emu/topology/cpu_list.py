# SPDX-License-Identifier: MIT
"""Lists of CPUs as Linux writes them, "0-3,8"."""

from __future__ import annotations

from collections.abc import Iterable

MAX_CPUS = 65535
"""A queued spinlock's tail holds CPU number + 1 in 16 bits."""


def parse_cpu_list(text: str) -> list[int]:
    """The CPUs of "0-3,8", as the kernel writes them. Raises ValueError."""
    cpus: list[int] = []
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        if int(last or first) >= MAX_CPUS:
            raise ValueError(f"CPU {last or first} is above {MAX_CPUS - 1}")
        cpus.extend(range(int(first), int(last or first) + 1))
    return cpus


def format_cpu_list(cpus: Iterable[int]) -> str:
    """The inverse of parse_cpu_list(), for ascending CPUs."""
    runs: list[list[int]] = []
    for cpu in cpus:
        if runs and cpu == runs[-1][1] + 1:
            runs[-1][1] = cpu
        else:
            runs.append([cpu, cpu])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
