# SPDX-License-Identifier: MIT
"""Runs the command ``emu`` as a user does: in a process of its own, from an empty directory."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

COMMAND = [sys.executable, "-m", "emu"]


def emu(*arguments: str, timeout_s: float = 60, **env: str) -> subprocess.CompletedProcess[str]:
    """Run to the end."""
    with tempfile.TemporaryDirectory() as directory:
        return subprocess.run(
            [*COMMAND, *arguments],
            cwd=directory,
            env=os.environ | env,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )


def start(*arguments: str) -> subprocess.Popen[str]:
    """Start it in a session of its own."""
    return subprocess.Popen(
        [*COMMAND, *arguments],
        cwd="/",
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def children(pid: int) -> list[int]:
    """The process's children; none when it is gone."""
    try:
        return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def wait_until(condition: Callable[[], object], timeout_s: float = 20) -> None:
    """Until it holds. Fails after the timeout."""
    give_up = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < give_up, "waited in vain"
        time.sleep(0.02)


def cpu_ticks(pid: int) -> int:
    """Time that the process has computed, in clock ticks (10 ms)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])
