# SPDX-License-Identifier: MIT
"""What a run is doing right now: published by the process that runs it, shown by ``emu live``.

The two meet in the store's directory. Whoever watches keeps the file ``watched`` fresh; while it
is, each process that runs cells writes ``live-<pid>.json`` once a second. Nobody watches: nothing
is written, and no CPU of a cell is looked at.

How it looks inside of a cell is read from the arena while the cell's CPUs go on: by the coordinator
for the native engine, by a thread of the cell's process for the virtual one. They are the counters
of the results, read at any time, so they may be a little behind each other.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from emu.files import write_atomically
from emu.results import CellResult
from emu.store import Owner

if TYPE_CHECKING:
    from emu import _core
    from emu.coordinator import Plan

PERIOD_S = 1.0
"""Between two snapshots."""
_WATCHED = "watched"
_FRESH_S = 3 * PERIOD_S
_SHOWN_LOCKS = 8
_SHOWN_FINISHED = 5


class NodeRate(msgspec.Struct):
    """What the CPUs of a node get done."""

    node: int
    cpus: int
    per_s: float


class HotLock(msgspec.Struct):
    """A lock class, and the share of all CPUs' time that was spent waiting for it."""

    name: str
    share: float


class Inside(msgspec.Struct):
    """How it looks inside of a cell. Rates and shares are over ``seconds``, emulated."""

    phase: str
    unit: str
    seconds: float
    wait_share: float
    nodes: list[NodeRate]
    locks: list[HotLock]
    """Those that were waited for most."""


class CellState(msgspec.Struct):
    """A cell that runs or has finished. ``share`` is what is done of it, 0 where unknown."""

    engine: str
    rmap: str
    cpus: int
    workload: str
    repeat: int
    share: float = 0.0
    inside: Inside | None = None
    error: str | None = None


class Snapshot(msgspec.Struct):
    """A run as one process sees it."""

    run: str
    name: str
    owner: Owner
    time_s: float
    """When, in seconds since 1970."""
    done: int
    failed: int
    total: int
    left_s: float | None
    running: list[CellState]
    finished: list[CellState]
    """The last few that this process has finished, latest first."""


# ---- inside of a cell ----


def look(core: _core.Core, plan: Plan, phase: str) -> Inside:
    """What the CPUs have done so far in the phase that they are in."""
    cpus = range(len(plan.node_of_cpu))
    elapsed_ns = _elapsed_ns(core, cpus)
    iterations: Counter[int] = Counter()
    for cpu, node in zip(cpus, plan.node_of_cpu, strict=True):
        iterations[node] += core.cpu_result(cpu).contents.iterations
    time_ns = max(1, elapsed_ns) * len(cpus)
    waits = {
        _lock_name(*core.lock_class_name(number)): ns / time_ns
        for number, ns in enumerate(core.lock_waits().tolist())
        if ns > 0
    }
    return Inside(
        phase=phase,
        unit="iterations",
        seconds=elapsed_ns / 1e9,
        wait_share=sum(waits.values()),
        nodes=[
            NodeRate(node, on_node, iterations[node] * 1e9 / max(1, elapsed_ns))
            for node, on_node in sorted(Counter(plan.node_of_cpu).items())
        ],
        locks=_hottest(waits),
    )


def _elapsed_ns(core: _core.Core, cpus: Sequence[int]) -> int:
    if core.machine == "native":
        now_ns = int(core.clock_ns())
        return max(0, now_ns - int(core.phase_status().contents.start_ns))
    from emu import _core

    spent = _core.VirtualCpu()
    most_ps = 0
    for cpu in cpus:
        core.virtual_cpu(cpu, ctypes.byref(spent))
        most_ps = max(most_ps, int(spent.clock_ps))
    return most_ps // 1000


def _lock_name(name: str, file: str | None) -> str:
    return f"{name} of {file.rpartition('/')[2]}" if file else name


def _hottest(waits: dict[str, float]) -> list[HotLock]:
    found = sorted(waits.items(), key=lambda item: -item[1])[:_SHOWN_LOCKS]
    return [HotLock(name, share) for name, share in found]


@contextlib.contextmanager
def telling(
    tell: Callable[[Inside], None], directory: Path | None, look: Callable[[], Inside]
) -> Iterator[None]:
    """While the block runs, and while somebody watches the directory: look, and tell."""
    if directory is None:
        yield
        return
    over = threading.Event()

    def work() -> None:
        while not over.wait(PERIOD_S):
            if is_watched(directory):
                tell(look())

    thread = threading.Thread(target=work, name="emu-live")
    try:
        thread.start()
    except RuntimeError:  # no room for one more: nobody can watch, but the cell can run
        yield
        return
    try:
        yield
    finally:
        over.set()
        thread.join()


def of_result(result: CellResult) -> CellState:
    """A finished cell in the same words."""
    state = CellState(
        engine=result.engine,
        rmap=result.rmap,
        cpus=result.cpus,
        workload=result.workload,
        repeat=result.repeat,
        share=1.0,
        error=result.error,
    )
    phase = next((each for each in result.phases if each.counts_ops), None)
    if phase is None or not result.seconds:
        return state
    nodes = [NodeRate(-1, result.cpus, result.ops_per_s)]
    if by_cpu := result.by_cpu:
        ops: Counter[int] = Counter()
        for node, done in zip(by_cpu.node, by_cpu.ops, strict=True):
            ops[node] += done
        on_node = Counter(by_cpu.node)
        nodes = [NodeRate(n, on_node[n], ops[n] / result.seconds) for n in sorted(on_node)]
    time_ns = result.cpus * result.seconds * 1e9
    state.inside = Inside(
        phase=phase.name,
        unit=phase.unit,
        seconds=result.seconds,
        wait_share=result.wait_share,
        nodes=nodes,
        locks=_hottest(
            {_lock_name(lock.name, lock.file): lock.wait_ns / time_ns for lock in result.locks}
        ),
    )
    return state


# ---- the meeting place ----


def is_watched(directory: Path) -> bool:
    """Does anybody look?"""
    try:
        return time.time() - (directory / _WATCHED).stat().st_mtime < _FRESH_S
    except OSError:
        return False


class Publisher:
    """Of one process that runs cells. A context manager: nothing is left of it."""

    def __init__(self, directory: Path, run: str, name: str) -> None:
        self._directory, self._run, self._name = directory, run, name
        self._owner = Owner.myself()
        self._path = directory / f"live-{self._owner.pid}.json"
        self._last_s = 0.0
        self._finished: list[CellState] = []

    def __enter__(self) -> Publisher:
        for path, snapshot in _files(self._directory):
            if not snapshot or not snapshot.owner.is_alive(snapshot.time_s + _FRESH_S):
                with contextlib.suppress(OSError):
                    path.unlink()
        return self

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)

    def has_finished(self, result: CellResult) -> None:
        """Show it among the last ones."""
        self._finished = [of_result(result), *self._finished][:_SHOWN_FINISHED]

    def publish(
        self,
        *,
        done: int,
        failed: int,
        total: int,
        left_s: float | None,
        running: Callable[[], list[CellState]],
    ) -> None:
        """Call it often: a snapshot is written once a second at most, while somebody watches."""
        now = time.monotonic()
        if now - self._last_s < PERIOD_S or not is_watched(self._directory):
            return
        self._last_s = now
        snapshot = Snapshot(
            run=self._run,
            name=self._name,
            owner=self._owner,
            time_s=time.time(),
            done=done,
            failed=failed,
            total=total,
            left_s=left_s,
            running=running(),
            finished=self._finished,
        )
        # A full disk is the store's business.
        with contextlib.suppress(OSError):
            write_atomically(self._path, msgspec.json.encode(snapshot))


class Watcher:
    """Of one process that shows snapshots. A context manager: nothing is left of it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def __enter__(self) -> Watcher:
        return self

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(OSError):
            (self._directory / _WATCHED).unlink(missing_ok=True)

    def snapshots(self) -> list[Snapshot]:
        """What is published now by processes that live, latest run first. May raise OSError."""
        (self._directory / _WATCHED).touch(mode=0o600)
        found = [snapshot for _, snapshot in _files(self._directory) if snapshot]
        alive = [each for each in found if each.owner.is_alive(each.time_s + _FRESH_S)]
        return sorted(alive, key=lambda each: (each.run, each.owner.pid), reverse=True)


def _files(directory: Path) -> Iterator[tuple[Path, Snapshot | None]]:
    for path in sorted(directory.glob("live-*.json")):
        try:
            yield path, msgspec.json.decode(path.read_bytes(), type=Snapshot)
        except FileNotFoundError:
            continue
        except (OSError, msgspec.MsgspecError):
            yield path, None
