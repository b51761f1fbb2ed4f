# SPDX-License-Identifier: MIT
"""``emu validate``: published results beside what the virtual engine says.

The data is published.toml. Every row runs with the same parameters, those of its topology and of
its workload; a row that one of them was calibrated on says so.
"""

from __future__ import annotations

import math
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
from rich.console import Console
from rich.text import Text

from emu import experiment, stats, workload
from emu.coordinator import Interrupted, StopFlag
from emu.errors import InputError, unknown
from emu.files import parse_toml
from emu.report.table import print_uncertainty
from emu.results import CellResult, Run, Uncertainty
from emu.terminal import LOOK, WholeTable

DURATION = "40ms"
"""Of a cell, in virtual time: each of 384 CPUs that share one lock ends an exec or two in it."""
REPEATS = 5
"""Of a cell, with other seeds: a ratio with one alone is up to 4 % away from their median."""
_GHZ = 2.4
"""Of latency_cycles."""

Measure = Literal["ratio", "ops_per_s", "lock_share", "ns_per_op", "latency_cycles"]


class Result(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A published result: one point, or several."""

    id: str
    measure: Measure
    topology: str
    cpus: int | list[int]
    workload: str | list[str]
    design: str
    value: float | list[float]
    source: str
    baseline: str = ""
    mm: str = "per-vma-lock"
    lock: str = ""
    bound: Literal["", "at least"] = ""
    range: bool = False


class Calibration(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A parameter that was set by looking at published results."""

    parameter: str
    on: list[str]
    how: str


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    result: list[Result]
    calibration: list[Calibration] = []


class Point(msgspec.Struct, kw_only=True):
    """One number: as published, as emulated, and the ratio of the two."""

    row: str
    measure: str
    topology: str
    cpus: int
    workload: str
    design: str
    published: list[float]
    """One number, or the ends of an interval."""
    bound: str
    emulated: float | None = None
    """The median of the repeats. None: it could not be run; `note` says why."""
    repeats: list[float] = []
    """What each came to."""
    ratio: float | None = None
    """Emulated over published; 1 inside an interval or above a lower limit."""
    calibrated_on: bool = False
    note: str = ""


class Validation(msgspec.Struct, kw_only=True):
    """All points, and what was calibrated on which of them."""

    points: list[Point]
    calibrations: list[Calibration]
    uncertainty: list[Uncertainty] = []
    interrupted: bool = False
    """The points are those that were done."""

    def to_json(self) -> bytes:
        """The JSON document, with a newline at the end."""
        return msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n"


RunCells = Callable[[Mapping[str, object]], Run]
"""Runs an experiment given in the words of its options."""


def read(path: Path | None = None) -> _File:
    """The published results. Raises InputError when the file is not as it should be."""
    path = path or Path(__file__).with_name("published.toml")
    try:
        file = msgspec.convert(parse_toml(path)[0], _File)
    except msgspec.ValidationError as error:
        raise InputError(f"{path}: {error}") from None
    for row in file.result:
        if row.measure == "ratio" and not row.baseline:
            raise InputError(f"{path}: {row.id}: a ratio needs a baseline")
        for name in ("cpus", "workload"):
            given, values = getattr(row, name), row.value
            if isinstance(given, list) and not (
                isinstance(values, list) and len(values) == len(given) and not row.range
            ):
                raise InputError(f"{path}: {row.id}: as many values as {name}, {len(given)}")
    return file


def points(row: Result, calibrations: Sequence[Calibration] = ()) -> list[Point]:
    """The points of a row, not emulated yet."""
    several = next((each for each in (row.cpus, row.workload) if isinstance(each, list)), None)
    count = len(several) if several else 1
    found = []
    for index in range(count):
        if isinstance(row.value, list):
            published = row.value if row.range else [row.value[index]]
        else:
            published = [row.value]
        cpus = row.cpus[index] if isinstance(row.cpus, list) else row.cpus
        found.append(
            Point(
                row=row.id,
                measure=row.measure,
                topology=row.topology,
                cpus=cpus,
                workload=row.workload[index] if isinstance(row.workload, list) else row.workload,
                design=row.design,
                published=published,
                bound=row.bound,
                calibrated_on=any(
                    {row.id, f"{row.id}:{cpus}"} & set(each.on) for each in calibrations
                ),
            )
        )
    return found


def measured(row: Result, cells: Sequence[CellResult]) -> float:
    """What a row's measure comes to in the cells of a point. Raises InputError if none is there."""
    by_design = {cell.rmap: cell for cell in cells}
    cell = by_design[row.design]
    match row.measure:
        case "ratio":
            return cell.ops_per_s / by_design[row.baseline].ops_per_s
        case "ops_per_s":
            return cell.ops_per_s
        case "ns_per_op":
            return 1e9 / cell.ops_per_s
        case "latency_cycles":
            return cell.latency_ns["micro"].mean * _GHZ
        case "lock_share":
            wait_ns = sum(lock.wait_ns for lock in cell.locks if lock.name == row.lock)
            return wait_ns / (cell.cpus * cell.seconds * 1e9)


def compare(point: Point, repeats: Sequence[float]) -> None:
    """Fill in what was emulated, and the ratio of its median to the nearest that was published."""
    low, high = min(point.published), max(point.published)
    if point.bound == "at least":
        high = math.inf
    emulated = statistics.median(repeats)
    nearest = min(max(emulated, low), high)
    point.emulated, point.repeats = emulated, list(repeats)
    point.ratio = emulated / nearest if nearest else None


def validate(
    rows: Sequence[Result],
    calibrations: Sequence[Calibration],
    run_cells: RunCells,
    *,
    duration: str = DURATION,
    seed: int = 1,
    repeats: int = REPEATS,
    uncertainty: int = 0,
    progress: Callable[[Point], None] | None = None,
) -> Validation:
    """Emulate every point of the rows, until interrupted.

    What cannot be run is in the result, with the reason.
    """
    found = Validation(points=[], calibrations=list(calibrations))
    known = workload.names()
    for row in rows:
        for point in points(row, calibrations):
            found.points.append(point)
            if point.workload.partition(":")[0] not in known:
                point.note = f"no workload {point.workload}"
                continue
            if progress:
                progress(point)
            designs = [row.baseline, row.design] if row.baseline else [row.design]
            options: dict[str, object] = {
                "engine": "virtual",
                "topology": [row.topology],
                "cpus": point.cpus,
                "workload": [point.workload],
                "rmap": designs,
                "mm": [row.mm],
                "duration": duration,
                "seed": seed,
                "repeats": repeats,
            }
            if uncertainty and row.measure == "ratio":
                options["uncertainty"] = uncertainty
            try:
                run = run_cells(options)
            except Interrupted:
                found.points.pop()
                found.interrupted = True
                return found
            failed = next((cell for cell in run.cells if not cell.ok), None)
            if failed:
                point.note = f"{failed.rmap} failed: {failed.error}"
            else:
                of_repeat = [[c for c in run.cells if c.repeat == r] for r in range(repeats)]
                compare(point, [measured(row, cells) for cells in of_repeat])
            found.uncertainty += run.run.uncertainty
    return found


def choose(rows: Sequence[Result], wanted: Sequence[str]) -> list[Result]:
    """The rows of these ids; all for none. Raises InputError for one that is not there."""
    by_id = {row.id: row for row in rows}
    for name in wanted:
        if name not in by_id:
            raise unknown("published result", name, by_id)
    return [by_id[name] for name in wanted] if wanted else list(rows)


def run_all(
    wanted: Sequence[str] = (),
    *,
    file: Path | None = None,
    duration: str = DURATION,
    seed: int = 1,
    repeats: int = REPEATS,
    uncertainty: int = 0,
    progress: Callable[[Point], None] | None = None,
    stop: StopFlag | None = None,
) -> Validation:
    """Validate these rows of a file, published.toml, or all. Raises InputError."""
    published = read(file)

    def run_cells(options: Mapping[str, object]) -> Run:
        with tempfile.TemporaryDirectory(prefix="emu_validate_") as folder:
            given: dict[str, Any] = dict(options)
            try:
                return experiment.run_whole(store=folder, stop=stop, **given)
            except InputError as error:
                if file is None or error.key not in experiment.AXES:
                    raise
                raise experiment.in_file(file, error) from None

    return validate(
        choose(published.result, wanted),
        published.calibration,
        run_cells,
        duration=duration,
        seed=seed,
        repeats=repeats,
        uncertainty=uncertainty,
        progress=progress,
    )


def print_validation(found: Validation, console: Console) -> None:
    """Print the table, and what was calibrated on what."""
    table = WholeTable(box=None, **LOOK)
    for heading in ("row", "what", "cpus", "published", "emulated", "+-", "emulated/published", ""):
        right = heading not in ("row", "what", "")
        table.add_column(heading, justify="right" if right else "left", no_wrap=True)
    before = ""
    for point in found.points:
        limit = ">= " if point.bound else ""
        published = " - ".join(_number(value) for value in point.published)
        spread = stats.spread(point.repeats)
        notes = [point.note] if point.note else []
        if point.calibrated_on:
            notes.append("calibrated on")
        table.add_row(
            point.row if point.row != before else "",
            f"{point.measure}, {point.design}, {point.workload}",
            str(point.cpus),
            f"{limit}{published}",
            "-" if point.emulated is None else _number(point.emulated),
            f"{spread:.1%}" if spread else "",
            "-" if point.ratio is None else f"{point.ratio:.2f}",
            "; ".join(notes),
        )
        before = point.row
    console.print(table)
    console.print()
    if found.calibrations:
        console.print(Text("Calibrated on published results:", style="bold"))
    for each in found.calibrations:
        console.print(
            Text(f"  {each.parameter}: on {', '.join(each.on)}. {each.how}"), soft_wrap=True
        )
    print_uncertainty(found.uncertainty, console)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
