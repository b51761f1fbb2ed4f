# SPDX-License-Identifier: MIT
"""Runs the cells of an experiment, on all CPUs of the host or one after another, into the store.

Cells of the virtual engine are predicted in processes of their own, as many at once as the host has
CPUs; where and when they run changes nothing about them. Cells of the native engine have the host
for themselves, in turns over the repeats: A B A B, so that what drifts meets all designs alike.

Whoever runs a cell has claimed it in the store, and what has finished is there. So any number of
processes may work on a run, and one that was killed is gone on with by the next.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from emu import _core, host, topology
from emu._version import __version__
from emu.arena import MIB, memory_available, remove_stale
from emu.cluster import Cluster, check_installed, make_order
from emu.errors import InputError
from emu.experiment import Cell, Experiment, describe, own_file
from emu.files import as_utf8
from emu.live import CellState, Inside, Publisher
from emu.results import CellResult, Run, RunInfo, Uncertainty, new_run_id
from emu.store import MachineLock, Store
from emu.words import counted

if TYPE_CHECKING:
    from emu.coordinator import Deadline, StopFlag
    from emu.engines import Engine, Job, Machine
    from emu.engines.virtual import VirtualEngine
    from emu.report.trace import Window
    from emu.topology import Topology

_TICK_S = 0.1
_OTHERS_S = 0.3
"""How often to look whether another process has finished its cells."""
_LEASE_S = 60.0
"""What a claim lasts beyond the cell's time-out, where nobody can look."""


@dataclass(frozen=True)
class Progress:
    """How far a run is. ``running`` has the share (0..1) that each cell has done, where known."""

    done: int
    total: int
    running: Sequence[tuple[Cell, float]]
    left_s: float | None
    """What remains, in seconds, judging by the cells that have finished; None: too early."""


@dataclass
class Watchers:
    """Who wants to hear what happens."""

    progress: Callable[[Progress], None] | None = None
    """Often."""
    on_failure: Callable[[CellResult], None] | None = None
    """As soon as a cell has failed."""
    on_notice: Callable[[str], None] | None = None
    """When there is a line to be seen."""

    def notice(self, line: str) -> None:
        """Show it."""
        if self.on_notice:
            self.on_notice(line)


def execute(
    experiments: Sequence[Experiment],
    given: Mapping[str, Any],
    *,
    store: Store,
    name: str = "",
    fresh: bool = False,
    jobs: int | None = None,
    cluster: str | None = None,
    uncertainty: int = 0,
    trace: Window | None = None,
    watchers: Watchers | None = None,
    stop: StopFlag | None = None,
) -> Run:
    """Run what is missing of the experiments, which were made from ``given``.

    The unfinished run of the same experiment, on the same version, is gone on with; else, or with
    ``fresh``, a new one begins. ``jobs``: virtual cells at once (None: the host's CPUs, and the
    last one beside them).
    ``cluster``: the Dask scheduler whose workers run the cells.
    ``uncertainty``: then also run what the virtual engine runs on so many machines whose numbers
    are drawn (``emu.uncertainty``). ``trace``: of the only cell.

    A failed cell does not end the run, unless somebody else killed or stopped a worker of it. An
    interrupt (SIGINT, SIGTERM) ends it, and ``run.status`` says so.

    Raises InputError before any cell runs when one of the experiments cannot be run or no scheduler
    answers, EmuError when the store cannot be written.
    """
    from emu import engines
    from emu.coordinator import Interrupted, StopFlag

    with contextlib.ExitStack() as cleanup:
        stop = stop or cleanup.enter_context(StopFlag())
        remove_stale()
        machines: list[Machine] = []
        for maker, each in [(engines.get(each.engine), each) for each in experiments]:
            machines.append(maker(each))
            cleanup.callback(machines[-1].close)
        if cluster is not None:
            _check_for_cluster(experiments)
        info = _describe_run(experiments, machines, given, name)
        tasks: dict[Cell, _Task] = {}
        for each, machine in zip(experiments, machines, strict=True):
            for cell in each.cells(machine.cpus):
                tasks.setdefault(cell, _Task(len(tasks), cell, machine, each))
        if not tasks:
            raise InputError("no cell is left: the rules exclude all of them")
        if trace:
            _trace_the_one(list(tasks.values()), trace)
        store.prepare()
        fingerprint = _fingerprint(info, cluster)
        found = None if fresh else store.find(fingerprint)
        missing = store.missing(found) if found else set(range(len(tasks)))
        status, refused = "interrupted", False
        run: str | None = None
        watchers = watchers or Watchers()
        try:
            for machine, each in zip(machines, experiments, strict=True):
                if cluster is not None and each.engine == "native":
                    continue  # it depends on the worker's host what can be run there
                cells = [t.cell for t in tasks.values() if t.machine is machine]
                machine.prepare([c for c in cells if tasks[c].number in missing], stop)
            far: Cluster | None = None
            if cluster is not None:
                # Not before: it has threads, and what prepares forks.
                far = Cluster(cluster, digest(), watchers.notice, stop)
                cleanup.enter_context(far).look()
            run = store.begin(info, list(tasks), fingerprint, fresh=fresh)
            if found == run:
                there = f"{len(tasks) - len(missing)} of {counted(len(tasks), 'cell')} finished"
                watchers.notice(f"going on with run {run}: {there} (--fresh: anew)")
            with (
                Publisher(store.directory, run, name) as publisher,
                _Scheduler(
                    store, run, list(tasks.values()), watchers, stop, publisher
                ) as scheduler,
            ):
                if far is not None:
                    scheduler.run_on(far, jobs)
                    ended = "done"
                else:
                    at_once = jobs or info.host["cpus"]
                    done = scheduler.run(at_once, last_beside=not jobs)
                    ended = "done" if done else "stopped"
            if uncertainty:
                info.uncertainty = list(_uncertainty(list(tasks.values()), uncertainty, stop))
                store.add_uncertainty(run, info.uncertainty)
            status = ended
        except Interrupted:
            pass
        except InputError:
            refused = True
            raise
        finally:
            if run:
                store.end(run, status, refused=refused)
        if run is None:
            info.status = status
            return Run(run=info, cells=[])
    return store.load(run)


def _uncertainty(tasks: Sequence[_Task], draws: int, stop: StopFlag) -> Iterator[Uncertainty]:
    """For each setting in which several designs ran: the first repeat, on drawn machines."""
    from emu.engines.virtual import VirtualEngine
    from emu.uncertainty import evaluate

    settings: dict[tuple[object, ...], dict[str, Cell]] = {}
    engines: dict[Cell, VirtualEngine] = {}
    for task in tasks:
        cell = task.cell
        if cell.repeat == 0 and isinstance(task.machine, VirtualEngine):
            key = (cell.workload, cell.topology, cell.mm, cell.cpus)
            settings.setdefault(key, {})[cell.rmap] = cell
            engines[cell] = task.machine
    for designs in settings.values():
        if len(designs) < 2:
            continue
        first = next(iter(designs.values()))
        engine = engines[first]

        def rate(
            machine: Topology,
            name: str,
            engine: VirtualEngine = engine,
            designs: dict[str, Cell] = designs,
        ) -> CellResult:
            return engine.run_on(machine, designs[name], stop)

        yield evaluate(engine.machine(first), list(designs), draws, first.seed, rate)


@dataclass(frozen=True)
class _Task:
    number: int
    cell: Cell
    machine: Machine
    experiment: Experiment

    @property
    def timeout_ns(self) -> int:
        """Of the host's time."""
        return self.experiment.timeout_ns


def _trace_the_one(tasks: Sequence[_Task], trace: Window) -> None:
    from emu.engines.virtual import VirtualEngine

    machine = tasks[0].machine
    if len(tasks) > 1 or not isinstance(machine, VirtualEngine):
        engines = ", ".join(dict.fromkeys(task.cell.engine for task in tasks))
        raise InputError(
            f"--trace {trace.file}: one cell of the virtual engine can be traced, not {len(tasks)} "
            f"of {engines}; --engine virtual with one --rmap and one --cpus is one"
        )
    machine.trace = trace


@dataclass(frozen=True)
class _Running:
    """A cell that runs. ``look``: how it looks inside, where that is known."""

    cell: Cell
    share: float
    look: Callable[[], Inside | None]

    def state(self) -> CellState:
        """For who watches."""
        cell = self.cell
        return CellState(
            engine=cell.engine,
            rmap=cell.rmap,
            cpus=cell.cpus,
            workload=cell.workload,
            repeat=cell.repeat,
            share=self.share,
            inside=self.look(),
        )


def _of_job(cell: Cell, job: Job) -> _Running:
    return _Running(cell, 0.0, lambda: job.inside)


def _of_order(cell: Cell) -> _Running:
    return _Running(cell, 0.0, lambda: None)


@dataclass
class _Scheduler:
    """A context manager: whatever is running at its end is ended."""

    store: Store
    run_id: str
    tasks: list[_Task]
    watchers: Watchers
    stop: StopFlag
    publisher: Publisher
    left: set[int] = field(default_factory=set)
    """Cells that had not finished when the store was last asked."""
    jobs: dict[int, tuple[Job, Deadline]] = field(default_factory=dict)
    spent: dict[str, list[float]] = field(default_factory=dict)
    """By engine: seconds and weight of the cells that finished here."""
    at_once: int = 1
    last_beside: bool = False
    """Does the last virtual cell begin beside so many others? Else CPUs are idle while it runs."""
    failed: int = 0
    """Cells that failed here."""

    def __enter__(self) -> _Scheduler:
        return self

    def __exit__(self, *error: object) -> None:
        for job, _ in self.jobs.values():
            job.close()

    def run(self, at_once: int, last_beside: bool) -> bool:
        """Run all that is missing; False: somebody else killed or stopped a worker."""
        from emu.engines import ManyAtOnce

        self.at_once, self.last_beside = at_once, last_beside
        # Virtual cells first: they are forked, which is cheapest before a machine is loaded here.
        many = [task for task in self.tasks if isinstance(task.machine, ManyAtOnce)]
        single = [task for task in self.tasks if not isinstance(task.machine, ManyAtOnce)]
        # Long ones first, so that no CPU of the host waits long at the end.
        many.sort(key=lambda task: (task.cell.repeat, -task.cell.cpus))
        single.sort(key=lambda task: task.cell.repeat)
        while self._look():
            with self.store.machine(alone=False) as lock:
                if any(task.number in self.left for task in many):
                    self._wait_for(lock)
                    if not self._run_many([task for task in many if task.number in self.left]):
                        return False
            with self.store.machine(alone=True) as lock:
                for task in [task for task in single if task.number in self.left]:
                    self._wait_for(lock)
                    if not self._run_single(task):
                        return False
            # What is still missing is with somebody else, or was: a process that dies leaves it.
            if self._look():
                self._pause()
        return True

    def run_on(self, cluster: Cluster, at_once: int | None) -> None:
        """Run all that is missing on the workers of a cluster."""
        # As on one host: what is measured comes when nothing else is left, in turns.
        order = sorted(self.tasks, key=lambda task: (task.cell.repeat, -task.cell.cpus))
        in_turns = sorted(self.tasks, key=lambda task: task.cell.repeat)
        while self._look():
            self._send([t for t in order if t.cell.engine != "native"], cluster, at_once)
            self._send([t for t in in_turns if t.cell.engine == "native"], cluster, at_once)
            if self._look():
                self._pause()

    def _send(self, tasks: Sequence[_Task], cluster: Cluster, most: int | None) -> None:
        by_number = {task.number: task for task in tasks if task.number in self.left}
        waiting = list(by_number)
        mine: set[int] = set()
        while waiting or cluster.running:
            self.stop.check()
            cluster.look()
            self.at_once = min(most or cluster.threads, cluster.threads) or 1
            for number in list(waiting):
                task = by_number[number]
                room = most is None or len(cluster.running) < most
                worker = cluster.place(task.cell) if room else None
                if worker is None:
                    if task.cell.engine == "native" and room:
                        continue
                    break
                waiting.remove(number)
                if number in mine or self._claim([task]) is not None:
                    mine.add(number)
                    order = make_order(digest(), task.experiment, task.cell)
                    cluster.send(number, order, task.cell, worker)
            if waiting and not cluster.running:
                cluster.explain_waiting(by_number[waiting[0]].cell.engine)
            time.sleep(_TICK_S)
            for number, answer in cluster.answers():
                task = by_number[number]
                if answer is None or answer.result is None:
                    waiting.insert(0, number)
                    continue
                if task.cell.engine == "native" and answer.node:
                    self.store.add_node(self.run_id, answer.node, answer.about)
                self._save(task, answer.result, again=False)
            self._tell([_of_order(by_number[number].cell) for number in cluster.running])
        # Who was lost a moment ago is to be named, too.
        cluster.look(at_once=True)

    def _look(self) -> set[int]:
        self.left = self.store.missing(self.run_id)
        return self.left

    def _run_many(self, tasks: list[_Task]) -> bool:
        from emu.coordinator import CellFailed, Deadline, first_ready
        from emu.engines import ManyAtOnce

        by_number = {task.number: task for task in tasks}
        waiting = list(by_number)
        go_on = True
        while True:
            while waiting and self._may_begin(waiting, by_number):
                number = self._claim([by_number[number] for number in waiting])
                if number is None:
                    waiting.clear()
                    break
                waiting.remove(number)
                task = by_number[number]
                assert isinstance(task.machine, ManyAtOnce)
                task.machine.watched = self.store.directory
                job = task.machine.start(task.cell)
                self.jobs[number] = job, Deadline(self.stop, task.timeout_ns)
            if not self.jobs:
                return go_on
            first_ready([job.child for job, _ in self.jobs.values()], _TICK_S)
            for number, (job, deadline) in list(self.jobs.items()):
                late = None
                try:
                    deadline.check()
                    if not job.ready():
                        continue
                except CellFailed as error:
                    late = error
                del self.jobs[number]  # it closes itself, even where it raises
                result, own = job.fail(late) if late else job.finish()
                again = not own
                if job.notice:
                    self.watchers.notice(job.notice)
                if again and self.store.times_again(self.run_id, number):
                    again = False
                    self._give_up(by_number[number], result)
                if again:  # those that run may end, and no other begins
                    waiting.clear()
                    go_on = False
                self._save(by_number[number], result, again)
            self._tell([_of_job(by_number[n].cell, job) for n, (job, _) in self.jobs.items()])

    @staticmethod
    def _give_up(task: _Task, result: CellResult) -> None:
        """It was killed or stopped for the second time: nobody wants it to be tried for ever."""
        needed, available = _bytes_of(task) // MIB, memory_available() // MIB
        result.error = (
            f"{result.error}, for the second time, so {task.cell} is not tried again; where memory "
            f"runs out the kernel kills so: it may need {needed:,} MiB, {available:,} are available"
        )

    def _may_begin(self, waiting: list[int], by_number: Mapping[int, _Task]) -> bool:
        """May one more run, and is there memory for it? One alone may always try."""
        if len(self.jobs) >= self.at_once + (self.last_beside and len(waiting) == 1):
            return False
        return not self.jobs or memory_available() > _bytes_of(by_number[waiting[0]])

    def _run_single(self, task: _Task) -> bool:
        from emu.coordinator import Deadline
        from emu.engines import OneByOne

        if self._claim([task]) is None:
            return True

        def tick(share: float, look: Callable[[], Inside]) -> None:
            self._tell([_Running(task.cell, share, look)])

        meter = host.LoadMeter.start()
        deadline = Deadline(self.stop, task.timeout_ns)
        assert isinstance(task.machine, OneByOne)
        result, own = task.machine.run(task.cell, deadline, tick)
        result.host.other_cpus, result.host.stolen_cpus = meter.read()
        self._save(task, result, again=not own)
        return own

    def _claim(self, tasks: Sequence[_Task]) -> int | None:
        lease_s = _LEASE_S + max(task.timeout_ns for task in tasks) / 1e9
        self._look()
        return self.store.claim(self.run_id, [task.number for task in tasks], lease_s)

    def _save(self, task: _Task, result: CellResult, again: bool) -> None:
        self.store.save(self.run_id, task.number, result, again=again)
        self.left.discard(task.number)
        spent = self.spent.setdefault(task.cell.engine, [0.0, 0.0])
        spent[0] += result.host.wall_s
        spent[1] += _weight(task.cell)
        self.publisher.has_finished(result)
        if not result.ok:
            self.failed += 1
            if self.watchers.on_failure:
                self.watchers.on_failure(result)

    def _wait_for(self, lock: MachineLock) -> None:
        while not lock.take():
            self._pause()

    def _pause(self) -> None:
        self.stop.check()
        self._tell([])
        time.sleep(_OTHERS_S)

    def _tell(self, running: Sequence[_Running]) -> None:
        left = [task.cell for task in self.tasks if task.number in self.left]
        shares = [(each.cell, each.share) for each in running]
        progress = Progress(
            done=len(self.tasks) - len(left),
            total=len(self.tasks),
            running=shares,
            left_s=self._left_s(left, shares),
        )
        if self.watchers.progress:
            self.watchers.progress(progress)
        self.publisher.publish(
            done=progress.done,
            failed=self.failed,
            total=progress.total,
            left_s=progress.left_s,
            running=lambda: [each.state() for each in running],
        )

    def _left_s(self, left: Sequence[Cell], running: Sequence[tuple[Cell, float]]) -> float | None:
        shares = dict(running)
        seconds = 0.0
        for cell in left:
            spent_s, weight = self.spent.get(cell.engine, (0.0, 0.0))
            if not weight:
                return None
            at_once = self.at_once if cell.engine == "virtual" else 1
            share = 1 - shares.get(cell, 0.0)
            seconds += share * _weight(cell) * spent_s / weight / at_once
        return seconds


def _bytes_of(task: _Task) -> int:
    from emu.engines import ManyAtOnce

    assert isinstance(task.machine, ManyAtOnce)
    return task.machine.bytes_of(task.cell)


def _weight(cell: Cell) -> float:
    """What a cell costs in proportion to others of its engine."""
    return 8.0 + cell.cpus if cell.engine == "virtual" else 1.0


# ---- what is said about a run ----


def _describe_run(
    experiments: Sequence[Experiment],
    machines: Sequence[Engine],
    given: Mapping[str, Any],
    name: str,
) -> RunInfo:
    about = host.info()
    if any(each.engine == "native" for each in experiments):
        about |= host.state()
    build = {key: _core.build_info().get(key) for key in ("compiler", "flags")}
    build["digest"] = digest()
    if commit := _commit():
        build["commit"] = commit
    return RunInfo(
        id=new_run_id(),
        started=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        version=__version__,
        command=[as_utf8(word) for word in sys.argv[1:]],
        experiment=describe(experiments, [machine.cpus for machine in machines], given, name),
        host=about,
        build=build,
        files={
            as_utf8(str(path.resolve())): _sha256([path])
            for each in experiments
            for path in _own_files(each)
        },
    )


def _own_files(experiment: Experiment) -> Iterator[Path]:
    """Files of the user that the experiment names."""
    words = (experiment.rmap, experiment.mm, experiment.topology, experiment.workload)
    for text in (text for names in words for text in names):
        if path := own_file(text):
            yield path
    if "host" in experiment.topology and topology.host_file().is_file():
        yield topology.host_file()


def _sha256(paths: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()


@lru_cache(maxsize=1)
def digest() -> str:
    """Of all that is installed: libraries, Python, workloads, topologies."""
    package = _core.data_path("lib", "build.json").parents[1]
    kinds = (".so", ".py", ".toml")
    return _sha256(sorted(path for path in package.rglob("*") if path.suffix in kinds))


def _commit() -> str | None:
    """Of the checkout in whose environment mm-emu is installed."""
    from emu.coordinator import commit_of

    for directory in Path(sys.prefix).parents:
        if (directory / "workers" / "include" / "emu").is_dir():
            return commit_of(directory)
    return None


def _check_for_cluster(experiments: Sequence[Experiment]) -> None:
    check_installed()
    for each in experiments:
        if each.engine == "virtual" and "host" in each.topology:
            raise InputError(
                "--topology host: is another machine on each worker of a cluster; "
                "emu calibrate -o host.toml, and --topology ./host.toml"
            )


def _fingerprint(info: RunInfo, cluster: str | None) -> str:
    """Of all that decides about the results: runs with the same one may share cells."""
    engines = info.experiment["engine"]
    decides: dict[str, Any] = {
        "experiment": {k: v for k, v in info.experiment.items() if k != "name"},
        "version": info.version,
        "digest": info.build["digest"],
        "files": info.files,
    }
    if cluster is not None and "native" in engines:
        decides["node"] = "cluster"  # what is measured there is not mixed with what is here
    elif "native" in engines or "host" in info.experiment["matrix"].get("topology", ()):
        decides["host"] = [info.host[key] for key in ("cpus", "model", "kernel", "machine")]
        decides["node"] = os.uname().nodename
    return hashlib.sha256(msgspec.json.encode(decides, order="sorted")).hexdigest()
