# SPDX-License-Identifier: MIT
"""Calls of a program: their text, as strace writes it, and what is refused in any of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from emu.errors import nearest

PAGE = 4096
TASK_SIZE = 0x7FFFFFFFF000
"""The first address that no process has: EMU_TASK_SIZE."""
MAX_WORK_NS = 10 * 10**9
NO_EXPECT = 2**64 - 1

MICRO_OPS = (
    "line_write",
    "line_fetch_add",
    "line_cmpxchg",
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
_TIME_UNITS = {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9}

CALL_DTYPE = np.dtype(
    [
        ("op", np.uint16),
        ("prot", np.uint16),
        ("flags", np.uint32),
        ("arg", np.int32),
        ("locked_ns", np.uint32),
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
    locked_ns: int = 0
    """mmap, munmap, mprotect, brk: of computing with the range locked."""
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
        raise CallError(f"no call '{op}'{nearest(op, OPS)}; there are: {', '.join(OPS)}")
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
                f"no flag '{word}'{nearest(word, (*table, *without_effect))}; "
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
    if call.name and flags & MAP_GROWSDOWN:
        raise CallError("MAP_GROWSDOWN is for anonymous memory, of which stacks are")
    if flags & MAP_ANONYMOUS and flags & MAP_SHARED:
        raise CallError("shared anonymous memory is a file in the kernel: name one in [files]")


def page_up(length: int) -> int:
    """The bytes of the pages that `length` bytes take."""
    return -(-length // PAGE) * PAGE
