# SPDX-License-Identifier: MIT
"""Workloads: what the emulated processes do. Files, programs and phases, in one TOML file.

A program is a list of system calls, one string each, written as strace writes them:

    [program.example]
    calls = [
      "exec(example)",                        # becomes [image.example]
      "brk(NULL) = 0x555555558000",
      "mmap(NULL, 8192, PROT_READ, MAP_PRIVATE, libc.so.6, 0) = 0x7ffff7fc0000",
      "fault(0x7ffff7fc0000, 4096)",         # touches each page; a third argument PROT_WRITE writes
      "munmap(0x7ffff7fc0000, 8192)",
      "work(150us)",                          # computing, no call
      "pace(1ms)",                            # computing until the phase has lasted n x 1ms
      "barrier()",                            # waits for all CPUs; when one has ended its part of
                                              # the phase, all do
      "mmap(NULL, 4096, PROT_READ|PROT_WRITE, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0)",
      "fault(last+0, 4096, PROT_WRITE)",      # last: where this CPU's latest mapping is
      "clone()",                              # a thread begins: the task goes on as that one ...
      "thread_exit()",                        # ... and, when it has ended, as the one before
      "pass()",                               # hands that to the next CPU, gets one from before
      "dontneed(0x10000+cpu*4096, 4096)",     # cpu*: so much further for each task
      "fault(0x10000, cpus*4096)",            # cpus*: so many bytes for each task
      "fault_next(0x10000, cpus*4096)",       # the next page that is not there; after the last one,
                                              # all are given back by dontneed, and so on
      "fork()",                               # from here on the child runs ...
      "exit()",                               # ... and here the parent again
    ]

The file of an mmap is named, not a descriptor; -1 is anonymous memory. What follows "=" is the
address that the real kernel returned; a replay checks it. Flags that mean nothing to the mm
(IGNORED_FLAGS) are skipped.

    [image.NAME]    what the kernel maps during execve, in its order, after the old mm has gone.
                    MAP_BRK: the heap starts at the end of this mapping. MAP_SPECIAL: vdso, vvar;
                    the file only names them
    [files]         name = size in pages
    [private_files] the same, but each CPU has a file of its own by that name
    [work.OP]       the rest of the kernel and of user space, with its source: time to compute
                    inside each exec, fork, exit, clone or thread_exit; (fault) inside each page
                    fault that a program's fault() or fault_next() makes; or (call) before every
                    other call of a program
    [cold]          a page cache that does not hold all: the share of the faults in files that find
                    their page missing, and sleep, holding no lock, while it is read; the time of a
                    read and its source. As if pages were evicted as fast as they are read; each
                    fault reads for itself
    waiting         processes that each CPU's process leaves behind when it is loaded, forked from
                    one another: they keep their mappings and do nothing until the end
    load            the program that a CPU starts with; it leaves one process, or none where no
                    program has any: line_write(), rwsem_read() and the others of MICRO_OPS
    share           "mm": all CPUs are threads of one process, which the exec that load begins with
                    makes on CPU 0; all of them go on with the rest of load
    touch           which pages a program uses of the files that it maps, by exec, fork or mmap:
                    "first", the first page of each mapping, with what a fault brings along; "all",
                    every 16th page; or "none", which makes no faults but those of fault(). Writes
                    where it may, else reads. Default: "first" with walkers, else "none"
    [[walker]]      a background task that walks a file every so often, on one of the CPUs (cpu,
                    modulo their number; default: walkers on CPUs 0, 1 ...) between two calls of its
                    program. kind: "truncate", "reclaim" or "migrate"; file; every; first and last,
                    in pages, if not the whole file; at_once, the pages of one walk, the next walk
                    having the next pages: all for truncate, else 16, a folio of 64 KiB
    kernel          whose locks besides i_mmap's the calls take: "linux", or none; see background.py
    [[background]]  more of these locks and lines
    [[phase]]       a program that runs again and again for a share of the duration (kind "time"),
                    or once. unit: the operation that counts, "iteration" or a call of the program.
                    first: the program that CPU 0 runs instead

    base            another workload, by name or path: what is not said here is as there

A run is: load, a warm-up with the first phase's program, the phases, and exit.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from emu import background
from emu.errors import InputError
from emu.files import read_text

PAGE = 4096
PMD_BYTES = 2 << 20
"""What a page table maps."""
TASK_SIZE = 0x7FFFFFFFF000
"""The first address that no process has: EMU_TASK_SIZE."""
MAX_PROCESSES = 64
"""Processes of one CPU that wait for a child: EMU_MM_STACK."""
MAX_NAME = 95
"""Bytes of a file's name: address_space.name without its final 0."""
WALKER_KINDS = ("truncate", "reclaim", "migrate")
"""By the number of enum emu_walk_kind."""
FOLIO_PAGES = 16
"""Reclaim and migration walk once a folio; page caches have large ones, 64 KiB is taken here."""
PAGE_TABLE_BYTES = 4352
"""Arena for a bottom-level page table (struct page_table); an upper one takes less."""
MAX_WORK_NS = 10 * 10**9
WARM_UP_SHARE = 0.1
"""Of the duration, in addition to it."""
NO_EXPECT = 2**64 - 1

MICRO_OPS = (
    "line_write",
    "line_fetch_add",
    "line_ping_pong",
    "rwsem_write",
    "rwsem_read",
    "rwsem_mixed",
)
"""One operation on a line or a lock that all CPUs share; of a ping-pong, CPUs 2k and 2k + 1."""
WITHOUT_PROCESS = ("work", "pace", "barrier", *MICRO_OPS)
OPS = (
    *("exec", "fork", "exit", "mmap", "munmap", "mprotect", "brk"),
    *("fault", "fault_next", "dontneed", "pass", "clone", "thread_exit", *WITHOUT_PROCESS),
)
"""By the number of enum emu_call_op."""

PROT = {"PROT_READ": 0x1, "PROT_WRITE": 0x2, "PROT_EXEC": 0x4}
MAP_SHARED, MAP_PRIVATE, MAP_FIXED, MAP_ANONYMOUS = 0x1, 0x2, 0x10, 0x20
MAP_GROWSDOWN, MAP_NORESERVE, MAP_STACK, MAP_FIXED_NOREPLACE = 0x100, 0x4000, 0x20000, 0x100000
MAP_SPECIAL, MAP_BRK = 0x10000000, 0x20000000
FLAGS = {
    "MAP_SHARED": MAP_SHARED,
    "MAP_PRIVATE": MAP_PRIVATE,
    "MAP_FIXED": MAP_FIXED,
    "MAP_FIXED_NOREPLACE": MAP_FIXED_NOREPLACE,
    "MAP_ANONYMOUS": MAP_ANONYMOUS,
    "MAP_GROWSDOWN": MAP_GROWSDOWN,
    "MAP_NORESERVE": MAP_NORESERVE,
    "MAP_STACK": MAP_STACK,
    "MAP_SPECIAL": MAP_SPECIAL,
    "MAP_BRK": MAP_BRK,
}
IGNORED_FLAGS = {
    "MAP_DENYWRITE": "without effect since Linux 2.0",
    "MAP_EXECUTABLE": "without effect",
    "MAP_FILE": "without effect",
    "MAP_NONBLOCK": "about page tables",
    "MAP_POPULATE": "about page tables",
    "MAP_UNINITIALIZED": "about page contents",
}
"""Flags that strace shows and that change neither VMAs nor their locks, and why."""

_SIGNATURES = {
    "exec": ("image",),
    "fork": (),
    "exit": (),
    "mmap": ("addr", "length", "prot", "flags", "file", "offset"),
    "munmap": ("addr", "length"),
    "mprotect": ("addr", "length", "prot"),
    "brk": ("addr",),
    "fault": ("addr", "length", "prot"),
    "fault_next": ("addr", "length", "prot"),
    "dontneed": ("addr", "length"),
    "pass": (),
    "clone": (),
    "thread_exit": (),
    "barrier": (),
    "work": ("time",),
    "pace": ("time",),
    **dict.fromkeys(MICRO_OPS, ()),
}
_OPTIONAL = {"fault": "PROT_READ", "fault_next": "PROT_READ"}
"""What the last argument is where it is left out."""
TOUCH_FLAGS = {"none": 0, "first": 0x40000000, "all": 0x80000000}
"""EMU_MAP_TOUCH, EMU_MAP_TOUCH_ALL."""
_IMAGE_OPS = ("mmap", "munmap", "mprotect")
_TIME_UNITS = {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9}

CALL_DTYPE = np.dtype(
    [
        ("op", np.uint32),
        ("prot", np.uint32),
        ("flags", np.uint32),
        ("arg", np.int32),
        ("addr", np.uint64),
        ("len", np.uint64),
        ("offset", np.uint64),
        ("expect", np.uint64),
        ("work_ns", np.uint64),
        ("stride", np.uint64),
        ("times", np.uint64),
        ("first_use", np.uint32),
        ("nr_uses", np.uint16),
        ("followers", np.uint16),
    ]
)
"""struct emu_call."""


# ---- calls and their text ----


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a program. Addresses, lengths and offsets in bytes."""

    op: str
    addr: int = 0
    """For exec the image's mmap_base; no part of the text."""
    length: int = 0
    prot: int = 0
    flags: int = 0
    name: str = ""
    """mmap: the file, "" if anonymous. exec: the image."""
    offset: int = 0
    expect: int | None = None
    """mmap, brk: the address that the real kernel returned."""
    work_ns: int = 0
    stride: int | None = 0
    """Of CPU n, addr is n times this higher; None: it counts from the CPU's latest mapping."""
    times: bool = False
    """So many bytes for each CPU."""

    def __str__(self) -> str:
        return format_call(self)


class CallError(ValueError):
    """A call cannot be read, or could not succeed in any mm. Its place is not known here."""


def format_call(call: Call) -> str:
    """The text of a call, from which parse_call() makes the same call."""
    arguments: tuple[object, ...] = ()
    match call.op:
        case "exec":
            return f"exec({call.name})"
        case "mmap":
            arguments = (
                _address(call),
                _length(call),
                _names(call.prot, PROT) or "PROT_NONE",
                _names(call.flags, FLAGS),
                call.name or "-1",
                hex(call.offset) if call.offset else "0",
            )
        case "munmap" | "dontneed":
            arguments = (_address(call), _length(call))
        case "mprotect":
            arguments = (_address(call), _length(call), _names(call.prot, PROT) or "PROT_NONE")
        case "brk":
            arguments = (_address(call),)
        case "fault" | "fault_next":
            arguments = (_address(call), _length(call))
            if call.prot != PROT["PROT_READ"]:
                arguments += (_names(call.prot, PROT),)
        case "work" | "pace":
            arguments = (format_time(call.work_ns),)
    result = "" if call.expect is None else f" = {call.expect:#x}"
    return f"{call.op}({', '.join(map(str, arguments))}){result}"


def _address(call: Call) -> str:
    if call.stride is None:
        return f"last+{call.addr:#x}"
    if call.stride:
        return f"{call.addr:#x}+cpu*{call.stride:#x}"
    return hex(call.addr) if call.addr else "NULL"


def _length(call: Call) -> str:
    return f"cpus*{call.length}" if call.times else str(call.length)


def _names(bits: int, table: Mapping[str, int]) -> str:
    return "|".join(name for name, bit in table.items() if bits & bit)


def format_time(ns: int) -> str:
    """150000 -> "150us": the largest unit in which it is whole."""
    unit = next(u for u in reversed(_TIME_UNITS) if ns % _TIME_UNITS[u] == 0 or u == "ns")
    return f"{ns // _TIME_UNITS[unit]}{unit}"


def parse_time(text: str) -> int:
    """Nanoseconds from a time like "150us" or "1.5ms". Raises CallError."""
    match = re.fullmatch(r"(\d{1,12}(?:\.\d{1,9})?)(ns|us|ms|s)", text.strip(), re.ASCII)
    if not match:
        raise CallError(f"'{text}' is no time; write it like 150us (units: ns, us, ms, s)")
    ns = round(float(match[1]) * _TIME_UNITS[match[2]])
    if ns > MAX_WORK_NS:
        raise CallError(f"{text} is too long; at most {format_time(MAX_WORK_NS)}")
    return ns


def parse_call(text: str) -> Call:
    """A call from its text. Raises CallError if it cannot be read or could never succeed."""
    match = re.fullmatch(r"\s*(\w+)\s*\((.*)\)\s*(?:=\s*(\S+)\s*)?", text, re.ASCII)
    if not match:
        raise CallError("this is no call; write it like munmap(0x7ffff7fbd000, 15231)")
    op, inside, result = match.groups()
    if op not in _SIGNATURES:
        raise CallError(f"no call '{op}'{_nearest(op, OPS)}; there are: {', '.join(OPS)}")
    arguments = [argument.strip() for argument in inside.split(",")] if inside.strip() else []
    names = _SIGNATURES[op]
    if op in _OPTIONAL and len(arguments) == len(names) - 1:
        arguments.append(_OPTIONAL[op])
    if len(arguments) != len(names):
        right = f"{op}({', '.join(names)})"
        raise CallError(f"{op} with {len(arguments)} argument(s); it is {right}")
    # Programs have up to a million calls: each is made once, not copied for every argument.
    values: dict[str, Any] = {}
    for name, value in zip(names, arguments, strict=True):
        values |= _argument(name, value)
    if result is not None:
        values |= _result(op, result)
    call = Call(op, **values)
    _check_call(call)
    return call


def _argument(name: str, value: str) -> dict[str, Any]:
    """Fields of Call."""
    match name:
        case "addr":
            base, _, more = (part.strip() for part in value.partition("+"))
            if base == "last":
                return {"addr": _number(more or "0", name), "stride": None}
            addr = 0 if base == "NULL" else _number(base, name)
            if not more:
                return {"addr": addr}
            if not more.startswith("cpu*"):
                raise CallError(f"addr is '{value}'; write it like 0x10000+cpu*0x1000 or last+4096")
            return {"addr": addr, "stride": _number(more[4:], name)}
        case "length":
            if value.startswith("cpus*"):
                return {"length": _number(value[5:], name), "times": True}
            return {"length": _number(value, name)}
        case "offset":
            return {"offset": _number(value, name)}
        case "prot":
            return {"prot": _prot(value)}
        case "flags":
            return {"flags": _flags(value)}
        case "time":
            return {"work_ns": parse_time(value)}
        case _:
            if name == "file" and value == "-1":
                return {}
            if not re.fullmatch(NAME_PATTERN, value, re.ASCII):
                raise CallError(f"'{value}' is no name of {_a(name)}")
            return {"name": value}


def _result(op: str, result: str) -> dict[str, Any]:
    if op in ("mmap", "brk"):
        return {"expect": _number(result, "the result")}
    if op not in ("munmap", "mprotect") or result != "0":
        right = "= 0 or nothing" if op in ("munmap", "mprotect") else "nothing"
        raise CallError(f"{op} is followed by {right}, not '= {result}'")
    return {}


NAME_PATTERN = r"[\w\[./+][\w.+@:/\-\[\]]*"
"""Of files and images. Whatever else a real name has, a recording replaces by "_"."""


def _a(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def _number(text: str, what: str) -> int:
    if not re.fullmatch(r"0x[0-9a-fA-F]{1,16}|0|[1-9]\d{0,19}", text, re.ASCII):
        raise CallError(f"{what} is '{text}'; it must be a number like 4096 or 0x1000")
    return int(text, 0)


@lru_cache(maxsize=256)
def _prot(text: str) -> int:
    return _bits(text, PROT, ("PROT_NONE",))


@lru_cache(maxsize=256)
def _flags(text: str) -> int:
    return _bits(text, FLAGS, IGNORED_FLAGS)


def _bits(text: str, table: Mapping[str, int], without_effect: Iterable[str]) -> int:
    bits = 0
    for word in (part.strip() for part in text.split("|")):
        if word in table:
            bits |= table[word]
        elif word not in without_effect:
            kind = next(iter(table)).partition("_")[0]
            raise CallError(
                f"no flag '{word}'{_nearest(word, (*table, *without_effect))}; "
                f"{kind}_* flags that count: {', '.join(table)}"
            )
    return bits


def _check_call(call: Call) -> None:
    """What no mm would accept."""
    if call.op == "pace" and call.work_ns == 0:
        raise CallError("there is no multiple of 0 to wait for")
    addressed = call.op in ("mmap", "munmap", "mprotect", "dontneed", "fault_next")
    if (addressed or call.op == "fault") and call.length == 0:
        raise CallError("the length is 0")
    if call.op in ("mmap", "brk") and call.stride is None:
        raise CallError("there is no mapping before this one; 'last' is for what comes after it")
    if addressed and call.addr % PAGE:
        raise CallError(f"address {call.addr:#x} is not a multiple of {PAGE}")
    if call.addr + page_up(call.length) > TASK_SIZE:
        raise CallError(f"it ends above {TASK_SIZE:#x}, where user space (47 bits) ends")
    if call.expect is not None and call.expect + page_up(call.length) > TASK_SIZE:
        raise CallError(f"the result ends above {TASK_SIZE:#x}, where user space (47 bits) ends")
    if call.op != "mmap":
        return
    flags = call.flags
    if call.offset % PAGE:
        raise CallError(f"offset {call.offset:#x} is not a multiple of {PAGE}")
    if call.offset + page_up(call.length) > TASK_SIZE:
        raise CallError(f"offset {call.offset:#x} is beyond 47 bits")
    if call.expect is not None and call.expect % PAGE:
        raise CallError(f"result {call.expect:#x} is not a multiple of {PAGE}")
    if bool(flags & MAP_SHARED) == bool(flags & MAP_PRIVATE):
        raise CallError("flags must have one of MAP_SHARED and MAP_PRIVATE")
    if flags & (MAP_FIXED | MAP_FIXED_NOREPLACE):
        if not call.addr:
            raise CallError("MAP_FIXED needs an address")
        if call.expect is not None and call.expect != call.addr:
            raise CallError(f"MAP_FIXED at {call.addr:#x} cannot return {call.expect:#x}")
    if bool(flags & MAP_ANONYMOUS) == bool(call.name):
        raise CallError("anonymous memory is MAP_ANONYMOUS with file -1, a file is without it")
    if flags & MAP_ANONYMOUS and flags & MAP_SHARED:
        raise CallError("shared anonymous memory is a file in the kernel: name one in [files]")


def page_up(length: int) -> int:
    """The bytes of the pages that `length` bytes take."""
    return -(-length // PAGE) * PAGE


# ---- workloads ----


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

    def scaled(self, factor: float) -> Workload:
        """With all computing `factor` times as long, also what background entries hold."""
        lists = []
        for calls in self.lists:
            calls = calls.copy()
            calls["work_ns"] = np.round(calls["work_ns"] * factor).astype(np.uint64)
            lists.append(_read_only(calls))
        return replace(self, lists=tuple(lists), uses=self.uses.scaled(factor))

    @property
    def counting_phase(self) -> str:
        """The phase whose operations are the run's: the first that is recorded."""
        return next(phase.name for phase in self.phases if phase.record)

    @property
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

    @property
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


def names() -> list[str]:
    """The workloads that come with mm-emu, sorted."""
    return sorted(file.stem for file in _folder().glob("[!_]*.toml"))


def load(name_or_path: str | Path, *, isolate: bool = False) -> Workload:
    """A workload by name or path (has "/" or ends in ".toml"); isolate: without background.

    "execl:kernel=linux-6.5" is execl with the background entries of another kernel.

    Raises InputError that says what is wrong, where, and what would be right.
    """
    text = str(name_or_path)
    if isinstance(name_or_path, Path) or "/" in text or text.endswith(".toml"):
        return _Reader(Path(text), isolate).read()
    known = names()
    name, _, parameter = text.partition(":")
    if name not in known:
        raise InputError(
            f"no workload '{name}'{_nearest(name, known)}; there are: {', '.join(known)}, "
            "or a path to a .toml file"
        )
    key, _, kernel = parameter.partition("=")
    if parameter and not (key == "kernel" and kernel):
        kernels = ", ".join(background.kernels(_folder()))
        raise InputError(f"{text}: a workload takes kernel=NAME; there are: {kernels}")
    return _Reader(_folder() / f"{name}.toml", isolate, kernel).read()


def _folder() -> Path:
    return Path(__file__).with_name("workloads")


def _nearest(wrong: str, valid: Iterable[str]) -> str:
    close = difflib.get_close_matches(wrong, list(valid), n=1, cutoff=0.5)
    return f" (did you mean '{close[0]}'?)" if close else ""


# ---- the file ----


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class _Image(_Table, frozen=True):
    mmap_base: int
    calls: list[str]


class _Program(_Table, frozen=True):
    calls: list[str]


class _Work(_Table, frozen=True):
    time: str
    source: str


class _Cold(_Table, frozen=True):
    share: float
    read: str
    source: str


class _Phase(_Table, frozen=True):
    name: str
    list: str
    kind: Literal["time", "once"] = "time"
    share: float | None = None
    record: bool = True
    unit: str = "iteration"
    first: str | None = None


class _Walker(_Table, frozen=True):
    kind: Literal["truncate", "reclaim", "migrate"]
    file: str
    every: str
    first: int = 0
    last: int | None = None
    at_once: int | None = None
    cpu: int | None = None


class _File(_Table, frozen=True):
    name: str
    load: str
    program: dict[str, Any]
    phase: list[Any]
    files: dict[str, Any] = {}
    image: dict[str, Any] = {}
    description: str = ""
    work_jitter: float = 0.1
    work: dict[str, Any] = {}
    cold: dict[str, Any] = {}
    share: Literal["mm"] | None = None
    touch: Literal["none", "first", "all"] | None = None
    walker: list[Any] = []
    private_files: dict[str, Any] = {}
    waiting: int = 0
    kernel: str = ""
    background: list[Any] = []


_WORK_KEYS = ("exec", "fork", "exit", "clone", "thread_exit", "fault", "call")
_T = TypeVar("_T", bound=_Table)


class _Reader:
    """Reads one file; knows where things stand in it."""

    def __init__(self, path: Path, isolate: bool, kernel: str = "") -> None:
        self.path = path
        self.isolate = isolate
        self.kernel = kernel
        """Instead of the file's own; "": that one."""
        self.uses = background.Uses()
        try:
            self.text = read_text(path)
            self.raw = tomllib.loads(self.text)
        except OSError as error:
            raise InputError(f"{path}: {error.strerror or error}") from None
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: not UTF-8 text (byte {error.start})") from None
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}: not valid TOML: {error}") from None
        self.calls_path = path
        self.line_of_call = _lines_of_calls(self.text)
        if "base" in self.raw:
            self.read_base(self.raw.pop("base"))
        self.file_numbers: dict[str, int] = {}
        self.pages: list[int] = []
        self.list_numbers: dict[str, int] = {}
        self.images: dict[str, _Image] = {}
        self.work_ns: dict[str, int] = {}
        self.touch = "none"
        self.alone_ns: dict[str, float] = {}
        """By image: what its calls take of the rest of the kernel."""

    def read_base(self, name: object) -> None:
        """Take over what this file does not say itself. Tables are not mixed."""
        if not isinstance(name, str):
            raise self.error("base", f"the name of a workload or a path, not {name!r}", "base")
        is_path = "/" in name or name.endswith(".toml")
        if not is_path and name not in names():
            what = f"no workload '{name}'{_nearest(name, names())}; there are: {', '.join(names())}"
            raise self.error("base", what, "base")
        base = _Reader(
            self.path.parent / name if is_path else _folder() / f"{name}.toml", self.isolate
        )
        if base.calls_path != base.path:
            raise self.error("base", f"{name} has a base itself", "base")
        if {"image", "program"} & self.raw.keys():
            raise self.error("base", "images and programs are those of the base", "base")
        self.raw = base.raw | self.raw
        self.calls_path, self.line_of_call = base.path, base.line_of_call

    def error(self, place: str, what: str, key: str = "") -> InputError:
        line = line_of_key(self.text, key) if key else None
        where = f"{self.path}:{line}" if line else f"{self.path}"
        return InputError(f"{where}: {f'{place}: ' if place else ''}{what}")

    def table(self, raw: object, kind: type[_T], place: str) -> _T:
        """`raw` as a `kind`, whose keys and types it must have."""
        if not isinstance(raw, dict):
            raise self.error(place, f"this must be a table, not {raw!r}")
        fields = {each.name: each for each in msgspec.structs.fields(kind)}
        for key in raw:
            if key not in fields:
                what = f"unknown key '{key}'{_nearest(key, fields)}; valid: {', '.join(fields)}"
                raise self.error(place, what, key)
        for name, each in fields.items():
            if each.required and name not in raw:
                raise self.error(place, f"'{name}' is missing")
        try:
            return msgspec.convert(raw, kind)
        except msgspec.ValidationError as error:
            what, _, where = str(error).partition(" - at `$.")
            where = where.rstrip("`")
            what = f"{where}: {what}" if where else what
            raise self.error(place, what, re.split(r"\W", where)[0]) from None

    def read(self) -> Workload:
        file = self.table(self.raw, _File, "")
        if not 0 <= file.work_jitter < 1:
            what = f"{file.work_jitter:g} is not between 0 and 1 (0.1: each time varies by 10 %)"
            raise self.error("work_jitter", what, "work_jitter")
        if not 0 <= file.waiting < MAX_PROCESSES:
            what = f"{file.waiting} is not from 0 to {MAX_PROCESSES - 1} processes"
            raise self.error("waiting", what, "waiting")
        self.read_files(file.files, "files")
        shared = len(self.pages)
        self.read_files(file.private_files, "private_files")
        if not self.isolate:
            self.read_background(file, self.pages[:shared])
        self.read_work(file.work)
        cold_permille, read_ns = self.read_cold(file.cold)
        self.touch = file.touch or ("first" if file.walker else "none")
        if self.touch == "none" and file.walker:
            raise self.error("touch", 'walkers have nothing to do where touch is "none"', "touch")
        sections = {f"image.{name}": raw for name, raw in file.image.items()}
        sections |= {f"program.{name}": raw for name, raw in file.program.items()}
        self.list_numbers = {section: number for number, section in enumerate(sections)}
        texts = [self.read_section(section, raw) for section, raw in sections.items()]

        lists: list[NDArray[np.void]] = []
        calls: list[tuple[CallPlace, ...]] = []
        parsed: dict[str, list[Call]] = {}
        for section, section_texts in zip(sections, texts, strict=True):
            parsed[section] = self.read_calls(section, section_texts)
            lists.append(self.encode(section, parsed[section]))
            places = (self.place(section, index) for index in range(len(section_texts)))
            calls.append(tuple(map(CallPlace, section_texts, places)))
        self.check_brk(parsed)

        load = self.program(file.load, "load", "load")
        if file.share:
            self.check_threads(file.load, parsed)
        if all(call.op in WITHOUT_PROCESS for each in parsed.values() for call in each):
            lists.append(self.encode("drain", []))
            calls.append(())
        else:
            self.check_load(file.load, parsed[f"program.{file.load}"])
            lists.append(self.encode("drain", [Call("exit")] * (1 + file.waiting)))
            calls.append((CallPlace("exit()", f"{self.path.name}: drain"),) * (1 + file.waiting))
        if file.waiting:
            forks = self.encode("load", [Call("fork")] * file.waiting)
            lists.append(_read_only(np.concatenate([lists[load], forks])))
            fork = CallPlace("fork()", f"{self.path.name}: waiting")
            calls.append((*calls[load], *[fork] * file.waiting))
            load = len(lists) - 1
        return Workload(
            name=file.name,
            description=file.description,
            files=tuple(map(File, self.file_numbers, self.pages)),
            lists=tuple(lists),
            list_names=(*sections, "drain", *(["load"] if file.waiting else [])),
            load_list=load,
            phases=tuple(self.read_phases(file.phase, parsed)),
            drain_list=len(sections),
            work_jitter_permille=round(file.work_jitter * 1000),
            calls=tuple(calls),
            share_mm=file.share == "mm",
            touch=self.touch,
            walkers=tuple(self.read_walkers(file.walker)),
            cold_permille=cold_permille,
            read_ns=read_ns,
            private_files=len(file.private_files),
            uses=self.uses.used(),
        )

    def read_files(self, files: dict[str, Any], table: str) -> None:
        for name, pages in files.items():
            if name in self.file_numbers:
                what = f"'{name}' is in [files] already"
                raise self.error(f"[{table}]", what, name)
            if not re.fullmatch(NAME_PATTERN, name, re.ASCII) or len(name) > MAX_NAME:
                what = f"'{name}' is no name of a file: letters, digits and . + @ : / - [ ]"
                raise self.error(f"[{table}]", f"{what}, at most {MAX_NAME} of them", name)
            if type(pages) is not int or not 1 <= pages <= TASK_SIZE // PAGE:
                what = (
                    f"'{name}' is {pages!r}; it must be a size in pages, 1 to {TASK_SIZE // PAGE}"
                )
                raise self.error(f"[{table}]", what, name)
            self.file_numbers[name] = len(self.pages)
            self.pages.append(pages)

    def read_background(self, file: _File, shared_pages: list[int]) -> None:
        name = self.kernel or file.kernel
        kernel: list[background.Entry] = []
        if name:
            kernels = background.kernels(_folder())
            if name not in kernels:
                what = f"no kernel '{name}'{_nearest(name, kernels)}"
                raise self.error("kernel", f"{what}; there are: {', '.join(kernels)}", "kernel")
            kernel = background.read_kernel(_folder(), name, parse_time)
        own = background.read(file.background, str(self.path), parse_time)
        entries = background.merge(kernel, own, str(self.path))
        self.uses = background.Uses(entries, shared_pages, file.share == "mm")

    def read_work(self, work: dict[str, Any]) -> None:
        for key, raw in work.items():
            if key not in _WORK_KEYS:
                what = f"no kind of work '{key}'{_nearest(key, _WORK_KEYS)}"
                raise self.error("[work]", f"{what}; there are: {', '.join(_WORK_KEYS)}", key)
            try:
                self.work_ns[key] = parse_time(self.table(raw, _Work, f"[work.{key}]").time)
            except CallError as error:
                raise self.error(f"[work.{key}] time", str(error)) from None

    def read_cold(self, raw: dict[str, Any]) -> tuple[int, int]:
        """(permille of faults, ns of a read)."""
        if not raw:
            return 0, 0
        cold = self.table(raw, _Cold, "[cold]")
        if not 0.001 <= cold.share <= 1:
            what = f"{cold.share:g} is not between 0.001 and 1 (0.1: one fault in ten)"
            raise self.error("[cold] share", what, "share")
        try:
            return round(cold.share * 1000), parse_time(cold.read)
        except CallError as error:
            raise self.error("[cold] read", str(error), "read") from None

    def read_walkers(self, raw_walkers: Sequence[object]) -> Iterator[Walker]:
        for number, raw in enumerate(raw_walkers):
            place = f"[[walker]] {number + 1}"
            spec = self.table(raw, _Walker, place)
            if spec.file not in self.file_numbers:
                what = f"no file '{spec.file}'{_nearest(spec.file, self.file_numbers)}"
                raise self.error(
                    place, f"{what}; [files] has: {', '.join(self.file_numbers)}", "walker"
                )
            file = self.file_numbers[spec.file]
            last = self.pages[file] - 1 if spec.last is None else spec.last
            if not 0 <= spec.first <= last < self.pages[file]:
                what = f"pages {spec.first} to {last} of {spec.file}, which has {self.pages[file]}"
                raise self.error(place, f"{what}: 0 <= first <= last < size", "walker")
            try:
                every_ns = parse_time(spec.every)
            except CallError as error:
                raise self.error(f"{place} every", str(error)) from None
            if every_ns == 0:
                raise self.error(f"{place} every", "0 is no time between two walks", "every")
            if spec.cpu is not None and spec.cpu < 0:
                raise self.error(f"{place} cpu", f"{spec.cpu} is below 0", "cpu")
            at_once = spec.at_once
            if at_once is None:
                at_once = last + 1 if spec.kind == "truncate" else FOLIO_PAGES
            if at_once < 1:
                raise self.error(f"{place} at_once", f"{at_once}; at least 1 page", "at_once")
            yield Walker(spec.kind, file, spec.first, last, at_once, every_ns, spec.cpu)

    def read_section(self, section: str, raw: object) -> list[str]:
        place = f"[{section}]"
        name = section.partition(".")[2]
        if not re.fullmatch(NAME_PATTERN, name, re.ASCII):
            raise self.error(place, f"'{name}' is no name: letters, digits and . + @ : / -")
        if section.startswith("image."):
            image = self.table(raw, _Image, place)
            if image.mmap_base % PAGE or not PAGE <= image.mmap_base <= TASK_SIZE:
                what = f"mmap_base is {image.mmap_base:#x}; it must be a multiple of {PAGE}"
                raise self.error(place, f"{what}, at most {TASK_SIZE:#x}", "mmap_base")
            self.images[name] = image
            texts = image.calls
        else:
            texts = self.table(raw, _Program, place).calls
        if not texts:
            raise self.error(place, "calls is empty")
        return texts

    def place(self, section: str, index: int) -> str:
        line = self.line_of_call.get((section, index))
        name = self.calls_path.name
        return f"{name}{f':{line}' if line else ''}: [{section}] calls[{index}]"

    def call_error(self, section: str, index: int, text: str, what: str) -> InputError:
        return InputError(f"{self.calls_path.parent / self.place(section, index)}: {text}: {what}")

    def read_calls(self, section: str, texts: Sequence[str]) -> list[Call]:
        calls: list[Call] = []
        forks: list[int] = []
        clones: list[int] = []
        for index, text in enumerate(texts):
            try:
                call = self.in_context(section, parse_call(text))
                if call.op == "clone":
                    clones.append(index)
                elif call.op == "thread_exit":
                    if not clones:
                        raise CallError("there is no clone() before it whose thread could end")
                    clones.pop()
                elif clones and call.op in ("exec", "fork", "exit"):
                    raise CallError("not between clone() and thread_exit()")
                if call.op == "fork":
                    forks.append(index)
                elif call.op == "exit" and not forks:
                    raise CallError("there is no fork() before it whose child could exit")
                if len(forks) > MAX_PROCESSES:
                    raise CallError(f"more than {MAX_PROCESSES} processes wait for a child")
                if call.op == "exit":
                    forks.pop()
            except CallError as error:
                raise self.call_error(section, index, text, str(error)) from None
            calls.append(call)
        if clones:
            what = "no thread_exit() of its thread before the list ends"
            raise self.call_error(section, clones[-1], texts[clones[-1]], what)
        if forks:
            raise self.call_error(
                section, forks[-1], texts[forks[-1]], "no exit() of its child before the list ends"
            )
        return calls

    def in_context(self, section: str, call: Call) -> Call:
        """With names looked up, and with the work that belongs to calls of its kind."""
        if section.startswith("image."):
            if call.op not in _IMAGE_OPS:
                raise CallError(f"an image has only {', '.join(_IMAGE_OPS)}")
        elif call.flags & (MAP_SPECIAL | MAP_BRK):
            raise CallError("MAP_SPECIAL and MAP_BRK are for images")
        elif call.op not in WITHOUT_PROCESS:
            kind = "fault" if call.op == "fault_next" else call.op
            kind = kind if kind in _WORK_KEYS else "call"
            if work_ns := self.work_ns.get(kind, 0):
                call = replace(call, work_ns=work_ns)
        if call.op == "exec":
            if call.name not in self.images:
                raise CallError(
                    f"no image '{call.name}'{_nearest(call.name, self.images)}; "
                    f"there are: {', '.join(self.images)}"
                )
            return replace(call, addr=self.images[call.name].mmap_base)
        if call.op == "mmap" and call.name:
            if call.name not in self.file_numbers:
                raise CallError(
                    f"no file '{call.name}'{_nearest(call.name, self.file_numbers)}; "
                    f"[files] has: {', '.join(self.file_numbers)}"
                )
            pages = self.pages[self.file_numbers[call.name]]
            if call.offset >= pages * PAGE:
                raise CallError(
                    f"offset {call.offset:#x} is beyond the end of {call.name} ({pages} pages)"
                )
        return call

    def encode(self, section: str, calls: Sequence[Call]) -> NDArray[np.void]:
        is_image = section.startswith("image.")
        of_call = lru_cache(maxsize=4096)(self.uses.of_call)
        writes = any("fault_write" in _background_ops(call) for call in calls)
        rows: list[tuple[int, ...]] = []
        for call in calls:
            arg, flags, length, work_ns = -1, call.flags, call.length, call.work_ns
            if call.op == "exec":
                arg = self.list_numbers[f"image.{call.name}"]
            elif call.op == "mmap" and call.name:
                arg = self.file_numbers[call.name]
            if call.op in ("exec", "fork") or (call.op == "mmap" and call.name):
                flags |= TOUCH_FLAGS[self.touch]
            if call.op == "pace":
                length, work_ns = work_ns, 0
            first, number, alone_ns = of_call(_background_ops(call, writes), arg)
            self.alone_ns[section] = self.alone_ns.get(section, 0.0) + alone_ns
            if call.op == "exec":
                alone_ns += self.alone_ns[f"image.{call.name}"]
            if not is_image:
                work_ns = max(0, work_ns - round(alone_ns))
            rows.append(
                (
                    *(OPS.index(call.op), call.prot, flags, arg, call.addr, length, call.offset),
                    *(NO_EXPECT if call.expect is None else call.expect, work_ns),
                    *(NO_EXPECT if call.stride is None else call.stride, call.times),
                    *(first, number, 0),
                )
            )
        return _read_only(np.array(rows, dtype=CALL_DTYPE))

    def check_brk(self, lists: Mapping[str, Sequence[Call]]) -> None:
        """A heap begins in one place, and every image has one if any program calls brk."""
        uses_brk = any(call.op == "brk" for calls in lists.values() for call in calls)
        for name in self.images:
            heaps = sum(bool(call.flags & MAP_BRK) for call in lists[f"image.{name}"])
            if heaps > 1 or (uses_brk and not heaps):
                what = f"{heaps} mappings have MAP_BRK; the heap starts at the end of one"
                raise self.error(f"[image.{name}]", what)

    def program(self, name: str, place: str, key: str) -> int:
        number = self.list_numbers.get(f"program.{name}")
        if number is None:
            valid = [s.partition(".")[2] for s in self.list_numbers if s.startswith("program.")]
            what = f"no program '{name}'{_nearest(name, valid)}; there are: {', '.join(valid)}"
            raise self.error(place, what, key)
        return number

    def check_load(self, name: str, calls: Sequence[Call]) -> None:
        without = WITHOUT_PROCESS
        first = next((index for index, call in enumerate(calls) if call.op not in without), 0)
        if calls[first].op != "exec":
            raise self.call_error(
                f"program.{name}", first, str(calls[first]), "the program to load starts with exec"
            )

    def check_threads(self, load: str, lists: Mapping[str, Sequence[Call]]) -> None:
        """Only the first exec makes a process that all CPUs share."""
        for section, calls in lists.items():
            for index, call in enumerate(calls):
                if call.op == "exec" and (section, index) != (f"program.{load}", 0):
                    what = "threads share one process (share); only load begins with an exec"
                    raise self.call_error(section, index, str(call), what)

    def read_phases(
        self, raw_phases: Sequence[object], lists: Mapping[str, Sequence[Call]]
    ) -> Iterator[Phase]:
        """The warm-up and those of the file."""
        if not raw_phases:
            raise self.error("[[phase]]", "there is none; a workload needs one to measure")
        phases: list[Phase] = []
        for number, raw in enumerate(raw_phases):
            place = f"[[phase]] {number + 1}"
            spec = self.table(raw, _Phase, place)
            place = f"[[phase]] '{spec.name}'"
            if spec.name in ("load", "warm-up", "drain", *(phase.name for phase in phases)):
                raise self.error(place, "this name is taken; names of phases differ")
            once = spec.kind == "once"
            if once and spec.share is not None:
                raise self.error(place, "a phase that runs once has no share of the duration")
            share = 0.0 if once else 1.0 if spec.share is None else spec.share
            if not once and not 0 < share <= 1:
                raise self.error(place, f"share is {share:g}; it must be above 0, at most 1")
            list_number = self.program(spec.list, f"{place} list", "list")
            ops = {call.op for call in lists[f"program.{spec.list}"]}.difference(WITHOUT_PROCESS)
            if "fault_next" in ops:
                ops = (ops | {"fault"}) - {"fault_next"}
            units = ("iteration", *(op for op in OPS if op in ops))
            if spec.unit not in units:
                what = f"unit '{spec.unit}' is no call of program '{spec.list}'"
                raise self.error(
                    place, f"{what}{_nearest(spec.unit, units)}; valid: {', '.join(units)}"
                )
            first = (
                None if spec.first is None else self.program(spec.first, f"{place} first", "first")
            )
            phases.append(Phase(spec.name, list_number, once, spec.record, share, spec.unit, first))
        total = sum(phase.share for phase in phases)
        if any(not phase.once for phase in phases) and abs(total - 1) > 1e-6:
            raise self.error("[[phase]]", f"the shares add up to {total:g}; they must add up to 1")
        measured = next((phase for phase in phases if phase.record), None)
        if measured is None:
            raise self.error("[[phase]]", "none has record = true; nothing would be measured")
        share = 0.0 if measured.once else WARM_UP_SHARE
        yield measured._replace(name="warm-up", record=False, share=share)
        yield from phases


def _read_only(array: NDArray[np.void]) -> NDArray[np.void]:
    array.setflags(write=False)
    return array


def _background_ops(call: Call, writes: bool = False) -> tuple[str, ...]:
    """The kinds of call, in `times` of background entries, that this one is.

    ``writes``: the program of the call writes pages.
    """
    if call.op in ("fault", "fault_next"):
        if not call.prot & PROT["PROT_WRITE"]:
            return ("fault_read",)
        return ("fault_write", "fault_new") if call.op == "fault_next" else ("fault_write",)
    if call.op == "munmap" and writes:
        return ("munmap", "munmap_used")
    if call.op not in background.OPS:
        return ()
    elsewhere = call.flags & (MAP_FIXED | MAP_SPECIAL)
    opened = call.op == "mmap" and call.name and not call.offset and not elsewhere
    return (call.op, "open") if opened else (call.op,)


def _lines_of_calls(text: str) -> dict[tuple[str, int], int]:
    """{(section, index): line} of the calls that are written one string after the other."""
    lines: dict[tuple[str, int], int] = {}
    section, index = "", None
    for number, line in enumerate(text.splitlines(), 1):
        header = re.match(r"\s*\[\s*([^\[\]]+?)\s*\]\s*(#.*)?$", line)
        if header and index is None:
            section = re.sub(r"[\"'\s]", "", header[1])
            continue
        start = 0
        if index is None:
            opening = re.match(r"\s*calls\s*=\s*\[", line)
            if not opening:
                continue
            start, index = opening.end(), 0
        for token in re.finditer(r"#.*|\"(?:[^\"\\]|\\.)*\"|'[^']*'|\]", line[start:]):
            if token[0] == "]":
                index = None
                break
            if token[0][0] in "\"'":
                lines[section, index] = number
                index += 1
    return lines


def line_of_key(text: str, key: str) -> int | None:
    """The line of the first `key =` or `[key]`, `[key.name]`, `[name.key]`."""
    word = rf"[\"']?{re.escape(key)}[\"']?"
    for number, line in enumerate(text.splitlines(), 1):
        if re.match(rf"\s*({word}\s*=|\[(.*[\[.\s])?{word}\s*[.\]])", line):
            return number
    return None
