# SPDX-License-Identifier: MIT
"""Records a real command as a workload.

    setarch -R strace -f -y -e trace=mmap,...,execve,clone,... COMMAND

gives what the command's processes ask of the mm, at addresses that are the same every time. What
the kernel maps by itself during execve is in no trace: it is worked out from the ELF headers, in
the order of the kernel's load_elf_binary(). strace holds each process for a moment where it calls
exit_group or execve, and its /proc/PID/maps is read there. The recorded calls, carried out on a
model of an mm, must lead to exactly that, or there is no recording. A process that is killed is
held nowhere; where its program lay, the dynamic loader shows, which is asked to list libraries.

Processes that ran at the same time are put one into the other: a child runs to its end where it was
forked, then its parent goes on. The calls of a process's threads become one sequence, in the order
in which they took effect.
"""

from __future__ import annotations

import difflib
import itertools
import os
import platform
import re
import resource
import shlex
import shutil
import struct
import subprocess
import tempfile
import textwrap
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from emu.errors import EmuError, InputError
from emu.workload import (
    MAP_ANONYMOUS,
    MAP_BRK,
    MAP_FIXED,
    MAP_FIXED_NOREPLACE,
    MAP_GROWSDOWN,
    MAP_NORESERVE,
    MAP_PRIVATE,
    MAP_SHARED,
    MAP_SPECIAL,
    MAP_STACK,
    MAX_NAME,
    NAME_PATTERN,
    PAGE,
    PROT,
    TASK_SIZE,
    Call,
    CallError,
    page_up,
    parse_call,
)

Each = Literal["exec", "fork", "run"]
"""What repeats: what the command does from one exec, or fork, to the next, or all of it."""

MMAP_BASE = TASK_SIZE - (128 << 20)
"""Where the kernel's mmap area ends without randomization, with a stack limit of 8 MiB."""
_STACK_LIMIT = 8 << 20
_HOLD_S = 0.1
_POLL_S = 0.005

_MM_CALLS = ("mmap", "munmap", "mprotect", "brk")
_UNSUPPORTED = ("mremap", "pkey_mprotect", "remap_file_pages", "shmat", "shmdt", "execveat")
_FORKS = ("clone", "clone3", "fork", "vfork")
_EXITS = ("exit", "exit_group")
_TRACED = (*_MM_CALLS, *_UNSUPPORTED, "execve", *_FORKS, *_EXITS)
_HELD = {59: "execve", 60: "exit", 231: "exit_group"}
"""By x86-64 system call number."""

_WORK = """\
# The rest of the kernel and of user space. UnixBench execl, 1 copy: 4248-4749 exec/s on an 8-CPU
# box (public logs, 2025) = 211-235 us each, mean 223 us. A static binary that execs itself takes
# 68 % of the time of a dynamic one (284-295 of 417-430 us in one small VM): so 152 us lie in exec,
# and 71 us, the dynamic loader with its page faults, before the 13 calls that follow. Process
# creation, 1 copy: 8702-10278 forks/s on the same box = 97-115 us, mean 106 us; no source splits
# it, so fork and exit have half each. The few us of the emulated mm itself are not subtracted.
[work.exec]
time = "152us"
source = "UnixBench execl, 68 % of 223 us"

[work.call]
time = "5460ns"
source = "UnixBench execl, 32 % of 223 us over 13 calls"

[work.fork]
time = "53us"
source = "UnixBench process creation, half of 106 us"

[work.exit]
time = "53us"
source = "UnixBench process creation, half of 106 us"
"""


@dataclass(frozen=True)
class Point:
    """A moment at which the real process's maps are known, to check a replay against."""

    image: str
    list: str
    calls: int
    """It comes after so many calls of `list`, and after all of load if that is another list."""
    maps: tuple[str, ...]
    """Lines of /proc/PID/maps: range, permissions, offset, name; without [vsyscall]."""


@dataclass(frozen=True)
class Recording:
    """A recorded workload."""

    toml: str
    points: tuple[Point, ...]


def record(
    command: Sequence[str],
    *,
    name: str,
    description: str = "",
    each: Each = "run",
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    remark: str = "",
    anonymise: bool = False,
) -> Recording:
    """Run `command` and make a workload of what it did; `remark` goes into the header comment.

    anonymise: files are file1, file2 ..., and the command is not told.

    each="exec", "fork": the command execs itself, or forks, at least 4 times, each time with the
    same calls; these are what is measured. each="run": the command from fork to exit.

    Raises InputError if the command or this machine cannot be recorded, EmuError if what was
    recorded does not lead to the maps of the real processes.
    """
    _check_host()
    _check_command(command, cwd, env)
    log, stops = _trace(command, cwd, env)
    events, threads = _join_threads(_parse_log(log))
    builder = _Builder(Path(cwd or "."), env, stops, anonymise, threads, _extents(events))
    stream = builder.linearize(events)
    marks = _verify(stream, builder, stops)
    programs = _cut(stream, each)
    header = _header(command, name, each, remark, builder)
    return Recording(
        _toml(name, description, header, builder, programs), tuple(_points(marks, programs))
    )


def _check_host() -> None:
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        raise InputError(
            f"recording needs Linux on x86-64, this is {platform.system()} on {platform.machine()}"
        )
    for tool, package in (("strace", "strace"), ("setarch", "util-linux")):
        if not shutil.which(tool):
            raise InputError(
                f"recording needs {tool}, which is not installed: apt-get install {package}"
            )


def _check_command(command: Sequence[str], cwd: Path | None, env: Mapping[str, str] | None) -> None:
    if not command:
        raise InputError("there is no command to record; give one after --")
    program = command[0]
    if "/" in program:
        program = str(Path(cwd or ".", program).absolute())
    if not shutil.which(program, path=(os.environ if env is None else env).get("PATH")):
        raise InputError(f"{command[0]} is no executable; give the command to record after --")


# ---- run the command ----

_Stops = dict[tuple[int, str], list[str]]
"""{(pid, executable): lines of /proc/PID/maps at its first exec or exit}"""


def _trace(
    command: Sequence[str],
    cwd: Path | None,
    env: Mapping[str, str] | None,
    *,
    only_list: bool = False,
) -> tuple[list[str], _Stops]:
    """The lines of strace's log, and the maps of the processes that it held.

    only_list: the command's loader lists libraries, into nothing, and ends.
    """
    with tempfile.TemporaryDirectory(prefix="emu_record_") as folder:
        log = Path(folder, "log")
        traced = ",".join(f"?{call}" for call in _TRACED)
        held = ",".join(f"?{call}" for call in _HELD.values())
        arguments = [
            *("setarch", "-R", "strace", "-f", "-I", "2", "-y", "-s", "4096", "-o", str(log)),
            *("-e", f"trace={traced}"),
            *("-e", f"inject={held}:delay_enter={round(_HOLD_S * 1e6)}"),
            *(("-E", "LD_TRACE_LOADED_OBJECTS=1") if only_list else ()),
            *("--", *command),
        ]
        soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
        wanted = _STACK_LIMIT if hard == resource.RLIM_INFINITY else min(_STACK_LIMIT, hard)
        resource.setrlimit(resource.RLIMIT_STACK, (wanted, hard))
        try:
            tracer = subprocess.Popen(
                arguments,
                cwd=cwd,
                env=None if env is None else dict(env),
                stdout=subprocess.DEVNULL if only_list else None,
            )
        finally:
            resource.setrlimit(resource.RLIMIT_STACK, (soft, hard))
        stops: _Stops = {}
        try:
            while tracer.poll() is None:
                _look_at_held(tracer.pid, stops)
                time.sleep(_POLL_S)
        finally:
            if tracer.poll() is None:
                tracer.terminate()  # and the command with it
                tracer.wait()
        lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    if not any(re.match(r"\d+\s+execve\(.*\)\s+= 0\b", line) for line in lines):
        raise InputError(
            f"{shlex.join(command)} did not start under `setarch -R strace -f` "
            f"(exit status {tracer.returncode})"
        )
    return lines, stops


def _look_at_held(tracer: int, stops: _Stops) -> None:
    """Read the maps of the tracees that stand at the entry of a call in _HELD."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            held = _held_at(entry, tracer)
            if held is None or held in stops:
                continue
            maps = (entry / "maps").read_text().splitlines()
            if _held_at(entry, tracer) == held:  # still: they are not those of what came after
                stops[held] = maps
        except (OSError, ValueError, IndexError):
            continue  # it ran on, or is gone


def _held_at(entry: Path, tracer: int) -> tuple[int, str] | None:
    """(pid, executable) of a process that stands at the entry of a call in _HELD, else None."""
    status = (entry / "status").read_text()
    if f"\nTracerPid:\t{tracer}\n" not in status or "\nState:\tt" not in status:
        return None
    executable = (entry / "exe").readlink().as_posix()
    number, *arguments = (entry / "syscall").read_text().split()
    # After a successful execve the number stays, but the registers are cleared.
    at_entry = number in ("60", "231") or (number == "59" and int(arguments[0], 16))
    return (int(entry.name), executable) if at_entry else None


# ---- read strace's log ----


@dataclass
class _Event:
    """Something that a process did."""

    call: str
    arguments: str
    result: str
    order: int = 0
    """Among the events of a process's threads: the line of the log where the call took effect."""


def _parse_log(lines: Sequence[str]) -> dict[int, list[_Event]]:
    """{pid: its events}, the command's process first."""
    events: dict[int, list[_Event]] = {}
    unfinished: dict[int, tuple[int, str]] = {}
    for number, line in enumerate(lines):
        match = re.fullmatch(r"(\d+)\s+(.*)", line)
        if not match:
            continue
        pid, text = int(match[1]), match[2]
        own = events.setdefault(pid, [])
        if text.endswith(" <unfinished ...>"):
            unfinished[pid] = number, text.removesuffix(" <unfinished ...>")
            continue
        begun = number
        resumed = re.fullmatch(r"<\.\.\. \w+ resumed>(.*)", text)
        if resumed:
            begun, start = unfinished.pop(pid, (number, ""))
            text = start + resumed[1]
        if text.startswith("+++ superseded by execve"):
            raise InputError(
                f"a thread of process {pid} calls execve, which cannot be recorded yet"
            )
        if text.startswith("+++") and (not own or own[-1].call not in _EXITS):
            own.append(_Event("exit", "", "?", number))  # killed
        call = re.fullmatch(r"(\w+)\((.*)\)\s+= (\?|-?\w+)(.*)", text)
        if call:
            # What munmap frees may be another thread's before munmap is seen to return; what mmap
            # takes is nobody else's before it does.
            order = begun if call[1] == "munmap" else number
            own.append(_Event(call[1], call[2], call[3], order))
    return events


def _is_thread(event: _Event) -> bool:
    return event.call in _FORKS and "CLONE_THREAD" in event.arguments


def _join_threads(events: Mapping[int, list[_Event]]) -> tuple[dict[int, list[_Event]], int]:
    """{pid: the events of all its threads}, and how many threads were started."""
    leader_of: dict[int, int] = {}
    for pid, own in events.items():  # a thread's line comes after that of whoever started it
        for event in own:
            if _is_thread(event) and not event.result.startswith("-1"):
                leader_of[int(event.result)] = leader_of.get(pid, pid)
    # A thread may have been seen before its own starter was told to be one.
    for thread in leader_of:
        while leader_of[thread] in leader_of:
            leader_of[thread] = leader_of[leader_of[thread]]
    joined: dict[int, list[_Event]] = {pid: [] for pid in events if pid not in leader_of}
    for pid, own in events.items():
        joined[leader_of.get(pid, pid)] += [
            event
            for event in own
            if not _is_thread(event) and not (pid in leader_of and event.call == "exit")
        ]
    for own in joined.values():
        own.sort(key=lambda event: event.order)
    return joined, len(leader_of)


@dataclass
class _Step:
    """A call in the one stream of all processes."""

    call: Call
    pid: int = 0
    comment: str = ""
    held: bool = False
    """The process was held before it, so that its maps may be known."""


class _Builder:
    """Makes calls of events; collects files and images."""

    def __init__(
        self,
        cwd: Path,
        env: Mapping[str, str] | None,
        stops: _Stops,
        anonymise: bool,
        threads: int,
        extents: Mapping[str, int],
    ) -> None:
        self.cwd = cwd
        self.env = env
        self.stops = stops
        self.anonymise = anonymise
        self.threads = threads
        self.extents = extents
        self.files: dict[str, int] = {}
        """Pages, by name."""
        self.names: dict[str, str] = {}
        """By path."""
        self.images: dict[str, list[_Step]] = {}
        self.image_paths: dict[str, str] = {}
        """Path of the executable, by name of the image."""
        self.vforks = 0
        self.borders = 0
        """Between neighbouring anonymous mappings, in the real maps alone."""

    def linearize(self, events: Mapping[int, Sequence[_Event]]) -> list[_Step]:
        """All processes' calls in one sequence."""
        stream = list(self.process(next(iter(events)), events))
        if stream[0].call.op != "exec":
            raise EmuError("strace's log does not begin with an execve")
        return stream

    def process(self, pid: int, events: Mapping[int, Sequence[_Event]]) -> Iterator[_Step]:
        """What a process and its children do until it ends."""
        held = False
        for event in events[pid]:
            held |= event.call == "execve" or event.call in _EXITS
            if event.result.startswith("-1"):
                continue
            if event.call in _EXITS:
                yield _Step(Call("exit"), pid, held=True)
                return
            if event.call in _UNSUPPORTED:
                raise InputError(f"the command calls {event.call}, which no workload can have yet")
            yield _Step(self.call(event), pid, held=held)
            held = False
            if event.call in _FORKS:
                child = int(event.result)
                if child not in events:
                    raise EmuError(f"process {child} is not in strace's log")
                yield from self.process(child, events)
        raise EmuError(f"strace's log does not show the end of process {pid}")

    def call(self, event: _Event) -> Call:
        if event.call == "execve":
            return Call("exec", addr=MMAP_BASE, name=self.image(event))
        if event.call in _FORKS:
            self.check_fork(event)
            return Call("fork")
        return self.mm_call(event)

    def check_fork(self, event: _Event) -> None:
        flags = set(re.findall(r"CLONE_\w+", event.arguments))
        if "CLONE_VM" in flags and "CLONE_VFORK" not in flags:
            raise InputError("the command shares its memory with a process that is no thread of it")
        if event.call == "vfork" or "CLONE_VFORK" in flags:
            self.vforks += 1

    def mm_call(self, event: _Event) -> Call:
        arguments, result = event.arguments, event.result
        if event.call == "mmap":
            match = _MMAP.fullmatch(arguments)
            if not match:
                raise EmuError(f"mmap({arguments}) cannot be read")
            path = _mapped_file(arguments)
            name = "-1" if path is None else self.file(path)
            arguments = f"{match[1]}{name}{match[3]}"
            if not _stacks_are_apart():
                arguments = arguments.replace("|MAP_STACK", "")
        try:
            return parse_call(f"{event.call}({arguments}) = {result}")
        except CallError as error:
            raise InputError(
                f"the command calls {event.call}({event.arguments}), which a workload cannot have: "
                f"{error}"
            ) from None

    def file(self, path: str) -> str:
        """The name of a file; anonymous about where it lies."""
        if path not in self.names:
            try:
                size = Path(path).stat().st_size if Path(path).is_file() else 0
            except OSError:
                size = 0
            # Of a device, or a file that is gone, nothing is known but what is mapped.
            self.names[path] = self.new_name(Path(path), max(size, self.extents.get(path, 1)))
        return self.names[path]

    def new_name(self, path: Path, size: int) -> str:
        if self.anonymise:
            name = f"file{len(self.names) + 1}"
            self.files[name] = page_up(size) // PAGE
            return name
        for parts in range(1, len(path.parts) + 1):
            name = re.sub(r"[^\w.+@:/\-]", "_", "/".join(path.parts[-parts:]), flags=re.ASCII)
            name = name[-MAX_NAME:]
            if re.fullmatch(NAME_PATTERN, name, re.ASCII) and name not in self.files:
                self.files[name] = page_up(size) // PAGE
                return name
        raise InputError(f"there is no unique name for the file {path}")

    def image(self, event: _Event) -> str:
        match = re.match(r'"((?:[^"\\]|\\.)*)"', event.arguments)
        path = _executable(self.cwd, match[1] if match else "")
        name = self.file(path)
        if name not in self.images:
            maps = next((m for (_, exe), m in self.stops.items() if exe == path), None)
            maps = maps or _maps_of_listing(path, self.cwd, self.env)
            if maps is None:
                raise EmuError(f"no process could be held while it ran {path}; try again")
            self.image_paths[name] = path
            self.images[name] = list(_image_steps(path, maps, self))
        return name


_MMAP = re.compile(r"(.*, )(?:-1|\d+<(.*)>(?:\(deleted\))?)(, \w+)")


def _mapped_file(arguments: str) -> str | None:
    """The file of an mmap, None if it maps none."""
    match = _MMAP.fullmatch(arguments)
    return match[2] if match and "MAP_ANONYMOUS" not in arguments else None


def _extents(events: Mapping[int, Sequence[_Event]]) -> dict[str, int]:
    """{file: where the furthest mapping of it ends, in bytes}"""
    found: dict[str, int] = {}
    for own in events.values():
        for event in own:
            path = _mapped_file(event.arguments) if event.call == "mmap" else None
            if path is not None and not event.result.startswith("-1"):
                _, length, *_, offset = event.arguments.split(", ")
                found[path] = max(found.get(path, 0), int(offset, 0) + int(length, 0))
    return found


def _maps_of_listing(path: str, cwd: Path, env: Mapping[str, str] | None) -> list[str] | None:
    """The maps of a process whose loader lists the program's libraries and does not run it; None
    where it has no loader."""
    if read_elf(path).interpreter is None:
        return None
    _, stops = _trace([path], cwd, env, only_list=True)
    return next((maps for (_, exe), maps in stops.items() if exe == path), None)


def _executable(cwd: Path, path: str) -> str:
    """The binary that execve(path) runs: behind links, and the interpreter of a script."""
    for _ in range(5):
        real = (cwd / path).resolve()
        try:
            with real.open("rb") as file:
                start = file.read(256)
        except OSError as error:
            raise InputError(
                f"the executable {path} cannot be read ({error.strerror}); "
                "name it by its absolute path"
            ) from None
        if not start.startswith(b"#!"):
            return str(real)
        path = start[2:].split(b"\n")[0].split()[0].decode(errors="replace")
    raise InputError(f"{path}: scripts whose interpreter is a script are nested too deeply")


# ---- what the kernel maps in execve ----


@dataclass(frozen=True)
class _Segment:
    """A PT_LOAD entry of a program header."""

    offset: int
    vaddr: int
    filesz: int
    memsz: int
    prot: int


@dataclass(frozen=True)
class _Elf:
    """What load_elf_binary() looks at."""

    fixed: bool
    """ET_EXEC: the addresses are final."""
    segments: tuple[_Segment, ...]
    interpreter: str | None
    stack_prot: int


def read_elf(path: str) -> _Elf:
    """The program headers of a 64-bit little-endian ELF file. Raises InputError for others."""
    data = Path(path).read_bytes()
    if data[:6] != b"\x7fELF\x02\x01":
        raise InputError(f"{path} is no 64-bit ELF file")
    (kind,) = struct.unpack_from("<H", data, 16)
    (table,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    segments: list[_Segment] = []
    interpreter = None
    stack_prot = PROT["PROT_READ"] | PROT["PROT_WRITE"]
    for index in range(count):
        header = struct.unpack_from("<IIQQQQQQ", data, table + index * size)
        p_type, p_flags, offset, vaddr, _, filesz, memsz, _ = header
        # PF_R, PF_W, PF_X = 4, 2, 1
        prot = (p_flags & 4) >> 2 | p_flags & 2 | (p_flags & 1) << 2
        if p_type == 1:  # PT_LOAD
            segments.append(_Segment(offset, vaddr, filesz, memsz, prot))
        elif p_type == 3:  # PT_INTERP
            interpreter = data[offset : offset + filesz].rstrip(b"\0").decode()
        elif p_type == 0x6474E551:  # PT_GNU_STACK
            stack_prot |= prot
    if kind not in (2, 3) or not segments:
        raise InputError(f"{path} is no executable")
    return _Elf(kind == 2, tuple(segments), interpreter, stack_prot)


def _image_steps(path: str, maps: Sequence[str], builder: _Builder) -> Iterator[_Step]:
    """The calls that stand for an execve of `path`, in the kernel's order."""
    lines = [_MapsLine.parse(line) for line in maps]

    def start_of(wanted: str) -> int:
        found = [line.start for line in lines if os.path.realpath(line.path) == wanted]
        if not found:
            raise EmuError(f"{wanted} is not in the maps of a process that runs {path}")
        return min(found)

    # setup_arg_pages()
    elf = read_elf(path)
    for line in lines:
        if line.path == "[stack]":
            flags = MAP_PRIVATE | MAP_FIXED | MAP_ANONYMOUS | MAP_GROWSDOWN
            yield _mapping(line.start, line.end, elf.stack_prot, flags, "", 0, "stack")
    steps = list(
        _elf_steps(elf, start_of(path), MAP_FIXED_NOREPLACE, builder.file(path), "the program")
    )
    # The last mapping of the highest end; the first one ended there only until it was cut off.
    heap = max(
        (step for step in reversed(steps) if step.call.op == "mmap"),
        key=lambda step: step.call.addr + step.call.length,
    )
    heap.call = replace(heap.call, flags=heap.call.flags | MAP_BRK)
    yield from steps
    if elf.interpreter:
        interpreter = os.path.realpath(elf.interpreter)
        yield from _elf_steps(
            read_elf(interpreter),
            start_of(interpreter),
            0,
            builder.file(interpreter),
            "its loader",
        )
    # map_vdso(): the code first, then the data pages below it
    special = [line for line in lines if re.match(r"\[v(dso|var)", line.path)]
    for line in sorted(special, key=lambda line: line.path != "[vdso]"):
        builder.files.setdefault(line.path, (line.end - line.start) // PAGE)
        flags = MAP_PRIVATE | MAP_FIXED | MAP_SPECIAL
        yield _mapping(line.start, line.end, line.prot, flags, line.path, 0, "")


def _mapping(
    start: int, end: int, prot: int, flags: int, name: str, offset: int, comment: str
) -> _Step:
    addr = start if flags & (MAP_FIXED | MAP_FIXED_NOREPLACE) else 0
    return _Step(Call("mmap", addr, end - start, prot, flags, name, offset, start), 0, comment)


def _elf_steps(elf: _Elf, start: int, first: int, name: str, what: str) -> Iterator[_Step]:
    """elf_load() of each segment. The first one takes the room of all, which is then cut off."""
    bias = start - elf.segments[0].vaddr // PAGE * PAGE
    last = elf.segments[-1]
    room_end = page_up(bias + last.vaddr + last.memsz)
    for index, segment in enumerate(elf.segments):
        address = bias + segment.vaddr
        begin, shift = address - address % PAGE, address % PAGE
        end = page_up(address + segment.filesz)
        flags = MAP_PRIVATE | (MAP_FIXED if index else first)
        if segment.filesz:
            whole = index == 0 and not elf.fixed
            until = room_end if whole else end
            note = f"room for {what}" if whole else ""
            yield _mapping(begin, until, segment.prot, flags, name, segment.offset - shift, note)
            if whole and room_end > end:
                yield _Step(Call("munmap", end, room_end - end), 0)
        zero_start, zero_end = end, page_up(address + segment.memsz)
        if segment.memsz > segment.filesz and zero_end > zero_start:
            prot = PROT["PROT_READ"] | PROT["PROT_WRITE"] | segment.prot & PROT["PROT_EXEC"]
            flags = MAP_PRIVATE | MAP_FIXED | MAP_ANONYMOUS
            yield _mapping(zero_start, zero_end, prot, flags, "", 0, "bss")


# ---- check ----


@dataclass(frozen=True)
class _MapsLine:
    start: int
    end: int
    perms: str
    offset: int
    path: str

    @staticmethod
    def parse(text: str) -> _MapsLine:
        """From a line of /proc/PID/maps."""
        bounds, perms, offset, _, _, *path = text.split(maxsplit=5)
        start, end = (int(part, 16) for part in bounds.split("-"))
        return _MapsLine(start, end, perms, int(offset, 16), path[0] if path else "")

    @property
    def prot(self) -> int:
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
class _Mm:
    """A model of a process's VMAs, enough to predict /proc/PID/maps."""

    mmap_base: int
    vmas: list[_Vma] = field(default_factory=list)
    """Sorted; neighbours are joined only when shown."""
    start_brk: int = 0
    brk: int = 0

    def fork(self) -> _Mm:
        return _Mm(self.mmap_base, [replace(vma) for vma in self.vmas], self.start_brk, self.brk)

    def is_free(self, start: int, end: int) -> bool:
        return not any(vma.start < end and start < vma.end for vma in self.vmas)

    def free_area(self, length: int) -> int:
        high = self.mmap_base
        for vma in reversed(self.vmas):
            if vma.start >= high:
                continue
            if high - vma.end >= length:
                break
            high = vma.start
        return high - length

    def unmap(self, start: int, end: int) -> None:
        kept: list[_Vma] = []
        for vma in self.vmas:
            if vma.start < min(start, vma.end):
                kept.append(vma.cut(vma.start, min(start, vma.end)))
            if max(end, vma.start) < vma.end:
                kept.append(vma.cut(max(end, vma.start), vma.end))
        self.vmas = kept

    def map(self, vma: _Vma) -> None:
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


@dataclass(frozen=True)
class _Mark:
    """The maps of a real process before the step `index` of the stream, shown to be right."""

    index: int
    image: str
    maps: tuple[str, ...]


def _verify(stream: list[_Step], builder: _Builder, stops: _Stops) -> list[_Mark]:
    """Carry the stream out and compare it with the real results and maps.

    A call without an address to which the kernel gave another place than the highest that is free
    (large files and huge pages are aligned) gets that place as a hint.

    Two anonymous mappings that have pages already before they become neighbours stay two in the
    kernel (anon_vma). Page faults are in no trace, so such borders are only counted.
    """
    marks: list[_Mark] = []
    seen: set[tuple[int, str]] = set()
    parents: list[tuple[_Mm, str]] = []
    mm, path = _Mm(0), ""
    for index, step in enumerate(stream):
        key = step.pid, path
        if step.held and key in stops and key not in seen:
            seen.add(key)
            real = _real_maps(stops[key], builder)
            model = mm.maps()
            if model == real:
                marks.append(_Mark(index, builder.names[path], tuple(real)))
            else:
                who = f"process {step.pid}, which runs {path}"
                _compare(_joined(model), _joined(real), who)
                builder.borders += len(real) - len(model)
        match step.call.op:
            case "fork":
                parents.append((mm, path))
                mm = mm.fork()
            case "exit":
                mm, path = parents.pop() if parents else (_Mm(0), "")
            case "exec":
                mm, path = _Mm(step.call.addr), builder.image_paths[step.call.name]
                for each in builder.images[step.call.name]:
                    _run(mm, each)
            case _:
                _run(mm, step)
    return marks


def _run(mm: _Mm, step: _Step) -> None:
    call = step.call
    highest = call.op == "mmap" and not call.addr
    if highest and call.expect and mm.free_area(page_up(call.length)) != call.expect:
        call = step.call = replace(call, addr=call.expect)
        step.comment = "the kernel's choice"
    result = mm.run(call)
    if call.expect is not None and result != call.expect:
        raise EmuError(f"the recording is not complete: {call} would return {result:#x}")


def _real_maps(maps: Sequence[str], builder: _Builder) -> list[str]:
    """As Point.maps."""
    lines = (_MapsLine.parse(text) for text in maps)
    return [
        f"{line.start:x}-{line.end:x} {line.perms} {line.offset:08x} "
        f"{builder.names.get(path := line.path.removesuffix(' (deleted)'), path)}".rstrip()
        for line in lines
        if line.path != "[vsyscall]"
    ]


def _joined(maps: Sequence[str]) -> list[str]:
    """Lines of maps, of neighbouring anonymous mappings with equal properties one."""
    lines: list[str] = []
    for text in maps:
        bounds, *rest = text.split()
        before = lines[-1].split() if lines else []
        anonymous = len(rest) == 2 or rest[2] == "[heap]"
        if anonymous and before[1:] == rest and before[0].endswith("-" + bounds.split("-")[0]):
            bounds = before[0].split("-")[0] + "-" + bounds.split("-")[1]
            lines.pop()
        lines.append(" ".join([bounds, *rest]))
    return lines


def _compare(model: Sequence[str], real: Sequence[str], who: str) -> None:
    for line in difflib.ndiff(real, model):
        if line[0] in "+-":
            side = "only in the real maps" if line[0] == "-" else "only in the recording"
            raise EmuError(f"the recording is not complete: {who}: {line[2:]} is {side}")


# ---- cut and write ----


@dataclass(frozen=True)
class _Program:
    name: str
    steps: tuple[_Step, ...]
    start: int
    """Where in the stream the first step is; -1 if it is one before the stream."""


def _cut(stream: Sequence[_Step], each: Each) -> tuple[_Program, _Program]:
    """The program to load and the one to measure; they may be one."""
    if each == "run":
        # The process that forks the command looks like the command at its end.
        load = _Program("load", tuple(stream[:-1]), 0)
        return load, _Program("iteration", (_Step(Call("fork")), *stream), -1)
    starts: list[int] = []
    depth = 0
    for index, step in enumerate(stream):
        if step.call.op == each and depth == 0:
            starts.append(index)
        depth += {"fork": 1, "exit": -1}.get(step.call.op, 0)
    if len(starts) < 4:
        raise InputError(
            f"the command's first process has {len(starts)} {each}s; with --each {each} it must "
            "do the same at least 4 times"
        )
    turns = [tuple(stream[a:b]) for a, b in itertools.pairwise(starts)]
    calls = [[step.call for step in turn] for turn in turns]
    if calls[1] != calls[2]:
        raise InputError(f"the command does not do the same from each {each} to the next")
    # The first turn may differ: some things are done once.
    first = 0 if calls[0] == calls[1] else 1
    trivial = [call.op for call in calls[first]] == ["fork", "exit"]
    name = "exec" if each == "exec" else "fork+exit" if trivial else "iteration"
    loop = _Program(name, turns[first], starts[first])
    if starts[first] == 0:
        return loop, loop
    return _Program("load", tuple(stream[: starts[first]]), 0), loop


def _points(marks: Sequence[_Mark], programs: tuple[_Program, _Program]) -> Iterator[Point]:
    load, loop = programs
    for mark in marks:
        for program in (loop, load):
            calls = mark.index - program.start
            if 0 <= calls <= len(program.steps):
                yield Point(mark.image, program.name, calls, mark.maps)
                break


def _header(command: Sequence[str], name: str, each: Each, remark: str, builder: _Builder) -> str:
    """How the recording was made."""
    words = [Path(word).name if word.startswith("/") else word for word in command]
    if builder.anonymise:
        words = ["COMMAND"]
    lines = [
        f"Recorded by `emu record --name {name} --each {each} "
        f"{'--anonymise ' if builder.anonymise else ''}-o {name}.toml -- "
        f"{shlex.join(words)}`",
        f"on {_system()}; addresses not randomized (setarch -R).",
    ]
    if remark:
        lines.append(remark)
    if builder.vforks:
        lines.append(
            f"{builder.vforks} vfork() calls of the command are fork() here: the child has its own "
            "copy of the VMAs."
        )
    if builder.borders:
        lines.append(
            "Neighbouring anonymous mappings that the kernel kept apart for their pages, and that "
            f"are one here: {builder.borders}."
        )
    if builder.threads:
        lines.append(
            f"Threads of the command: {builder.threads}. A process has one task here, which makes "
            "the calls of all its threads, in the order in which they took effect."
        )
    return "".join(
        f"# {line}\n" for text in lines for line in textwrap.wrap(text, 97, break_on_hyphens=False)
    )


def _stacks_are_apart() -> bool:
    """Does this kernel keep mappings with MAP_STACK from huge pages, and so from merging?"""
    release = [int(part) for part in re.findall(r"\d+", platform.release())[:2]]
    return release >= [6, 7]


def _system() -> str:
    """Distribution, C library, kernel, machine: nothing that tells one host from another."""
    release = platform.freedesktop_os_release()
    distribution = release.get("PRETTY_NAME", "Linux")
    point_release = Path("/etc/debian_version")
    if release.get("ID") == "debian" and point_release.exists():
        distribution = f"Debian {point_release.read_text().strip()}"
    kernel = re.match(r"[\d.]*\d", platform.release())
    return (
        f"{distribution}, {' '.join(platform.libc_ver())}, "
        f"Linux {kernel[0] if kernel else '?'}, {platform.machine()}"
    )


def _toml(
    name: str,
    description: str,
    header: str,
    builder: _Builder,
    programs: tuple[_Program, _Program],
) -> str:
    load, loop = programs
    parts = [
        header,
        f"name = {_quoted(name)}\n"
        f"description = {_quoted(description or f'recorded: {name}')}\n"
        f"load = {_quoted(load.name)}\n"
        "work_jitter = 0.1\n"
        'kernel = "linux"\n',
        "# Pages.\n[files]\n"
        + "".join(f"{_key(file)} = {pages}\n" for file, pages in builder.files.items()),
    ]
    for image, steps in builder.images.items():
        parts.append(f"[image.{_key(image)}]\nmmap_base = {MMAP_BASE:#x}\n{_calls(steps)}")
    for program in [loop] if load is loop else [load, loop]:
        parts.append(f"[program.{_key(program.name)}]\n{_calls(program.steps)}")
    if loop.name == "exec":
        fork_exit = _calls([_Step(Call("fork")), _Step(Call("exit"))])
        parts += [
            "# Not recorded, the command does not fork: so that fork and exit are timed as well.\n"
            f'[program."fork+exit"]\n{fork_exit}',
            _WORK,
            _phase("exec", "exec", 0.7),
            _phase("fork+exit", "fork", 0.3),
        ]
    else:
        unit = "fork" if loop.name == "fork+exit" else "iteration"
        parts += [_WORK, _phase(loop.name, unit, 1.0)]
    return "\n".join(parts)


def _phase(program: str, unit: str, share: float) -> str:
    return (
        f"[[phase]]\nname = {_quoted(program)}\nlist = {_quoted(program)}\n"
        f'kind = "time"\nshare = {share}\nrecord = true\nunit = {_quoted(unit)}\n'
    )


def _calls(steps: Iterable[_Step]) -> str:
    lines = (
        f"  {_quoted(str(step.call))},{f'  # {step.comment}' if step.comment else ''}\n"
        for step in steps
    )
    return f"calls = [\n{''.join(lines)}]\n"


def _key(name: str) -> str:
    return name if re.fullmatch(r"[\w-]+", name, re.ASCII) else _quoted(name)


def _quoted(text: str) -> str:
    return '"' + re.sub(r'["\\]|[\x00-\x1f\x7f]', _escaped, text) + '"'


def _escaped(match: re.Match[str]) -> str:
    return f"\\u{ord(match[0]):04x}"
