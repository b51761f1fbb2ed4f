# SPDX-License-Identifier: MIT
"""What all tests share."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

# As the command does, and before numpy is loaded: tests fork workers from this process.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import pytest


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
    """The test leaves no arena, no run directory and no child process.

    Before it there may be one: where both machines are used from one Python process, the package
    multiprocess keeps a helper until that ends.
    """
    before, children = left_behind(), child_processes()
    yield
    assert left_behind() - before == set()
    assert {pid: line for pid, line in child_processes().items() if pid not in children} == {}
