# SPDX-License-Identifier: MIT
"""How far a prediction may be off because the machine's numbers are not known better.

The numbers of a topology with confidence L or U that the cost model reads are drawn, each evenly
within its stated spread (a Latin hypercube: every part of every range once), the designs are run on
each machine so made, and the speed-up against the first design is ranked against each number. What
nobody has put a spread on (the structure, the workload, the model itself) is not in the interval.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import msgspec
import numpy as np
from numpy.typing import NDArray

from emu.results import CellResult, DesignUncertainty, Uncertainty
from emu.topology import Cost, Topology

LOW_CONFIDENCE = "LU"
_NOT_IN_THE_MODEL = (
    "clock.",
    "slit.",
    "cache.l1_",
    "cache.l2_ns",
    "kernel.null_syscall_ns",
    "kernel.time_slice_ns",
)
"""Numbers that no run of the virtual engine reads."""
MIN_DRAWS, MAX_DRAWS = 4, 1000
"""Fewer than four have no ranks to speak of."""


def uncertain(machine: Topology) -> dict[str, Cost]:
    """The numbers that are drawn, by "section.name"."""
    return {
        key: cost
        for key, cost in machine.costs.numbers().items()
        if cost.confidence in LOW_CONFIDENCE
        and cost.spread
        and not key.startswith(_NOT_IN_THE_MODEL)
    }


def draw(costs: Mapping[str, Cost], n: int, seed: int) -> list[dict[str, float]]:
    """``n`` sets of values, the same for the same arguments."""
    random = np.random.default_rng([seed, n])
    columns: dict[str, NDArray[np.float64]] = {}
    for key, cost in costs.items():
        share = (random.permutation(n) + random.random(n)) / n
        columns[key] = cost.value * (1 + cost.spread * (2 * share - 1))
    return [{key: float(column[i]) for key, column in columns.items()} for i in range(n)]


def with_values(machine: Topology, values: Mapping[str, float]) -> Topology:
    """The machine with other numbers."""
    sections: dict[str, dict[str, Cost]] = {}
    for key, value in values.items():
        section, name = key.split(".")
        cost = getattr(getattr(machine.costs, section), name)
        sections.setdefault(section, {})[name] = msgspec.structs.replace(cost, value=value)
    tables = {
        section: msgspec.structs.replace(getattr(machine.costs, section), **changed)
        for section, changed in sections.items()
    }
    return replace(machine, costs=msgspec.structs.replace(machine.costs, **tables))


def ranks(values: Sequence[float]) -> NDArray[np.float64]:
    """Ranks from 0; equal values share the mean of theirs."""
    array = np.asarray(values, dtype=np.float64)
    smaller = (array[:, None] > array[None, :]).sum(axis=1)
    equal = (array[:, None] == array[None, :]).sum(axis=1)
    return np.asarray(smaller + (equal - 1) / 2, dtype=np.float64)


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman's, from -1 to 1; 0 where one of them is constant."""
    x, y = ranks(a) - (len(a) - 1) / 2, ranks(b) - (len(b) - 1) / 2
    scale = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / scale if scale else 0.0


def evaluate(
    machine: Topology,
    designs: Sequence[str],
    n: int,
    seed: int,
    rate: Callable[[Topology, str], CellResult],
) -> Uncertainty:
    """Run ``designs`` on ``n`` drawn machines; ``rate`` runs one cell.

    A draw in which a cell fails is left out. Of fewer than MIN_DRAWS nothing is said.
    """
    costs = uncertain(machine)
    kept: list[dict[str, float]] = []
    ratios: dict[str, list[float]] = {name: [] for name in designs[1:]}
    cell = None
    for values in draw(costs, n, seed):
        drawn = with_values(machine, values)
        cells = [rate(drawn, name) for name in designs]
        if all(each.ok and each.ops_per_s for each in cells):
            cell = cells[0]
            kept.append(values)
            for each in cells[1:]:
                ratios[each.rmap].append(each.ops_per_s / cells[0].ops_per_s)
    found = Uncertainty(
        topology=machine.name,
        cpus=cell.cpus if cell else 0,
        workload=cell.workload if cell else "",
        mm=cell.mm if cell else "",
        baseline=designs[0],
        draws=len(kept),
        seed=seed,
        designs=[],
    )
    if len(kept) < MIN_DRAWS:
        return found
    for name, values_of in ratios.items():
        correlations = {
            key: rank_correlation([values[key] for values in kept], values_of) for key in costs
        }
        strongest = sorted(correlations, key=lambda key: (-abs(correlations[key]), key))
        low, median, high = np.quantile(values_of, [0.1, 0.5, 0.9]).tolist()
        found.designs.append(
            DesignUncertainty(
                rmap=name,
                p10=low,
                median=median,
                p90=high,
                min=min(values_of),
                max=max(values_of),
                hangs_on={key: round(correlations[key], 3) for key in strongest[:3]},
            )
        )
    return found
