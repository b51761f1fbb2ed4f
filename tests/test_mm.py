# SPDX-License-Identifier: MIT
"""The small mm against an oracle that knows nothing but pages.

Every sequence of system calls must leave the same /proc/PID/maps as the oracle, whose VMAs are the
longest runs of pages with equal properties, and the same results and errors as Linux gives.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mm_machine import (
    LIST_EXEC,
    LIST_EXIT,
    LIST_FORK,
    MAP_ANONYMOUS,
    MAP_BRK,
    MAP_FIXED,
    MAP_FIXED_NOREPLACE,
    MAP_GROWSDOWN,
    MAP_PRIVATE,
    MAP_SHARED,
    PAGE,
    Machine,
)

from emu import _core

BASE = 0x7000_0000_0000  # mmap_base: mappings without an address go below
LOW = BASE - 48 * PAGE  # calls with an address use the 48 pages from here up
MIN = 65536
DESIGNS = (
    "single",
    "numa-trees",
    "numa-locks",
    "cpu-locks:cpus=1",
    "outer-inner:shards=3,by=vma",
    "outer-inner:shards=4,by=mm",
    "outer-percpu",
    "dynamic",
    "exclude",  # keeps libraries out; a and b are none
    "btree:node=128",
    "btree",
    "single:batch=none",
    "outer-inner:shards=3,by=vma,batch=exit+fork",
)
MMS = (
    "mmap-sem-rbtree",
    "mmap-lock-maple",
    "spf",
    "per-vma-lock",
    "pt-extents",
    "pt-extents-percpu",
)


class Page(NamedTuple):
    prot: int
    shared: bool
    account: bool  # private and writable at some time
    file: int | None
    offset: int  # page of the file


@dataclass
class Process:
    """Page number -> Page."""

    pages: dict[int, Page] = field(default_factory=dict)

    def copy(self) -> Process:
        return Process(dict(self.pages))

    def runs(self) -> list[tuple[int, int, Page]]:
        """(first page, pages, properties of the first page) of each VMA."""
        found: list[tuple[int, int, Page]] = []
        for number in sorted(self.pages):
            page = self.pages[number]
            if found:
                first, length, head = found[-1]
                follows = first + length == number and head[:4] == page[:4]
                if follows and (page.file is None or head.offset + length == page.offset):
                    found[-1] = (first, length + 1, head)
                    continue
            found.append((number, 1, page))
        return found

    def maps(self, files: tuple[str, ...]) -> list[str]:
        lines = []
        for first, length, (prot, shared, _, file, offset) in self.runs():
            perms = "".join(c if prot & bit else "-" for c, bit in (("r", 1), ("w", 2), ("x", 4)))
            name = "" if file is None else f" {files[file]}"
            lines.append(
                f"{first * PAGE:x}-{(first + length) * PAGE:x} {perms}{'s' if shared else 'p'} "
                f"{0 if file is None else offset * PAGE:08x}{name}"
            )
        return lines

    def highest_free(self, length: int) -> int:
        """The highest `length` free pages below mmap_base; page number."""
        top = BASE // PAGE
        for page in sorted((p for p in self.pages if p < top), reverse=True):
            if top - page - 1 >= length:
                break
            top = page
        return top - length

    def mmap(
        self, addr: int, length: int, prot: int, flags: int, file: int | None, offset: int
    ) -> int:
        if length == 0 or offset % PAGE:
            return -errno.EINVAL
        count = -(-length // PAGE)
        if flags & (MAP_FIXED | MAP_FIXED_NOREPLACE):
            if addr % PAGE:
                return -errno.EINVAL
            first = addr // PAGE
            taken = any(first + i in self.pages for i in range(count))
            if flags & MAP_FIXED_NOREPLACE and taken:
                return -errno.EEXIST
        else:
            first = addr // PAGE
            if first == 0 or any(first + i in self.pages for i in range(count)):
                first = self.highest_free(count)
        shared = bool(flags & MAP_SHARED)
        for i in range(count):
            account = not shared and bool(prot & 2)
            self.pages[first + i] = Page(prot, shared, account, file, offset // PAGE + i)
        return first * PAGE

    def munmap(self, addr: int, length: int) -> int:
        if addr % PAGE or length == 0:
            return -errno.EINVAL
        for i in range(-(-length // PAGE)):
            self.pages.pop(addr // PAGE + i, None)
        return 0

    def mprotect(self, addr: int, length: int, prot: int) -> int:
        if addr % PAGE:
            return -errno.EINVAL
        for i in range(-(-length // PAGE)):
            page = addr // PAGE + i
            if page not in self.pages:
                return -errno.ENOMEM
            old = self.pages[page]
            account = old.account or (not old.shared and bool(prot & 2))
            self.pages[page] = old._replace(prot=prot, account=account)
        return 0


addresses = st.one_of(
    st.integers(0, 44).map(lambda page: LOW + page * PAGE),
    st.integers(0, 44 * PAGE).map(lambda byte: LOW + byte),
)
lengths = st.one_of(st.integers(1, 9).map(lambda pages: pages * PAGE), st.integers(0, 3 * PAGE))
prots = st.sampled_from([0, 1, 3, 5, 7])
placement = st.sampled_from([0, MAP_FIXED, MAP_FIXED, MAP_FIXED_NOREPLACE])
files = st.sampled_from([None, 0, 0, 1])
mmap_calls = st.tuples(
    st.just("mmap"),
    st.one_of(st.just(0), addresses, addresses),
    lengths,
    prots,
    placement,
    files,
    st.booleans(),
    st.one_of(st.integers(0, 8).map(lambda page: page * PAGE), st.integers(0, 2 * PAGE)),
)
operations = st.tuples(
    st.integers(0, 1),  # CPU
    st.one_of(
        mmap_calls,
        mmap_calls,
        st.tuples(st.just("munmap"), addresses, lengths),
        st.tuples(st.just("mprotect"), addresses, lengths, prots),
        st.tuples(st.just("fork")),
        st.tuples(st.just("exit")),
    ),
)


@pytest.mark.parametrize(
    ("rmap", "mm"),
    [*((rmap, "mmap-sem-rbtree") for rmap in DESIGNS), *(("single", mm) for mm in MMS[1:])],
)
@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(st.lists(operations, max_size=40))
def test_random_calls_leave_the_maps_of_the_oracle(
    rmap: str, mm: str, ops: list[tuple[int, tuple[Any, ...]]]
) -> None:
    machine = Machine(rmap, mm, mmap_base=BASE)
    stacks: list[list[Process]] = []
    for cpu in range(2):
        machine.attach(cpu)
        machine.run_list(LIST_EXEC)
        stacks.append([Process()])

    for cpu, (op, *args) in ops:
        machine.attach(cpu)
        stack = stacks[cpu]
        if op == "mmap":
            addr, length, prot, fixed, file, shared, offset = args
            # A fixed address without an address would be page 0.
            flags = (fixed if addr else 0) | (
                MAP_SHARED if shared and file is not None else MAP_PRIVATE
            )
            flags |= MAP_ANONYMOUS if file is None else 0
            if file is None:
                offset = 0
            expected = stack[-1].mmap(addr, length, prot, flags, file, offset)
            assert machine.mmap(addr, length, prot, flags, file, offset) == expected
        elif op == "munmap":
            assert machine.munmap(*args) == stack[-1].munmap(*args)
        elif op == "mprotect":
            assert machine.mprotect(*args) == stack[-1].mprotect(*args)
        elif op == "fork" and len(stack) < 8:
            machine.run_list(LIST_FORK)
            stack.append(stack[-1].copy())
        elif op == "exit" and len(stack) > 1:
            machine.run_list(LIST_EXIT)
            stack.pop()
        assert machine.maps() == stack[-1].maps(machine.files)
        for number in range(len(machine.files)):
            linked = sum(
                properties.file == number
                for each in stacks
                for process in each
                for _, _, properties in process.runs()
            )
            assert machine.file_vmas(number) == linked

    for cpu, stack in enumerate(stacks):
        machine.attach(cpu)
        for process in reversed(stack):
            assert machine.maps() == process.maps(machine.files)
            machine.run_list(LIST_EXIT)
    machine.check_drained()


@pytest.mark.parametrize("mm", MMS)
@settings(max_examples=60, derandomize=True)
@given(
    st.lists(st.tuples(st.integers(0, 90), st.integers(1, 6)), min_size=3, max_size=30),
    st.lists(st.integers(1, 7), min_size=1, max_size=12),
)
def test_a_mapping_without_an_address_takes_the_highest_gap(
    mm: str, holes: list[tuple[int, int]], lengths: list[int]
) -> None:
    machine = Machine("single", mm, mmap_base=BASE)
    machine.attach(0)
    machine.run_list(LIST_EXEC)
    process = Process()
    flags = MAP_PRIVATE | MAP_FIXED | MAP_ANONYMOUS
    for page in range(1, 97):  # each page a VMA of its own
        addr = BASE - page * PAGE
        assert machine.mmap(addr, PAGE, 1 + page % 2, flags, None, 0) == process.mmap(
            addr, PAGE, 1 + page % 2, flags, None, 0
        )
    for page, length in holes:
        addr = BASE - (page + length) * PAGE
        assert machine.munmap(addr, length * PAGE) == process.munmap(addr, length * PAGE)
    for length in lengths:
        arguments = (0, length * PAGE, 5, MAP_PRIVATE | MAP_ANONYMOUS, None, 0)
        assert machine.mmap(*arguments) == process.mmap(*arguments)
    assert machine.maps() == process.maps(machine.files)
    machine.run_list(LIST_EXIT)
    machine.check_drained()


@pytest.mark.parametrize("mm", MMS)
@settings(max_examples=60, derandomize=True)
@given(st.lists(st.integers(-3, 40), max_size=20))
def test_brk_grows_and_shrinks_the_heap_up_to_its_neighbour(mm: str, steps: list[int]) -> None:
    machine = Machine("single", mm, mmap_base=BASE)
    machine.attach(0)
    machine.run_list(LIST_EXEC)
    start = 0x1000_0000
    wall = start + 32 * PAGE
    private = MAP_PRIVATE | MAP_FIXED | MAP_ANONYMOUS
    # 0x20000000 is MAP_BRK: the heap begins where this mapping ends.
    assert machine.mmap(start - PAGE, PAGE, 5, private | 0x20000000, None, 0) == start - PAGE
    assert machine.mmap(wall, PAGE, 1, private, None, 0) == wall
    brk = start
    for step in steps:
        wanted = start + step * PAGE // 2
        # Below the start, or closer than a page to the next mapping: the break stays.
        fits = start <= wanted and -(-wanted // PAGE) * PAGE + PAGE <= wall
        shrinks = start <= wanted and -(-wanted // PAGE) <= -(-brk // PAGE)
        if fits or shrinks:
            brk = wanted
        assert machine.brk(wanted) == brk
        end = -(-brk // PAGE) * PAGE
        heap = [f"{start:x}-{end:x} rw-p 00000000 [heap]"] if end > start else []
        assert machine.maps()[1:-1] == heap
    machine.run_list(LIST_EXIT)
    machine.check_drained()


ANONYMOUS = MAP_PRIVATE | MAP_ANONYMOUS
FIXED = ANONYMOUS | MAP_FIXED
TOP = 0x7FFF_FFFF_F000  # EMU_TASK_SIZE, and the kernel's
WRAPS = 2**64 - 1  # as a length: its whole pages are more than 64 bits count
AT = 0x1000_0000


@pytest.fixture(params=MMS)
def machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    """With an empty process; whatever it maps must be gone when it has exited."""
    machine = Machine("single", request.param, mmap_base=BASE)
    machine.attach(0)
    machine.run_list(LIST_EXEC)
    yield machine
    machine.run_list(LIST_EXIT)
    machine.check_drained()


@pytest.mark.parametrize(
    ("call", "arguments", "result"),
    [
        ("mmap", (AT + 123, PAGE, 3, ANONYMOUS, None, 0), AT),
        ("mmap", (5, PAGE, 3, ANONYMOUS, None, 0), BASE - PAGE),
        ("mmap", (0x3000, PAGE, 3, ANONYMOUS, None, 0), MIN),
        ("mmap", (TOP - PAGE, 2 * PAGE, 3, ANONYMOUS, None, 0), BASE - 2 * PAGE),
        ("mmap", (2**64 - 1, PAGE, 3, ANONYMOUS, None, 0), BASE - PAGE),
        ("mmap", (0, 0, 3, ANONYMOUS, None, 0), -errno.EINVAL),
        ("mmap", (0, PAGE, 3, MAP_ANONYMOUS, None, 0), -errno.EINVAL),
        ("mmap", (0, TOP + PAGE, 3, ANONYMOUS, None, 0), -errno.ENOMEM),
        ("mmap", (0, WRAPS, 3, ANONYMOUS, None, 0), -errno.ENOMEM),
        ("mmap", (AT + 1, PAGE, 3, FIXED, None, 0), -errno.EINVAL),
        ("mmap", (TOP, PAGE, 3, FIXED, None, 0), -errno.ENOMEM),
        ("mmap", (TOP + 1, PAGE, 3, FIXED, None, 0), -errno.ENOMEM),
        ("mmap", (0, PAGE, 1, MAP_PRIVATE, 0, 1), -errno.EINVAL),
        ("mmap", (0, PAGE, 1, MAP_PRIVATE | MAP_GROWSDOWN, 0, 0), -errno.EINVAL),
        ("mmap", (0, PAGE, 1, MAP_SHARED | MAP_GROWSDOWN, 0, 0), -errno.EINVAL),
        ("mmap", (0, PAGE, 1, MAP_PRIVATE, 0, 2**63 - PAGE), -errno.EOVERFLOW),
        ("mmap", (0, PAGE, 1, MAP_PRIVATE, 0, 2**64 - PAGE), -errno.EOVERFLOW),
        ("munmap", (AT, PAGE), 0),
        ("munmap", (AT, 0), -errno.EINVAL),
        ("munmap", (AT + 1, PAGE), -errno.EINVAL),
        ("munmap", (TOP, PAGE), -errno.EINVAL),
        ("munmap", (AT, TOP), -errno.EINVAL),
        ("munmap", (AT, WRAPS), -errno.EINVAL),
        ("mprotect", (AT, 0, 1), 0),
        ("mprotect", (AT + 1, 0, 1), -errno.EINVAL),
        ("mprotect", (AT, PAGE, 1), -errno.ENOMEM),
        ("mprotect", (AT, WRAPS, 1), -errno.ENOMEM),
        ("mprotect", (TOP, PAGE, 1), -errno.ENOMEM),
        ("dontneed", (AT, 0), 0),
        ("dontneed", (AT + 1, 0), -errno.EINVAL),
        ("dontneed", (AT, PAGE), -errno.ENOMEM),
        ("dontneed", (AT, WRAPS), -errno.EINVAL),
        ("dontneed", (TOP, PAGE), -errno.ENOMEM),
        ("dontneed", (2**64 - PAGE, 2 * PAGE), -errno.EINVAL),
    ],
)
def test_odd_ranges_end_as_in_linux(
    machine: Machine, call: str, arguments: tuple[int, ...], result: int
) -> None:
    """Each was tried on Linux 6.18."""
    assert getattr(machine, call)(*arguments) == result
    assert len(machine.maps()) == (call == "mmap" and result > 0)


def test_what_lies_before_the_end_of_user_space_is_changed(machine: Machine) -> None:
    assert machine.mmap(TOP - 2 * PAGE, 2 * PAGE, 3, FIXED, None, 0) == TOP - 2 * PAGE
    assert machine.mprotect(TOP - PAGE, 2 * PAGE, 1) == -errno.ENOMEM
    assert machine.dontneed(TOP - PAGE, 2 * PAGE) == -errno.ENOMEM
    assert [line.split()[1] for line in machine.maps()] == ["rw-p", "r--p"]


def test_a_heap_that_was_unmapped_does_not_shrink(machine: Machine) -> None:
    assert machine.mmap(AT, PAGE, 5, FIXED | MAP_BRK, None, 0) == AT
    heap = AT + PAGE
    assert machine.brk(heap + 4 * PAGE) == heap + 4 * PAGE
    assert machine.munmap(heap + 2 * PAGE, 2 * PAGE) == 0
    assert machine.brk(heap + 3 * PAGE) == heap + 4 * PAGE
    assert machine.brk(heap + 3 * PAGE + 1) == heap + 3 * PAGE + 1  # the same last page
    assert machine.brk(heap + PAGE) == heap + PAGE
    assert machine.maps()[1:] == [f"{heap:x}-{heap + PAGE:x} rw-p 00000000 [heap]"]


@pytest.mark.parametrize("page", [0, 1, 100, 255, 256, 257, 511])
def test_nothing_is_put_into_a_stacks_guard_gap(machine: Machine, page: int) -> None:
    """Wherever the stack lies in its page table (2 MiB): the gap may be in the one before."""
    gap = 256 * PAGE
    stack = 0x2000_0000 + page * PAGE
    assert machine.mmap(stack, 4 * PAGE, 3, FIXED | MAP_GROWSDOWN, None, 0) == stack
    assert machine.mmap(stack - gap, PAGE, 3, ANONYMOUS, None, 0) == BASE - PAGE
    assert machine.mmap(stack - PAGE, PAGE, 3, ANONYMOUS, None, 0) == BASE - 2 * PAGE
    assert machine.mmap(stack - gap - PAGE, PAGE, 5, ANONYMOUS, None, 0) == stack - gap - PAGE
    # A page stays free before the gap.
    heap = stack - gap - 4 * PAGE
    assert machine.mmap(heap - PAGE, PAGE, 5, FIXED | MAP_BRK, None, 0) == heap - PAGE
    assert machine.munmap(stack - gap - PAGE, PAGE) == 0
    assert machine.brk(heap + 4 * PAGE) == heap
    assert machine.brk(heap + 3 * PAGE) == heap + 3 * PAGE


@pytest.mark.parametrize("mm", MMS)
@pytest.mark.parametrize("base", [PAGE, MIN - PAGE, MIN])
def test_with_no_room_below_its_base_a_mapping_goes_above(mm: str, base: int) -> None:
    machine = Machine("single", mm, mmap_base=base)
    machine.attach(0)
    machine.run_list(LIST_EXEC)
    assert machine.mmap(0, PAGE, 3, ANONYMOUS, None, 0) == TOP - PAGE
    assert machine.mmap(0, 2 * PAGE, 1, ANONYMOUS, None, 0) == TOP - 3 * PAGE


def test_a_leak_is_found() -> None:
    machine = Machine("single")
    machine.attach(0)
    machine.run_list(LIST_EXEC)
    machine.mmap(0, PAGE, 1, MAP_PRIVATE, 0, 0)
    with pytest.raises(_core.CoreError, match="a still has 1 VMAs"):
        machine.check_drained()
    machine.munmap(BASE - PAGE, PAGE)
    with pytest.raises(_core.CoreError, match="leaks 1 objects"):
        machine.check_drained()  # the mm itself
    machine.run_list(LIST_EXIT)
    machine.check_drained()


def test_a_full_arena_is_an_error_that_names_the_option() -> None:
    machine = Machine("single", mib=8)
    machine.attach(0)
    machine.run_list(LIST_EXEC)
    for page in range(0, 2000, 2):
        machine.mmap(0x1000_0000 + page * PAGE, PAGE, 1, MAP_PRIVATE | 0x30, None, 0)
    failed = None
    for _ in range(60):  # each child copies 1000 VMAs
        failed = failed or machine.core.list_run(LIST_FORK)
    assert failed is not None
    assert failed[1] == "the arena of 8 MiB is full; --arena-size gives more"
