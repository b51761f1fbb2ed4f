# SPDX-License-Identifier: MIT
"""Runs scenarios in many orders and says what went wrong: ``emu check``.

A ``Unit`` is one scenario on one design. Each unit runs in a process of its own (``explore_unit``),
since a broken design may do anything. ``check`` runs several at a time and shares the time among
them. What comes back is a ``Result``; one that found something has a ``Finding`` with all that is
needed to show it and to make it happen again.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import re
import shlex
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from emu import _core, coordinator
from emu.arena import MIB, Arena, run_directory
from emu.coordinator import Child, DesignFile, StopFlag
from emu.engines._designs import find_design, kind_of_design
from emu.errors import EmuError, InputError, unknown

POLICIES = ("random", "pct", "mixed", "exhaustive", "replay")
"""Names of ``enum emu_explore_policy``, in its order."""
KINDS = (
    "nothing",
    "assertion",
    "rule",
    "data race",
    "deadlock",
    "livelock",
    "memory",
    "leak",
    "fault",
    "lock order",
    "starvation",
)
"""Names of ``enum emu_explore_kind``."""
_NOTE = 255
_ORDINARY = 255

_NO_BOUND = 2**32 - 1
_RMAP, _MM = "single", "mmap-sem-rbtree"
"""What is beside the design that a scenario is about."""
_NODES = 2
_FILES = ("libc.so.6", "data")
_FILE_PAGES = 64
_PROGRAMS = 10
_ARENA_BYTES = 16 * MIB
_SLICE_NS = 100_000_000
_CRITICAL_TRIES = 32
_SMALL = {
    "cpu-locks": "cpus=1",
    "dynamic": "threshold=0,shards=2",
    "outer-inner": "shards=3",
    "outer-percpu": "shards=3",
    "pt-extents-percpu": "chunk_kib=2048",
}
"""Parameters for designs that are given none: a few CPUs meet in a few shards."""
_ORDERS = ("relaxed", "consume", "acquire", "release", "acq_rel", "seq_cst")


@dataclass(frozen=True)
class Scenario:
    """A small program to run in many orders.

    ``source``: the compiled file that has it, or "program:..."; None: built in.
    """

    name: str
    kind: str
    cpus: int
    help: str
    index: int
    source: str | None = None
    file: str = ""
    """The file as the user named it."""

    @property
    def text(self) -> str:
        """What ``find_scenarios`` takes for it."""
        return f"{self.file}:{self.name}" if self.file else self.name


@dataclass(frozen=True)
class Unit:
    """What one process does."""

    rmap: DesignFile
    mm: DesignFile
    scenario: Scenario
    policy: str = "mixed"
    seed: int = 1
    schedules: int = 0
    """At most so many; 0: as the time allows."""
    seconds: float = 1.0
    depth: int = 0
    preemptions: int | None = None
    sequential: bool = False
    """Under sequential consistency instead of C11."""
    replay: str = ""
    max_steps: int = 0
    """Of a run; 0: 20000."""
    shorten_seconds: float = 3.0
    """To look for a shorter schedule that fails the same way."""

    @property
    def design(self) -> str:
        """The one that the scenario is about."""
        return self.mm.name if self.scenario.kind == "mm" else self.rmap.name

    def command(self, schedule: str) -> str:
        """What replays a schedule of this unit."""
        words = ["emu check"]
        if self.scenario.kind in _core.NAME_OF_KIND:
            words.append(shlex.quote(self.design))
        if self.scenario.kind == "rmap" and self.mm.name != _MM:
            words.append(f"--mm {shlex.quote(self.mm.name)}")
        words.append(f"--scenario {shlex.quote(self.scenario.text)}")
        if self.sequential:
            words.append("--memory sc")
        return " ".join([*words, f"--replay {schedule or 'a'}"])


@dataclass(frozen=True)
class Event:
    """What a CPU did at a step of a recorded run."""

    step: int
    cpu: int
    what: str
    """"read", "write", "modify", "fence", "lock", "unlock"; "note": the text is in ``name``."""
    name: str
    """Of the object, as "i_mmap_rwsem libc.so.6.count"."""
    before: int
    after: int
    order: str
    is_stale: bool
    """A load that returned an older value than the newest."""
    places: tuple[str, ...]
    """Where: "function:line", innermost first."""
    decisions: int
    """Decisions of the schedule that were made before."""
    shared: bool
    """More than one CPU touches the object in this run."""


@dataclass(frozen=True)
class Finding:
    """Something that went wrong."""

    kind: str
    text: str
    schedule: str
    by: str
    """The policy of the run that found it."""
    after: int
    """Schedules until then."""
    critical: int | None
    """After so many decisions every continuation that was tried fails."""
    events: tuple[Event, ...]
    names: dict[int, str]
    """Of values that are addresses in the arena."""
    command: str


@dataclass(frozen=True)
class Result:
    """What became of a unit."""

    unit: Unit
    schedules: int
    steps: int
    longest: int
    seconds: float
    cpu_seconds: float
    """Of the process, while it ran schedules."""
    coverage: str
    """"exhaustive", "bounded" or "sampled"."""
    memory: str
    """"C11" or "SC"."""
    cut: int = 0
    finding: Finding | None = None
    outcomes: dict[tuple[int, ...], int] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """Schedules a second of CPU time: what one core of this host does."""
        return (self.schedules + self.cut) / self.cpu_seconds if self.cpu_seconds else 0.0


def small(text: str) -> str:
    """A design's text with parameters that suit a few CPUs, unless it has some."""
    return f"{text}:{_SMALL[text]}" if text in _SMALL else text


def built_in_designs(*kinds: str) -> list[str]:
    """All designs of these kinds that come with the program, with their small parameters."""
    return [small(name) for kind in kinds for name in _core.design_names(kind)]


def _in_fork(work: Callable[..., Any], *arguments: Any) -> Any:
    """The result of ``work`` from a child: this process loads no core."""
    return coordinator.in_child(work, *arguments, stop=StopFlag())


def _list_scenarios(path: str | None) -> list[tuple[str, ...]]:
    core = _core.load("explore")
    count = core.explore_scenarios(os.fsencode(path) if path else None)
    return [tuple(core.text_of("explore_scenario", i).split("\t")) for i in range(count)]


def scenarios(source: str | None = None) -> list[Scenario]:
    """The built-in scenarios, or those of a compiled file or a program's text.

    Raises InputError.
    """
    try:
        rows = _in_fork(_list_scenarios, source)
    except EmuError as error:
        raise InputError(str(error)) from None
    return [
        Scenario(name, kind, int(cpus), text, index, source)
        for index, (name, kind, cpus, text) in enumerate(rows)
    ]


def program(seed: int) -> str:
    """A program by chance, as workers/scenarios/program.c reads it: two to four CPUs."""
    chance = random.Random(seed)
    cpus = chance.randint(2, 4)
    texts = []
    for cpu in range(cpus):
        process = chance.randrange(min(cpus, 2))
        walker = cpu == cpus - 1
        calls = [_call(chance, walker) for _ in range(chance.randint(1, 2 if walker else 3))]
        texts.append(f"{process}{','.join(calls)}")
    return "/".join(texts)


def _call(chance: random.Random, walker: bool) -> str:
    at, pages = chance.randrange(6), chance.randint(1, 3)
    flag = chance.choice(["", "x"])
    if walker:
        return chance.choice([f"w{at}.{at + pages}", "w0.63", f"t{at}.{at + pages}", "q"])
    offset = chance.choice([at, chance.randrange(8)])
    return chance.choice([f"m{at}.{pages}.{offset}{flag}", f"u{at}.{pages}", f"p{at}.1{flag}", "f"])


def smaller_programs(text: str) -> Iterator[str]:
    """Programs with a CPU or a call less."""
    cpus = text.split("/")
    for cpu in range(len(cpus)):
        if len(cpus) > 1:
            yield "/".join(cpus[:cpu] + cpus[cpu + 1 :])
    for cpu, own in enumerate(cpus):
        calls = own[1:].split(",")
        for call in range(len(calls)):
            if len(calls) > 1:
                left = own[0] + ",".join(calls[:call] + calls[call + 1 :])
                yield "/".join([*cpus[:cpu], left, *cpus[cpu + 1 :]])


def shrink(result: Result, stop: StopFlag, seconds: float = 20.0) -> Result:
    """The same kind of finding by a program with fewer CPUs and calls, if one is found in time."""
    deadline = time.monotonic() + seconds
    again = True
    while again and result.finding and time.monotonic() < deadline:
        again = False
        for text in smaller_programs((result.unit.scenario.source or "").removeprefix("program:")):
            scenario = find_program(text)
            unit = replace(result.unit, scenario=scenario, schedules=20 * result.finding.after)
            (smaller,) = check([unit], seconds=min(2.0, seconds), stop=stop, jobs=1)
            if smaller.finding and smaller.finding.kind == result.finding.kind:
                result, again = smaller, True
                break
            if time.monotonic() > deadline:
                break
    return result


def find_program(text: str) -> Scenario:
    """The scenario of a program's text. Raises InputError if it cannot be read."""
    (scenario,) = scenarios(f"program:{text}")
    return replace(scenario, name=f"program:{text}")


def _by_chance(text: str, seed: int) -> list[Scenario]:
    match = re.fullmatch(r"random(?::(\d{1,9}))?", text)
    if not match or not 1 <= int(match[1] or _PROGRAMS) <= 1000:
        raise InputError(f"--scenario {text}: random, or random:N for N programs, 1 to 1000")
    count = int(match[1] or _PROGRAMS)
    return [find_program(program(seed * 1000 + number)) for number in range(count)]


def find_scenarios(text: str, cleanup: contextlib.ExitStack, seed: int = 1) -> list[Scenario]:
    """Scenarios by name, all of a file, or programs made by chance.

    "split-walk,loader", "./mine.c", "./mine.c:this,that", "random:20" (of ``seed``) or
    "program:0f/1w0.9".

    Raises InputError for what is not there or does not compile.
    """
    if text.startswith("program:"):
        return [find_program(text.removeprefix("program:"))]
    if text.startswith("random"):
        return _by_chance(text, seed)
    file, names = "", text
    if match := re.fullmatch(r"(.*\.c)(?::(.+))?", text):
        file, names = match[1], match[2] or ""
        if not Path(file).is_file():
            raise InputError(f"--scenario {text}: there is no file {file}")
        directory = cleanup.enter_context(run_directory())
        compiled = str(coordinator.compile_design(Path(file), "virtual", directory))
        try:
            found_there = scenarios(compiled)
        except InputError as error:
            raise InputError(f"--scenario {text}: {error}") from None
        known = {each.name: replace(each, file=file) for each in found_there}
    else:
        known = {each.name: each for each in scenarios()}
    found = []
    for name in names.split(",") if names else known:
        if name not in known:
            raise unknown("scenario", name, [*known, "./FILE.c", "random:N"])
        found.append(known[name])
    return found


def make_units(
    designs: Sequence[str],
    wanted: Sequence[Scenario] | None,
    cleanup: contextlib.ExitStack,
    *,
    mm: str | None = None,
    notice: Callable[[str], None] = lambda line: None,
) -> list[Unit]:
    """The units of ``emu check``: each design with each scenario of its kind.

    Scenarios of locks alone run once, and ``notice`` hears of a design that only such are there
    for. ``mm`` is what is below rmap designs. Without ``wanted``: all but the litmus tests.

    Raises InputError for a design that none of the scenarios is about, and for ``mm`` without rmap
    designs, unless it is what is checked.
    """
    if wanted is None:
        wanted = [each for each in scenarios() if each.kind != "litmus"]
    rmap_file = find_design("rmap", _RMAP, "virtual", cleanup)
    mm_file = find_design("mm", mm or _MM, "virtual", cleanup)
    rest = [each for each in wanted if each.kind not in _core.NAME_OF_KIND]
    units = []
    for text in designs:
        kind = kind_of_design(text, "virtual")
        file = find_design(kind, small(text), "virtual", cleanup)
        own = [each for each in wanted if each.kind == kind]
        if not own and not rest:
            raise InputError(
                f"{text}: is a design of kind {kind}, and {wanted[0].text} is a scenario of "
                f"{wanted[0].kind} designs"
            )
        if not own:
            names = ", ".join(each.name for each in wanted)
            notice(f"{text}: plays no part here; no design of kind {kind} is run by {names}")
        pair = (file, mm_file) if kind == "rmap" else (rmap_file, file)
        units += [Unit(*pair, each) for each in own]
    if mm is not None and {*designs} != {mm} and all(unit.scenario.kind == "mm" for unit in units):
        raise InputError(f"--mm {mm}: is what runs below rmap designs, and none is checked here")
    units += [Unit(rmap_file, mm_file, each) for each in rest]
    return units


def explore_unit(unit: Unit, tick: Callable[[int], None] = lambda schedules: None) -> Result:
    """Run a unit in this process, which has loaded no core yet. ``tick`` hears of progress.

    Raises CoreError, or InputError for a design.
    """
    core = _core.load("explore")
    began = time.monotonic()
    with Arena.anonymous(_ARENA_BYTES) as arena:
        for kind, design in (("rmap", unit.rmap), ("mm", unit.mm)):
            params = design.params.encode() or None
            try:
                core.design_load(_core.NAME_OF_KIND.index(kind), os.fsencode(design.path), params)
            except _core.CoreError as error:
                raise InputError(f"--{kind} {design.name}: {error}") from None
        config = _core.make_config(
            # No more than the scenario has: designs that divide the CPUs among shards would give
            # those that run a single one.
            node_of_cpu=[cpu % _NODES for cpu in range(unit.scenario.cpus)],
            nr_nodes=_NODES,
            nr_files=len(_FILES),
            nr_lists=1,
            nr_calls=1,
            seed=1,  # of emu_random(); a schedule means the same whatever found it
        )
        core.arena_format(arena.base, arena.size, ctypes.byref(config))
        for name in _FILES:
            core.file_add(name.encode(), _FILE_PAGES)
        core.boot()
        source = unit.scenario.source
        core.explore_scenarios(os.fsencode(source) if source else None)
        how = _core.ExploreConfig(
            bytes=ctypes.sizeof(_core.ExploreConfig),
            scenario=unit.scenario.index,
            policy=POLICIES.index(unit.policy),
            depth=unit.depth,
            max_steps=unit.max_steps,
            preemptions=_NO_BOUND if unit.preemptions is None else unit.preemptions,
            sc=unit.sequential,
            seed=unit.seed & (2**64 - 1),
            replay=unit.replay.encode(),
        )
        try:
            core.explore_start(ctypes.byref(how))
        except _core.CoreError as error:
            raise InputError(str(error)) from None
        try:
            return _campaign(core, unit, began, tick)
        finally:
            core.explore_end()
            core.design_unload()


def _campaign(core: _core.Core, unit: Unit, began: float, tick: Callable[[int], None]) -> Result:
    status = _core.ExploreStatus()
    cpu_began = time.process_time()
    limit = unit.schedules or 2**63
    while True:
        core.explore_status(ctypes.byref(status))
        tick(status.schedules)
        left_ns = round((began + unit.seconds - time.monotonic()) * 1e9)
        left = limit - status.schedules
        if status.done or status.found or left <= 0 or left_ns <= 0:
            break
        core.explore_slice(left, min(left_ns, _SLICE_NS))
    seconds, cpu_seconds = time.monotonic() - began, time.process_time() - cpu_began
    if unit.policy != "exhaustive" or not status.done:
        coverage = "sampled" if unit.policy != "exhaustive" else "bounded"
    else:
        coverage = "bounded" if status.preemptions_cut else "exhaustive"
    outcomes = {}
    for number in range(status.outcomes):
        values, count = (ctypes.c_uint64 * 8)(), ctypes.c_uint64()
        core.explore_outcome(number, values, ctypes.byref(count))
        outcomes[tuple(values)] = count.value
    return Result(
        unit=unit,
        schedules=status.schedules,
        steps=status.steps,
        longest=status.longest,
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        coverage=coverage,
        memory="SC" if unit.sequential else "C11",
        cut=status.cut,
        finding=_finding(core, unit, status) if status.found else None,
        outcomes=outcomes,
    )


def _finding(core: _core.Core, unit: Unit, status: _core.ExploreStatus) -> Finding:
    failure = _core.ExploreFailure()
    kind = KINDS[status.found]
    events: tuple[Event, ...] = ()
    schedule, critical = "", None
    # A lock order is of several runs, and what goes wrong in setup() of none.
    of_a_run = kind != "lock order" and status.schedules > 0
    if of_a_run:
        if unit.policy != "replay":
            core.explore_shorten(round(unit.shorten_seconds * 1e9))
        events = _events(core, core.explore_record())
        schedule = core.text_of("explore_schedule")
        with contextlib.suppress(_core.CoreError):
            critical = core.explore_critical(_CRITICAL_TRIES)
    core.explore_failure(ctypes.byref(failure))
    where = "" if status.schedules else "setup() of the scenario: "
    return Finding(
        kind=kind,
        text=where + failure.text.decode(errors="replace"),
        schedule=schedule,
        by=POLICIES[status.by],
        after=status.schedules,
        critical=critical,
        events=events,
        names=_names(core, events),
        command=unit.command(schedule) if of_a_run else "",
    )


_WHAT = {0: "local", 1: "read", 2: "write", 3: "modify", 4: "fence", 5: "lock", 6: "unlock"}


def _events(core: _core.Core, count: int) -> tuple[Event, ...]:
    raws = []
    for number in range(count):
        raw = _core.ExploreEvent()
        core.explore_event(number, ctypes.byref(raw))
        raws.append(raw)
    places = _places(core, {pc for raw in raws for pc in raw.pcs if pc > 1})
    return tuple(
        Event(
            step=raw.step,
            cpu=raw.cpu,
            what="note" if raw.kind == _NOTE else _WHAT[raw.kind],
            name=raw.name.decode(errors="replace"),
            before=raw.before,
            after=raw.after,
            order="ordinary" if raw.order == _ORDINARY else _ORDERS[raw.order],
            is_stale=bool(raw.is_stale),
            places=tuple(places[pc] for pc in raw.pcs if pc > 1),
            decisions=raw.decisions,
            shared=raw.others & (raw.others - 1) != 0,
        )
        for raw in raws
    )


def _names(core: _core.Core, events: Iterable[Event]) -> dict[int, str]:
    """What the values of a run point to. A lock's owner has a flag in its lowest bit."""
    values = {value for event in events for value in (event.before, event.after) if value > 2**20}
    names = {}
    for value in values:
        if name := core.text_of("explore_name", value & ~1).strip():
            names[value] = name
    return names


def _places(core: _core.Core, pcs: Iterable[int]) -> dict[int, str]:
    """ "function:line" of addresses; without binutils "function"."""
    by_file: dict[str, list[tuple[int, int]]] = {}
    places = {}
    for pc in pcs:
        file, offset, function = core.text_of("explore_place", pc).split("\t")
        places[pc] = function
        by_file.setdefault(file, []).append((pc, int(offset)))
    for file, entries in by_file.items():
        # A return address is behind the call.
        lines = coordinator.source_lines(file, [offset - 1 for _, offset in entries])
        for (pc, _), line in zip(entries, lines, strict=False):
            places[pc] = f"{places[pc]} {line}".strip()
    return places


class _Job:
    """A unit in its process."""

    def __init__(self, unit: Unit) -> None:
        self.unit = unit
        self.schedules = 0
        on = f" on {unit.design}" if unit.scenario.kind in _core.NAME_OF_KIND else ""
        what = f"scenario {unit.scenario.name}{on}: the explorer"
        self.child: Child[Any] = Child(explore_unit, unit, what=what, talks=True)

    def receive(self) -> Result | None:
        """What the process has to say by now: nothing, or how it ended.

        Raises EmuError.
        """
        while self.child.ready():
            answer = self.child.result()
            if not isinstance(answer, int):
                result: Result = answer
                return result
            self.schedules = answer
        return None


def check(
    units: Sequence[Unit],
    *,
    seconds: float,
    stop: StopFlag,
    jobs: int | None = None,
    progress: Callable[[int, int, int], None] = lambda done, total, schedules: None,
) -> Iterator[Result]:
    """Run units, several at a time, and yield their results as they come.

    The time is shared among the units evenly, and what one leaves is for those that follow.
    ``progress`` is told (units done, units, schedules so far) ten times a second.

    Raises EmuError, Interrupted.
    """
    jobs = min(jobs or len(os.sched_getaffinity(0)), len(units)) or 1
    deadline = time.monotonic() + seconds
    waiting = list(units)
    running: list[_Job] = []
    done = schedules = 0
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                left = max(0.0, deadline - time.monotonic())
                share = max(0.05, left * jobs / (len(waiting) + len(running)))
                running.append(_Job(replace(waiting.pop(0), seconds=share)))
            coordinator.first_ready([job.child for job in running], 0.1)
            stop.check()
            for job in list(running):
                result = job.receive()
                if result is None:
                    continue
                running.remove(job)
                job.child.close()
                done += 1
                schedules += result.schedules
                yield result
            now = schedules + sum(job.schedules for job in running)
            progress(done, len(units), now)
    finally:
        for job in running:
            job.child.close()
