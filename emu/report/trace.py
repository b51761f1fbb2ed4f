# SPDX-License-Identifier: MIT
"""A window of a cell's time as a trace that ui.perfetto.dev and chrome://tracing open.

One track a CPU (tid), CPUs of a node in one group (pid). Slices are system calls, waits for locks
with the spinning and sleeping in them, and holds. Times are counted from the start of the phase.
"""

from __future__ import annotations

import heapq
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from emu.errors import InputError
from emu.files import check_output, write_output

DEFAULT_WINDOW = "0us+1ms"
_UNITS_NS = {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9}
_TIME = r"(\d{1,18}(?:\.\d{1,18})?)(ns|us|ms|s)"
_WINDOW = re.compile(rf"{_TIME}\+{_TIME}")


@dataclass(frozen=True)
class Window:
    """What to trace, and where to. Times are ns from the start of the measured phase."""

    file: Path
    first_ns: int
    length_ns: int


@dataclass(frozen=True)
class Slice:
    """Something that a CPU did from start to end (ns)."""

    task: int
    start_ns: int
    end_ns: int
    kind: str
    """A name of ``_core.SLICE_KINDS``."""
    name: str
    args: dict[str, str]


@dataclass
class Trace:
    """The slices of a window, in the order in which they ended."""

    slices: list[Slice] = field(default_factory=list)
    full_ns: int | None = None
    """When the room for slices was used up; None: it was enough."""


def make_window(file: str | Path, window: str | None) -> Window:
    """Where to write the trace and, from "2ms+500us", what of: from 2 ms on, 500 us long.

    Raises InputError when the file cannot be written or the window is none.
    """
    path = Path(file)
    check_output("--trace", path)
    text = DEFAULT_WINDOW if window is None else window
    match = _WINDOW.fullmatch(text.replace(" ", ""))
    if not match:
        raise InputError(
            f'--trace-window {text}: start and length with their units, as "2ms+500us"'
        )
    first, length = (round(float(match[n]) * _UNITS_NS[match[n + 1]]) for n in (1, 3))
    if not 0 < length <= 10**12 or first > 10**12:
        raise InputError(f"--trace-window {text}: from 1ns to 1000s long, and at most 1000s in")
    return Window(path, first, length)


def write(trace: Trace, node_of_cpu: list[int], title: str, window: Window) -> None:
    """Write the trace of a window. Raises InputError, EmuError when that cannot be done."""
    other = {"cell": title, "clock": "ns of virtual time since the start of the phase"}
    if trace.full_ns is not None:
        other["incomplete"] = f"the room for slices ended at {trace.full_ns} ns"
    document = {
        "traceEvents": [
            *_names(node_of_cpu),
            *_window(window, trace.slices, max(node_of_cpu) + 1),
            *_events(trace.slices, node_of_cpu),
        ],
        "displayTimeUnit": "ns",
        "otherData": other,
    }
    write_output(window.file, msgspec.json.encode(document))


def _names(node_of_cpu: list[int]) -> Iterator[dict[str, Any]]:
    for node in sorted(set(node_of_cpu)):
        yield meta("process_name", node, None, {"name": f"node {node}"})
        yield meta("process_sort_index", node, None, {"sort_index": node})
    for cpu, node in enumerate(node_of_cpu):
        yield meta("thread_name", node, cpu, {"name": f"CPU {cpu}"})
        yield meta("thread_sort_index", node, cpu, {"sort_index": cpu})


def _window(window: Window, slices: Iterable[Slice], group: int) -> Iterator[dict[str, Any]]:
    """A track that shows where the window ends, if slices that begin in it reach beyond that."""
    first_ns, end_ns = window.first_ns, window.first_ns + window.length_ns
    if all(each.end_ns <= end_ns for each in slices):
        return
    yield meta("process_name", group, None, {"name": "window"})
    name = "what begins after this is not in the trace"
    yield _complete(Slice(0, first_ns, end_ns, "window", name, {}), first_ns, end_ns, group)


def meta(name: str, pid: int, tid: int | None, args: dict[str, Any]) -> dict[str, Any]:
    """What names a process, or a thread of it."""
    event = {"ph": "M", "name": name, "pid": pid, "args": args}
    return event if tid is None else event | {"tid": tid}


def _events(slices: Iterable[Slice], node_of_cpu: list[int]) -> Iterator[dict[str, Any]]:
    tracks: dict[int, list[Slice]] = defaultdict(list)
    for each in slices:
        tracks[each.task].append(each)
    for cpu, track in sorted(tracks.items()):
        for each, start_ns, end_ns in nested(track):
            yield _complete(each, start_ns, end_ns, node_of_cpu[cpu])


def _complete(drawn: Slice, start_ns: int, end_ns: int, group: int) -> dict[str, Any]:
    """Of a slice, or of a part of one, on the track of its task."""
    return {
        "ph": "X",
        "name": drawn.name,
        "cat": drawn.kind,
        "ts": start_ns / 1000,
        "dur": (end_ns - start_ns) / 1000,
        "pid": group,
        "tid": drawn.task,
        "args": drawn.args,
    }


def nested(track: list[Slice]) -> Iterator[tuple[Slice, int, int]]:
    """Slices of one CPU with the times to draw, so that they nest: outer ones come first.

    A lock that is released before one that was taken later has the later one's slice cut in two.
    """
    # What ended last, when all else is equal, is outside.
    waiting = [(each.start_ns, -each.end_ns, -number, number) for number, each in enumerate(track)]
    heapq.heapify(waiting)
    open_until: list[int] = []
    while waiting:
        start_ns, minus_end_ns, order, number = heapq.heappop(waiting)
        end_ns = -minus_end_ns
        while open_until and open_until[-1] <= start_ns:
            open_until.pop()
        if open_until and open_until[-1] < end_ns:
            heapq.heappush(waiting, (open_until[-1], minus_end_ns, order, number))
            end_ns = open_until[-1]
        open_until.append(end_ns)
        yield track[number], start_ns, end_ns
