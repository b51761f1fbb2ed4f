# SPDX-License-Identifier: MIT
"""The conformance suite: good designs pass all rules, broken ones fail the one they break."""

from __future__ import annotations

import html
import json
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from conftest import left_behind
from emu_command import children, start, wait_until
from emu_command import emu as run_emu

import emu
from emu import _core, checking, cli_check, conformance
from emu.conformance import Rule, RuleResult
from emu.coordinator import Interrupted, StopFlag
from emu.design import write_skeleton
from emu.errors import InputError

FOLDER = Path(__file__).parent / "broken"
BROKEN = {"rmap": sorted(FOLDER.glob("*.c")), "mm": sorted((FOLDER / "mm").glob("*.c"))}
ALL_BROKEN = [(kind, source) for kind, sources in BROKEN.items() for source in sources]
QUICK = ("faults-unlocked", "leaks-processes", "locks-late")
"""mm designs that few runs with real processes show."""
STOP = StopFlag()

# What the suite has to say about each on the virtual engine, where a seed is a seed.
SEEN = {
    "argument-order": r"deadlock: CPU \d+ waits in prepare of \S+ \(.*rwsem_down_write_slow",
    "asks-one-tree": r"CPU \d+: mapped\(\) of \S+ says no while at least one process maps it",
    "child-elsewhere": r"CPU \d+: a walk of \S+ met pages? \S+ of process \d+, forked by CPU \d+, "
    r"before the same of its parent, process \d+",
    "child-first": r"CPU \d+: a walk of \S+ met pages? \S+ of process \d+, forked by CPU \d+, "
    r"before the same of its parent, process \d+",
    "first-of-batch": r"CPU \d+: a walk of pages? \S+ of \S+ missed the VMA of "
    r"pages? \S+ of process \d+",
    "keeps-removed": r"CPU \d+: a walk of \S+ met the VMA of pages? \S+ of process \d+, which was "
    r"unlinked before it began|does not end",
    "leaks-files": r"the arena leaks \d+ objects",
    "leaks-vmas": r"the arena leaks \d+ objects",
    "locks-twice": r"BUG: CPU \d+ at \d+ ns, seed \d+: .*holds the lock already",
    "one-tree-at-a-time": r"CPU \d+: a walk of \S+ met page \d of process \d+ \d times \(an? ",
    "skips-last-tree": r"CPU \d+: a (trylock )?walk of pages? \S+ of \S+ missed the VMA of pages? "
    r"\S+ of process \d+, linked by CPU (12|13|14|15)",
    "trusts-empty-tree": r"CPU \d+: mapped\(\) of \S+ says no while at least one process maps it",
    "trylock-waits": r"deadlock: CPU \d+ waits in trylock walk of \S+ \(.*rwsem_down_read_slow",
    "unlocked-change": r"CPU \d+: a walk of \S+ met page \d of process \d+ \d times \(an? ",
    "walks-what-it-got": r"CPU \d+: a trylock walk of pages? \S+ of \S+ missed the VMA of",
    "faults-unlocked": r"CPU \d+: (a mixture of two mappings|after a fault for \w+ the page table|"
    r"a fault in a region comes to -\d)",
    "forks-unlocked": r"CPU \d+: of a mapping of CPU \d+ the child has one half|wild pointer",
    "frees-nodes-early": r"CPU \d+: a fault in a mapping (of page|that nobody)|wild pointer",
    "leaks-processes": r"the arena leaks \d+ objects",
    "locks-late": r"CPU \d+: mmap gives 0x\w+, which CPU \d+ was given and has not given back",
    "old-copy": r"CPU \d+: after munmap has returned the page table still has page \d+ of file \d",
    "sleeps-and-trusts": r"CPU \d+: after munmap has returned the page table still has page \d+ of|"
    r"PTEs from 0x\w+ on are left",
    "old-flags": r"CPU \d+: after mprotect has forbidden writing the page table still allows it",
}
FIRST_SEED = {"skips-last-tree": 2}
"""Of seed 1 the first VMA that is missed is one that a CPU of another node has split off or forked:
it is in the last tree too, but not linked by a CPU of the last node."""


def breaks(source: Path) -> str:
    """The rule that the file's header says it breaks."""
    found = re.search(r"^ \* breaks: ([\w-]+)$", source.read_text(), flags=re.MULTILINE)
    assert found
    return found[1]


@pytest.fixture(scope="module")
def rules_of() -> dict[str, list[Rule]]:
    return {kind: conformance.rules(kind, STOP) for kind in BROKEN}


@pytest.fixture(scope="module")
def rules(rules_of: dict[str, list[Rule]]) -> list[Rule]:
    """Of rmap designs."""
    return rules_of["rmap"]


def run_rules(
    design: str, rules: list[Rule], engine: str, seeds: int, kind: str = "rmap", first: int = 1
) -> list[RuleResult]:
    designs, chosen = [(kind, design)], {kind: rules}
    return list(
        conformance.run(designs, chosen, engines=[engine], seeds=seeds, first_seed=first, stop=STOP)
    )


def by_name(rules: list[Rule], *names: str) -> list[Rule]:
    return [rule for rule in rules if rule.name in names]


def test_there_are_seven_rules_and_each_is_broken_by_a_design(
    rules_of: dict[str, list[Rule]],
) -> None:
    names = {kind: [rule.name for rule in rules] for kind, rules in rules_of.items()}
    assert names["rmap"] == [
        *("walk", "fork-order", "atomic", "mapped", "trylock", "deadlock", "memory")
    ]
    assert names["mm"] == ["change", "munmap", "mprotect", "addresses", "fork", "rcu", "memory"]
    for kind, rules in rules_of.items():
        assert [rule.number for rule in rules] == list(range(1, 8))
        assert {breaks(source) for source in BROKEN[kind]} == set(names[kind])
    assert {source.stem for _, source in ALL_BROKEN} == set(SEEN)


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize(("kind", "source"), ALL_BROKEN, ids=lambda part: Path(part).stem)
def test_a_broken_design_fails_the_rule_that_it_breaks(
    kind: str, source: Path, rules_of: dict[str, list[Rule]]
) -> None:
    chosen = {kind: by_name(rules_of[kind], breaks(source))}
    first = FIRST_SEED.get(source.stem, 1)
    [result] = run_rules(str(source), chosen[kind], "virtual", 10, kind, first)
    assert result.status == "failed"
    assert re.search(SEEN[source.stem], result.detail), result.detail
    assert result.seed == first + result.seeds - 1
    assert result.command == (
        f"emu check {source} --suite conformance --engine virtual --rule {breaks(source)} "
        f"--seed {result.seed} --seeds 1"
    )
    # The command shows it again.
    [again] = list(
        conformance.run(
            conformance.choose_designs([str(source)], "virtual"),
            chosen,
            engines=["virtual"],
            seeds=1,
            first_seed=result.seed or 0,
            stop=STOP,
        )
    )
    assert again.detail == result.detail


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize(
    ("kind", "source"),
    [(kind, source) for kind, source in ALL_BROKEN if kind == "rmap" or source.stem in QUICK],
    ids=lambda part: Path(part).stem,
)
def test_and_in_real_processes_too(
    kind: str, source: Path, rules_of: dict[str, list[Rule]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conformance, "_HANG_S", 2.0)
    chosen = by_name(rules_of[kind], breaks(source))
    [result] = run_rules(str(source), chosen, "native", 100, kind)
    assert result.status == "failed"
    assert re.search(r"CPU \d+|arena leaks", result.detail), result.detail
    if source.stem in ("trylock-waits", "argument-order"):
        assert re.search(r"CPU \d+ hangs in [\w ]+ of \S+", result.detail)


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("engine", conformance.ENGINES)
@pytest.mark.parametrize("design", _core.design_names("rmap"))
def test_a_built_in_design_keeps_every_rule(design: str, engine: str, rules: list[Rule]) -> None:
    results = run_rules(design, rules, engine, 2)
    assert [(r.rule, r.detail) for r in results if r.status == "failed"] == []
    assert [r.rule for r in results] == [rule.name for rule in rules]
    walks = [r for r in results if r.rule in ("walk", "fork-order", "atomic", "trylock")]
    assert {r.status for r in walks} == {"declared" if design == "exclude" else "ok"}
    assert all(r.counts.walks > 0 and r.counts.vmas_met > 0 for r in walks)
    by_rule = {r.rule: r.counts for r in results}
    assert by_rule["mapped"].answers > 100
    assert by_rule["deadlock"].changes > 100
    costs = by_rule["memory"]
    assert costs.cold_file_bytes and costs.used_file_bytes is not None
    assert 0 < costs.cold_file_bytes <= costs.used_file_bytes
    lines = by_rule["mapped"].lines_per_answer
    assert lines == pytest.approx(0, abs=0.05) if engine == "virtual" else lines is None


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("design", _core.design_names("mm"))
def test_a_built_in_mm_design_keeps_every_rule(
    design: str, rules_of: dict[str, list[Rule]]
) -> None:
    rules = rules_of["mm"]
    results = run_rules(design, rules, "virtual", 1, "mm")
    # Sanitizers see all rules in real processes (tests/c/test_conformance.c).
    results += run_rules(design, by_name(rules, "change"), "native", 1, "mm")
    assert [(r.rule, r.detail) for r in results if r.status != "ok"] == []
    assert [r.rule for r in results] == [*(rule.name for rule in rules), "change"]
    for result in results:
        if result.rule != "memory":
            assert result.counts.faults > 200
    by_rule = {r.rule: r.counts for r in results[: len(rules)]}
    for rule in ("change", "munmap", "mprotect"):
        assert by_rule[rule].faults_refused > 200
        assert by_rule[rule].faults_undecided > 0
    assert by_rule["addresses"].addresses > 200
    assert by_rule["fork"].forks > 50
    assert by_rule["memory"].mm_bytes is not None
    assert by_rule["memory"].mm_bytes > 0


def test_a_design_that_excludes_all_files_declares_it(rules: list[Rule]) -> None:
    results = run_rules("exclude:files=all", rules, "virtual", 1)
    statuses = {r.rule: r.status for r in results}
    assert statuses["walk"] == statuses["trylock"] == "declared"
    assert statuses["mapped"] == statuses["memory"] == "ok"
    assert "data and libpair.so.1" in results[0].detail


LOCKS_TO_ANSWER = """/* SPDX-License-Identifier: MIT */
#define emu_rmap_ops good_rmap_ops
#include "{single}"
#include "{derive}"
static bool locking_mapped(struct address_space *mapping)
{{
	return single_walk(mapping, 0, UINT64_MAX, false, rmap_found, NULL);
}}
DERIVED(single, "locks-to-answer", .mapped = locking_mapped);
"""


def test_lines_that_mapped_writes_are_counted(tmp_path: Path, rules: list[Rule]) -> None:
    """It keeps the rule, and the count tells that every answer writes to the lock."""
    root = Path(__file__).parents[1]
    single = root / "workers" / "designs" / "rmap" / "single.c"
    source = tmp_path / "mine.c"
    source.write_text(
        LOCKS_TO_ANSWER.format(single=single, derive=root / "tests" / "broken" / "derive.h")
    )
    [result] = run_rules(str(source), by_name(rules, "mapped"), "virtual", 1)
    assert result.status == "ok"
    assert result.counts.lines_per_answer is not None
    assert result.counts.lines_per_answer > 1
    assert 'a "yes" makes' in result.detail


def test_a_seed_is_one_interleaving(rules: list[Rule]) -> None:
    chosen = by_name(rules, "walk")
    runs = [
        list(
            conformance.run(
                [("rmap", "single")],
                {"rmap": chosen},
                engines=["virtual"],
                seeds=1,
                first_seed=n,
                stop=STOP,
            )
        )
        for n in (1, 1, 2, 3)
    ]
    counts = [result.counts for [result] in runs]
    assert counts[0] == counts[1]
    assert len({(c.walks, c.vmas_met, c.changes) for c in counts}) == 3


CRASHES = """/* SPDX-License-Identifier: MIT */
#define emu_rmap_ops good_rmap_ops
#include "{single}"
#include "{derive}"
static void crashing(struct address_space *mapping, struct vm_area_struct **vmas,
			struct vm_area_struct **prevs, uint32_t n)
{{
	single_insert(mapping, vmas, prevs, n);
	{statement}
}}
DERIVED(single, "crashes", .insert = crashing);
"""


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("engine", conformance.ENGINES)
@pytest.mark.parametrize(
    ("statement", "seen"),
    [
        (
            "*(int *)8 = 0;",
            {"native": "CPU .* was killed by SIGSEGV in insert of", "virtual": "wild"},
        ),
        ("__builtin_trap();", {"native": "CPU .* was killed by SIGILL", "virtual": "the run died"}),
        (
            "for (;;) READ_ONCE(vmas[0]->vm_start);",
            {"native": "CPU .* hangs in insert of", "virtual": "event limit: .* CPU"},
        ),
    ],
    ids=["bad pointer", "trap", "endless loop"],
)
def test_a_design_that_crashes_or_spins_fails_the_rule(
    tmp_path: Path,
    rules: list[Rule],
    monkeypatch: pytest.MonkeyPatch,
    engine: str,
    statement: str,
    seen: dict[str, str],
) -> None:
    monkeypatch.setattr(conformance, "_HANG_S", 1.0)
    monkeypatch.setattr(conformance, "_EVENT_LIMIT", 3_000_000)
    root = Path(__file__).parents[1]
    source = tmp_path / "mine.c"
    source.write_text(
        CRASHES.format(
            single=root / "workers" / "designs" / "rmap" / "single.c",
            derive=root / "tests" / "broken" / "derive.h",
            statement=statement,
        )
    )
    [result] = run_rules(str(source), by_name(rules, "walk"), engine, 2)
    assert result.status == "failed"
    assert re.search(seen[engine], result.detail), result.detail
    assert result.seed == 1


def test_the_command_prints_a_line_a_rule_and_fails() -> None:
    broken = Path(__file__).parent / "broken" / "skips-last-tree.c"
    arguments = ("--engine", "virtual", "--seeds", "2", "--rule", "walk,memory")
    done = run_emu("check", "single,exclude", str(broken), *arguments)
    assert done.returncode == 1, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 6
    assert re.match(r"single +virtual  1 walk +ok +2 seeds: \d+ walks met \d+ VMAs", lines[0])
    assert re.match(r"single +virtual  7 memory +ok +2 seeds: \d+ bytes per cold file", lines[1])
    assert re.match(r"exclude +virtual  1 walk +declared +2 seeds: -EOPNOTSUPP", lines[2])
    assert re.match(rf"{broken} +virtual  1 walk +FAILED +seed \d: CPU \d+: ", lines[4])
    command = lines[4].rpartition("; again: emu ")[2].split()
    again = run_emu(*command)
    assert again.returncode == 1
    assert again.stdout == lines[4] + "\n"


def test_the_command_writes_json(tmp_path: Path) -> None:
    arguments = ("--engine", "virtual", "--seeds", "1", "--rule", "7", "--json")
    done = run_emu("check", "btree", *arguments, "-")
    assert done.returncode == 0
    report = json.loads(done.stdout)
    assert report["suite"] == "conformance"
    [result] = report["results"]
    assert (result["design"], result["rule"], result["status"]) == ("btree", "memory", "ok")
    assert result["counts"]["vma_bytes"] > 0
    done = run_emu("check", "btree", *arguments, str(tmp_path / "out.json"))
    assert json.loads((tmp_path / "out.json").read_text()) == report
    assert done.stdout.startswith("btree")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nosuch",), "no design 'nosuch'"),
        (("spf", "--rule", "walk"), "no rule 'walk'"),
        (
            ("single", "--rule", "fork"),
            "no rule 'fork' (did you mean 'fork-order'?); there are: walk, ",
        ),
        (("single", "--suite", "conform"), "no suite 'conform' (did you mean 'conformance'?)"),
        (("single", "--engine", "real"), "no engine 'real'"),
        (("cpu-locks:cpus=0",), "cpus must be a number from 1"),
        (("./nosuch.c",), "there is no file nosuch.c"),
        (("single", "--json", "/nowhere/x"), "--json /nowhere/x: no file can be written there"),
        (("--scenario", "list", "--trace", "/nowhere/x"), "--trace /nowhere/x: no file can be"),
    ],
)
def test_bad_input_is_one_line(arguments: tuple[str, ...], message: str) -> None:
    done = run_emu("check", *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert message in done.stderr


def test_a_rule_may_be_named_by_number(rules_of: dict[str, list[Rule]]) -> None:
    chosen = conformance.choose_rules(rules_of, ["5", "walk", "memory"])
    assert [rule.name for rule in chosen["rmap"]] == ["trylock", "walk", "memory"]
    assert [rule.name for rule in chosen["mm"]] == ["fork", "memory"]
    with pytest.raises(InputError, match="no rule '8'"):
        conformance.choose_rules(rules_of, ["8"])


def test_all_is_every_built_in_design(tmp_path: Path) -> None:
    everything = [(kind, name) for kind in ("rmap", "mm") for name in _core.design_names(kind)]
    assert conformance.choose_designs(["all", "single"], "native") == everything
    for kind in ("rmap", "mm"):
        write_skeleton(kind, tmp_path / f"{kind}.c")
    chosen = conformance.choose_designs(
        [f"outer-inner:shards=4,by=mm,spf,{tmp_path}/mm.c", f"{tmp_path}/rmap.c:spin=0"],
        "native",
    )
    assert chosen == [
        ("rmap", "outer-inner:shards=4,by=mm"),
        ("mm", "spf"),
        ("mm", f"{tmp_path}/mm.c"),
        ("rmap", f"{tmp_path}/rmap.c:spin=0"),
    ]


def test_a_file_that_is_no_design_is_told(tmp_path: Path) -> None:
    path = tmp_path / "mine.c"
    path.write_text("int x;\n")
    with pytest.raises(InputError, match="defines no `const struct rmap_ops emu_rmap_ops` or `con"):
        conformance.choose_designs([str(path)], "native")


def test_a_design_alone_goes_through_both_suites(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rules first, then orders; and a breach in either is the exit status."""
    write_skeleton("mm", tmp_path / "mine.c")
    begun: list[str] = []

    def rules(checked: checking.Checked, designs: list[str], *_: object) -> None:
        begun.append(f"conformance {designs}")
        checked.rules.append(
            RuleResult("x", "virtual", "walk", 1, "", "failed", 1, "", conformance.Counts())
        )

    def orders(_: checking.Checked, designs: list[str], how: object, *__: object) -> None:
        begun.append(f"explore {designs} {how.time}")  # type: ignore[attr-defined]

    monkeypatch.setattr(checking, "_conformance", rules)
    monkeypatch.setattr(checking, "_explore", orders)
    with pytest.raises(typer.Exit) as ended:
        cli_check.check([str(tmp_path / "mine.c")])
    assert ended.value.exit_code == 1
    assert begun == [f"conformance ['{tmp_path}/mine.c']", f"explore ['{tmp_path}/mine.c'] 60s"]


# ---- from Python ----


def test_emu_check_goes_through_the_rules_and_prints_as_the_command() -> None:
    seen: list[str] = []
    checked = emu.check(
        ["single", "spf"], engine="virtual", seeds=1, rule=["walk", "munmap"], on_line=seen.append
    )
    assert checked.ok
    assert checked.suites == ("conformance",)
    assert [(each.design, each.rule) for each in checked.rules] == [
        ("single", "walk"),
        ("spf", "munmap"),
    ]
    assert str(checked).splitlines() == seen
    words = ["check", "single,spf", "--engine", "virtual", "--seeds", "1", "--rule", "walk,munmap"]
    assert run_emu(*words).stdout == f"{checked}\n"
    assert checked.array("rules.status").tolist() == ["ok", "ok"]
    assert checked.array("rules.counts.walks")[0] > 0
    assert checked.array("scenarios.schedules").shape == (0,)
    with pytest.raises(InputError, match="no field 'color' in a RuleResult"):
        checked.array("rules.color")
    with pytest.raises(InputError, match=r"write it like rules\.seeds"):
        checked.array("seeds")


def test_emu_check_finds_what_is_broken_and_shows_how() -> None:
    broken = FOLDER / "unlocked-change.c"
    checked = emu.check(broken, scenario="split-walk", schedules=200, time="10s")
    assert not checked.ok
    assert checked.failed == checked.scenarios
    [found] = checked.scenarios
    assert found.finding
    text = str(checked)
    assert text.splitlines()[1].startswith(f"{found.finding.kind}: {broken}, scenario split-walk")
    assert f"again: {found.finding.command}" in text
    assert text.endswith("1 schedule: 1 found")
    assert html.unescape(checked._repr_html_()) == f"<pre>{text}</pre>"
    assert checked.array("scenarios.unit.design").tolist() == [str(broken)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"designs": "singel"}, "no design 'singel'"),
        ({"designs": "single", "seeds": 0}, "--seeds 0: must be at least 1"),
        ({"designs": "single", "depth": 9}, "--depth 9: must be from 1 to 8"),
        ({"designs": "single", "seed": 2**63}, f"--seed {2**63}: must be from 0 to {2**63 - 1}"),
        ({"depth": 3, "policy": "random"}, "--depth 3: is of --policy pct and mixed alone"),
        ({"preemptions": 1}, "--preemptions 1: is of --policy exhaustive alone"),
        ({"designs": "single", "rule": "8"}, "no rule '8'"),
        ({"designs": "single", "engine": "both", "seeds": 1}, "no engine 'both'"),
        ({"suite": "exploration"}, "no suite 'exploration' (did you mean 'explore'?)"),
        ({"seeds": 1, "schedules": 1}, "--seeds does not belong to --suite explore"),
    ],
)
def test_emu_check_refuses_what_the_command_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        emu.check(**options)


def test_designs_with_commas_are_explored_too() -> None:
    """They went through the rules first, and were unknown to the explorer then."""
    checked = emu.check("single,btree:node=256", scenario="split-walk", schedules=10)
    assert checked.array("scenarios.unit.design").tolist() == ["single", "btree:node=256"]


def test_a_file_without_scenarios_is_named(tmp_path: Path) -> None:
    """And not the library that was made of it, which is gone by then."""
    file = tmp_path / "empty.c"
    file.touch()
    with pytest.raises(
        InputError, match=r"^--scenario \S+/empty\.c: does not define `const struct"
    ):
        emu.check("single", scenario=str(file))


def test_what_was_checked_before_a_signal_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    stop = StopFlag()

    def one_more(*_: object, **__: object) -> Iterator[RuleResult]:
        yield RuleResult("single", "virtual", "walk", 1, "", "ok", 1, "", conformance.Counts())
        raise Interrupted

    monkeypatch.setattr(conformance, "run", one_more)
    checked = emu.check("single", stop=stop)
    assert checked.interrupted and not checked.ok and not checked.failed
    assert [each.rule for each in checked.rules] == ["walk"]
    assert checked.scenarios == []


@pytest.mark.parametrize("engine", conformance.ENGINES)
def test_a_signal_ends_it_cleanly(engine: str) -> None:
    before = left_behind()
    process = start("check", "single", "--engine", engine, "--seeds", "5000")
    wait_until(lambda: [p for child in children(process.pid) for p in (child, *children(child))])
    time.sleep(0.3)
    family = [p for child in children(process.pid) for p in (child, *children(child))]
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=10)
    assert process.returncode == 130
    assert err == ""
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in family), 5)
    assert left_behind() - before == set()
