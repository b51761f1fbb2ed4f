# SPDX-License-Identifier: MIT
"""Histograms: the core's buckets are HdrHistogram's, and what is read out of them is right."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emu._core import HIST_COUNTS, HIST_DTYPE, HIST_MAX_NS
from emu.histogram import Histogram, decode, new_hdr

NS = st.one_of(st.integers(0, 4096), st.integers(0, HIST_MAX_NS))


def core_index(ns: int) -> int:
    """emu_hist_index() of workers/include/emu/stat.h, in Python."""
    bucket = max(ns, 255).bit_length() - 8
    return (bucket << 7) + (ns >> bucket)


def record(values: list[int]) -> Any:
    """What the core leaves in the arena after emu_hist_record() of each value."""
    hist = np.zeros((), HIST_DTYPE)
    for ns in values:
        hist["max_ns"] = max(int(hist["max_ns"]), ns)
        if ns > HIST_MAX_NS:
            hist["overflow"] += np.uint64(1)
        else:
            hist["counts"][core_index(ns)] += 1
            hist["total"] += np.uint64(1)
            hist["sum_ns"] += np.uint64(ns)
    return hist


def merged(*records: Any) -> Histogram:
    together = np.zeros(len(records), HIST_DTYPE)
    for number, each in enumerate(records):
        together[number] = each
    return Histogram.merged(together)


def test_layout_is_the_packages() -> None:
    hdr = new_hdr()
    assert hdr.counts_len == HIST_COUNTS
    assert core_index(HIST_MAX_NS) == HIST_COUNTS - 1
    # The largest value that fits is the largest of the last bucket, here and there.
    assert hdr.get_highest_equivalent_value(HIST_MAX_NS) == HIST_MAX_NS


@given(NS)
def test_index_is_the_packages(ns: int) -> None:
    assert core_index(ns) == new_hdr().get_counts_array_index(ns)


@given(st.lists(NS, min_size=1, max_size=200))
def test_same_as_recording_with_the_package(values: list[int]) -> None:
    hdr = new_hdr()
    for ns in values:
        hdr.record_value(ns)
    ours = merged(record(values))
    assert list(ours.to_hdr().counts) == list(hdr.counts)
    for name, percentile in (("p50", 50.0), ("p90", 90.0), ("p99", 99.0), ("p999", 99.9)):
        expected = min(hdr.get_value_at_percentile(percentile), max(values))
        assert ours.percentiles()[name] == expected
    assert ours.count == len(values)
    assert ours.mean == sum(values) / len(values)


@given(st.lists(st.lists(NS, max_size=50), max_size=5))
def test_merged_is_the_sum(workers: list[list[int]]) -> None:
    together = record([ns for values in workers for ns in values])
    added = merged(*(record(values) for values in workers))
    assert added.counts.tolist() == together["counts"].tolist()
    for field in ("total", "sum_ns", "max_ns", "overflow"):
        assert getattr(added, field) == int(together[field])


@given(st.lists(NS, max_size=50), st.lists(NS, max_size=50))
def test_addition_is_merging(one: list[int], other: list[int]) -> None:
    added = merged(record(one)) + merged(record(other))
    together = merged(record(one), record(other))
    assert added.counts.tolist() == together.counts.tolist()
    assert (added.count, added.mean, added.max_ns) == (
        together.count,
        together.mean,
        together.max_ns,
    )


@given(st.lists(NS, min_size=1, max_size=50))
def test_encoding_keeps_the_buckets(values: list[int]) -> None:
    histogram = merged(record(values))
    decoded = decode(histogram.encode())
    counts = [decoded.get_count_at_index(index) for index in range(HIST_COUNTS)]
    assert counts == histogram.counts.tolist()


def test_counts_beyond_32_bits_add_up() -> None:
    full = record([7])
    full["counts"][7] = 2**32 - 1
    full["total"] = 2**32 - 1
    assert int(merged(full, full).counts[7]) == 2 * (2**32 - 1)


def test_values_beyond_the_range_count_and_rank() -> None:
    beyond = HIST_MAX_NS + 12345
    histogram = merged(record([1000] * 97 + [beyond] * 3))
    assert (histogram.count, histogram.overflow) == (100, 3)
    assert histogram.percentiles() == {"p50": 1003, "p90": 1003, "p99": beyond, "p999": beyond}
    only = merged(record([beyond]))
    assert only.percentiles()["p50"] == beyond


def test_empty() -> None:
    empty = merged()
    assert (empty.count, empty.mean) == (0, 0.0)
    assert set(empty.percentiles().values()) == {0}


@pytest.mark.parametrize("ns", [0, 1, 127, 128, 255, 256, 257, 511, 512, 2**20, HIST_MAX_NS])
def test_core_records_into_that_bucket(ns: int) -> None:
    """The formula above against the compiled one is in tests/c/test_machine.c; here: precision."""
    hdr = new_hdr()
    low = hdr.get_value_from_index(core_index(ns))
    assert low <= ns <= low + max(1, low >> 7)
