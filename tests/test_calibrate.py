# SPDX-License-Identifier: MIT
"""emu calibrate and emu compare-kernel. That figures are right on a quiet machine cannot be tested
on a busy one; that they are what the probe printed, and fit together, can."""

from __future__ import annotations

import re
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from emu_command import children, emu, start, wait_until

from emu import calibrate, compare_kernel, topology, workload
from emu.errors import EmuError


def test_value_is_the_median_and_spread_the_wider_of_two() -> None:
    steady = calibrate.cost([[9.0, 10.0, 11.0], [9.0, 10.0, 11.0]], "H")
    assert (steady.value, round(steady.spread, 6)) == (10.0, 0.1)
    drifting = calibrate.cost([[10.0, 10.0], [14.0, 14.0]], "H")
    assert (drifting.value, round(drifting.spread, 3)) == (12.0, round(2 / 12, 3))


def transfers(machine: topology.Topology) -> dict[calibrate.Pair, list[list[float]]]:
    """What pairs of the machine's CPUs would measure."""
    rng = np.random.default_rng(1)
    pairs: dict[calibrate.Pair, list[list[float]]] = {}
    for a in range(0, machine.nr_cpus, 7):
        for b, home in rng.integers(0, machine.nr_cpus, (12, 2)).tolist():
            if a != b:
                ns = machine.c2c_ns(a, b, int(machine.node_of_cpu[home]))
                pairs[calibrate.Pair(a, b, home)] = [[ns, ns], [ns, ns]]
    return pairs


@pytest.mark.parametrize("name", ["hygon-12x32", "epyc-9754-2s", "xeon-skylake-4s"])
def test_latencies_between_cpus_are_found_again(name: str) -> None:
    machine = topology.load(name)
    found = calibrate._between_cpus(machine, transfers(machine), "H")
    wanted = {
        key: cost.value
        for key, cost in machine.costs.numbers().items()
        if key.startswith("c2c.") and key != "c2c.smt_ns"
    }
    assert {"c2c.base_ns", "c2c.l3_ns"} <= set(wanted)
    for key, value in wanted.items():
        assert found[key].value == pytest.approx(value, rel=1e-6), key


def test_of_two_nodes_the_base_has_what_cannot_be_told_apart() -> None:
    machine = topology.load("generic:sockets=2,nodes=1,l3=1,cores=4,smt=1")
    found = calibrate._between_cpus(machine, transfers(machine), "H")
    assert found["c2c.base_ns"].value == pytest.approx(machine.c2c_ns(0, 4, 0))
    assert found["c2c.per_socket_cross_ns"].value == 0


def test_all_pairs_of_a_small_machine_and_each_kind_of_a_large_one() -> None:
    import random

    small = topology.load("laptop-8c")
    assert len(calibrate._pairs(small, random.Random(1))) == 16 * 15 // 2
    large = topology.load("hygon-12x32")
    pairs = calibrate._pairs(large, random.Random(1))
    assert len(set(pairs)) == len(pairs) <= calibrate.MAX_PAIRS
    nodes = {(int(large.node_of_cpu[a]), int(large.node_of_cpu[b])) for a, b in pairs}
    assert {(a, b) for a in range(12) for b in range(a, 12)} <= nodes | {(b, a) for a, b in nodes}


@pytest.mark.parametrize("name", ["laptop-8c", "hygon-12x32", "altra-q80-1s", "xeon-e7-8870-8s"])
def test_the_emulated_ping_pong_takes_what_the_machine_says(name: str) -> None:
    """CPUs 0 and 1 are siblings, share an L3, or have only the mesh: each kind of latency."""
    machine = topology.load(name)
    ns = machine.c2c_ns(0, 1, int(machine.node_of_cpu[0]))
    assert calibrate.emulated_ping_pong_ns(machine, ns) == pytest.approx(ns, rel=0.03)


def test_the_probe_measures_and_says_what_it_cannot() -> None:
    cpu = topology.host().host_cpus[0]
    found = calibrate.probe("chase", cpu, cpu, 16384, 3)
    assert len(found["load"]) == 3
    assert 0.1 < min(found["load"]) < 100
    syscalls = calibrate.probe("syscall", cpu, 2)
    assert set(syscalls) == {"null_syscall", "futex_wait", "futex_wake"}
    with pytest.raises(calibrate.ProbeError, match="CPU 4095: Invalid argument"):
        calibrate.probe("chase", 4095, 4095, 16384, 1)
    with pytest.raises(calibrate.ProbeError, match="'x' is not a whole number"):
        calibrate.probe("syscall", cpu, "x")
    with pytest.raises(calibrate.ProbeError, match="no such measurement"):
        calibrate.probe("syscall")


def test_the_program_execs_itself_for_as_long_as_asked() -> None:
    cpu = topology.host().host_cpus[0]
    found = calibrate.probe("exec", cpu, 100)
    assert found["elapsed"][0] >= 100e6
    assert found["count"][0] >= 2
    assert found["exec"][0] == pytest.approx(found["elapsed"][0] / found["count"][0], rel=1e-3)
    assert found["user"][0] + found["system"][0] <= found["exec"][0] * 1.2


def test_the_command_writes_a_topology_that_host_goes_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    done = emu("calibrate")
    assert done.returncode == 0, done.stderr
    file = tmp_path / "mm-emu" / "host.toml"
    assert done.stdout.rstrip().endswith(f"written: {file}")
    if topology.host().nr_cpus > 1:
        again = re.search(r"measured ([\d.]+) ns, emulated ([\d.]+) ns", done.stdout)
        assert again and float(again[2]) == pytest.approx(float(again[1]), rel=0.1)
    written, host = topology.load(file), topology.load("host")
    assert host.description == f"this machine; calibrated, {file}"
    for key, cost in written.costs.numbers().items():
        assert host.value(key) == cost.value
    measured = [c for c in written.costs.numbers().values() if c.source == calibrate.SOURCE]
    assert len(measured) >= 14
    # A file of another machine is left alone.
    text = file.read_text(encoding="utf-8").replace(
        f'description = "{written.description}"', 'description = "another CPU"'
    )
    file.write_text(text, encoding="utf-8")
    assert "costs assumed as on" in topology.load("host").description


def test_work_is_made_longer_in_proportion() -> None:
    text, work_ns = compare_kernel.with_work(compare_kernel._source(), 0.0)
    assert text == compare_kernel._source().replace('"152us"', '"152000ns"')
    assert work_ns == 152_000 + 13 * 5460
    text, twice_ns = compare_kernel.with_work(compare_kernel._source(), work_ns)
    assert twice_ns == 2 * work_ns
    assert 'time = "304000ns"' in text
    assert 'time = "10920ns"' in text
    assert 'time = "53us"' in text  # fork and exit stay
    with pytest.raises(EmuError, match="less than the emulated mm alone"):
        compare_kernel.with_work(compare_kernel._source(), -work_ns - 5000)


def test_a_workload_with_other_work_is_still_one(tmp_path: Path) -> None:
    file = tmp_path / "execl.toml"
    file.write_text(compare_kernel.with_work(compare_kernel._source(), 1e5)[0], encoding="utf-8")
    execl = workload.load(file)
    number = execl.list_names.index("program.exec")
    assert int(execl.lists[number]["work_ns"].sum()) == pytest.approx(152_000 + 13 * 5460 + 1e5, 1)


def test_three_curves_side_by_side() -> None:
    done = emu("compare-kernel", "--cpus", "1,2", "--duration", "200ms")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert " ".join(lines[1].split()) == "CPUs real exec/s +- native / real virtual / real"
    assert [line.split()[0] for line in lines[2:-1]] == ["1", "2"]
    assert lines[-1] == "fitted at 1 CPU; the rest is predicted"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_calibration_that_is_cut_off_leaves_no_topology(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    process = start("calibrate")
    wait_until(lambda: children(process.pid))
    process.send_signal(number)
    _, err = process.communicate(timeout=10)
    assert process.returncode == 130
    assert err == ""
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_no_measurement_goes_on_when_the_command_is_gone(number: signal.Signals) -> None:
    process = start("compare-kernel", "--cpus", "1", "--duration", "40s")

    wait_until(lambda: children(process.pid))
    time.sleep(0.5)  # it has begun to measure
    (probe,) = children(process.pid)
    process.send_signal(number)
    process.communicate(timeout=10)
    wait_until(lambda: has_ended(probe))


def has_ended(pid: int) -> bool:
    """Is it gone, or has only nobody waited for it?"""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_kernel_is_emulated_ends_it_cleanly(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    process = start("compare-kernel", "--cpus", "1", "--duration", "400ms")
    wait_until(lambda: [*tmp_path.glob("emu-compare-*/store.sqlite")])
    process.send_signal(number)
    out, err = process.communicate(timeout=10)
    assert (process.returncode, out, err) == (130, "", "")
    assert list(tmp_path.glob("emu-compare-*")) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("compare-kernel", "--cpus", "4096"), "this machine has"),
        (("compare-kernel", "--cpus", "x"), "--cpus"),
        (("compare-kernel", "--duration", "soon"), "duration"),
        (("calibrate", "-o", "/dev/null/x.toml"), "/dev/null/x.toml: "),
        (("calibrate", "-o", "no-such-folder/x.toml"), "--output no-such-folder/x.toml: no file"),
    ],
)
def test_bad_input_is_refused_in_a_line(arguments: tuple[str, ...], message: str) -> None:
    done = emu(*arguments)
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
