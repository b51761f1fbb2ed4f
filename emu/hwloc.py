# SPDX-License-Identifier: MIT
"""hwloc XML, as `lstopo machine.xml` writes it: a topology from it, and a topology as such a file.

Read are versions 2 and 3 of the format: packages, NUMA nodes, L3 caches, cores and PUs, the sizes
of the caches, the firmware's distances, and the memory latencies that firmware may tell (HMAT).
Latencies between CPUs are not in such a file; they are those of the nearest known machine, marked
as assumed. The files may come from strangers: no entities, no external documents, bounded in size.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, ParseError, SubElement, indent, tostring

import defusedxml.ElementTree
import msgspec
import numpy as np
from defusedxml.common import DefusedXmlException

from emu import topology
from emu.errors import InputError
from emu.files import read_bytes
from emu.terminal import printable
from emu.topology import Cost, IntArray, Topology, format_cpu_list

HWLOC = "HWLOCXML"
"""The source, in an imported topology, of what the XML file says."""

_LATENCY = 4  # in `kind` of distances: they are latencies, not bandwidths


@dataclass(frozen=True)
class Imported:
    """A machine, and what one should know about how it was made."""

    machine: Topology
    remarks: list[str]


def load(path: Path, name: str | None = None) -> Imported:
    """The machine of an hwloc XML file. Raises InputError with file and reason."""
    try:
        root = defusedxml.ElementTree.fromstring(
            read_bytes(path), forbid_entities=True, forbid_external=True
        )
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    except DefusedXmlException as error:
        raise InputError(f"{path}: refused: it defines or refers to XML entities") from error
    except (ParseError, ValueError, LookupError) as error:
        raise InputError(f"{path}: not valid XML: {error}") from error
    if root.tag != "topology":
        raise InputError(f"{path}: not an hwloc file: its root is <{root.tag}>, not <topology>")
    if not re.match(r"[23]\.", root.get("version", "")):
        raise InputError(
            f"{path}: hwloc format {root.get('version', '1.x')}; 2.x and 3.x can be read: "
            "export it again with lstopo 2 or newer"
        )
    try:
        return _Reader(path, root).imported(name or path.stem)
    except _Broken as error:
        raise InputError(f"{path}: {error}") from error


class _Broken(Exception):
    """What is wrong with the file, without its name."""


class _Reader:
    def __init__(self, path: Path, root: Element) -> None:
        self._path = path
        self._root = root
        self._remarks: list[str] = []
        self._objects: dict[str, list[Element]] = {}
        for element in root.iter("object"):
            self._objects.setdefault(element.get("type", ""), []).append(element)
        pus = sorted(_integer(pu, "os_index") for pu in self._all("PU"))
        if not pus:
            raise _Broken("it has no PU, so no CPU")
        if len(pus) > topology.MAX_CPUS:
            raise _Broken(f"it has {len(pus)} PUs; at most {topology.MAX_CPUS} can be emulated")
        if len(set(pus)) < len(pus):
            raise _Broken("two PUs have the same os_index")
        if pus != list(range(len(pus))):
            self._remarks.append(f"CPUs {format_cpu_list(pus)} of the file are numbered from 0")
        self._number = {os_index: cpu for cpu, os_index in enumerate(pus)}

    def _all(self, kind: str) -> list[Element]:
        return self._objects.get(kind, [])

    def _cpus(self, element: Element) -> list[int]:
        return [self._number[cpu] for cpu in _bitmap(element, "cpuset") if cpu in self._number]

    def _units(self, kind: str, within: IntArray | None) -> IntArray:
        """[cpu]: its object of this kind, the smaller one where two hold it; where the file has
        none, or one reaches over several units of `within`: one in each unit of that."""
        of_cpu = np.full(len(self._number), -1, dtype=np.int32)
        objects = sorted(self._all(kind), key=lambda e: -len(self._cpus(e)))
        for unit, element in enumerate(objects):
            of_cpu[self._cpus(element)] = unit
        if within is None:
            within = np.zeros_like(of_cpu)
        elif kind == "Core":  # a CPU without a core is one
            alone = of_cpu < 0
            of_cpu[alone] = len(objects) + np.flatnonzero(alone)
        pairs = np.stack([within, of_cpu])
        _, first, number = np.unique(pairs, axis=1, return_index=True, return_inverse=True)
        # Numbered in the order of their first CPUs, within the units above.
        order = np.lexsort((first, within[first]))
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        numbers: IntArray = rank[number.reshape(-1)].astype(np.int32)
        return numbers

    def imported(self, name: str) -> Imported:
        socket = self._units("Package", None)
        node, slit = self._nodes(socket)
        l3 = self._units("L3Cache", node)
        core = self._units("Core", l3)
        vendor, family, model, title = self._model()
        like, reference = topology.nearest_machine(vendor, family, model)
        machine = Topology(
            name=name,
            description=f"{title}; latencies assumed as on {like}",
            origin=f"imported from {self._path.name}",
            costs=self._costs(topology.assumed(reference, like), socket, node),
            socket_of_cpu=socket,
            node_of_cpu=node,
            l3_of_cpu=l3,
            core_of_cpu=core,
            slit=slit,
            own_slit=True,
        )
        return Imported(machine, self._remarks)

    def _nodes(self, socket: IntArray) -> tuple[IntArray, IntArray]:
        """[cpu]: its node; [node, node]: distances."""
        nodes: list[Element] = []
        seen: set[int] = set()
        for element in sorted(self._all("NUMANode"), key=lambda e: _integer(e, "os_index")):
            cpus = self._cpus(element)
            if not cpus or not seen.isdisjoint(cpus):
                self._remarks.append(
                    f"NUMA node {element.get('os_index')} is left out: "
                    f"{'its CPUs have another one' if cpus else 'memory without CPUs'}"
                )
                continue
            seen.update(cpus)
            nodes.append(element)
        of_cpu = np.zeros(len(self._number), dtype=np.int32)
        for number, element in enumerate(nodes):
            of_cpu[self._cpus(element)] = number
        if nodes and len(seen) < len(self._number):
            raise _Broken(f"CPU {min(set(range(len(of_cpu))) - seen)} is in no NUMA node")
        if any(len(np.unique(socket[of_cpu == n])) > 1 for n in range(max(len(nodes), 1))):
            if len(nodes) > 1:
                raise _Broken("a NUMA node reaches over several of several packages")
            self._remarks.append(
                "the file has no NUMA nodes within its packages (it may come from CPUID alone): "
                "taken as one node a package"
            )
            return socket, self._slit([], socket, socket)
        return of_cpu, self._slit(nodes, of_cpu, socket)

    def _slit(self, nodes: list[Element], node: IntArray, socket: IntArray) -> IntArray:
        nr_nodes = int(node.max()) + 1
        wanted = [_integer(element, "os_index") for element in nodes]
        for table in self._root.iter("distances2"):
            if table.get("type") != "NUMANode" or not _integer(table, "kind") & _LATENCY:
                continue
            if table.get("indexing", "os") != "os":
                continue
            indexes = _numbers(table, "indexes")
            values = _numbers(table, "u64values")
            if len(values) != len(indexes) ** 2:
                raise _Broken(f"distances: {len(values)} values for {len(indexes)} nodes")
            if not set(wanted) <= set(indexes) or not wanted:
                continue
            matrix = np.array(values, dtype=object).reshape(len(indexes), len(indexes))
            rows = [indexes.index(os_index) for os_index in wanted]
            chosen = matrix[np.ix_(rows, rows)]
            if all(10 <= value <= 254 for value in chosen.flat):
                return chosen.astype(np.int32)
        if nr_nodes > 1:
            self._remarks.append("the file has no distances: 10 in a node, 16 in a socket, else 32")
        first = [int(np.argmax(node == n)) for n in range(nr_nodes)]
        same = socket[first][:, None] == socket[first][None, :]
        slit = np.where(same, 16, 32)
        np.fill_diagonal(slit, 10)
        return slit.astype(np.int32)

    def _model(self) -> tuple[str, int, int, str]:
        """Vendor, family and model of the CPU, for finding the nearest known one; and its name."""
        info = {
            element.get("name", ""): element.get("value", "").strip()
            for package in [*self._all("Machine"), *self._all("Package")]
            for element in package.findall("info")
        }

        def number(*keys: str) -> int:
            text = next((info[key] for key in keys if key in info), "0")
            match = re.fullmatch(r"0x([0-9a-fA-F]{1,8})|([0-9]{1,9})", text)
            return (int(match[1], 16) if match[1] else int(match[2])) if match else 0

        vendor = info.get("CPUVendor") or info.get("CPUImplementer", "")
        return (
            vendor,
            number("CPUFamilyNumber", "CPUFamily", "CPUArchitecture"),
            number("CPUModelNumber", "CPUPart"),
            " ".join(info.get("CPUModel", "a machine imported from hwloc").split()),
        )

    def _costs(self, costs: topology.Costs, socket: IntArray, node: IntArray) -> topology.Costs:
        """`costs` with what the file knows better: sizes of caches, latencies of memory."""
        known: dict[str, dict[str, Cost]] = {"cache": {}, "dram": {}}
        for kind, key in (("L1Cache", "l1_kib"), ("L2Cache", "l2_kib"), ("L3Cache", "l3_kib")):
            sizes = Counter(_integer(e, "cache_size") // 1024 for e in self._all(kind))
            sizes.pop(0, None)
            if sizes:
                size = sizes.most_common(1)[0][0]
                known["cache"][key] = Cost(float(size), 0.0, "H", HWLOC)
        for key, values in self._memory_latencies(socket, node).items():
            middle = float(np.median(values))
            spread = float(np.ptp(values)) / 2 / middle
            known["dram"][key] = Cost(middle, min(spread, 1.0), "M", HWLOC)
        if known["dram"]:
            self._remarks.append("DRAM latencies are those that the file's firmware tables claim")
        return msgspec.structs.replace(
            costs,
            cache=msgspec.structs.replace(costs.cache, **known["cache"]),
            dram=msgspec.structs.replace(costs.dram, **known["dram"]),
            sources=costs.sources | {HWLOC: f"{self._path.name}, written by hwloc"},
        )

    def _memory_latencies(self, socket: IntArray, node: IntArray) -> dict[str, list[float]]:
        """Nanoseconds by field of [dram], from the memory attribute Latency or ReadLatency."""
        target_of = {e.get("gp_index"): self._cpus(e) for e in self._all("NUMANode")}
        found: dict[str, list[float]] = {}
        attributes = {e.get("name"): e for e in self._root.iter("memattr")}
        attribute = attributes.get("ReadLatency", attributes.get("Latency"))
        for value in attribute.iter("memattr_value") if attribute is not None else ():
            initiator = value.get("initiator_cpuset")
            here = target_of.get(value.get("target_obj_gp_index"))
            if initiator is None or not here:
                continue
            cpus = [self._number[c] for c in _bits(initiator) if c in self._number]
            ns = _integer(value, "value")
            if not cpus or not ns:
                continue
            near = socket[cpus[0]] == socket[here[0]]
            local = node[cpus[0]] == node[here[0]]
            key = "local_ns" if local else "same_socket_ns" if near else "remote_ns"
            found.setdefault(key, []).append(float(ns))
        return found


def _integer(element: Element, key: str) -> int:
    text = element.get(key, "0")
    if not re.fullmatch(r"[0-9]{1,18}", text):
        kind = element.get("type", element.tag)
        raise _Broken(f"{kind}: {key} is '{text[:40]}', not a whole number")
    return int(text)


def _numbers(table: Element, tag: str) -> list[int]:
    words = " ".join(element.text or "" for element in table.iter(tag)).split()
    if not all(re.fullmatch(r"[0-9]{1,18}", word) for word in words):
        raise _Broken(f"distances: {tag} are not whole numbers")
    return [int(word) for word in words]


def _bitmap(element: Element, key: str) -> Iterator[int]:
    return _bits(element.get(key, ""))


def _bits(text: str) -> Iterator[int]:
    """The numbers in "0x00000001,,0xff": words of 32 bits, highest first; empty is 0."""
    words = text.split(",")
    if len(words) * 32 > 2 * topology.MAX_CPUS:
        raise _Broken("a cpuset is longer than any machine's")
    for place, word in enumerate(reversed(words)):
        if word and not re.fullmatch(r"0x[0-9a-fA-F]{1,8}", word):
            raise _Broken(f"cpuset '{text[:40]}' is not one")
        bits = int(word or "0", 16)
        for bit in range(32):
            if bits >> bit & 1:
                yield place * 32 + bit


# ---- writing ----


def dump(machine: Topology) -> str:
    """The machine as hwloc XML, format 2: structure, cache sizes, distances. hwloc has no place for
    latencies between CPUs."""
    return _Writer(machine).text()


class _Writer:
    def __init__(self, machine: Topology) -> None:
        self._machine = machine
        self._gp_index = 0

    def text(self) -> str:
        m = self._machine
        root = Element("topology", version="2.0")
        everything = np.arange(m.nr_cpus)
        top = self._object(root, "Machine", everything, os_index=0)
        top.set("allowed_cpuset", top.attrib["cpuset"])
        top.set("allowed_nodeset", top.attrib["nodeset"])
        self._info(top, "Backend", "mm-emu")
        for number, cpus in _split(m.socket_of_cpu, everything):
            package = self._object(top, "Package", cpus, os_index=number)
            # XML has no control characters, not even escaped.
            self._info(package, "CPUModel", printable(m.description))
            nodes = list(_split(m.node_of_cpu, cpus))
            for node, in_node in nodes:
                # A group holds the memory of a part of the package.
                parent = self._object(package, "Group", in_node) if len(nodes) > 1 else package
                if len(nodes) > 1:
                    parent.set("kind", "0")
                    parent.set("subkind", "0")
                memory = self._object(parent, "NUMANode", in_node, os_index=node)
                SubElement(memory, "page_type", size="4096", count="0")
                for _, in_l3 in _split(m.l3_of_cpu, in_node):
                    l3 = self._cache(parent, 3, "l3_kib", in_l3)
                    for core, in_core in _split(m.core_of_cpu, in_l3):
                        l2 = self._cache(l3, 2, "l2_kib", in_core)
                        l1 = self._cache(l2, 1, "l1_kib", in_core)
                        of_core = self._object(l1, "Core", in_core, os_index=core)
                        for cpu in in_core:
                            self._object(of_core, "PU", np.array([cpu]), os_index=int(cpu))
        if m.nr_nodes > 1:
            table = SubElement(
                root,
                "distances2",
                type="NUMANode",
                nbobjs=str(m.nr_nodes),
                kind="5",
                name="NUMALatency",
                indexing="os",
            )
            for tag, numbers in (
                ("indexes", range(m.nr_nodes)),
                ("u64values", m.slit.reshape(-1).tolist()),
            ):
                self._number_lines(table, tag, list(numbers))
        indent(root)
        body = tostring(root, encoding="unicode")
        return (
            '<?xml version="1.0" encoding="UTF-8"?>\n'
            f'<!DOCTYPE topology SYSTEM "hwloc2.dtd">\n{body}\n'
        )

    def _number_lines(self, table: Element, tag: str, numbers: list[int]) -> None:
        """Ten to an element, as hwloc reads them; `length` counts the characters."""
        for start in range(0, len(numbers), 10):
            text = "".join(f"{number} " for number in numbers[start : start + 10])
            SubElement(table, tag, length=str(len(text))).text = text

    def _info(self, element: Element, name: str, value: str) -> None:
        SubElement(element, "info", name=name, value=value)

    def _cache(self, parent: Element, depth: int, size: str, cpus: IntArray | Any) -> Element:
        cache = self._object(parent, f"L{depth}Cache", cpus)
        kib = self._machine.value(f"cache.{size}")
        for key, value in (
            ("cache_size", int(kib * 1024)),
            ("depth", depth),
            ("cache_linesize", 64),
            ("cache_associativity", 0),
            ("cache_type", 0 if depth > 1 else 1),
        ):
            cache.set(key, str(value))
        return cache

    def _object(
        self, parent: Element, kind: str, cpus: IntArray | Any, os_index: int | None = None
    ) -> Element:
        self._gp_index += 1
        sets = {
            "cpuset": _hex(cpus.tolist()),
            "nodeset": _hex(set(self._machine.node_of_cpu[cpus].tolist())),
        }
        element = SubElement(parent, "object", type=kind)
        if os_index is not None:
            element.set("os_index", str(os_index))
        for key, value in sets.items():
            element.set(key, value)
            element.set(f"complete_{key}", value)
        element.set("gp_index", str(self._gp_index))
        return element


def _split(of_cpu: IntArray, cpus: Any) -> Iterator[tuple[int, Any]]:
    for unit in np.unique(of_cpu[cpus]):
        yield int(unit), cpus[of_cpu[cpus] == unit]


def _hex(numbers: Iterable[int]) -> str:
    """A bitmap as hwloc writes it: words of 32 bits, highest first."""
    bits = sum(1 << number for number in set(numbers))
    words: list[str] = []
    while bits or not words:
        words.append(f"0x{bits & 0xFFFFFFFF:08x}")
        bits >>= 32
    return ",".join(reversed(words))
