# SPDX-License-Identifier: MIT
"""`emu check`: does a design keep the rules? `emu new`: a first file. Mounted by emu.cli."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.table import Table

from emu import checking, design, explore
from emu._version import __version__
from emu.conformance import RuleResult
from emu.coordinator import StopFlag
from emu.errors import InputError
from emu.files import check_output, write_output
from emu.progress import ProgressBar
from emu.terminal import LOOK, plain_console, printable

_RULES = "Options of --suite conformance"
_ORDERS = "Options of --suite explore"


class _Report(msgspec.Struct):
    """What ``--json`` writes."""

    version: str
    suite: str
    seeds: int
    first_seed: int
    results: list[RuleResult]


def check(
    designs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[DESIGN...]",
            help="Designs, rmap or mm: a name, ./FILE.c, NAME:k=v, or all that are built in.  "
            "Default: all, and --suite explore",
        ),
    ] = None,
    suite: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(checking.SUITES),
            help="The rules one by one, or small scenarios in many orders.  Default: what the "
            "other options belong to; without any, first the one and then the other",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="The first one.")] = 1,
    engine: Annotated[
        str | None,
        typer.Option(
            metavar="E,E", help="native, virtual or both.  Default: both", rich_help_panel=_RULES
        ),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="How many seeds: each varies all timing.  Default: 5",
            rich_help_panel=_RULES,
        ),
    ] = None,
    rule: Annotated[
        str | None,
        typer.Option(
            metavar="R,R", help="Rules, by name or number.  Default: all", rich_help_panel=_RULES
        ),
    ] = None,
    json_file: Annotated[
        str | None,
        typer.Option(
            "--json",
            metavar="FILE|-",
            help="Write JSON; -: to stdout, and no lines.",
            rich_help_panel=_RULES,
        ),
    ] = None,
    scenario: Annotated[
        str | None,
        typer.Option(
            metavar="S,S|FILE.c|random:N|list",
            help="Scenarios by name, those of a file, N programs made by chance, or list to see "
            "what there is.  Default: all of designs and locks",
            rich_help_panel=_ORDERS,
        ),
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(
            metavar="P",
            help="random, pct, mixed (both in turn) or exhaustive: who goes next.  Default: mixed",
            rich_help_panel=_ORDERS,
        ),
    ] = None,
    schedules: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="At most so many a scenario.  Default: as time allows",
            rich_help_panel=_ORDERS,
        ),
    ] = None,
    duration: Annotated[
        str | None,
        typer.Option(
            "--time",
            metavar="60s",
            help="For all scenarios together.  Default: 60s",
            rich_help_panel=_ORDERS,
        ),
    ] = None,
    depth: Annotated[
        int | None,
        typer.Option(
            metavar="D",
            min=1,
            max=8,
            help="pct: bugs of this depth.  Default: 2 to 5 in turn",
            rich_help_panel=_ORDERS,
        ),
    ] = None,
    preemptions: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=0,
            help="exhaustive: at most so many.  Default: any number",
            rich_help_panel=_ORDERS,
        ),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            metavar="c11|sc",
            help="What loads may return: see docs/checking.md.  Default: c11",
            rich_help_panel=_ORDERS,
        ),
    ] = None,
    mm: Annotated[
        str | None,
        typer.Option(
            metavar="M",
            help="mm design below rmap designs.  Default: mmap-sem-rbtree",
            rich_help_panel=_ORDERS,
        ),
    ] = None,
    replay: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT", help="Run this one schedule, out of a report.", rich_help_panel=_ORDERS
        ),
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write the first failing run for Perfetto, as JSON.",
            rich_help_panel=_ORDERS,
        ),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="At a time.  Default: CPUs of this host",
            rich_help_panel=_ORDERS,
        ),
    ] = None,
) -> None:
    """Check that designs keep the rules of their kind, rmap or mm.

    conformance: the rules one by one on both engines. A line a design, engine and rule: ok, FAILED
    with what was seen and the command that runs it again, or declared where the design says itself
    that it does not keep the rule.

    explore: small scenarios in many orders, to find missed VMAs, deadlocks, data races and more. A
    failing run is shown step by step, with the command that replays it.

    Without options: all that is built in is explored for a minute; designs that are named go
    through the rules, and are explored for a minute then. Exit status: 0 nothing found, 1 something
    found, 2 wrong input.

    Example: emu check per-vma-lock ./mine.c

    Example: emu check ./mine.c --rule walk,trylock --json -

    Example: emu check ./mine.c --suite explore --time 10m

    Example: emu check --scenario turns-4x2 --policy exhaustive
    """
    if json_file and json_file != "-":
        check_output("--json", Path(json_file))
    if scenario == "list":
        if trace:
            check_output("--trace", trace)
        _list_scenarios()
        return
    # --json is of the rules.
    if json_file is not None and suite is None:
        suite = "conformance"
    if json_file is not None and suite == "explore":
        raise InputError("--json does not belong to --suite explore")
    columns = shutil.get_terminal_size((120, 50)).columns
    with ProgressBar() as bar:

        def show(text: str) -> None:
            bar.clear()
            print(printable(text), flush=True)

        checked = checking.check(
            designs,
            suite=suite,
            seed=seed,
            engine=engine,
            seeds=seeds,
            rule=rule,
            scenario=scenario,
            policy=policy,
            schedules=schedules,
            time=duration,
            depth=depth,
            preemptions=preemptions,
            memory=memory,
            mm=mm,
            replay=replay,
            trace=trace,
            jobs=jobs,
            progress=bar.update,
            on_line=None if json_file == "-" else show,
            on_notice=bar.say,
            width=max(columns, 100),
            # Until the very end: a second Ctrl-C must not cut off the output.
            stop=StopFlag(restore=False).__enter__(),
        )
    if json_file is not None:
        report = _Report(__version__, "conformance", seeds or checking.SEEDS, seed, checked.rules)
        _write(report, json_file)
    if checked.scenarios:
        print(checking.summary(checked.scenarios))
    if checked.interrupted:
        raise typer.Exit(130)
    if checked.failed:
        raise typer.Exit(1)


def _list_scenarios() -> None:
    table = Table(box=None, **LOOK)
    for heading in ("scenario", "of", "CPUs", "what it does"):
        table.add_column(heading)
    for each in explore.scenarios():
        table.add_row(each.name, each.kind, str(each.cpus), each.help)
    plain_console(sys.stdout).print(table)


def _write(report: _Report, file: str) -> None:
    text = msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n"
    if file == "-":
        sys.stdout.buffer.write(text)
        return
    write_output(Path(file), text)


def new(
    kind: Annotated[str, typer.Argument(metavar="|".join(design.SKELETONS), help="What it is.")],
    file: Annotated[Path, typer.Argument(metavar="FILE.c", help="Where to write it.")],
) -> None:
    """Write the skeleton of a design: it works, and says in comments what each part is for.

    Example: emu new rmap mine.c

    Example: emu new mm mine.c
    """
    design.write_skeleton(kind, file)
    shown = shlex.quote(str(file) if file.is_absolute() else f"./{file}")
    beside = "single" if kind == "rmap" else "per-vma-lock"
    print(f"{file}: emu check {shown}   then   emu run --{kind} {beside},{shown}", file=sys.stderr)
