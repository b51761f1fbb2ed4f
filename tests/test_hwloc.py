# SPDX-License-Identifier: MIT
"""hwloc XML in and out. The files in data/hwloc are `lstopo --if synthetic` of hwloc 2.9.0."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from emu import hwloc, topology
from emu.cli_topology import app
from emu.errors import InputError
from emu.files import MAX_BYTES

DATA = Path(__file__).parent / "data" / "hwloc"
TWO_SOCKETS = (DATA / "two-sockets.xml").read_text(encoding="utf-8")


def read(text: str, tmp_path: Path) -> hwloc.Imported:
    file = tmp_path / "there.xml"
    file.write_text(text, encoding="utf-8")
    return hwloc.load(file)


def refused(text: str, tmp_path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read(text, tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    prefix = f"{tmp_path / 'there.xml'}: "
    assert message.startswith(prefix)
    return message.removeprefix(prefix)


def test_the_structure_is_the_file_s() -> None:
    machine = hwloc.load(DATA / "two-sockets.xml").machine
    assert machine.summary() == "16 CPUs = 2 sockets x 1 node x 2 L3 x 2 cores x 2 threads"
    assert machine.socket_of_cpu.tolist() == [0] * 8 + [1] * 8
    assert machine.l3_of_cpu.tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4
    assert machine.core_of_cpu.tolist() == [cpu // 2 for cpu in range(16)]


def test_an_l3_over_several_nodes_is_divided_among_them() -> None:
    """Sub-NUMA clusters: hwloc hangs the nodes below the L3."""
    machine = hwloc.load(DATA / "sub-numa.xml").machine
    assert machine.summary() == "8 CPUs = 2 sockets x 2 nodes x 1 L3 x 2 cores x 1 thread"
    assert machine.node_of_cpu.tolist() == machine.l3_of_cpu.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_of_two_memories_of_the_same_cpus_the_first_counts() -> None:
    imported = hwloc.load(DATA / "two-memories.xml")
    assert imported.machine.nr_nodes == 2
    left_out = [remark for remark in imported.remarks if "left out" in remark]
    assert left_out == [
        f"NUMA node {node} is left out: its CPUs have another one" for node in (1, 3)
    ]


def test_cpus_and_nodes_keep_the_system_s_numbers() -> None:
    machine = hwloc.load(DATA / "reordered.xml").machine
    assert machine.node_of_cpu.tolist() == [0] * 4 + [1] * 4
    assert machine.core_of_cpu[4] == machine.core_of_cpu[5]


def test_cpus_that_are_off_line_leave_no_gap(tmp_path: Path) -> None:
    text = re.sub(r'\n *<object type="PU" os_index="1" .*?/>', "", TWO_SOCKETS)
    assert text != TWO_SOCKETS
    imported = read(text, tmp_path)
    assert imported.machine.nr_cpus == 15
    assert imported.remarks[0] == "CPUs 0,2-15 of the file are numbered from 0"
    assert imported.machine.core_of_cpu.tolist()[:3] == [0, 1, 1]


def test_a_node_over_several_packages_is_one_a_package(tmp_path: Path) -> None:
    """Files made from CPUID alone have a single node for the machine."""
    kept = re.sub(r'<object type="NUMANode" os_index="1".*?</object>', "", TWO_SOCKETS, flags=re.S)
    text = kept.replace(
        '<object type="NUMANode" os_index="0" cpuset="0x000000ff"',
        '<object type="NUMANode" os_index="0" cpuset="0x0000ffff"',
    )
    assert text not in (TWO_SOCKETS, kept)
    imported = read(text, tmp_path)
    assert imported.machine.nr_nodes == 2
    assert any("no NUMA nodes within its packages" in remark for remark in imported.remarks)


def test_distances_and_latencies_of_memory_are_the_firmware_s(tmp_path: Path) -> None:
    distances = """
  <distances2 type="NUMANode" nbobjs="2" kind="5" name="NUMALatency" indexing="os">
    <indexes length="4">1 0 </indexes>
    <u64values length="6">10 21 </u64values><u64values length="6">17 10 </u64values>
  </distances2>
  <memattr name="Latency" flags="6">
    <memattr_value target_obj_gp_index="{0}" target_obj_type="NUMANode" value="88"
      initiator_cpuset="0x000000ff"/>
    <memattr_value target_obj_gp_index="{0}" target_obj_type="NUMANode" value="190"
      initiator_cpuset="0x0000ff00"/>
  </memattr>
</topology>"""
    first = re.search(r'type="NUMANode" os_index="0".*?gp_index="(\d+)"', TWO_SOCKETS)
    assert first
    text = TWO_SOCKETS.replace("</topology>", distances.format(first.group(1)))
    machine = read(text, tmp_path).machine
    assert machine.slit.tolist() == [[10, 17], [21, 10]]  # the file lists node 1 first
    assert machine.value("dram.local_ns") == 88
    assert machine.value("dram.remote_ns") == 190
    assert machine.costs.dram.local_ns.source == hwloc.HWLOC


def test_latencies_between_cpus_are_the_nearest_machine_s_and_marked(tmp_path: Path) -> None:
    info = (
        '<info name="CPUVendor" value="AuthenticAMD"/><info name="CPUFamilyNumber" value="25"/>'
        '<info name="CPUModelNumber" value="1"/><info name="CPUModel" value=" EPYC  7763 "/>'
    )
    package = re.search(r'<object type="Package".*?>', TWO_SOCKETS)
    assert package
    text = TWO_SOCKETS.replace(package.group(0), package.group(0) + info)
    machine = read(text, tmp_path).machine
    milan = topology.load("epyc-7763-2s")
    assert machine.description == "EPYC 7763; latencies assumed as on epyc-7763-2s"
    assert machine.value("c2c.l3_ns") == milan.value("c2c.l3_ns")
    assert {cost.confidence for key, cost in machine.costs.numbers().items() if "c2c" in key} <= {
        "L",
        "U",
    }
    assert machine.value("cache.l3_kib") == 16384  # of the file: "H"
    assert machine.costs.cache.l3_kib.confidence == "H"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "not valid XML"),
        (TWO_SOCKETS[: len(TWO_SOCKETS) // 2], "not valid XML"),
        ("<svg/>", "not an hwloc file: its root is <svg>, not <topology>"),
        ("<topology><object type='Machine'/></topology>", "hwloc format 1.x; 2.x and 3.x can be"),
        ("<topology version='2.0'/>", "it has no PU, so no CPU"),
        (TWO_SOCKETS.replace('type="PU" os_index="1"', 'type="PU" os_index="-1"'), "PU: os_index"),
        (TWO_SOCKETS.replace('type="PU" os_index="1"', 'type="PU" os_index="0"'), "two PUs have"),
        (TWO_SOCKETS.replace('cpuset="0x000000ff"', 'cpuset="0xzz"'), "cpuset '0xzz' is not one"),
        (TWO_SOCKETS.replace("0x000000ff", "," * 9000), "a cpuset is longer than any machine's"),
        (
            '<!DOCTYPE topology [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;&a;">]>'
            "<topology version='2.0'>&b;</topology>",
            "refused: it defines or refers to XML entities",
        ),
        (
            '<!DOCTYPE topology [<!ENTITY a SYSTEM "file:///etc/passwd">]>'
            "<topology version='2.0'>&a;</topology>",
            "refused: it defines or refers to XML entities",
        ),
    ],
)
def test_what_is_no_machine_is_refused_in_a_line(text: str, expected: str, tmp_path: Path) -> None:
    assert refused(text, tmp_path).startswith(expected)


def test_a_file_that_is_not_there_or_too_large(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        hwloc.load(tmp_path / "none.xml")
    huge = tmp_path / "huge.xml"
    with huge.open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(InputError, match=f"larger than {MAX_BYTES >> 20} MiB"):
        hwloc.load(huge)


def equal(a: topology.Topology, b: topology.Topology) -> bool:
    return all(
        np.array_equal(getattr(a, field), getattr(b, field))
        for field in ("socket_of_cpu", "node_of_cpu", "l3_of_cpu", "core_of_cpu", "slit")
    )


@pytest.mark.parametrize("name", topology.names())
def test_exported_and_imported_again_a_machine_has_the_same_structure(
    name: str, tmp_path: Path
) -> None:
    machine = topology.load(name)
    again = read(hwloc.dump(machine), tmp_path).machine
    assert equal(machine, again)


@given(
    sockets=st.integers(1, 3),
    nodes=st.integers(1, 3),
    l3=st.integers(1, 3),
    cores=st.integers(1, 3),
    smt=st.integers(1, 2),
)
@settings(max_examples=30)
def test_any_machine_survives_xml_and_toml(
    tmp_path_factory: pytest.TempPathFactory,
    sockets: int,
    nodes: int,
    l3: int,
    cores: int,
    smt: int,
) -> None:
    machine = topology.load(f"generic:{sockets=},{nodes=},{l3=},{cores=},{smt=}".replace(" ", ""))
    folder = tmp_path_factory.mktemp("round")
    imported = read(hwloc.dump(machine), folder).machine
    assert equal(machine, imported)
    file = folder / "there.toml"
    file.write_text(imported.to_toml(), encoding="utf-8")
    again = topology.load(file)
    assert equal(imported, again)
    for key, cost in imported.costs.numbers().items():
        written = again.costs.numbers()[key]
        assert math.isclose(written.value, cost.value, rel_tol=1e-9)
        assert (written.confidence, written.source) == (cost.confidence, cost.source)
    assert again.latency_classes() == imported.latency_classes()


LAYOUT = """name = "odd"
description = "an odd machine"
[layout]
sockets = ["0-4"]
nodes = ["0-2", "3-4"]
l3 = ["0-2", "3-4"]
cores = ["0-1", "2", "3-4"]
slit = [[10, 20], [20, 10]]
confidence = "H"
source = "LAYOUT"
"""


def odd(tmp_path: Path, old: str, new: str) -> str:
    """The refusal of the odd machine, with `old` replaced by `new`."""
    costs = topology.load("host").to_toml()
    assert LAYOUT.count(old) == 1
    file = tmp_path / "odd.toml"
    file.write_text(LAYOUT.replace(old, new) + costs[costs.index("\n[clock]") :], encoding="utf-8")
    with pytest.raises(InputError) as caught:
        topology.load(file)
    return str(caught.value).removeprefix(f"{file}: ")


def test_an_irregular_machine_can_be_written_cpu_by_cpu(tmp_path: Path) -> None:
    costs = topology.load("host").to_toml()
    file = tmp_path / "odd.toml"
    file.write_text(LAYOUT + costs[costs.index("\n[clock]") :], encoding="utf-8")
    machine = topology.load(file)
    assert machine.summary() == "5 CPUs = 1 socket x 2 nodes x 1 L3 x 1-2 cores x 1-2 threads"


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('"0-2", "3-4"]\nl3', '"0-2", "4"]\nl3', "[layout] nodes leaves out CPU 3"),
        ('"0-2", "3-4"]\nl3', '"0-3", "3-4"]\nl3', "[layout] nodes has CPU 3 twice"),
        ('"0-2", "3-4"]\nl3', '"0-2", "x"]\nl3', "[layout] nodes[1] is 'x', not a list of CPUs"),
        ('"0-2", "3-4"]\nl3', '"0-2", "3"]\nl3', "[layout] nodes has 4 CPUs, sockets has 5"),
        ('"0-2", "3-4"]\ncores', '"0-4"]\ncores', "[layout] l3[0] lies in more than one of nodes"),
        ("[[10, 20], [20, 10]]", "[[10, 20]]", "[layout] slit must have a row and a column for"),
        ("[20, 10]", "[20, 9]", "layout.slit[1][1]: Expected `int` >= 10"),
        ("[layout]", "[structure]", "unknown key 'nodes' in [structure]"),
    ],
)
def test_a_layout_that_is_no_machine_is_refused(
    old: str, new: str, expected: str, tmp_path: Path
) -> None:
    assert odd(tmp_path, old, new).startswith(expected)


def test_the_commands(tmp_path: Path) -> None:
    run = CliRunner().invoke
    xml, toml = str(tmp_path / "there.xml"), str(tmp_path / "there.toml")
    assert run(app, ["export", "hygon-12x32", "-o", xml]).exit_code == 0
    result = run(app, ["import", xml, "-o", toml])
    assert (result.exit_code, result.stdout) == (0, "")
    assert "384 CPUs = 2 sockets x 6 nodes x 4 L3 x 4 cores x 2 threads" in (
        run(app, ["check", toml]).stdout
    )
    result = run(app, ["import", str(DATA / "two-sockets.xml")])
    assert result.stdout == hwloc.load(DATA / "two-sockets.xml").machine.to_toml()
    assert "note: the file has no distances" in result.stderr
