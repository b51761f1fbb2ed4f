# SPDX-License-Identifier: MIT
"""Cuts the stream into the program to load and the one to measure, and writes the workload."""

from __future__ import annotations

import itertools
import platform
import re
import shlex
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from emu.errors import InputError
from emu.files import as_utf8
from emu.record.build import MMAP_BASE, Builder, Step
from emu.record.verify import Mark
from emu.workload import Call

Each = Literal["exec", "fork", "run"]
"""What repeats: what the command does from one exec, or fork, to the next, or all of it."""
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
class _Program:
    name: str
    steps: tuple[Step, ...]
    start: int
    """Where in the stream the first step is; -1 if it is one before the stream."""


def cut(stream: Sequence[Step], each: Each) -> tuple[_Program, _Program]:
    """The program to load and the one to measure; they may be one."""
    if each == "run":
        # The process that forks the command looks like the command at its end.
        load = _Program("load", tuple(stream[:-1]), 0)
        return load, _Program("iteration", (Step(Call("fork")), *stream), -1)
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


def points_of(marks: Sequence[Mark], programs: tuple[_Program, _Program]) -> Iterator[Point]:
    """Where in the programs the marks are."""
    load, loop = programs
    for mark in marks:
        for program in (loop, load):
            calls = mark.index - program.start
            if 0 <= calls <= len(program.steps):
                yield Point(mark.image, program.name, calls, mark.maps)
                break


def header_of(command: Sequence[str], name: str, each: Each, remark: str, builder: Builder) -> str:
    """How the recording was made."""
    words = [Path(word).name if word.startswith("/") else word for word in command]
    if builder.anonymise:
        words = ["COMMAND"]
    lines = [
        f"Recorded by `emu record --name {name} --each {each} "
        f"{'--anonymise ' if builder.anonymise else ''}-o {name}.toml -- "
        f"{as_utf8(shlex.join(words))}`",
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


def workload_text(
    name: str,
    description: str,
    header: str,
    builder: Builder,
    programs: tuple[_Program, _Program],
) -> str:
    """The workload's file."""
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
        fork_exit = _calls([Step(Call("fork")), Step(Call("exit"))])
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


def _calls(steps: Iterable[Step]) -> str:
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
