# SPDX-License-Identifier: MIT
"""Draws of uncertain numbers: from the seed, within the spread; and the ranks they lead to."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import numpy as np
import pytest
from emu_command import emu, start, wait_until

from emu import topology, uncertainty
from emu.results import CellResult, Host, Memory
from emu.store import Store
from emu.topology import Topology


def test_only_doubtful_numbers_that_the_model_reads_are_drawn() -> None:
    machine = topology.load("hygon-12x32")
    drawn = uncertainty.uncertain(machine)
    assert {"c2c.base_ns", "c2c.per_socket_cross_ns", "dram.remote_ns"} <= set(drawn)
    assert not any(key.startswith(("slit.", "clock.")) for key in drawn)
    assert all(cost.confidence in "LU" and cost.spread > 0 for cost in drawn.values())
    # Measured on that very model: nothing to draw.
    assert "c2c.base_ns" not in uncertainty.uncertain(topology.load("epyc-9754-2s"))


def test_draws_depend_on_the_seed_alone_and_cover_the_spread() -> None:
    costs = uncertainty.uncertain(topology.load("hygon-12x32"))
    draws = uncertainty.draw(costs, 20, 7)
    assert draws == uncertainty.draw(costs, 20, 7)
    assert draws != uncertainty.draw(costs, 20, 8)
    for key, cost in costs.items():
        low, high = cost.value * (1 - cost.spread), cost.value * (1 + cost.spread)
        shares = [(values[key] - low) / (high - low) for values in draws]
        # One in each twentieth.
        assert sorted(int(share * 20) for share in shares) == list(range(20))


def test_a_drawn_machine_costs_what_was_drawn() -> None:
    machine = topology.load("hygon-12x32")
    before = machine.c2c_ns(0, 300, 0)
    changed = uncertainty.with_values(machine, {"c2c.base_ns": 200.0, "dram.local_ns": 50.0})
    assert changed.value("c2c.base_ns") == 200
    assert changed.value("c2c.l3_ns") == machine.value("c2c.l3_ns")
    assert changed.c2c_ns(0, 300, 0) - before == pytest.approx(200 - machine.value("c2c.base_ns"))
    assert changed.dram_ns(0, 0) == 50
    assert machine.value("c2c.base_ns") != 200


def test_rank_correlation() -> None:
    assert uncertainty.rank_correlation([1, 2, 3, 4], [10, 20, 30, 99]) == pytest.approx(1)
    assert uncertainty.rank_correlation([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    assert uncertainty.rank_correlation([1, 2, 3], [5, 5, 5]) == 0
    # By hand: d = -1, 1, 0, so 1 - 6 * 2 / (3 * 8).
    assert uncertainty.rank_correlation([1, 2, 3], [2, 1, 3]) == pytest.approx(0.5)
    assert uncertainty.ranks([3, 1, 3]).tolist() == [1.5, 0, 1.5]


def test_what_a_speed_up_hangs_on_is_found() -> None:
    machine = topology.load("hygon-12x32")

    def rate(drawn: Topology, design: str) -> CellResult:
        ns = 1000 + (drawn.value("c2c.base_ns") if design == "a" else 0)
        return CellResult(
            rmap=design,
            mm="m",
            topology="t",
            cpus=3,
            workload="w",
            engine="virtual",
            seed=1,
            repeat=0,
            status="ok",
            ops_per_s=1e9 / ns,
            latency_ns={},
            memory=Memory(),
            host=Host(),
        )

    found = uncertainty.evaluate(machine, ["a", "b"], 16, 3, rate)
    (design,) = found.designs
    base = machine.costs.numbers()["c2c.base_ns"]
    key, correlation = next(iter(design.hangs_on.items()))
    assert key == "c2c.base_ns" and correlation == pytest.approx(1)
    assert 1 + base.value * (1 - base.spread) / 1000 <= design.min < design.p10 < design.median
    assert design.median < design.p90 < design.max <= 1 + base.value * (1 + base.spread) / 1000
    assert (found.cpus, found.draws, found.baseline) == (3, 16, "a")


def test_the_same_seed_gives_the_same_interval() -> None:
    arguments = (
        *("run", "--engine", "virtual", "--topology", "hygon-12x32", "--cpus", "16"),
        *("--rmap", "single,numa-locks", "--duration", "1ms", "--uncertainty", "4", "--json", "-"),
    )
    runs = [json.loads(emu(*arguments, timeout_s=120).stdout) for _ in range(2)]
    (found,) = runs[0]["run"]["uncertainty"]
    assert runs[1]["run"]["uncertainty"] == [found]
    assert found["draws"] == 4 and found["baseline"] == "single"
    (design,) = found["designs"]
    assert 0 < design["min"] <= design["p10"] <= design["median"] <= design["p90"] <= design["max"]
    assert len(design["hangs_on"]) == 3
    assert all(abs(rho) <= 1 for rho in design["hangs_on"].values())
    assert np.isfinite(design["median"])


def test_draws_that_were_cut_off_are_made_by_the_same_command(own_store: Path) -> None:
    arguments = (
        *("run", "--engine", "virtual", "--topology", "laptop-8c", "--cpus", "2"),
        *("--rmap", "single,numa-locks", "--duration", "1ms", "--json", "-"),
    )
    process = start(*arguments, "--uncertainty", "1000")
    store = Store(own_store)
    wait_until(lambda: store.ids() and not store.missing(store.ids()[0]))
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=10)
    assert (process.returncode, err) == (130, "")
    first = json.loads(out)["run"]
    assert (first["status"], first["uncertainty"]) == ("interrupted", [])
    second = json.loads(emu(*arguments, "--uncertainty", "4").stdout)["run"]
    assert (second["id"], second["status"]) == (first["id"], "done")
    assert second["uncertainty"][0]["draws"] == 4


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--uncertainty", "8", "--engine", "native"), "it needs --engine virtual and two designs"),
        (("--uncertainty", "2", "--engine", "virtual"), "must be from 4 to 1000"),
        (("--uncertainty", "8", "--engine", "virtual", "--rmap", "single"), "two designs"),
    ],
)
def test_nonsense_is_refused(arguments: tuple[str, ...], words: str) -> None:
    done = emu("run", *arguments)
    assert done.returncode == 2
    assert words in done.stderr and len(done.stderr.strip().splitlines()) == 1
