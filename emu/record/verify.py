# SPDX-License-Identifier: MIT
"""Carries a stream of calls out on the model, and compares it with the real processes."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from emu.errors import EmuError
from emu.record.build import Builder, Step
from emu.record.mm import MapsLine, Mm
from emu.record.strace import Stops
from emu.workload import page_up


@dataclass(frozen=True)
class Mark:
    """The maps of a real process before the step `index` of the stream, shown to be right."""

    index: int
    image: str
    maps: tuple[str, ...]


def verify(stream: list[Step], builder: Builder, stops: Stops) -> list[Mark]:
    """Carry the stream out and compare it with the real results and maps.

    A call without an address to which the kernel gave another place than the highest that is free
    (large files and huge pages are aligned) gets that place as a hint.

    Two anonymous mappings that have pages already before they become neighbours stay two in the
    kernel (anon_vma). Page faults are in no trace, so such borders are only counted.
    """
    marks: list[Mark] = []
    seen: set[tuple[int, str]] = set()
    parents: list[tuple[Mm, str]] = []
    mm, path = Mm(0), ""
    for index, step in enumerate(stream):
        key = step.pid, path
        if step.held and key in stops and key not in seen:
            seen.add(key)
            real = _real_maps(stops[key], builder)
            model = mm.maps()
            if model == real:
                marks.append(Mark(index, builder.names[path], tuple(real)))
            else:
                who = f"process {step.pid}, which runs {path}"
                _compare(_joined(model), _joined(real), who)
                builder.borders += len(real) - len(model)
        match step.call.op:
            case "fork":
                parents.append((mm, path))
                mm = mm.fork()
            case "exit":
                mm, path = parents.pop() if parents else (Mm(0), "")
            case "exec":
                mm, path = Mm(step.call.addr), builder.image_paths[step.call.name]
                for each in builder.images[step.call.name]:
                    _run(mm, each)
            case _:
                _run(mm, step)
    return marks


def _run(mm: Mm, step: Step) -> None:
    call = step.call
    highest = call.op == "mmap" and not call.addr
    if highest and call.expect and mm.free_area(page_up(call.length)) != call.expect:
        call = step.call = replace(call, addr=call.expect)
        step.comment = "the kernel's choice"
    result = mm.run(call)
    if call.expect is not None and result != call.expect:
        raise EmuError(f"the recording is not complete: {call} would return {result:#x}")


def _real_maps(maps: Sequence[str], builder: Builder) -> list[str]:
    """As Point.maps."""
    lines = (MapsLine.parse(text) for text in maps)
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
