# SPDX-License-Identifier: MIT
"""A run as text in the layouts of other tools, for those who know them and what reads them.

``lockstat`` follows /proc/lock_stat, ``c2c`` perf c2c's table of cache lines, ``cpus`` is where the
time of each node and CPU went; ``folded`` is read by
flamegraph.pl and speedscope, ``hgrm`` and ``hlog`` by HdrHistogram's tools, ``csv`` by anything.

Every format is a function from the chosen cells to the text. Locks and sites are those of the
phase whose operations are counted, latencies and cache lines those of all phases, as in the JSON.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

import msgspec
from hdrh.histogram import HdrHistogram

from emu._core import LAT_NAMES
from emu.errors import InputError, unknown
from emu.histogram import decode
from emu.report.table import cell_name
from emu.results import KIND, ByCpu, CellResult, Latency, Lock, LockTimes, Run
from emu.words import counted

Cells = Sequence[tuple[int, CellResult]]
"""Cells with their numbers in the run, from 0."""

_CSV_LATENCY = ("mean", "p50", "p90", "p99", "p999", "max")
_SHOWN_SITES = 5
_SHOWN_WAITS = 20
_SHOWN_NODES = 16
_LOG_HEAD = (
    "#[Histogram log format version 1.3]",
    '"StartTimestamp","Interval_Length","Interval_Max","Interval_Compressed_Histogram"',
)
_TELLING = ("engine", "topology", "workload", "mm")


def choose(run: Run, which: str | None) -> Cells:
    """The cell of a number, the cells of an rmap design, or all. Raises InputError for neither."""
    cells = list(enumerate(run.cells))
    if which is None:
        return cells
    if which.isdecimal():
        if int(which) >= len(cells):
            raise InputError(
                f"--cell {which}: the run has {counted(len(cells), 'cell')}, counted from 0"
            )
        return [cells[int(which)]]
    found = [(number, cell) for number, cell in cells if cell.rmap == which]
    if not found:
        raise unknown("cell", which, list(dict.fromkeys(cell.rmap for _, cell in cells)))
    return found


def lockstat(cells: Cells) -> str:
    """Locks and their call sites; times in microseconds, columns named as in /proc/lock_stat."""
    return _sections(cells, _locks)


def c2c(cells: Cells) -> str:
    """Cache lines by the time that CPUs waited for them, and who pulled them; times in ns.

    Then who spun and slept on what, and how many lines went from node to node.
    """
    return _sections(cells, _lines)


def cpus(cells: Cells) -> str:
    """Time stacks, transfers and operations of all CPUs, of each node and of each CPU."""
    return _sections(cells, _cpus)


def folded(cells: Cells) -> str:
    """Stacks of waiting, ns: "rmap;cpus;lock;caller;callee wait". Repeats are added up.

    Where cells differ in something else, that comes first. The virtual engine knows besides, under
    "(by function)", which functions stalled on which line, or spun or slept on it: a second view of
    the time, where waiting for locks is contained and stalls outside of locks are too.
    """
    telling = [name for name in _TELLING if len({getattr(cell, name) for _, cell in cells}) > 1]
    stacks: Counter[str] = Counter()
    for _, cell in cells:
        cpus = counted(cell.cpus, "CPU")
        first = [*(getattr(cell, name) for name in telling), cell.rmap, cpus]
        for lock in cell.locks:
            for site in lock.sites:
                stacks[_stack(*first, _class(lock), *site.site.split(">"))] += site.wait_ns
        first.append("(by function)")
        for line in cell.lines:
            leaf = f"stall {line.symbol}"
            for by in line.sites:
                stacks[_stack(*first, *by.site.split(">"), leaf)] += by.wait_ns
            stacks[_stack(*first, leaf)] += max(
                0, line.wait_ns - sum(by.wait_ns for by in line.sites)
            )
        for wait in cell.waits:
            leaf = f"{wait.kind} {wait.symbol}"
            stacks[_stack(*first, *wait.site.split(">"), leaf)] += wait.wait_ns
    return _joined(f"{stack} {wait_ns}" for stack, wait_ns in stacks.items() if wait_ns)


def comma_separated(cells: Cells) -> str:
    """One row a cell: what was run, throughput, all locks together, latencies, memory."""
    rows = [row(number, cell) for number, cell in cells]
    if not rows:
        return ""
    out = io.StringIO()
    writer = csv.DictWriter(out, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def hgrm(cells: Cells, op: str | None = None) -> str:
    """HdrHistogram's percentile distributions, ns: of every operation, or of one.

    Raises InputError when no cell has the operation or its buckets cannot be read.
    """
    out: list[str] = []
    for number, cell, name, latency in _recorded(cells, op):
        out += ["", f"#[{name} of cell {number}: {cell_name(cell)}, ns]"]
        out += [_distribution(latency, f"{name} of cell {number}")]
        if latency.overflow:
            out.append(f"#[Beyond the range = {latency.overflow}]")
    return _joined(out[1:])


def hlog(cells: Cells, op: str | None = None) -> str:
    """An HdrHistogram log: an interval for each operation of each cell, tagged "CELL:OPERATION".

    The histograms are of ns; times of intervals are seconds and their largest values ms, as the
    format has them. Cells stand one after another, each as long as its measured time. Raises
    InputError as hgrm().
    """
    out: list[str] = []
    start_s = end_s = 0.0
    last = -1
    for number, cell, name, latency in _recorded(cells, op):
        if number != last:
            out.append(f"#[Cell {number}: {cell_name(cell)}, ns]")
            start_s, end_s, last = end_s, end_s + cell.seconds, number
        _read(latency, f"{name} of cell {number}")
        times = f"{start_s:.6f},{cell.seconds:.6f},{latency.max / 1e6:.6f}"
        out.append(f"Tag={number}:{name},{times},{latency.hdr}")
    return _joined([*_LOG_HEAD, *out]) if out else ""


FORMATS: dict[str, Callable[[Cells], str]] = {
    "lockstat": lockstat,
    "c2c": c2c,
    "cpus": cpus,
    "folded": folded,
    "csv": comma_separated,
    "hgrm": hgrm,
    "hlog": hlog,
}
OF_ONE_OPERATION = {"hgrm": hgrm, "hlog": hlog}
"""Formats that take an operation."""


def _recorded(cells: Cells, op: str | None) -> Iterator[tuple[int, CellResult, str, Latency]]:
    """Number, cell, operation and latencies of all that has any, or of one operation."""
    if op is not None:
        known = list(dict.fromkeys(name for _, cell in cells for name in cell.latency_ns))
        if op not in known:
            raise unknown("operation", op, known)
    for number, cell in cells:
        for name, latency in cell.latency_ns.items():
            if latency.hdr and op in (None, name):
                yield number, cell, name, latency


def _joined(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def _sections(cells: Cells, body: Callable[[CellResult], Iterable[str]]) -> str:
    """One under another with a blank line between."""
    sections = []
    for number, cell in cells:
        lines = body(cell) if cell.ok else [f"FAILED: {cell.error}"]
        sections.append(_joined([f"cell {number}: {cell_name(cell)}", *lines]))
    return "\n".join(sections)


def _stack(*frames: str) -> str:
    return ";".join(frame.replace(";", ",") for frame in frames if frame)


def _class(lock: Lock) -> str:
    return f"{lock.name} {lock.file}" if lock.file else lock.name


def _per(total: float, count: int) -> float:
    return total / count if count else 0.0


def _locks(cell: CellResult) -> Iterator[str]:
    names = [row for lock in cell.locks for row, _ in _rows(_class(lock), lock)]
    width = max(map(len, ["class name", *names]))
    phase = next((phase.name for phase in cell.phases if phase.counts_ops), "-")
    yield f"phase {phase}, {cell.seconds:.6f} s; times in microseconds, shares of a lock's waiting"
    columns = (
        *("contentions", *(f"waittime-{what}" for what in ("min", "max", "total", "avg"))),
        *("acquisitions", *(f"holdtime-{what}" for what in ("min", "max", "total", "avg"))),
    )
    heading = f"{'class name':>{width}} " + "".join(f" {column:>14}" for column in columns)
    rule = "-" * len(heading)
    yield from (rule, heading, rule)
    for lock in sorted(cell.locks, key=lambda lock: -lock.wait_ns):
        name = _class(lock)
        yield ""
        for row, times in _rows(name, lock):
            yield (
                f"{row:>{width}}: {times.contended:>14}"
                f"{_us(times.wait_min_ns)}{_us(times.wait_max_ns)}{_us(times.wait_ns)}"
                f"{_us(_per(times.wait_ns, times.contended))} {times.acquired:>14}"
                f"{_us(times.hold_min_ns)}{_us(times.hold_max_ns)}{_us(times.hold_ns)}"
                f"{_us(_per(times.hold_ns, times.acquired))}"
            )
        yield f"{'-' * len(name):>{width}}"
        for site in lock.sites:
            yield (
                f"{name:>{width}}  {site.contended:>14}{'':30}{_us(site.wait_ns)}"
                f"{_us(_per(site.wait_ns, site.contended))} {site.acquired:>14}"
                f" {_per(site.wait_ns, lock.wait_ns):>7.1%}  {site.site or '-'}"
            )


def _rows(name: str, lock: Lock) -> Iterator[tuple[str, LockTimes]]:
    """Writers and readers apart where a lock had readers, with the suffixes of /proc/lock_stat."""
    if "read" not in lock.modes:
        yield name, lock
        return
    for mode, times in lock.modes.items():
        yield f"{name}-{'R' if mode == 'read' else 'W'}", times


def _us(ns: float) -> str:
    return f" {ns / 1000:>14.3f}"


def _lines(cell: CellResult) -> Iterator[str]:
    if cell.engine != "virtual":
        yield "No cache lines: only the virtual engine knows them (--engine virtual)."
        return
    wait_ns = sum(line.wait_ns for line in cell.lines)
    yield f"all phases, {counted(len(cell.lines), 'line')} waited for; times in nanoseconds"
    heading = (
        f"{'Index':>5} {'Wait':>7} {'Wait total':>14} {'Wait avg':>10} "
        f"{'Transfers':>10} {'Remote':>10} {'Remote':>7}  Cache line"
    )
    rule = "-" * len(heading)
    yield from (rule, heading, rule)
    for index, line in enumerate(cell.lines):
        yield (
            f"{index:>5} {_per(line.wait_ns, wait_ns):>7.2%} {line.wait_ns:>14} "
            f"{_per(line.wait_ns, line.transfers):>10.1f} {line.transfers:>10} "
            f"{line.remote_transfers:>10} {_per(line.remote_transfers, line.transfers):>7.2%}"
            f"  {line.symbol}"
        )
        for site in line.sites[:_SHOWN_SITES]:
            yield (
                f"{'':>5} {_per(site.wait_ns, line.wait_ns):>7.2%} {site.wait_ns:>14} "
                f"{_per(site.wait_ns, site.transfers):>10.1f} {site.transfers:>10} "
                f"{site.remote_transfers:>10} {_per(site.remote_transfers, site.transfers):>7.2%}"
                f"    {site.field} {site.access} {site.site}"
            )
    yield from _spinning(cell)
    yield from _between_nodes(cell)


def _spinning(cell: CellResult) -> Iterator[str]:
    if not cell.waits:
        return
    heading = f"{'Waiting':>7} {'Wait total':>14} {'Wait avg':>12} {'Count':>10}  On, in"
    rule = "-" * len(heading)
    yield from (rule, heading, rule)
    for wait in cell.waits[:_SHOWN_WAITS]:
        yield (
            f"{wait.kind:>7} {wait.wait_ns:>14} {_per(wait.wait_ns, wait.count):>12.1f} "
            f"{wait.count:>10}  {wait.symbol} {wait.field} {wait.site}"
        )


def _between_nodes(cell: CellResult) -> Iterator[str]:
    """To nodes down, from nodes across; nothing where there are too many for a line."""
    nodes = len(cell.node_transfers)
    if not 1 < nodes <= _SHOWN_NODES:
        return
    heading = "To node" + "".join(f" {f'from {node}':>9}" for node in range(nodes))
    rule = "-" * len(heading)
    yield from (rule, heading, rule)
    for to, counts in enumerate(cell.node_transfers):
        yield f"{to:>7}" + "".join(f" {count:>9}" for count in counts)


def _cpus(cell: CellResult) -> Iterator[str]:
    by_cpu = cell.by_cpu
    if by_cpu is None:
        yield "No CPUs: only the virtual engine knows where their time went (--engine virtual)."
        return
    phase = next((phase for phase in cell.phases if phase.counts_ops), None)
    name, unit = (phase.name, phase.unit) if phase else ("-", "op")
    yield f"phase {name}, {cell.seconds:.6f} s; shares of the time of each line's CPUs"
    titles = [f"{unit}s", "transfers", "remote", *(key.replace("_", " ") for key in by_cpu.time_ps)]
    yield f"{'':<9}" + "".join(f" {title:>11}" for title in titles)
    everything = range(len(by_cpu.node))
    yield _cpu_row("all", by_cpu, everything)
    for node in sorted(set(by_cpu.node)):
        of_node = [cpu for cpu in everything if by_cpu.node[cpu] == node]
        yield _cpu_row(f"node {node}", by_cpu, of_node)
    for cpu in everything:
        yield _cpu_row(f"CPU {cpu}", by_cpu, [cpu])


def _cpu_row(title: str, by_cpu: ByCpu, of: Sequence[int]) -> str:
    counts = [
        sum(column[cpu] for cpu in of)
        for column in (by_cpu.ops, by_cpu.transfers, by_cpu.remote_transfers)
    ]
    times = [sum(time_ps[cpu] for cpu in of) for time_ps in by_cpu.time_ps.values()]
    return (
        f"{title:<9}"
        + "".join(f" {count:>11}" for count in counts)
        + "".join(f" {_per(time_ps, sum(times)):>11.2%}" for time_ps in times)
    )


def row(number: int, cell: CellResult) -> dict[str, object]:
    """A cell in one row of plain values."""
    what = ("rmap", "mm", "topology", "cpus", "workload", "engine")
    got = ("seed", "repeat", "status", "ops", "seconds", "ops_per_s", "wait_share")
    row: dict[str, object] = {"cell": number}
    row |= {name: getattr(cell, name) for name in what}
    row["kind"] = KIND.get(cell.engine, "")
    row |= {name: getattr(cell, name) for name in got}
    for name in ("oversubscribed", "numa_penalty"):
        row[name] = int(getattr(cell, name))
    for name in ("acquired", "contended", "wait_ns", "hold_ns"):
        row[f"lock_{name}"] = sum(getattr(lock, name) for lock in cell.locks)
    for op in LAT_NAMES:
        latency = cell.latency_ns.get(op, Latency())
        row[f"{op}_count"] = latency.count
        row |= {f"{op}_{name}_ns": getattr(latency, name) for name in _CSV_LATENCY}
    row |= msgspec.structs.asdict(cell.memory)
    row["wall_s"] = cell.host.wall_s
    row["error"] = cell.error or ""
    return row


def _read(latency: Latency, of: str) -> HdrHistogram:
    """The histogram, whole; raises InputError."""
    try:
        return decode(latency.hdr)
    except Exception as error:  # the package has no class that all of its errors share
        raise InputError(f"{of}: its histogram cannot be read: {error}") from None


def _distribution(latency: Latency, of: str) -> str:
    out = io.BytesIO()
    _read(latency, of).output_percentile_distribution(out, 1)
    return out.getvalue().decode().rstrip("\n")
