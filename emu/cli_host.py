# SPDX-License-Identifier: MIT
"""`emu calibrate` and `emu compare-kernel`: the real machine. Mounted by emu.cli."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from emu import experiment, topology
from emu.errors import InputError
from emu.files import check_output, write_output
from emu.terminal import LOOK, SafeConsole, WholeTable, stdout_console
from emu.words import counted


def calibrate(
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="The topology file to write."),
    ] = None,
) -> None:
    """Measure this machine and write it as a topology: `--topology host` goes by it from then on.

    Latencies between CPUs, caches and memory, atomics, futexes, context switches, IPIs, and what a
    real exec and fork take. Each with its spread. Warnings go to stderr.

    Example: emu calibrate

    Example: emu calibrate -o mine.toml; emu topology show ./mine.toml
    """
    from emu import calibrate as calibration

    file = output or topology.host_file()
    if output is None:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{file}: {error.strerror or error}") from error
    check_output("--output", file)  # before the measuring, which takes a while
    with _progress() as bar:
        task = bar.add_task("calibrating")
        found = calibration.run(lambda done, of: bar.update(task, completed=done, total=of))
    for warning in found.warnings:
        typer.echo(f"emu calibrate: note: {warning}", err=True)
    write_output(file, found.machine.to_toml().encode())
    table = _table("number", "ns", "+-")
    for key, cost in found.machine.costs.numbers().items():
        if cost.source == calibration.SOURCE and key.endswith("_ns"):
            table.add_row(key.removesuffix("_ns"), f"{cost.value:,.1f}", f"{cost.spread:.0%}")
    stdout_console().print(found.machine.description, table, sep="\n")
    measured_ns = found.ping_pong_ns()
    if measured_ns is not None:
        emulated_ns = calibration.emulated_ping_pong_ns(found.machine, measured_ns)
        typer.echo(
            f"a line from CPU 0 to CPU 1: measured {measured_ns:.1f} ns, emulated "
            f"{emulated_ns:.1f} ns ({emulated_ns / measured_ns - 1:+.1%})"
        )
    typer.echo(f"written: {file}")


def compare_kernel(
    cpus: Annotated[
        str | None, typer.Option(metavar="1,2,4..N", help="Numbers of CPUs.  [1, 2, 4 ... all]")
    ] = None,
    duration: Annotated[
        str, typer.Option(metavar="TIME", help="Of each real and each native run.")
    ] = "1s",
    json: Annotated[
        bool, typer.Option("--json", help="Only JSON on stdout.", show_default=False)
    ] = False,
) -> None:
    """Exec for real on this machine, emulate the same, and put the curves side by side.

    A small program that replaces itself by itself, one copy a CPU. The emulation is fitted at one
    CPU; what it says of more is a prediction.

    Example: emu calibrate; emu compare-kernel --cpus 1,2
    """
    from emu import compare_kernel as comparing

    most = topology.host().nr_cpus
    wanted = experiment.parse_cpus(cpus) if cpus else comparing.default_cpus()
    if max(wanted) > most:
        raise InputError(f"--cpus {cpus}: this machine has {counted(most, 'CPU')} for this process")
    with _progress() as bar:
        task = bar.add_task("", total=None)
        found = comparing.run(
            list(wanted),
            experiment.parse_duration(duration) // 1_000_000,
            lambda what: bar.update(task, description=what),
        )
    if json:
        typer.echo(msgspec.json.format(msgspec.json.encode(found), indent=2).decode())
        return
    for warning in found.warnings:
        typer.echo(f"emu compare-kernel: note: {warning}", err=True)
    engines = [word for engine in comparing.ENGINES for word in (engine, "/ real")]
    table = _table("CPUs", "real exec/s", "+-", *engines)
    table.tied = (4, 6)
    for row in found.rows:
        cells = [str(row.cpus), f"{row.real_per_s:,.0f}", f"{row.real_spread:.0%}"]
        for engine in comparing.ENGINES:
            cells += [f"{row.emulated_per_s[engine]:,.0f}", f"{row.ratio[engine]:.2f}"]
        table.add_row(*cells)
    stdout_console().print(found.topology, table, sep="\n")
    typer.echo("fitted at 1 CPU; the rest is predicted")


def _table(first: str, *numbers: str) -> WholeTable:
    """Of these headings, without rows."""
    table = WholeTable(first, box=None, **LOOK)
    for heading in numbers:
        table.add_column(heading, justify="right")
    return table


@contextlib.contextmanager
def _progress() -> Iterator[Progress]:
    console = SafeConsole(stderr=True)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as bar:
        yield bar
