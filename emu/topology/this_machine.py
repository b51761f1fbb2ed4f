# SPDX-License-Identifier: MIT
"""The machine that this is, and what its costs may be before anybody has measured them."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from emu.errors import EmuError
from emu.topology.cpu_list import parse_cpu_list
from emu.topology.files import folder, read_machine
from emu.topology.machine import IntArray, Topology
from emu.topology.tables import SECTIONS, Cost, Costs, Machine


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
        machine = read_machine(calibrated)
        if machine.description == cpu_name(text):
            costs, how = machine, f"calibrated, {calibrated}"
    # The native engine computes [work] as it stands; here both are to have the same.
    costs = msgspec.structs.replace(
        costs, kernel=msgspec.structs.replace(costs.kernel, work_scale=None)
    )
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
            return name, read_machine(folder() / f"{name}.toml")
    return "a generic machine", read_machine(folder() / "_generic.toml")


def assumed(reference: Machine, like: str) -> Costs:
    """The costs of `reference`, completed from the generic machine, trusted as L at most."""
    generic = read_machine(folder() / "_generic.toml")
    tables: dict[str, Any] = {}
    sections = [section for section in SECTIONS if section != "measured"]
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
