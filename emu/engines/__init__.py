"""Engines: what turns a cell into its result.

``get(name)`` gives the class; it is made from an experiment (and refuses what it cannot run), is
asked to ``prepare`` all cells, and then to ``run`` them one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from emu.coordinator import StopFlag
from emu.engines.native import NativeEngine
from emu.engines.virtual import VirtualEngine
from emu.experiment import Cell, Experiment, unknown
from emu.results import CellResult


class Engine(Protocol):
    """One experiment on one kind of machine."""

    cpus: Mapping[str, tuple[int, ...]]
    """The numbers of CPUs to run, for each topology of the experiment."""

    def prepare(self, cells: Sequence[Cell], stop: StopFlag) -> None:
        """Check all that can be wrong with any of the cells. Raises InputError."""

    def run(
        self, cell: Cell, stop: StopFlag, tick: Callable[[float], None]
    ) -> tuple[CellResult, bool]:
        """Run a cell: its result, and whether it makes sense to go on with others."""

    def close(self) -> None:
        """Remove what was made for the experiment."""


ENGINES: dict[str, Callable[[Experiment], Engine]] = {
    "native": NativeEngine,
    "virtual": VirtualEngine,
}


def get(name: str) -> Callable[[Experiment], Engine]:
    """The engine of that name. Raises InputError."""
    if name not in ENGINES:
        raise unknown("engine", name, ENGINES)
    return ENGINES[name]
