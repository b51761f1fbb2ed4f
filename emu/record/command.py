# SPDX-License-Identifier: MIT
"""From a command to a recording."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from emu.record.build import Builder
from emu.record.log import extents, join_threads, parse_log
from emu.record.strace import check_command, check_host, trace
from emu.record.verify import verify
from emu.record.write import Each, Point, cut, header_of, points_of, workload_text


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
    check_host()
    check_command(command, cwd, env)
    log, stops = trace(command, cwd, env)
    events, threads = join_threads(parse_log(log))
    builder = Builder(Path(cwd or "."), env, stops, anonymise, threads, extents(events))
    stream = builder.linearize(events)
    marks = verify(stream, builder, stops)
    programs = cut(stream, each)
    header = header_of(command, name, each, remark, builder)
    return Recording(
        workload_text(name, description, header, builder, programs),
        tuple(points_of(marks, programs)),
    )
