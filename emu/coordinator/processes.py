# SPDX-License-Identifier: MIT
"""Processes that do one thing: a child with a result, a program apart, one for each CPU.

All end with what started them, whatever happens there or in them.
"""

from __future__ import annotations

import contextlib
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, NoReturn, Self, TypeVar

import multiprocess
import multiprocess.connection
from multiprocess.reduction import ForkingPickler

from emu import _core
from emu.coordinator.stop import CellFailed, StopFlag
from emu.errors import EmuError, InputError
from emu.workers import cpu as worker

_WATCH_S = 0.1
"""How often ``run_apart`` asks whether it is wanted."""

_WORDS_BYTES = 1 << 20
"""Of what a process wrote on stderr, at most; its last line is what counts."""
_LENGTH = struct.Struct("=Q")
"""Of an answer, in bytes."""
OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)
"""Sent by somebody else: no code under test does."""
FORK = multiprocess.get_context("fork")
_T = TypeVar("_T")


class ChildDied(CellFailed):
    """A process that should have had a result has died, was stopped, or hangs."""


class Child(Generic[_T]):
    """``work(*arguments)`` in a process of its own; a context manager that ends it.

    A fork of this one; nothing that it loads or maps stays here. No machine is loaded in it, but
    with ``keeps_core`` the one of this process, with the arena as it is: to look at what CPUs under
    test have left there, which may lead anywhere. When the process dies it is called ``what``.
    ``talks``: ``work`` gets one more argument, a function that sends what it is given; ``result``
    then gives these first.
    """

    def __init__(
        self,
        work: Callable[..., _T],
        *arguments: Any,
        what: str = "the virtual machine",
        talks: bool = False,
        keeps_core: bool = False,
    ) -> None:
        self._what = what
        try:
            # What it writes on stderr; memory, so that nothing is left however we end.
            self._words = os.memfd_create("emu-words")
        except OSError as error:
            raise no_process(error) from None
        try:
            # Answers, each its length and then so many bytes. We read what there is and never wait
            # for the rest: a process may be stopped in the middle of an answer.
            self._pipe, theirs = os.pipe()
        except OSError as error:
            os.close(self._words)
            raise no_process(error) from None
        self._read = bytearray()
        self._ended = False
        words = f"/proc/{os.getpid()}/fd/{self._words}"
        self._process = FORK.Process(
            target=_child,
            args=(work, arguments, talks, keeps_core, theirs, words, os.getpid()),
            daemon=True,
        )
        try:
            start(self._process)
        except BaseException:
            self._close_files()
            raise
        finally:
            os.close(theirs)

    def fileno(self) -> int:
        """Can be waited for (``multiprocess.connection.wait``): ask whether it is ``ready``."""
        return self._pipe

    def ready(self, wait_s: float = 0) -> bool:
        """Will ``result`` answer at once? Waits for at most ``wait_s``.

        Raises ChildDied when somebody has stopped the process.
        """
        while not self._ended and self._answer_bytes() is None:
            if not multiprocess.connection.wait([self], wait_s):
                if name := _stopped_by(self._process.pid):
                    raise ChildDied(f"{self._what} was stopped by {name}", outside=True)
                return False
            some = os.read(self._pipe, 1 << 20)
            self._read += some
            self._ended = not some
        return True

    def result(self) -> _T:
        """What the work returned; waits for it.

        Raises what it raised if that is an EmuError, ChildDied when the process died.
        """
        while not self.ready(_WATCH_S):
            pass
        size = self._answer_bytes()
        if size is None:  # it died before its answer, or in the middle of it
            self._process.join()
            status = self._process.exitcode
            words = os.pread(self._words, _WORDS_BYTES, 0).decode(errors="replace")
            last = words.strip().splitlines()[-1:]
            how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
            reason = last[0].removeprefix("emu: ") if last else how
            outside = -status in OUTSIDE
            raise ChildDied(f"{self._what} died: {reason}", outside=outside) from None
        answer = ForkingPickler.loads(self._read[_LENGTH.size : _LENGTH.size + size])
        del self._read[: _LENGTH.size + size]
        if isinstance(answer, EmuError):
            raise answer
        result: _T = answer
        return result

    def _answer_bytes(self) -> int | None:
        """The length of the first answer, once all of it has been read."""
        if len(self._read) < _LENGTH.size:
            return None
        (size,) = _LENGTH.unpack_from(self._read)
        return size if len(self._read) >= _LENGTH.size + size else None

    def close(self) -> None:
        """End the process, whatever it is at."""
        self._process.kill()
        self._process.join()
        self._process.close()
        self._close_files()

    def _close_files(self) -> None:
        os.close(self._pipe)
        os.close(self._words)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def in_child(
    work: Callable[..., _T],
    *arguments: Any,
    stop: StopFlag,
    what: str = "the virtual machine",
    limit_s: float = float("inf"),
    keeps_core: bool = False,
) -> _T:
    """What ``work(*arguments)`` returns, from a process of its own; ``keeps_core``: see ``Child``.

    Raises as ``Child.result``, ChildDied when it takes longer than ``limit_s``, Interrupted.
    """
    give_up = time.monotonic() + limit_s
    with Child(work, *arguments, what=what, keeps_core=keeps_core) as child:
        while not child.ready(0.05):
            stop.check()
            if time.monotonic() > give_up:
                raise ChildDied(f"{what} hangs: no result after {limit_s:.0f} s")
        return child.result()


def first_ready(children: Sequence[Child[Any]], wait_s: float) -> None:
    """Wait until one of them has a result, for at most ``wait_s``."""
    multiprocess.connection.wait(children, wait_s)


def _stopped_by(pid: int) -> str | None:
    """The signal that has stopped a child of ours."""
    info = None
    with contextlib.suppress(ChildProcessError):  # dead, and joined
        info = os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT)
    return signal.Signals(info.si_status).name if info is not None else None


def run_apart(module: str, said: bytes, is_unwanted: Callable[[], bool]) -> bytes:
    """What ``python -m module PID`` answers to what is said to it; PID is this process.

    A process that shares nothing with this one, whatever threads there are here; the module sees to
    it that it does not outlive us. It is ended once ``is_unwanted``, which is asked now and then.

    Raises CellFailed when it dies.
    """
    command = [sys.executable, "-m", module, str(os.getpid())]
    to_say: bytes | None = said
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            while True:
                try:
                    answer, _ = process.communicate(to_say, timeout=_WATCH_S)
                    break
                except subprocess.TimeoutExpired:
                    to_say = None  # it is on its way
                    if is_unwanted():
                        raise CellFailed("nobody wants it any more", outside=True) from None
                    if name := _stopped_by(process.pid):
                        words = f"the process of the cell was stopped by {name}"
                        raise CellFailed(words, outside=True) from None
        finally:
            process.kill()
    if process.returncode or not answer:
        outside = process.returncode in (-signal.SIGKILL, -signal.SIGTERM)
        status = process.returncode
        raise CellFailed(f"the process of the cell died: exit status {status}", outside=outside)
    return answer


def _child(
    work: Callable[..., Any],
    arguments: tuple[Any, ...],
    talks: bool,
    keeps_core: bool,
    pipe: int,
    stderr: str,
    parent_pid: int,
) -> None:
    worker.be_a_child(parent_pid)
    with Path(stderr).open("ab", buffering=0) as file:
        os.dup2(file.fileno(), 2)
    if not keeps_core:
        _core.unload()

    def send(answer: Any) -> None:
        data = bytes(ForkingPickler.dumps(answer))
        with os.fdopen(pipe, "wb", closefd=False) as file:
            file.write(_LENGTH.pack(len(data)) + data)

    try:
        send(work(*arguments, send) if talks else work(*arguments))
    except _core.CoreError as error:
        send(CellFailed(str(error)))
    except EmuError as error:
        send(error)


def start(process: Any) -> None:
    """Start a process of multiprocess. Raises InputError where the system has no room for it."""
    try:
        process.start()
    except OSError as error:
        raise no_process(error) from None


def no_process(error: OSError) -> InputError:
    """What to say of a process or thread that cannot be started."""
    return InputError(
        f"no process can be started ({error.strerror}); fewer --cpus, more memory or higher limits "
        "on processes (ulimit -u) and open files (ulimit -n) would help"
    )


def on_cpus(
    core: _core.Core,
    cpus: int,
    work: Callable[[], None],
    *,
    progress: Callable[[], object],
    doing: Callable[[int], str | None],
    hang_s: float,
) -> None:
    """Run ``work`` on every CPU of a native machine, in a process each; returns when all are done.

    ``progress`` changes as long as any CPU does something; ``doing`` says what a CPU is in, None:
    it waits for others. The arena is mapped shared. Ends all processes, whatever happens.

    Raises CellFailed for a CPU that gives up or dies, or when none does anything for ``hang_s``.
    """
    parent_pid = os.getpid()
    pids: dict[int, int] = {}
    try:
        for cpu in range(cpus):
            pid = os.fork()
            if not pid:
                _be_cpu(core, cpu, work, parent_pid)
            pids[pid] = cpu
        seen: object = None
        since = time.monotonic()
        while pids:
            # Only those: who uses mm-emu as a library may have children of their own.
            for pid, cpu in list(pids.items()):
                info: Any = os.waitid(os.P_PID, pid, os.WEXITED | os.WSTOPPED | os.WNOHANG)
                if info is None:
                    continue
                if info.si_code == os.CLD_STOPPED:
                    name = signal.Signals(info.si_status).name
                    raise CellFailed(f"CPU {cpu} was stopped by {name}", outside=True)
                del pids[pid]
                if info.si_status:  # a signal, or what it exited with
                    outside = info.si_code != os.CLD_EXITED and info.si_status in OUTSIDE
                    raise CellFailed(_how_it_ended(core, cpu, info, doing(cpu)), outside=outside)
            time.sleep(0.001)
            now, reached = time.monotonic(), progress()
            if reached != seen:
                seen, since = reached, now
            elif now - since > hang_s:
                inside = [(cpu, doing(cpu)) for cpu in sorted(pids.values()) if doing(cpu)]
                words = [f"CPU {cpu} hangs in {hook}" for cpu, hook in inside] or ["no CPU goes on"]
                raise CellFailed(f"{'; '.join(words[:3])}: nothing for {hang_s:.0f} s")
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        for pid in pids:
            os.waitpid(pid, 0)


def _be_cpu(core: _core.Core, cpu: int, work: Callable[[], None], parent_pid: int) -> NoReturn:
    status = 1
    try:
        worker.be_a_child(parent_pid)
        core.cpu_attach(cpu)
        work()
        status = 0
    finally:
        os._exit(status)


def _how_it_ended(core: _core.Core, cpu: int, info: Any, hook: str | None) -> str:
    """``info``: as waitid(2) has it."""
    words: str = core.cpu_state(cpu).contents.failure.decode(errors="replace")
    if words:
        return words
    end = (
        f"ended with exit status {info.si_status}"
        if info.si_code == os.CLD_EXITED
        else f"was killed by {signal.Signals(info.si_status).name}"
    )
    return f"CPU {cpu} {end}{f' in {hook}' if hook else ''}"
