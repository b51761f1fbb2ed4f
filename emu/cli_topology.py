# SPDX-License-Identifier: MIT
"""`emu topology`: look at machines and check machine files. Mounted by emu.cli."""

from pathlib import Path
from typing import Annotated

import typer

from emu import hwloc, topology
from emu.files import write_output
from emu.terminal import printable

app = typer.Typer(
    name="topology",
    help="Look at machines and check machine files.",
    epilog="Example: emu topology show hygon-12x32",
    no_args_is_help=True,
)


@app.callback()
def _group() -> None:
    """Look at machines and check machine files."""


@app.command()
def show(
    machine: Annotated[
        str,
        typer.Argument(
            metavar="T", help="A name, a FILE.toml, host, or generic:sockets=2,nodes=2,..."
        ),
    ],
) -> None:
    """Draw a machine: tree, node distances, latencies, and every number with its source.

    Example: emu topology show hygon-12x32

    Example: emu topology show generic:sockets=8,nodes=2,l3=4,cores=8,smt=2
    """
    typer.echo(printable(topology.load(machine).render()), nl=False)


@app.command()
def check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A topology file.")],
) -> None:
    """Check a machine file: keys, units, missing numbers, sources.

    Example: emu topology check mine.toml
    """
    machine = topology.check(file)
    numbers = machine.costs.numbers().values()
    weak = sum(cost.confidence in "LU" for cost in numbers)
    summary = f"{len(numbers)} numbers, {weak} of them by analogy or unverified"
    typer.echo(printable(f"{file}: ok: {machine.summary()}; {summary}"))


@app.command(name="import")
def import_(
    file: Annotated[Path, typer.Argument(metavar="LSTOPO.xml", help="What lstopo has written.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write there. [stdout]")
    ] = None,
) -> None:
    """Make a machine file from hwloc XML, format 2 or 3.

    What such a file does not say, latencies above all, is taken from the nearest known machine and
    marked as assumed. Remarks go to stderr.

    Example: lstopo there.xml; emu topology import there.xml -o there.toml

    Example: emu run --engine virtual --topology ./there.toml
    """
    imported = hwloc.load(file)
    for remark in imported.remarks:
        typer.echo(printable(f"{file}: note: {remark}"), err=True)
    _write(imported.machine.to_toml(), output)


@app.command()
def export(
    machine: Annotated[
        str, typer.Argument(metavar="T", help="A name, a FILE.toml, host, or generic:...")
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write there. [stdout]")
    ] = None,
) -> None:
    """Write a machine as hwloc XML, for lstopo: structure, cache sizes, distances.

    Example: emu topology export hygon-12x32 -o hygon.xml; lstopo -i hygon.xml
    """
    _write(hwloc.dump(topology.load(machine)), output)


def _write(text: str, output: Path | None) -> None:
    if output is None:
        typer.echo(printable(text), nl=False)
        return
    write_output(output, text.encode())
