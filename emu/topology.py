# SPDX-License-Identifier: MIT
"""Topologies: machines as data. Sockets, NUMA nodes, L3 domains, cores, SMT, and what things cost.

A machine is a TOML file in topologies/. Every number in it says where it comes from and how far to
trust it:

    [c2c]
    l3_ns = { value = 32.6, spread = 0.06, confidence = "H", source = "KC" }

value       in the unit that the name ends with (ns, kib, ghz; SLIT distances have none)
spread      relative: half of p10..p90 over the median where that is known, else an honest guess
confidence  H measured on that CPU model, M on the same die or family, L by analogy, U unverified
source      a key of [sources]. L and U also need a reason in [notes], for the number or its section

Fetching a cache line that another CPU owns costs, one way,

    SMT sibling: smt_ns     same L3: l3_ns
    else base_ns + per_die_hop_ns * hops + per_socket_cross_ns * crossings,

hops and crossings summed over three legs: requester -> home, home -> owner, owner -> requester,
where home is the node of the line's memory. A leg between sockets crosses once, to the node in the
same position there, and hops if that position is not the right one.
"""

from __future__ import annotations

import difflib
import json
import math
import os
import textwrap
import tomllib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints

import msgspec
import numpy as np
from numpy.typing import NDArray

from emu.errors import EmuError, InputError
from emu.files import read_text

MAX_CPUS = 65535
"""A queued spinlock's tail holds CPU number + 1 in 16 bits."""
MAX_NODES = 1024
"""As many as Linux knows."""
LAYOUT = "LAYOUT"
"""The source, in a written file, of a structure that was found and not read from a file."""

MAX_STORES = 16
"""The virtual machine's store buffer (EMU_STORES_MAX)."""

IntArray = NDArray[np.int32]


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class Cost(_Table, frozen=True):
    """One number of a machine."""

    value: Annotated[float, msgspec.Meta(ge=0)]
    spread: Annotated[float, msgspec.Meta(ge=0, le=1)]
    confidence: Literal["H", "M", "L", "U"]
    source: str


class Structure(_Table, frozen=True):
    """How many of each; the numbers below are per unit above."""

    sockets: Annotated[int, msgspec.Meta(ge=1)]
    nodes_per_socket: Annotated[int, msgspec.Meta(ge=1)]
    l3_per_node: Annotated[int, msgspec.Meta(ge=1)]
    cores_per_l3: Annotated[int, msgspec.Meta(ge=1)]
    smt: Annotated[int, msgspec.Meta(ge=1)]
    confidence: Literal["H", "M", "L", "U"]
    source: str

    @property
    def cpus(self) -> int:
        """How many CPUs that is."""
        return (
            self.sockets * self.nodes_per_socket * self.l3_per_node * self.cores_per_l3 * self.smt
        )


class Layout(_Table, frozen=True):
    """A machine CPU by CPU, in place of Structure: as imported or as found, irregular ones too.

    Lists of CPUs as Linux writes them, "0-3,8", one a socket, node, L3 domain, core; each list has
    every CPU once, numbered from 0, and a core lies in one L3 domain, that in one node, that in one
    socket. slit: firmware's distance from each node (row) to each (column).
    """

    sockets: list[str]
    nodes: list[str]
    l3: list[str]
    cores: list[str]
    slit: list[list[Annotated[int, msgspec.Meta(ge=10, le=254)]]]
    confidence: Literal["H", "M", "L", "U"]
    source: str


class Clock(_Table, frozen=True):
    """The clock at which figures in cycles were turned into ns."""

    ghz: Cost


class Slit(_Table, frozen=True):
    """Firmware's relative distances, as `numactl -H` prints them."""

    same_node: Cost
    same_socket: Cost | None = None
    socket_linked: Cost | None = None
    """Another socket, the node in the same position."""
    socket_other: Cost | None = None


class C2c(_Table, frozen=True):
    """Core to core: a line that another CPU has modified, one way."""

    smt_ns: Cost | None = None
    l3_ns: Cost | None = None
    base_ns: Cost | None = None
    per_die_hop_ns: Cost | None = None
    per_socket_cross_ns: Cost | None = None


class Dram(_Table, frozen=True):
    """A load from memory, by where the line is homed."""

    local_ns: Cost
    same_socket_ns: Cost | None = None
    remote_ns: Cost | None = None


class Cache(_Table, frozen=True):
    """Sizes: l1 and l2 of a core, l3 of an L3 domain. Latencies: of a load that hits there."""

    l1_kib: Cost
    l2_kib: Cost
    l3_kib: Cost
    l1_ns: Cost
    l2_ns: Cost
    l3_ns: Cost
    access_ns: Cost
    """An ordinary access that hits the L1, in a stream of others: its cost, not its latency."""


class Atomic(_Table, frozen=True):
    """Read-modify-write instructions, besides the transfer of the line."""

    uncontended_ns: Cost
    """A read-modify-write of a line that this CPU owns."""
    contended_ns: Cost
    """How long each of many CPUs' fetch_add keeps the line: elapsed time over operations, far below
    the transfer latency because hardware serves neighbours in batches."""


class Core(_Table, frozen=True):
    """What a core does besides its caches."""

    outstanding_stores: Cost
    """Stores on their way to the caches before the next one stalls."""
    smt_speed: Cost
    """Of each of two threads of a core while both work, against one alone."""


class Kernel(_Table, frozen=True):
    """System calls and scheduling."""

    null_syscall_ns: Cost
    futex_wait_ns: Cost
    """From the call until the CPU would switch away."""
    futex_wake_ns: Cost
    """The call, with nobody to wake."""
    wake_to_run_ns: Cost
    """From the wake until the sleeper runs on another CPU."""
    context_switch_ns: Cost
    ipi_send_ns: Cost
    ipi_round_trip_ns: Cost
    time_slice_ns: Cost
    """How long a task runs while others wait for its CPU."""
    work_scale: Cost | None = None
    """Time of a workload's computing against the box that its [work] is from; without: the same."""


class Idle(_Table, frozen=True):
    """States of an idle CPU, in pairs: until it runs again, and how long it must be idle for them.

    C1 and C1E only stop the clock. C3 and C6 (AMD's C2) also empty the core's own caches.
    """

    c1_exit_ns: Cost | None = None
    c1_residency_ns: Cost | None = None
    c1e_exit_ns: Cost | None = None
    c1e_residency_ns: Cost | None = None
    c3_exit_ns: Cost | None = None
    c3_residency_ns: Cost | None = None
    c6_exit_ns: Cost | None = None
    c6_residency_ns: Cost | None = None


IDLE_STATES = ("c1", "c1e", "c3", "c6")
"""Shallow to deep, as in Idle."""


class Measured(_Table, frozen=True):
    """What a real kernel takes on this machine, for comparison; no engine uses it."""

    exec_ns: Cost | None = None
    """A small dynamically linked program replaces itself by itself, on one CPU."""
    exec_user_ns: Cost | None = None
    """Of it, in user mode: the dynamic loader."""
    fork_exit_ns: Cost | None = None
    """fork, _exit in the child, wait."""
    fork_exit_user_ns: Cost | None = None


class Costs(_Table, frozen=True, kw_only=True):
    """All the numbers of a machine that do not follow from its structure."""

    clock: Clock
    slit: Slit
    c2c: C2c
    dram: Dram
    cache: Cache
    atomic: Atomic
    core: Core
    kernel: Kernel
    notes: dict[str, str]
    sources: dict[str, str]
    idle: Idle = Idle()
    measured: Measured = Measured()

    def numbers(self) -> dict[str, Cost]:
        """Every number that is there, by "section.name", in the order of the file."""
        found: dict[str, Cost] = {}
        for section in _SECTIONS:
            table = getattr(self, section)
            for name in table.__struct_fields__:
                cost = getattr(table, name)
                if cost is not None:
                    found[f"{section}.{name}"] = cost
        return found

    def note(self, key: str) -> str:
        """The remark on a number, else the one on its section, else ""."""
        return self.notes.get(key) or self.notes.get(key.split(".")[0], "")


class Machine(Costs, frozen=True, kw_only=True):
    """A topology file: with [structure] or with [layout]."""

    name: str
    description: str
    structure: Structure | None = None
    layout: Layout | None = None


_SECTIONS = (
    "clock",
    "slit",
    "c2c",
    "dram",
    "cache",
    "atomic",
    "core",
    "kernel",
    "idle",
    "measured",
)
_COMMON = ("core", "kernel")
"""Sections that machines share, from _common-costs.toml."""


@dataclass(frozen=True)
class LatencyClass:
    """Pairs of CPUs, and homes, between which a cache line travels alike."""

    name: str
    min_ns: float
    max_ns: float


@dataclass(frozen=True, eq=False)
class Topology:
    """A machine.

    CPUs are numbered as Linux does: the first threads of socket 0's cores, of socket 1's ..., then
    all second threads. Nodes, L3 domains and cores: across the machine, socket by socket.

    origin: how the structure is known.
    own_slit: the distances are firmware's own, not made of costs.slit.
    host_cpus, host_nodes: the real numbers behind CPU 0.. and node 0.., for `host` only.
    """

    name: str
    description: str
    origin: str
    costs: Costs
    socket_of_cpu: IntArray
    node_of_cpu: IntArray
    l3_of_cpu: IntArray
    core_of_cpu: IntArray
    slit: IntArray
    own_slit: bool = False
    host_cpus: tuple[int, ...] = ()
    host_nodes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for array in (
            self.socket_of_cpu,
            self.node_of_cpu,
            self.l3_of_cpu,
            self.core_of_cpu,
            self.slit,
        ):
            array.setflags(write=False)

    @property
    def nr_cpus(self) -> int:
        """CPUs: hardware threads."""
        return len(self.node_of_cpu)

    @property
    def nr_nodes(self) -> int:
        """NUMA nodes."""
        return len(self.slit)

    @property
    def nr_sockets(self) -> int:
        """Sockets."""
        return len(np.unique(self.socket_of_cpu))

    def value(self, key: str) -> float:
        """The number "section.name", as "c2c.l3_ns"; 0 where this machine has no such case."""
        section, name = key.split(".")
        cost: Cost | None = getattr(getattr(self.costs, section), name)
        return cost.value if cost else 0.0

    @cached_property
    def socket_of_node(self) -> IntArray:
        """[node]: its socket."""
        first_cpu = [int(np.argmax(self.node_of_cpu == node)) for node in range(self.nr_nodes)]
        return self.socket_of_cpu[first_cpu]

    @cached_property
    def _position_of_node(self) -> IntArray:
        """A node's place among the nodes of its socket."""
        sockets = self.socket_of_node.tolist()
        return np.array([sockets[:node].count(s) for node, s in enumerate(sockets)], dtype=np.int32)

    @cached_property
    def die_hop_matrix(self) -> IntArray:
        """[node, node]: hops between dies inside a socket, 0 or 1."""
        position = self._position_of_node
        return np.not_equal(position[:, None], position[None, :]).astype(np.int32)

    @cached_property
    def socket_crossing_matrix(self) -> IntArray:
        """[node, node]: hops between sockets, 0 or 1."""
        socket = self.socket_of_node
        return np.not_equal(socket[:, None], socket[None, :]).astype(np.int32)

    def die_hops(self, node_a: int, node_b: int) -> int:
        """Hops between dies on the way from one node to another."""
        return int(self.die_hop_matrix[node_a, node_b])

    def socket_crossings(self, node_a: int, node_b: int) -> int:
        """Hops between sockets on the way from one node to another."""
        return int(self.socket_crossing_matrix[node_a, node_b])

    @cached_property
    def leg_ns(self) -> NDArray[np.float64]:
        """[node, node]: what one leg adds to c2c.base_ns."""
        return (
            self.value("c2c.per_die_hop_ns") * self.die_hop_matrix
            + self.value("c2c.per_socket_cross_ns") * self.socket_crossing_matrix
        )

    def c2c_ns(self, cpu_a: int, cpu_b: int, home_node: int) -> float:
        """Nanoseconds, one way, until cpu_a has a line that cpu_b modified. 0 for its own line."""
        if cpu_a == cpu_b:
            return 0.0
        if self.core_of_cpu[cpu_a] == self.core_of_cpu[cpu_b]:
            return self.value("c2c.smt_ns")
        if self.l3_of_cpu[cpu_a] == self.l3_of_cpu[cpu_b]:
            return self.value("c2c.l3_ns")
        a, b, leg = self.node_of_cpu[cpu_a], self.node_of_cpu[cpu_b], self.leg_ns
        return self.value("c2c.base_ns") + float(leg[a, home_node] + leg[home_node, b] + leg[b, a])

    def dram_ns(self, cpu: int, home_node: int) -> float:
        """Nanoseconds for cpu to load a line that no cache holds."""
        node = self.node_of_cpu[cpu]
        if node == home_node:
            return self.value("dram.local_ns")
        if self.socket_of_node[node] == self.socket_of_node[home_node]:
            return self.value("dram.same_socket_ns")
        return self.value("dram.remote_ns")

    def latency_classes(self) -> list[LatencyClass]:
        """The kinds of transfers on this machine, nearest first, each with its range of c2c_ns."""
        found: list[LatencyClass] = []
        cores = len(np.unique(self.core_of_cpu))
        if self.nr_cpus > cores:
            smt = self.value("c2c.smt_ns")
            found.append(LatencyClass("SMT sibling", smt, smt))
        if cores > len(np.unique(self.l3_of_cpu)):
            l3 = self.value("c2c.l3_ns")
            found.append(LatencyClass("same L3", l3, l3))

        # Beyond the L3 only the nodes of requester, owner (rows) and home (columns) matter.
        socket, leg, base = self.socket_of_node, self.leg_ns, self.value("c2c.base_ns")
        owner, home = np.ogrid[0 : self.nr_nodes, 0 : self.nr_nodes]
        ranges: dict[str, list[float]] = {}
        for requester in range(self.nr_nodes):
            ns = base + leg[requester, home] + leg[home, owner] + leg[owner, requester]
            l3s = np.unique(self.l3_of_cpu[self.node_of_cpu == requester])
            same_node = (owner == requester) & (len(l3s) > 1)
            same_socket = (owner != requester) & (socket[owner] == socket[requester])
            other_socket = socket[owner] != socket[requester]
            home_near = (socket[home] == socket[requester]) | (socket[home] == socket[owner])
            for name, where in (
                ("same node, homed there", same_node & (home == requester)),
                (
                    "same node, homed in another of the socket",
                    same_node & (home != requester) & home_near,
                ),
                ("same socket, homed there", same_socket & home_near),
                ("other socket, homed in either", other_socket & home_near),
                ("same node, homed in another socket", same_node & ~home_near),
                ("same socket, homed in another socket", same_socket & ~home_near),
                ("other socket, homed in a third", other_socket & ~home_near),
            ):
                ranges.setdefault(name, []).extend(np.unique(ns[where]).tolist())
        found += [LatencyClass(name, min(ns), max(ns)) for name, ns in ranges.items() if ns]
        return found

    def summary(self) -> str:
        """One line: how much of what there is."""
        counts = [
            ("socket", self._counts(self.socket_of_cpu, np.zeros_like(self.socket_of_cpu))),
            ("node", self._counts(self.node_of_cpu, self.socket_of_cpu)),
            ("L3", self._counts(self.l3_of_cpu, self.node_of_cpu)),
            ("core", self._counts(self.core_of_cpu, self.l3_of_cpu)),
            ("thread", self._counts(np.arange(self.nr_cpus, dtype=np.int32), self.core_of_cpu)),
        ]
        words = []
        for unit, per_unit in counts:
            number = str(per_unit[0]) if len(per_unit) == 1 else f"{per_unit[0]}-{per_unit[-1]}"
            plural = "" if number == "1" or unit == "L3" else "s"
            words.append(f"{number} {unit}{plural}")
        return f"{self.nr_cpus} CPU{'s' if self.nr_cpus > 1 else ''} = {' x '.join(words)}"

    @staticmethod
    def _counts(inner: IntArray, outer: IntArray) -> list[int]:
        """How many different `inner` the units of `outer` have; one number if all have as many."""
        pairs = np.unique(np.stack([outer, inner]), axis=1)
        return sorted(set(np.unique(pairs[0], return_counts=True)[1].tolist()))

    def most(self) -> Structure:
        """The largest number of each unit within the one above it: all there is if regular."""
        cpus = np.arange(self.nr_cpus, dtype=np.int32)
        return Structure(
            sockets=self.nr_sockets,
            nodes_per_socket=self._counts(self.node_of_cpu, self.socket_of_cpu)[-1],
            l3_per_node=self._counts(self.l3_of_cpu, self.node_of_cpu)[-1],
            cores_per_l3=self._counts(self.core_of_cpu, self.l3_of_cpu)[-1],
            smt=self._counts(cpus, self.core_of_cpu)[-1],
            confidence="H",
            source="",
        )

    def to_toml(self) -> str:
        """A topology file of this machine, CPU by CPU; load() gives an equal machine."""
        costs = self.costs
        text = [
            f"name = {_toml(self.name)}",
            f"description = {_toml(self.description)}",
            "",
            "# Lists of CPUs, one a socket, node, L3 domain, core.",
            "[layout]",
        ]
        for unit, of_cpu in (
            ("sockets", self.socket_of_cpu),
            ("nodes", self.node_of_cpu),
            ("l3", self.l3_of_cpu),
            ("cores", self.core_of_cpu),
        ):
            lists = [
                format_cpu_list(np.flatnonzero(of_cpu == u).tolist())
                for u in range(max(of_cpu) + 1)
            ]
            text.append(f"{unit} = [{', '.join(map(_toml, lists))}]")
        text.append(f"slit = {self.slit.tolist()}")
        layout = costs.layout if isinstance(costs, Machine) else None
        text += [
            f"confidence = {_toml(layout.confidence if layout else 'H')}",
            f"source = {_toml(layout.source if layout else LAYOUT)}",
        ]
        section = ""
        sources = {layout.source if layout else LAYOUT}
        for key, cost in costs.numbers().items():
            if section != key.split(".")[0]:
                section = key.split(".")[0]
                text += ["", f"[{section}]"]
            sources.add(cost.source)
            text.append(
                f"{key.split('.')[1]} = {{ value = {cost.value:.10g}, spread = {cost.spread:.4g}, "
                f"confidence = {_toml(cost.confidence)}, source = {_toml(cost.source)} }}"
            )
        known = {LAYOUT: self.origin} | costs.sources
        text += ["", "[notes]"]
        text += [f"{_toml(key)} = {_toml(note)}" for key, note in costs.notes.items()]
        text += ["", "[sources]"]
        text += [f"{key} = {_toml(known[key])}" for key in sorted(sources)]
        return "\n".join(text) + "\n"

    def render(self) -> str:
        """The machine as text: tree, distances as `numactl -H` has them, latencies, all numbers."""
        lines = [
            f"{self.name}: {self.description}",
            f"{self.summary()}, {self.value('clock.ghz'):g} GHz",
            f"structure: {self.origin}",
            "",
            *self._render_tree(),
            "",
            *self._render_distances(),
        ]
        classes = self.latency_classes()
        if classes:
            lines += ["", "line that another CPU modified, one way (homed: where its memory is)"]
            for c in classes:
                ns = (
                    f"{c.min_ns:.1f}"
                    if c.min_ns == c.max_ns
                    else f"{c.min_ns:.1f} - {c.max_ns:.1f}"
                )
                lines.append(f"  {c.name:<44}{ns:>15} ns")
        lines += ["", *self._render_costs()]
        return "\n".join(lines) + "\n"

    def _render_tree(self) -> list[str]:
        def line(indent: int, unit: str, cpus: NDArray[np.intp]) -> str:
            return f"{' ' * indent + unit:<16}cpus {format_cpu_list(cpus.tolist())}"

        lines: list[str] = []
        for socket in np.unique(self.socket_of_cpu):
            lines.append(f"socket {socket}")
            for node in np.flatnonzero(self.socket_of_node == socket):
                in_node = self.node_of_cpu == node
                lines.append(line(2, f"node {node}", np.flatnonzero(in_node)))
                for l3 in np.unique(self.l3_of_cpu[in_node]):
                    lines.append(
                        line(4, f"L3 {l3}", np.flatnonzero(in_node & (self.l3_of_cpu == l3)))
                    )
        if self.host_cpus:
            lines.append(f"on host cpus {format_cpu_list(self.host_cpus)}")
        return lines

    def _render_distances(self) -> list[str]:
        width = max(4, len(str(self.nr_nodes)) + 1)
        numbers = "".join(f"{node:>{width}}" for node in range(self.nr_nodes))
        lines = ["node distances:", f"node{numbers}"]
        for node, row in enumerate(self.slit.tolist()):
            lines.append(f"{node:>3}:" + "".join(f"{distance:>{width}}" for distance in row))
        return lines

    def _render_costs(self) -> list[str]:
        lines = ["numbers (H measured on this model, M same family, L by analogy, U unverified)"]
        used: set[str] = set()
        for key, cost in self.costs.numbers().items():
            if key.startswith("slit.") and self.own_slit:
                continue
            used.add(cost.source)
            spread = f"+-{cost.spread * 100:.0f} %"
            lines.append(
                f"  {key:<26}{cost.value:>10.8g}  {spread:<8}{cost.confidence}  {cost.source}"
            )
        sources = {key: text for key, text in self.costs.sources.items() if key in used}
        for title, texts in (("notes", self.costs.notes), ("sources", sources)):
            lines += ["", title]
            for key, text in texts.items():
                lines += textwrap.wrap(
                    f"{key}: {text}",
                    width=100,
                    initial_indent="  ",
                    subsequent_indent="    ",
                    break_long_words=False,
                    break_on_hyphens=False,
                )
        return lines


def names() -> list[str]:
    """The machines that come with mm-emu, sorted."""
    return sorted(file.stem for file in _folder().glob("*.toml") if not file.stem.startswith("_"))


def load(name_or_path: str | Path) -> Topology:
    """A machine by name or path (has "/" or ends in ".toml"), `generic:sockets=2,...` or `host`.

    Raises InputError that says what is wrong and what would be right.
    """
    text = str(name_or_path)
    if text == "host":
        return host(calibrated=host_file())
    if text == "generic" or text.startswith("generic:"):
        return _generic(text)
    if isinstance(name_or_path, Path) or "/" in text or text.endswith(".toml"):
        return check(Path(text))
    known = names()
    if text not in known:
        raise InputError(
            f"no topology '{text}'{_nearest(text, known)}; there are: {', '.join(known)}, "
            "generic:sockets=2,..., host, or a path to a .toml file"
        )
    return check(_folder() / f"{text}.toml")


def check(path: str | Path) -> Topology:
    """Reads a topology file strictly. Raises InputError with file, place and reason."""
    machine = _read_machine(Path(path))
    shape = _shape(machine)
    origin = f"confidence {shape.confidence}, {machine.sources[shape.source]}"
    if isinstance(shape, Layout):
        return _from_layout(machine, origin, shape, f"{path}: [layout]")
    return _from_structure(machine.name, machine.description, origin, machine, shape)


def host(
    sys: Path = Path("/sys/devices/system"),
    cpuinfo: Path = Path("/proc/cpuinfo"),
    affinity: Collection[int] | None = None,
    calibrated: Path | None = None,
) -> Topology:
    """This machine, as far as this process may use it, with the costs of the nearest known machine
    or, where that file is there and of this CPU model, those that `emu calibrate` has measured.

    Raises EmuError where the system does not tell, InputError where the file is no topology.
    """
    cpus = sorted(os.sched_getaffinity(0) if affinity is None else affinity)
    try:
        sockets = [_read(sys / f"cpu/cpu{cpu}/topology/physical_package_id", "0") for cpu in cpus]
        cores = [
            _read(sys / f"cpu/cpu{cpu}/topology/core_cpus_list", "")
            or _read(sys / f"cpu/cpu{cpu}/topology/thread_siblings_list", str(cpu))
            for cpu in cpus
        ]
        node_of = _host_nodes(sys / "node", cpus)
        # Where a socket is divided into nodes (sub-NUMA clusters), so is what each sees as its L3.
        l3s = [
            f"{_l3_cpus(sys / f'cpu/cpu{cpu}/cache') or f'socket {socket}'}, node {node_of[cpu]}"
            for cpu, socket in zip(cpus, sockets, strict=True)
        ]
        host_nodes = sorted(set(node_of.values()))
        slit = _host_slit(sys / "node", host_nodes)
        text = _read(cpuinfo, "")
        like, reference = nearest_machine(*_cpu_model(text))
    except (OSError, ValueError) as error:
        raise EmuError(f"host: cannot read this machine's topology: {error}") from error
    costs, how = assumed(reference, like), f"costs assumed as on {like}"
    if calibrated and calibrated.exists():
        machine = _read_machine(calibrated)
        if machine.description == cpu_name(text):
            costs, how = machine, f"calibrated, {calibrated}"
    return Topology(
        name="host",
        description=f"this machine; {how}",
        origin=f"{sys}, as far as this process may run",
        costs=costs,
        socket_of_cpu=_number(sockets),
        node_of_cpu=np.array([host_nodes.index(node_of[cpu]) for cpu in cpus], dtype=np.int32),
        l3_of_cpu=_number(l3s),
        core_of_cpu=_number(cores),
        slit=slit,
        own_slit=True,
        host_cpus=tuple(cpus),
        host_nodes=tuple(host_nodes),
    )


def host_file() -> Path:
    """Where `emu calibrate` puts what it has measured: $XDG_DATA_HOME/mm-emu/host.toml."""
    base = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return Path(base) / "mm-emu" / "host.toml"


def parse_cpu_list(text: str) -> list[int]:
    """The CPUs of "0-3,8", as the kernel writes them. Raises ValueError."""
    cpus: list[int] = []
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        if int(last or first) >= MAX_CPUS:
            raise ValueError(f"CPU {last or first} is above {MAX_CPUS - 1}")
        cpus.extend(range(int(first), int(last or first) + 1))
    return cpus


def format_cpu_list(cpus: Iterable[int]) -> str:
    """The inverse of parse_cpu_list(), for ascending CPUs."""
    runs: list[list[int]] = []
    for cpu in cpus:
        if runs and cpu == runs[-1][1] + 1:
            runs[-1][1] = cpu
        else:
            runs.append([cpu, cpu])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


# ---- files ----


def _folder() -> Path:
    """Installed inside the package; beside it in a source checkout."""
    here = Path(__file__).parent
    installed = here / "topologies"
    return installed if installed.is_dir() else here.parent / "topologies"


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(read_text(path))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text (byte {error.start})") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid TOML: {error}") from error


def _read_machine(path: Path) -> Machine:
    raw = _read_toml(path)
    common = _read_toml(_folder() / "_common-costs.toml")
    # The file's own numbers win over those for all machines, and the remarks go with the numbers.
    own_numbers = {
        f"{section}.{name}"
        for section in _COMMON
        if isinstance(own := raw.get(section, {}), dict)
        for name in own
    }
    for section in (*_COMMON, "notes", "sources"):
        own = raw.get(section, {})
        if isinstance(own, dict):
            raw[section] = own | {
                key: default
                for key, default in common[section].items()
                if key not in own and key not in own_numbers
            }
    _check_keys(raw, Machine, "", path)
    try:
        machine = msgspec.convert(raw, Machine)
    except msgspec.ValidationError as error:
        what, _, place = str(error).partition(" - at `$.")
        place = place.rstrip("`") or "top level"
        valid = "; one of H, M, L, U" if place.endswith(".confidence") else ""
        raise InputError(f"{path}: {place}: {what}{valid}") from error
    _check_meaning(machine, path)
    return machine


def _check_keys(raw: object, table: type[_Table], place: str, path: Path) -> None:
    """Refuses unknown and missing keys, in words that msgspec does not have."""
    if not isinstance(raw, dict):
        raise InputError(f"{path}: {place} must be a table, not {raw!r}")
    hints = get_type_hints(table)
    for key in raw:
        if key not in hints:
            raise InputError(
                f"{path}: unknown key '{key}' in {f'[{place}]' if place else 'the top level'}"
                f"{_nearest(key, hints)}; valid: {', '.join(hints)}"
            )
    for field in msgspec.structs.fields(table):
        dotted = f"{place}.{field.name}" if place else field.name
        inner = next((t for t in (field.type, *get_args(field.type)) if _is_table(t)), None)
        if field.name not in raw:
            if field.required:
                raise InputError(
                    f"{path}: {f'section [{dotted}]' if inner and not place else dotted} is missing"
                )
        elif inner:
            _check_keys(raw[field.name], inner, dotted, path)


def _is_table(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, _Table)


def _shape(machine: Machine) -> Structure | Layout:
    shape = machine.layout or machine.structure
    assert shape is not None, "_check_meaning() has seen to it"
    return shape


def _check_meaning(machine: Machine, path: Path) -> None:
    if (machine.structure is None) == (machine.layout is None):
        raise InputError(f"{path}: section [structure] or [layout] is missing, or both are there")
    numbers = machine.numbers()
    for key, why in _needed(machine, path).items():
        if key not in numbers:
            raise InputError(f"{path}: {key} is missing: needed since {why}")
    for key, cost in numbers.items():
        if not math.isfinite(cost.value) or (cost.value == 0 and not key.startswith("c2c.per_")):
            raise InputError(f"{path}: {key}.value is {cost.value:g}; it must be a number above 0")
        if key == "core.smt_speed" and cost.value > 1:
            raise InputError(
                f"{path}: {key}.value is {cost.value:g}; at most 1, one thread's speed"
            )
        if key == "core.outstanding_stores" and not (
            cost.value == int(cost.value) and cost.value <= MAX_STORES
        ):
            raise InputError(
                f"{path}: {key}.value is {cost.value:g}; a whole number from 1 to {MAX_STORES}"
            )
        if key.startswith("idle."):
            state, _, kind = key.removesuffix("_ns").rpartition("_")
            other = f"{state}_{'residency' if kind == 'exit' else 'exit'}_ns"
            if other not in numbers:
                raise InputError(f"{path}: {key} without {other}: a state has both")
        if key.startswith("slit.") and not (
            cost.value == int(cost.value) and 10 <= cost.value <= 254
        ):
            raise InputError(
                f"{path}: {key}.value is {cost.value:g}; a distance is a whole number, 10-254"
            )
    shape = _shape(machine)
    rated: list[tuple[str, Cost | Structure | Layout]] = [
        ("layout" if machine.layout else "structure", shape),
        *numbers.items(),
    ]
    for key, item in rated:
        if item.source not in machine.sources:
            raise InputError(
                f"{path}: {key}.source is '{item.source}'{_nearest(item.source, machine.sources)}; "
                f"[sources] has: {', '.join(machine.sources)}"
            )
        if item.confidence in "LU" and not machine.note(key):
            raise InputError(
                f"{path}: {key} has confidence {item.confidence} but no reason; "
                f'add "{key}" or "{key.split(".")[0]}" to [notes]'
            )
    places = [*_SECTIONS, "structure", "layout", *numbers]
    for key in machine.notes:
        if key not in places:
            raise InputError(
                f"{path}: [notes] has '{key}', which is no number or section{_nearest(key, places)}"
            )


def _check_size(s: Structure, where: str) -> None:
    _check_counts(s.cpus, s.sockets * s.nodes_per_socket, f"{where}: structure")


def _check_counts(cpus: int, nodes: int, where: str) -> None:
    for unit, count, most in (("CPUs", cpus, MAX_CPUS), ("nodes", nodes, MAX_NODES)):
        if count > most:
            raise InputError(f"{where} has {count} {unit}; at most {most} can be emulated")


def _needed(machine: Machine, path: Path) -> dict[str, str]:
    """The numbers that a machine of this shape needs, and why."""
    if machine.layout:
        most = _from_layout(machine, "", machine.layout, f"{path}: [layout]").most()
        return {key: why for key, why in _needed_by(most).items() if not key.startswith("slit.")}
    assert machine.structure is not None
    _check_size(machine.structure, str(path))
    return _needed_by(machine.structure)


def _needed_by(s: Structure) -> dict[str, str]:
    needed: dict[str, str] = {}
    if s.smt > 1:
        needed["c2c.smt_ns"] = f"smt = {s.smt}"
    if s.cores_per_l3 > 1:
        needed["c2c.l3_ns"] = f"cores_per_l3 = {s.cores_per_l3}"
    if s.sockets * s.nodes_per_socket * s.l3_per_node > 1:
        needed["c2c.base_ns"] = "there is more than one L3"
    if s.nodes_per_socket > 1:
        for key in ("slit.same_socket", "c2c.per_die_hop_ns", "dram.same_socket_ns"):
            needed[key] = f"nodes_per_socket = {s.nodes_per_socket}"
    if s.sockets > 1:
        for key in ("slit.socket_linked", "c2c.per_socket_cross_ns", "dram.remote_ns"):
            needed[key] = f"sockets = {s.sockets}"
        if s.nodes_per_socket > 1:
            needed["slit.socket_other"] = (
                f"sockets = {s.sockets}, nodes_per_socket = {s.nodes_per_socket}"
            )
    return needed


def _toml(text: str) -> str:
    """A TOML basic string; JSON's escapes are among TOML's."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _nearest(wrong: str, valid: Iterable[str]) -> str:
    close = difflib.get_close_matches(wrong, list(valid), n=1, cutoff=0.5)
    return f" (did you mean '{close[0]}'?)" if close else ""


# ---- from a structure ----


def _from_structure(
    name: str, description: str, origin: str, costs: Costs, s: Structure
) -> Topology:
    core = np.tile(np.arange(s.cpus // s.smt, dtype=np.int32), s.smt)
    l3 = core // s.cores_per_l3
    node = l3 // s.l3_per_node
    socket_of_node = np.arange(s.sockets * s.nodes_per_socket) // s.nodes_per_socket
    position = np.arange(s.sockets * s.nodes_per_socket) % s.nodes_per_socket
    same_socket = socket_of_node[:, None] == socket_of_node[None, :]
    same_position = position[:, None] == position[None, :]

    def distance(cost: Cost | None) -> int:
        return int(cost.value) if cost else 0

    slit = np.where(
        same_socket,
        np.where(same_position, distance(costs.slit.same_node), distance(costs.slit.same_socket)),
        np.where(
            same_position, distance(costs.slit.socket_linked), distance(costs.slit.socket_other)
        ),
    ).astype(np.int32)
    socket = node // s.nodes_per_socket
    return Topology(name, description, origin, costs, socket, node, l3, core, slit)


def _from_layout(machine: Machine, origin: str, layout: Layout, where: str) -> Topology:
    """Raises InputError where the lists are no machine; `where` begins the message."""
    of_cpu: dict[str, IntArray] = {}
    for unit in ("sockets", "nodes", "l3", "cores"):
        of_cpu[unit] = _units(getattr(layout, unit), f"{where} {unit}")
        if len(of_cpu[unit]) != len(of_cpu["sockets"]):
            raise InputError(
                f"{where} {unit} has {len(of_cpu[unit])} CPUs, sockets has {len(of_cpu['sockets'])}"
            )
    for inner, outer in (("nodes", "sockets"), ("l3", "nodes"), ("cores", "l3")):
        pairs = np.unique(np.stack([of_cpu[inner], of_cpu[outer]]), axis=1)
        twice = np.flatnonzero(np.diff(pairs[0]) == 0)
        if len(twice):
            raise InputError(
                f"{where} {inner}[{pairs[0][twice[0]]}] lies in more than one of {outer}"
            )
    nodes = len(layout.nodes)
    _check_counts(len(of_cpu["nodes"]), nodes, where)
    if len(layout.slit) != nodes or any(len(row) != nodes for row in layout.slit):
        raise InputError(f"{where} slit must have a row and a column for each of {nodes} nodes")
    return Topology(
        name=machine.name,
        description=machine.description,
        origin=origin,
        costs=machine,
        socket_of_cpu=of_cpu["sockets"],
        node_of_cpu=of_cpu["nodes"],
        l3_of_cpu=of_cpu["l3"],
        core_of_cpu=of_cpu["cores"],
        slit=np.array(layout.slit, dtype=np.int32),
        own_slit=True,
    )


def _units(lists: list[str], where: str) -> IntArray:
    """[cpu]: its unit, from a CPU list a unit."""
    unit_of: dict[int, int] = {}
    for unit, text in enumerate(lists):
        try:
            cpus = parse_cpu_list(text)
        except ValueError:
            cpus = []
        if not cpus:
            raise InputError(f"{where}[{unit}] is '{text}', not a list of CPUs such as 0-3,8")
        for cpu in cpus:
            if cpu in unit_of:
                raise InputError(f"{where} has CPU {cpu} twice")
            unit_of[cpu] = unit
    for cpu in range(len(unit_of)):
        if cpu not in unit_of:
            raise InputError(
                f"{where} leaves out CPU {cpu}; CPUs are numbered from 0, without gaps"
            )
    return np.array([unit_of[cpu] for cpu in range(len(unit_of))], dtype=np.int32)


_GENERIC = {
    "sockets": "sockets",
    "nodes": "nodes_per_socket",
    "l3": "l3_per_node",
    "cores": "cores_per_l3",
    "smt": "smt",
}
"""Parameter of `generic:` -> field of Structure."""


def _generic(text: str) -> Topology:
    machine = _read_machine(_folder() / "_generic.toml")
    assert machine.structure is not None, "the file is ours"
    given: dict[str, int] = {}
    for part in filter(None, text.removeprefix("generic").removeprefix(":").split(",")):
        key, _, number = (word.strip() for word in part.partition("="))
        if key not in _GENERIC:
            raise InputError(
                f"{text}: no parameter '{key}'{_nearest(key, _GENERIC)}; "
                f"there are: {', '.join(_GENERIC)}"
            )
        if _GENERIC[key] in given:
            raise InputError(f"{text}: {key} is given twice")
        if not (number.isascii() and number.isdigit() and len(number) <= 5 and int(number) > 0):
            raise InputError(f"{text}: {key} must be a whole number from 1, not '{number}'")
        given[_GENERIC[key]] = int(number)
    structure = msgspec.structs.replace(machine.structure, **given)
    _check_size(structure, text)
    name = "generic:" + ",".join(
        f"{key}={getattr(structure, field)}" for key, field in _GENERIC.items()
    )
    return _from_structure(name, machine.description, "as asked for", machine, structure)


# ---- this machine ----

_KNOWN_CPUS: tuple[tuple[str, int, range, str], ...] = (
    ("HygonGenuine", 24, range(256), "hygon-7280-2s"),
    ("AuthenticAMD", 23, range(0x30), "hygon-7280-2s"),
    ("AuthenticAMD", 23, range(0x30, 256), "epyc-7742-2s"),
    ("AuthenticAMD", 25, range(0x10), "epyc-7763-2s"),
    ("AuthenticAMD", 25, range(0x10, 0x20), "epyc-9654-2s"),
    ("AuthenticAMD", 25, range(0x20, 0xA0), "laptop-8c"),
    ("AuthenticAMD", 25, range(0xA0, 0xB0), "epyc-9754-2s"),
    ("AuthenticAMD", 26, range(256), "epyc-9654-2s"),
    ("GenuineIntel", 6, range(85, 86), "xeon-8275cl-2s"),
    ("GenuineIntel", 6, range(106, 109), "xeon-8375c-2s"),
    ("GenuineIntel", 6, range(143, 256), "xeon-8570-2s"),
    ("GenuineIntel", 6, range(256), "xeon-8275cl-2s"),
    ("0x41", 8, range(0xD40, 0xD41), "graviton3"),
    ("0x41", 8, range(0x1000), "graviton2"),
)
"""Vendor or Arm implementer, family or architecture, models or parts, and the machine whose costs
to assume; the first that fits. The same core if there is one, else the nearest of that vendor."""


def _cpuinfo_fields(cpuinfo: str) -> dict[str, str]:
    """The first CPU's, of /proc/cpuinfo's text."""
    fields: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    return fields


def cpu_name(cpuinfo: str) -> str:
    """What the CPUs call themselves, from /proc/cpuinfo's text."""
    fields = _cpuinfo_fields(cpuinfo)
    return fields.get("model name") or "CPU {} {} {:#x}".format(*_cpu_model(cpuinfo))


def _cpu_model(cpuinfo: str) -> tuple[str, int, int]:
    """Vendor or implementer, family or architecture, model or part, from /proc/cpuinfo's text."""
    fields = _cpuinfo_fields(cpuinfo)
    vendor = fields.get("vendor_id") or fields.get("CPU implementer", "")
    family = int(fields.get("cpu family") or fields.get("CPU architecture") or 0)
    return vendor, family, int(fields.get("model") or fields.get("CPU part") or "0", 0)


def nearest_machine(vendor: str, family: int, model: int) -> tuple[str, Machine]:
    """Name and file of the machine whose costs come nearest to those of this CPU model."""
    for known_vendor, known_family, models, name in _KNOWN_CPUS:
        if (vendor, family) == (known_vendor, known_family) and model in models:
            return name, _read_machine(_folder() / f"{name}.toml")
    return "a generic machine", _read_machine(_folder() / "_generic.toml")


def assumed(reference: Machine, like: str) -> Costs:
    """The costs of `reference`, completed from the generic machine, trusted as L at most."""
    generic = _read_machine(_folder() / "_generic.toml")
    tables: dict[str, Any] = {}
    sections = [section for section in _SECTIONS if section != "measured"]
    for section in sections:
        table, spare = getattr(reference, section), getattr(generic, section)
        costs: Mapping[str, Cost] = {
            name: cost
            for name in table.__struct_fields__
            if (cost := getattr(table, name) or getattr(spare, name))
        }
        tables[section] = type(table)(
            **{
                name: msgspec.structs.replace(
                    cost, confidence="U" if cost.confidence == "U" else "L"
                )
                for name, cost in costs.items()
            }
        )
    notes = dict.fromkeys(sections, f"not measured here: assumed as on {like}, else as on generic:")
    return Costs(**tables, notes=notes, sources=generic.sources | reference.sources)


def _read(path: Path, default: str) -> str:
    return path.read_text(encoding="utf-8").strip() if path.exists() else default


def _number(keys: list[str]) -> IntArray:
    """Equal keys get equal numbers, 0, 1, ... in order of appearance."""
    seen = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return np.array([seen[key] for key in keys], dtype=np.int32)


def _l3_cpus(cache: Path) -> str:
    """The CPUs that share this CPU's L3, as the kernel writes them; "" if it does not tell."""
    for index in sorted(cache.glob("index*")):
        if _read(index / "level", "") == "3":
            return _read(index / "shared_cpu_list", "")
    return ""


def _host_nodes(folder: Path, cpus: list[int]) -> dict[int, int]:
    """CPU -> the kernel's number of its node; all 0 on a kernel without NUMA."""
    node_of = dict.fromkeys(cpus, 0)
    for node in folder.glob("node[0-9]*"):
        for cpu in parse_cpu_list(_read(node / "cpulist", "")):
            if cpu in node_of:
                node_of[cpu] = int(node.name.removeprefix("node"))
    return node_of


def _host_slit(folder: Path, nodes: list[int]) -> IntArray:
    """Firmware's distances between these nodes. A row has a column for each node that is online."""
    if not folder.exists():
        return np.full((1, 1), 10, dtype=np.int32)
    online = parse_cpu_list(_read(folder / "online", "0"))
    columns = [online.index(node) for node in nodes]
    rows = [
        [int(d) for d in _read(folder / f"node{node}/distance", "10").split()] for node in nodes
    ]
    return np.array([[row[column] for column in columns] for row in rows], dtype=np.int32)
