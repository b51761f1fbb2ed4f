"""The arena: the shared memory that holds all that the CPUs share.

POSIX shared memory of mode 0600 under a random name, mapped at one fixed address before the workers
are forked, so that plain pointers are valid in all of them. The mapping is what counts; the name is
only there to look at, and goes when the arena is closed.

Liveness: whoever has the arena open holds a lock (``flock``) on it, the workers too, by
inheritance. An arena or run directory that nobody has locked is what a dead run left behind.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import re
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import posix_ipc

from emu.errors import EmuError, InputError

MIB = 1 << 20
ARENA_BASE = 0x2000_0000_0000
"""Where arenas are mapped: free on x86-64 and aarch64 alike, far from heap, libraries and stack."""

_SHM = Path("/dev/shm")
_OURS = re.compile(r"emu-(\d+)-[0-9a-f]{16}")
_STALE_AFTER_S = 10
_LONGEST_PARENT = 60
"""Characters: a socket's address may have 107."""
_MAP_FIXED_NOREPLACE = 0x100000
_MAP_NORESERVE = 0x4000
_MAP_FAILED = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)


def _random_name() -> str:
    return f"emu-{os.getpid()}-{secrets.token_hex(8)}"


def _map(fd: int, size: int, *, shared: bool = True) -> int:
    """Map ``size`` bytes of ``fd`` (-1: anonymous) at ARENA_BASE if that is free."""
    flags = mmap.MAP_SHARED if shared else mmap.MAP_PRIVATE
    flags |= _MAP_NORESERVE | (mmap.MAP_ANONYMOUS if fd < 0 else 0)
    protection = mmap.PROT_READ | mmap.PROT_WRITE
    for base, extra in ((ARENA_BASE, _MAP_FIXED_NOREPLACE), (None, 0)):
        address = _libc.mmap(base, size, protection, flags | extra, fd, 0)
        if address == _MAP_FAILED:
            continue
        if base is None or address == base:
            return int(address)
        _libc.munmap(address, size)  # a kernel without MAP_FIXED_NOREPLACE took it for a hint
    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


class Arena:
    """Mapped shared memory; a context manager that unmaps and removes it.

    ``base`` is the address, ``size`` the bytes.
    """

    def __init__(self, name: str, fd: int, base: int, size: int) -> None:
        self.name, self.base, self.size = name, base, size
        self._fd = fd

    @classmethod
    def create(cls, size: int) -> Self:
        """A new arena of ``size`` bytes, rounded up to whole MiB; no memory is taken yet.

        Raises InputError when /dev/shm does not let us, or has not as much room.
        """
        size = -(-size // MIB) * MIB
        name = _random_name()
        try:
            space = os.statvfs(_SHM)
            free = space.f_bavail * space.f_frsize
        except OSError as error:
            raise InputError(f"{_SHM}: {error.strerror}; the arena needs it") from None
        if size > free:
            raise _no_room(size, free)
        try:
            shm = posix_ipc.SharedMemory(f"/{name}", posix_ipc.O_CREX, mode=0o600)
        except (posix_ipc.Error, OSError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise InputError(
                f"{_SHM}: no shared memory can be made there ({reason}); "
                "the arena needs write permission on it"
            ) from None
        fd: int = shm.fd
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            os.ftruncate(fd, size)
            base = _map(fd, size)
        except BaseException as error:
            os.close(fd)
            posix_ipc.unlink_shared_memory(f"/{name}")
            if isinstance(error, OSError):
                raise InputError(
                    f"an arena of {size // MIB} MiB cannot be mapped ({error.strerror}); "
                    "--arena-size or fewer --cpus need less"
                ) from None
            raise
        return cls(name, fd, base, size)

    @classmethod
    def anonymous(cls, size: int) -> Self:
        """An arena without a name, for one process and its children; pages are taken as touched."""
        return cls("", -1, _map(-1, size), size)

    @classmethod
    def private(cls, size: int) -> Self:
        """An arena for one process alone: the host makes its pages faster than shared ones."""
        return cls("", -1, _map(-1, size, shared=False), size)

    def reserve(self) -> None:
        """Take all the memory now, so that a full /dev/shm is an error here and no crash later.

        Call it after the arena is formatted: by then its parts have been bound to NUMA nodes.

        Raises InputError when there is too little.
        """
        try:
            os.posix_fallocate(self._fd, 0, self.size)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.ENOMEM, errno.EFBIG):
                raise
            space = os.statvfs(_SHM)
            raise _no_room(self.size, space.f_bavail * space.f_frsize) from None

    def used_bytes(self) -> int:
        """Bytes of memory that the arena takes up now."""
        return os.fstat(self._fd).st_blocks * 512

    def close(self) -> None:
        """Unmap and remove it; views of it must be gone. A second call does nothing."""
        if not self.base:
            return
        _libc.munmap(self.base, self.size)
        self.base = 0
        if self._fd >= 0:
            with contextlib.suppress(posix_ipc.ExistentialError):
                posix_ipc.unlink_shared_memory(f"/{self.name}")
            os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _no_room(size: int, free: int) -> InputError:
    return InputError(
        f"{_SHM} has {free // MIB} MiB free and the arena needs {size // MIB}; "
        "--arena-size or fewer --cpus need less"
    )


@contextlib.contextmanager
def run_directory() -> Iterator[Path]:
    """A new directory of mode 0700 for the sockets of a run; removed at the end.

    Its path is short enough for a socket's address (107 bytes).
    """
    parent = Path(tempfile.gettempdir())
    if len(str(parent)) > _LONGEST_PARENT:
        parent = Path("/tmp")
    path = parent / _random_name()
    try:
        path.mkdir(mode=0o700)
    except OSError as error:
        raise InputError(
            f"{parent}: {error.strerror}; the run needs a directory there (or set TMPDIR)"
        ) from None
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        yield path
    finally:
        os.close(fd)
        shutil.rmtree(path, ignore_errors=True)


def remove_stale() -> list[Path]:
    """Remove what dead runs of this user left behind; the paths that went.

    Stale is what nobody holds a lock on and what is older than 10 s or whose maker is gone: a run
    that has just made its arena may not have locked it yet.
    """
    parents = {_SHM: stat.S_ISREG}
    for temporary in {Path(tempfile.gettempdir()), Path("/tmp")}:
        parents[temporary] = stat.S_ISDIR
    removed = []
    for parent, is_kind in parents.items():
        try:
            paths = list(parent.iterdir())
        except OSError:
            continue
        for path in paths:
            if not (match := _OURS.fullmatch(path.name)):
                continue
            with contextlib.suppress(OSError):
                info = path.lstat()
                if info.st_uid != os.geteuid() or not is_kind(info.st_mode):
                    continue
                if _is_stale(path, info.st_ctime, int(match[1])):
                    if is_kind is stat.S_ISDIR:
                        shutil.rmtree(path)
                    else:
                        path.unlink()
                    removed.append(path)
    return removed


def _is_stale(path: Path, changed_s: float, pid: int) -> bool:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    if time.time() - changed_s > _STALE_AFTER_S:
        return True
    return not Path(f"/proc/{pid}").exists()


def memory_available() -> int:
    """Bytes of memory that can be had without swapping, by the host and by our control group.

    Raises EmuError when /proc does not say.
    """
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) * 1024
            break
    else:
        raise EmuError("/proc/meminfo does not say how much memory is available")
    with contextlib.suppress(OSError, ValueError, StopIteration):
        # cgroup v2; where the file or a limit is missing there is none
        own = next(
            line.removeprefix("0::")
            for line in Path("/proc/self/cgroup").read_text().splitlines()
            if line.startswith("0::")
        )
        group = Path("/sys/fs/cgroup" + own)
        for directory in (group, *group.parents):
            if directory == Path("/sys/fs"):
                break
            with contextlib.suppress(OSError, ValueError, KeyError):
                limit = int((directory / "memory.max").read_text())
                used = int((directory / "memory.current").read_text())
                pairs = (line.split() for line in (directory / "memory.stat").open())
                kinds = {kind: int(size) for kind, size in pairs}
                used -= kinds["file"] - kinds["shmem"]  # page cache goes when memory is asked for
                available = min(available, max(0, limit - used))
    return available
