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

    by_name.py       a machine by what a user calls it
    this_machine.py  the machine that this is
    files.py         topology files, read strictly
    shapes.py        from a structure or a layout to a machine
    machine.py       a machine
    tables.py        what a file says
"""

from __future__ import annotations

from emu.topology.by_name import ALSO_CALLED, check, load, names
from emu.topology.cpu_list import MAX_CPUS, format_cpu_list, parse_cpu_list
from emu.topology.machine import IntArray, LatencyClass, Topology
from emu.topology.tables import IDLE_STATES, Cost, Costs, Machine
from emu.topology.this_machine import assumed, cpu_name, host, host_file, nearest_machine

__all__ = [
    "ALSO_CALLED",
    "IDLE_STATES",
    "MAX_CPUS",
    "Cost",
    "Costs",
    "IntArray",
    "LatencyClass",
    "Machine",
    "Topology",
    "assumed",
    "check",
    "cpu_name",
    "format_cpu_list",
    "host",
    "host_file",
    "load",
    "names",
    "nearest_machine",
    "parse_cpu_list",
]
