# SPDX-License-Identifier: MIT
"""Topologies: the files say what was published, the numbering is Linux's, bad files are refused."""

import re
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from emu import topology
from emu.cli_topology import app
from emu.errors import EmuError, InputError
from emu.files import parse_toml

GOLDEN = Path(__file__).parent / "topology"
FOLDER = topology.files.folder()

# Sockets, NUMA nodes, CPUs, as published.
MACHINES = {
    "altra-q80-1s": (1, 1, 80),
    "epyc-7532-1s": (1, 1, 64),
    "epyc-7742-2s": (2, 2, 256),
    "epyc-7763-2s": (2, 2, 256),
    "epyc-7r13-2s": (2, 2, 192),
    "epyc-9654-2s": (2, 2, 384),
    "epyc-9754-2s": (2, 2, 512),
    "graviton2": (1, 1, 64),
    "graviton3": (1, 1, 64),
    "hygon-12x32": (2, 12, 384),
    "hygon-12x32-zen4": (2, 12, 384),
    "hygon-7280-2s": (2, 8, 128),
    "laptop-8c": (1, 1, 16),
    "xeon-4210-2s": (2, 2, 40),
    "xeon-5318y-2s": (2, 2, 96),
    "xeon-6346-2s": (2, 2, 64),
    "xeon-8275cl-2s": (2, 2, 96),
    "xeon-8375c-2s": (2, 2, 128),
    "xeon-8380h-4s": (4, 4, 224),
    "xeon-8570-2s": (2, 2, 224),
    "xeon-e7-8870-8s": (8, 8, 80),
    "xeon-skylake-4s": (4, 4, 112),
}

# Published medians, one way: (machine, requester, owner, home node, ns, relative tolerance).
# Classes that are a parameter of the file must come out exactly; those that the three-leg model
# derives may be off by 5 %. Known misses, not listed because the model has no such class:
#   same quadrant of an AMD socket: 9754 106.5 (model 110.5, +4 %), 9654 90.2 (100.2, +11 %),
#     7763 113 (125, +11 %), 7742 115 (134.6, +17 %)
#   7763, both in one socket, homed in the other: 289 for some pairs (model 303.6, +5.05 %)
#   Cascade Lake, remote line homed at the reader, prefetchers off: 165-178 by MLC (model 134.1)
EXACT, DERIVED = 1e-9, 0.05
PUBLISHED = [
    ("epyc-9754-2s", 0, 256, 0, 12.7, EXACT),  # SMT sibling
    ("epyc-9754-2s", 0, 7, 0, 32.6, EXACT),  # same L3
    ("epyc-9754-2s", 0, 8, 0, 106.7, DERIVED),  # other L3 of the same die
    ("epyc-9754-2s", 0, 127, 0, 110.5, EXACT),  # same socket
    ("epyc-9754-2s", 0, 128, 0, 203.6, DERIVED),  # other socket
    ("epyc-9754-2s", 0, 127, 1, 206.0, DERIVED),  # same socket, homed in the other
    ("epyc-9654-2s", 0, 192, 0, 10.3, EXACT),
    ("epyc-9654-2s", 0, 7, 0, 27.1, EXACT),
    ("epyc-9654-2s", 0, 95, 0, 100.2, EXACT),
    ("epyc-9654-2s", 0, 96, 0, 191.6, DERIVED),
    ("epyc-9654-2s", 0, 95, 1, 200.0, DERIVED),
    ("epyc-7763-2s", 0, 128, 0, 10.2, EXACT),
    ("epyc-7763-2s", 0, 7, 0, 25.0, EXACT),
    ("epyc-7763-2s", 0, 63, 0, 125.0, EXACT),
    ("epyc-7763-2s", 0, 64, 0, 303.6, DERIVED),
    ("epyc-7r13-2s", 0, 96, 0, 9.8, EXACT),
    ("epyc-7r13-2s", 0, 7, 0, 22.9, EXACT),
    ("epyc-7r13-2s", 0, 47, 0, 107.6, EXACT),
    ("epyc-7r13-2s", 0, 48, 0, 197.2, DERIVED),
    ("epyc-7r13-2s", 0, 47, 1, 200.5, DERIVED),
    ("epyc-7742-2s", 0, 128, 0, 8.0, EXACT),
    ("epyc-7742-2s", 0, 3, 0, 25.3, EXACT),
    ("epyc-7742-2s", 0, 63, 0, 134.6, EXACT),
    ("epyc-7742-2s", 0, 64, 0, 266.6, DERIVED),
    ("epyc-7742-2s", 0, 63, 1, 262.0, DERIVED),
    # Hygon 7280: medians of 2x EPYC 7601, 8 dies. Node 0 = CPUs 0-7, node 4 = the one linked to it.
    ("hygon-7280-2s", 0, 64, 0, 12.0, EXACT),
    ("hygon-7280-2s", 0, 3, 0, 38.0, EXACT),
    ("hygon-7280-2s", 0, 4, 0, 131.0, DERIVED),  # in the home die
    ("hygon-7280-2s", 0, 4, 1, 215.0, DERIVED),  # in another die of the home's socket
    ("hygon-7280-2s", 0, 8, 0, 210.0, DERIVED),  # two dies, one of them the home
    ("hygon-7280-2s", 0, 8, 2, 256.0, DERIVED),  # three dies
    ("hygon-7280-2s", 0, 32, 0, 282.0, DERIVED),  # other socket: the least
    ("hygon-7280-2s", 8, 48, 0, 410.0, DERIVED),  # and the most
    ("hygon-7280-2s", 0, 4, 4, 288.0, DERIVED),  # one socket, homed in the other: the least
    ("hygon-7280-2s", 0, 8, 6, 390.0, DERIVED),  # and the most
    # The Hygon server with Zen4-like costs: medians of the 9754.
    ("hygon-12x32-zen4", 0, 192, 0, 12.0, EXACT),
    ("hygon-12x32-zen4", 0, 3, 0, 33.0, EXACT),
    ("hygon-12x32-zen4", 0, 8, 0, 106.0, EXACT),
    ("hygon-12x32-zen4", 0, 16, 0, 110.0, EXACT),
    ("hygon-12x32-zen4", 0, 112, 0, 203.0, DERIVED),
    ("hygon-12x32-zen4", 0, 16, 6, 204.0, DERIVED),
    # Intel: a socket is one L3; other socket.
    ("xeon-8570-2s", 0, 55, 0, 55.0, EXACT),
    ("xeon-8570-2s", 0, 56, 0, 140.0, DERIVED),
    ("xeon-8375c-2s", 0, 64, 0, 8.0, EXACT),
    ("xeon-8375c-2s", 0, 31, 0, 51.3, EXACT),
    ("xeon-8375c-2s", 0, 32, 0, 107.8, DERIVED),
    ("xeon-8275cl-2s", 0, 48, 0, 7.6, EXACT),
    ("xeon-8275cl-2s", 0, 23, 0, 46.9, EXACT),
    ("xeon-8275cl-2s", 0, 24, 0, 134.1, DERIVED),
    ("xeon-skylake-4s", 0, 56, 0, 7.2, EXACT),  # Xeon 8176
    ("xeon-skylake-4s", 0, 13, 0, 47.5, EXACT),
    ("xeon-skylake-4s", 0, 14, 0, 148.8, DERIVED),
    ("xeon-e7-8870-8s", 0, 9, 0, 47.5, EXACT),  # Xeon 8176
    ("xeon-e7-8870-8s", 0, 79, 0, 148.8, DERIVED),
    ("altra-q80-1s", 0, 1, 0, 83.0, EXACT),  # pair of cores
    ("altra-q80-1s", 0, 79, 0, 158.0, EXACT),  # mesh
    ("graviton2", 0, 63, 0, 47.2, EXACT),
    ("graviton3", 0, 63, 0, 46.4, EXACT),
    ("laptop-8c", 0, 8, 0, 7.8, EXACT),
    ("laptop-8c", 0, 7, 0, 18.9, EXACT),
]


def test_the_machines_are_listed_without_the_internal_files() -> None:
    assert topology.names() == sorted(MACHINES)


def test_machines_are_found_by_the_names_of_the_tables_of_measurements() -> None:
    assert set(topology.ALSO_CALLED.values()) <= set(MACHINES)
    for also, name in topology.ALSO_CALLED.items():
        assert also not in MACHINES
        assert topology.load(also).render() == topology.load(name).render()
    assert topology.load("hygon-12n-384").name == "hygon-12x32"


@pytest.mark.parametrize("name", MACHINES)
def test_counts_are_the_published_ones(name: str) -> None:
    machine = topology.load(name)
    assert machine.name == name
    assert (machine.nr_sockets, machine.nr_nodes, machine.nr_cpus) == MACHINES[name]


@pytest.mark.parametrize(("name", "a", "b", "home", "ns", "tolerance"), PUBLISHED)
def test_transfers_cost_the_published_medians(
    name: str, a: int, b: int, home: int, ns: float, tolerance: float
) -> None:
    machine = topology.load(name)
    assert machine.c2c_ns(a, b, home) == pytest.approx(ns, rel=tolerance)
    assert machine.c2c_ns(b, a, home) == machine.c2c_ns(a, b, home)


def test_linux_numbering_of_the_hygon_server() -> None:
    """As on a C86-4G 7490, node k has cores 16k..16k+15 and their siblings, here 192 higher."""
    machine = topology.load("hygon-12x32")
    for node in range(12):
        cores = list(range(16 * node, 16 * node + 16))
        cpus = np.flatnonzero(machine.node_of_cpu == node).tolist()
        assert cpus == cores + [core + 192 for core in cores]
    assert machine.socket_of_node.tolist() == [0] * 6 + [1] * 6
    assert (machine.core_of_cpu[:192] == machine.core_of_cpu[192:]).all()
    assert np.flatnonzero(machine.l3_of_cpu == 3).tolist() == [*range(12, 16), *range(204, 208)]


def test_arrays_cannot_be_changed_by_accident() -> None:
    machine = topology.load("laptop-8c")
    with pytest.raises(ValueError, match="read-only"):
        machine.node_of_cpu[0] = 1


@pytest.mark.parametrize("name", [name for name in MACHINES if re.match("epyc.*-2s", name)])
def test_home_counts_on_amd_within_a_socket_only(name: str) -> None:
    machine = topology.load(name)
    per_socket = machine.nr_cpus // 4
    near, far = 0, per_socket - 1
    other = per_socket
    assert machine.c2c_ns(near, far, 1) > 1.4 * machine.c2c_ns(near, far, 0)
    assert machine.c2c_ns(near, other, 0) == machine.c2c_ns(near, other, 1)
    assert machine.c2c_ns(near, far, 1) == machine.c2c_ns(near, other, 0)
    assert machine.c2c_ns(near, 1, 0) == machine.c2c_ns(near, 1, 1)


@pytest.mark.parametrize("name", ["xeon-8570-2s", "xeon-8375c-2s", "xeon-8275cl-2s"])
def test_home_does_not_count_on_two_socket_intel(name: str) -> None:
    machine = topology.load(name)
    last = machine.nr_cpus // 2 - 1
    for pair in ((0, 1), (0, last), (0, machine.nr_cpus // 2)):
        assert machine.c2c_ns(*pair, 0) == machine.c2c_ns(*pair, 1)


def test_hops_and_crossings_of_linked_and_other_nodes() -> None:
    machine = topology.load("hygon-12x32")
    assert [machine.die_hops(0, node) for node in (0, 1, 6, 7)] == [0, 1, 0, 1]
    assert [machine.socket_crossings(0, node) for node in (0, 1, 6, 7)] == [0, 0, 1, 1]
    assert machine.slit[0].tolist() == [10, 16, 16, 16, 16, 16, 22, 28, 28, 28, 28, 28]


def test_memory_costs_more_the_farther_it_is() -> None:
    machine = topology.load("hygon-7280-2s")
    assert [machine.dram_ns(0, home) for home in (0, 1, 4)] == [90, 135, 205]


def test_latency_classes_of_four_sockets() -> None:
    machine = topology.load("xeon-skylake-4s")
    classes = {c.name: (c.min_ns, c.max_ns) for c in machine.latency_classes()}
    assert list(classes) == [
        "SMT sibling",
        "same L3",
        "other socket, homed in either",
        "other socket, homed in a third",
    ]
    assert classes["other socket, homed in either"] == pytest.approx((148.8, 148.8))
    assert classes["other socket, homed in a third"] == pytest.approx((199.45, 199.45))


@pytest.mark.parametrize("name", [*MACHINES, "generic:sockets=3,nodes=2,l3=1,cores=2,smt=1"])
def test_rendering_is_as_recorded(name: str) -> None:
    """After a wanted change: emu topology show NAME > tests/topology/NAME.txt; read the diff."""
    file = GOLDEN / f"{name.split(':')[0]}.txt"
    assert topology.load(name).render() == file.read_text(encoding="utf-8")


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.toml")), ids=lambda file: file.stem)
def test_files_name_themselves_and_cite_all_that_they_list(file: Path) -> None:
    raw = parse_toml(file)[0]
    if file.stem != "_common-costs":
        assert raw["name"] == file.stem
    cited = set(re.findall(r'source = "(.*?)"', file.read_text(encoding="utf-8")))
    assert cited == set(raw["sources"])


def test_a_key_of_sources_means_the_same_in_every_file() -> None:
    meaning: dict[str, str] = {}
    for file in FOLDER.glob("*.toml"):
        for key, text in parse_toml(file)[0]["sources"].items():
            assert meaning.setdefault(key, text) == text


# ---- bad files ----


def refused(tmp_path: Path, old: str, new: str, base: str = "hygon-12x32") -> str:
    """What the refusal of `base`, with one replacement made, says after the file's name."""
    text = (FOLDER / f"{base}.toml").read_text(encoding="utf-8")
    assert text.count(old) == 1, "the test's own replacement must hit exactly once"
    file = tmp_path / "mine.toml"
    file.write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(InputError) as caught:
        topology.load(file)
    message = str(caught.value)
    assert message.startswith(f"{file}: ")
    assert "\n" not in message
    return message.removeprefix(f"{file}: ")


def cost(value: float) -> str:
    return f'{{ value = {value}, spread = 0, confidence = "M", source = "KC" }}'


SMT = 'smt_ns = { value = 12, spread = 0.2, confidence = "L", source = "KC" }'


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("base_ns =", "basis_ns =", "unknown key 'basis_ns' in [c2c] (did you mean 'base_ns'?)"),
        ("[c2c]", "[c2cc]", "unknown key 'c2cc' in the top level (did you mean 'c2c'?)"),
        ("nodes_per_socket = 6", "nodes_per_sockets = 6", "(did you mean 'nodes_per_socket'?)"),
        ("value = 38.5,", "valeu = 38.5,", "unknown key 'valeu' in [c2c.per_die_hop_ns]"),
        ("value = 38.5,", "value = -38.5,", "c2c.per_die_hop_ns.value: Expected `float` >= 0.0"),
        ("value = 38.5,", 'value = "38.5",', "c2c.per_die_hop_ns.value: Expected `float`"),
        ("value = 137,", "value = nan,", "c2c.base_ns.value: Expected `float` >= 0.0"),
        ("value = 137,", "value = inf,", "c2c.base_ns.value is inf"),
        ("value = 137,", "value = 0,", "c2c.base_ns.value is 0; it must be a number above 0"),
        ("value = 28,", "value = 28.5,", "slit.socket_other.value is 28.5; a distance is a whole"),
        ("value = 28,", "value = 255,", "slit.socket_other.value is 255"),
        ("spread = 0.15,", "spread = 15,", "slit.socket_other.spread: Expected `float` <= 1.0"),
        (SMT, SMT.replace('"L"', '"X"'), "c2c.smt_ns.confidence: Invalid enum value 'X'; one of H"),
        (SMT, SMT.replace('"KC"', '"KX"'), "c2c.smt_ns.source is 'KX'"),
        (SMT, SMT.replace('source = "KC"', ""), "not valid TOML"),
        (SMT, SMT.replace(', source = "KC"', ""), "c2c.smt_ns.source is missing"),
        (SMT, "smt_ns = 12", "c2c.smt_ns must be a table, not 12"),
        (SMT, "", "c2c.smt_ns is missing: needed since smt = 2"),
        ("nodes_per_socket = 6", "nodes_per_socket = 0", "structure.nodes_per_socket: Expected"),
        ("nodes_per_socket = 6", "nodes_per_socket = 6.5", "structure.nodes_per_socket: Expected"),
        ("nodes_per_socket = 6", "nodes_per_socket = 513", "1026 nodes; at most 1024"),
        ("cores_per_l3 = 4", "cores_per_l3 = 99999", "structure has 9599904 CPUs; at most 65535"),
        ('"dram" = """', '"dam" = """', "dram.local_ns has confidence U but no reason"),
        ('"dram" = """', '"dram.loca_ns" = """', "dram.local_ns has confidence U but no reason"),
        ("[clock]", "[clock", "not valid TOML: "),
        ('name = "hygon-12x32"', "", "name is missing"),
        (
            "[notes]",
            f"[core]\nsmt_speed = {cost(1.2)}\n[notes]",
            "core.smt_speed.value is 1.2; at most",
        ),
        (
            "[notes]",
            f"[core]\noutstanding_stores = {cost(17)}\n[notes]",
            "whole number from 1 to 16",
        ),
        ("[notes]", f"[core]\noutstanding_stores = {cost(0.5)}\n[notes]", "is 0.5; a whole number"),
        ("[notes]", f"[core]\nsmt = {cost(1)}\n[notes]", "unknown key 'smt' in [core]"),
        (
            "[notes]",
            f"[idle]\nc3_residency_ns = {cost(9)}\n[notes]",
            "idle.c3_residency_ns without idle.c3_exit_ns",
        ),
    ],
)
def test_bad_files_are_refused_with_place_and_remedy(
    tmp_path: Path, old: str, new: str, expected: str
) -> None:
    assert expected in refused(tmp_path, old, new)


def test_a_structure_without_a_reason_is_named_once(tmp_path: Path) -> None:
    sure, unsure = (f'smt = 2\nconfidence = "{letter}"' for letter in "HL")
    message = refused(tmp_path, sure, unsure, "epyc-9754-2s")
    assert message == 'structure has confidence L but no reason; add "structure" to [notes]'


def test_a_missing_section_is_named(tmp_path: Path) -> None:
    clock = '[clock]\nghz = { value = 2.7, spread = 0.1, confidence = "M", source = "HYG7490" }\n'
    assert refused(tmp_path, clock, "") == "section [clock] is missing"


def test_malformed_toml_is_refused_with_its_line(tmp_path: Path) -> None:
    message = refused(tmp_path, "sockets = 2\nnodes", "sockets = two\nnodes")
    text = (FOLDER / "hygon-12x32.toml").read_text(encoding="utf-8")
    line = text.splitlines().index("sockets = 2") + 1
    assert f"(at line {line}, column " in message


def test_a_note_on_nothing_is_refused(tmp_path: Path) -> None:
    message = refused(tmp_path, '[notes]\n"structure"', '[notes]\n"c2c.l3" = "?"\n"structure"')
    assert message == (
        "[notes] has 'c2c.l3', which is no number or section (did you mean 'c2c.l3_ns'?)"
    )


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.toml: No such file"):
        topology.load(tmp_path / "none.toml")
    with pytest.raises(InputError, match="Is a directory"):
        topology.load(f"{tmp_path}/")
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b'name = "\xff"')
    with pytest.raises(InputError, match="not UTF-8 text \\(byte 8\\)"):
        topology.load(binary)


def test_an_unknown_name_lists_the_valid_ones() -> None:
    with pytest.raises(InputError) as caught:
        topology.load("epyc-9745-2s")
    message = str(caught.value)
    assert message.startswith("no topology 'epyc-9745-2s' (did you mean 'epyc-9754-2s'?); ")
    for name in [*MACHINES, "generic:", "host"]:
        assert name in message
    with pytest.raises(InputError, match="no topology '_generic'"):
        topology.load("_generic")


def test_a_file_may_have_its_own_kernel_costs(tmp_path: Path) -> None:
    text = (FOLDER / "laptop-8c.toml").read_text(encoding="utf-8")
    own = (
        '[kernel]\nwake_to_run_ns = { value = 900, spread = 0, confidence = "H", source = "C2C" }\n'
    )
    file = tmp_path / "mine.toml"
    file.write_text(text.replace("[notes]", own + "\n[notes]"), encoding="utf-8")
    mine, shipped = topology.load(file), topology.load("laptop-8c")
    assert mine.value("kernel.wake_to_run_ns") == 900
    assert mine.value("kernel.null_syscall_ns") == shipped.value("kernel.null_syscall_ns")
    assert "kernel.wake_to_run_ns" in shipped.costs.notes
    assert "kernel.wake_to_run_ns" not in mine.costs.notes, "that remark is about another number"


def test_an_absent_number_is_0_and_an_unknown_one_an_error() -> None:
    machine = topology.load("graviton2")
    assert machine.value("c2c.smt_ns") == 0
    assert "c2c.smt_ns" not in machine.costs.numbers()
    with pytest.raises(AttributeError):
        machine.value("c2c.smt")


# ---- generic ----


def test_generic_completes_what_is_left_out() -> None:
    machine = topology.load("generic:nodes=4")
    assert machine.name == "generic:sockets=2,nodes=4,l3=2,cores=8,smt=2"
    assert topology.load("generic").name == "generic:sockets=2,nodes=1,l3=2,cores=8,smt=2"
    assert machine.nr_cpus == 256
    assert topology.load(machine.name).render() == machine.render()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("generic:socket=2", "no parameter 'socket' (did you mean 'sockets'?)"),
        ("generic:threads=2", "there are: sockets, nodes, l3, cores, smt"),
        ("generic:cores=0", "cores must be a whole number from 1 to 65535, not '0'"),
        ("generic:cores=-3", "cores must be a whole number from 1 to 65535, not '-3'"),
        ("generic:cores=2.5", "cores must be a whole number from 1 to 65535, not '2.5'"),
        ("generic:cores=²", "cores must be a whole number from 1 to 65535, not '²'"),
        ("generic:cores", "cores must be a whole number from 1 to 65535, not ''"),
        ("generic:cores=1000000000", "from 1 to 65535, not '1000000000'"),
        ("generic:cores=" + "9" * 5000, "cores must be a whole number from 1"),
        ("generic:smt=2,smt=2", "smt is given twice"),
        ("generic:cores=65535", "CPUs; at most 65535"),
        ("generic:sockets=1025,l3=1,cores=1,smt=1", "1025 nodes; at most 1024"),
        ("generics", "no topology 'generics'"),
    ],
)
def test_bad_generic_machines_are_refused(text: str, expected: str) -> None:
    with pytest.raises(InputError) as caught:
        topology.load(text)
    assert expected in str(caught.value)


@settings(max_examples=60)
@given(
    shape=st.tuples(*[st.integers(1, most) for most in (5, 4, 3, 4, 3)]),
    data=st.data(),
)
def test_generic_machines_are_what_they_say(
    shape: tuple[int, int, int, int, int], data: st.DataObject
) -> None:
    sockets, nodes, l3s, cores, smt = shape
    machine = topology.load(
        f"generic:sockets={sockets},nodes={nodes},l3={l3s},cores={cores},smt={smt}"
    )
    nr_cores = sockets * nodes * l3s * cores
    assert machine.nr_cpus == nr_cores * smt

    # A CPU's coordinates follow from its number alone; written out here digit by digit.
    def place(cpu: int) -> tuple[int, int, int, int]:
        core = cpu % nr_cores
        l3, node = core // cores, core // (cores * l3s)
        return node // nodes, node, l3, core

    arrays = (machine.socket_of_cpu, machine.node_of_cpu, machine.l3_of_cpu, machine.core_of_cpu)
    assert list(zip(*(a.tolist() for a in arrays), strict=True)) == [
        place(cpu) for cpu in range(machine.nr_cpus)
    ]

    def leg(a: int, b: int) -> float:
        hop, cross = machine.value("c2c.per_die_hop_ns"), machine.value("c2c.per_socket_cross_ns")
        return hop * (a % nodes != b % nodes) + cross * (a // nodes != b // nodes)

    a = data.draw(st.integers(0, machine.nr_cpus - 1))
    b = data.draw(st.integers(0, machine.nr_cpus - 1))
    home = data.draw(st.integers(0, machine.nr_nodes - 1))
    (_, node_a, l3_a, core_a), (_, node_b, l3_b, core_b) = place(a), place(b)
    if a == b:
        expected = 0.0
    elif core_a == core_b:
        expected = machine.value("c2c.smt_ns")
    elif l3_a == l3_b:
        expected = machine.value("c2c.l3_ns")
    else:
        legs = leg(node_a, home) + leg(home, node_b) + leg(node_b, node_a)
        expected = machine.value("c2c.base_ns") + legs
    assert machine.c2c_ns(a, b, home) == pytest.approx(expected)
    if a != b:
        assert any(
            c.min_ns - 1e-9 <= expected <= c.max_ns + 1e-9 for c in machine.latency_classes()
        )

    assert (machine.slit == machine.slit.T).all()
    assert (np.diag(machine.slit) == 10).all()
    assert machine.render().count("\n  node ") == machine.nr_nodes


@given(st.sets(st.integers(0, 500)))
def test_cpu_lists_survive_the_round_trip(cpus: set[int]) -> None:
    assert topology.parse_cpu_list(topology.format_cpu_list(sorted(cpus))) == sorted(cpus)


# ---- host ----


def put(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text + "\n", encoding="utf-8")


def fake_sys(sys: Path) -> None:
    """2 sockets x 4 cores x SMT2, L3s of 2 cores; nodes 0 and 2, node 1 has memory only."""
    for cpu in range(16):
        core = cpu % 8
        folder = sys / f"cpu/cpu{cpu}"
        put(folder / "topology/physical_package_id", str(core // 4))
        put(folder / "topology/thread_siblings_list", f"{core},{core + 8}")
        put(folder / "cache/index0/level", "1")
        put(folder / "cache/index3/level", "3")
        first = core // 2 * 2
        l3 = f"{first}-{first + 1},{first + 8}-{first + 9}"
        put(folder / "cache/index3/shared_cpu_list", l3)
    put(sys / "node/online", "0-2")
    for node, cpus, distances in (
        (0, "0-3,8-11", "10 17 32"),
        (1, "", "17 10 28"),
        (2, "4-7,12-15", "32 28 10"),
    ):
        put(sys / f"node/node{node}/cpulist", cpus)
        put(sys / f"node/node{node}/distance", distances)


MILAN = "vendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 1\nmodel name\t: AMD EPYC\n"


def test_host_reads_structure_and_distances(tmp_path: Path) -> None:
    fake_sys(tmp_path / "sys")
    put(tmp_path / "cpuinfo", MILAN)
    machine = topology.host(tmp_path / "sys", tmp_path / "cpuinfo", range(16))
    assert machine.summary() == "16 CPUs = 2 sockets x 1 node x 2 L3 x 2 cores x 2 threads"
    assert machine.node_of_cpu.tolist() == [0] * 4 + [1] * 4 + [0] * 4 + [1] * 4
    assert machine.core_of_cpu.tolist() == [*range(8), *range(8)]
    assert machine.slit.tolist() == [[10, 32], [32, 10]]
    assert machine.host_nodes == (0, 2)
    assert machine.c2c_ns(0, 8, 0) == 10.2
    assert machine.c2c_ns(0, 4, 0) == pytest.approx(303.6)


def test_host_costs_are_marked_as_assumed(tmp_path: Path) -> None:
    fake_sys(tmp_path / "sys")
    put(tmp_path / "cpuinfo", MILAN)
    machine = topology.host(tmp_path / "sys", tmp_path / "cpuinfo", range(16))
    assert machine.description == "this machine; costs assumed as on epyc-7763-2s"
    numbers = machine.costs.numbers()
    milan = topology.load("epyc-7763-2s").costs.numbers()
    # The native engine computes for as long as workloads say.
    assert milan.pop("kernel.work_scale").value != 1 and "kernel.work_scale" not in numbers
    assert {key: numbers[key].value for key in milan} == {k: c.value for k, c in milan.items()}
    assert {cost.confidence for cost in numbers.values()} <= {"L", "U"}
    assert all("assumed" in machine.costs.note(key) for key in numbers)
    assert all(cost.source in machine.costs.sources for cost in numbers.values())


def test_host_keeps_to_the_affinity_mask(tmp_path: Path) -> None:
    fake_sys(tmp_path / "sys")
    machine = topology.host(tmp_path / "sys", tmp_path / "none", {5, 2, 10, 6})
    assert machine.host_cpus == (2, 5, 6, 10)
    assert machine.node_of_cpu.tolist() == [0, 1, 1, 0]
    assert machine.core_of_cpu.tolist() == [0, 1, 2, 0]
    assert machine.l3_of_cpu.tolist() == [0, 1, 2, 0]
    assert machine.summary() == "4 CPUs = 2 sockets x 1 node x 1-2 L3 x 1 core x 1-2 threads"
    assert "on host cpus 2,5-6,10\n" in machine.render()
    only_second_node = topology.host(tmp_path / "sys", tmp_path / "none", {4})
    assert (only_second_node.host_nodes, only_second_node.slit.tolist()) == ((2,), [[10]])


def test_host_without_numa_or_cache_information(tmp_path: Path) -> None:
    (tmp_path / "sys").mkdir()
    machine = topology.host(tmp_path / "sys", tmp_path / "none", range(4))
    assert machine.summary() == "4 CPUs = 1 socket x 1 node x 1 L3 x 4 cores x 1 thread"
    assert machine.slit.tolist() == [[10]]
    assert machine.description == "this machine; costs assumed as on a generic machine"


def test_host_that_contradicts_itself_is_an_operating_failure(tmp_path: Path) -> None:
    fake_sys(tmp_path / "sys")
    put(tmp_path / "sys/node/node2/distance", "far")
    with pytest.raises(EmuError, match="host: cannot read this machine's topology") as caught:
        topology.host(tmp_path / "sys", tmp_path / "none", range(16))
    assert not isinstance(caught.value, InputError)


def test_this_host_loads() -> None:
    machine = topology.load("host")
    assert machine.nr_cpus == len(machine.host_cpus) >= 1
    assert machine.render().startswith("host: this machine; costs assumed as on ")


def test_every_known_cpu_refers_to_a_machine() -> None:
    assert {name for _, _, _, name in topology.this_machine._KNOWN_CPUS} <= set(MACHINES)


# ---- command line ----


def test_show_and_check_commands(tmp_path: Path) -> None:
    runner = CliRunner()
    shown = runner.invoke(app, ["show", "hygon-12x32"])
    assert (shown.exit_code, shown.output) == (0, topology.load("hygon-12x32").render())
    file = tmp_path / "mine.toml"
    file.write_text((FOLDER / "graviton2.toml").read_text(encoding="utf-8"), encoding="utf-8")
    checked = runner.invoke(app, ["check", str(file)])
    assert checked.exit_code == 0
    assert checked.output.startswith(f"{file}: ok: 64 CPUs = 1 socket x 1 node x 1 L3 x 64 cores")
    bad = runner.invoke(app, ["check", str(tmp_path / "none.toml")])
    assert isinstance(bad.exception, InputError)
    # check is for files: a machine's name is not silently taken for one.
    assert isinstance(runner.invoke(app, ["check", "graviton2"]).exception, InputError)


@pytest.mark.parametrize("command", ["show", "check"])
def test_help_shows_an_example(command: str) -> None:
    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert f"Example: emu topology {command} " in result.output


def test_costs_go_to_json_and_back() -> None:
    costs = topology.load("hygon-12x32").costs
    assert msgspec.json.decode(msgspec.json.encode(costs), type=topology.Machine) == costs
