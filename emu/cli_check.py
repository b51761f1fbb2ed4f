# SPDX-License-Identifier: MIT
"""`emu check`: does a design keep the rules? `emu new`: a first file. Mounted by emu.cli."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from emu import check as checker
from emu import design
from emu._version import __version__
from emu.coordinator import Interrupted, StopFlag
from emu.errors import InputError
from emu.experiment import unknown
from emu.progress import ProgressBar
from emu.results import write_atomically


class _Report(msgspec.Struct):
    """What ``--json`` writes."""

    version: str
    suite: str
    seeds: int
    first_seed: int
    results: list[checker.RuleResult]


def check(
    designs: Annotated[
        list[str],
        typer.Argument(
            metavar="DESIGN...",
            help="Designs: a name, ./FILE.c, NAME:k=v, or all that are built in.",
        ),
    ],
    suite: Annotated[
        str, typer.Option(metavar="|".join(checker.SUITES), help="What to check.")
    ] = "conformance",
    engine: Annotated[str, typer.Option(metavar="E,E", help="native, virtual or both.")] = ",".join(
        checker.ENGINES
    ),
    seeds: Annotated[
        int, typer.Option(metavar="N", min=1, help="How many seeds: each varies all timing.")
    ] = 5,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="The first of them.")] = 1,
    rule: Annotated[
        str | None, typer.Option(metavar="R,R", help="Rules, by name or number.  Default: all")
    ] = None,
    json_file: Annotated[
        str | None,
        typer.Option("--json", metavar="FILE|-", help="Write JSON; -: to stdout, and no lines."),
    ] = None,
) -> None:
    """Check that rmap designs keep the rules of every rmap design.

    A line a design, engine and rule: ok, FAILED with what was seen and the command that runs it
    again, or declared where the design says itself that it does not keep the rule.

    Example: emu check numa-locks ./mine.c

    Example: emu check all --engine virtual --seeds 200

    Example: emu check ./mine.c --rule walk,trylock --json -
    """
    if suite not in checker.SUITES:
        raise unknown("suite", suite, checker.SUITES)
    engines = engine.split(",")
    for name in engines:
        if name not in checker.ENGINES:
            raise unknown("engine", name, checker.ENGINES)
    # Until the very end: a second Ctrl-C must not cut off the output.
    stop = StopFlag(restore=False).__enter__()
    chosen = checker.choose_designs("rmap", designs)
    wanted = checker.choose_rules(checker.rules("rmap", stop), rule)
    report = _Report(__version__, suite, seeds, seed, [])
    width = max(len(name) for name in chosen)
    interrupted = False
    with ProgressBar() as bar:
        try:
            for result in checker.run(
                chosen,
                wanted,
                engines=engines,
                seeds=seeds,
                first_seed=seed,
                stop=stop,
                progress=bar.update,
            ):
                report.results.append(result)
                if json_file != "-":
                    bar.clear()
                    print(_line(result, width), flush=True)
        except Interrupted:
            interrupted = True
    if json_file is not None:
        _write(report, json_file)
    if interrupted:
        raise typer.Exit(130)
    if any(result.status == "failed" for result in report.results):
        raise typer.Exit(1)


def _line(result: checker.RuleResult, width: int) -> str:
    status = "FAILED" if result.status == "failed" else result.status
    seeds = f"{result.seeds} seed{'s' if result.seeds != 1 else ''}"
    detail = (
        f"seed {result.seed}: {result.detail}; again: {result.command}"
        if result.command
        else f"{seeds}: {result.detail}"
    )
    return (
        f"{result.design:{width}}  {result.engine:7}  "
        f"{result.number} {result.rule:10}  {status:8}  {detail}"
    )


def _write(report: _Report, file: str) -> None:
    text = msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n"
    if file == "-":
        sys.stdout.buffer.write(text)
        return
    try:
        write_atomically(Path(file), text)
    except OSError as error:
        raise InputError(f"--json {file}: {error.strerror}") from None


def new(
    kind: Annotated[str, typer.Argument(metavar="|".join(design.SKELETONS), help="What it is.")],
    file: Annotated[Path, typer.Argument(metavar="FILE.c", help="Where to write it.")],
) -> None:
    """Write the skeleton of a design: it works, and says in comments what each part is for.

    Example: emu new rmap mine.c
    """
    design.write_skeleton(kind, file)
    shown = file if file.is_absolute() else f"./{file}"
    print(f"{file}: emu check {shown}   then   emu run --rmap single,{shown}", file=sys.stderr)
