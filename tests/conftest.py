# SPDX-License-Identifier: MIT
"""What all tests share."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

# As the command does, and before numpy is loaded: tests fork workers from this process.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import emu_command
import pytest
from hypothesis import settings

# No test is timed: other guests of the host slow it down as they like.
settings.register_profile("mm-emu", deadline=None)
settings.load_profile("mm-emu")

# In the background of a script it is ignored; commands that are to end by it would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def command_loaded_once() -> None:
    """Before a test counts its child processes."""
    emu_command.load_once()


@pytest.fixture(autouse=True)
def own_store(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test writes into the user's store or cache."""
    data = tmp_path_factory.mktemp("data")
    monkeypatch.setenv("XDG_DATA_HOME", str(data))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    return data / "mm-emu" / "runs"


def left_behind() -> set[str]:
    """Arenas and run directories of this process and of dead ones; others may run beside us."""
    found = set()
    for parent in ("/dev/shm", "/tmp"):
        for path in Path(parent).iterdir():
            match = re.fullmatch(r"emu-(\d+)-[0-9a-f]+", path.name)
            if match and (match[1] == str(os.getpid()) or not Path(f"/proc/{match[1]}").exists()):
                found.add(str(path))
    return found


def child_processes() -> dict[str, str]:
    """Command lines by process number."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return {pid: Path(f"/proc/{pid}/cmdline").read_text() for pid in children}


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """The test leaves no arena, no run directory and no child process."""
    before, children = left_behind(), child_processes()
    yield
    # What a test beside us leaves when it kills a coordinator goes with the next run there.
    give_up = time.monotonic() + 10
    while left_behind() - before and time.monotonic() < give_up:
        time.sleep(0.1)
    assert left_behind() - before == set()
    assert {pid: line for pid, line in child_processes().items() if pid not in children} == {}
