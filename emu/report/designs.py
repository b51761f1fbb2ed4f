# SPDX-License-Identifier: MIT
"""Names for what a run compares: rmap designs, mm designs, or pairs of them."""

from __future__ import annotations

from collections.abc import Iterable

from emu.results import CellResult

_RMAP_BASELINE = "single"
_MM_BASELINE = "mmap-sem-rbtree"


class Designs:
    """What the designs of some cells are called, and which of them is the baseline.

    A side that is the same in all cells goes without saying: pages show it once.
    """

    def __init__(self, cells: Iterable[CellResult]) -> None:
        pairs = dict.fromkeys((cell.rmap, cell.mm) for cell in cells)
        several_rmap = len({rmap for rmap, _ in pairs}) > 1
        several_mm = len({mm for _, mm in pairs}) > 1
        if several_mm:
            self.heading = "rmap + mm" if several_rmap else "mm"
        else:
            self.heading = "rmap"
        self._names = {
            (rmap, mm): f"{rmap} + {mm}"
            if several_rmap and several_mm
            else mm
            if several_mm
            else rmap
            for rmap, mm in pairs
        }
        first_rmap = [pair for pair in pairs if pair[0] == _RMAP_BASELINE]
        first_mm = [pair for pair in first_rmap or pairs if pair[1] == _MM_BASELINE]
        candidates = first_mm if several_mm else first_rmap
        self.baseline = self._names[candidates[0]] if candidates else None
        """The simplest design, where it has run."""
        sides = [] if several_rmap else [f"rmap {rmap}" for rmap, _ in list(pairs)[:1]]
        sides += [] if several_mm else [f"mm {mm}" for _, mm in list(pairs)[:1]]
        self.constant = ", ".join(sides if several_mm else sides[-1:])
        """The side that all have in common, for a title; rmap alone has its own column."""

    def name(self, cell: CellResult) -> str:
        """What tells this cell's design from the others'."""
        return self._names[cell.rmap, cell.mm]

    def names(self) -> list[str]:
        """All of them, in order of their first cell."""
        return list(self._names.values())
