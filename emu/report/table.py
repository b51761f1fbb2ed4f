"""The table of a run: designs side by side, where the CPUs waited, and which is fastest."""

from __future__ import annotations

import io
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from emu.host import disturbances_of_run
from emu.report.designs import Designs
from emu.results import KIND, CellResult, Run, Uncertainty
from emu.stats import spread, unstable
from emu.terminal import LOOK, WholeTable, plain_console
from emu.words import counted

_PROCESSES = ("exec", "fork", "exit")
_THREADS = ("fault", "mmap", "munmap", "mprotect")
"""Calls whose latency is shown: the second where no process begins or ends."""
_SHOWN_SHARE = 0.001
_SHOWN_SITES = 3
_SHOWN_BOTTLENECK = 0.01
_REPEATS_TO_TELL = 3
_FEW = 5.0
"""Operations a CPU: with 2 the start and the end can be a third of all time, with 6 a tenth."""
_DETAILED = 3
"""With more numbers of CPUs than this there is one table over all of them, not a section each."""
_HEADING = {
    "native": "MEASURED on this machine (native engine)",
    "virtual": "PREDICTED by a model of the machine, in virtual time (virtual engine)",
}


@dataclass
class _Row:
    """One design: its repeats that ran to the end."""

    name: str
    cells: list[CellResult]

    @property
    def rates(self) -> list[float]:
        return [cell.ops_per_s for cell in self.cells]

    @property
    def median(self) -> float:
        return statistics.median(self.rates)

    @property
    def spread(self) -> float | None:
        return spread(self.rates)


def print_run(run: Run, console: Console) -> None:
    """Print the tables of a run."""
    info = run.run
    console.print(Text(f"run {info.id}, mm-emu {info.version}, {info.started}", style="dim"))
    engines = list(dict.fromkeys(cell.engine for cell in run.cells))
    for engine in engines:
        if len(engines) > 1:
            console.print()
            console.print(Text(_HEADING.get(engine, engine), style="bold underline"))
        for cells in sweeps(cell for cell in run.cells if cell.engine == engine):
            groups, designs = list(_groups(cells)), Designs(cells)
            if len(groups) > _DETAILED:
                _print_scaling(groups, designs, run, console)
            else:
                for group in groups:
                    _print_group(group, designs, run, console)
    _print_comparison(run, console)
    for line in unstable(run.cells):
        console.print(Text(line, style="yellow"), soft_wrap=True)
    if "native" in engines and (disturbed := disturbances_of_run(info.host, info.nodes)):
        line = f"What disturbs measurements here: {' '.join(disturbed)}"
        console.print(Text(line, style="yellow"), soft_wrap=True)
    print_uncertainty(info.uncertainty, console)
    for cell in run.failed:
        console.print(
            Text(f"FAILED {cell_name(cell)}: {cell.error}", style="bold red"), soft_wrap=True
        )
    if info.status in ("interrupted", "stopped"):
        after = f"{info.status.capitalize()} after {counted(len(run.cells), 'cell')}"
        console.print(Text(f"{after}; the same command goes on from there.", style="yellow"))


def plain_text(run: Run) -> str:
    """The same without colour, as text."""
    out = io.StringIO()
    print_run(run, plain_console(out))
    return out.getvalue().rstrip("\n")


def cell_name(cell: CellResult) -> str:
    """A cell in words."""
    return (
        f"{cell.engine}: {cell.rmap}, {cell.mm}, {cell.topology}, {counted(cell.cpus, 'CPU')}, "
        f"{cell.workload}, repeat {cell.repeat}"
    )


def format_ns(ns: float) -> str:
    """A time with three significant digits and a unit."""
    for unit, factor in (("s", 1e9), ("ms", 1e6), ("us", 1e3)):
        rounded = float(f"{ns / factor:.3g}")
        if rounded >= 1:
            return f"{ns / factor:.{2 if rounded < 10 else 1 if rounded < 100 else 0}f} {unit}"
    return f"{ns:.0f} ns"


def sweeps(cells: Iterable[CellResult]) -> Iterator[list[CellResult]]:
    """Cells that differ in number of CPUs, designs and repeat only, in order of their first."""
    sweeps: dict[tuple[object, ...], list[CellResult]] = {}
    for cell in cells:
        key = (cell.workload, cell.topology, cell.engine)
        sweeps.setdefault(key, []).append(cell)
    yield from sweeps.values()


def _groups(cells: Iterable[CellResult]) -> Iterator[list[CellResult]]:
    """Of one of ``sweeps``: the cells of each number of CPUs."""
    groups: dict[int, list[CellResult]] = {}
    for cell in cells:
        groups.setdefault(cell.cpus, []).append(cell)
    yield from groups.values()


def _rows(cells: Iterable[CellResult], designs: Designs) -> list[_Row]:
    good: dict[str, list[CellResult]] = {}
    for cell in cells:
        if cell.ok:
            good.setdefault(designs.name(cell), []).append(cell)
    return [_Row(name, repeats) for name, repeats in good.items()]


def _title(cells: Sequence[CellResult], designs: Designs, run: Run) -> Text:
    first = cells[0]
    numbers = sorted({cell.cpus for cell in cells})
    lowest = f"{numbers[0]} to " if len(numbers) > 1 else ""
    repeats = max(
        (len(row.cells) for group in _groups(cells) for row in _rows(group, designs)), default=0
    )
    marks = [first.engine, *([KIND[first.engine]] if first.engine in KIND else [])]
    if any(cell.oversubscribed for cell in cells):
        marks.append("oversubscribed")
    if first.numa_penalty:
        marks.append("--numa-penalty on")
    experiment = run.run.experiment
    own = experiment.get(first.engine)
    duration = (own if isinstance(own, dict) else {}).get("duration") or experiment.get("duration")
    common = f", {designs.constant}" if designs.constant else ""
    return Text(
        f"{first.workload} on {lowest}{counted(numbers[-1], 'CPU')} of {first.topology} "
        f"({', '.join(marks)}){common}, "
        f"{counted(repeats, 'repeat')} of {duration or '?'}",
        style="bold",
    )


def _print_scaling(
    groups: Sequence[Sequence[CellResult]], designs: Designs, run: Run, console: Console
) -> None:
    """One table over the numbers of CPUs, and where the CPUs waited with the most of them."""
    cells = [cell for group in groups for cell in group]
    good = [cell for cell in cells if cell.ok]
    console.print()
    console.print(_title(cells, designs, run))
    if good:
        per_s = f"{unit_of(good[0])}/s"
        console.print(_scaling(groups, designs, per_s, console))
        console.print()
        if good[0].walkers:
            console.print(Text("What a walk takes (p50):", style="bold"))
            console.print(_walk_scaling(groups, designs, console))
            console.print()
        for row in _rows(good, designs):
            by_cpus = {group[0].cpus: _Row(row.name, group) for group in _groups(row.cells)}
            top = max(by_cpus, key=lambda cpus: by_cpus[cpus].median)
            fall = "" if top != max(by_cpus) else ", the most that were run"
            rate = f"{by_cpus[top].median:,.0f} {per_s}"
            console.print(Text(f"{row.name} is highest on {counted(top, 'CPU')}{fall}: {rate}"))
        most = max(good, key=lambda cell: cell.cpus).cpus
        on_most = f" on {counted(most, 'CPU')}"
        widest = _rows((cell for cell in good if cell.cpus == most), designs)
        for line in _waiting(widest, on_most):
            console.print(line, soft_wrap=True)
        _print_time_stacks(widest, designs.heading, console, on_most)
        _print_memory(widest, console)
    for note in dict.fromkeys(cell.note for cell in cells if cell.note):
        console.print(Text(f"Note: {note}", style="yellow"), soft_wrap=True)


def _scaling(
    groups: Sequence[Sequence[CellResult]], designs: Designs, per_s: str, console: Console
) -> Table:
    """Numbers of CPUs down, designs across, each with its ratio to the baseline."""
    names, baseline = designs.names(), designs.baseline
    columns = []
    for name in names:
        columns.append(f"{name} {per_s}" if name == names[0] else name)
        if baseline and name != baseline:
            columns.append(f"x {baseline}")
    table = _table(console, "CPUs", *columns)
    table.tied = [n for n, column in enumerate(columns, 1) if column == f"x {baseline}"]
    for group in groups:
        rows = {row.name: row for row in _rows(group, designs)}
        base, values = rows.get(baseline or ""), []
        best = max(rows.values(), key=lambda row: row.median, default=None)
        for name in names:
            row = rows.get(name)
            style = "green" if row is best and len(rows) > 1 else ""
            values.append(Text(f"{row.median:,.0f}" if row else "-", style=style))
            if baseline and name != baseline:
                of_base = f"{row.median / base.median:.2f}" if row and base and base.median else "-"
                values.append(Text(of_base))
        table.add_row(str(group[0].cpus), *values)
    return table


def _print_memory(rows: Sequence[_Row], console: Console) -> None:
    """What each design takes of the arena, of the file that takes most; nothing without a file."""
    if not any(cell.memory.bytes_per_vma for row in rows for cell in row.cells):
        return
    columns = ("never mapped", "mapped once", "after the run", "bytes per VMA")
    table = _table(console, "bytes per file", *columns)
    for row in rows:
        memory = [cell.memory for cell in row.cells]
        table.add_row(
            row.name,
            f"{max(m.rmap_bytes_per_file for m in memory):,}",
            f"{max(m.rmap_bytes_per_mapped_file for m in memory):,}",
            f"{max(m.rmap_bytes_per_used_file for m in memory):,}",
            f"{max(m.bytes_per_vma for m in memory):,}",
        )
    console.print()
    console.print(table)


def _walk_scaling(
    groups: Sequence[Sequence[CellResult]], designs: Designs, console: Console
) -> Table:
    """Walkers and numbers of CPUs down, designs across."""
    names = designs.names()
    table = _table(console, "walker", "CPUs", *names, keys=2)
    first = next(cell for group in groups for cell in group if cell.ok)
    for number in range(len(first.walkers)):
        for group in groups:
            rows = {row.name: row for row in _rows(group, designs)}
            values = [_p50(rows[name], number) if name in rows else "-" for name in names]
            table.add_row(_walker_name(first, number), str(group[0].cpus), *values)
    return table


def _walker_name(cell: CellResult, number: int) -> str:
    walker = cell.walkers[number]
    return f"{walker.kind} of {walker.file.rpartition('/')[2]}"


def _p50(row: _Row, number: int) -> str:
    """The median of the repeats in which it has walked; else why it has not."""
    walkers = [cell.walkers[number] for cell in row.cells]
    took = [walker.latency_ns.p50 for walker in walkers if walker.done]
    if took:
        return format_ns(statistics.median(took))
    if any(walker.refused for walker in walkers):
        return "refused"
    return "lost" if any(walker.lost for walker in walkers) else "-"


def _walks(rows: Sequence[_Row], heading: str, console: Console) -> Table:
    """Walkers down; of each design how often it walked, what that took and what it came to."""
    columns = (heading, "done", "refused", "lost", "p50", "max", "VMAs/walk", "PTEs/walk")
    table = _table(console, "walker", *columns, keys=2)
    for number in range(len(rows[0].cells[0].walkers)):
        for row in rows:
            walkers = [cell.walkers[number] for cell in row.cells]
            done = sum(walker.done for walker in walkers)
            longest = max(walker.latency_ns.max for walker in walkers)
            table.add_row(
                _walker_name(row.cells[0], number),
                row.name,
                f"{done:,}",
                f"{sum(walker.refused for walker in walkers):,}",
                f"{sum(walker.lost for walker in walkers):,}",
                _p50(row, number) if done else "-",
                format_ns(longest) if done else "-",
                f"{sum(walker.vmas for walker in walkers) / done:,.1f}" if done else "-",
                f"{sum(walker.pages for walker in walkers) / done:,.1f}" if done else "-",
            )
    return table


def _print_comparison(run: Run, console: Console) -> None:
    """What ran on both engines, side by side."""
    found: dict[tuple[object, ...], dict[str, list[CellResult]]] = {}
    for cell in run.cells:
        if cell.ok:
            key = (cell.workload, cell.cpus, cell.topology, cell.mm, cell.rmap)
            found.setdefault(key, {}).setdefault(cell.engine, []).append(cell)
    both = {key: engines for key, engines in found.items() if set(engines) >= set(KIND)}
    if not both:
        return
    console.print()
    console.print(Text("BOTH ENGINES on the same cells", style="bold underline"))
    console.print()
    columns = ("native (measured)", "virtual (predicted)", "virtual/native")
    table = _table(console, "cell", "rmap", *columns, keys=2)
    several_mm = len({key[3] for key in both}) > 1
    for (workload, cpus, topology, mm, rmap), engines in both.items():
        native, virtual = (
            statistics.median(cell.ops_per_s for cell in engines[engine]) for engine in KIND
        )
        unit = unit_of(engines["native"][0])
        table.add_row(
            f"{workload} on {counted(cpus, 'CPU')} of {topology}"
            f"{f', mm {mm}' if several_mm else ''}",
            str(rmap),
            f"{native:,.0f} {unit}/s",
            f"{virtual:,.0f} {unit}/s",
            f"{virtual / native:.2f}" if native else "-",
        )
    console.print(table)


def print_uncertainty(found: Sequence[Uncertainty], console: Console) -> None:
    """Print the intervals of speed-ups, and what each hangs on."""
    for each in found:
        console.print()
        console.print(
            Text(
                f"HOW SURE: {each.workload} on {counted(each.cpus, 'CPU')} of {each.topology}, "
                f"{each.draws} draws of its uncertain numbers (seed {each.seed})",
                style="bold underline",
            )
        )
        if not each.designs:
            console.print("Too few draws ran to their end.")
            continue
        table = _table(
            console, "rmap", f"x {each.baseline}: p10", "median", "p90", "min", "max", "hangs on"
        )
        for design in each.designs:
            numbers = (design.p10, design.median, design.p90, design.min, design.max)
            key, rho = next(iter(design.hangs_on.items()), ("", 0.0))
            # The strongest of some twenty chance correlations is seldom beyond this.
            certain = abs(rho) >= 3 / (each.draws - 1) ** 0.5
            hangs_on = f"{key} ({rho:+.2f})" if certain else "too few draws to tell"
            table.add_row(design.rmap, *(f"{n:.2f}" for n in numbers), hangs_on)
        console.print(table)


def _print_group(cells: Sequence[CellResult], designs: Designs, run: Run, console: Console) -> None:
    first, rows, heading = cells[0], _rows(cells, designs), designs.heading
    console.print()
    console.print(_title(cells, designs, run))
    if rows:
        console.print(_throughput(rows, designs, console))
        console.print()
        console.print(_latencies(rows, heading, console))
        console.print()
        if first.walkers:
            console.print(_walks(rows, heading, console))
            console.print()
        for line in _waiting(rows):
            console.print(line, soft_wrap=True)
        _print_time_stacks(rows, heading, console)
        if len(rows) > 1:
            console.print(_verdict(rows), soft_wrap=True)
        _print_memory(rows, console)
    if first.note:
        console.print(Text(f"Note: {first.note}", style="yellow"), soft_wrap=True)


def _table(console: Console, *columns: str, keys: int = 1) -> WholeTable:
    """``keys``: so many of the columns say what a row is about."""
    look = box.SIMPLE_HEAD if console.is_terminal else None
    table = WholeTable(box=look, **LOOK)
    table.keys = keys
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    return table


def unit_of(cell: CellResult) -> str:
    """What the cell's ops are."""
    return next(phase.unit for phase in cell.phases if phase.counts_ops)


def _throughput(rows: Sequence[_Row], designs: Designs, console: Console) -> Table:
    unit, per = unit_of(rows[0].cells[0]), _libc_locks(rows[0].cells[0])[0]
    several = len(designs.names()) > 1
    of_base = [f"x {designs.baseline}"] if several and designs.baseline else []
    libc = any(_libc_locks(cell)[1] for row in rows for cell in row.cells)
    of_libc = [f"libc locks/{per}"] if libc else []
    table = _table(
        console,
        designs.heading,
        f"{unit}/s",
        "spread",
        *of_base,
        "waiting",
        *of_libc,
        "bottleneck",
    )
    base = next((row for row in rows if row.name == designs.baseline), None)
    best = max(rows, key=lambda row: row.median)
    for row in rows:
        spread = f"±{row.spread:.1%}" if row.spread is not None else "-"
        speed = f"{row.median / base.median:.2f}" if base and base.median else "-"
        waiting = statistics.median(cell.wait_share for cell in row.cells)
        locks = statistics.median(_libc_locks(cell)[1] for cell in row.cells)
        table.add_row(
            row.name,
            f"{row.median:,.0f}",
            spread,
            *([speed] if of_base else []),
            f"{waiting:.1%}",
            *([f"{locks:.1f}"] if libc else []),
            _bottleneck(row.cells),
            style="green" if row is best and len(rows) > 1 else None,
        )
    return table


def _bottleneck(cells: Sequence[CellResult]) -> str:
    """What limits most of the repeats, with the median of its share of CPU time."""
    found = [cell.bottleneck for cell in cells if cell.bottleneck]
    names = Counter(each.name for each in found if each.share >= _SHOWN_BOTTLENECK)
    if not names:
        return "-"
    name = names.most_common(1)[0][0]
    return f"{name} {statistics.median(each.share for each in found if each.name == name):.0%}"


def _libc_locks(cell: CellResult) -> tuple[str, float]:
    """Acquisitions of libc's i_mmap locks per exec; without any, per operation that is counted."""
    acquired = sum(lock.acquired for lock in cell.locks if lock.file and "libc.so" in lock.file)
    phase = next(phase for phase in cell.phases if phase.counts_ops)
    execs = phase.latency_ns["exec"].count
    unit, count = ("exec", execs) if execs else (phase.unit, phase.ops)
    return unit, acquired / count if count else 0.0


def _latencies(rows: Sequence[_Row], heading: str, console: Console) -> Table:
    columns = ("p50", "p99", "p99.9", "max", "count")
    table = _table(console, heading, "latency of", *columns, keys=2)
    # Results of earlier versions have no "micro".
    cells = [cell for row in rows for cell in row.cells]
    happened = {op for cell in cells for op, latency in cell.latency_ns.items() if latency.count}
    ops: tuple[str, ...] = _PROCESSES
    if not happened & set(_PROCESSES):
        ops = tuple(op for op in (*_THREADS, "micro") if op in happened)
    for op in ops:
        if op not in happened:
            table.add_row("(all)", op, "-", "-", "-", "-", "0")
            continue
        for row in rows:
            all_of = [cell.latency_ns[op] for cell in row.cells]
            count = sum(latency.count for latency in all_of)
            values = [
                statistics.median(getattr(latency, key) for latency in all_of)
                for key in ("p50", "p99", "p999")
            ]
            values.append(max(latency.max for latency in all_of))
            table.add_row(row.name, op, *map(format_ns, values), f"{count:,}")
    return table


def _waiting(rows: Sequence[_Row], on: str = "") -> Iterator[Text]:
    """Where the CPUs of each design waited, by lock and call site, as shares of all CPU time."""
    yield Text(f"Where the CPUs waited{on}, in shares of their time:", style="bold")
    for row in rows:
        waits: Counter[tuple[str, str, str]] = Counter()
        for cell in row.cells:
            for lock in cell.locks:
                for site in lock.sites:
                    waits[lock.name, lock.file or "", site.site] += site.wait_ns
        time_ns = sum(cell.cpus * cell.seconds * 1e9 for cell in row.cells)
        longest = waits.most_common(_SHOWN_SITES)
        shares = [(wait_ns / time_ns, *site) for site, wait_ns in longest if wait_ns]
        if not shares:
            yield Text(f"  {row.name}: nowhere")
        for rank, (share, name, file, path) in enumerate(shares):
            if rank == 0 or share >= _SHOWN_SHARE:
                of = f" of {file.rpartition('/')[2]}" if file else ""
                yield Text(f"  {row.name}: {100 * share:.2g}% on {name}{of} in {path or '-'}")


def _print_time_stacks(rows: Sequence[_Row], heading: str, console: Console, on: str = "") -> None:
    """Where all the CPUs' time went, one line a design; nothing where no cell knows it."""
    known = [row for row in rows if row.cells[0].time_stack]
    if not known:
        return
    names = list(known[0].cells[0].time_stack)
    table = _table(console, heading, *(name.replace("_", " ") for name in names))
    for row in known:
        shares = (statistics.mean(cell.time_stack[name] for cell in row.cells) for name in names)
        table.add_row(row.name, *(f"{share:.1%}" for share in shares))
    console.print()
    console.print(Text(f"Where the time went{on}:", style="bold"))
    console.print(table)
    if few := [(row.name, each) for row in known if (each := _operations_a_cpu(row)) < _FEW]:
        made = ", ".join(f"{name} {each:.1f}" for name, each in few)
        console.print(
            Text(
                f"Few operations a CPU: {made}. So beginning and end weigh here (who is done is "
                "asleep until all are), and less the longer the --duration."
            )
        )


def _operations_a_cpu(row: _Row) -> float:
    return sum(cell.ops for cell in row.cells) / sum(cell.cpus for cell in row.cells)


def _verdict(rows: Sequence[_Row]) -> Text:
    """Which design is fastest, if the repeats can tell.

    They can where no repeats overlap and the medians differ by more than either design's range.
    """
    best, second = sorted(rows, key=lambda row: row.median, reverse=True)[:2]
    ratio = best.median / second.median if second.median else 0.0
    if min(len(best.cells), len(second.cells)) < _REPEATS_TO_TELL:
        return Text(
            f"{best.name} had {ratio:.2f} times the rate of {second.name}; "
            f"how far repeats spread is seen from {_REPEATS_TO_TELL} of them on."
        )
    tied = [row.name for row in rows if row is not best and not _faster(best, row)]
    if tied:
        others = ", ".join(tied)
        return Text(f"The difference between {best.name} and {others} is within the spread.")
    return Text(
        f"{best.name} is the fastest: {ratio:.2f} times {second.name}, the next.", style="green"
    )


def _faster(one: _Row, other: _Row) -> bool:
    widest = max(max(row.rates) - min(row.rates) for row in (one, other))
    return min(one.rates) > max(other.rates) and one.median - other.median > widest
