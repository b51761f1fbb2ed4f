# SPDX-License-Identifier: MIT
"""`emu check`: what it finds, what it does not, and that a schedule happens again."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from math import factorial
from pathlib import Path
from typing import Any

import planted
import pytest
from emu_command import children, emu, wait_until

from emu import _core, explore, explore_report
from emu.coordinator import StopFlag

BROKEN = planted.ROOT / "tests" / "broken"

LITMUS = {
    "mp-rlx": {(0, 0), (0, 1), (1, 0), (1, 1)},
    "mp-ra": {(0, 0), (0, 1), (1, 1)},
    "mp-fence": {(0, 0), (0, 1), (1, 1)},
    "mp-late": {(0, 0), (0, 1), (1, 0), (1, 1)},
    "sb-rlx": {(0, 0), (0, 1), (1, 0), (1, 1)},
    "sb-ra": {(0, 0), (0, 1), (1, 0), (1, 1)},
    "sb-sc": {(0, 1), (1, 0), (1, 1)},
    "sb-fence": {(0, 1), (1, 0), (1, 1)},
    "corr": {(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2)},
    "rcu-publish": {(0, 0), (42, 0)},
    "seqlock": {(0, 0), (1, 0), (2, 0)},
}
"""All that C11 allows, as two registers (seqlock: 0 for a reader that gave up, else 1 + value)."""

SEQUENTIAL = {
    "mp-rlx": {(0, 0), (0, 1), (1, 1)},
    "sb-rlx": {(0, 1), (1, 0), (1, 1)},
    "corr": LITMUS["corr"],
}


def run(
    scenario: str, design: str = "single", seconds: float = 30.0, **options: Any
) -> explore.Result:
    with ExitStack() as cleanup, StopFlag() as stop:
        found = explore.find_scenarios(scenario, cleanup)
        (unit,) = explore.make_units([design], found, cleanup)
        unit = replace(unit, shorten_seconds=0.3, **options)
        (result,) = explore.check([unit], seconds=seconds, stop=stop, jobs=1)
    return result


def outcomes(result: explore.Result) -> set[tuple[int, ...]]:
    assert result.coverage == "exhaustive"
    assert all(not any(values[2:]) for values in result.outcomes)
    return {values[:2] for values in result.outcomes}


@pytest.mark.parametrize("name", LITMUS)
def test_a_search_of_all_orders_finds_what_c11_allows(name: str) -> None:
    result = run(name, policy="exhaustive")
    assert result.finding is None
    assert outcomes(result) == LITMUS[name]
    assert result.memory == "C11"


LEFT_OUT = {
    "mp-volatile": {(1, 0)},
    "2+2w": {(1, 1)},
}
"""What C11, or a kernel's READ_ONCE(), allows too and docs/checking.md says is not tried."""


@pytest.mark.parametrize(("name", "missing"), LEFT_OUT.items())
def test_what_is_never_tried_is_what_the_page_says(
    name: str, missing: set[tuple[int, ...]]
) -> None:
    values = {(1, 1), (1, 2), (2, 1), (2, 2)} if name == "2+2w" else LITMUS["mp-rlx"]
    assert outcomes(run(name, policy="exhaustive")) == values - missing


@pytest.mark.parametrize("name", SEQUENTIAL)
def test_or_sequential_consistency(name: str) -> None:
    result = run(name, policy="exhaustive", sequential=True)
    assert outcomes(result) == SEQUENTIAL[name]
    assert result.memory == "SC"


def test_independent_reads_of_independent_writes() -> None:
    """Two readers may disagree about the order of two writers; but not by seq_cst."""
    disagree = (1, 0, 1, 0)
    relaxed = run("iriw-ra", policy="exhaustive").outcomes
    strict = run("iriw-sc", policy="exhaustive").outcomes
    assert disagree in {values[:4] for values in relaxed}
    assert len(relaxed) == 16
    assert {values[:4] for values in strict} == {v[:4] for v in relaxed} - {disagree}


@pytest.mark.parametrize("name", ["mp-rlx", "mp-fence", "sb-ra", "sb-fence", "corr", "iriw-ra"])
@pytest.mark.parametrize("sequential", [False, True])
def test_chance_comes_to_what_the_search_finds(name: str, sequential: bool) -> None:
    """Leaving out equivalent orders loses nothing, and makes nothing up."""
    everything = run(name, policy="exhaustive", sequential=sequential).outcomes
    some = run(name, policy="random", schedules=30_000, sequential=sequential).outcomes
    assert set(some) == set(everything)


@pytest.mark.parametrize(("cpus", "times"), [(2, 2), (3, 2), (4, 1), (2, 3), (4, 2)])
def test_each_equivalence_class_is_met_once(cpus: int, times: int) -> None:
    result = run(f"turns-{cpus}x{times}", policy="exhaustive")
    assert result.coverage == "exhaustive"
    assert result.schedules == factorial(cpus * times) // factorial(times) ** cpus


@pytest.mark.parametrize(
    "name",
    [
        "dekker-fence",
        "dekker-sc",
        "peterson-sc",
        "spinlock",
        "mcs",
        "mp-data-ra",
        "mp-sequence-rmw",
    ],
)
def test_good_algorithms_pass_in_all_orders(name: str) -> None:
    result = run(name, policy="exhaustive")
    assert result.finding is None
    assert result.coverage == "exhaustive"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("mp-data-rlx", "data race"),
        ("mp-sequence", "data race"),
        ("dekker-rlx", "data race"),
        ("peterson-ra", "data race"),
        ("spinlock-rlx", "data race"),
        ("seqlock-rlx", "assertion"),
    ],
)
@pytest.mark.parametrize("policy", ["random", "pct", "exhaustive"])
def test_bad_ones_do_not(name: str, kind: str, policy: str) -> None:
    result = run(name, policy=policy, schedules=5000)
    assert result.finding is not None
    assert result.finding.kind == kind


def test_dekker_without_fences_is_right_under_sequential_consistency() -> None:
    assert run("dekker-rlx", policy="exhaustive", sequential=True).finding is None


def test_a_bound_on_preemptions_is_told() -> None:
    result = run("turns-3x2", policy="exhaustive", preemptions=1)
    assert result.coverage == "bounded"
    assert result.schedules > 6
    everything = run("sb-rlx", policy="exhaustive", preemptions=8)
    assert outcomes(everything) == LITMUS["sb-rlx"]


def test_no_time_left_is_told() -> None:
    result = run("rwsem-writers", policy="exhaustive", seconds=0.5)
    assert result.coverage == "bounded"
    assert result.finding is None


@pytest.mark.parametrize("bug", planted.BUGS, ids=lambda bug: bug.name)
def test_planted_bugs_are_found_and_happen_again(bug: planted.Bug, tmp_path: Path) -> None:
    result, again = planted.hunt(bug, tmp_path, "mixed", seconds=120.0, schedules=100_000)
    finding = result.finding
    assert finding is not None
    assert finding.kind in bug.kinds
    if finding.kind == "lock order":
        return
    assert again is not None
    assert again.finding is not None
    assert (again.finding.kind, again.finding.text) == (finding.kind, finding.text)
    assert again.schedules == 1
    assert len(explore_report.explain(result)) > 5


@pytest.mark.parametrize(
    ("kind", "path", "schedules"),
    [
        *(("rmap", path, 4000) for path in sorted(BROKEN.glob("*.c"))),
        *(("mm", path, 100) for path in sorted((BROKEN / "mm").glob("*.c"))),
    ],
    ids=lambda part: part.stem if isinstance(part, Path) else str(part),
)
def test_designs_that_each_break_a_rule_are_found_too(
    kind: str, path: Path, schedules: int
) -> None:
    # Without batching no scenario links several VMAs at once.
    design = f"{path}:batch=exit+fork" if path.stem == "first-of-batch" else str(path)
    with ExitStack() as cleanup, StopFlag() as stop:
        wanted = [each for each in explore.scenarios() if each.kind == kind]
        units = explore.make_units([design], wanted, cleanup)
        units = [replace(unit, schedules=schedules, shorten_seconds=0.1) for unit in units]
        # The first finding ends the search: what else the design breaks is not asked.
        assert any(r.finding for r in explore.check(units, seconds=120.0, stop=stop))


def test_there_are_enough_of_them() -> None:
    assert len({bug.name for bug in planted.BUGS}) >= 70
    assert len({bug.name for bug in planted.MM}) >= 20
    broken = {bug.mm or Path(bug.base).stem for bug in planted.MM}
    assert broken >= set(_core.design_names("mm")) - {"pt-extents-percpu"}


@pytest.mark.parametrize(
    ("kind", "design"),
    [
        *(("rmap", design) for design in explore.built_in_designs("rmap")),
        *(("mm", design) for design in explore.built_in_designs("mm")),
    ],
)
def test_nothing_is_found_in_what_is_built_in(kind: str, design: str) -> None:
    with ExitStack() as cleanup, StopFlag() as stop:
        wanted = [each for each in explore.scenarios() if each.kind == kind]
        units = explore.make_units([design], wanted, cleanup)
        units = [replace(unit, schedules=400) for unit in units]
        results = list(explore.check(units, seconds=120.0, stop=stop))
    assert len(results) == len(wanted)
    assert [result.finding.text for result in results if result.finding] == []
    assert all(result.schedules == 400 for result in results)


def test_nothing_is_found_in_the_locks() -> None:
    with ExitStack() as cleanup, StopFlag() as stop:
        wanted = [each for each in explore.scenarios() if each.kind == "lock"]
        units = explore.make_units(["single"], wanted, cleanup)
        units = [replace(unit, schedules=4000) for unit in units]
        results = list(explore.check(units, seconds=120.0, stop=stop))
    assert [result.finding.text for result in results if result.finding] == []


@pytest.mark.parametrize("policy", ["random", "pct", "mixed"])
def test_a_seed_gives_one_result(policy: str, tmp_path: Path) -> None:
    bug = next(bug for bug in planted.BUGS if bug.name == "rwsem: reader wakes without acquire")
    first, second = (planted.hunt(bug, tmp_path, policy, 60.0)[0] for _ in range(2))
    assert first.finding is not None
    assert second.finding is not None
    assert (first.schedules, first.finding.text) == (second.schedules, second.finding.text)


def test_a_finding_says_how_it_came_about(tmp_path: Path) -> None:
    name = "walker does not look again after it waited"
    bug = next(bug for bug in planted.BUGS if bug.name == name)
    result, _ = planted.hunt(bug, tmp_path, "mixed", 60.0)
    finding = result.finding
    assert finding is not None
    assert "misses vma" in finding.text or "meets" in finding.text
    text = explore_report.explain(result, width=300)
    heading = ["step", "CPU0", "|", "CPU1", "|", "CPU2", "|", "CPU3"]
    assert any(line.split() == heading for line in text)
    assert sum(line.startswith("*") for line in text) == 1
    assert any("walk of libc.so.6 begins" in line for line in text)
    assert finding.critical is not None
    assert any(event.decisions >= finding.critical for event in finding.events)
    rows = json.loads(explore_report.perfetto(finding))["traceEvents"]
    assert {row["tid"] for row in rows if row["name"] != "process_name"} == {0, 1, 2, 3}
    assert {row["pid"] for row in rows} == {0}


def test_exit_status_and_replay_on_the_command_line() -> None:
    found = emu("check", "--scenario", "mp-data-rlx", "--schedules", "100")
    assert found.returncode == 1
    assert "data race" in found.stdout
    command = next(line for line in found.stdout.splitlines() if "again:" in line)
    words = command.partition("emu ")[2].split()
    again = emu(*words)
    assert again.returncode == 1
    assert "after 1 schedule (replay" in again.stdout
    assert again.stderr == ""
    with_design = emu("check", "numa-locks", *words[1:])
    assert with_design.returncode == 1
    assert "after 1 schedule (replay" in with_design.stdout
    assert with_design.stderr == (
        "emu: numa-locks: plays no part here; no design of kind rmap is run by mp-data-rlx\n"
    )
    clean = emu("check", "single", "--scenario", "split-walk", "--schedules", "50")
    assert clean.returncode == 0
    assert "nothing found" in clean.stdout
    everything = emu("check", "--scenario", "sb-sc", "--policy", "exhaustive")
    assert "sb-sc: 3 outcomes: 0 1, 1 0, 1 1" in everything.stdout
    assert "exhaustive, C11" in everything.stdout


def test_a_trace_for_perfetto(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    done = emu("check", "--scenario", "spinlock-rlx", "--schedules", "100", "--trace", str(path))
    assert done.returncode == 1
    assert json.loads(path.read_text())["traceEvents"]


def test_a_users_design(tmp_path: Path) -> None:
    path = tmp_path / "mine.c"
    path.write_text((planted.WORKERS / "designs" / "rmap" / "skeleton.c").read_text())
    done = emu("check", str(path), "--scenario", "split-walk,loader", "--schedules", "200")
    assert (done.returncode, done.stderr) == (0, "")


def test_what_goes_wrong_in_setup_is_found_too(tmp_path: Path) -> None:
    """A design that keeps its lock: the next call of setup() is a finding, and the rest goes on."""
    path, trace = tmp_path / "mine.c", tmp_path / "trace.json"
    skeleton = (planted.WORKERS / "designs" / "rmap" / "skeleton.c").read_text()
    path.write_text(skeleton.replace("\tup_write(&s->rwsem);\n", ""))
    scenarios = ("--scenario", "fork-truncate,last-mapping", "--schedules", "5")
    done = emu("check", str(path), *scenarios, "--trace", str(trace))
    assert (done.returncode, done.stderr) == (1, "")
    assert "scenario fork-truncate, after 0 schedules" in done.stdout
    assert "setup() of the scenario: rwsem.c:" in done.stdout
    assert done.stdout.count("  again: ") == 1
    assert "2 scenarios, 1 schedule: 2 found" in done.stdout
    assert "traceEvents" in json.loads(trace.read_text())
    program = emu("check", str(path), "--scenario", "random:2", "--schedules", "5", timeout_s=120)
    assert (program.returncode, program.stderr) == (1, "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nosuch", "--suite", "explore"), "no design 'nosuch'"),
        (("spf", "--scenario", "split-walk"), "split-walk is a scenario of rmap designs"),
        (("single", "--scenario", "split-wlk"), "split-walk"),
        (("single", "--policy", "chance"), "random"),
        (("single", "--memory", "tso"), "c11"),
        (("--replay", "a"), "--scenario"),
        (("single", "--scenario", "sb-sc", "--replay", "a!"), "a schedule is made of"),
        (("single", "--scenario", "./nosuch.c"), "there is no file"),
        (("single", "--scenario", "program:0f/0z"), "from 'z' on"),
        (("single", "--scenario", "random:0"), "1 to 1000"),
        (("single", "--time", "fast"), "a number with its unit"),
        (("single", "--time", "1us"), "--time 1us: must be from 1ms"),
        (("single", "--suite", "explore", "--engine", "native"), "--engine does not belong"),
        (("single", "--rule", "walk", "--time", "9s"), "--rule does not belong"),
        (("spf", "--mm", "pt-extents"), "--mm pt-extents: is what runs below rmap designs"),
        (("--mm", "spf", "--scenario", "fault-munmap"), "--mm spf: is what runs below rmap"),
        (("--mm", "spf", "--scenario", "sb-sc"), "--mm spf: is what runs below rmap designs"),
    ],
)
def test_wrong_input_is_one_line(arguments: tuple[str, ...], message: str) -> None:
    done = emu("check", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""


def test_the_mm_design_that_is_checked_may_be_named_as_mm_too() -> None:
    done = emu("check", "spf", "--mm", "spf", "--scenario", "fault-munmap", "--schedules", "5")
    assert (done.returncode, done.stderr) == (0, "")


def test_scenarios_are_listed() -> None:
    done = emu("check", "--scenario", "list")
    assert done.returncode == 0
    assert {each.name for each in explore.scenarios()} <= set(done.stdout.split())


def explores(pid: int) -> bool:
    """Is the machine of the explorer loaded there?"""
    try:
        return "libemu-explore" in Path(f"/proc/{pid}/maps").read_text()
    except OSError:  # gone
        return False


@pytest.mark.usefixtures("nothing_left")
def test_an_interrupt_ends_it_at_once() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "emu", "check", "single", "--suite", "explore", "--time", "60s"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(lambda: any(map(explores, children(process.pid))))
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Traceback" not in stderr


def test_programs_by_chance_are_shrunk_when_they_fail(tmp_path: Path) -> None:
    name = "lock dropped between prepare and complete"
    bug = next(bug for bug in planted.BUGS if bug.name == name)
    path = planted.source(bug, tmp_path)
    # Not for a time, in which a fast host meets one by the way that is too rare to be shrunk.
    few = ("--seed", "5", "--schedules", "1000")
    done = emu("check", str(path), "--scenario", "random:4", *few)
    assert done.returncode == 1
    commands = [line for line in done.stdout.splitlines() if "again:" in line]
    again = emu(*commands[0].partition("emu ")[2].split())
    assert again.returncode == 1
    program = commands[0].partition("program:")[2].split()[0]
    # A change and whoever meets it.
    assert program.count("/") == 1


def test_a_program_by_chance_depends_on_its_seed_alone() -> None:
    assert explore.program(7) == explore.program(7)
    assert len({explore.program(seed) for seed in range(50)}) > 40
    smaller = list(explore.smaller_programs("0f,u1.1/0w0.9"))
    assert smaller == ["0w0.9", "0f,u1.1", "0u1.1/0w0.9", "0f/0w0.9"]


def test_a_scenario_of_ones_own_may_crash(tmp_path: Path) -> None:
    path = tmp_path / "crash.c"
    path.write_text(
        "#include <emu/scenario.h>\n"
        "static void cpu(uint32_t n) { if (n) *(volatile int *)8 = 1; }\n"
        "EMU_EXPORT const struct emu_scenario emu_scenarios[] = {\n"
        '{ .name = "crash", .nr_cpus = 2, .kind = EMU_SCENARIO_LOCK, .cpu = cpu }, { 0 } };\n'
    )
    result = run(str(path), schedules=10)
    assert result.finding is not None
    assert result.finding.kind == "fault"
    assert "wild pointer" in result.finding.text


def test_the_core_and_python_agree_on_names() -> None:
    assert set(explore.KINDS) >= {"rule", "data race", "deadlock", "memory", "leak"}
    assert "explore" not in _core.design_names("rmap")


def test_a_mapping_of_other_pages_of_the_file_over_one_is_no_page_met_twice() -> None:
    """Until the old mapping is unlinked both are there, at one address."""
    done = emu("check", "single", "--scenario", "program:1m2.2.5/1w2.4", "--schedules", "500")
    assert done.returncode == 0, done.stdout
