# SPDX-License-Identifier: MIT
"""Does a design keep the rules? Runs the suites of ``workers/conformance`` on both engines.

A suite is a list of rules with names; the library has it and this module drives it. One rule with
some seeds runs in one process, so that whatever a broken design does stays there. The virtual
engine runs a seed the same way each time; on the native one a CPU is a process, and the seed
decides what is done but not when.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal

import msgspec

from emu import _core, coordinator, topology
from emu.arena import MIB, Arena
from emu.coordinator import CellFailed, DesignFile, StopFlag
from emu.engines import virtual
from emu.engines._designs import find_design, kind_of_design
from emu.errors import InputError, unknown
from emu.experiment import split_names
from emu.words import counted

ENGINES = ("native", "virtual")
SUITES = ("conformance",)

_BESIDE = {"rmap": ("mm", "mmap-sem-rbtree"), "mm": ("rmap", "single")}
"""By kind of the design: what is loaded of the other one. Of an mm design nothing runs here."""
_FILES = ("data", "libpair.so.1")
"""The second is named like a library: designs may treat those apart."""
_PAGES = 64
_ARENA_BYTES = 64 * MIB
_MACHINE = "generic:sockets=2,nodes=2,l3=1,cores=4,smt=1"
"""Four nodes of four CPUs: two groups of eight CPUs, so that designs by group have two trees."""
_NATIVE_CPUS, _NATIVE_NODES = 12, 4
_STEPS = {"virtual": 40, "native": 100}
"""What each CPU does for a seed: as much as shows every broken design within a few seeds."""
_SHARED_CPUS, _SHORT_SLICE_PS = 5, 1_000_000
"""Of mm designs, every other seed on the virtual engine: so few CPUs for as many threads, and time
slices short enough to end anywhere."""
_COLD_PERMILLE, _READ_NS = 500, 10_000
"""Of mm designs: so many faults in the second file sleep for their page, and so long."""
_QUIET_TIMES = 32
_ABOUT_WALKS = ("walk", "fork-order", "atomic", "trylock")
_CHUNK = 25
"""Seeds that share a process."""
_LIMIT_S = 120.0
"""Of a process with that many seeds; each takes less than a second."""
_HANG_S = 5.0
_EVENT_LIMIT = 400_000_000
"""Accesses of one seed in which no call ends; one takes some hundred thousand."""


class _Totals(ctypes.Structure):
    """``struct conformance_totals``."""

    _fields_ = (
        ("bytes", ctypes.c_uint32),
        ("declared", ctypes.c_uint32),
        ("walks", ctypes.c_uint64),
        ("refused", ctypes.c_uint64),
        ("vmas", ctypes.c_uint64),
        ("changes", ctypes.c_uint64),
        ("answers", ctypes.c_uint64),
        ("faults", ctypes.c_uint64),
        ("undecided", ctypes.c_uint64),
        ("addresses", ctypes.c_uint64),
        ("forks", ctypes.c_uint64),
        ("mm_bytes", ctypes.c_int64),
        ("used_file_bytes", ctypes.c_int64),
        ("vma_millibytes", ctypes.c_int64),
    )


class Counts(msgspec.Struct):
    """What a rule's test did, over all seeds that it ran; costs are the last seed's."""

    walks: int = 0
    walks_refused: int = 0
    vmas_met: int = 0
    changes: int = 0
    answers: int = 0
    cold_file_bytes: int | None = None
    """Memory of a file that nobody has mapped yet."""
    used_file_bytes: int | None = None
    """Of one that had been mapped and is no more."""
    vma_bytes: float | None = None
    """Of a linked VMA, beside the VMA itself."""
    faults: int = 0
    """Of mm designs: that were done while nothing changed where they were."""
    faults_refused: int = 0
    faults_undecided: int = 0
    """Where something changed meanwhile."""
    addresses: int = 0
    """Free ranges that were asked for."""
    forks: int = 0
    mm_bytes: int | None = None
    """Of a process without VMAs."""
    lines_per_answer: float | None = None
    """Lines that change hands for each "yes" of mapped(): 0 where it writes none. Virtual only."""


_SUMS = (
    *("walks", "walks_refused", "vmas_met", "changes", "answers"),
    *("faults", "faults_refused", "faults_undecided", "addresses", "forks"),
)


class RuleResult(msgspec.Struct):
    """What came out for one rule, design and engine."""

    design: str
    engine: str
    rule: str
    number: int
    text: str
    status: Literal["ok", "failed", "declared"]
    seeds: int
    """How many ran."""
    detail: str
    counts: Counts
    seed: int | None = None
    """With which it failed."""
    command: str | None = None
    """What runs that seed again."""


@dataclass(frozen=True)
class Rule:
    """A rule of a suite; ``number`` counts from 1."""

    number: int
    name: str
    text: str


@dataclass
class _Broken:
    seed: int
    seen: str


@dataclass
class _Chunk:
    """What comes back from a process: counts of the seeds that were fine, and the first that was
    not."""

    counts: Counts
    declared: tuple[str, ...]
    seeds: int
    broken: _Broken | None = None


class _Suite:
    """The suite's library for the machine that this process has loaded."""

    def __init__(self, core: _core.Core) -> None:
        path = _core.data_path("lib", f"libconformance-{core.machine}.so")
        self._lib = ctypes.CDLL(str(path), mode=os.RTLD_NOW)
        u32, text = ctypes.c_uint32, ctypes.c_char_p
        for name, result, arguments in (
            ("rule", text, [u32, u32, ctypes.POINTER(text)]),
            ("has_quiet", ctypes.c_int, [u32, u32]),
            ("begin", None, [u32, u32, u32]),
            ("cpu", None, [ctypes.c_void_p]),
            ("quiet", None, [ctypes.c_void_p]),
            ("end", text, [ctypes.POINTER(_Totals)]),
            ("doing", text, [u32]),
            ("steps", ctypes.c_uint64, [u32]),
        ):
            function = getattr(self._lib, f"conformance_{name}")
            function.restype, function.argtypes = result, arguments

    def rules(self, kind: int) -> list[Rule]:
        found: list[Rule] = []
        text = ctypes.c_char_p()
        while name := self._lib.conformance_rule(kind, len(found), ctypes.byref(text)):
            found.append(Rule(len(found) + 1, name.decode(), (text.value or b"").decode()))
        return found

    def function(self, name: str) -> int:
        """The address of ``conformance_<name>``."""
        return ctypes.cast(getattr(self._lib, f"conformance_{name}"), ctypes.c_void_p).value or 0

    def run_cpu(self) -> None:
        """What a CPU does."""
        self._lib.conformance_cpu(None)

    def doing(self, cpu: int) -> str | None:
        text: bytes | None = self._lib.conformance_doing(cpu)
        return None if text is None else text.decode(errors="replace")

    def end(self, totals: _Totals) -> str | None:
        """Why the rule is broken, or None."""
        text: bytes | None = self._lib.conformance_end(ctypes.byref(totals))
        return None if text is None else text.decode(errors="replace")

    def __getattr__(self, name: str) -> Callable[..., int]:
        function: Callable[..., int] = getattr(self._lib, f"conformance_{name}")
        return function


def rules(kind: str, stop: StopFlag) -> list[Rule]:
    """The rules for designs of ``kind`` ("rmap" or "mm")."""
    return coordinator.in_child(_rules, kind, stop=stop)


def _rules(kind: str) -> list[Rule]:
    return _Suite(_core.load("native")).rules(_core.NAME_OF_KIND.index(kind))


def choose_rules(
    rules_of: Mapping[str, Sequence[Rule]], words: Sequence[str] | None
) -> dict[str, list[Rule]]:
    """By kind, the rules that ``--rule`` names, by name or number; all without it.

    Raises InputError for a word that is a rule of no kind.
    """
    if words is None:
        return {kind: list(found) for kind, found in rules_of.items()}
    chosen: dict[str, list[Rule]] = {kind: [] for kind in rules_of}
    for word in words:
        found = [
            (kind, rule)
            for kind, rules in rules_of.items()
            for rule in rules
            if word in (rule.name, str(rule.number))
        ]
        if not found:
            names = dict.fromkeys(rule.name for rules in rules_of.values() for rule in rules)
            raise unknown("rule", word, list(names))
        for kind, rule in found:
            chosen[kind].append(rule)
    return chosen


def choose_designs(texts: Sequence[str], machine: str) -> list[tuple[str, str]]:
    """(kind, design) of each; ``all`` is every built-in one, a comma separates as in ``emu run``.

    Files are compiled for ``machine`` to see of which kind they are.

    Raises InputError for an empty name, an unknown one, or a file that is no design.
    """
    chosen: list[tuple[str, str]] = []
    for text in texts:
        if text == "all":
            for kind in _core.NAME_OF_KIND:
                chosen += [(kind, name) for name in _core.design_names(kind)]
        else:
            chosen += [(kind_of_design(each, machine), each) for each in split_names(text)]
    return list(dict.fromkeys(chosen))


def run(
    designs: Sequence[tuple[str, str]],
    chosen: Mapping[str, Sequence[Rule]],
    *,
    engines: Sequence[str] = ENGINES,
    seeds: int = 10,
    first_seed: int = 1,
    stop: StopFlag,
    progress: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> Iterator[RuleResult]:
    """Yields a result for each design, engine and rule of its kind, as it is there.

    ``progress`` is told how many of how many seeds are done, and what comes next.

    Raises InputError for a design that cannot be loaded, Interrupted.
    """
    total = sum(len(chosen[kind]) for kind, _ in designs) * len(engines) * seeds
    done = 0
    if "virtual" in engines:
        _machine()  # once for all processes to come
    with ExitStack() as cleanup:
        files = [
            (engine, kind, text, find_design(kind, text, engine, cleanup))
            for kind, text in designs
            for engine in engines
        ]
        for engine, kind, text, file in files:
            coordinator.in_child(_try_loading, engine, kind, file, stop=stop, what=f"{text}")
        for engine, kind, text, file in files:
            for rule in chosen[kind]:
                counts, ran = Counts(), 0
                declared: tuple[str, ...] = ()
                broken: _Broken | None = None
                for start in range(first_seed, first_seed + seeds, _CHUNK):
                    progress(done + ran, total, f"{text}, {engine}: {rule.name}")
                    end = min(start + _CHUNK, first_seed + seeds)
                    chunk = _run_chunk(engine, kind, file, rule, range(start, end), stop)
                    _add(counts, chunk.counts)
                    declared, broken = chunk.declared or declared, chunk.broken
                    ran += chunk.seeds
                    if broken:
                        break
                done += seeds
                yield _result(text, engine, rule, ran, counts, declared, broken)


def _result(
    text: str,
    engine: str,
    rule: Rule,
    ran: int,
    counts: Counts,
    declared: tuple[str, ...],
    broken: _Broken | None,
) -> RuleResult:
    result = RuleResult(
        design=text,
        engine=engine,
        rule=rule.name,
        number=rule.number,
        text=rule.text,
        status="ok",
        seeds=ran,
        detail="" if broken else _describe(rule, counts),
        counts=counts,
    )
    if broken:
        result.status, result.detail, result.seed = "failed", broken.seen, broken.seed
        result.command = (
            f"emu check {shlex.quote(text)} --suite conformance --engine {engine} "
            f"--rule {rule.name} --seed {broken.seed} --seeds 1"
        )
    elif declared and rule.name in _ABOUT_WALKS:
        result.status = "declared"
        others = f"; of other files: {result.detail}" if counts.walks else ""
        result.detail = f"-EOPNOTSUPP for all walks of {' and '.join(declared)}{others}"
    return result


def _describe(rule: Rule, counts: Counts) -> str:
    if counts.mm_bytes is not None:
        return (
            f"{counts.mm_bytes} bytes per process; {counts.vma_bytes:.0f} more per VMA; "
            "all given back"
        )
    if rule.name == "memory":
        return (
            f"{counts.cold_file_bytes} bytes per cold file, {counts.used_file_bytes} once used; "
            f"{counts.vma_bytes:.0f} more per VMA; all given back"
        )
    if rule.name == "mapped":
        lines = counts.lines_per_answer
        if lines is None:
            shared = "; lines are counted on the virtual engine"
        elif lines < 0.05:
            shared = '; "yes" writes no shared line'
        else:
            shared = f'; a "yes" makes {lines:.1f} lines change hands'
        return f"{counts.answers} answers, {counts.changes} changes{shared}"
    if counts.faults or counts.faults_undecided:
        return (
            f"{counts.faults} faults, {counts.faults_refused} refused, "
            f"{counts.faults_undecided} amid changes; {counts.changes} changes"
            + (f", {counts.addresses} free ranges" if counts.addresses else "")
            + (f", {counts.forks} forks" if counts.forks else "")
        )
    tries = f", {counts.walks_refused} refused" if counts.walks_refused else ""
    met = f"{counted(counts.walks, 'walk')} met {counted(counts.vmas_met, 'VMA')}"
    return f"{met}{tries}; {counted(counts.changes, 'change')}"


def _add(to: Counts, more: Counts) -> None:
    for name in _SUMS:
        setattr(to, name, getattr(to, name) + getattr(more, name))
    for name in set(Counts.__struct_fields__) - set(_SUMS):
        if getattr(more, name) is not None:
            setattr(to, name, getattr(more, name))


def _run_chunk(
    engine: str, kind: str, file: DesignFile, rule: Rule, seeds: range, stop: StopFlag
) -> _Chunk:
    """Some seeds in one process; where that dies, one by one to learn with which seed."""
    try:
        return coordinator.in_child(
            _run_seeds, engine, kind, file, rule, seeds, stop=stop, what="the run", limit_s=_LIMIT_S
        )
    except CellFailed as error:
        if len(seeds) == 1:
            # An assertion names its CPU itself.
            seen = str(error).replace("the run died: BUG: ", "BUG: ")
            return _Chunk(Counts(), (), 1, _Broken(seeds[0], seen))
        both = Counts()
        chunk = _Chunk(both, (), 0)
        for seed in seeds:
            one = _run_chunk(engine, kind, file, rule, range(seed, seed + 1), stop)
            _add(both, one.counts)
            chunk.declared = one.declared
            chunk.seeds += 1
            if one.broken:
                chunk.broken = one.broken
                return chunk
        chunk.broken = _Broken(seeds[0], f"{error}, with one of the seeds from {seeds[0]} on")
        return chunk


def _load_designs(core: _core.Core, kind: str, file: DesignFile) -> None:
    """Raises InputError when it does not fit."""
    folder = "designs" if core.machine == "native" else "designs-virtual"
    other, name = _BESIDE[kind]
    path = _core.data_path(folder, other, f"{name}.so")
    core.design_load(_core.NAME_OF_KIND.index(other), os.fsencode(path), None)
    try:
        core.design_load(
            _core.NAME_OF_KIND.index(kind), os.fsencode(file.path), file.params.encode() or None
        )
    except _core.CoreError as error:
        raise InputError(f"{file.name}: {error}") from None


def _try_loading(engine: str, kind: str, file: DesignFile) -> None:
    _load_designs(_core.load(engine), kind, file)


def _run_seeds(engine: str, kind: str, file: DesignFile, rule: Rule, seeds: range) -> _Chunk:
    core = _core.load(engine)
    suite = _Suite(core)
    _load_designs(core, kind, file)
    chunk = _Chunk(Counts(), (), 0)
    for seed in seeds:
        chunk.seeds += 1
        with Arena.anonymous(_ARENA_BYTES) as arena:
            try:
                _run_seed(core, suite, kind, rule, seed, arena, chunk)
            except (CellFailed, _core.CoreError) as error:
                chunk.broken = _Broken(seed, str(error))
                return chunk
    return chunk


@functools.cache
def _machine() -> topology.Topology:
    return topology.load(_MACHINE)


def _run_seed(
    core: _core.Core,
    suite: _Suite,
    kind: str,
    rule: Rule,
    seed: int,
    arena: Arena,
    chunk: _Chunk,
) -> None:
    """Raises CellFailed or CoreError when the rule is broken."""
    number = _core.NAME_OF_KIND.index(kind)
    on_virtual = core.machine == "virtual"
    if on_virtual:
        node_of_cpu = _machine().node_of_cpu.tolist()
    else:
        node_of_cpu = [cpu * _NATIVE_NODES // _NATIVE_CPUS for cpu in range(_NATIVE_CPUS)]
    cpus = len(node_of_cpu)
    hw_cpus = _SHARED_CPUS if on_virtual and kind == "mm" and seed % 2 == 0 else cpus
    node_of_cpu = [node_of_cpu[cpu % hw_cpus] for cpu in range(cpus)]
    config = _core.make_config(
        node_of_cpu=node_of_cpu,
        nr_nodes=_machine().nr_nodes if on_virtual else _NATIVE_NODES,
        nr_hw_cpus=hw_cpus,
        nr_files=len(_FILES),
        nr_lists=0,
        nr_calls=0,
        seed=seed,
        oversubscribed=cpus > len(os.sched_getaffinity(0)),
    )
    core.arena_format(arena.base, arena.size, ctypes.byref(config))
    for name in _FILES:
        core.file_add(name.encode(), _PAGES)
    if kind == "mm":
        core.file_cold(1, _COLD_PERMILLE, _READ_NS)
    core.boot()
    suite.begin(number, rule.number - 1, _STEPS[core.machine])
    lines = None
    if on_virtual:
        model = virtual.cost_model(_machine(), hw_cpus)
        if hw_cpus < cpus:
            model.time_slice_ps = _SHORT_SLICE_PS
        model.event_limit = _EVENT_LIMIT
        core.virtual_config(ctypes.byref(model))
        try:
            core.virtual_run(suite.function("cpu"), None)
        except _core.CoreError as error:
            if error.errno == errno.EDEADLK:
                raise CellFailed(_deadlock(core, suite, cpus)) from None
            raise
        if suite.has_quiet(number, rule.number - 1):
            few, many = (_transfers(core, suite, times) for times in (1, 1 + _QUIET_TIMES))
            lines = max(0, many - few) / (_QUIET_TIMES * cpus * len(_FILES))
    else:
        coordinator.on_cpus(
            core,
            cpus,
            suite.run_cpu,
            progress=lambda: [suite.steps(cpu) for cpu in range(cpus)],
            doing=suite.doing,
            hang_s=_HANG_S,
        )
    totals = _Totals(bytes=ctypes.sizeof(_Totals))
    if why := suite.end(totals):
        raise CellFailed(why)
    counts = Counts(
        walks=totals.walks,
        walks_refused=totals.refused if kind == "rmap" else 0,
        vmas_met=totals.vmas,
        changes=totals.changes,
        answers=totals.answers,
        faults=totals.faults,
        faults_refused=totals.refused if kind == "mm" else 0,
        faults_undecided=totals.undecided,
        addresses=totals.addresses,
        forks=totals.forks,
        lines_per_answer=lines,
    )
    if rule.name == "memory":
        core.check_drained()
    if rule.name == "memory" and kind == "mm":
        counts.mm_bytes = totals.mm_bytes
        counts.vma_bytes = totals.vma_millibytes / 1000
    elif rule.name == "memory":
        counts.cold_file_bytes = core.memory()["rmap_bytes_per_file"]
        counts.used_file_bytes = counts.cold_file_bytes + totals.used_file_bytes
        counts.vma_bytes = totals.vma_millibytes / 1000
    if on_virtual:
        core.virtual_end()
    _add(chunk.counts, counts)
    chunk.declared = tuple(
        name for index, name in enumerate(_FILES) if totals.declared >> index & 1
    )


def _deadlock(core: _core.Core, suite: _Suite, cpus: int) -> str:
    """Which CPUs wait inside the design, for ever."""
    inside = [(cpu, hook) for cpu in range(cpus) if (hook := suite.doing(cpu))]
    # Walkers wait for one of those that change something.
    inside.sort(key=lambda pair: "walk" in pair[1])
    words = [
        f"CPU {cpu} waits in {hook} ({core.text_of('virtual_stack', cpu).split('>', 2)[-1]})"
        for cpu, hook in inside
    ]
    more = f"; and {len(inside) - 3} more CPUs in hooks" if len(inside) > 3 else ""
    return f"deadlock: {'; '.join(words[:3])}{more}"


def _transfers(core: _core.Core, suite: _Suite, times: int) -> int:
    """Lines that change hands while every CPU does ``times`` what the rule measures."""
    stats = _core.VirtualStats()
    core.virtual_stats(ctypes.byref(stats))
    before: int = stats.transfers
    core.virtual_run(suite.function("quiet"), times)
    core.virtual_stats(ctypes.byref(stats))
    return int(stats.transfers) - before
