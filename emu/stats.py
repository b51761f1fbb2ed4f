# SPDX-License-Identifier: MIT
"""Statistics over repeats: medians with intervals, ratios, and whether two samples differ.

Intervals are percentile bootstrap at 95 % with a generator of fixed seed, so the same cells give
the same interval every time. Whether samples differ is Mann-Whitney's U. With fewer than 4 repeats
on a side no p can be below 0.05, and nothing can be told.
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from emu.results import CellResult
from emu.words import counted

CONFIDENCE = 0.95
SIGNIFICANT = 0.05
REPEATS_TO_TELL = 4
"""3 against 3 that do not overlap: p = 0.1. 4 against 4: p = 0.029."""
UNSTABLE = 0.1
"""Standard deviation over mean from which on native repeats are too far apart to be relied on."""
_RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A value with its interval; of a single repeat there is none: low and high are None."""

    value: float
    low: float | None
    high: float | None
    repeats: int

    @property
    def plus_minus(self) -> float | None:
        """Half the interval's width."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2


def median(sample: Sequence[float]) -> Estimate:
    """The median."""
    return _estimate((sample,), np.median)


def mean(sample: Sequence[float]) -> Estimate:
    """The arithmetic mean."""
    return _estimate((sample,), np.mean)


def speed_up(base: Sequence[float], other: Sequence[float]) -> Estimate:
    """How many times the median of ``base`` that of ``other`` is; nan where that is 0."""
    if not statistics.median(base):
        return Estimate(float("nan"), None, None, min(len(base), len(other)))

    def ratio(below: Any, above: Any, axis: int) -> Any:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.median(above, axis=axis) / np.median(below, axis=axis)

    return _estimate((base, other), ratio)


def deviation(sample: Sequence[float]) -> float | None:
    """Standard deviation over mean; None for a single repeat or a mean of 0."""
    if len(sample) < 2 or not statistics.fmean(sample):
        return None
    return statistics.stdev(sample) / abs(statistics.fmean(sample))


def spread(sample: Sequence[float]) -> float | None:
    """Half of the range over the median; None for a single repeat or a median of 0."""
    middle = statistics.median(sample) if len(sample) > 1 else 0.0
    return (max(sample) - min(sample)) / 2 / middle if middle else None


def _estimate(samples: tuple[Sequence[float], ...], statistic: Any) -> Estimate:
    data = [np.asarray(sample, float) for sample in samples]
    value = float(statistic(*data, axis=-1))
    repeats = min(map(len, data))
    if repeats < 2:
        return Estimate(value, None, None, repeats)
    # Loading it takes longer than most commands do, and not all have a use for it.
    from scipy.stats import bootstrap

    with warnings.catch_warnings():
        # Of equal repeats the distribution is a point; that is what the interval then is.
        warnings.simplefilter("ignore")
        found = bootstrap(
            data,
            statistic,
            n_resamples=_RESAMPLES,
            confidence_level=CONFIDENCE,
            method="percentile",
            vectorized=True,
            rng=np.random.default_rng(1),
        ).confidence_interval
    return Estimate(value, float(found.low), float(found.high), repeats)


def p_value(one: Sequence[float], other: Sequence[float]) -> float:
    """How probable so large a difference is by chance (Mann-Whitney, two-sided)."""
    if sorted(one) == sorted(other):
        return 1.0
    from scipy.stats import mannwhitneyu

    return float(mannwhitneyu(one, other, method="auto").pvalue)


def unstable(cells: Iterable[CellResult]) -> list[str]:
    """A sentence for each group of native repeats whose throughput cannot be relied on."""
    groups: dict[tuple[object, ...], list[CellResult]] = {}
    for cell in cells:
        if cell.ok and cell.engine == "native":
            key = (cell.workload, cell.topology, cell.mm, cell.cpus, cell.rmap)
            groups.setdefault(key, []).append(cell)
    found = []
    for (workload, _, mm, cpus, rmap), repeats in groups.items():
        spread = deviation([cell.ops_per_s for cell in repeats])
        if spread is not None and spread > UNSTABLE:
            busy = max(cell.host.other_cpus + cell.host.stolen_cpus for cell in repeats)
            why = f", and up to {busy:.1f} host CPUs did something else" if busy >= 0.1 else ""
            found.append(
                f"Unstable: {rmap}, {mm}, {workload} on {counted(cpus, 'CPU')}: the repeats "
                f"differ by {spread:.0%} (standard deviation){why}."
            )
    return found
