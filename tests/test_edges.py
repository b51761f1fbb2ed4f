# SPDX-License-Identifier: MIT
"""Numbers at the edges of what the engines hold: refused in one line before they start, or right.

4096 CPUs and hours: tests/soak.py. Numbers in texts and files: tests/test_fuzz.py.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import emu
from emu import topology, workload
from emu.engines import native, virtual
from emu.errors import InputError
from emu.experiment import MAX_CPUS

LOOP = "\n".join(
    (
        *("[program.it]", 'calls = ["mprotect(0x10000000, 4096, PROT_READ)",'),
        *('  "mprotect(0x10000000, 4096, PROT_NONE)"]', "[[phase]]"),
        *('name = "it"', 'list = "it"', ""),
    )
)


def many_vmas(folder: Path, vmas: int) -> Path:
    """A program with one file mapped, every second page of which is a VMA of its own."""
    calls = [
        "exec(x)",
        f"mmap(0x10000000, {vmas * 4096}, PROT_READ, MAP_PRIVATE|MAP_FIXED, f, 0)",
        *(f"mprotect({0x10000000 + 8192 * i:#x}, 4096, PROT_NONE)" for i in range(vmas // 2)),
    ]
    lines = "".join(f'  "{call}",\n' for call in calls)
    path = folder / "many.toml"
    path.write_text(
        f'name = "many"\nload = "load"\n[files]\nf = {vmas}\n'
        "[image.x]\nmmap_base = 0x7ffff7fff000\n"
        'calls = ["mmap(0x1000000, 4096, PROT_READ, MAP_PRIVATE|MAP_FIXED, f, 0)"]\n'
        f"[program.load]\ncalls = [\n{lines}]\n{LOOP}"
    )
    return path


@pytest.mark.parametrize("engine", ["native", "virtual"])
def test_a_process_may_have_many_vmas(engine: str, tmp_path: Path) -> None:
    """By hand with a million: a minute of a CPU for each engine."""
    path = many_vmas(tmp_path, 20_000)
    run = emu.run(
        engine=engine, rmap="single", workload=str(path), cpus=1, duration="1ms", repeats=1
    )
    (cell,) = run.cells
    assert cell.error is None
    assert cell.host.events > 10_000


@pytest.mark.parametrize("engine", [native, virtual], ids=["native", "virtual"])
def test_vmas_without_memory_for_them_are_refused_before_anything_runs(
    engine: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = many_vmas(tmp_path, 20_000)
    monkeypatch.setattr(engine, "memory_available", lambda: 4 << 20)
    name = "native" if engine is native else "virtual"
    with pytest.raises(InputError, match=r"\A.*need [\d,]+ MiB of memory.* available.*\Z"):
        emu.run(engine=name, rmap="single", workload=str(path), cpus=2, duration="1ms", repeats=1)


def test_vmas_are_counted_with_those_of_waiting_processes() -> None:
    spawn = workload.load("spawn")
    image = max(len(spawn.lists[n]) for n, name in enumerate(spawn.list_names) if "image" in name)
    # Parent and child have the same ones.
    assert spawn.most_vmas >= 2 * image


def test_a_program_of_a_million_calls_may_be_that_long(tmp_path: Path) -> None:
    path = tmp_path / "long.toml"
    line = '  "mmap(0x10000000, 4096, PROT_READ, MAP_PRIVATE|MAP_FIXED, libc.so.6, 0x1000)",\n'
    path.write_bytes(b"x = = [\n" + line.encode() * 10**6 + b"\n")
    with pytest.raises(InputError, match="not valid TOML"):
        workload.load(path)


@pytest.mark.parametrize("cpus", [0, MAX_CPUS + 1])
def test_numbers_of_cpus_beyond_the_edges_are_refused(cpus: int) -> None:
    with pytest.raises(InputError, match=f"--cpus {cpus}: must be from 1 to {MAX_CPUS}"):
        emu.run(engine="virtual", cpus=cpus)


def test_a_virtual_duration_beyond_the_clock_is_refused() -> None:
    with pytest.raises(InputError, match=r"--duration 121s: .* at most 120s"):
        emu.run(engine="virtual", rmap="single", cpus=1, duration="121s")


def computing(folder: Path, time: str, times: int, kind: str) -> Path:
    path = folder / "slow.toml"
    work = f'"work({time})", ' * times
    path.write_text(
        f'name = "slow"\nload = "it"\n[files]\n[program.it]\ncalls = [{work}]\n'
        f'[[phase]]\nname = "it"\nlist = "it"\nkind = "{kind}"\n'
    )
    return path


def test_the_longest_duration_that_may_be_asked_for_fits_the_clock(tmp_path: Path) -> None:
    path = computing(tmp_path, "1s", 1, "time")
    run = emu.run(engine="virtual", rmap="single", workload=str(path), cpus=2, duration="120s")
    (cell,) = run.cells
    assert cell.error is None
    assert cell.seconds >= 120


def test_a_program_that_computes_beyond_the_clock_fails_with_its_reason(tmp_path: Path) -> None:
    path = computing(tmp_path, "10s", 40, "once")
    run = emu.run(engine="virtual", rmap="single", workload=str(path), cpus=2)
    (cell,) = run.cells
    assert cell.error is not None
    assert "virtual time has reached" in cell.error


@pytest.mark.parametrize(
    ("key", "value"),
    [("base_ns", "1e10"), ("time_slice_ns", "1e16"), ("l3_kib", "1e12"), ("work_scale", "1e300")],
)
def test_costs_that_the_engine_s_words_cannot_hold_are_refused(
    key: str, value: str, tmp_path: Path
) -> None:
    text = (topology.files.folder() / "hygon-12x32.toml").read_text()
    if f"\n{key} = " not in text:
        text = text.replace("[kernel]\n", f"[kernel]\n{key} = {{ value = 1 }}\n", 1)
    own = f'{key} = {{ value = {value}, spread = 0.1, confidence = "U", source = "X" }}'
    text = re.sub(rf"^{key} = .*$", own, text, count=1, flags=re.MULTILINE)
    path = tmp_path / "machine.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=rf"{key}\.value is .*; at most"):
        topology.check(path)
