# SPDX-License-Identifier: MIT
"""Makes one stream of calls of what all processes did, and collects files and images."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from emu.errors import EmuError, InputError
from emu.record.elf import Elf, read_elf
from emu.record.log import MMAP, Event, mapped_file, started
from emu.record.mm import MapsLine
from emu.record.strace import EXITS, FORKS, UNSUPPORTED, Stops, maps_of, trace
from emu.workload import (
    MAP_ANONYMOUS,
    MAP_BRK,
    MAP_FIXED,
    MAP_FIXED_NOREPLACE,
    MAP_GROWSDOWN,
    MAP_PRIVATE,
    MAP_SPECIAL,
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

MMAP_BASE = TASK_SIZE - (128 << 20)
"""Where the kernel's mmap area ends without randomization, with a stack limit of 8 MiB."""


@dataclass
class Step:
    """A call in the one stream of all processes."""

    call: Call
    pid: int = 0
    comment: str = ""
    held: bool = False
    """The process was held before it, so that its maps may be known."""


class Builder:
    """Makes calls of events; collects files and images."""

    def __init__(
        self,
        cwd: Path,
        env: Mapping[str, str] | None,
        stops: Stops,
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
        self.images: dict[str, list[Step]] = {}
        self.image_paths: dict[str, str] = {}
        """Path of the executable, by name of the image."""
        self.begun: set[int] = set()
        """Processes."""
        self.vforks = 0
        self.borders = 0
        """Between neighbouring anonymous mappings, in the real maps alone."""

    def linearize(self, events: Mapping[int, Sequence[Event]]) -> list[Step]:
        """All processes' calls in one sequence."""
        stream = [step for pid in list(events)[:1] for step in self.process(pid, events)]
        if not stream or stream[0].call.op != "exec":
            raise EmuError("strace's log does not begin with an execve")
        return stream

    def process(self, pid: int, events: Mapping[int, Sequence[Event]]) -> Iterator[Step]:
        """What a process and its children do until it ends."""
        self.begun.add(pid)
        held = False
        for event in events[pid]:
            held |= event.call == "execve" or event.call in EXITS
            child = started(event)
            if event.result.startswith("-1") or (event.call in FORKS and not child):
                continue
            if event.call in EXITS:
                yield Step(Call("exit"), pid, held=True)
                return
            if event.call in UNSUPPORTED:
                raise InputError(f"the command calls {event.call}, which no workload can have yet")
            yield Step(self.call(event), pid, held=held)
            held = False
            if child:
                if child not in events or child in self.begun:
                    raise EmuError(f"process {child} is not in strace's log, or begins twice there")
                yield from self.process(child, events)
        raise EmuError(f"strace's log does not show the end of process {pid}")

    def call(self, event: Event) -> Call:
        """What the event is in a program."""
        if event.call == "execve":
            return Call("exec", addr=MMAP_BASE, name=self.image(event))
        if event.call in FORKS:
            self.check_fork(event)
            return Call("fork")
        return self.mm_call(event)

    def check_fork(self, event: Event) -> None:
        """Raises InputError where the child shares memory and is no thread."""
        flags = set(re.findall(r"CLONE_\w+", event.arguments))
        if "CLONE_VM" in flags and "CLONE_VFORK" not in flags:
            raise InputError("the command shares its memory with a process that is no thread of it")
        if event.call == "vfork" or "CLONE_VFORK" in flags:
            self.vforks += 1

    def mm_call(self, event: Event) -> Call:
        """Likewise, of a call about mappings."""
        arguments, result = event.arguments, event.result
        if event.call == "mmap":
            match = MMAP.fullmatch(arguments)
            if not match:
                raise EmuError(f"mmap({arguments}) cannot be read")
            path = mapped_file(arguments)
            name = "-1" if path is None else self.file(path)
            arguments = f"{match[1]}{name}{match[4]}"
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
        """A name that no other file has; ``size`` is in bytes."""
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

    def image(self, event: Event) -> str:
        """The name of what an execve runs, whose calls are worked out the first time."""
        match = re.match(r'"((?:[^"\\]|\\.)*)"', event.arguments)
        path = _executable(self.cwd, match[1] if match else "")
        name = self.file(path)
        if name not in self.images:
            maps = maps_of(path, self.stops) or _maps_of_listing(path, self.cwd, self.env)
            if maps is None:
                raise EmuError(f"no process could be held while it ran {path}; try again")
            self.image_paths[name] = path
            self.images[name] = list(_image_steps(path, maps, self))
        return name


def _maps_of_listing(path: str, cwd: Path, env: Mapping[str, str] | None) -> list[str] | None:
    """The maps of a process whose loader lists the program's libraries and does not run it; None
    where it has no loader."""
    if read_elf(path).interpreter is None:
        return None
    _, stops = trace([path], cwd, env, only_list=True)
    return maps_of(path, stops)


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


def _image_steps(path: str, maps: Sequence[str], builder: Builder) -> Iterator[Step]:
    """The calls that stand for an execve of `path`, in the kernel's order."""
    lines = [MapsLine.parse(line) for line in maps]

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
) -> Step:
    addr = start if flags & (MAP_FIXED | MAP_FIXED_NOREPLACE) else 0
    return Step(Call("mmap", addr, end - start, prot, flags, name, offset, start), 0, comment)


def _elf_steps(elf: Elf, start: int, first: int, name: str, what: str) -> Iterator[Step]:
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
                yield Step(Call("munmap", end, room_end - end), 0)
        zero_start, zero_end = end, page_up(address + segment.memsz)
        if segment.memsz > segment.filesz and zero_end > zero_start:
            prot = PROT["PROT_READ"] | PROT["PROT_WRITE"] | segment.prot & PROT["PROT_EXEC"]
            flags = MAP_PRIVATE | MAP_FIXED | MAP_ANONYMOUS
            yield _mapping(zero_start, zero_end, prot, flags, "", 0, "bss")


def _stacks_are_apart() -> bool:
    """Does this kernel keep mappings with MAP_STACK from huge pages, and so from merging?"""
    release = [int(part) for part in re.findall(r"\d+", platform.release())[:2]]
    return release >= [6, 7]
