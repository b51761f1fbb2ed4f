"""Engines: what turns a cell into its result.

``get(name)`` gives the class; it is made from an experiment (and refuses what it cannot run), is
asked to ``prepare`` all cells, and then to run them: one by one where the host is what is measured,
else many at once, each in a process of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from emu.coordinator import CellFailed, Child, StopFlag
from emu.engines.native import NativeEngine
from emu.engines.virtual import VirtualEngine
from emu.errors import unknown
from emu.experiment import Cell, Experiment
from emu.live import Inside
from emu.results import CellResult


class Engine(Protocol):
    """One experiment on one kind of machine."""

    cpus: Mapping[str, tuple[int, ...]]
    """The numbers of CPUs to run, for each topology of the experiment."""

    def prepare(self, cells: Sequence[Cell], stop: StopFlag) -> None:
        """Check all that can be wrong with any of the cells. Raises InputError."""

    def close(self) -> None:
        """Remove what was made for the experiment."""


@runtime_checkable
class OneByOne(Engine, Protocol):
    """An engine whose cells need the host for themselves."""

    def run(
        self,
        cell: Cell,
        stop: StopFlag,
        tick: Callable[[float, Callable[[], Inside]], None],
    ) -> tuple[CellResult, bool]:
        """Run a cell: its result, and False where somebody else killed or stopped a worker.

        ``tick`` is told the share that is done, and how to look inside.
        """


@runtime_checkable
class ManyAtOnce(Engine, Protocol):
    """An engine whose results do not depend on what else the host does."""

    watched: Path | None
    """Cells tell how it looks inside of them while somebody watches this directory."""

    def bytes_of(self, cell: Cell) -> int:
        """How much memory should be free before the cell starts beside others."""

    def start(self, cell: Cell) -> Job:
        """Start a cell."""


class Job(Protocol):
    """A cell that runs. It is over with the first call of finish, fail or close."""

    notice: str | None
    """What a user should be told once it has finished."""

    @property
    def child(self) -> Child[Any]:
        """Its process."""

    inside: Inside | None
    """What it told last."""

    def ready(self) -> bool:
        """Is the result there? Takes in what the cell has told."""

    def finish(self) -> tuple[CellResult, bool]:
        """The result, once it is ready, and False where somebody else killed it."""

    def fail(self, error: CellFailed) -> tuple[CellResult, bool]:
        """End it now: its result, that it failed, and False where somebody else killed it."""

    def close(self) -> None:
        """End it now; there is no result."""


Machine = OneByOne | ManyAtOnce

ENGINES: dict[str, Callable[[Experiment], Machine]] = {
    "native": NativeEngine,
    "virtual": VirtualEngine,
}


def get(name: str) -> Callable[[Experiment], Machine]:
    """The engine of that name. Raises InputError."""
    if name not in ENGINES:
        raise unknown("engine", name, ENGINES)
    return ENGINES[name]
