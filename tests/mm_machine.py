# SPDX-License-Identifier: MIT
"""A small machine in the test's own process: no workers, system calls one at a time.

It is the C core with an anonymous mapping as its arena; each emulated CPU has its own process.
"""

from __future__ import annotations

import ctypes
import mmap

import numpy as np

from emu import _core
from emu.workload import CALL_DTYPE

PAGE = 4096
PROT_READ, PROT_WRITE, PROT_EXEC = 1, 2, 4
MAP_SHARED, MAP_PRIVATE, MAP_FIXED, MAP_ANONYMOUS = 0x1, 0x2, 0x10, 0x20
MAP_GROWSDOWN, MAP_FIXED_NOREPLACE = 0x100, 0x100000
MAP_SPECIAL, MAP_BRK = 0x10000000, 0x20000000
LIST_FORK, LIST_EXIT, LIST_IMAGE, LIST_EXEC = range(4)
NO_EXPECT = 2**64 - 1


def call(op: str, **fields: int) -> np.ndarray:
    """One call as an array of one element; fields of ``struct emu_call``."""
    record = np.zeros(1, dtype=CALL_DTYPE)
    record["op"] = _core.CALL_NAMES.index(op)
    record["arg"] = -1
    record["expect"] = NO_EXPECT
    for name, value in fields.items():
        record[name] = value
    return record


class Machine:
    """CPUs on two nodes, ``files`` of 64 pages each. mmap_base is the end of the free addresses.

    Without ``lists``: LIST_FORK, LIST_EXIT, LIST_IMAGE, which is empty, and LIST_EXEC of that.
    """

    def __init__(
        self,
        rmap: str,
        mm: str = "mmap-sem-rbtree",
        *,
        cpus: int = 2,
        files: tuple[str, ...] = ("a", "b"),
        mmap_base: int = 0x7000_0000_0000,
        mib: int = 64,
        lists: tuple[np.ndarray, ...] | None = None,
    ) -> None:
        self.core = _core.load("native")
        self.lib = self.core._lib
        self._declare()
        if lists is None:
            lists = (
                call("fork"),
                call("exit"),
                np.zeros(0, dtype=CALL_DTYPE),
                call("exec", arg=LIST_IMAGE, addr=mmap_base),
            )
        self.memory = mmap.mmap(-1, mib << 20)
        base = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        config = _core.make_config(
            node_of_cpu=[cpu % 2 for cpu in range(cpus)],
            nr_nodes=2,
            nr_files=len(files),
            nr_lists=len(lists),
            nr_calls=sum(len(each) for each in lists),
            seed=1,
            strict=True,
        )
        for kind, word in (("rmap", rmap), ("mm", mm)):
            name, _, params = word.partition(":")
            path = _core.data_path("designs", kind, f"{name}.so")
            number = _core.NAME_OF_KIND.index(kind)
            self.core.design_load(number, str(path).encode(), params.encode() or None)
        self.core.arena_format(base, mib << 20, ctypes.byref(config))
        for name in files:
            self.core.file_add(name.encode(), 64)
        for each in lists:
            self.core.list_add(each.ctypes.data, len(each))
        self.core.boot()
        self.files = files
        self.cpus = cpus

    def _declare(self) -> None:
        u32, u64, i64 = ctypes.c_uint32, ctypes.c_uint64, ctypes.c_int64
        for name, *arguments in (
            ("mmap", u64, u64, u32, u32, ctypes.c_void_p, u64),
            ("munmap", u64, u64),
            ("mprotect", u64, u64, u32),
            ("brk", u64),
            ("madvise_dontneed", u64, u64),
        ):
            function = getattr(self.lib, f"emu_sys_{name}")
            function.restype = i64
            function.argtypes = arguments
        self.lib.emu_file.restype = ctypes.c_void_p
        self.lib.emu_file.argtypes = (u32,)

    def attach(self, cpu: int) -> None:
        self.core.cpu_attach(cpu)

    def run_list(self, number: int) -> None:
        failed = self.core.list_run(number)
        assert failed is None, failed

    def mmap(
        self, addr: int, length: int, prot: int, flags: int, file: int | None, off: int
    ) -> int:
        where = None if file is None else self.lib.emu_file(file)
        return int(self.lib.emu_sys_mmap(addr, length, prot, flags, where, off))

    def munmap(self, addr: int, length: int) -> int:
        return int(self.lib.emu_sys_munmap(addr, length))

    def mprotect(self, addr: int, length: int, prot: int) -> int:
        return int(self.lib.emu_sys_mprotect(addr, length, prot))

    def brk(self, addr: int) -> int:
        return int(self.lib.emu_sys_brk(addr))

    def dontneed(self, addr: int, length: int) -> int:
        return int(self.lib.emu_sys_madvise_dontneed(addr, length))

    def maps(self) -> list[str]:
        return self.core.maps().splitlines()

    def file_vmas(self, file: int) -> int:
        return int(self.core.file_vmas(file))

    def check_drained(self) -> None:
        self.core.check_drained()
