"""An experiment: a matrix of cells, from the command line, a file or Python, and how it is run.

The words are the same in all three. In TOML a value is what the option takes, or a list:

    rmap = ["single", "numa-locks"]
    cpus = "1,2,4..64"
    duration = "200ms"

With two engines, ``[native]`` and ``[virtual]`` are tables of what only one of them goes by:

    engine = ["native", "virtual"]
    [virtual]
    cpus = "1,2,4..384"
"""

from __future__ import annotations

import contextlib
import difflib
import itertools
import os
import platform
import re
import sys
import time
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emu._version import __version__
from emu.errors import InputError
from emu.results import CellResult, Run, RunInfo, Store, new_run_id

if TYPE_CHECKING:
    from emu.coordinator import StopFlag

MAX_CPUS = 4096
"""More CPUs than this are surely a slip of the hand: each is a process here."""
MAX_REPEATS = 1000

Progress = Callable[[int, int, "Cell", float], None]
"""Called often with: finished cells, all cells, the cell that runs, its share done (0..1)."""


@dataclass(frozen=True)
class Cell:
    """The unit that is run and stored. ``seed`` is the cell's own: repeats differ in it."""

    rmap: str
    mm: str
    topology: str
    cpus: int
    workload: str
    engine: str
    seed: int
    repeat: int

    def __str__(self) -> str:
        return (
            f"{self.engine}: {self.rmap}, {self.mm}, {self.topology}, {self.cpus} CPUs, "
            f"{self.workload}, repeat {self.repeat}"
        )


@dataclass(frozen=True)
class Experiment:
    """The matrix of one engine, complete: every default is filled in. Times are ns, sizes bytes."""

    rmap: tuple[str, ...] = ("single", "numa-trees", "numa-locks")
    mm: tuple[str, ...] = ("per-vma-lock",)
    topology: tuple[str, ...] = ("host",)
    cpus: tuple[int, ...] = ()
    """Empty: as many as this machine has (or the topology, if that has fewer)."""
    workload: tuple[str, ...] = ("execl",)
    engine: str = "native"
    seed: int = 1
    repeats: int = 3
    duration_ns: int = 1_000_000_000
    numa_penalty: bool = False
    arena_size: int = 0
    """0: from the number of CPUs and the workload."""

    def cells(self, cpus: Mapping[str, tuple[int, ...]]) -> Iterator[Cell]:
        """All cells; ``cpus`` has the numbers of CPUs for each topology.

        Designs take turns, so that what changes on the host meets all of them: A B A B.
        """
        for workload, topology, mm in itertools.product(self.workload, self.topology, self.mm):
            for nr in cpus[topology]:
                for repeat, rmap in itertools.product(range(self.repeats), self.rmap):
                    yield Cell(
                        rmap=rmap,
                        mm=mm,
                        topology=topology,
                        cpus=nr,
                        workload=workload,
                        engine=self.engine,
                        seed=self.seed + repeat,
                        repeat=repeat,
                    )


def nearest(name: str, names: Iterable[str]) -> str:
    """` (did you mean 'x'?)`, or nothing when no name is near."""
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f" (did you mean '{close[0]}'?)" if close else ""


def unknown(what: str, name: str, names: Iterable[str]) -> InputError:
    """The error for a name that is not there: lists those that are."""
    valid = list(names)
    return InputError(f"no {what} '{name}'{nearest(name, valid)}; there are: {', '.join(valid)}")


def split_names(text: str) -> list[str]:
    """Names separated by commas; "a:x=1,y=2,b" is a with two parameters, and b.

    Raises InputError for an empty name.
    """
    names: list[str] = []
    for part in (piece.strip() for piece in text.split(",")):
        if re.fullmatch(r"[\w-]+=[^:]*", part) and names and ":" in names[-1]:
            names[-1] += f",{part}"
        elif part:
            names.append(part)
        else:
            raise InputError(f'"{text}": a name is missing beside a comma')
    return list(dict.fromkeys(names))


def parse_cpus(text: str) -> tuple[int, ...]:
    """ "1,2,4..384": numbers, and ranges that double from the first and end with the last.

    Raises InputError.
    """
    numbers: list[int] = []
    for part in (piece.strip() for piece in str(text).split(",")):
        match = re.fullmatch(r"([+-]?\d+)(?:\s*\.\.\s*([+-]?\d+))?", part)
        if not match:
            raise InputError(
                f'--cpus {text}: "{part}" is not a number of CPUs; "1,2,4..64" is 1,2,4,8,16,32,64'
            )
        first, last = int(match[1]), int(match[2] or match[1])
        for number in (first, last):
            if not 1 <= number <= MAX_CPUS:
                raise InputError(f"--cpus {number}: must be from 1 to {MAX_CPUS}")
        if last < first:
            raise InputError(f'--cpus {text}: "{part}" ends below its beginning')
        while first < last:
            numbers.append(first)
            first *= 2
        numbers.append(last)
    return tuple(dict.fromkeys(numbers))


_UNITS_NS = {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9}


def parse_duration(text: str) -> int:
    """ "20ms", "1.5s" in ns. Raises InputError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ns|us|ms|s|m)", str(text).strip())
    if not match:
        raise InputError(f'--duration {text}: a number with its unit, as "20ms" or "2s"')
    value = round(float(match[1]) * _UNITS_NS[match[2]])
    if not 10**6 <= value <= 3600 * 10**9:
        raise InputError(f"--duration {text}: must be from 1ms to 60m")
    return value


def format_duration(ns: int) -> str:
    """The shortest text that parse_duration reads back to ``ns``."""
    for unit in ("s", "ms", "us"):
        if ns % _UNITS_NS[unit] == 0:
            return f"{ns // _UNITS_NS[unit]}{unit}"
    return f"{ns}ns"


def parse_size(text: str) -> int:
    """ "512M", "2G" (powers of 1024) in bytes. Raises InputError."""
    match = re.fullmatch(r"(\d+)\s*([KMGT]?)(?:i?B)?", str(text).strip(), re.IGNORECASE)
    if not match or not int(match[1]):
        raise InputError(f'--arena-size {text}: a size as "512M" or "2G"')
    value = int(match[1]) << (10 * " KMGT".index(match[2].upper() or " "))
    if value > 1 << 45:
        raise InputError(f"--arena-size {text}: must be at most 32T")
    return value


def _names(key: str, value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        value = split_names(value)
    if not isinstance(value, list | tuple) or not all(isinstance(each, str) for each in value):
        raise InputError(f"{key}: names, not {value!r}")
    if not value:
        raise InputError(f"{key}: at least one name")
    return tuple(value)


def _integer(key: str, value: object, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputError(f"{key}: a whole number, not {value!r}")
    if not low <= value <= high:
        raise InputError(f"--{key} {value}: must be from {low} to {high}")
    return value


def _cpus(key: str, value: object) -> tuple[int, ...]:
    if isinstance(value, list | tuple):
        value = ",".join(str(each) for each in value)
    return parse_cpus(str(value))


def _switch(key: str, value: object) -> bool:
    if value in (True, "on"):
        return True
    if value in (False, "off"):
        return False
    raise InputError(f'{key.replace("_", "-")}: "on" or "off", not {value!r}')


_DEFAULTS: dict[str, dict[str, Any]] = {
    "native": {},
    "virtual": {"topology": ("hygon-12x32",), "repeats": 1, "duration_ns": 10_000_000},
}
"""Where an engine's own defaults are other than those of ``Experiment``. The virtual engine's time
is dear, and its repeats differ by chance only as far as the workload does."""
_VIRTUAL_CPUS = parse_cpus("1,2,4..384")
"""What the virtual engine runs where neither a topology nor a number of CPUs was given."""
BOTH = "native,virtual"
"""The engines of ``emu run`` without any option."""


_READERS: dict[str, tuple[str, Callable[[str, Any], Any]]] = {
    "rmap": ("rmap", _names),
    "mm": ("mm", _names),
    "topology": ("topology", _names),
    "cpus": ("cpus", _cpus),
    "workload": ("workload", _names),
    "engine": ("engine", _names),
    "seed": ("seed", lambda key, value: _integer(key, value, 0, 2**63 - 1)),
    "repeats": ("repeats", lambda key, value: _integer(key, value, 1, MAX_REPEATS)),
    "duration": ("duration_ns", lambda _, value: parse_duration(value)),
    "numa_penalty": ("numa_penalty", _switch),
    "arena_size": ("arena_size", lambda _, value: parse_size(value)),
}


def make(given: Mapping[str, Any]) -> tuple[Experiment, ...]:
    """An experiment for each engine: the engine's defaults, and over them what is given.

    Keys are the names of the options; None: not given. Under an engine's name is a mapping of what
    only that engine goes by.

    Raises InputError for an unknown key or a bad value.
    """
    values = _read(given)
    only = {name: _read(given.get(name) or {}, table=name) for name in _DEFAULTS}
    made = []
    for engine in dict.fromkeys(values.pop("engine", ("native",))):
        mine = values | only.get(engine, {})
        if engine == "virtual" and not {"topology", "cpus"} & set(mine):
            mine["cpus"] = _VIRTUAL_CPUS
        made.append(Experiment(**(_DEFAULTS.get(engine, {}) | mine), engine=engine))
    return tuple(made)


def _read(given: Mapping[str, Any], table: str = "") -> dict[str, Any]:
    """The fields that are given, in a table or (no name) outside of tables."""
    if not isinstance(given, Mapping):
        raise InputError(f"{table}: a table, not {given!r}")
    valid = [key for key in _READERS if key != "engine"] if table else [*_READERS, *_DEFAULTS]
    values: dict[str, Any] = {}
    for key, value in given.items():
        if key not in valid:
            raise unknown(f"key in [{table}]" if table else "key", key, valid)
        if value is not None and key in _READERS:
            field, reader = _READERS[key]
            values[field] = reader(key, value)
    return values


def override(given: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """``given`` with the options over it, also over what is in its tables."""
    options = {key: value for key, value in options.items() if value is not None}
    merged = dict(given)
    for name in _DEFAULTS:
        if name in merged:
            merged[name] = {k: v for k, v in merged[name].items() if k not in options}
    return merged | options


def read_toml(path: Path) -> dict[str, Any]:
    """What an experiment file gives, for ``make``. Raises InputError with the place in it."""
    try:
        given = tomllib.loads(path.read_text())
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: {error}") from None
    try:
        make(given)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return given


def describe(
    experiments: Sequence[Experiment], cpus: Sequence[Mapping[str, tuple[int, ...]]]
) -> dict[str, Any]:
    """The experiments in the words of a TOML file, complete; ``cpus`` as in ``cells``, for each."""
    tables = {
        experiment.engine: _describe(experiment, numbers)
        for experiment, numbers in zip(experiments, cpus, strict=True)
    }
    first, *others = tables.values()
    common = {
        key: value
        for key, value in first.items()
        if all(key in other and other[key] == value for other in others)
    }
    engines: str | list[str] = list(tables) if others else next(iter(tables))
    own = {
        name: {key: value for key, value in table.items() if key not in common}
        for name, table in tables.items()
    }
    return {"engine": engines} | common | {name: table for name, table in own.items() if table}


def _describe(experiment: Experiment, cpus: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    values = asdict(experiment)
    del values["engine"]
    values["duration"] = format_duration(values.pop("duration_ns"))
    values["cpus"] = sorted(set(itertools.chain.from_iterable(cpus.values())))
    values["numa_penalty"] = "on" if values["numa_penalty"] else "off"
    size = values.pop("arena_size")
    if size:
        values["arena_size"] = str(size)
    return values


def _host_info() -> dict[str, Any]:
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return {
        "cpus": len(os.sched_getaffinity(0)),
        "model": model,
        "kernel": platform.release(),
        "machine": platform.machine(),
    }


def execute(
    experiments: Sequence[Experiment],
    *,
    store: Store | None,
    progress: Progress | None = None,
    on_failure: Callable[[CellResult], None] | None = None,
    stop: StopFlag | None = None,
) -> Run:
    """Run all cells, engine after engine, and keep them in the store (None: nowhere).

    What has finished is in the store after every cell, in order of the experiments. The virtual
    engine goes first: it forks its cells, which can be done as long as no machine is loaded here.

    A failed cell does not end the run, unless somebody else killed or stopped a worker of it. An
    interrupt (SIGINT, SIGTERM) ends it, and ``run.status`` says so.

    Raises InputError before any cell runs when one of the experiments cannot be run.
    """
    from emu import engines
    from emu.coordinator import Interrupted, StopFlag

    with contextlib.ExitStack() as cleanup:
        stop = stop or cleanup.enter_context(StopFlag())
        makers = [engines.get(each.engine) for each in experiments]
        machines: list[engines.Engine] = []
        for maker, each in zip(makers, experiments, strict=True):
            machines.append(maker(each))
            cleanup.callback(machines[-1].close)
        cells = [
            list(each.cells(machine.cpus))
            for each, machine in zip(experiments, machines, strict=True)
        ]
        if store:
            store.prepare()
        run = Run(
            run=RunInfo(
                id=new_run_id(),
                started=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
                version=__version__,
                command=sys.argv[1:],
                experiment=describe(experiments, [machine.cpus for machine in machines]),
                host=_host_info(),
            ),
            cells=[],
        )
        try:
            for machine, its_cells in zip(machines, cells, strict=True):
                machine.prepare(its_cells, stop)
            queue = [(which, cell) for which, its in enumerate(cells) for cell in its]
            queue.sort(key=lambda item: item[1].engine != "virtual")
            finished: list[list[CellResult]] = [[] for _ in machines]
            for number, (which, cell) in enumerate(queue):

                def tick(share: float, number: int = number, cell: Cell = cell) -> None:
                    if progress:
                        progress(number, len(queue), cell, share)

                result, go_on = machines[which].run(cell, stop, tick)
                finished[which].append(result)
                run.cells = [*itertools.chain.from_iterable(finished)]
                if store:
                    store.save(run)
                if not result.ok and on_failure:
                    on_failure(result)
                if not go_on:
                    break
            run.run.status = "done"
        except Interrupted:
            run.run.status = "interrupted"
    if store and run.cells:
        store.save(run)
    return run


def run(
    experiment: str | Path | None = None,
    *,
    rmap: str | list[str] | None = None,
    mm: str | list[str] | None = None,
    topology: str | list[str] | None = None,
    cpus: str | int | list[int] | None = None,
    workload: str | list[str] | None = None,
    engine: str | list[str] | None = None,
    seed: int | None = None,
    repeats: int | None = None,
    duration: str | None = None,
    numa_penalty: bool | str | None = None,
    arena_size: str | int | None = None,
    store: str | Path | None = None,
    progress: Progress | None = None,
    on_failure: Callable[[CellResult], None] | None = None,
    stop: StopFlag | None = None,
) -> Run:
    """Run an experiment; arguments are the options of ``emu run`` and override those of the file.

    Without any: the native engine on this machine and the virtual one on a server with 384 CPUs.

    ``progress`` is called every 0.1 s or so, ``on_failure`` as soon as a cell has failed. ``stop``:
    a flag that the caller has put up; None: SIGINT and SIGTERM are looked after here.

    Returns the run, which prints as a table. Cells that failed are in it, with their error.

    Raises InputError when something given is wrong, EmuError when the engine cannot work here.
    """
    options = {
        "rmap": rmap,
        "mm": mm,
        "topology": topology,
        "cpus": cpus,
        "workload": workload,
        "engine": engine,
        "seed": seed,
        "repeats": repeats,
        "duration": duration,
        "numa_penalty": numa_penalty,
        "arena_size": arena_size,
    }
    given: dict[str, Any] = {}
    if experiment is not None:
        given = read_toml(Path(experiment))
    elif all(value is None for value in options.values()):
        given = {"engine": BOTH}
    matrices = make(override(given, options))
    where = Store(Path(store) if store is not None else None)
    return execute(matrices, store=where, progress=progress, on_failure=on_failure, stop=stop)


def load(name: str, store: str | Path | None = None) -> Run:
    """A stored run by id, beginning of an id, "last", or the path of a JSON file.

    Raises InputError when there is none.
    """
    return Store(Path(store) if store is not None else None).load(name)
