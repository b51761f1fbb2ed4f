# SPDX-License-Identifier: MIT
"""A model of an mm: what calls come to, as lines of /proc/PID/maps."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from emu.workload import (
    MAP_BRK,
    MAP_FIXED,
    MAP_FIXED_NOREPLACE,
    MAP_GROWSDOWN,
    MAP_NORESERVE,
    MAP_SHARED,
    MAP_SPECIAL,
    MAP_STACK,
    PAGE,
    PROT,
    Call,
    page_up,
)


@dataclass(frozen=True)
class MapsLine:
    """A line of /proc/PID/maps."""

    start: int
    end: int
    perms: str
    offset: int
    path: str

    @staticmethod
    def parse(text: str) -> MapsLine:
        """From a line of /proc/PID/maps."""
        bounds, perms, offset, _, _, *path = text.split(maxsplit=5)
        start, end = (int(part, 16) for part in bounds.split("-"))
        return MapsLine(start, end, perms, int(offset, 16), path[0] if path else "")

    @property
    def prot(self) -> int:
        """PROT_*."""
        return sum(
            bit for letter, bit in zip("rwx", PROT.values(), strict=True) if letter in self.perms
        )


@dataclass
class _Vma:
    start: int
    end: int
    prot: int
    flags: int
    name: str
    pgoff: int
    account: bool
    """VM_ACCOUNT: private, reserved and ever writable; keeps VMAs apart that look alike."""

    def cut(self, start: int, end: int) -> _Vma:
        """The part of it in [start, end)."""
        return replace(self, start=start, end=end, pgoff=self.pgoff + (start - self.start) // PAGE)

    def joins(self, after: _Vma) -> bool:
        """Would the kernel make one of this and the VMA that follows?"""
        mine = (self.prot, self.flags, self.name, self.account, self.end)
        return (
            mine == (after.prot, after.flags, after.name, after.account, after.start)
            and not self.flags & MAP_SPECIAL
            and self.pgoff + (self.end - self.start) // PAGE == after.pgoff
        )


_KEPT = MAP_SHARED | MAP_GROWSDOWN | MAP_NORESERVE | MAP_STACK | MAP_SPECIAL
"""Flags that stay with a VMA."""


def _accounts(flags: int, prot: int) -> bool:
    """Does the commit limit count a VMA with these flags?"""
    return not flags & (MAP_SHARED | MAP_NORESERVE) and bool(prot & PROT["PROT_WRITE"])


@dataclass
class Mm:
    """A model of a process's VMAs, enough to predict /proc/PID/maps."""

    mmap_base: int
    vmas: list[_Vma] = field(default_factory=list)
    """Sorted; neighbours are joined only when shown."""
    start_brk: int = 0
    brk: int = 0

    def fork(self) -> Mm:
        """A copy."""
        return Mm(self.mmap_base, [replace(vma) for vma in self.vmas], self.start_brk, self.brk)

    def is_free(self, start: int, end: int) -> bool:
        """Is nothing mapped in [start, end)?"""
        return not any(vma.start < end and start < vma.end for vma in self.vmas)

    def free_area(self, length: int) -> int:
        """The highest place below the base with room for so many bytes."""
        high = self.mmap_base
        for vma in reversed(self.vmas):
            if vma.start >= high:
                continue
            if high - vma.end >= length:
                break
            high = vma.start
        return high - length

    def unmap(self, start: int, end: int) -> None:
        """Take [start, end) out."""
        kept: list[_Vma] = []
        for vma in self.vmas:
            if vma.start < min(start, vma.end):
                kept.append(vma.cut(vma.start, min(start, vma.end)))
            if max(end, vma.start) < vma.end:
                kept.append(vma.cut(max(end, vma.start), vma.end))
        self.vmas = kept

    def map(self, vma: _Vma) -> None:
        """Put it in the place of what is there."""
        self.unmap(vma.start, vma.end)
        self.vmas.append(vma)
        self.vmas.sort(key=lambda each: each.start)

    def run(self, call: Call) -> int:
        """Carry out a call of the mm; its result."""
        end = call.addr + page_up(call.length)
        match call.op:
            case "mmap":
                return self.mmap(call)
            case "munmap":
                self.unmap(call.addr, end)
            case "mprotect":
                changed = [
                    vma.cut(max(vma.start, call.addr), min(vma.end, end))
                    for vma in self.vmas
                    if vma.start < end and call.addr < vma.end
                ]
                for vma in changed:
                    vma.prot = call.prot
                    vma.account |= _accounts(vma.flags, call.prot)
                    self.map(vma)
            case "brk":
                return self.set_brk(call.addr)
        return 0

    def mmap(self, call: Call) -> int:
        """Carry it out; where it is."""
        length = page_up(call.length)
        start = call.addr
        if not call.flags & (MAP_FIXED | MAP_FIXED_NOREPLACE) and not (
            start and self.is_free(start, start + length)
        ):
            start = self.free_area(length)
        account = _accounts(call.flags, call.prot)
        kept = call.flags & _KEPT
        pgoff = (call.offset if call.name else start) // PAGE
        self.map(_Vma(start, start + length, call.prot, kept, call.name, pgoff, account))
        if call.flags & MAP_BRK:
            self.start_brk = self.brk = start + length
        return start

    def set_brk(self, brk: int) -> int:
        """Move the break; where it is."""
        if brk >= self.start_brk:
            old, new = page_up(self.brk), page_up(brk)
            if new < old:
                self.unmap(new, old)
            elif new > old:
                prot = PROT["PROT_READ"] | PROT["PROT_WRITE"]
                self.map(_Vma(old, new, prot, 0, "", old // PAGE, True))
            self.brk = brk
        return self.brk

    def maps(self) -> list[str]:
        """As Point.maps."""
        joined: list[_Vma] = []
        for vma in self.vmas:
            # brk() looks for a neighbour among the heap's VMAs only, never at the bss before it.
            if joined and vma.start != self.start_brk and joined[-1].joins(vma):
                joined[-1] = replace(joined[-1], end=vma.end)
            else:
                joined.append(vma)
        return [self.line(vma) for vma in joined]

    def line(self, vma: _Vma) -> str:
        """As in Point.maps."""
        name = vma.name
        if vma.flags & MAP_GROWSDOWN:
            name = "[stack]"
        elif not name and vma.start < self.brk and vma.end > self.start_brk:
            name = "[heap]"
        perms = "".join(
            letter if vma.prot & bit else "-"
            for letter, bit in zip("rwx", PROT.values(), strict=True)
        )
        shared = "s" if vma.flags & MAP_SHARED else "p"
        offset = vma.pgoff * PAGE if vma.name else 0
        return f"{vma.start:x}-{vma.end:x} {perms}{shared} {offset:08x} {name}".rstrip()
