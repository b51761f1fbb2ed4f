# SPDX-License-Identifier: MIT
"""`emu compare-kernel`: how fast this host's kernel execs, and how fast both engines say it does.

The real thing is `emu-probe exec`, a small dynamically linked program that replaces itself by
itself, one copy pinned to each CPU; emulated is the workload `execl`, which was recorded from such
a program. What the kernel and the loader do besides the mm is the workload's `work`, and that is
fitted here, for each engine, so that one CPU is as fast as the real one. The first row is therefore
equal by construction. All others are predictions.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path

import msgspec
import numpy as np

from emu import calibrate, experiment, stats, topology, workload
from emu.errors import EmuError
from emu.words import counted

WORKLOAD = "execl"
ENGINES = ("native", "virtual")
ROUNDS = 3


class Row(msgspec.Struct, kw_only=True):
    """One number of CPUs; execs per second of all together, and the engines' over the real."""

    cpus: int
    real_per_s: float
    real_spread: float
    """Half the range of the rounds over their median."""
    emulated_per_s: dict[str, float]
    ratio: dict[str, float]


class Comparison(msgspec.Struct, kw_only=True):
    """The curves; `topology` says which costs the virtual engine has gone by."""

    topology: str
    rows: list[Row]
    work_ns: dict[str, float]
    """By engine: what was fitted, the time of an exec besides the emulated mm."""
    warnings: list[str]


def run(
    cpus: Sequence[int],
    duration_ms: int = 1000,
    progress: Callable[[str], None] = lambda what: None,
) -> Comparison:
    """Compares at these numbers of CPUs, ascending, from 1 to those of this process.

    Raises EmuError where the host cannot be measured or a cell fails, Interrupted.
    """
    host = topology.load("host")
    warnings = list(calibrate.surroundings())
    if "calibrated" not in host.description:
        warnings.append("the host is not calibrated: `emu calibrate` first gives it its own costs")
    wanted = sorted({1, *cpus})
    real: dict[int, list[float]] = {n: [] for n in wanted}
    for number in range(ROUNDS):  # A B A B, so that drift hits all alike
        for n in wanted:
            progress(f"real, {counted(n, 'CPU')}, round {number + 1} of {ROUNDS}")
            real[n].append(real_rate(host.host_cpus[:n], duration_ms))
    rates = {n: float(np.median(values)) for n, values in real.items()}
    emulated: dict[str, dict[int, float]] = {}
    work_ns: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="emu-compare-") as folder:
        fitted = Path(folder) / f"{WORKLOAD}.toml"
        for engine in ENGINES:
            progress(f"{engine}, 1 CPU, for the fit")
            alone = _emulate(engine, [1], WORKLOAD, duration_ms, folder)[1]
            missing_ns = 1e9 / rates[1] - 1e9 / alone
            text, work_ns[engine] = with_work(_source(), missing_ns)
            fitted.write_text(text, encoding="utf-8")
            numbers = [*map(str, wanted[:-1]), counted(wanted[-1], "CPU")]
            progress(f"{engine}, {', '.join(numbers)}")
            emulated[engine] = _emulate(engine, wanted, str(fitted), duration_ms, folder)
    rows = [
        Row(
            cpus=n,
            real_per_s=rates[n],
            real_spread=stats.spread(real[n]) or 0.0,
            emulated_per_s={engine: emulated[engine][n] for engine in ENGINES},
            ratio={engine: emulated[engine][n] / rates[n] for engine in ENGINES},
        )
        for n in wanted
        if n in set(cpus)
    ]
    return Comparison(topology=host.description, rows=rows, work_ns=work_ns, warnings=warnings)


def real_rate(host_cpus: Sequence[int], duration_ms: int) -> float:
    """Execs per second of one copy on each of these host CPUs, all at once. Raises EmuError."""
    found = calibrate.probes([("exec", cpu, duration_ms) for cpu in host_cpus])
    return sum(copy["count"][0] / copy["elapsed"][0] * 1e9 for copy in found)


def _source() -> str:
    return (files("emu") / "workloads" / f"{WORKLOAD}.toml").read_text(encoding="utf-8")


_WORK = re.compile(r'(\[work\.(exec|call)\]\ntime = )"([^"]+)"')


def with_work(text: str, missing_ns: float) -> tuple[str, float]:
    """The workload's text with the work of an exec and its calls longer by this, in proportion; and
    that work, in ns. Raises EmuError where nothing would be left."""
    execl = workload.load(WORKLOAD)
    calls = len(execl.calls[execl.list_names.index("program.exec")]) - 1  # exec is the other one
    found = {kind: workload.parse_time(time) for _, kind, time in _WORK.findall(text)}
    work_ns = float(found["exec"] + calls * found["call"])
    if work_ns + missing_ns <= 0:
        raise EmuError(
            f"an exec takes {(work_ns + missing_ns) / 1000:.0f} us less than the emulated mm alone"
        )
    factor = 1 + missing_ns / work_ns
    return (
        _WORK.sub(lambda m: f'{m[1]}"{round(workload.parse_time(m[3]) * factor)}ns"', text),
        work_ns + missing_ns,
    )


def _emulate(
    engine: str, cpus: list[int], name: str, duration_ms: int, store: str
) -> dict[int, float]:
    """Execs per second by number of CPUs, the median of the repeats."""
    native = engine == "native"
    ran = experiment.run_whole(
        engine=engine,
        rmap="single",
        topology="host",
        cpus=cpus,
        workload=name,
        duration=f"{duration_ms if native else 50}ms",
        repeats=ROUNDS if native else 1,
        store=store,
    )
    for cell in ran.cells:
        if not cell.ok:
            raise EmuError(f"{engine}, {counted(cell.cpus, 'CPU')}: {cell.error}")
    return {
        n: float(np.median([cell.ops_per_s for cell in ran.cells if cell.cpus == n])) for n in cpus
    }


def default_cpus() -> list[int]:
    """1, 2, 4 ... and all that this process may use."""
    most = len(os.sched_getaffinity(0))
    return sorted({1 << i for i in range(most.bit_length()) if 1 << i <= most} | {most})
