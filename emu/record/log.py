# SPDX-License-Identifier: MIT
"""Reads strace's log: what each process did, its threads put together."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from emu.errors import EmuError, InputError
from emu.record.strace import EXITS, FORKS


@dataclass
class Event:
    """Something that a process did."""

    call: str
    arguments: str
    result: str
    order: int = 0
    """Among the events of a process's threads: the line of the log where the call took effect."""


def parse_log(lines: Sequence[str]) -> dict[int, list[Event]]:
    """{pid: its events}, the command's process first."""
    events: dict[int, list[Event]] = {}
    unfinished: dict[int, tuple[int, str]] = {}
    for number, line in enumerate(lines):
        match = re.fullmatch(r"(\d{1,10})\s+(.*)", line, re.ASCII)
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
        if text.startswith("+++") and (not own or own[-1].call not in EXITS):
            own.append(Event("exit", "", "?", number))  # killed
        call = re.fullmatch(r"(\w+)\((.*)\)\s+= (\?|-?\w+)(.*)", text)
        if call:
            # What munmap frees may be another thread's before munmap is seen to return; what mmap
            # takes is nobody else's before it does.
            order = begun if call[1] == "munmap" else number
            own.append(Event(call[1], call[2], call[3], order))
    return events


def started(event: Event) -> int | None:
    """The process or thread that a call has started; None: it was none of FORKS, or failed.

    Raises EmuError for a number that none can have.
    """
    if event.call not in FORKS or event.result == "?" or event.result.startswith("-1"):
        return None
    if not re.fullmatch(r"[1-9]\d{0,9}", event.result, re.ASCII):
        raise EmuError(f"in strace's log {event.call} returns {event.result}, which is no process")
    return int(event.result)


def _is_thread(event: Event) -> bool:
    return event.call in FORKS and "CLONE_THREAD" in event.arguments


def join_threads(events: Mapping[int, list[Event]]) -> tuple[dict[int, list[Event]], int]:
    """{pid: the events of all its threads}, and how many threads were started."""
    leader_of: dict[int, int] = {}
    for pid, own in events.items():  # a thread's line comes after that of whoever started it
        for event in own:
            if _is_thread(event) and (thread := started(event)):
                leader_of[thread] = leader_of.get(pid, pid)
    # A thread may have been seen before its own starter was told to be one.
    for thread in leader_of:
        passed = {thread}
        while (leader := leader_of[thread]) in leader_of:
            if leader in passed:
                raise EmuError(f"in strace's log thread {leader} has started itself")
            passed.add(leader)
            leader_of[thread] = leader_of[leader]
    joined: dict[int, list[Event]] = {pid: [] for pid in events if pid not in leader_of}
    for pid, own in events.items():
        joined[leader_of.get(pid, pid)] += [
            event
            for event in own
            if not _is_thread(event) and not (pid in leader_of and event.call == "exit")
        ]
    for own in joined.values():
        own.sort(key=lambda event: event.order)
    return joined, len(leader_of)


MMAP = re.compile(
    r"(\w+, (\d{1,19}), .*, )(?:-1|\d+<(.*)>(?:\(deleted\))?)(, (0x[0-9a-f]{1,16}|0))", re.ASCII
)
"""The arguments of mmap: all before the file, length, file, all after it, offset."""


def mapped_file(arguments: str) -> str | None:
    """The file of an mmap, None if it maps none."""
    match = MMAP.fullmatch(arguments)
    return match[3] if match and "MAP_ANONYMOUS" not in arguments else None


def extents(events: Mapping[int, Sequence[Event]]) -> dict[str, int]:
    """{file: where the furthest mapping of it ends, in bytes}"""
    found: dict[str, int] = {}
    for own in events.values():
        for event in own:
            match = MMAP.fullmatch(event.arguments) if event.call == "mmap" else None
            if match and match[3] is not None and not event.result.startswith("-1"):
                found[match[3]] = max(found.get(match[3], 0), int(match[5], 0) + int(match[2]))
    return found
