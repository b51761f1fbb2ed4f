# SPDX-License-Identifier: MIT
"""`emu topology`: look at machines and check machine files. Mounted by emu.cli."""

from pathlib import Path
from typing import Annotated

import typer

from emu import topology

app = typer.Typer(
    name="topology", help="Look at machines and check machine files.", no_args_is_help=True
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
    typer.echo(topology.load(machine).render(), nl=False)


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
    typer.echo(
        f"{file}: ok: {machine.summary()}; "
        f"{len(numbers)} numbers, {weak} of them by analogy or unverified"
    )
