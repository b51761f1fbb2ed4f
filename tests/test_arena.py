# SPDX-License-Identifier: MIT
"""The arena: where it is, who may read it, what it says without room, what it cleans up."""

from __future__ import annotations

import ctypes
import fcntl
import os
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import posix_ipc
import pytest

from emu import arena
from emu.arena import ARENA_BASE, MIB, Arena, remove_stale, run_directory
from emu.errors import InputError

pytestmark = pytest.mark.usefixtures("nothing_left")


def test_is_private_and_at_the_fixed_address() -> None:
    with Arena.create(3 * MIB - 5) as made:
        path = Path("/dev/shm") / made.name
        assert made.base == ARENA_BASE
        assert made.size == path.stat().st_size == 3 * MIB
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        ctypes.memset(made.base, 0x5A, 16)
        assert path.read_bytes()[:17] == b"\x5a" * 16 + b"\0"
    assert not path.exists()


def test_takes_another_address_when_that_one_is_taken() -> None:
    with Arena.create(MIB) as first, Arena.create(MIB) as second:
        assert first.base == ARENA_BASE
        assert second.base not in (0, ARENA_BASE)
        ctypes.memset(second.base, 1, second.size)


def test_reserve_takes_the_memory() -> None:
    with Arena.create(8 * MIB) as made:
        assert made.used_bytes() < MIB
        made.reserve()
        assert made.used_bytes() >= 8 * MIB


def test_closing_twice_is_no_harm() -> None:
    made = Arena.create(MIB)
    made.close()
    made.close()


def test_anonymous_has_no_name() -> None:
    before = set(Path("/dev/shm").iterdir())
    with Arena.anonymous(64 * MIB) as made:
        ctypes.memset(made.base, 1, 4096)
        assert set(Path("/dev/shm").iterdir()) == before


def test_more_than_there_is_names_the_option() -> None:
    with pytest.raises(InputError, match=r"/dev/shm has \d+ MiB free .* --arena-size"):
        Arena.create(1 << 50)


def test_no_permission_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise posix_ipc.PermissionsError("No permission to create this segment")

    monkeypatch.setattr(posix_ipc, "SharedMemory", refuse)
    with pytest.raises(InputError, match="write permission"):
        Arena.create(MIB)


def test_no_address_space_left_removes_the_name() -> None:
    """In a process of its own: a limit on address space as `ulimit -v` sets it."""
    script = (
        "import resource; from emu.arena import Arena; from emu.errors import InputError\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))\n"
        "try: Arena.create(4 << 30)\n"
        "except InputError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert "--arena-size" in done.stdout


def make_stale(parent: Path, pid: int, *, directory: bool = False) -> Path:
    path = parent / f"emu-{pid}-{os.urandom(8).hex()}"
    if directory:
        path.mkdir(mode=0o700)
        (path / "coordinator").touch()
    else:
        path.touch(mode=0o600)
    return path


def dead_pid() -> int:
    done = subprocess.Popen(["true"])
    done.wait()
    return done.pid


def test_leavings_of_the_dead_go() -> None:
    segment = make_stale(Path("/dev/shm"), dead_pid())
    directory = make_stale(Path("/tmp"), dead_pid(), directory=True)
    assert {segment, directory} <= set(remove_stale())
    assert not segment.exists()
    assert not directory.exists()


def test_the_living_and_the_young_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    young = make_stale(Path("/dev/shm"), os.getpid())
    foreign = Path("/dev/shm/emu-of-somebody-else")
    foreign.touch()
    try:
        with Arena.create(MIB) as living, run_directory() as directory:
            later = time.time() + 3600
            monkeypatch.setattr(time, "time", lambda: later)
            gone = remove_stale()
            assert Path("/dev/shm") / living.name not in gone
            assert directory not in gone
            # An hour from now the young one, which nobody has locked, is stale.
            assert young in gone
            assert foreign.exists()
        monkeypatch.undo()
        young = make_stale(Path("/dev/shm"), os.getpid())
        assert young not in remove_stale()
    finally:
        young.unlink(missing_ok=True)
        foreign.unlink()


def test_a_lock_of_another_process_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    segment = make_stale(Path("/dev/shm"), dead_pid())
    with segment.open() as holder:
        fcntl.flock(holder, fcntl.LOCK_SH)
        assert segment not in remove_stale()
    assert segment in remove_stale()


def test_run_directory_is_private_and_goes() -> None:
    with run_directory() as directory:
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        (directory / "coordinator").touch()
    assert not directory.exists()


def test_run_directory_has_room_for_a_socket_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    deep = tmp_path / ("d" * 80)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with run_directory() as directory:
        assert len(str(directory / "coordinator")) < 107


def test_memory_available_is_less_than_all() -> None:
    total = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    assert 0 < arena.memory_available() < total
