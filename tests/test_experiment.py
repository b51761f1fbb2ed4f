# SPDX-License-Identifier: MIT
"""Experiment files: matrices with rules, those that come with mm-emu, and going on with a run."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest
from emu_command import emu

import emu as package
from emu import experiment, schedule, workload
from emu.coordinator import StopFlag
from emu.errors import InputError
from emu.experiment import Cell, Experiment, Rule, make, override, read_toml
from emu.results import Run
from emu.schedule import Progress
from emu.store import Store

TINY: dict[str, Any] = {"engine": "virtual", "duration": "1ms", "topology": "laptop-8c"}


def cells(given: dict[str, object]) -> list[Cell]:
    made = make(given)
    numbers = (dict.fromkeys(each.topology, each.cpus) for each in made)
    return [cell for each, of in zip(made, numbers, strict=True) for cell in each.cells(of)]


def what(given: dict[str, object]) -> list[tuple[str, int]]:
    return [(cell.rmap, cell.cpus) for cell in cells(given)]


MATRIX: dict[str, object] = {"rmap": "single,btree:node=64", "cpus": "1,2,4..16", "repeats": 1}


@pytest.mark.parametrize(
    ("rule", "left_out"),
    [
        ({"rmap": "single"}, {("single", n) for n in (1, 2, 4, 8, 16)}),
        ({"rmap": "btree", "cpus": "3..8"}, {("btree:node=64", 4), ("btree:node=64", 8)}),
        ({"rmap": ["btree:node=64"], "cpus": [1, 16]}, {("btree:node=64", n) for n in (1, 16)}),
        ({"cpus": "1,7..9"}, {(d, n) for d in ("single", "btree:node=64") for n in (1, 8)}),
        ({"rmap": "btree:node=32"}, set()),
        ({"engine": "virtual"}, set()),
    ],
)
def test_exclude(rule: dict[str, object], left_out: set[tuple[str, int]]) -> None:
    everything = what(MATRIX)
    assert set(what(MATRIX | {"exclude": [rule]})) == set(everything) - left_out
    text = " ".join(
        f"{key}={','.join(map(str, value)) if isinstance(value, list) else value}"
        for key, value in rule.items()
    )
    assert what(MATRIX | {"exclude": [text]}) == what(MATRIX | {"exclude": [rule]})


def test_include_adds_cells_and_takes_the_rest_from_the_matrix() -> None:
    given = MATRIX | {"exclude": ["cpus=2..16"], "include": ["rmap=numa-locks cpus=2", "cpus=1"]}
    both = ["single", "btree:node=64"]
    assert what(given) == [(d, 1) for d in both] + [("numa-locks", 2)] + [(d, 1) for d in both]
    assert what(MATRIX | {"include": ["engine=virtual cpus=99"]}) == what(MATRIX)


def test_what_is_included_twice_is_run_once() -> None:
    run = package.run(**TINY, rmap="single", cpus=1, include=["cpus=1,2", "rmap=single"])
    assert [(cell.rmap, cell.cpus) for cell in run.cells] == [("single", 1), ("single", 2)]


def test_options_go_over_what_is_included_too() -> None:
    file = MATRIX | {"include": [{"rmap": "numa-locks", "cpus": 99}, {"cpus": 77}]}
    merged = override(file, {"cpus": "1"})
    assert what(merged) == [("single", 1), ("btree:node=64", 1), ("numa-locks", 1)]


def test_a_rule_without_words_fits_everything() -> None:
    (cell,) = cells({"rmap": "single", "cpus": 1, "repeats": 1})
    assert Rule().fits(cell)
    assert not Rule(workload=("spawn",)).fits(cell)


def test_rules_of_a_file_are_about_the_matrices_of_all_engines(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text(
        'engine = ["native", "virtual"]\n[[exclude]]\nengine = "native"\ntopology = "host"\n'
        '[[exclude]]\ntopology = "hygon-12x32"\n[[include]]\nengine = "virtual"\ncpus = 3\n'
    )
    assert len(read_toml(path)["exclude"]) == 2
    path.write_text('[[include]]\nengine = "virtual"\ncpus = 3\n')
    with pytest.raises(InputError, match=r"no engine in .* \[\[include\]\] .* 'virtual'.*native"):
        read_toml(path)


def test_an_option_may_take_out_what_a_rule_of_the_file_is_about(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text('[matrix]\nrmap = ["single", "btree"]\n[[exclude]]\nrmap = "btree"\n')
    run = package.run(path, **TINY, rmap="single", cpus="1")
    assert [cell.rmap for cell in run.cells] == ["single"]


def test_names_in_rules_may_have_spaces() -> None:
    mine = "./my own.c:a=1"
    given: dict[str, object] = {"rmap": [mine, "single"], "cpus": "1,2", "repeats": 1}
    everything = set(what(given))
    assert set(what(given | {"exclude": f"rmap={mine}  cpus=2"})) == everything - {(mine, 2)}
    assert set(what(given | {"exclude": "cpus=2 rmap=./my own.c"})) == everything - {(mine, 2)}


def test_a_file_with_everything_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text(
        'name = "x"\ndescription = "y"\nengine = "virtual"\nseed = 3\nrepeats = 2\n'
        'timeout = "2m"\n[matrix]\nrmap = "single"\ncpus = "1,2,4..8"\n'
        "[[exclude]]\ncpus = 4\n[virtual]\nseed = 9\n"
    )
    (made,) = make(read_toml(path))
    assert made == Experiment(
        rmap=("single",),
        topology=("hygon-12x32",),
        cpus=(1, 2, 4, 8),
        engine="virtual",
        seed=9,
        repeats=2,
        duration_ns=10**7,
        timeout_ns=120 * 10**9,
        exclude=(Rule(cpus=((4, 4),)),),
    )


@pytest.mark.parametrize("name", experiment.names())
def test_those_that_come_with_it_run_scaled_down(name: str) -> None:
    assert experiment.describe_file(experiment.path_of(name))
    assert f"emu run {name}" in experiment.path_of(name).read_text()
    done = emu("run", name, "--cpus", "1,2", "--duration", "2ms", "--repeats", "1")
    assert (done.returncode, done.stderr) == (0, "")
    run = package.load("last")
    assert run.run.experiment["name"] == name
    assert {cell.status for cell in run.cells} == {"ok"}
    assert {cell.cpus for cell in run.cells} == {1, 2}


def test_a_cell_that_takes_too_long_fails_on_either_engine() -> None:
    options = ("--rmap", "single", "--cpus", "2", "--repeats", "1", "--timeout", "600ms")
    for engine in ("native", "virtual"):
        done = emu("run", *options, "--engine", engine, "--duration", "60s")
        assert done.returncode == 1
        assert "not done after 0.6 s (--timeout)" in done.stderr
        assert [cell.status for cell in package.load("last").cells] == ["failed"]


def test_the_configuration_of_a_run_runs_it_again(tmp_path: Path) -> None:
    first = package.run(**TINY, rmap="single,btree", cpus="1,2", repeats=2, exclude="cpus=2")
    file = tmp_path / "again.toml"
    file.write_text(emu("show", "last", "--config").stdout)
    for again in (file, first.run.id):
        second = package.run(again)
        assert second.run.id != first.run.id
        assert {**second.run.experiment, "name": ""} == {**first.run.experiment, "name": ""}
        assert rates(second) == rates(first)


def rates(run: Run) -> list[tuple[object, ...]]:
    return [(c.rmap, c.cpus, c.seed, c.ops, c.seconds, c.latency_ns) for c in run.cells]


def test_a_run_with_a_file_of_the_user_runs_again_from_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(__file__).parents[1]
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "mine.c").write_text((root / "workers/designs/rmap/single.c").read_text())
    monkeypatch.chdir(tmp_path / "a")
    first = package.run(**TINY, rmap="./mine.c", cpus=1)
    monkeypatch.chdir(tmp_path)
    second = package.run(first.run.id)
    assert second.run.files == first.run.files
    assert second.array("ops").tolist() == first.array("ops").tolist()


def test_a_changed_design_is_not_gone_on_with(tmp_path: Path) -> None:
    """What decides about the results decides whether cells may be shared."""
    root = Path(__file__).parents[1]
    mine = tmp_path / "mine.c"
    source = (root / "workers/designs/rmap/single.c").read_text()
    runs = []
    for text in (source, source, source + "\n/* changed */\n"):
        mine.write_text(text)
        stop_after_one(rmap=f"{mine}", cpus="1,2", **TINY)
        runs.append(Store().ids())
    assert [len(ids) for ids in runs] == [1, 1, 2]


@pytest.mark.parametrize("name", ["own.toml", "own", "own:2.toml"])
def test_a_changed_workload_is_not_gone_on_with(name: str, tmp_path: Path) -> None:
    own = tmp_path / name
    text = (Path(__file__).parents[1] / "emu/workloads/spawn.toml").read_text()
    for number, more in enumerate(("", "", "# changed\n")):
        own.write_text(text + more)
        stop_after_one(workload=f"{own}", rmap="single", cpus="1,2", **TINY)
        assert len(Store().ids()) == (2 if number == 2 else 1)
    assert [*package.load("last").run.files] == [str(own)]


def stop_after_one(**options: Any) -> None:
    """Run until a cell is there, then be interrupted."""
    stop = StopFlag()

    def progress(now: Progress) -> None:
        if now.done:
            stop._set = True

    package.run(**options, jobs=1, progress=progress, stop=stop)


def test_the_last_virtual_cell_begins_beside_as_many_as_there_are_cpus(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(schedule, "_bytes_of", lambda _: 0)

    def begins(running: int, waiting: int, last_beside: bool) -> bool:
        scheduler: Any = object.__new__(schedule._Scheduler)
        scheduler.jobs = dict.fromkeys(range(running))
        scheduler.at_once, scheduler.last_beside = 2, last_beside
        return bool(scheduler._may_begin([*range(waiting)], dict.fromkeys(range(waiting))))

    assert [begins(2, waiting, True) for waiting in (3, 2, 1)] == [False, False, True]
    assert [begins(running, 1, True) for running in (1, 2, 3)] == [True, True, False]
    assert [begins(running, 1, False) for running in (1, 2)] == [True, False]


def test_interrupted_and_gone_on_with_is_one_run() -> None:
    options = TINY | {"rmap": "single,btree", "cpus": "1..8"}
    stop_after_one(**options)
    told: list[str] = []
    before = package.load("last")
    assert before.run.status == "interrupted"
    assert 0 < len(before.cells) < 8
    whole = package.run(**options, on_notice=told.append)
    assert told == [
        f"going on with run {before.run.id}: {len(before.cells)} of 8 cells finished "
        "(--fresh: anew)"
    ]
    assert (whole.run.id, whole.run.status, len(whole.cells)) == (before.run.id, "done", 8)
    anew = package.run(**options, fresh=True)
    assert anew.run.id != whole.run.id
    assert rates(anew) == rates(whole)


def test_a_file_may_be_a_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.toml"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_text('name = "through a pipe"\n'))
    writer.start()
    run = package.run(pipe, **TINY, rmap="single", cpus="1")
    writer.join()
    assert run.run.experiment["name"] == "through a pipe"


def test_errors_of_files_name_the_place(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text('[matrix]\nrmap = "single"\n\n[[include]]\nwrkload = "execl"\n')
    with pytest.raises(InputError, match=r"x.toml:5: no key in \[\[include\]\] 'wrkload'.*workl"):
        read_toml(path)
    path.write_text('engine = ["virtual", "nativ"]\n')
    with pytest.raises(InputError, match=r"x.toml: no engine 'nativ' .did you mean 'native'"):
        read_toml(path)
    path.write_text("matrix = 3\n")
    with pytest.raises(InputError, match="matrix: a table, not 3"):
        read_toml(path)
    path.write_text("name = 3\n")
    with pytest.raises(InputError, match="name: a text, not 3"):
        read_toml(path)


def test_what_runs_no_process_has_one_design_unless_more_are_asked_for() -> None:
    """All designs come to the same there: two of three cells would be in vain."""
    for name in workload.names():
        micro = name.startswith(("line-", "rwsem-"))
        assert workload.load(name).has_processes != micro
    usual = ("single", "numa-trees", "numa-locks")
    for given, rmap in (
        ({"workload": "line-write,rwsem-read"}, ("single",)),
        ({"workload": "line-write", "rmap": "btree,single"}, ("btree", "single")),
        ({"workload": "line-write,execl"}, usual),
        ({"workload": "./line-write.toml"}, usual),
        ({}, usual),
    ):
        assert [each.rmap for each in make(given)] == [rmap]


def test_what_runs_no_process_has_no_table_of_memory(tmp_path: Path) -> None:
    for name, shown in (("line-write", False), ("execl", True)):
        run = package.run(workload=name, store=tmp_path, cpus=1, rmap="single", **TINY)
        assert ("bytes per file" in str(run)) == shown
