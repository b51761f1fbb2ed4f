"""Latency histograms: the buckets that the core writes, read with the ``hdrhistogram`` package.

The layout is that of ``HdrHistogram(1, 2**38 - 1, 2)`` (1 ns to 275 s, 2 significant digits), so a
bucket's number here and there is the same.
"""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from hdrh.codec import HdrCookieException, HdrHistogramSettingsException, HdrLengthException
from hdrh.histogram import HdrHistogram
from numpy.typing import NDArray

from emu._core import HIST_COUNTS, HIST_MAX_NS
from emu.errors import InputError

_OUTER = struct.Struct(">ii")
"""Of the exchange format: cookie, length; what follows is compressed."""
_INNER = struct.Struct(">iiiiqqd")
"""Cookie, length, offset, digits, lowest, highest, ratio; then the buckets."""
_DAMAGED = (
    *(ValueError, TypeError, IndexError, struct.error, zlib.error),
    *(HdrCookieException, HdrLengthException, HdrHistogramSettingsException),
)

PERCENTILES = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p999": 99.9}


def new_hdr() -> HdrHistogram:
    """An empty histogram of the package, in the core's layout."""
    return HdrHistogram(1, HIST_MAX_NS, 2)


@dataclass(frozen=True)
class Histogram:
    """The sum of some histograms of the arena. Times are nanoseconds.

    ``total`` and ``sum_ns`` are of the values in ``counts``; ``overflow`` values were beyond the
    range and are in neither; ``max_ns`` is of all.
    """

    counts: NDArray[np.uint64]
    total: int
    overflow: int
    sum_ns: int
    max_ns: int

    @classmethod
    def merged(cls, records: NDArray[np.void]) -> Histogram:
        """The sum of records of HIST_DTYPE; of none: empty."""
        total, overflow = records["total"], records["overflow"]
        counts = np.zeros(HIST_COUNTS, np.uint64)
        # Few, on a large machine: the pages of the others are left alone.
        for number in np.flatnonzero(total):
            counts += records["counts"][number]
        return cls(
            counts,
            total=int(total.sum()),
            overflow=int(overflow.sum()),
            sum_ns=int(records["sum_ns"].sum()),
            max_ns=int(records["max_ns"].max(initial=0)),
        )

    def __add__(self, other: Histogram) -> Histogram:
        return Histogram(
            self.counts + other.counts,
            self.total + other.total,
            self.overflow + other.overflow,
            self.sum_ns + other.sum_ns,
            max(self.max_ns, other.max_ns),
        )

    @property
    def count(self) -> int:
        """All recorded values, those beyond the range included."""
        return self.total + self.overflow

    @property
    def mean(self) -> float:
        """The exact mean of the values within the range, ns; 0 for none."""
        return self.sum_ns / self.total if self.total else 0.0

    def to_hdr(self) -> HdrHistogram:
        """The same as an object of the package; values beyond the range are not in it."""
        hdr = new_hdr()
        used = np.flatnonzero(self.counts)
        for index in used:
            hdr.counts[int(index)] = int(self.counts[index])
        if used.size:
            hdr.set_internal_tacking_values(int(used[0]), int(used[-1]), self.total)
        return hdr

    def percentiles(self) -> Mapping[str, int]:
        """p50, p90, p99 and p999 in ns, ranked over all values; 0 for none.

        A percentile among the values beyond the range is the largest value.
        """
        if not self.total:
            return dict.fromkeys(PERCENTILES, self.max_ns if self.overflow else 0)
        ranks = {name: p * self.count / self.total for name, p in PERCENTILES.items()}
        values = self.to_hdr().get_percentile_to_value_dict(
            [rank for rank in ranks.values() if rank <= 100]
        )
        return {
            name: min(values.get(rank, self.max_ns), self.max_ns) for name, rank in ranks.items()
        }

    def encode(self) -> str:
        """The buckets in HdrHistogram's own exchange format (V2, compressed, base64)."""
        encoded: bytes = self.to_hdr().encode()
        return encoded.decode()


def decode(text: str) -> HdrHistogram:
    """The object of the package for what ``Histogram.encode`` gave. Raises InputError for others.

    The package trusts the sizes in what it reads, so they are looked at before.
    """
    try:
        data = base64.b64decode(text, validate=True)
        payload = zlib.decompressobj().decompress(
            data[_OUTER.size :], _INNER.size + 9 * HIST_COUNTS
        )
        layout = _INNER.unpack_from(payload)[3:6]
        if layout != (2, 1, HIST_MAX_NS):
            raise InputError(f"a histogram of another layout than (2, 1, {HIST_MAX_NS}): {layout}")
        return HdrHistogram.decode(text)
    except _DAMAGED as error:
        raise InputError(f"no histogram: {error or type(error).__name__}") from None
