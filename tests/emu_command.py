# SPDX-License-Identifier: MIT
"""Runs the command ``emu`` as a user does: in a process of its own, from an empty directory."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing import forkserver, get_context
from pathlib import Path

COMMAND = [sys.executable, "-m", "emu"]
FORKSERVER = get_context("forkserver")


def emu(*arguments: str, timeout_s: float = 60, **env: str) -> subprocess.CompletedProcess[str]:
    """Run to the end.

    In the fork of a process that has loaded the command's modules already, since loading them takes
    longer than most commands do; `start` starts as a user does.
    """
    with tempfile.TemporaryDirectory() as directory, tempfile.TemporaryDirectory() as said:
        streams = (Path(said) / "stdout", Path(said) / "stderr")
        process = FORKSERVER.Process(
            target=_be_emu, args=(arguments, directory, os.environ | env, streams)
        )
        process.start()
        process.join(timeout_s)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(("emu", *arguments), timeout_s)
        status = process.exitcode
        process.close()
        return subprocess.CompletedProcess(
            ("emu", *arguments), status, *(stream.read_text() for stream in streams)
        )


def _be_emu(
    arguments: tuple[str, ...], directory: str, env: dict[str, str], streams: tuple[Path, Path]
) -> None:
    from emu.cli import main

    os.chdir(directory)
    os.environ.clear()
    os.environ.update(env)
    for number, stream in enumerate(streams, 1):
        with stream.open("wb") as file:
            os.dup2(file.fileno(), number)
    sys.argv = ["emu", *arguments]
    main()


def load_once() -> None:
    """Start the process that `emu` forks."""
    # What a command loads only when it uses it takes longest. One that is not there is left out.
    FORKSERVER.set_forkserver_preload(["emu.cli", "typer._adapters", "scipy.stats"])
    os.environ["PYTHONSAFEPATH"] = "1"  # not the checkout's
    try:
        forkserver.ensure_running()
    finally:
        del os.environ["PYTHONSAFEPATH"]


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
