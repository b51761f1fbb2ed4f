# SPDX-License-Identifier: MIT
"""A machine: which CPU lies where, what lies how far, and all of it as text."""

from __future__ import annotations

import json
import re
import textwrap
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from emu.topology.cpu_list import format_cpu_list
from emu.topology.tables import LAYOUT, Cost, Costs, Machine, Structure
from emu.words import counted

IntArray = NDArray[np.int32]


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
        return f"{counted(self.nr_cpus, 'CPU')} = {' x '.join(words)}"

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


def _toml(text: str) -> str:
    """A TOML basic string; JSON's escapes are among TOML's."""
    escaped = json.dumps(text, ensure_ascii=False)
    return re.sub("[\x7f-\x9f]", lambda match: f"\\u{ord(match[0]):04x}", escaped)
