"""An experiment: a matrix of cells, from the command line, a file or Python.

The words are the same in all three. In TOML a value is what the option takes, or a list, and what
cells differ in is in ``[matrix]``:

    repeats = 5
    duration = "200ms"

    [matrix]
    rmap = ["single", "numa-locks", "btree:node=256"]
    cpus = "1,2,4..64"

    [[exclude]]             # cells that all words of a rule fit are left out ...
    rmap = "btree"
    cpus = "32..64"         # in a rule: all numbers from 32 to 64

    [[include]]             # ... and these come in addition; a word that is missing: the matrix's
    rmap = "single"
    cpus = 384

With two engines, ``[native]`` and ``[virtual]`` are tables of what only one of them goes by:

    engine = ["native", "virtual"]
    [virtual]
    repeats = 1
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from emu import workload as workloads
from emu.errors import InputError, about, unknown
from emu.files import is_path, parse_toml
from emu.report.trace import make_window
from emu.results import CellResult, Run
from emu.uncertainty import MAX_DRAWS, MIN_DRAWS
from emu.words import counted
from emu.workload import line_of_key

if TYPE_CHECKING:
    from emu.comparison import Comparison, Side
    from emu.coordinator import StopFlag
    from emu.schedule import Progress
    from emu.store import Store

MAX_CPUS = 4096
"""More CPUs than this are surely a slip of the hand: each is a process here."""
MAX_REPEATS = 1000
MAX_SEED = 2**63 - 1
_OWN = (".c", ".toml")
"""What the names of files of the user end with, if they have no "/"."""
AXES = ("rmap", "mm", "topology", "cpus", "workload")
"""What is in ``[matrix]``."""


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
            f"{self.engine}: {self.rmap}, {self.mm}, {self.topology}, {counted(self.cpus, 'CPU')}, "
            f"{self.workload}, repeat {self.repeat}"
        )


@dataclass(frozen=True)
class Rule:
    """Some cells, by the words that all fit them. An empty word fits every cell."""

    rmap: tuple[str, ...] = ()
    """A design without parameters stands for itself with any."""
    mm: tuple[str, ...] = ()
    topology: tuple[str, ...] = ()
    cpus: tuple[tuple[int, int], ...] = ()
    """From and to, both included."""
    workload: tuple[str, ...] = ()
    engine: tuple[str, ...] = ()

    def fits(self, cell: Cell) -> bool:
        """Is the rule about this cell?"""
        for word in ("rmap", "mm", "topology", "workload", "engine"):
            names, name = getattr(self, word), getattr(cell, word)
            if names and name not in names and name.partition(":")[0] not in names:
                return False
        return not self.cpus or any(low <= cell.cpus <= high for low, high in self.cpus)


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
    isolate: bool = False
    """Without the locks and lines of the rest of the kernel (``emu.background``)."""
    arena_size: int = 0
    """0: from the number of CPUs and the workload."""
    timeout_ns: int = 1800 * 10**9
    """A cell that takes longer, in the host's time, fails."""
    exclude: tuple[Rule, ...] = ()
    included: bool = False
    """Is this what an ``[[include]]`` adds to the matrix before it?"""

    def cells(self, cpus: Mapping[str, tuple[int, ...]]) -> Iterator[Cell]:
        """All cells; ``cpus`` has the numbers of CPUs for each topology."""
        for workload, topology, mm in itertools.product(self.workload, self.topology, self.mm):
            for nr in cpus[topology]:
                for repeat, rmap in itertools.product(range(self.repeats), self.rmap):
                    cell = Cell(
                        rmap=rmap,
                        mm=mm,
                        topology=topology,
                        cpus=nr,
                        workload=workload,
                        engine=self.engine,
                        seed=self.seed + repeat,
                        repeat=repeat,
                    )
                    if not any(rule.fits(cell) for rule in self.exclude):
                        yield cell


def own_file(text: str) -> Path | None:
    """The file of the user that a design, a topology or a workload is, if it is one."""
    for name in (text, text.partition(":")[0]):
        if is_path(name, *_OWN) and Path(name).is_file():
            return Path(name)
    return None


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
        match = re.fullmatch(r"([+-]?\d{1,20})(?:\s*\.\.\s*([+-]?\d{1,20}))?", part)
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


def parse_duration(text: str, option: str = "duration", *, most_m: int = 60) -> int:
    """ "20ms", "1.5s" in ns. Raises InputError."""
    match = re.fullmatch(r"(\d{1,30}(?:\.\d{1,30})?)\s*(ns|us|ms|s|m)", str(text).strip())
    if not match:
        raise InputError(f'--{option} {text}: a number with its unit, as "20ms" or "2s"')
    value = round(float(match[1]) * _UNITS_NS[match[2]])
    if not 10**6 <= value <= most_m * 60 * 10**9:
        raise InputError(f"--{option} {text}: must be from 1ms to {most_m}m")
    return value


def format_duration(ns: int) -> str:
    """The shortest text that parse_duration reads back to ``ns``."""
    for unit in ("m", "s", "ms", "us"):
        if ns % _UNITS_NS[unit] == 0:
            return f"{ns // _UNITS_NS[unit]}{unit}"
    return f"{ns}ns"


def parse_size(text: str) -> int:
    """ "512M", "2G" (powers of 1024) in bytes. Raises InputError."""
    match = re.fullmatch(r"(\d{1,30})\s*([KMGT]?)(?:i?B)?", str(text).strip(), re.IGNORECASE)
    if not match or not int(match[1]):
        raise InputError(f'--arena-size {text}: a size as "512M" or "2G"')
    value = int(match[1]) << (10 * " KMGT".index(match[2].upper() or " "))
    if value > 1 << 45:
        raise InputError(f"--arena-size {text}: must be at most 32T")
    return value


def _names(key: str, value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        try:
            value = split_names(value)
        except InputError as error:
            raise InputError(f"{key}: {error}") from None
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


def _numbers(key: str, value: object) -> str:
    if isinstance(value, list | tuple):
        if not value:
            raise InputError(f"{key}: at least one number")
        return ",".join(map(str, value))
    return str(value)


def _cpus(key: str, value: object) -> tuple[int, ...]:
    text = _numbers(key, value)
    return () if text.strip() == "all" else parse_cpus(text)


def _intervals(key: str, value: object) -> tuple[tuple[int, int], ...]:
    parts = [part.strip() for part in _numbers(key, value).split(",")]
    ends = [parse_cpus(part) for part in parts]
    return tuple((numbers[0], numbers[-1]) for numbers in ends)


def _switch(key: str, value: object) -> bool:
    if value in (True, "on"):
        return True
    if value in (False, "off"):
        return False
    raise InputError(f'{key.replace("_", "-")}: "on" or "off", not {value!r}')


def _rules(key: str, value: object) -> tuple[dict[str, Any], ...]:
    """Rules as they are given: tables, or the text "rmap=btree cpus=32..64"."""
    if isinstance(value, str | Mapping):
        value = [value]
    if not isinstance(value, list | tuple):
        raise InputError(f"{key}: rules, not {value!r}")
    return tuple(_rule(key, rule) for rule in value)


def _as_word(error: InputError) -> str:
    """What is wrong with an option, where it is a word in a file or a rule."""
    return str(error).removeprefix("--")


def _rule(key: str, rule: object) -> dict[str, Any]:
    if isinstance(rule, str):
        # Names of files may have spaces in them.
        words = re.split(r"\s+(?=\w+=)", rule.strip())
        if not words or not all("=" in word for word in words):
            raise InputError(f'--{key} "{rule}": words like "rmap=btree cpus=32..64"')
        pairs = [word.split("=", 1) for word in words]
        if len({name for name, _ in pairs}) < len(pairs):
            raise InputError(f'--{key} "{rule}": each word once; rmap=single,btree is about both')
        rule = dict(pairs)
    if not isinstance(rule, Mapping) or not rule:
        raise InputError(f"{key}: a table of {', '.join((*AXES, 'engine'))}, not {rule!r}")
    for name in rule:
        if name not in (*AXES, "engine"):
            raise BadKey(name, f"[[{key}]]", (*AXES, "engine"))
    for name, value in rule.items():
        read = _names if name != "cpus" else _intervals if key == "exclude" else _cpus
        try:
            read(name, value)
        except InputError as error:
            raise InputError(f"{key}: {_as_word(error)}") from None
    return dict(rule)


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
    "seed": ("seed", lambda key, value: _integer(key, value, 0, MAX_SEED)),
    "repeats": ("repeats", lambda key, value: _integer(key, value, 1, MAX_REPEATS)),
    "duration": ("duration_ns", lambda _, value: parse_duration(value)),
    "timeout": ("timeout_ns", lambda key, value: parse_duration(value, key, most_m=24 * 60)),
    "numa_penalty": ("numa_penalty", _switch),
    "isolate": ("isolate", _switch),
    "arena_size": ("arena_size", lambda _, value: parse_size(value)),
}
_ONCE = {"engine": _names, "exclude": _rules, "include": _rules}
"""Words that are not for one engine."""
_RULED = {"exclude": ("rmap", "mm", "topology", "workload", "engine"), "include": ("engine",)}
"""Words of rules whose names are the matrix's: what is included may be new to it."""
_WRITERS: dict[str, Callable[[Any], Any]] = {
    "duration": format_duration,
    "timeout": format_duration,
    "numa_penalty": lambda value: "on" if value else "off",
    "isolate": lambda value: "on" if value else "off",
    "arena_size": str,
}


class BadKey(InputError):
    """A word that is not known where it stands."""

    def __init__(self, key: str, place: str, valid: Iterable[str]) -> None:
        what = f"key in {place}" if place else "key"
        super().__init__(str(unknown(what, key, valid)))
        self.key = key


def make(given: Mapping[str, Any]) -> tuple[Experiment, ...]:
    """The matrix of each engine, followed by what is included: defaults, over them what is given.

    Keys are the names of the options; None: not given. Under an engine's name is a mapping of what
    only that engine goes by.

    Raises InputError for an unknown key or a bad value.
    """
    values = _read(given)
    only = {name: _read(given.get(name) or {}, table=name) for name in _DEFAULTS}
    excluded = tuple(_exclusion(rule) for rule in values.pop("exclude", ()))
    included = values.pop("include", ())
    made = []
    for engine in dict.fromkeys(values.pop("engine", ("native",))):
        if engine not in _DEFAULTS:
            raise unknown("engine", engine, _DEFAULTS)
        mine = values | only.get(engine, {})
        if engine == "virtual" and not {"topology", "cpus"} & set(mine):
            mine["cpus"] = _VIRTUAL_CPUS
        if "rmap" not in mine and _without_processes(mine.get("workload", ())):
            mine["rmap"] = Experiment.rmap[:1]
        matrix = Experiment(**(_DEFAULTS[engine] | mine), engine=engine, exclude=excluded)
        if matrix.seed + matrix.repeats - 1 > MAX_SEED:
            raise InputError(
                f"--seed {matrix.seed}: repeat r runs with seed + r, which must be at most "
                f"{MAX_SEED}; there are {matrix.repeats} repeats"
            )
        made.append(matrix)
        for rule in included:
            words = {key: _READERS[key][1](key, value) for key, value in rule.items()}
            if engine in words.pop("engine", (engine,)):
                made.append(replace(matrix, **words, exclude=(), included=True))
    return tuple(made)


def _without_processes(names: Sequence[str]) -> bool:
    """Do no processes run, and so all designs come to the same? Of workloads that come with mm-emu.

    A user's file is read once, when it is run: it may be a pipe.
    """
    own = workloads.names()
    return bool(names) and all(
        name in own and not workloads.load(name).has_processes for name in names
    )


def _exclusion(rule: Mapping[str, Any]) -> Rule:
    words: dict[str, Any] = {
        key: (_intervals if key == "cpus" else _names)(key, value) for key, value in rule.items()
    }
    return Rule(**words)


def _read(given: Mapping[str, Any], table: str = "") -> dict[str, Any]:
    """The fields that are given, in a table or (no name) outside of tables."""
    if not isinstance(given, Mapping):
        raise InputError(f"{table}: a table, not {given!r}")
    valid = [key for key in _READERS if key not in _ONCE]
    if not table:
        valid += [*_ONCE, *_DEFAULTS]
    values: dict[str, Any] = {}
    for key, value in given.items():
        if key not in valid:
            raise BadKey(key, f"[{table}]" if table else "", valid)
        with about(key):
            if value is not None and key in _ONCE:
                values[key] = _ONCE[key](key, value)
            elif value is not None and key in _READERS:
                field, reader = _READERS[key]
                values[field] = reader(key, value)
    return values


def override(given: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """``given`` with the options over it, also over what is in its tables and is included."""
    options = {key: value for key, value in options.items() if value is not None}
    merged = dict(given)
    for name in _DEFAULTS:
        if name in merged:
            merged[name] = {k: v for k, v in merged[name].items() if k not in options}
    if "include" in merged:
        rules = _rules("include", merged["include"])
        left = ({k: v for k, v in rule.items() if k not in options} for rule in rules)
        merged["include"] = [rule for rule in left if rule]
    return merged | options


# ---- files ----


def names() -> list[str]:
    """The experiments that come with mm-emu, sorted."""
    return sorted(file.stem for file in _folder().glob("*.toml"))


def path_of(name: str) -> Path:
    """The file of an experiment that comes with mm-emu."""
    return _folder() / f"{name}.toml"


def _folder() -> Path:
    return Path(__file__).with_name("experiments")


def describe_file(path: Path) -> str:
    """What an experiment file says about itself. Raises InputError."""
    return str(parse_toml(path)[0].get("description", ""))


def read_toml(path: Path) -> dict[str, Any]:
    """What an experiment file gives, for ``make``. Raises InputError with the place in it."""
    return _read_file(path)[0]


class _Source(NamedTuple):
    """What an experiment is made from, but for options."""

    given: dict[str, Any]
    name: str = ""
    file: Path | None = None


def _read_file(path: Path) -> _Source:
    """The same with the experiment's name. It is read once: it may be a pipe."""
    raw, text = parse_toml(path)
    try:
        given = flatten(raw)
        _check_rules(given, make(given), "[[{}]]")
    except InputError as error:
        line = line_of_key(text, error.key) if isinstance(error, BadKey) else None
        raise InputError(f"{path}{f':{line}' if line else ''}: {_as_word(error)}") from None
    return _Source(given, str(raw.get("name", path.stem)), path)


def flatten(raw: Mapping[str, Any]) -> dict[str, Any]:
    """What a file, or the description of a run, gives: its words without ``[matrix]``.

    Raises InputError for a word that is in the wrong place or unknown.
    """
    given = dict(raw)
    for key in ("name", "description"):
        if not isinstance(given.pop(key, ""), str):
            raise InputError(f"{key}: a text, not {raw[key]!r}")
    matrix = given.pop("matrix", {})
    if not isinstance(matrix, Mapping):
        raise InputError(f"matrix: a table, not {matrix!r}")
    for key in matrix:
        if key not in AXES:
            raise BadKey(key, "[matrix]", AXES)
    for key in given:
        if key in AXES:
            raise InputError(f"'{key}' is in no table; it belongs below [matrix]")
    outside = [key for key in _READERS if key not in (*AXES, *_ONCE)]
    valid = ["name", "description", *_ONCE, *outside, "matrix", *_DEFAULTS]
    for key in given:
        if key not in valid:
            raise BadKey(key, "", valid)
    return given | dict(matrix)


def _check_rules(given: Mapping[str, Any], made: Iterable[Experiment], place: str) -> None:
    """A rule about a name that the matrix does not have is a slip of the hand.

    ``given``: its rules are looked at; ``place``: what they are called, with {} for the key.
    """
    have: dict[str, dict[str, None]] = {word: {} for word in _RULED["exclude"]}
    for matrix in made:
        if matrix.included:
            continue
        for word, known in have.items():
            value = getattr(matrix, word)
            known.update(dict.fromkeys((value,) if word == "engine" else value))
    for key, words in _RULED.items():
        for rule in _rules(key, given.get(key) or ()):
            for word in words:
                valid = have[word]
                for name in _names(word, rule[word]) if word in rule else ():
                    if name not in valid and name not in {v.partition(":")[0] for v in valid}:
                        what = f"{word} in the matrix that {place.format(key)} is about:"
                        raise unknown(what, name, valid)


def describe(
    experiments: Sequence[Experiment],
    cpus: Sequence[Mapping[str, tuple[int, ...]]],
    given: Mapping[str, Any],
    name: str = "",
) -> dict[str, Any]:
    """The experiments in the words of a TOML file, complete; ``cpus`` as in ``cells``, for each.

    ``given`` is what they were made from; its rules are taken over.
    """
    tables = {
        experiment.engine: _describe(experiment, numbers)
        for experiment, numbers in zip(experiments, cpus, strict=True)
        if not experiment.included
    }
    first, *others = tables.values()
    common = {
        key: value
        for key, value in first.items()
        if all(key in other and other[key] == value for other in others)
    }
    engines: str | list[str] = list(tables) if others else next(iter(tables))
    own = {
        engine: {key: value for key, value in table.items() if key not in common}
        for engine, table in tables.items()
    }
    described: dict[str, Any] = {"name": name} if name else {}
    described |= {"engine": engines}
    described |= {key: value for key, value in common.items() if key not in AXES}
    described["matrix"] = {key: common[key] for key in AXES if key in common}
    for key in ("exclude", "include"):
        if rules := _rules(key, given.get(key) or ()):
            described[key] = list(rules)
    return described | {name: table for name, table in own.items() if table}


def _describe(experiment: Experiment, cpus: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    values = {}
    defaults = {field.name: field.default for field in fields(Experiment)}
    for key, (field, _) in _READERS.items():
        value = getattr(experiment, field)
        if key == "cpus" and not value:
            numbers = set(cpus.values())
            value = list(numbers.pop()) if len(numbers) == 1 else "all"
        # The size of the arena is no default but what the cell needs.
        if key not in _ONCE and not (key == "arena_size" and value == defaults[field]):
            value = _WRITERS.get(key, lambda same: same)(value)
            values[key] = list(value) if isinstance(value, tuple) else value
    return values


def to_toml(described: Mapping[str, Any]) -> str:
    """The text of an experiment file for what ``describe`` gave."""
    lines = [f"{key} = {_toml(value)}" for key, value in described.items() if not _is_table(value)]
    for key, value in described.items():
        for table in value if isinstance(value, list) else [value]:
            if _is_table(value):
                lines += ["", f"[[{key}]]" if isinstance(value, list) else f"[{key}]"]
                lines += [f"{word} = {_toml(each)}" for word, each in table.items()]
    return "".join(f"{line}\n" for line in lines)


def _is_table(value: object) -> bool:
    return isinstance(value, dict) or (
        isinstance(value, list) and bool(value) and all(isinstance(each, dict) for each in value)
    )


def _toml(value: object) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, str):
        escaped = re.sub(r'["\\\\]|[\x00-\x1f\x7f]', lambda m: f"\\u{ord(m[0]):04x}", value)
        return f'"{escaped}"'
    return str(value).lower() if isinstance(value, bool) else str(value)


# ---- running ----


def check_draws(number: int) -> None:
    """Raises InputError for a number of draws that makes no sense."""
    _integer("uncertainty", number, MIN_DRAWS, MAX_DRAWS)


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
    timeout: str | None = None,
    exclude: str | list[str] | list[dict[str, Any]] | None = None,
    include: str | list[str] | list[dict[str, Any]] | None = None,
    numa_penalty: bool | str | None = None,
    isolate: bool | str | None = None,
    arena_size: str | int | None = None,
    uncertainty: int = 0,
    store: str | Path | None = None,
    fresh: bool = False,
    jobs: int | None = None,
    cluster: str | None = None,
    progress: Callable[[Progress], None] | None = None,
    on_failure: Callable[[CellResult], None] | None = None,
    trace: str | Path | None = None,
    trace_window: str | None = None,
    on_notice: Callable[[str], None] | None = None,
    stop: StopFlag | None = None,
) -> Run:
    """Run an experiment; arguments are the options of ``emu run`` and override those of the file.

    ``experiment`` is a file, the name of one that comes with mm-emu, or a run of the store, which
    is run again. Without anything: the native engine on this machine and the virtual one on a
    server with 384 CPUs.

    What is missing of an unfinished run of the same experiment is run; with ``fresh``, and where
    there is none, a new one begins. ``jobs``: virtual cells at once, at most; None: as many as this
    machine has CPUs, and the last one beside them.

    ``cluster``: the address of a Dask scheduler, to whose workers the cells go (docs/cluster.md).

    ``uncertainty``: on how many drawn machines to run the virtual engine's cells besides.

    ``trace``: a file for a trace of the one cell, of the virtual engine, of ``trace_window``
    ("2ms+500us": from 2 ms after the start of the measured phase on, 500 us long).

    ``progress`` is called every 0.1 s or so, ``on_failure`` as soon as a cell has failed,
    ``on_notice`` with a line that a user should see. ``stop``:
    a flag that the caller has put up; None: SIGINT and SIGTERM are looked after here.

    Returns the run, which prints as a table. Cells that failed are in it, with their error.

    Raises InputError when something given is wrong, EmuError when the engine cannot work here.
    """
    from emu.schedule import Watchers, execute
    from emu.store import Store

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
        "timeout": timeout,
        "exclude": exclude,
        "include": include,
        "numa_penalty": numa_penalty,
        "isolate": isolate,
        "arena_size": arena_size,
    }
    where = Store(Path(store) if store is not None else None)
    if jobs is not None:
        _integer("jobs", jobs, 1, MAX_CPUS)
    source = _Source({})
    if experiment is not None:
        source = _find(experiment, where)
    elif all(value is None for value in options.values()):
        source = _Source({"engine": BOTH})
    given = override(source.given, options)
    made = make(given)
    # Those of a file may be about what options have taken out of its matrix.
    _check_rules(options, made, "--{}")
    if uncertainty:
        check_draws(uncertainty)
        if not any(each.engine == "virtual" and len(each.rmap) > 1 for each in made):
            raise InputError(
                "--uncertainty: is of speed-ups that the virtual engine predicts; "
                "it needs --engine virtual and two designs"
            )
    if cluster is not None and (uncertainty or trace is not None):
        other = "uncertainty" if uncertainty else "trace"
        raise InputError(f"--{other}: is done on this machine; not with --cluster")
    if trace is None and trace_window is not None:
        raise InputError(f"--trace-window {trace_window}: --trace says where the trace goes")
    try:
        return execute(
            made,
            given,
            store=where,
            name=source.name,
            fresh=fresh,
            jobs=jobs,
            cluster=cluster,
            uncertainty=uncertainty,
            trace=None if trace is None else make_window(trace, trace_window),
            watchers=Watchers(progress, on_failure, on_notice),
            stop=stop,
        )
    except InputError as error:
        if source.file is None or not error.key or options[error.key] is not None:
            raise
        raise in_file(source.file, error) from None


def in_file(file: Path, error: InputError) -> InputError:
    """What is wrong with a word's value, which comes from the file."""
    what = str(error).removeprefix(f"--{error.key.replace('_', '-')} ")
    return InputError(f"{file}: {error.key}: {what}")


def run_whole(**options: Any) -> Run:
    """``run``, for who can do nothing with a part of it. Raises Interrupted, too."""
    from emu.coordinator import Interrupted

    ran = run(**options)
    if ran.run.status == "interrupted":
        raise Interrupted
    return ran


def _find(experiment: str | Path, store: Store) -> _Source:
    """What a file, a built-in experiment or a run of the store gives, and its name."""
    text = str(experiment)
    path = Path(text)
    if isinstance(experiment, Path) or is_path(text):
        if path.suffix != ".json":
            return _read_file(path)
    elif text in names():
        return _read_file(path_of(text))._replace(name=text)
    try:
        info = store.load(text).run
    except InputError as error:
        if path.suffix == ".json" or "more than one" in str(error):
            raise
        raise InputError(
            f"{unknown('experiment', text, names())}, a path to a .toml file, or a run "
            "(`emu runs` lists them)"
        ) from None
    given = _absolute(flatten(info.experiment), info.files)
    return _Source(given, str(info.experiment.get("name", "")))


def _absolute(given: dict[str, Any], files: Mapping[str, str]) -> dict[str, Any]:
    """With the files that the run had, wherever we are now."""
    for key, value in given.items():
        if isinstance(value, Mapping):
            given[key] = _absolute(dict(value), files)
        elif isinstance(value, list) and all(isinstance(each, str) for each in value):
            given[key] = [_where_it_is(text, files) for text in value]
    return given


def _where_it_is(text: str, files: Mapping[str, str]) -> str:
    name, colon, parameters = text.partition(":")
    if is_path(name, *_OWN) and not Path(name).exists():
        known = [path for path in files if Path(path).name == Path(name).name]
        name = known[0] if len(known) == 1 else name
    return name + colon + parameters


def load(name: str, store: str | Path | None = None) -> Run:
    """A stored run by id, beginning of an id, "last", or the path of a JSON file.

    Raises InputError when there is none.
    """
    from emu.store import Store

    return Store(Path(store) if store is not None else None).load(name)


def compare(base: Run | str, other: Run | str, store: str | Path | None = None) -> Comparison:
    """Two runs compared; a name is that of a stored run, or "RUN:DESIGN" for one design of it.

    Returns what prints as the table of ``emu compare``. Raises InputError when there is nothing to
    compare.
    """
    from emu.comparison import compare as compare_sides
    from emu.comparison import side

    def of(each: Run | str) -> Side:
        if isinstance(each, Run):
            return side("", lambda _: each)
        return side(each, lambda name: load(name, store))

    return compare_sides(of(base), of(other))
