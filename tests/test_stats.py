# SPDX-License-Identifier: MIT
"""Statistics, comparisons, the report for a mail, the host, and the code of docs/python.md."""

from __future__ import annotations

import html
import itertools
import random
import re
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from emu_command import emu
from hypothesis import given, settings
from hypothesis import strategies as st
from test_report import made_cell, made_run

import emu as package
from emu import host, stats
from emu.comparison import LAYOUTS, Comparison, compare, side
from emu.errors import InputError
from emu.report import mail
from emu.results import CellResult, Host, Latency, Run

ROOT = Path(__file__).parents[1]
SAMPLES = st.lists(st.floats(1, 1e6), min_size=2, max_size=8)


# ---- estimates ----


@settings(max_examples=20)
@given(SAMPLES)
def test_an_interval_holds_the_median_and_is_within_the_sample(sample: list[float]) -> None:
    estimate = stats.median(sample)
    assert estimate.low is not None
    assert estimate.high is not None
    rounding = 1e-12 * max(map(abs, sample))
    assert min(sample) - rounding <= estimate.low <= estimate.value + rounding
    assert estimate.value - rounding <= estimate.high <= max(sample) + rounding
    assert estimate == stats.median(sample)


def test_one_repeat_has_no_interval_and_equal_ones_a_point() -> None:
    assert stats.median([3.0]) == stats.Estimate(3.0, None, None, 1)
    assert stats.mean([3.0] * 4) == stats.Estimate(3.0, 3.0, 3.0, 4)


def test_the_interval_covers_the_true_mean_mostly() -> None:
    """Of 20 values each. The nominal 95 % are a little optimistic for a bootstrap."""
    chance = random.Random(1)
    hits = 0
    for _ in range(100):
        estimate = stats.mean([chance.gauss(100, 5) for _ in range(20)])
        assert estimate.low is not None
        assert estimate.high is not None
        hits += estimate.low <= 100 <= estimate.high
    assert 87 <= hits <= 99


def test_a_speed_up_is_the_ratio_of_medians() -> None:
    found = stats.speed_up([10.0, 11.0, 9.0, 10.0], [20.0, 22.0, 18.0, 20.0])
    assert found.value == 2.0
    assert found.low is not None
    assert found.high is not None
    assert 1.6 < found.low < 2.0 < found.high < 2.5
    assert stats.speed_up([0.0], [1.0]).value != stats.speed_up([0.0], [1.0]).value  # nan


def test_spread() -> None:
    assert stats.spread([1.0]) is None
    assert stats.spread([0.0, 0.0]) is None
    assert stats.spread([9.0, 10.0, 14.0]) == 0.25
    assert stats.spread([3.0, 3.0]) == 0


def test_deviation() -> None:
    assert stats.deviation([1.0]) is None
    assert stats.deviation([9.0, 11.0]) == pytest.approx(statistics.stdev([9, 11]) / 10)


def test_p_values_tell_what_repeats_can_tell() -> None:
    apart = ([1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0])
    assert stats.p_value(*apart) == pytest.approx(2 / 70)
    assert stats.p_value([1.0, 2.0, 3.0], [5.0, 6.0, 7.0]) == pytest.approx(0.1)
    assert stats.p_value(apart[0], apart[0]) == 1.0
    assert stats.p_value([1.0] * 9, [1.0] * 9) == 1.0


# ---- comparisons ----


def cell(rate: float, **changes: Any) -> CellResult:
    return made_cell(rmap="single", ops_per_s=rate, **changes)


def run_of(*cells: CellResult) -> Run:
    return made_run(*cells)


def compared(base: Run, other: Run) -> Comparison:
    base.run.id, other.run.id = "base", "other"
    return compare(side("", lambda _: base), side("", lambda _: other))


SLOW = run_of(*(cell(100.0 + r, repeat=r) for r in range(5)))
FAST = run_of(*(cell(200.0 + r, repeat=r) for r in range(5)))


def test_two_equal_runs_do_not_differ_in_any_layout() -> None:
    same = compared(SLOW, SLOW)
    assert not same.any_difference
    for layout in LAYOUTS:
        assert same.text(layout).endswith("\nNo difference.")
    lines = [line for line in same.text("lkp").splitlines() if ".exec" in line]
    assert lines
    assert all(" ~ " in line and "%change" not in line for line in lines)
    assert "*" not in same.text("mmtests")


def test_a_difference_is_told_with_its_interval() -> None:
    found = compared(SLOW, FAST)
    (rate,) = [each for each in found.differences if each.differs]
    assert (rate.metric, rate.better) == ("exec_per_s", True)
    assert rate.ratio.value == pytest.approx(202 / 102)
    (line,) = [line for line in str(found).splitlines() if "exec_per_s" in line]
    assert re.search(r"exec_per_s +102 +\d\S* +202 +\d\S* +1\.980 +1\.9\d+\.\.2\.0\d+", line)
    assert line.endswith("better")
    assert "1 of 3 figures differ (p < 0.05; where nothing" in str(found)
    backwards = compared(FAST, SLOW)
    assert [each.better for each in backwards.differences if each.differs] == [False]
    assert str(found) in html.unescape(found._repr_html_())


LKP = """\
virtual engine, predicted:

                     base                           other
-------------------------  ------------------------------
                  %stddev        %change          %stddev
                        \\              |                \\
               102 ±  2%         +98.0%       202 ±  1%  2CPUs.exec_per_s
               0.2                     ~       0.2         2CPUs.exec_p50_us
                 0                     ~         0         2CPUs.exec_p99_us

1 of 3 figures differ (p < 0.05; where nothing differs, chance lets 0.2 of so many seem to)."""

MMTESTS = """\
virtual engine, predicted:

                          base              other
Hmean  exec_per_s-2CPUs    102  (   0.00%)    202    *  98.07%*
Amean  exec_p50_us-2CPUs   0.2  (   0.00%)    0.2  ~ (   0.00%)
Amean  exec_p99_us-2CPUs     0  (   0.00%)      0  ~ (   0.00%)

1 of 3 figures differ (p < 0.05; where nothing differs, chance lets 0.2 of so many seem to)."""


def test_layouts_to_the_letter() -> None:
    found = compared(SLOW, FAST)
    assert found.text("lkp") == LKP
    assert found.text("mmtests") == MMTESTS
    with pytest.raises(InputError, match="lkp"):
        found.text("lpk")


def test_too_few_repeats_are_said() -> None:
    few = compared(run_of(*SLOW.cells[:3]), run_of(*FAST.cells[:3]))
    assert not few.any_difference
    assert "too few repeats" in str(few)
    assert "takes 4" in str(few)


def test_sides() -> None:
    both = run_of(*SLOW.cells, *(cell(300.0, repeat=r) for r in range(4)))
    for each in both.cells[5:]:
        each.rmap = "numa-locks"
    found = compare(side("x:single", lambda _: both), side("x:numa-locks", lambda _: both))
    assert (found.base.name, found.other.name) == ("single", "numa-locks")
    assert found.differences[0].ratio.value == pytest.approx(300 / 102)
    with pytest.raises(InputError, match="did you mean 'single'"):
        side("x:sngle", lambda _: both)
    with pytest.raises(InputError, match="no cell in common"):
        compared(SLOW, run_of(cell(1.0, cpus=3)))
    with pytest.raises(InputError, match="no cell of this run"):
        side("x", lambda _: run_of(cell(1.0, status="failed")))


@pytest.mark.parametrize(
    ("base", "other", "words"),
    [
        ("x:single", "x", "x has several rmap designs, .* single, btree"),
        ("x", "x:spf", "x has several mm designs, .* mmap-sem-rbtree, spf"),
        ("x:single", "x:spf", "single has several mm designs"),
    ],
)
def test_designs_are_no_repeats_of_one_another(base: str, other: str, words: str) -> None:
    rates = itertools.count(100.0)
    both = run_of(
        *(
            made_cell(rmap=rmap, mm=mm, repeat=r, ops_per_s=next(rates))
            for rmap, mm in itertools.product(("single", "btree"), ("mmap-sem-rbtree", "spf"))
            for r in range(2)
        )
    )
    with pytest.raises(InputError, match=words):
        compare(side(base, lambda _: both), side(other, lambda _: both))
    found = compare(side("x:single", lambda _: both), side("x:btree", lambda _: both))
    assert {len(each.base) for each in found.differences} == {2}


def test_unstable_native_repeats_are_warned_of() -> None:
    busy = Host(other_cpus=0.75)
    wild = [cell(100.0 * (1 + r), repeat=r, engine="native", host=busy) for r in range(4)]
    (line,) = stats.unstable(wild)
    assert line == (
        "Unstable: single, mmap-sem-rbtree, w on 2 CPUs: the repeats differ by 52% (standard "
        "deviation), and up to 0.8 host CPUs did something else."
    )
    assert stats.unstable(SLOW.cells) == []
    assert line in str(compared(run_of(*wild), run_of(*wild)))
    for each in wild:
        each.latency_ns = each.latency_ns | {"exit": Latency()}
    assert line in str(run_of(*wild))
    assert "Unstable:" in mail.text(run_of(*wild))


def test_machines_that_differ_are_named() -> None:
    runs = [run_of(*(cell(100.0, repeat=r, engine="native") for r in range(4))) for _ in range(2)]
    runs[1].run.host = {"kernel": "6.9"}
    assert "The machines differ: kernel is ? and 6.9." in str(compared(*runs))


# ---- the whole way ----


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Run:
    store = tmp_path_factory.mktemp("store") / "s"
    options: dict[str, Any] = {"engine": "virtual", "cpus": "1,48", "duration": "1ms"}
    return package.run(
        rmap="single,numa-locks,outer-inner:shards=64,by=cpu", repeats=4, store=store, **options
    )


def test_compare_of_the_same_seed_and_of_two_designs(real: Run, tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    file.write_bytes(real.to_json())
    again = tmp_path / "again.json"
    options = ("--engine", "virtual", "--cpus", "1,48", "--duration", "1ms", "--repeats", "4")
    designs = ("--rmap", "single,numa-locks,outer-inner:shards=64,by=cpu")
    assert emu("run", *options, *designs, "--json", str(again)).returncode == 0
    for layout in LAYOUTS:
        done = emu("compare", str(file), str(again), "--layout", layout)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.endswith("\nNo difference.\n")
        assert "predicted" in done.stdout
    done = emu("compare", f"{file}:single", f"{file}:numa-locks")
    (line,) = re.findall(r"^48 CPUs +exec_per_s.*", done.stdout, re.MULTILINE)
    times, low, high = map(float, re.findall(r" (\d+\.\d+) +(\d+\.\d+)\.\.(\d+\.\d+) ", line)[0])
    assert 2 < low <= times <= high
    assert line.endswith("better")
    bad = emu("compare", str(file), f"{file}:sngle")
    assert (bad.returncode, bad.stderr.count("\n")) == (2, 1)


def test_the_text_report_fits_a_mail(real: Run, tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    file.write_bytes(real.to_json())
    done = emu("report", str(file), "--format", "text")
    assert (done.returncode, done.stderr) == (0, "")
    assert max(map(len, done.stdout.splitlines())) <= 72
    assert "\t" not in done.stdout
    for word in (
        "predicted",
        "Predicted for: hygon-12x32",
        "+-95%",
        "outer-inner:shards=6..",
        "$",
    ):
        assert word in done.stdout
    rates = [c.ops_per_s for c in real.cells if (c.rmap, c.cpus) == ("numa-locks", 48)]
    assert f"{statistics.fmean(rates):,.0f}" in done.stdout


def test_designs_look_different_in_a_mail() -> None:
    names = ["single", *(f"outer-inner:shards=64,by=cpu,batch={b}" for b in ("none", "exit+fork"))]
    names.append(f"./{'x' * 90}.c")
    text = mail.text(run_of(*(made_cell(rmap=n, ops_per_s=100.0 + i) for i, n in enumerate(names))))
    lines = text.splitlines()
    assert max(map(len, lines)) <= 72
    for rate, name in enumerate(names[1:3], 101):
        (at,) = (number for number, line in enumerate(lines) if line.strip() == name)
        assert lines[at + 1].split()[0] == f"{rate}"
    assert any(line.split()[:2] == [f"./{'x' * 18}..", "103"] for line in lines)


WORDS = st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=100)


@settings(max_examples=20)
@given(WORDS, st.floats(0, 1e12), st.integers(1, 4096))
def test_no_line_of_a_mail_is_too_long(word: str, rate: float, cpus: int) -> None:
    run = run_of(*(made_cell(rmap=word, ops_per_s=rate, cpus=cpus, repeat=r) for r in range(2)))
    run.cells.append(made_cell(status="failed", error=word * 3))
    run.run.command = ["run", word]
    run.run.host = {"model": word * 2}
    assert max(map(len, mail.text(run).splitlines())) <= 72


def test_a_measured_report_says_so_and_names_the_machine() -> None:
    run = run_of(*(cell(100.0, repeat=r, engine="native") for r in range(2)))
    run.run.host = {"cpus": 8, "model": "Z80", "kernel": "6.1", "governor": "powersave"}
    text = mail.text(run)
    assert "(measured)" in text
    assert "Measured on: 8 CPUs, Z80, Linux 6.1, governor powersave" in text
    assert "The frequency governor is powersave" in " ".join(text.split())
    assert "predicted" not in text.lower()


# ---- the host ----


def test_disturbances() -> None:
    quiet = {"governor": "performance", "turbo": "off", "smt": "off", "load": "0.1", "cpus": 8}
    assert host.disturbances(quiet) == []
    loud = {
        "governor": "powersave (8)",
        "turbo": "on",
        "smt": "on",
        "numa_balancing": "on",
        "transparent_hugepages": "always",
        "clocksource": "hpet",
        "hypervisor": True,
        "load": "2.5",
        "cpus": 8,
    }
    assert len(host.disturbances(loud)) == len(loud) - 1
    assert "the load was 2.5 on 8 CPUs" in host.disturbances(loud)[-1]


def test_the_state_of_a_made_up_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "/sys/devices/system/cpu/smt/active": "1",
        "/sys/devices/system/cpu/intel_pstate/no_turbo": "0",
        "/sys/kernel/mm/transparent_hugepage/enabled": "[always] madvise never",
        "/proc/sys/kernel/numa_balancing": "1",
        "/proc/loadavg": "0.50 0.4 0.3 1/99 1234",
    }
    for number in sorted(package.host.os.sched_getaffinity(0)):  # type: ignore[attr-defined]
        files[f"/sys/devices/system/cpu/cpu{number}/cpufreq/scaling_governor"] = "powersave"
    monkeypatch.setattr(host, "_read", lambda path: files.get(path, ""))
    found = host.state()
    assert found.pop("mitigations", None) is None
    assert found == {
        "governor": "powersave",
        "turbo": "on",
        "smt": "on",
        "transparent_hugepages": "always",
        "numa_balancing": "on",
        "load": "0.50",
    }


def test_native_runs_record_the_host_and_what_else_ran() -> None:
    run = package.run(rmap="single", cpus=1, duration="50ms", repeats=1)
    assert set(host.info()) <= set(run.run.host)
    assert set(host.state()) <= set(run.run.host)
    assert run.cells[0].host.other_cpus >= 0
    virtual = package.run(rmap="single", cpus=1, duration="1ms", engine="virtual")
    assert set(virtual.run.host) == set(host.info())
    shown = emu("system").stdout
    assert all(word in shown for word in ("model", "kernel", "load"))


def test_the_meter_sees_others_but_not_ourselves(monkeypatch: pytest.MonkeyPatch) -> None:
    """In two seconds the host's CPUs were busy for four, 2.5 of which were our own."""
    times = {"busy": (100.0, 7.0), "own": 3.0, "now": 50.0}
    monkeypatch.setattr(host, "_busy_s", lambda: times["busy"])
    monkeypatch.setattr(host, "_own_s", lambda: times["own"])
    monkeypatch.setattr("emu.host.time.monotonic", lambda: times["now"])
    meter = host.LoadMeter.start()
    times.update(busy=(104.0, 8.0), own=5.5, now=52.0)
    assert meter.read() == (0.75, 0.5)
    # /proc/stat counts in ticks, and may not have seen all of ours yet.
    times.update(own=7.5)
    assert meter.read() == (0.0, 0.5)


def test_the_meter_reads_this_host() -> None:
    others, stolen = host.LoadMeter(began_s=0, busy_s=0, stolen_s=0, own_s=0).read()
    assert others > 0
    assert stolen >= 0


# ---- Python ----


def test_the_code_of_the_document_runs() -> None:
    text = (ROOT / "docs" / "python.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert len(blocks) > 5
    pytest.importorskip("pandas")
    # Python 3.14 warns of hdrhistogram's structures.
    warnings = ("-W", "error", "-W", "ignore:Due to '_pack_':DeprecationWarning")
    done = subprocess.run(
        [sys.executable, *warnings, "-c", "".join(blocks)],
        cwd="/",
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "predicted" in done.stdout


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ("opps", "no field 'opps' in a result; there are rmap, mm, "),
        ("latency_ns.exce", "no field 'exce' in a result; there are exec, fork"),
        ("ops.exec", "no field 'exec' in a result; there is 5"),
        ("by_cpu.ops", "no field 'ops' in a result; there is None"),
        ("locks.name", r"no field 'name' in a result; there is \[Lock\("),
    ],
)
def test_a_field_that_is_not_there_is_refused(field: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        run_of(made_cell(by_cpu=None)).array(field)


def test_a_run_in_a_notebook(real: Run) -> None:
    assert html.unescape(real._repr_html_()) == f"<pre>{real}</pre>"
    assert [row["ops"] for row in real.rows()] == real.array("ops").tolist()
