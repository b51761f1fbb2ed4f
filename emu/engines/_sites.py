# SPDX-License-Identifier: MIT
"""What the virtual machine knows of its cache lines and of who waited where, for the result."""

from __future__ import annotations

from collections import Counter, defaultdict
from functools import cache

import numpy as np
from numpy.typing import NDArray

from emu import _core
from emu.results import Line, LineSite, Wait

_TABLE = 1 << 16
"""At least as many as the core's tables have room for."""
_SITES = 12
"""Sites that are kept for each line, and besides them those with a share of all waiting above"""
_SHARE = 0.001
_WAITS = 100


def read(core: _core.Core, nr_nodes: int) -> tuple[list[Line], list[Wait], list[list[int]]]:
    """Lines and waits, the longest first, and the transfers [to node][from node].

    Lines that never left a CPU but for memory are left out.
    """
    raw_lines = (_core.VirtualLine * 4096)()
    found = raw_lines[: core.virtual_lines(raw_lines, len(raw_lines))]
    sites = np.zeros(_TABLE, _core.SITE_DTYPE)
    sites = sites[: core.virtual_sites(sites.ctypes.data, len(sites))]
    symbols = [raw.symbol.decode(errors="replace") for raw in found]
    matrix = np.zeros((nr_nodes, nr_nodes), np.uint64)
    core.virtual_node_transfers(matrix.ctypes.data)
    by_symbol: dict[str, Line] = {}
    for symbol, raw in zip(symbols, found, strict=True):
        line = by_symbol.setdefault(
            symbol, Line(symbol=symbol, transfers=0, remote_transfers=0, wait_ns=0)
        )
        line.transfers += raw.transfers
        line.remote_transfers += raw.remote_transfers
        line.wait_ns += raw.wait_ps
    by_symbol = {symbol: line for symbol, line in by_symbol.items() if line.transfers}
    waits = _add_sites(core, by_symbol, symbols, sites)
    lines = sorted(by_symbol.values(), key=lambda line: (-line.wait_ns, line.symbol))
    for line in lines:
        line.wait_ns //= 1000
    return lines, waits, matrix.tolist()


def line_waits(core: _core.Core) -> Counter[str]:
    """What CPUs have waited for each line until now, ns by name."""
    raw_lines = (_core.VirtualLine * 4096)()
    waits: Counter[str] = Counter()
    for raw in raw_lines[: core.virtual_lines(raw_lines, len(raw_lines))]:
        waits[raw.symbol.decode(errors="replace")] += raw.wait_ps // 1000
    return waits


def _add_sites(
    core: _core.Core, lines: dict[str, Line], symbols: list[str], sites: NDArray[np.void]
) -> list[Wait]:
    @cache
    def path(stack: int) -> str:
        return core.text_of("virtual_stack_path", stack)

    @cache
    def field(line: int, offset: int) -> str:
        name = core.text_of("virtual_field", line, offset)
        return f"+{offset}..{offset + 8} {name}".rstrip()

    # One function may have several stacks in the core: names are what a reader sees.
    sums: dict[tuple[str, str, str, str], Counter[str]] = defaultdict(Counter)
    for record in sites.tolist():
        line, stack, kind, offset, count, remote, wait_ps = record
        key = (symbols[line], path(stack), field(line, offset), _core.SITE_KINDS[kind])
        sums[key].update(count=count, remote=remote, wait_ps=wait_ps)
    waits: list[Wait] = []
    for (symbol, site, name, kind), sum_ in sums.items():
        wait_ns = sum_["wait_ps"] // 1000
        if kind in ("spin", "sleep"):
            waits.append(
                Wait(
                    kind=kind,
                    symbol=symbol,
                    field=name,
                    site=site,
                    count=sum_["count"],
                    wait_ns=wait_ns,
                )
            )
        elif symbol in lines:
            lines[symbol].sites.append(
                LineSite(
                    site=site,
                    field=name,
                    access=kind,
                    transfers=sum_["count"],
                    remote_transfers=sum_["remote"],
                    wait_ns=wait_ns,
                )
            )
    few = _SHARE * sum(line.wait_ns for line in lines.values()) / 1000
    for each in lines.values():
        each.sites.sort(key=lambda s: (-s.wait_ns, -s.transfers, s.site, s.field, s.access))
        each.sites = [s for n, s in enumerate(each.sites) if n < _SITES or s.wait_ns >= few]
    waits.sort(key=lambda w: (-w.wait_ns, w.kind, w.symbol, w.site, w.field))
    return [wait for wait in waits if wait.count][:_WAITS]
