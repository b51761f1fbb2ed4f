# SPDX-License-Identifier: MIT
"""What a topology file says: a structure or a layout, and costs with their sources."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

LAYOUT = "LAYOUT"
"""The source, in a written file, of a structure that was found and not read from a file."""


class Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Has the keys of its fields and no others."""


class Cost(Table, frozen=True):
    """One number of a machine."""

    value: Annotated[float, msgspec.Meta(ge=0)]
    spread: Annotated[float, msgspec.Meta(ge=0, le=1)]
    confidence: Literal["H", "M", "L", "U"]
    source: str


class Structure(Table, frozen=True):
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


class Layout(Table, frozen=True):
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


class Clock(Table, frozen=True):
    """The clock at which figures in cycles were turned into ns."""

    ghz: Cost


class Slit(Table, frozen=True):
    """Firmware's relative distances, as `numactl -H` prints them."""

    same_node: Cost
    same_socket: Cost | None = None
    socket_linked: Cost | None = None
    """Another socket, the node in the same position."""
    socket_other: Cost | None = None


class C2c(Table, frozen=True):
    """Core to core: a line that another CPU has modified, one way."""

    smt_ns: Cost | None = None
    l3_ns: Cost | None = None
    base_ns: Cost | None = None
    per_die_hop_ns: Cost | None = None
    per_socket_cross_ns: Cost | None = None


class Dram(Table, frozen=True):
    """A load from memory, by where the line is homed."""

    local_ns: Cost
    same_socket_ns: Cost | None = None
    remote_ns: Cost | None = None


class Cache(Table, frozen=True):
    """Sizes: l1 and l2 of a core, l3 of an L3 domain. Latencies: of a load that hits there."""

    l1_kib: Cost
    l2_kib: Cost
    l3_kib: Cost
    l1_ns: Cost
    l2_ns: Cost
    l3_ns: Cost
    access_ns: Cost
    """An ordinary access that hits the L1, in a stream of others: its cost, not its latency."""


class Atomic(Table, frozen=True):
    """Read-modify-write instructions, besides the transfer of the line."""

    uncontended_ns: Cost
    """A read-modify-write of a line that this CPU owns."""
    contended_ns: Cost
    """How long each of many CPUs' fetch_add keeps the line: elapsed time over operations, far below
    the transfer latency because hardware serves neighbours in batches."""


class Core(Table, frozen=True):
    """What a core does besides its caches."""

    outstanding_stores: Cost
    """Stores on their way to the caches before the next one stalls."""
    smt_speed: Cost
    """Of each of two threads of a core while both work, against one alone."""


class Kernel(Table, frozen=True):
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
    """The sender's cost of an interrupt to one CPU that it does not wait for."""
    ipi_round_trip_ns: Cost
    """Until the target of one has acknowledged it."""
    ipi_each_ns: Cost
    """Of an interrupt to many, for each CPU after the first."""
    ipi_handler_ns: Cost
    """What each target of it loses."""
    time_slice_ns: Cost
    """How long a task runs while others wait for its CPU."""
    work_scale: Cost | None = None
    """Time of a workload's computing against the box that its [work] is from; without: the same."""


class Idle(Table, frozen=True):
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


class Measured(Table, frozen=True):
    """What a real kernel takes on this machine, for comparison; no engine uses it."""

    exec_ns: Cost | None = None
    """A small dynamically linked program replaces itself by itself, on one CPU."""
    exec_user_ns: Cost | None = None
    """Of it, in user mode: the dynamic loader."""
    fork_exit_ns: Cost | None = None
    """fork, _exit in the child, wait."""
    fork_exit_user_ns: Cost | None = None


class Costs(Table, frozen=True, kw_only=True):
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
        for section in SECTIONS:
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


SECTIONS = (
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
COMMON = ("core", "kernel")
"""Sections that machines share, from _common-costs.toml."""
