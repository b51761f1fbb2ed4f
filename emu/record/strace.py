# SPDX-License-Identifier: MIT
"""Runs the command under strace, and looks at its processes where strace holds them."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import resource
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from emu.coordinator import StopFlag
from emu.errors import InputError

_STACK_LIMIT = 8 << 20
_HOLD_S = 0.1
_LIST_HOLD_S = 60.0
"""What only lists its libraries is held until it has been looked at, however busy this host is."""
_POLL_S = 0.005
_GRACE_S = 1.0
"""What a command that is to end may take for that."""
_MM_CALLS = ("mmap", "munmap", "mprotect", "brk")
UNSUPPORTED = ("mremap", "pkey_mprotect", "remap_file_pages", "shmat", "shmdt", "execveat")
FORKS = ("clone", "clone3", "fork", "vfork")
EXITS = ("exit", "exit_group")
_TRACED = (*_MM_CALLS, *UNSUPPORTED, "execve", *FORKS, *EXITS)
_HELD = ("execve", *EXITS)


def check_host() -> None:
    """Raises InputError where nothing can be recorded."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        raise InputError(
            f"recording needs Linux on x86-64, this is {platform.system()} on {platform.machine()}"
        )
    for tool, package in (("strace", "strace"), ("setarch", "util-linux")):
        if not shutil.which(tool):
            raise InputError(
                f"recording needs {tool}, which is not installed: apt-get install {package}"
            )


def check_command(command: Sequence[str], cwd: Path | None, env: Mapping[str, str] | None) -> None:
    """Raises InputError for what is no executable."""
    if not command:
        raise InputError("there is no command to record; give one after --")
    program = command[0]
    if "/" in program:
        program = str(Path(cwd or ".", program).absolute())
    if not shutil.which(program, path=(os.environ if env is None else env).get("PATH")):
        name = shlex.quote(command[0])
        raise InputError(f"{name} is no executable; give the command to record after --")


Stops = dict[tuple[int, str], list[str]]
"""{(pid, executable): lines of /proc/PID/maps at its first exec or exit}"""


def trace(
    command: Sequence[str],
    cwd: Path | None,
    env: Mapping[str, str] | None,
    *,
    only_list: bool = False,
) -> tuple[list[str], Stops]:
    """The lines of strace's log, and the maps of the processes that it held.

    only_list: the command is the path of an executable, whose loader lists its libraries, into
    nothing, and is killed when it has done so and was looked at.
    """
    with tempfile.TemporaryDirectory(prefix="emu_record_") as folder:
        log = Path(folder, "log")
        traced = ",".join(f"?{call}" for call in _TRACED)
        held = ",".join(f"?{call}" for call in (EXITS if only_list else _HELD))
        hold_s = _LIST_HOLD_S if only_list else _HOLD_S
        arguments = [
            *("setarch", "-R", "strace", "-f", "-I", "2", "-y", "-s", "4096", "-o", str(log)),
            *("-e", f"trace={traced}"),
            *("-e", f"inject={held}:delay_enter={round(hold_s * 1e6)}"),
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
        stops: Stops = {}
        with StopFlag() as stop:
            try:
                while tracer.poll() is None and not (only_list and maps_of(command[0], stops)):
                    stop.check()
                    _look_at_held(tracer.pid, stops)
                    time.sleep(_POLL_S)
            finally:
                _end(tracer, at_once=only_list)
            stop.check()  # what a signal has cut off is no recording
        lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    if not any(re.match(r"\d+\s+execve\(.*\)\s+= 0\b", line) for line in lines):
        raise InputError(
            f"{shlex.join(command)} did not start under `setarch -R strace -f` "
            f"(exit status {tracer.returncode})"
        )
    return lines, stops


def _end(tracer: subprocess.Popen[bytes], *, at_once: bool) -> None:
    """End what is traced, and so the tracer. That one, told to end, may wait for what it holds;
    at_once: it is killed, too."""
    number = signal.SIGKILL if at_once else signal.SIGTERM
    while tracer.poll() is None:
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):  # it is gone
                if entry.name.isdigit() and _is_traced((entry / "status").read_text(), tracer.pid):
                    os.kill(int(entry.name), number)
        if at_once:
            tracer.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            tracer.wait(_GRACE_S)
        number = signal.SIGKILL


def maps_of(executable: str, stops: Stops) -> list[str] | None:
    """The maps of a process that was held while it ran the executable."""
    return next((maps for (_, exe), maps in stops.items() if exe == executable), None)


def _is_traced(status: str, tracer: int) -> bool:
    return f"\nTracerPid:\t{tracer}\n" in status


def _look_at_held(tracer: int, stops: Stops) -> None:
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
    if not _is_traced(status, tracer) or "\nState:\tt" not in status:
        return None
    executable = (entry / "exe").readlink().as_posix()
    number, *arguments = (entry / "syscall").read_text().split()
    # After a successful execve the number stays, but the registers are cleared.
    at_entry = number in ("60", "231") or (number == "59" and int(arguments[0], 16))
    return (int(entry.name), executable) if at_entry else None
