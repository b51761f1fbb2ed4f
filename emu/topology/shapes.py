# SPDX-License-Identifier: MIT
"""From a structure or a layout to the machine of that shape."""

from __future__ import annotations

import numpy as np

from emu.errors import InputError
from emu.topology.cpu_list import MAX_CPUS, parse_cpu_list
from emu.topology.machine import IntArray, Topology
from emu.topology.tables import Cost, Costs, Layout, Machine, Structure

MAX_NODES = 1024
"""As many as Linux knows."""


def check_size(s: Structure, where: str) -> None:
    """Raises InputError where it is more than can be emulated."""
    _check_counts(s.cpus, s.sockets * s.nodes_per_socket, f"{where}: structure")


def _check_counts(cpus: int, nodes: int, where: str) -> None:
    for unit, count, most in (("CPUs", cpus, MAX_CPUS), ("nodes", nodes, MAX_NODES)):
        if count > most:
            raise InputError(f"{where} has {count} {unit}; at most {most} can be emulated")


def from_structure(
    name: str, description: str, origin: str, costs: Costs, s: Structure
) -> Topology:
    """The machine, its CPUs numbered as Linux does."""
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


def from_layout(machine: Machine, origin: str, layout: Layout, where: str) -> Topology:
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
