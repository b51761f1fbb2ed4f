# SPDX-License-Identifier: MIT
"""Walkers of a workload: what they do, what is refused, and that a missed VMA is found out."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from emu_command import emu

from emu import _core, workload
from emu.errors import InputError

ROOT = Path(__file__).parents[1]
WORKLOAD = ROOT / "tests" / "data" / "walkers.toml"
SINGLE = (ROOT / "workers" / "designs" / "rmap" / "single.c").read_text()
VIRTUAL = ("--engine", "virtual", "--topology", "hygon-12x32", "--cpus", "8", "--duration", "2ms")
NATIVE = ("--engine", "native", "--cpus", "4", "--duration", "150ms", "--repeats", "1")


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return emu("run", "--workload", str(WORKLOAD), "--json", "-", *map(str, arguments))


def cells(*arguments: str | Path) -> list[dict[str, Any]]:
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)["cells"]
    return found


@pytest.mark.parametrize("machine", [VIRTUAL, NATIVE], ids=["virtual", "native"])
def test_no_design_misses_a_page(machine: tuple[str, ...]) -> None:
    """Each walk is followed by a search of all page tables, and a cell with a missed page fails."""
    names = [name for name in _core.design_names("rmap") if name != "exclude"]
    found = cells(*machine, "--rmap", ",".join(names))
    assert [cell["rmap"] for cell in found] == names
    for cell in found:
        truncate, reclaim, migrate = cell["walkers"]
        assert [w["kind"] for w in cell["walkers"]] == ["truncate", "reclaim", "migrate"]
        assert [w["at_once"] for w in cell["walkers"]] == [64, 16, 16]
        for walker in (truncate, migrate):
            assert walker["done"] == walker["latency_ns"]["count"] > 0
            assert walker["refused"] == walker["lost"] == 0
            # A walk visits processes that use the file.
            assert walker["vmas"] > walker["done"]
            assert walker["pages"] > 0
        assert reclaim["done"] + reclaim["refused"] > 0
        walks = sum(w["done"] for w in cell["walkers"])
        assert cell["latency_ns"]["walk"]["count"] == walks
        assert cell["latency_ns"]["fault"]["count"] > 0
        # The program goes on using the file, and waits for the pages where it meets a walker.
        assert cell["ops"] > 0


@pytest.mark.parametrize("machine", [VIRTUAL, NATIVE], ids=["virtual", "native"])
def test_who_walks_reads_and_who_maps_writes(machine: tuple[str, ...]) -> None:
    (cell,) = cells(*machine, "--rmap", "single")
    files = {walker["file"] for walker in cell["walkers"]}
    (lock,) = (each for each in cell["locks"] if each["file"] in files and "i_mmap" in each["name"])
    walks = ("unmap_mapping_range", "try_to_unmap", "migrate_pages")
    read = sum(site["acquired"] for site in lock["sites"] if site["site"] in walks)
    assert lock["modes"]["read"]["acquired"] == read > 0
    assert lock["modes"]["write"]["acquired"] == lock["acquired"] - read > read


def test_reclaim_is_all_or_nothing() -> None:
    """Alone it is never refused; among many, with a lock that is always taken, often."""
    alone = cells(*VIRTUAL, "--cpus", "1", "--rmap", "single")[0]["walkers"][1]
    among = cells(*VIRTUAL, "--cpus", "32", "--rmap", "single")[0]["walkers"][1]
    assert alone["refused"] == 0 < alone["done"]
    assert alone["pages"] > 0
    assert among["refused"] > among["done"]


def test_exclude_loses_its_walks() -> None:
    lost = cells(*VIRTUAL, "--rmap", "exclude:files=all")[0]["walkers"]
    for walker in lost:
        assert walker["done"] == walker["pages"] == 0 < walker["lost"]
    assert lost[0]["refused"] == 0


def test_a_seed_gives_one_result() -> None:
    one, two = (cells(*VIRTUAL, "--rmap", "numa-locks")[0] for _ in range(2))
    assert one["walkers"] == two["walkers"]
    assert one["latency_ns"] == two["latency_ns"]


BROKEN = {
    "a walk leaves out one VMA in seven": (
        "ret = i_mmap_tree_walk(&s->i_mmap, first, last, fn, arg);",
        "struct interval_tree_node *node;\n"
        "\tstatic uint32_t n;\n"
        "\tret = 0;\n"
        "\tfor (node = interval_tree_iter_first(&s->i_mmap, first, last); node && !ret;\n"
        "\t     node = interval_tree_iter_next(node, first, last))\n"
        "\t\tif (++n % 7)\n"
        "\t\t\tret = fn(vma_of(node), arg);",
    ),
    "a forked child is not linked": (
        "i_mmap_tree_insert_after(&s->i_mmap, vmas[i], prevs ? prevs[i] : NULL);",
        "{ struct vm_area_struct *vma = vmas[i]; vma_set_interval(vma);"
        "if (prevs) vma->shared.start = vma->shared.last = 1u << 30;"
        "interval_tree_insert(&vma->shared, &s->i_mmap); }",
    ),
}


@pytest.mark.parametrize("broken", BROKEN)
@pytest.mark.parametrize("machine", [VIRTUAL, NATIVE], ids=["virtual", "native"])
def test_a_missed_vma_is_found_out(tmp_path: Path, machine: tuple[str, ...], broken: str) -> None:
    right, wrong = BROKEN[broken]
    assert SINGLE.count(right) == 1
    design = tmp_path / "broken.c"
    design.write_text(SINGLE.replace(right, wrong))
    done = run(*machine, "--rmap", design)
    assert done.returncode == 1
    (cell,) = json.loads(done.stdout)["cells"]
    assert cell["status"] == "failed"
    assert "of libx.so has visited" in cell["error"]
    assert "missed one: page" in cell["error"]
    assert "is still mapped at 0x7ffff7f" in cell["error"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('kind = "truncate"', 'kind = "trunk"', "[[walker]] 1: kind: Invalid enum value 'trunk'"),
        ('file = "libx.so"', 'file = "liby.so"', "no file 'liby.so' (did you mean 'libx.so'?)"),
        ('every = "20us"', 'every = "0us"', "[[walker]] 2 every: 0 is no time between two walks"),
        ('every = "20us"', 'every = "often"', "'often' is no time; write it like 150us"),
        ("last = 63", "last = 64", "pages 16 to 64 of libx.so, which has 64"),
        ("last = 63", "at_once = 0", "[[walker]] 3 at_once: 0; at least 1 page"),
        ("last = 63", "cpu = -1", "[[walker]] 3 cpu: -1 is below 0"),
        ('touch = "all"', 'touch = "none"', 'walkers have nothing to do where touch is "none"'),
        ('touch = "all"', 'touch = "some"', "Invalid enum value 'some'"),
    ],
)
def test_bad_walkers(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "bad.toml"
    text = WORKLOAD.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(InputError) as error:
        workload.load(path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_walkers_make_programs_use_their_files(tmp_path: Path) -> None:
    """Nothing could be missed else. Without walkers there are no faults, unless asked for."""
    assert workload.load(WORKLOAD).touch == "all"
    text = WORKLOAD.read_text().replace('touch = "all"\n', "")
    path = tmp_path / "default.toml"
    path.write_text(text)
    assert workload.load(path).touch == "first"
    path.write_text(text.partition("[[walker]]")[0] + "[[phase]]" + text.partition("[[phase]]")[2])
    without = workload.load(path)
    assert without.touch == "none"
    assert not without.walkers
