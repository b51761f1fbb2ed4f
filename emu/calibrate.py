# SPDX-License-Identifier: MIT
"""`emu calibrate`: this host as a topology, its costs measured by workers/probe/probe.c.

Every measurement is made in several rounds, spread over the whole time, so that a disturbance shows
as spread and not as a wrong figure: value is the median over all samples, spread half of p10..p90
of the samples or half the range of the rounds' medians, whichever is wider, over the median.

What cannot be measured from user space stays as assumed for the nearest known machine: the cost of
an ordinary access in a stream of others, the clock, the time slice.
"""

from __future__ import annotations

import math
import os
import platform
import random
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from scipy.optimize import nnls

from emu import _core, experiment, topology
from emu.errors import EmuError
from emu.topology import Cost, Topology

SOURCE = "CAL"
ROUNDS = 4
MAX_PAIRS = 2016
"""All pairs of 64 CPUs; of more, as many, drawn evenly from each kind of pair."""
MAX_NODE_PAIRS = 24
_TIMEOUT_S = 120.0

Progress = Callable[[int, int], None]
"""Called with how many measurements are done, of how many."""


class Pair(NamedTuple):
    """Two CPUs that play ping-pong and one of the node where their line is homed, as the topology
    numbers them."""

    a: int
    b: int
    home: int


@dataclass(frozen=True)
class Calibration:
    """The host as measured, and what disturbed it."""

    machine: Topology
    warnings: list[str]
    pair_ns: dict[Pair, float]
    """Median of each measured pair, one way."""

    def ping_pong_ns(self) -> float | None:
        """One way between CPUs 0 and 1, as measured; None on one CPU."""
        return next((ns for pair, ns in self.pair_ns.items() if (pair.a, pair.b) == (0, 1)), None)


class ProbeError(EmuError):
    """The host does not let a measurement be made."""


def probe(*arguments: object) -> dict[str, list[float]]:
    """The samples of one measurement, in ns, by name. Raises ProbeError."""
    return probes([arguments])[0]


def probes(measurements: Sequence[Sequence[object]]) -> list[dict[str, list[float]]]:
    """The same of several that run at once. Raises ProbeError for the first that fails."""
    program = str(_core.data_path("lib", "emu-probe"))
    running = [
        subprocess.Popen(
            [program, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for arguments in measurements
    ]
    found = []
    try:
        for arguments, process in zip(measurements, running, strict=True):
            out, err = process.communicate(timeout=_TIMEOUT_S)
            if process.returncode:
                reason = err.strip() or f"ended with status {process.returncode}"
                raise ProbeError(f"{' '.join(map(str, arguments))}: {reason}")
            found.append(samples(out))
    except subprocess.TimeoutExpired:
        raise ProbeError(f"no end after {_TIMEOUT_S:.0f} s") from None
    finally:
        for process in running:
            process.kill()
            process.wait()
    return found


def samples(text: str) -> dict[str, list[float]]:
    """Lines "name value" -> values by name."""
    found: dict[str, list[float]] = {}
    for line in text.splitlines():
        name, value = line.split()
        found.setdefault(name, []).append(float(value))
    return found


def cost(rounds: list[list[float]], confidence: str) -> Cost:
    """The figure of samples that were taken in rounds; see above for value and spread."""
    every = np.concatenate([np.asarray(r) for r in rounds])
    middle = float(np.median(every))
    low, high = np.percentile(every, [10, 90])
    medians = [float(np.median(r)) for r in rounds]
    wide = max(float(high - low), max(medians) - min(medians)) / 2
    level: Any = confidence
    return Cost(middle, min(wide / middle, 1.0), level, SOURCE)


def emulated_ping_pong_ns(machine: Topology, measured_ns: float) -> float:
    """One way between CPUs 0 and 1 of a machine, as the virtual engine has it; the measured time
    tells how long to look. Raises EmuError if it cannot be emulated, Interrupted."""
    with tempfile.TemporaryDirectory(prefix="emu-calibrate-") as folder:
        file = Path(folder) / "host.toml"
        file.write_text(machine.to_toml(), encoding="utf-8")
        ran = experiment.run_whole(
            engine="virtual",
            rmap="single",
            topology=str(file),
            cpus=[2],
            workload="line-ping-pong",
            duration=f"{math.ceil(measured_ns / 1000)}ms",
            store=folder,
        )
    if not ran.cells[0].ok:
        raise EmuError(f"line-ping-pong on {machine.name}: {ran.cells[0].error}")
    return 1e9 / ran.cells[0].ops_per_s


def run(progress: Progress | None = None, seed: int = 1) -> Calibration:
    """Measures the CPUs that this process may use. Takes seconds on a laptop, minutes on a server.

    Raises EmuError where a measurement is impossible.
    """
    host = topology.host()
    warnings = list(surroundings())
    confidence = "M" if any("virtual machine" in warning for warning in warnings) else "H"
    steps = list(_steps(host, random.Random(seed)))
    order = [step for _ in range(ROUNDS) for step in steps]
    rounds: dict[str, list[list[float]]] = {}
    stolen = _stolen_ticks()
    for done, step in enumerate(order):
        if progress:
            progress(done, len(order))
        try:
            found = probe(*step.arguments)
        except ProbeError as error:
            if step.needed:
                raise
            if (warning := f"not measured: {error}") not in warnings:
                warnings.append(warning)
            continue
        for name, values in found.items():
            rounds.setdefault(f"{step.name}.{name}" if step.name else name, []).append(values)
    if progress:
        progress(len(order), len(order))
    if _stolen_ticks() > stolen:
        warnings.append("the hypervisor took CPU time away meanwhile (steal in /proc/stat)")
    pair_rounds = {
        step.pair: rounds[f"{step.name}.one_way"] for step in steps if step.pair is not None
    }
    numbers = _numbers(host, rounds, pair_rounds, confidence)
    noisy = [key for key, figure in numbers.items() if figure.spread > 0.25]
    if noisy:
        warnings.append(f"spread above 25 %: {', '.join(noisy)}; a quieter machine would help")
    return Calibration(
        _with_numbers(host, numbers, confidence),
        warnings,
        {pair: cost(values, confidence).value for pair, values in pair_rounds.items()},
    )


@dataclass(frozen=True)
class _Step:
    name: str
    arguments: tuple[object, ...]
    needed: bool = False
    pair: Pair | None = None


def _steps(host: Topology, rng: random.Random) -> Iterator[_Step]:
    """All measurements of one round. Arguments hold the host's CPU numbers."""
    cpu = host.host_cpus
    yield _Step("", ("syscall", cpu[0], 5), needed=True)
    yield _Step("", ("switch", cpu[0], 5))
    yield _Step("fork", ("fork", cpu[0], 40))
    yield _Step("exec", ("exec", cpu[0], 300))
    yield _Step("uncontended", ("fetch-add", cpu[0], 5), needed=True)
    caches = {name: int(host.value(f"cache.{name}_kib") * 1024) for name in ("l1", "l2", "l3")}
    caches |= _cache_bytes(host.host_cpus[0])
    inside = {
        "l1": caches["l1"] // 2,
        "l2": max(caches["l2"] // 2, 2 * caches["l1"]),
        "l3": max(caches["l3"] // 4, 2 * caches["l2"]),
    }
    for name, size in inside.items():
        yield _Step(name, ("chase", cpu[0], cpu[0], size, 5), needed=True)
    for kind, here, there in _node_pairs(host, rng):
        yield _Step(kind, ("chase", cpu[here], cpu[there], _dram_bytes(caches["l3"]), 3))
    if len(cpu) < 2:
        return
    yield _Step("contended", ("fetch-add", ",".join(map(str, cpu)), 5))
    yield _Step("", ("wake", cpu[1], cpu[0], 30))
    yield _Step("", ("ipi", cpu[0], cpu[1], 10))
    first = [int(np.argmax(host.node_of_cpu == node)) for node in range(host.nr_nodes)]
    for a, b in _pairs(host, rng):
        # A third home tells what a leg costs from what every transfer costs.
        pair = Pair(a, b, rng.choice([a, b, *first]))
        arguments = ("ping-pong", *(cpu[i] for i in pair), 2)
        yield _Step(f"{a}-{b}", arguments, needed=True, pair=pair)


def _pairs(host: Topology, rng: random.Random) -> list[tuple[int, int]]:
    """Pairs of CPUs to play ping-pong: all, or of a large machine as many of each kind."""
    every = [(a, b) for a in range(host.nr_cpus) for b in range(a + 1, host.nr_cpus)]
    first = every[0]  # which is looked at again, emulated
    if len(every) <= MAX_PAIRS:
        return every
    kinds: dict[tuple[object, ...], list[tuple[int, int]]] = {}
    for a, b in every:
        same_core = host.core_of_cpu[a] == host.core_of_cpu[b]
        same_l3 = host.l3_of_cpu[a] == host.l3_of_cpu[b]
        nodes = (int(host.node_of_cpu[a]), int(host.node_of_cpu[b]))
        kind = ("core",) if same_core else ("l3",) if same_l3 else nodes
        kinds.setdefault(kind, []).append((a, b))
    share = max(MAX_PAIRS // len(kinds), 2)
    drawn = [pair for pairs in kinds.values() for pair in rng.sample(pairs, min(share, len(pairs)))]
    return drawn if first in drawn else [first, *drawn[1:]]


def _node_pairs(host: Topology, rng: random.Random) -> list[tuple[str, int, int]]:
    """(field of [dram], CPU, CPU of the home's node): each node's own memory, and others'."""
    first = [int(np.argmax(host.node_of_cpu == node)) for node in range(host.nr_nodes)]
    kinds: dict[str, list[tuple[str, int, int]]] = {}
    for a in range(host.nr_nodes):
        for b in range(host.nr_nodes):
            near = host.socket_of_node[a] == host.socket_of_node[b]
            kind = "local_ns" if a == b else "same_socket_ns" if near else "remote_ns"
            kinds.setdefault(kind, []).append((kind, first[a], first[b]))
    return [
        pair
        for pairs in kinds.values()
        for pair in rng.sample(pairs, min(MAX_NODE_PAIRS // len(kinds), len(pairs)))
    ]


def _cache_bytes(cpu: int) -> dict[str, int]:
    """What the kernel says of the CPU's data caches."""
    found: dict[str, int] = {}
    for index in Path(f"/sys/devices/system/cpu/cpu{cpu}/cache").glob("index*"):
        try:
            kind = (index / "type").read_text().strip()
            level = (index / "level").read_text().strip()
            size = (index / "size").read_text().strip()
        except OSError:  # the kernel of some guests has none; the assumed sizes stay
            continue
        if kind != "Instruction" and size.endswith("K"):
            found[f"l{level}"] = int(size[:-1]) * 1024
    return found


def _dram_bytes(l3_bytes: int) -> int:
    """Enough to miss every cache, and no more than an eighth of the memory that is free."""
    wanted = min(max(4 * l3_bytes, 64 << 20), 512 << 20)
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(min(wanted, free // 8), 16 << 20)


def _numbers(
    host: Topology,
    rounds: dict[str, list[list[float]]],
    pair_rounds: dict[Pair, list[list[float]]],
    confidence: str,
) -> dict[str, Cost]:
    """Everything measured, by "section.name"."""
    plain = {
        "kernel.null_syscall_ns": "null_syscall",
        "kernel.futex_wait_ns": "futex_wait",
        "kernel.futex_wake_ns": "futex_wake",
        "kernel.wake_to_run_ns": "wake_to_run",
        "kernel.ipi_round_trip_ns": "round_trip",
        "atomic.uncontended_ns": "uncontended.per_op",
        "atomic.contended_ns": "contended.per_op",
        "cache.l1_ns": "l1.load",
        "cache.l2_ns": "l2.load",
        "cache.l3_ns": "l3.load",
        "dram.local_ns": "local_ns.load",
        "dram.same_socket_ns": "same_socket_ns.load",
        "dram.remote_ns": "remote_ns.load",
        "measured.exec_ns": "exec.exec",
        "measured.exec_user_ns": "exec.user",
        "measured.fork_exit_ns": "fork.fork_exit",
        "measured.fork_exit_user_ns": "fork.user",
    }
    numbers = {
        key: cost(rounds[name], confidence)
        for key, name in plain.items()
        if name in rounds and np.median(np.concatenate(rounds[name])) > 0
    }
    # A yield is a system call and a switch; a sleeper's wake is one with nobody to wake and an IPI.
    for key, name, less in (
        ("kernel.context_switch_ns", "switch", "kernel.null_syscall_ns"),
        ("kernel.ipi_send_ns", "wake", "kernel.futex_wake_ns"),
    ):
        if name in rounds:
            whole = cost(rounds[name], confidence)
            rest = whole.value - numbers[less].value
            if rest > 0:
                spread = min(whole.spread * whole.value / rest, 1.0)
                numbers[key] = Cost(rest, spread, whole.confidence, SOURCE)
    return numbers | _between_cpus(host, pair_rounds, confidence)


def _between_cpus(
    host: Topology, pair_rounds: dict[Pair, list[list[float]]], confidence: str
) -> dict[str, Cost]:
    """[c2c] from the pairs: medians within a core and an L3; beyond, the base and the prices of a
    hop and of a crossing that fit best. Where a price cannot be told from the base, as on a machine
    of two nodes, where each transfer crosses twice, the base has it all."""
    kinds: dict[str, list[list[float]]] = {}
    rows: list[tuple[float, float, float]] = []
    far: list[list[list[float]]] = []
    for pair, rounds in pair_rounds.items():
        if host.core_of_cpu[pair.a] == host.core_of_cpu[pair.b]:
            kinds.setdefault("c2c.smt_ns", []).extend(rounds)
        elif host.l3_of_cpu[pair.a] == host.l3_of_cpu[pair.b]:
            kinds.setdefault("c2c.l3_ns", []).extend(rounds)
        else:
            # The line goes both ways, over legs from requester to home to owner to requester.
            a, b, home = (int(host.node_of_cpu[cpu]) for cpu in pair)
            legs = ((a, home), (home, b), (b, a))
            hops = sum(host.die_hops(*leg) for leg in legs)
            crossings = sum(host.socket_crossings(*leg) for leg in legs)
            rows.append((1.0, hops, crossings))
            far.append(rounds)
    numbers = {key: cost(rounds, confidence) for key, rounds in kinds.items()}
    if rows:
        matrix = np.array(rows)
        medians = np.array([cost(rounds, confidence).value for rounds in far])
        fitted = np.zeros(3)
        columns = [0]
        for column in (1, 2):
            if np.linalg.matrix_rank(matrix[:, [*columns, column]]) > len(columns):
                columns.append(column)
        fitted[columns], _ = nnls(matrix[:, columns], medians)
        off = np.abs(matrix @ fitted - medians) / medians
        spread = max(
            float(np.percentile(off, 90)),
            float(np.median([cost(rounds, confidence).spread for rounds in far])),
        )
        for key, column in (
            ("c2c.base_ns", 0),
            ("c2c.per_die_hop_ns", 1),
            ("c2c.per_socket_cross_ns", 2),
        ):
            if matrix[:, column].any():
                level: Any = confidence
                numbers[key] = Cost(float(fitted[column]), min(spread, 1.0), level, SOURCE)
    return numbers


def _with_numbers(host: Topology, numbers: dict[str, Cost], confidence: str) -> Topology:
    """The host with these numbers, and the sizes of caches that the kernel tells."""
    level: Any = confidence
    for name, size in _cache_bytes(host.host_cpus[0]).items():
        numbers[f"cache.{name}_kib"] = Cost(size / 1024, 0.0, level, SOURCE)
    tables: dict[str, dict[str, Cost]] = {}
    for key, figure in numbers.items():
        section, name = key.split(".")
        tables.setdefault(section, {})[name] = figure
    name = topology.cpu_name(Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    note = "not measurable from user space, or not there: " + next(iter(host.costs.notes.values()))
    left = {key for key in host.costs.numbers() if key not in numbers}
    costs = msgspec.structs.replace(
        host.costs,
        **{
            section: msgspec.structs.replace(getattr(host.costs, section), **values)
            for section, values in tables.items()
        },
        notes={key: note for key in host.costs.numbers() if key in left},
        sources=host.costs.sources
        | {
            SOURCE: f"emu calibrate, {time.strftime('%Y-%m-%d')}, {name}, "
            f"{platform.system()} {platform.release()}"
        },
    )
    return replace(host, description=name, origin="as the kernel shows it", costs=costs)


def surroundings() -> Iterable[str]:
    """What makes the figures of this machine less sure."""
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    if "hypervisor" in flags:
        yield "in a virtual machine: wake-ups and IPIs pass the hypervisor, CPUs may share cores"
    load = os.getloadavg()[0]
    if load > 0.5:
        yield f"other work is running (load {load:.1f}): measure on a quiet machine"


def _stolen_ticks() -> int:
    fields = Path("/proc/stat").read_text(encoding="utf-8").split("\n", 1)[0].split()
    return int(fields[8]) if len(fields) > 8 else 0
