"""The coordinator: starts the workers of a cell, takes them through its phases, and cleans up.

The only module that starts processes. A cell's life is in ``run``: arena, core and designs are set
up here; one worker a CPU is forked; the workload's phases follow one another; the drain phase
must leave the trees and the arena empty. Whatever happens in between, no process, no socket and no
shared memory outlives ``run``.

ZeroMQ (ROUTER here, DEALER in the workers) carries orders between phases. The start line of a phase
is a futex in the arena, and nothing is sent while CPUs run.

Fork rules: when workers are forked there is no thread and no ZeroMQ context in this process. The
context is made after the forks and is gone before the next cell's.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import hashlib
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType, SimpleNamespace, TracebackType
from typing import Any, Generic, NoReturn, Self, TypeVar

import msgspec
import multiprocess
import multiprocess.connection
import numpy as np
import zmq
from numpy.typing import NDArray

from emu import _core, live
from emu.arena import MIB, Arena, run_directory
from emu.design import Cache
from emu.errors import EmuError, InputError
from emu.histogram import Histogram
from emu.workers import cpu as worker
from emu.workload import WALKER_KINDS, Workload

_WATCH_S = 0.1
"""How often dead and stopped workers are looked for."""
_HANG_S = 10.0
"""A CPU that does nothing for so long after its time is up hangs. A busy host takes far less."""
_COMPILE_S = 60
_ZMQ_THREADS = 3
"""What a context makes, and one to spare."""
_REHEARSAL_BYTES = 256 * MIB
_WORDS_BYTES = 1 << 20
"""Of what a process wrote on stderr, at most; its last line is what counts."""
_FORK = multiprocess.get_context("fork")
_T = TypeVar("_T")


class Interrupted(Exception):
    """SIGINT or SIGTERM came. Not an error: what has finished is kept."""


class CellFailed(EmuError):
    """A cell cannot be finished. ``outside``: somebody else killed or stopped a worker."""

    def __init__(self, message: str, *, outside: bool = False) -> None:
        super().__init__(message)
        self.outside = outside


class StopFlag:
    """Turns SIGINT, SIGTERM and SIGHUP into a flag that is looked at where it is safe to stop.

    A context manager. In another than the main thread signals are left alone. ``restore``: give the
    signals back at the end; a program that is about to exit does not want them any more.
    """

    _SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self, *, restore: bool = True) -> None:
        self._restore = restore
        self._set = False
        self._old: dict[int, Any] = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._set = True

    def check(self) -> None:
        """Raises Interrupted once a signal has come."""
        if self._set:
            raise Interrupted

    def __enter__(self) -> Self:
        with contextlib.suppress(ValueError):
            for number in self._SIGNALS:
                self._old[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._restore:
            for number, handler in self._old.items():
                signal.signal(number, handler)


class Deadline(StopFlag):
    """A StopFlag that also fails the cell once its time is up."""

    def __init__(self, stop: StopFlag, timeout_ns: int) -> None:
        super().__init__()
        self._stop, self._timeout_s = stop, timeout_ns / 1e9
        self._end_s = time.monotonic() + self._timeout_s

    def check(self) -> None:
        """Raises Interrupted once a signal has come, CellFailed once the time is up."""
        self._stop.check()
        if time.monotonic() > self._end_s:
            raise CellFailed(f"not done after {self._timeout_s:g} s (--timeout)")


@dataclass(frozen=True)
class DesignFile:
    """A design to load: its shared object and its parameters "k=v,k=v"."""

    name: str
    path: Path
    params: str = ""


@dataclass(frozen=True)
class Plan:
    """All that is needed to run one cell; what the names in it stand for has been looked up."""

    machine: str
    rmap: DesignFile
    mm: DesignFile
    workload: Workload
    node_of_cpu: list[int]
    nr_nodes: int
    host_cpu_of_cpu: list[int]
    host_node_of_node: list[int] | None
    """For mbind; None where the host has one node."""
    penalty_ns: list[list[int]] | None
    oversubscribed: bool
    seed: int
    duration_ns: int
    arena_bytes: int
    nr_hw_cpus: int = 0
    """CPUs that the tasks share (virtual engine); 0: each has one."""


@dataclass
class LockTotals:
    """A lock class over all CPUs: one record, and one for each call site (LOCK_STAT_DTYPE)."""

    name: str
    file: str | None
    total: NDArray[np.void]
    sites: dict[str, NDArray[np.void]] = field(default_factory=dict)


@dataclass
class WalkerTotals:
    """What a walker did in a phase. ``done``, ``refused`` and ``lost`` add up to its attempts."""

    kind: str
    file: str
    cpu: int
    first: int
    last: int
    at_once: int
    every_ns: int
    done: int
    refused: int
    lost: int
    vmas: int
    pages: int
    latency: Histogram


@dataclass
class PhaseTotals:
    """What a recorded phase came to. ``seconds``: from the start line to the last CPU's end."""

    name: str
    seconds: float
    wait_ns: int
    counts: dict[str, int]
    hists: dict[str, Histogram]
    locks: list[LockTotals]
    walkers: list[WalkerTotals]


@dataclass
class CellTotals:
    """What a cell came to."""

    phases: list[PhaseTotals]
    calls: int
    start_s: float
    memory_bytes: int
    rmap_memory: dict[str, int]
    """The fields of results.Memory."""
    batches: bool
    """Can the rmap design do what its parameter batch asks?"""


def compile_design(source: Path, machine: str, directory: Path) -> Path:
    """Compile a user's design as the built-in ones were; the shared object, in ``directory``.

    What was compiled before from the same text, headers included, with the same compiler and flags
    is taken from the user's cache.

    Raises InputError with the compiler's first error, or when the cache is not the user's own.
    """
    info = _core.build_info()
    compiler = _compiler(info, source)
    output = Path(tempfile.mkdtemp(dir=directory)) / f"{source.stem}.so"
    compiled = output.with_suffix(".o")
    # A forgotten function is the compiler's to report, with its line, and not the loader's.
    flags = [*info["flags"], *info["machines"][machine], "-Werror=implicit-function-declaration"]
    flags.append(f"-I{_core.data_path('include')}")
    links = info["links"][machine]
    # Without line markers, which name the folder; the bytes of the file itself are part of the key.
    text = _compile(compiler, source, [*flags, "-E", "-P", str(source)], output.parent)
    parts = [compiler, info["compiler_id"], *_identity(compiler), machine, *flags[:-1], *links]
    key = hashlib.sha256("\0".join([*parts, text]).encode() + source.read_bytes()).hexdigest()
    cache = Cache()
    if cache.take(key, output):
        return output
    # In two steps: what makes the compiler call the virtual machine would link another library.
    _compile(compiler, source, [*flags, "-c", "-o", str(compiled), str(source)], output.parent)
    _compile(compiler, source, ["-shared", "-o", str(output), str(compiled), *links], output.parent)
    cache.put(key, output)
    return output


def _compiler(info: dict[str, Any], source: Path) -> str:
    """The path of the build's own; where a wheel was built elsewhere, of the one of that name here.

    Raises InputError when there is none.
    """
    built_with = info["compiler"]
    found = shutil.which(built_with) or shutil.which(Path(built_with).name)
    if not found:
        raise InputError(
            f"{source} cannot be compiled: there is no {Path(built_with).name} here; "
            "Debian's compiler is in the package build-essential, and built-in designs need none"
        )
    return found


def _identity(compiler: str) -> list[str]:
    """What changes when another compiler is installed under the same name."""
    info = Path(compiler).stat()
    return [str(info.st_size), str(info.st_mtime_ns)]


def _compile(compiler: str, source: Path, arguments: list[str], folder: Path) -> str:
    """Run the compiler, its temporary files in ``folder``; what it printed. Raises InputError."""
    try:
        process = subprocess.Popen(
            [compiler, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env=os.environ | {"TMPDIR": str(folder)},
            process_group=0,
        )
    except OSError as error:
        raise InputError(f"{source} cannot be compiled with {compiler}: {error}") from None
    with process:
        try:
            out, err = process.communicate(timeout=_COMPILE_S)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)  # it has children of its own
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            raise InputError(
                f"{source} cannot be compiled: {compiler} was not done after {_COMPILE_S} s"
            ) from None
    if process.returncode:
        lines = err.splitlines() or [f"{compiler} ended with status {process.returncode}"]
        first = next((line for line in lines if "error" in line), lines[0])
        raise InputError(f"{source} cannot be compiled: {first}")
    return out


def rehearse(plan: Plan, stop: StopFlag) -> None:
    """Run the program once on one CPU, strictly, in a process and an arena of its own.

    A design that crashes or hangs here is no business of the rehearsal: its cells will say so.

    Raises InputError when the designs do not load or a call of the program cannot be done.
    """
    context = _context(plan.machine)
    try:
        ours, theirs = context.Pipe(duplex=False)
    except OSError as error:
        raise _no_process(error) from None
    arguments = (plan, theirs, os.devnull, os.getpid())
    process = context.Process(target=_rehearse, args=arguments, daemon=True)
    _start(process)
    theirs.close()
    try:
        give_up = time.monotonic() + _HANG_S
        while not ours.poll(0.05) and time.monotonic() < give_up:
            stop.check()
        problem = ours.recv() if ours.poll(0) else None
    except EOFError:
        problem = None
    finally:
        process.kill()
        process.join()
        process.close()
        ours.close()
    if problem:
        raise InputError(problem)


def _context(machine: str) -> Any:
    """How to start a process for ``machine``: afresh where another one is loaded, else a fork."""
    other = _core.is_any_loaded() and not _core.is_loaded(machine)
    return multiprocess.get_context("spawn") if other else _FORK


def _rehearse(plan: Plan, answer: Any, stderr: str, parent_pid: int) -> None:
    worker.be_a_child(parent_pid)
    with Path(stderr).open("ab", buffering=0) as file:
        os.dup2(file.fileno(), 2)
    try:
        answer.send(_rehearse_alone(plan))
    except EmuError as error:
        answer.send(str(error))


def _rehearse_alone(plan: Plan) -> str | None:
    """The first thing that goes wrong, in one line."""
    core, workload = _core.load(plan.machine), plan.workload
    alone = replace(plan, node_of_cpu=plan.node_of_cpu[:1], nr_hw_cpus=0, host_node_of_node=None)
    with Arena.anonymous(_REHEARSAL_BYTES) as arena:
        set_up(core, alone, arena, strict=True)
        core.cpu_attach(0)
        order = [workload.load_list, *(phase.list for phase in workload.phases)]
        order += [phase.first for phase in workload.phases if phase.first is not None]
        for number in (*order, workload.drain_list):
            if failed := core.list_run(number):
                index, reason = failed
                call = workload.describe_call(number, index)
                # The core names the call in its own words, unless the failure is not the call's.
                own = reason.startswith(call.text.partition("(")[0] + "(")
                return f"{call.place if own else call}: {reason}"
    return None


class Child(Generic[_T]):
    """``work(*arguments)`` in a process of its own; a context manager that ends it.

    Nothing that it loads or maps stays here. It begins afresh where another machine is loaded here,
    and is a fork otherwise. When it dies it is called ``what``. ``talks``: ``work`` gets one more
    argument, a function that sends what it is given; ``result`` then gives these first.
    """

    def __init__(
        self,
        work: Callable[..., _T],
        *arguments: Any,
        what: str = "the virtual machine",
        talks: bool = False,
    ) -> None:
        context = multiprocess.get_context("spawn") if _core.is_any_loaded() else _FORK
        self._what = what
        try:
            self.connection, theirs = context.Pipe(duplex=False)
            """Can be waited for (``multiprocess.connection.wait``): there is a result."""
            # What it writes on stderr; memory, so that nothing is left however we end.
            self._words = os.memfd_create("emu-words")
        except OSError as error:
            raise _no_process(error) from None
        words = f"/proc/{os.getpid()}/fd/{self._words}"
        self._process = context.Process(
            target=_child,
            args=(work, arguments, talks, theirs, words, os.getpid()),
            daemon=True,
        )
        try:
            _start(self._process)
        except BaseException:
            self.connection.close()
            os.close(self._words)
            raise
        finally:
            theirs.close()

    def ready(self, wait_s: float = 0) -> bool:
        """Will ``result`` answer at once? Waits for at most ``wait_s``.

        Raises CellFailed when somebody has stopped the process.
        """
        if self.connection.poll(wait_s):
            return True
        info = None
        with contextlib.suppress(ChildProcessError):  # dead, and joined: there is an end to read
            info = os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT)
        if info is not None:
            name = signal.Signals(info.si_status).name
            raise CellFailed(f"{self._what} was stopped by {name}", outside=True)
        return False

    def result(self) -> _T:
        """What the work returned.

        Raises what it raised if that is an EmuError, CellFailed when the process died.
        """
        try:
            answer = self.connection.recv()
        except EOFError:
            self._process.join()
            status = self._process.exitcode
            words = os.pread(self._words, _WORDS_BYTES, 0).decode(errors="replace")
            last = words.strip().splitlines()[-1:]
            how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
            reason = last[0].removeprefix("emu: ") if last else how
            outside = status in (-signal.SIGKILL, -signal.SIGTERM)
            raise CellFailed(f"{self._what} died: {reason}", outside=outside) from None
        if isinstance(answer, EmuError):
            raise answer
        result: _T = answer
        return result

    def close(self) -> None:
        """End the process, whatever it is at."""
        self._process.kill()
        self._process.join()
        self._process.close()
        self.connection.close()
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
) -> _T:
    """What ``work(*arguments)`` returns, from a process of its own.

    Raises as ``Child.result``, CellFailed when it takes longer than ``limit_s``, Interrupted.
    """
    give_up = time.monotonic() + limit_s
    with Child(work, *arguments, what=what) as child:
        while not child.ready(0.05):
            stop.check()
            if time.monotonic() > give_up:
                raise CellFailed(f"{what} hangs: no result after {limit_s:.0f} s")
        return child.result()


def first_ready(children: Sequence[Child[Any]], wait_s: float) -> None:
    """Wait until one of them has a result, for at most ``wait_s``."""
    multiprocess.connection.wait([child.connection for child in children], wait_s)


def run_apart(module: str, said: bytes, is_unwanted: Callable[[], bool]) -> bytes:
    """What ``python -m module PID`` answers to what is said to it; PID is this process.

    A process that shares nothing with this one, whatever threads there are here; the module sees to
    it that it does not outlive us. It is ended once ``is_unwanted``, which is asked now and then.

    Raises CellFailed when it dies.
    """
    command = [sys.executable, "-m", module, str(os.getpid())]
    to_say: bytes | None = said
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        while True:
            try:
                answer, _ = process.communicate(to_say, timeout=_WATCH_S)
                break
            except subprocess.TimeoutExpired:
                to_say = None  # it is on its way
                if is_unwanted():
                    raise CellFailed("nobody wants it any more", outside=True) from None
    finally:
        process.kill()
        process.wait()
    if process.returncode or not answer:
        outside = process.returncode in (-signal.SIGKILL, -signal.SIGTERM)
        status = process.returncode
        raise CellFailed(f"the process of the cell died: exit status {status}", outside=outside)
    return answer


def commit_of(directory: Path) -> str | None:
    """The git commit that is checked out in a directory, "+changes" behind it if there are any."""
    words = []
    for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"]):
        try:
            done = subprocess.run(
                ["git", "-C", str(directory), *command],
                capture_output=True,
                text=True,
                timeout=5,
                check=True,
            )
        except (OSError, subprocess.SubprocessError):
            return None
        words.append(done.stdout.strip())
    return words[0] + ("+changes" if words[1] else "")


def _child(
    work: Callable[..., Any],
    arguments: tuple[Any, ...],
    talks: bool,
    answer: Any,
    stderr: str,
    parent_pid: int,
) -> None:
    worker.be_a_child(parent_pid)
    with Path(stderr).open("ab", buffering=0) as file:
        os.dup2(file.fileno(), 2)
    try:
        answer.send(work(*arguments, answer.send) if talks else work(*arguments))
    except _core.CoreError as error:
        answer.send(CellFailed(str(error)))
    except EmuError as error:
        answer.send(error)


def source_lines(file: str, offsets: Sequence[int]) -> list[str]:
    """ "file.c:line" of offsets in a library, "" where unknown; [] without binutils."""
    tool = shutil.which("addr2line")
    if not tool or not Path(file).is_file():
        return []
    try:
        done = subprocess.run(
            [tool, "-e", file, *map(hex, offsets)],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    matches = (re.search(r"([^/]+:\d+)", line) for line in done.stdout.splitlines())
    return [match[1] if match else "" for match in matches]


def _start(process: Any) -> None:
    try:
        process.start()
    except OSError as error:
        raise _no_process(error) from None


def _no_process(error: OSError) -> InputError:
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
    hang_s: float = _HANG_S,
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
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid:
                cpu = pids.pop(pid)
                if status:
                    raise CellFailed(_how_it_ended(core, cpu, status, doing(cpu)))
                continue
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


def _how_it_ended(core: _core.Core, cpu: int, status: int, hook: str | None) -> str:
    words: str = core.cpu_state(cpu).contents.failure.decode(errors="replace")
    if words:
        return words
    end = (
        f"was killed by {signal.Signals(os.WTERMSIG(status)).name}"
        if os.WIFSIGNALED(status)
        else f"ended with exit status {os.WEXITSTATUS(status)}"
    )
    return f"CPU {cpu} {end}{f' in {hook}' if hook else ''}"


def set_up(core: _core.Core, plan: Plan, arena: Arena, *, strict: bool = False) -> None:
    """Load the designs and lay out the arena. Raises InputError for a design, else CoreError."""
    workload = plan.workload
    for kind, design in (("rmap", plan.rmap), ("mm", plan.mm)):
        params = design.params.encode() or None
        try:
            core.design_load(_core.NAME_OF_KIND.index(kind), os.fsencode(design.path), params)
        except _core.CoreError as error:
            hint = "; `emu list designs` shows what each takes" if params else ""
            raise InputError(f"--{kind} {design.name}: {error}{hint}") from None
    config = _config(plan, strict=strict)
    core.arena_format(arena.base, arena.size, ctypes.byref(config))
    shared = len(workload.files) - workload.private_files
    for number, (name, pages) in enumerate(workload.files):
        for _ in range(1 if number < shared else len(plan.node_of_cpu)):
            file = core.file_add(os.fsencode(name), pages)
            if workload.cold_permille:
                core.file_cold(file, workload.cold_permille, workload.read_ns)
    for add, table in (
        (core.background_add, workload.uses.entry_table()),
        (core.use_add, workload.uses.use_table(plan.nr_hw_cpus or len(plan.node_of_cpu))),
    ):
        for number in range(len(table)):
            add(table.ctypes.data + number * table.itemsize)
    for calls in workload.lists:
        core.list_add(calls.ctypes.data, len(calls))
    for number, walker in enumerate(workload.walkers):
        core.walker_add(
            WALKER_KINDS.index(walker.kind),
            (number if walker.cpu is None else walker.cpu) % len(plan.node_of_cpu),
            walker.file,
            walker.first,
            walker.last,
            walker.at_once,
            walker.every_ns,
        )
    core.boot()


def _config(plan: Plan, *, strict: bool = False) -> _core.Config:
    workload = plan.workload
    return _core.make_config(
        node_of_cpu=plan.node_of_cpu,
        nr_nodes=plan.nr_nodes,
        nr_files=len(workload.files) + workload.private_files * (len(plan.node_of_cpu) - 1),
        nr_lists=len(workload.lists),
        nr_walkers=len(workload.walkers),
        nr_calls=sum(len(calls) for calls in workload.lists),
        seed=plan.seed,
        oversubscribed=plan.oversubscribed,
        work_jitter_permille=workload.work_jitter_permille,
        nr_hw_cpus=plan.nr_hw_cpus,
        strict=strict,
        share_mm=workload.share_mm,
        penalty_ns=plan.penalty_ns,
        host_node_of_node=plan.host_node_of_node,
        nr_backgrounds=len(workload.uses.entries),
        nr_uses=workload.uses.nr_uses,
        nr_background_classes=workload.uses.lock_classes,
        nr_private_files=workload.private_files,
    )


def arena_overhead(plan: Plan) -> int:
    """Bytes that the plan's arena needs before the mm allocates anything. Loads the machine."""
    config = _config(plan)
    return int(_core.load(plan.machine).arena_overhead(ctypes.byref(config)))


def run(
    plan: Plan, stop: StopFlag, tick: Callable[[float, Callable[[], live.Inside]], None]
) -> CellTotals:
    """Run one cell; ``tick`` is called every 0.1 s or so with the share that is done, and with what
    tells how it looks inside at that moment.

    Raises CellFailed, Interrupted, or InputError when memory or limits do not allow it.
    """
    core = _core.load(plan.machine)
    workload = plan.workload
    try:
        with Arena.create(plan.arena_bytes) as arena:
            try:
                set_up(core, plan, arena)
            except _core.CoreError as error:
                raise InputError(str(error)) from None
            arena.reserve()
            with run_directory() as directory, Workers(plan, core, directory, stop) as workers:
                start_s = workers.start()
                phases: list[PhaseTotals] = []
                calls = 0
                workers.phase("load", workload.load_list, once=True)
                calls += count_calls(core, plan)
                done_ns = 0
                all_ns = plan.duration_ns * sum(phase.share for phase in workload.phases) or 1
                for phase in workload.phases:
                    share_ns = round(plan.duration_ns * phase.share)

                    def progress(
                        elapsed_ns: int, before_ns: int = done_ns, name: str = phase.name
                    ) -> None:
                        share = min(1.0, (before_ns + elapsed_ns) / all_ns)
                        tick(share, lambda: live.look(core, plan, name))

                    workers.phase(
                        phase.name,
                        phase.list,
                        first=phase.first,
                        once=phase.once,
                        record=phase.record,
                        duration_ns=share_ns,
                        progress=progress,
                    )
                    done_ns += share_ns
                    calls += count_calls(core, plan)
                    if phase.record:
                        phases.append(gather(core, plan, phase.name))
                memory = arena.used_bytes() + _private_bytes([os.getpid(), *workers.pids])
                workers.phase("drain", workload.drain_list, once=True)
                calls += count_calls(core, plan)
                try:
                    core.check_drained()
                except _core.CoreError as error:
                    raise CellFailed(f"after the drain phase {error}") from None
                workers.finish()
                return CellTotals(
                    phases=phases,
                    calls=calls,
                    start_s=start_s,
                    memory_bytes=memory,
                    rmap_memory=core.memory(),
                    batches=core.design_batches(),
                )
    except _core.CoreError as error:
        raise CellFailed(str(error)) from None
    finally:
        core.design_unload()


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
                process = _FORK.Process(
                    target=worker.main, args=(plan, self._core), name=f"emu-cpu-{cpu}", daemon=True
                )
                _start(process)
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
        self._router.bind(self._address)
        Path(self._address.removeprefix("ipc://")).chmod(0o600)

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
        start_ns = status.start_ns

        def look() -> None:
            if progress:
                progress(min(duration_ns, core.clock_ns() - start_ns))

        self._wait(lambda: not self._waiting_for, not_before_ns=status.deadline_ns, look=look)

    def finish(self) -> None:
        """Let them exit by themselves."""
        self._send(worker.Stop())
        deadline = time.monotonic() + 5
        for process in self._processes:
            process.join(max(0.0, deadline - time.monotonic()))

    def _send(self, message: worker.FromCoordinator) -> None:
        text = msgspec.msgpack.encode(message)
        for cpu in range(len(self._processes)):
            self._router.send_multipart([b"%d" % cpu, text])

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
            elif now - since > _HANG_S:
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
        others = f", and {len(found) - 1} more CPUs are gone" if len(found) > 1 else ""
        raise CellFailed(f"{self._who(cpu)} {reason}, {self._doing(cpu)}{others}", outside=outside)

    def _cause(self, cpu: int, info: Any) -> tuple[str, bool]:
        """How a worker ended, in words, and whether somebody else did it."""
        own_words = self._core.cpu_state(cpu).contents.failure.decode(errors="replace")
        if info.si_code == os.CLD_STOPPED:
            return f"was stopped by {signal.Signals(info.si_status).name}", True
        if info.si_code in (os.CLD_KILLED, os.CLD_DUMPED):
            name = signal.Signals(info.si_status).name
            outside = name in ("SIGKILL", "SIGTERM", "SIGHUP", "SIGINT", "SIGQUIT")
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
        call = self._plan.workload.describe_call(state.list, state.index)
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
        raise _no_process(OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))) from None
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


def _private_bytes(pids: Iterable[int]) -> int:
    """Memory of processes without the arena; pages that several share count once in all."""
    kib = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith(("Pss_Anon:", "Pss_File:")):
                    kib += int(line.split()[1])
    return kib * 1024


def count_calls(core: _core.Core, plan: Plan) -> int:
    """System calls that the CPUs did in the phase that has just ended."""
    cpus = range(len(plan.node_of_cpu))
    return sum(sum(core.cpu_result(cpu).contents.counts) for cpu in cpus)


def gather(core: _core.Core, plan: Plan, name: str) -> PhaseTotals:
    """Add up what the CPUs left in the arena. Raises CellFailed when it does not add up."""
    cpus = range(len(plan.node_of_cpu))
    status = core.phase_status().contents
    results = [core.cpu_result(cpu).contents for cpu in cpus]
    counts = {
        op: sum(result.counts[number] for result in results)
        for number, op in enumerate(_core.CALL_NAMES)
    }
    counts["iteration"] = sum(result.iterations for result in results)
    hists = {
        op: Histogram.merged(core.hists(cpu)[number] for cpu in cpus)
        for number, op in enumerate(_core.LAT_NAMES)
    }
    # A call that touches pages makes as many faults as there are pages missing.
    counts["fault"] = hists["fault"].count
    for op, histogram in hists.items():
        if op in counts and histogram.count != counts[op]:
            raise CellFailed(
                f"BUG: phase {name} counted {counts[op]} of {op} and {histogram.count} latencies"
            )
    return PhaseTotals(
        name=name,
        seconds=(max(result.end_ns for result in results) - status.start_ns) / 1e9,
        wait_ns=sum(result.wait_ns for result in results),
        counts=counts,
        hists=hists,
        locks=_gather_locks(core, cpus),
        walkers=[_gather_walker(core, plan, i) for i in range(len(plan.workload.walkers))],
    )


def _gather_walker(core: _core.Core, plan: Plan, number: int) -> WalkerTotals:
    walker, latency = core.walker(number)
    return WalkerTotals(
        kind=WALKER_KINDS[walker.kind],
        file=plan.workload.files[walker.file].name,
        cpu=walker.cpu,
        first=walker.first,
        last=walker.last,
        at_once=walker.at_once,
        every_ns=walker.every_ns,
        done=walker.done,
        refused=walker.refused,
        lost=walker.lost,
        vmas=walker.vmas,
        pages=walker.pages,
        latency=Histogram.merged([latency]),
    )


def _gather_locks(core: _core.Core, cpus: Iterable[int]) -> list[LockTotals]:
    """Lock statistics of all CPUs by class and by the path of the call site."""
    sums: dict[int, dict[str, list[int]]] = {}
    for cpu in cpus:
        stats = core.lock_stats(cpu)
        classes, sites = np.nonzero((stats["acquired"] > 0) | (stats["contended"] > 0))
        paths = {site: core.site_path(cpu, site) for site in set(sites.tolist())}
        # Plain numbers: there are thousands of records on a large machine.
        for class_id, site, record in zip(
            classes.tolist(), sites.tolist(), stats[classes, sites].tolist(), strict=True
        ):
            by_path = sums.setdefault(class_id, {})
            before = by_path.get(paths[site])
            by_path[paths[site]] = (
                [a + b for a, b in zip(before, record, strict=True)] if before else list(record)
            )
    found = []
    for class_id, by_path in sorted(sums.items()):
        name, file = core.lock_class_name(class_id)
        total = _stat([sum(column) for column in zip(*by_path.values(), strict=True)])
        by_site = {path: _stat(record) for path, record in by_path.items()}
        found.append(LockTotals(name, file, total, by_site))
    return found


def _stat(record: list[int]) -> NDArray[np.void]:
    return np.array(tuple(record), _core.LOCK_STAT_DTYPE)
