# SPDX-License-Identifier: MIT
"""The rest of the kernel: locks and lines that exec, fork and the others use besides i_mmap's.

    [[background]]
    name = "pcpu_lock"          # of the lock class, or of the line
    kind = "spinlock"           # or rwsem, mutex (for writing), atomic (no lock: a shared word)
    per = "machine"             # or node, file: one instance for each; process: left out but where
                                # threads share one, since nobody else is there to meet
    times = { exec = 2, exit = 2 }   # uses in each such call; 0.1: in one of ten
    lines = 6                   # shared lines that a holder reads and writes; of an atomic: words
    hold = "100ns"              # computing meanwhile
    holds = ""                  # another entry, used once while this one is held
    batch = "percpu"            # a CPU counts by itself and comes here once in max(32, 2 x CPUs)
    source = "where the numbers come from, or the reasoning"

A call is of the kinds exec, fork, exit, mmap, munmap, mprotect, brk, clone, thread_exit; and "open"
is an mmap of a file from its first page that may go where the kernel likes, which programs do after
each open(2) and the kernel with a program and its loader; "munmap_used" a munmap in a program that
writes pages by fault() or fault_next(). "fault_read" and "fault_write" are the page faults of these
two, each by itself, with the mm design's lock held; "fault_new" those for writing of fault_next(),
which keeps its pages until it has been through all of them. What a fault uses must not sleep: a
spinlock or an atomic. Only open and mmap have a file. Of `per = "file"` an
instance has no more lines than the file has pages, and files that are a CPU's own have none.

What a use takes when nobody else wants it is part of what the workload's [work] says already, and
is subtracted there. So on one CPU a call takes as long with these entries as without.

`kernel = "linux"` in a workload adds the entries of workloads/_linux.toml; an entry of the workload
itself replaces the one of the same name. A kernel's file may be `like` another one's in that way.
Its [vma_change] has the time that the kernel computes while it splits, merges or moves a VMA of a
file, with the i_mmap lock held, beside what is emulated of that. It is taken off [work] as well.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from emu.errors import InputError, nearest

MAX_LINES = 2000
"""So that an instance is an object that the arena can allocate."""
OPS = (
    *("exec", "fork", "exit", "mmap", "munmap", "mprotect", "brk", "open"),
    *("munmap_used", "fault_read", "fault_write", "fault_new", "clone", "thread_exit"),
)
"""What `times` may name."""
_OF_FILE = ("mmap", "open")
_OF_FAULT = ("fault_read", "fault_write", "fault_new")
_PERCPU_BATCH = 32
"""Of per-CPU counters, at least: lib/percpu_counter.c compute_batch_value()."""
_KINDS = {"spinlock": 0, "rwsem": 1, "mutex": 1, "atomic": 2}
"""Number of enum emu_background_kind. A kernel mutex waits as a writer of an rwsem does."""
_PER = {"machine": 0, "process": 0, "node": 1, "file": 2}
LOCK_NS, GUARDED_LINE_NS, ATOMIC_LINE_NS = 15, 2, 6
"""What an uncontended lock with its unlock, and a line that is in the cache, take on a middling
machine: subtracted from [work] for each use."""

_MAX_NAME_BYTES = 47
BACKGROUND_DTYPE = np.dtype(
    [
        ("name", f"S{_MAX_NAME_BYTES + 1}"),
        ("kind", np.uint32),
        ("per", np.uint32),
        ("lines", np.uint32),
        ("hold_ns", np.uint32),
        ("inner", np.int32),
        ("reserved", np.uint32),
    ]
)
"""struct emu_background."""
USE_DTYPE = np.dtype([("entry", np.uint32), ("file", np.int32), ("times_ppm", np.uint64)])
"""struct emu_use."""


class _Raw(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: Annotated[str, msgspec.Meta(min_length=1)]
    kind: Literal["spinlock", "rwsem", "mutex", "atomic"]
    source: Annotated[str, msgspec.Meta(min_length=1)]
    times: dict[str, Annotated[float, msgspec.Meta(gt=0, le=1000)]] = {}
    per: Literal["machine", "process", "node", "file"] = "machine"
    lines: Annotated[int, msgspec.Meta(ge=0, le=MAX_LINES)] = 0
    hold: str = "0ns"
    batch: Literal["", "percpu"] = ""
    holds: str = ""


@dataclass(frozen=True)
class Entry:
    """A lock or a set of lines of the rest of the kernel."""

    name: str
    kind: str
    per: str
    times: Mapping[str, float]
    lines: int
    hold_ns: int
    holds: str
    source: str
    batch: str = ""
    """"percpu": of so many uses one, see ``Uses.use_table``."""

    def alone_ns(self, lines: int) -> float:
        """What a use takes when nobody else wants it, without what it `holds`."""
        if self.kind == "atomic":
            return self.hold_ns + lines * ATOMIC_LINE_NS
        return self.hold_ns + LOCK_NS + lines * GUARDED_LINE_NS


class _VmaChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    time: str
    source: Annotated[str, msgspec.Meta(min_length=1)]


@dataclass(frozen=True)
class Kernel:
    """The rest of a kernel."""

    entries: Sequence[Entry] = ()
    vma_change_ns: int = 0


def read(raw: Sequence[object], where: str, parse_time: Callable[[str], int]) -> list[Entry]:
    """The entries of a file. Raises InputError that names the entry; ``where`` is the file."""
    entries: list[Entry] = []
    for number, each in enumerate(raw, 1):
        name = each.get("name") if isinstance(each, dict) else None
        place = f"{where}: [[background]] {number if name is None else repr(name)}"
        try:
            entry = msgspec.convert(each, _Raw)
            hold_ns = parse_time(entry.hold)
        except msgspec.ValidationError as error:
            valid = ", ".join(_Raw.__struct_fields__)
            raise InputError(f"{place}: {error}; an entry has: {valid}") from None
        except ValueError as error:
            raise InputError(f"{place} hold: {error}") from None
        if len(entry.name.encode()) > _MAX_NAME_BYTES:
            raise InputError(f"{place}: the name is too long; at most {_MAX_NAME_BYTES} bytes")
        if hold_ns > 10**8:
            raise InputError(f"{place} hold: {entry.hold} is too long; at most 100ms")
        for op in entry.times:
            valid_ops = _OF_FILE if entry.per == "file" else OPS
            if op not in valid_ops:
                what = "call with a file" if entry.per == "file" else "call"
                raise InputError(
                    f"{place} times: no {what} '{op}'{nearest(op, valid_ops)}; "
                    f"there are: {', '.join(valid_ops)}"
                )
        if entry.kind in ("rwsem", "mutex") and set(entry.times).intersection(_OF_FAULT):
            raise InputError(f"{place} times: a fault must not sleep for a {entry.kind}")
        if entry.kind == "atomic" and not entry.lines:
            raise InputError(f"{place}: an atomic without lines; lines = 1 is one shared word")
        if entry.name in (before.name for before in entries):
            raise InputError(f"{place}: this name is taken; names of entries differ")
        entries.append(
            Entry(
                entry.name,
                entry.kind,
                entry.per,
                entry.times,
                entry.lines,
                hold_ns,
                entry.holds,
                entry.source,
                entry.batch,
            )
        )
    return entries


def kernels(folder: Path) -> list[str]:
    """The kernels whose entries are known, sorted."""
    return sorted(path.stem.removeprefix("_") for path in folder.glob("_*.toml"))


def read_kernel(folder: Path, name: str, parse_time: Callable[[str], int]) -> Kernel:
    """A kernel, over the one that it is `like`. Raises InputError."""
    path = folder / f"_{name}.toml"
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
        vma_change = msgspec.convert(raw.get("vma_change"), _VmaChange | None)
        vma_change_ns = parse_time(vma_change.time) if vma_change else None
    except (OSError, ValueError, RecursionError, msgspec.ValidationError) as error:
        raise InputError(f"{path}: {error}") from None
    base = read_kernel(folder, raw["like"], parse_time) if "like" in raw else Kernel()
    own = read(raw.get("background", []), str(path), parse_time)
    return Kernel(
        merge(base.entries, own, str(path)),
        base.vma_change_ns if vma_change_ns is None else vma_change_ns,
    )


def merge(kernel: Sequence[Entry], own: Sequence[Entry], where: str) -> list[Entry]:
    """The workload's own entries over the kernel's, those that are held by others last.

    Raises InputError where `holds` names none, or one that cannot be held inside.
    """
    by_name = {entry.name: entry for entry in (*kernel, *own)}
    for entry in by_name.values():
        if not entry.holds:
            continue
        place = f"{where}: [[background]] '{entry.name}' holds"
        inner = by_name.get(entry.holds)
        if inner is None:
            raise InputError(f"{place}: no entry '{entry.holds}'; there are: {', '.join(by_name)}")
        if inner.kind in ("rwsem", "mutex") and set(entry.times).intersection(_OF_FAULT):
            raise InputError(f"{place}: a fault must not sleep for a {inner.kind}")
        if entry.kind == "atomic" or inner.holds or inner.per == "file":
            raise InputError(
                f"{place}: a lock may hold one that holds nothing itself and is of no file"
            )
    return sorted(by_name.values(), key=lambda entry: not entry.holds)


@dataclass
class Uses:
    """What calls use: built call by call, then handed to the core as two tables."""

    entries: Sequence[Entry] = ()
    shared_pages: Sequence[int] = ()
    """Pages of each file that all CPUs share; a file with a higher number is a CPU's own."""
    threads: bool = False
    """All CPUs share one process."""
    _rows: list[tuple[int, int, int]] = field(default_factory=list)
    _known: dict[tuple[tuple[int, int, int], ...], int] = field(default_factory=dict)

    def of_call(self, ops: Sequence[str], file: int) -> tuple[int, int, float]:
        """(first use, number of uses, ns that they take alone) of a call of these kinds."""
        rows: list[tuple[int, int, int]] = []
        alone_ns = 0.0
        for number, entry in enumerate(self.entries):
            times = sum(entry.times.get(op, 0) for op in ops)
            if not times or (entry.per == "file" and not 0 <= file < len(self.shared_pages)):
                continue
            if entry.per == "process" and not self.threads:
                continue
            of_file = file if entry.per == "file" else -1
            rows.append((number, of_file, round(times * 1_000_000)))
            lines = min(entry.lines, self.shared_pages[file]) if of_file >= 0 else entry.lines
            inner = next((each for each in self.entries if each.name == entry.holds), None)
            inside_ns = inner.alone_ns(inner.lines) if inner else 0.0
            batch = _PERCPU_BATCH if entry.batch else 1
            alone_ns += times / batch * (entry.alone_ns(lines) + inside_ns)
        if not rows:
            return 0, 0, 0.0
        key = tuple(rows)
        if key not in self._known:
            self._known[key] = len(self._rows)
            self._rows.extend(rows)
        return self._known[key], len(rows), alone_ns

    def used(self) -> Uses:
        """Without the entries that no call uses."""
        numbers = {number for number, _, _ in self._rows}
        held = {self.entries[number].holds for number in numbers}
        kept = [
            number
            for number, entry in enumerate(self.entries)
            if number in numbers or entry.name in held
        ]
        rows = [(kept.index(number), file, times) for number, file, times in self._rows]
        return replace(self, entries=[self.entries[number] for number in kept], _rows=rows)

    def scaled(self, factor: float) -> Uses:
        """With all holds `factor` times as long."""
        entries = [replace(each, hold_ns=round(each.hold_ns * factor)) for each in self.entries]
        return replace(self, entries=entries)

    def entry_table(self) -> NDArray[np.void]:
        """Of BACKGROUND_DTYPE."""
        names = [entry.name for entry in self.entries]
        table = np.zeros(len(self.entries), dtype=BACKGROUND_DTYPE)
        for row, entry in zip(table, self.entries, strict=True):
            row["name"] = entry.name.encode()
            row["kind"], row["per"] = _KINDS[entry.kind], _PER[entry.per]
            row["lines"], row["hold_ns"] = entry.lines, entry.hold_ns
            row["inner"] = names.index(entry.holds) if entry.holds else -1
        return table

    def use_table(self, cpus: int) -> NDArray[np.void]:
        """Of USE_DTYPE, on a machine of so many CPUs."""
        table = np.array(self._rows, dtype=USE_DTYPE)
        for row in table:
            if self.entries[row["entry"]].batch:
                row["times_ppm"] //= max(_PERCPU_BATCH, 2 * cpus)
        return table

    @property
    def nr_uses(self) -> int:
        """Rows of ``use_table``."""
        return len(self._rows)

    @property
    def lock_classes(self) -> int:
        """How many classes of locks the core makes of them, at most."""
        files = len(self.shared_pages)
        return sum(
            files if entry.per == "file" else 1 for entry in self.entries if entry.kind != "atomic"
        )
