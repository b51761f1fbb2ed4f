# SPDX-License-Identifier: MIT
"""Are designs right? ``emu.check()``: the rules one by one, then small scenarios in many orders.

The command is a layer over it. ``conformance`` has the one suite, ``explore`` the other.
"""

from __future__ import annotations

import contextlib
import html
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emu import _core, conformance, explore, explore_report
from emu.conformance import RuleResult
from emu.coordinator import Interrupted, StopFlag
from emu.errors import InputError, unknown
from emu.experiment import MAX_SEED, parse_duration, split_names
from emu.explore import Result, Unit
from emu.files import check_output, write_output
from emu.results import dig
from emu.terminal import plain_console, printable
from emu.words import counted

SUITES = (*conformance.SUITES, "explore")
SEEDS, TIME = 5, "60s"
"""Where nothing else is said: of a rule; for all scenarios together."""
_MEMORY = ("c11", "sc")


@dataclass
class Checked:
    """What came out. ``print(checked)`` shows what `emu check` prints."""

    suites: tuple[str, ...]
    """Those that were asked for."""
    rules: list[RuleResult] = field(default_factory=list)
    """A result for each design, engine and rule of its kind."""
    scenarios: list[Result] = field(default_factory=list)
    """One for each scenario on each design."""
    interrupted: bool = False

    @property
    def failed(self) -> list[RuleResult | Result]:
        """What broke a rule, and scenarios that found something."""
        broken = [each for each in self.rules if each.status == "failed"]
        return [*broken, *(each for each in self.scenarios if each.finding)]

    @property
    def ok(self) -> bool:
        """Was all of it run, and nothing found?"""
        return not self.failed and not self.interrupted

    def array(self, field: str) -> NDArray[Any]:
        """A field of each rule's or scenario's result: "rules.seeds", "scenarios.unit.design".

        Raises InputError for a field that they do not have.
        """
        which, _, rest = field.partition(".")
        if which not in ("rules", "scenarios") or not rest:
            raise InputError(f"no field {field!r}; write it like rules.seeds, scenarios.schedules")
        return np.array([dig(each, rest, type(each).__name__) for each in getattr(self, which)])

    def __str__(self) -> str:
        width = max((len(each.design) for each in self.rules), default=0)
        lines = [printable(rule_line(each, width)) for each in self.rules]
        for each in self.scenarios:
            if each.finding:
                lines += ["", *map(printable, explore_report.explain(each))]
        if self.scenarios:
            lines += [*([""] if lines else []), summary(self.scenarios)]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return f"<pre>{html.escape(str(self))}</pre>"


def rule_line(result: RuleResult, width: int) -> str:
    """One rule on one design and engine; ``width``: of the longest name of a design."""
    status = "FAILED" if result.status == "failed" else result.status
    seeds = counted(result.seeds, "seed")
    detail = (
        f"seed {result.seed}: {result.detail}; again: {result.command}"
        if result.command
        else f"{seeds}: {result.detail}"
    )
    return (
        f"{result.design:{width}}  {result.engine:7}  "
        f"{result.number} {result.rule:10}  {status:8}  {detail}"
    )


def summary(results: Sequence[Result]) -> str:
    """The table of scenarios and what stands below it."""
    out = io.StringIO()
    plain_console(out).print(explore_report.table(results))
    count = sum(result.finding is not None for result in results)
    runs = sum(result.schedules for result in results)
    lines = [
        *(line.rstrip() for line in out.getvalue().splitlines()),
        *explore_report.litmus_lines(results),
        f"{counted(len(results), 'scenario')}, {counted(runs, 'schedule', ',')}: "
        f"{count or 'nothing'} found",
    ]
    return "\n".join(lines)


@dataclass(frozen=True)
class _Ears:
    """Who is told what, while it runs."""

    progress: Callable[[int, int, str], None]
    on_line: Callable[[str], None]
    on_notice: Callable[[str], None]
    width: int


@dataclass(frozen=True)
class _Orders:
    """What the options of the suite ``explore`` say; see check()."""

    scenario: str | None
    policy: str
    schedules: int
    time: str
    seed: int
    depth: int
    preemptions: int | None
    memory: str
    mm: str | None
    replay: str | None
    jobs: int | None


def check(
    designs: str | Path | Sequence[str | Path] | None = None,
    *,
    suite: str | None = None,
    seed: int = 1,
    engine: str | Sequence[str] | None = None,
    seeds: int | None = None,
    rule: str | Sequence[str] | None = None,
    scenario: str | None = None,
    policy: str | None = None,
    schedules: int | None = None,
    time: str | None = None,
    depth: int | None = None,
    preemptions: int | None = None,
    memory: str | None = None,
    mm: str | None = None,
    replay: str | None = None,
    trace: str | Path | None = None,
    jobs: int | None = None,
    progress: Callable[[int, int, str], None] | None = None,
    on_line: Callable[[str], None] | None = None,
    on_notice: Callable[[str], None] | None = None,
    width: int = 120,
    stop: StopFlag | None = None,
) -> Checked:
    """Check that designs keep the rules of their kind; arguments are the options of `emu check`.

    ``designs``: names, rmap or mm, files, or "all". Without options they go through the rules, and
    are explored for a minute then; without designs all that is built in is explored.

    ``progress`` is called with (done, of how many, what) while it runs, ``on_line`` with the text
    of each rule's result and of each finding as soon as it is there, findings at most ``width``
    columns wide, ``on_notice`` with a line that a user should see. ``stop``: a flag that the
    caller has put up; None: SIGINT and SIGTERM are looked after here.

    Returns what came out, which prints as the command's output. Raises InputError when something
    given is wrong.
    """
    names = _names(designs)
    suites = choose_suites(
        suite,
        bool(names),
        {"--engine": engine, "--seeds": seeds, "--rule": rule},
        {
            "--scenario": scenario,
            "--policy": policy,
            "--schedules": schedules,
            "--time": time,
            "--depth": depth,
            "--preemptions": preemptions,
            "--memory": memory,
            "--mm": mm,
            "--replay": replay,
            "--trace": trace,
            "--jobs": jobs,
        },
    )
    for option, value, least, most in (
        ("--seed", seed, 0, MAX_SEED),
        ("--seeds", seeds, 1, None),
        ("--schedules", schedules, 1, None),
        ("--depth", depth, 1, 8),
        ("--preemptions", preemptions, 0, None),
        ("--jobs", jobs, 1, None),
    ):
        if value is not None and (value < least or (most is not None and value > most)):
            limits = f"at least {least}" if most is None else f"from {least} to {most}"
            raise InputError(f"{option} {value}: must be {limits}")
    for option, number, policies in (
        ("--depth", depth, ("pct", "mixed")),
        ("--preemptions", preemptions, ("exhaustive",)),
    ):
        if number is not None and (policy or "mixed") not in policies:
            raise InputError(f"{option} {number}: is of --policy {' and '.join(policies)} alone")
    if trace is not None:
        check_output("--trace", Path(trace))
    ears = _Ears(
        progress or (lambda *_: None),
        on_line or (lambda _: None),
        on_notice or (lambda _: None),
        width,
    )
    orders = _Orders(
        scenario=scenario,
        policy=policy or "mixed",
        schedules=schedules or 0,
        time=time or TIME,
        seed=seed,
        depth=depth or 0,
        preemptions=preemptions,
        memory=memory or "c11",
        mm=mm,
        replay=replay,
        jobs=jobs,
    )
    checked = Checked(suites)
    with contextlib.ExitStack() as cleanup:
        flag = stop or cleanup.enter_context(StopFlag())
        try:
            if "conformance" in suites:
                engines = _words(engine) or list(conformance.ENGINES)
                words, which = _words(rule), range(seed, seed + (seeds or SEEDS))
                _conformance(checked, names or ["all"], engines, words, which, ears, flag)
            if "explore" in suites:
                _explore(checked, [each for each in names if each != "all"], orders, ears, flag)
        except Interrupted:
            checked.interrupted = True
    first = next((result.finding for result in checked.scenarios if result.finding), None)
    if trace is not None and first:
        write_output(Path(trace), explore_report.perfetto(first).encode())
    return checked


def _names(designs: str | Path | Sequence[str | Path] | None) -> list[str]:
    if designs is None:
        return []
    given = [designs] if isinstance(designs, str | Path) else designs
    return [name for each in given for name in split_names(str(each))]


def _words(words: str | Sequence[str] | None) -> list[str] | None:
    """ "a,b" or ["a", "b"]."""
    return words.split(",") if isinstance(words, str) else None if words is None else list(words)


def choose_suites(
    suite: str | None,
    has_designs: bool,
    of_rules: Mapping[str, object],
    of_orders: Mapping[str, object],
) -> tuple[str, ...]:
    """The suite that is asked for, or that the options given belong to; or both.

    Raises InputError.
    """
    if suite is not None and suite not in SUITES:
        raise unknown("suite", suite, SUITES)
    rules = [name for name, value in of_rules.items() if value is not None]
    orders = [name for name, value in of_orders.items() if value is not None]
    if suite is None and has_designs and not rules and not orders:
        return SUITES
    chosen = suite or ("conformance" if rules and not orders else "explore")
    strange = rules if chosen == "explore" else orders
    if strange:
        raise InputError(f"{strange[0]} does not belong to --suite {chosen}")
    return (chosen,)


def _conformance(
    checked: Checked,
    designs: Sequence[str],
    engines: Sequence[str],
    rules: Sequence[str] | None,
    seeds: range,
    ears: _Ears,
    stop: StopFlag,
) -> None:
    """Raises InputError, Interrupted."""
    for name in engines:
        if name not in conformance.ENGINES:
            raise unknown("engine", name, conformance.ENGINES)
    chosen = conformance.choose_designs(designs, engines[0])
    kinds = dict.fromkeys(kind for kind, _ in chosen)
    wanted = conformance.choose_rules(
        {kind: conformance.rules(kind, stop) for kind in kinds}, rules
    )
    width = max(len(name) for _, name in chosen)
    for result in conformance.run(
        chosen,
        wanted,
        engines=engines,
        seeds=len(seeds),
        first_seed=seeds.start,
        stop=stop,
        progress=ears.progress,
    ):
        checked.rules.append(result)
        ears.on_line(rule_line(result, width))


def _explore(
    checked: Checked, designs: Sequence[str], how: _Orders, ears: _Ears, stop: StopFlag
) -> None:
    """No designs: all that are built in. Raises InputError, Interrupted."""
    if how.policy not in explore.POLICIES[:4]:
        raise unknown("policy", how.policy, explore.POLICIES[:4])
    if how.memory not in _MEMORY:
        raise unknown("memory model", how.memory, _MEMORY)
    if how.replay is not None and (not how.scenario or len(designs) > 1):
        raise InputError("--replay TEXT: one design and --scenario NAME belong to it")
    seconds = parse_duration(how.time, "time") / 1e9
    notices: list[str] = []
    with contextlib.ExitStack() as cleanup:
        for result in explore.check(
            _units(designs, how, cleanup, notices.append),
            seconds=seconds,
            stop=stop,
            jobs=how.jobs,
            progress=lambda done, of, runs: ears.progress(done, of, counted(runs, "schedule", ",")),
        ):
            if result.finding and result.unit.scenario.name.startswith("program:"):
                result = explore.shrink(result, stop)
            checked.scenarios.append(result)
            if result.finding:
                ears.on_line("\n".join([*explore_report.explain(result, ears.width), ""]))
    for line in notices:
        ears.on_notice(line)


def _units(
    designs: Sequence[str],
    how: _Orders,
    cleanup: contextlib.ExitStack,
    notice: Callable[[str], None],
) -> list[Unit]:
    """Raises InputError."""
    wanted = explore.find_scenarios(how.scenario, cleanup, how.seed) if how.scenario else None
    if designs and wanted is None:
        # The locks are no part of what is named.
        wanted = [each for each in explore.scenarios() if each.kind in _core.NAME_OF_KIND]
    names = designs or explore.built_in_designs(*_kinds(wanted))
    units = [
        replace(
            unit,
            policy="replay" if how.replay is not None else how.policy,
            seed=how.seed,
            schedules=how.schedules,
            depth=how.depth,
            preemptions=how.preemptions,
            sequential=how.memory == "sc",
            replay=how.replay or "",
        )
        for unit in explore.make_units(names, wanted, cleanup, mm=how.mm, notice=notice)
    ]
    if how.replay is not None and len(units) != 1:
        raise InputError("--replay TEXT: one design and --scenario NAME belong to it")
    return units


def _kinds(wanted: Sequence[explore.Scenario] | None) -> list[str]:
    """Of the designs that the scenarios are about; all scenarios: all."""
    kinds = list(_core.NAME_OF_KIND)
    return [kind for kind in kinds if wanted is None or any(e.kind == kind for e in wanted)]
