# SPDX-License-Identifier: MIT
"""The workers of a native cell: forked, taken through phases, watched, ended.

ZeroMQ (ROUTER here, DEALER in the workers) carries orders between phases. The start line of a phase
is a futex in the arena, and nothing is sent while CPUs run.

Fork rules: when workers are forked there is no thread and no ZeroMQ context in this process. The
context is made after the forks and is gone before the next cell's.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import resource
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import Any, Self

import msgspec
import zmq

from emu import _core
from emu.coordinator.plan import Plan
from emu.coordinator.processes import FORK, OUTSIDE, no_process, start
from emu.coordinator.stop import HANG_S, CellFailed, StopFlag
from emu.errors import EmuError, InputError
from emu.words import counted
from emu.workers import cpu as worker

_WATCH_S = 0.1
"""How often dead and stopped workers are looked for."""
_ZMQ_THREADS = 3
"""What a context makes, and one to spare."""


class Workers:
    """The workers of a cell. Leaving the context ends them all, whatever state they are in."""

    def __init__(self, plan: Plan, core: _core.Core, directory: Path, stop: StopFlag) -> None:
        self._plan, self._core, self._stop = plan, core, stop
        self._stderr_path = directory / "stderr"
        self._address = f"ipc://{directory}/coordinator"
        self._processes: list[Any] = []
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._router: zmq.Socket[bytes]
        self._decoder = msgspec.msgpack.Decoder(worker.FromWorker)
        self._waiting_for: set[int] = set()
        self._looked_s = 0.0
        self._phase = "start"

    @property
    def pids(self) -> list[int]:
        """Process numbers, by CPU."""
        return [process.pid for process in self._processes]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()
            process.close()
        if self._context:
            self._context.destroy(linger=0)

    def start(self) -> float:
        """Fork them all and wait until they are ready; the seconds it took."""
        began = time.monotonic()
        cpus = len(self._plan.node_of_cpu)
        _allow_files(3 * cpus + 256)
        # What is there now is not looked at by the workers' garbage collector, so that its pages
        # stay shared.
        gc.collect()
        gc.freeze()
        reader, writer = os.pipe()
        try:
            for cpu in range(cpus):
                plan = worker.WorkerPlan(
                    cpu=cpu,
                    host_cpu=self._plan.host_cpu_of_cpu[cpu],
                    address=self._address,
                    stderr_path=self._stderr_path,
                    parent_pid=os.getpid(),
                    bound=(reader, writer),
                )
                process = FORK.Process(
                    target=worker.main, args=(plan, self._core), name=f"emu-cpu-{cpu}", daemon=True
                )
                start(process)
                self._processes.append(process)
                self._stop.check()
            # Before the workers have made theirs: where threads run out, it is they who die.
            self._listen(cpus)
        finally:
            gc.unfreeze()
            os.close(reader)
            os.close(writer)
        self._waiting_for = set(range(cpus))
        self._wait(lambda: not self._waiting_for)
        return time.monotonic() - began

    def _listen(self, cpus: int) -> None:
        _expect_threads(_ZMQ_THREADS)
        self._context = zmq.Context()
        self._router = self._context.socket(zmq.ROUTER)
        self._router.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._router.setsockopt(zmq.BACKLOG, cpus + 16)
        self._router.setsockopt(zmq.LINGER, 1000)
        # By umask, so that there is no moment in which others may open it.
        umask = os.umask(0o177)
        try:
            self._router.bind(self._address)
        finally:
            os.umask(umask)

    def phase(
        self,
        name: str,
        list_number: int,
        *,
        first: int | None = None,
        once: bool = False,
        record: bool = False,
        duration_ns: int = 0,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """Run a phase on all CPUs; returns when all have finished it. Raises CellFailed."""
        self._phase = f"phase {name}"
        core, cpus = self._core, len(self._processes)
        core.phase_prepare(list_number, once, record, duration_ns)
        if first is not None:
            core.phase_first(first)
        status = core.phase_status().contents
        self._waiting_for = set(range(cpus))
        self._send(worker.RunPhase())
        self._wait(lambda: status.armed == cpus, poll_ms=2)
        core.phase_open()
        start_ns, deadline_ns = times = status.start_ns, status.deadline_ns

        def look() -> None:
            if (status.start_ns, status.deadline_ns) != times:  # and workers may never end
                raise CellFailed(f"the arena is damaged: the times of {self._phase} have changed")
            if progress:
                progress(min(duration_ns, core.clock_ns() - start_ns))

        self._wait(lambda: not self._waiting_for, not_before_ns=deadline_ns, look=look)

    def finish(self) -> None:
        """Let them exit by themselves."""
        self._send(worker.Stop())
        deadline = time.monotonic() + 5
        for process in self._processes:
            process.join(max(0.0, deadline - time.monotonic()))

    def _send(self, message: worker.FromCoordinator) -> None:
        text = msgspec.msgpack.encode(message)
        for cpu in range(len(self._processes)):
            try:
                self._router.send_multipart([b"%d" % cpu, text])
            except zmq.ZMQError as error:
                # It has just died: who waits for its answer will find that and say how.
                if error.errno != zmq.EHOSTUNREACH:
                    raise

    def _receive(self, poll_ms: int) -> None:
        """Take all messages that are there; wait ``poll_ms`` for the first."""
        while self._router.poll(poll_ms):
            poll_ms = 0
            identity, text = self._router.recv_multipart()
            message = self._decoder.decode(text)
            cpu = int(identity)
            if isinstance(message, worker.Failed):
                raise CellFailed(f"{self._who(cpu)}: {message.error}, {self._doing(cpu)}")
            self._waiting_for.discard(cpu)

    def _wait(
        self,
        done: Callable[[], bool],
        *,
        poll_ms: int = 50,
        not_before_ns: int = 0,
        look: Callable[[], None] | None = None,
    ) -> None:
        """Until ``done``: take messages, look for dead workers, and for hanging ones once the
        emulated clock has passed ``not_before_ns``.
        """
        seen: object = None
        since = time.monotonic()
        while not done():
            self._receive(poll_ms)
            now = time.monotonic()
            if now - self._looked_s < _WATCH_S:
                continue
            self._looked_s = now
            self._stop.check()
            self._look_for_dead()
            if look:
                look()
            if self._core.clock_ns() < not_before_ns:
                since = now
                continue
            progress = self._progress()
            if progress != seen:
                seen, since = progress, now
            elif now - since > HANG_S:
                self._hangs(now - since)

    def _progress(self) -> object:
        """Changes when any CPU that is waited for does something."""
        states = (self._core.cpu_state(cpu).contents for cpu in sorted(self._waiting_for))
        armed = self._core.phase_status().contents.armed
        return armed, [(s.list, s.index, s.op, s.iterations) for s in states]

    def _look_for_dead(self) -> None:
        found: list[tuple[int, Any]] = []
        for cpu, process in enumerate(self._processes):
            # WNOWAIT: the corpse is left to process.join().
            flags = os.WEXITED | os.WSTOPPED | os.WNOHANG | os.WNOWAIT
            try:
                info: Any = os.waitid(os.P_PID, process.pid, flags)
            except ChildProcessError:  # starting the next one has joined it
                info = _how_it_went(process.exitcode)
            if info is not None:
                found.append((cpu, info))
        if not found:
            return
        cpu, info = found[0]
        reason, outside = self._cause(cpu, info)
        if self._phase == "start" and not outside:  # no design has run yet
            raise EmuError(
                f"{self._who(cpu)} could not start: it {reason}; fewer --cpus, more memory or a "
                "higher limit on processes (ulimit -u) would help"
            )
        others = f"; {counted(len(found), 'CPU')} in all are gone" if len(found) > 1 else ""
        raise CellFailed(f"{self._who(cpu)} {reason}, {self._doing(cpu)}{others}", outside=outside)

    def _cause(self, cpu: int, info: Any) -> tuple[str, bool]:
        """How a worker ended, in words, and whether somebody else did it."""
        own_words = self._core.cpu_state(cpu).contents.failure.decode(errors="replace")
        if info.si_code == os.CLD_STOPPED:
            return f"was stopped by {signal.Signals(info.si_status).name}", True
        if info.si_code in (os.CLD_KILLED, os.CLD_DUMPED):
            name = signal.Signals(info.si_status).name
            outside = info.si_status in OUTSIDE
            words = own_words or ("" if outside else self._last_words())
            return f"was killed by {name}{words and ': ' + words}", outside
        words = own_words or self._last_words() or f"exit status {info.si_status}"
        return f"gave up: {words}", False

    def _last_words(self) -> str:
        """The last line that workers wrote on stderr."""
        with contextlib.suppress(OSError):
            lines = self._stderr_path.read_text(errors="replace").split("\n")
            return next((line.strip() for line in reversed(lines) if line.strip()), "")
        return ""

    def _who(self, cpu: int) -> str:
        return f"CPU {cpu} (pid {self._processes[cpu].pid})"

    def _doing(self, cpu: int) -> str:
        """Where in the program the CPU was last."""
        state = self._core.cpu_state(cpu).contents
        if self._phase == "start":
            return "while the workers were starting"
        try:
            call = self._plan.workload.describe_call(state.list, state.index)
        except IndexError:
            return f"in {self._phase}, and nobody can say where: its state in the arena is damaged"
        where = f"{call.text} ({call.place})"
        if state.op == len(_core.CALL_NAMES):
            return f"in {self._phase} between two calls, the last was {where}"
        return f"in {self._phase} during {where}"

    def _hangs(self, idle_s: float) -> None:
        cpus = sorted(self._waiting_for) or [0]
        cpu = cpus[0]
        others = f"; {len(cpus) - 1} more CPUs wait too" if len(cpus) > 1 else ""
        raise CellFailed(
            f"{self._who(cpu)} hangs: nothing for {idle_s:.0f} s, {self._doing(cpu)}{others}"
        )


def _how_it_went(exitcode: int) -> SimpleNamespace:
    """What waitid(2) would have said."""
    if exitcode < 0:
        return SimpleNamespace(si_code=os.CLD_KILLED, si_status=-exitcode)
    return SimpleNamespace(si_code=os.CLD_EXITED, si_status=exitcode)


def _expect_threads(count: int) -> None:
    """See that so many threads can be made: ZeroMQ aborts when it cannot. Raises InputError."""
    over = threading.Event()
    threads = [threading.Thread(target=over.wait) for _ in range(count)]
    try:
        for thread in threads:
            thread.start()
    except RuntimeError:
        raise no_process(OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))) from None
    finally:
        over.set()
        for thread in threads:
            if thread.ident:
                thread.join()


def _allow_files(wanted: int) -> None:
    """Raise the limit on open files. Raises InputError when it may not be raised so far."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        if hard != resource.RLIM_INFINITY and hard < wanted:
            raise InputError(
                f"{wanted} open files are needed and the limit is {hard}; "
                "fewer --cpus, or a higher limit (ulimit -n)"
            )
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
