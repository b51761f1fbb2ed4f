# SPDX-License-Identifier: MIT
"""A workload that has been read: files, call lists, phases, walkers; and what it may need."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from emu import background
from emu.errors import InputError
from emu.workload.calls import MAP_ANONYMOUS, OPS, format_time

PMD_BYTES = 2 << 20
"""What a page table maps."""
PAGE_TABLE_BYTES = 4352
"""Arena for a bottom-level page table (struct page_table); an upper one takes less."""
WALKER_KINDS = ("truncate", "reclaim", "migrate")
"""By the number of enum emu_walk_kind."""


class File(NamedTuple):
    """A file that programs map."""

    name: str
    pages: int


class Phase(NamedTuple):
    """A part of a run in which every CPU runs one list."""

    name: str
    list: int
    once: bool
    record: bool
    share: float
    """Of the duration; 0 if once."""
    unit: str
    """The latency operation that counts as one: "iteration", "exec", "fork" ..."""
    first: int | None = None
    """The list that CPU 0 runs instead."""


class Walker(NamedTuple):
    """A background task that walks pages ``first`` to ``last`` of a file (its number).

    A walk is about ``at_once`` of them; the next about those that follow.
    """

    kind: str
    file: int
    first: int
    last: int
    at_once: int
    every_ns: int
    cpu: int | None


class CallPlace(NamedTuple):
    """A call for people: its text, and "file.toml:12: [program.x] calls[3]"."""

    text: str
    place: str

    def __str__(self) -> str:
        return f"{self.place}: {self.text}"


@dataclass(frozen=True, eq=False)
class Workload:
    """A workload that has been read and checked; `lists` is what the core is given."""

    name: str
    description: str
    files: tuple[File, ...]
    lists: tuple[NDArray[np.void], ...]
    """Of CALL_DTYPE, read-only. Images first, then programs, then drain."""
    list_names: tuple[str, ...]
    """By number: "image.x" ..., "program.x" ..., "drain"."""
    load_list: int
    phases: tuple[Phase, ...]
    """The warm-up, then those of the file."""
    drain_list: int
    work_jitter_permille: int
    calls: tuple[tuple[CallPlace, ...], ...]
    """By list and index."""
    share_mm: bool = False
    """All CPUs are threads of one process."""
    touch: str = "none"
    walkers: tuple[Walker, ...] = ()
    cold_permille: int = 0
    """Of a thousand faults in files so many find their page missing in the page cache."""
    read_ns: int = 0
    """What a fault sleeps then."""
    private_files: int = 0
    """So many of the files, the last, are each CPU's own."""
    uses: background.Uses = field(default_factory=background.Uses)
    """What the calls use of the rest of the kernel."""
    vma_change_ns: int = 0
    """What the kernel computes while it changes a VMA of a file, beside what is emulated."""

    def scaled(self, factor: float) -> Workload:
        """With all computing `factor` times as long, also what is held meanwhile.

        Raises InputError where a lock is then held for longer than the engines' words count.
        """
        held_ns = max(
            max((int(calls["locked_ns"].max()) for calls in self.lists if len(calls)), default=0),
            max((entry.hold_ns for entry in self.uses.entries), default=0),
            self.vma_change_ns,
        )
        if round(held_ns * factor) >= 2**32:
            what = f"{self.name} holds a lock for {format_time(held_ns)}"
            raise InputError(f"{what}; {factor:g} times as long on this machine is too long")
        lists = []
        for calls in self.lists:
            calls = calls.copy()
            for time in ("work_ns", "locked_ns"):
                calls[time] = np.round(calls[time] * factor)
            lists.append(read_only(calls))
        return replace(
            self,
            lists=tuple(lists),
            uses=self.uses.scaled(factor),
            vma_change_ns=round(self.vma_change_ns * factor),
        )

    @property
    def has_processes(self) -> bool:
        """False: all is done on lines and locks of its own, and no design plays a part."""
        return bool(len(self.lists[self.drain_list]))

    @property
    def counting_phase(self) -> str:
        """The phase whose operations are the run's: the first that is recorded."""
        return next(phase.name for phase in self.phases if phase.record)

    @cached_property
    def most_vmas(self) -> int:
        """How many VMAs a CPU's processes may have at once, waiting ones included."""
        most, loaded = self._list_vmas(self.load_list, 0)
        return max(most, *(self._list_vmas(phase.list, loaded)[0] for phase in self.phases))

    def _list_vmas(self, number: int, own: int) -> tuple[int, int]:
        """How many at most, and the process's at the end; each call may leave one more."""
        waiting, most = 0, own
        parents: list[int] = []
        calls = self.lists[number]
        for op, arg in zip(calls["op"].tolist(), calls["arg"].tolist(), strict=True):
            match OPS[op]:
                case "mmap" | "munmap" | "mprotect" | "brk":
                    own += 1
                case "exec":
                    own = len(self.lists[arg])
                case "fork":
                    parents.append(own)
                    waiting += own
                case "exit" if parents:
                    own = parents.pop()
                    waiting -= own
            most = max(most, own + waiting)
        return most, own

    @cached_property
    def page_table_bytes(self) -> int:
        """Arena for the page tables of a CPU's processes, at most."""
        return sum(map(self._list_page_table_bytes, self.lists))

    def _list_page_table_bytes(self, calls: NDArray[np.void]) -> int:
        op, flags = calls["op"], calls["flags"]
        faults = (op == OPS.index("fault")) | (op == OPS.index("fault_next"))
        # An mm design may keep its VMAs in page tables, which are there from the start then.
        faults |= (op == OPS.index("mmap")) & self.share_mm
        # exec leads to an image, whose mappings count there.
        touched = (op == OPS.index("mmap")) & (self.touch != "none") & (flags & MAP_ANONYMOUS == 0)
        of_fork = int(np.sum(op == OPS.index("fork"))) * (
            self.touch != "none" or bool(faults.any())
        )
        tables = calls["len"][faults | touched] // PMD_BYTES + 5
        return PAGE_TABLE_BYTES * (int(tables.sum()) + 16 * of_fork)

    def describe_call(self, list_number: int, index: int) -> CallPlace:
        """Text and place of a call, for messages."""
        return self.calls[list_number][index]


def read_only(array: NDArray[np.void]) -> NDArray[np.void]:
    """The same array, which nobody writes from now on."""
    array.setflags(write=False)
    return array
