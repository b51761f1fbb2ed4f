# SPDX-License-Identifier: MIT
"""`emu live`: look at a run that goes on in another terminal. Mounted by emu.cli."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Annotated

import typer
from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from emu.cli_options import StoreOption
from emu.errors import EmuError
from emu.live import PERIOD_S, CellState, Inside, Snapshot, Watcher
from emu.results import KIND
from emu.store import Store, Summary
from emu.terminal import LOOK, SafeConsole, is_read, plain_console
from emu.words import counted

_TICK_S = 0.2
_LINE_EVERY_S = 5.0
_ENDED = ("done", "interrupted", "stopped")
_PATIENCE_S = 1.5 * PERIOD_S
"""So long nothing is told by a run that nobody is known to work on: it has ended."""
_BAR = 24
_SHOWN_NODES = 12
_SEEN = 0.0005
"""A share that would be shown as 0.0%."""


def live(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[RUN]", help="Id, its beginning, or last.  Default: what runs now"),
    ] = None,
    store: StoreOption = None,
) -> None:
    """Watch a run that goes on in another terminal: cells, throughput by node, waiting, locks.

    On a terminal a dashboard, elsewhere a line now and then; both end with the run, or with Ctrl-C.
    Nothing is measured for it while nobody watches.

    Example: emu live
    """
    where = Store(store)
    run = where.find_id(name) if name else None
    nothing = f"nothing runs in {where.directory}; start something in another terminal (emu run)"
    if not where.ids():
        raise EmuError(nothing)
    last = None
    with Watcher(where.directory) as watcher:
        shown = _watch(watcher, where, run)
        if sys.stdout.isatty():
            console: Console = SafeConsole()
            with Live(console=console, auto_refresh=False, transient=True) as screen:
                for last in shown:
                    screen.update(_dashboard(last), refresh=True)
        else:
            console = plain_console(sys.stdout)
            told_s, told_inside = -_LINE_EVERY_S, False
            for last in shown:
                if not is_read(sys.stdout):
                    return
                inside = any(cell.inside for each in last for cell in each.running + each.finished)
                now = time.monotonic()
                if now - told_s >= _LINE_EVERY_S or (inside and not told_inside):
                    told_s, told_inside = now, inside
                    print(line(last), flush=True)
    if last is None:
        raise EmuError(nothing if run is None else f"run {run} does not go on now")
    print(_end(_summary(where, last[0].run) or last[0]))


def _watch(watcher: Watcher, store: Store, run: str | None) -> Iterator[list[Snapshot]]:
    """What is known of the run (None: of the latest that goes on), again and again until it ends.

    Several processes may work on it; each has a snapshot.
    """
    heard_s = time.monotonic()
    while True:
        try:
            found = watcher.snapshots()
        except OSError as error:
            raise EmuError(f"{store.directory}: {error.strerror}") from None
        run = run or (found[0].run if found else None)
        found = [each for each in found if each.run == run]
        now = time.monotonic()
        if found:
            heard_s = now
            yield found
        else:
            status = _status(store, run)
            if status in _ENDED or (status != "running" and now - heard_s > _PATIENCE_S):
                return
        time.sleep(_TICK_S)


def _summary(store: Store, run: str) -> Summary | None:
    return next((each for each in store.summaries() if each.id == run), None)


def _status(store: Store, run: str | None) -> str:
    """Of the run; of any: "running" where one does."""
    found = [each.status for each in store.summaries() if run in (None, each.id)]
    return "running" if "running" in found else found[-1] if run and found else ""


def _end(of: Summary | Snapshot) -> str:
    if isinstance(of, Snapshot):
        return f"run {of.run} is gone"
    failed = f", {of.failed} failed" if of.failed else ""
    done = f"{of.done} of {counted(of.total, 'cell')}{failed}"
    return f"run {of.id}: {of.status}, {done}; emu show {of.id}"


# ---- one line ----


def line(snapshots: list[Snapshot]) -> str:
    """A run in one line."""
    first = snapshots[0]
    running = [cell for each in snapshots for cell in each.running]
    parts = [f"run {first.run}: {_count(snapshots)}", f"{len(running)} running"]
    if (left := _left(first)) and running:
        parts.append(left)
    if cell := _most_telling(running, first.finished):
        inside = cell.inside
        assert inside
        rate = sum(node.per_s for node in inside.nodes)
        what = f"{_name(cell)}: {_rate(rate)} {inside.unit}/s, {inside.wait_share:.0%} waiting"
        if inside.locks:
            what += f", most for {inside.locks[0].name} ({inside.locks[0].share:.0%})"
        parts.append(what)
    return "; ".join(parts)


def _count(snapshots: list[Snapshot]) -> str:
    most = max(snapshots, key=lambda each: each.done)
    failed = sum(each.failed for each in snapshots)
    told = f"{most.done} of {counted(most.total, 'cell')}"
    return told + (f", {failed} failed" if failed else "")


def _left(of: Snapshot) -> str:
    if of.left_s is None:
        return ""
    return f"{of.left_s:.0f} s left" if of.left_s < 120 else f"{of.left_s / 60:.0f} min left"


def _name(cell: CellState) -> str:
    cpus = counted(cell.cpus, "CPU")
    return f"{cell.rmap}, {cell.workload} on {cpus} ({cell.engine})"


def _most_telling(running: list[CellState], finished: list[CellState]) -> CellState | None:
    """The largest cell that is known from inside; of the finished ones the latest."""
    inside = [cell for cell in running if cell.inside]
    if inside:
        return max(inside, key=lambda cell: cell.cpus)
    return next((cell for cell in finished if cell.inside), None)


def _rate(per_s: float) -> str:
    for factor, letter in ((1e6, "M"), (1e3, "k")):
        if per_s >= 10 * factor:
            return f"{per_s / factor:,.1f}{letter}"
    return f"{per_s:,.0f}"


# ---- the dashboard ----


def _dashboard(snapshots: list[Snapshot]) -> RenderableType:
    first = snapshots[0]
    running = [cell for each in snapshots for cell in each.running]
    finished = [cell for each in snapshots for cell in each.finished]
    title = Text(f"{first.name or 'run'} ", style="bold")
    title.append(first.run, style="dim")
    head = Table.grid(padding=(0, 2))
    most = max(snapshots, key=lambda each: each.done)
    bar = ProgressBar(total=most.total, completed=most.done, width=_BAR)
    head.add_row(title, bar, _count(snapshots), _left(first))
    parts: list[RenderableType] = [head, Text(), _cells(running, finished)]
    if cell := _most_telling(running, finished):
        assert cell.inside
        parts += [Text(), *_inside(cell, cell.inside)]
    parts += [Text(), Text("Ctrl-C ends the watching, not the run.", style="dim")]
    return Group(*parts)


def _table(*columns: str, left: int = 1) -> Table:
    table = Table(box=None, **LOOK)
    for number, name in enumerate(columns):
        table.add_column(
            name, justify="left" if number < left else "right", no_wrap=True, overflow="ellipsis"
        )
    return table


def _cells(running: list[CellState], finished: list[CellState]) -> Table:
    table = _table("cell", "CPUs", "repeat", "done", "per second", "waiting")
    rows = [(cell, "") for cell in running] + [(cell, "dim") for cell in finished]
    for cell, style in rows:
        inside, share = cell.inside, f"{cell.share:.0%}" if cell.share else "..."
        table.add_row(
            f"{cell.rmap}, {cell.workload}",
            str(cell.cpus),
            str(cell.repeat),
            "failed" if cell.error else share,
            _rate(sum(node.per_s for node in inside.nodes)) if inside else "",
            f"{inside.wait_share:.1%}" if inside else "",
            style=style,
        )
    return table


def _inside(cell: CellState, inside: Inside) -> Iterator[RenderableType]:
    how = KIND.get(cell.engine, cell.engine)
    yield Text(f"{_name(cell)}, {how}: phase {inside.phase}, {inside.seconds * 1000:.3g} ms")
    nodes = _table("node", "CPUs", f"{inside.unit}/s", "")
    # Beside each other where there is room: on 24 lines both are seen.
    most = max((node.per_s for node in inside.nodes), default=0) or 1.0
    for node in inside.nodes[:_SHOWN_NODES]:
        bar = ProgressBar(total=most, completed=node.per_s, width=_BAR // 2)
        number = "all" if node.node < 0 else str(node.node)
        nodes.add_row(number, str(node.cpus), _rate(node.per_s), bar)
    if len(inside.nodes) > _SHOWN_NODES:
        nodes.add_row("...", "", "", "")
    locks = _table("waited for", "of all time")
    for lock in inside.locks:
        if lock.share >= _SEEN:
            locks.add_row(lock.name, f"{lock.share:.1%}")
    if not locks.row_count:
        locks.add_row("nothing", "")
    yield Text()
    yield Columns([nodes, locks], padding=(0, 4))
