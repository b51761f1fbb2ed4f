# SPDX-License-Identifier: MIT
"""The command as a user meets it: help, lists, bad input, JSON, the store."""

from __future__ import annotations

import io
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
from emu_command import COMMAND, children, emu, start, wait_until
from hypothesis import given
from hypothesis import strategies as st

import emu as package
from emu import cli, experiment, explore
from emu.coordinator.plan import DesignFile
from emu.errors import InputError
from emu.experiment import (
    Experiment,
    describe,
    flatten,
    make,
    override,
    parse_cpus,
    parse_duration,
    parse_size,
    split_names,
    to_toml,
)
from emu.progress import ProgressBar
from emu.report.table import format_ns
from emu.schedule import Progress
from emu.store import Store
from emu.terminal import SafeConsole

ROOT = Path(__file__).parents[1]
QUICK = ("--duration", "20ms", "--repeats", "1")


def test_help_and_version() -> None:
    for arguments in ([], ["--help"]):
        done = emu(*arguments)
        assert done.returncode == 0
        assert all(word in done.stdout for word in ("run", "list", "show", "report", "topology"))
    assert emu("--version").stdout == f"mm-emu {package.__version__}\n"
    assert "--numa-penalty" in emu("run", "--help", COLUMNS="120").stdout


def test_lists() -> None:
    designs = emu("list", "designs").stdout
    assert {"single", "numa-trees", "numa-locks", "mmap-sem-rbtree"} <= set(designs.split())
    assert {"host", "hygon-12x32"} <= set(emu("list", "topologies").stdout.split())
    assert {"execl", "spawn", "shell"} <= set(emu("list", "workloads").stdout.split())
    assert {"i_mmap-hygon", "laptop"} <= set(emu("list", "experiments").stdout.split())


BAD_WORKLOAD = """
name = "bad"
description = "unmaps what was never mapped"
load = "start"
[files]
"libc.so.6" = 471
[image."a"]
mmap_base = 0x7ffff7fff000
calls = ["mmap(0x1000000, 4096, PROT_READ, MAP_PRIVATE|MAP_FIXED, libc.so.6, 0) = 0x1000000"]
[program."start"]
calls = ["exec(a)", "munmap(0x5000000, 4096)"]
[[phase]]
name = "all"
list = "start"
unit = "exec"
"""

BAD_INPUT = {
    "design": (["--rmap", "sngle"], ["did you mean 'single'", "numa-locks"]),
    "mm": (["--mm", "rbtree"], ["mmap-sem-rbtree"]),
    "parameter": (["--rmap", "single:x=1"], ["--rmap single:x=1", "'x'", "emu list designs"]),
    "mm-as-rmap": (["--rmap", "spf"], ["no rmap design 'spf': it is an mm design"]),
    "rmap-as-mm": (["--mm", "btree:node=256"], ["no mm design 'btree': it is an rmap design"]),
    "parameter-twice": (["--rmap", "btree:node=256,node=512"], ["each parameter once, as k=v"]),
    "parameter-none": (["--rmap", "single:"], ["--rmap single:: behind the colon"]),
    "no-design": (
        ["--rmap", "{dir}/empty.c"],
        ["/empty.c: does not define `const struct rmap_ops emu_rmap_ops`"],
    ),
    "file": (["--rmap", "./no.c"], ["./no.c", "no file"]),
    "topology": (["--topology", "hygn-12x32"], ["hygn-12x32", "did you mean 'hygon-12x32'"]),
    "workload": (["--workload", "excl"], ["did you mean 'execl'", "spawn"]),
    "workload-file": (["--workload", "./no.toml"], ["no.toml", "No such file"]),
    "workload-toml": (["--workload", "{dir}/broken.toml"], ["broken.toml", "line 1"]),
    "program": (
        ["--workload", "{dir}/bad.toml"],
        ["bad.toml:11", "munmap(0x5000000, 4096)", "nothing is mapped there"],
    ),
    "negative": (["--cpus", "-1"], ["--cpus -1", "from 1 to"]),
    "zero": (["--cpus", "0"], ["--cpus 0", "from 1 to"]),
    "huge": (["--cpus", "10000000"], ["--cpus 10000000", "from 1 to"]),
    "cpus": (["--cpus", "1,two"], ["two", "1,2,4..64"]),
    "too-many": (
        ["--topology", "laptop-8c", "--cpus", "4000"],
        ["--cpus 4000", "laptop-8c has"],
    ),
    "no-engine": (["--engine", "x"], ["no engine 'x'", "native, virtual"]),
    "seed": (["--seed", "x"], ["--seed"]),
    "seed-repeats": (
        ["--seed", str(2**63 - 1), "--repeats", "2"],
        [f"--seed {2**63 - 1}", "2 repeats"],
    ),
    "repeats": (["--repeats", "0"], ["--repeats 0", "from 1 to"]),
    "duration": (["--duration", "20"], ["--duration 20", "20ms"]),
    "penalty": (["--numa-penalty", "maybe"], ["numa-penalty", '"on" or "off"']),
    "arena-big": (["--arena-size", "30T"], ["--arena-size", "available"]),
    "arena-small": (["--cpus", "300", "--arena-size", "1M"], ["--arena-size gives more"]),
    "option": (["--rmpa", "single"], ["--rmpa"]),
    "json": (["--json", "/proc/none/x.json"], ["--json /proc/none/x.json"]),
    "json-folder": (["--json", "{dir}"], ["--json /", "no file can be written there"]),
    "json-long": (["--json", "x" * 300], ["--json xxx", "File name too long"]),
    "rmap-long": (["--rmap", f"./{'x' * 300}.c"], ["xxx.c", "File name too long"]),
    "store": (["--store", "/proc/nowhere"], ["/proc/nowhere", "--store"]),
    "experiment": (["{dir}/none.toml"], ["none.toml", "No such file"]),
    "experiment-toml": (["{dir}/broken.toml"], ["broken.toml", "line 1"]),
    "experiment-key": (["{dir}/key.toml"], ["key.toml:3: no key in [matrix] 'rmpa'", "'rmap'"]),
    "experiment-name": (["i_mmap-hygn"], ["did you mean 'i_mmap-hygon'", "laptop", "emu runs"]),
    "experiment-flat": (["{dir}/flat.toml"], ["flat.toml", "'rmap'", "belongs below [matrix]"]),
    "rule-key": (["{dir}/rule.toml"], ["rule.toml:2: no key in [[exclude]] 'cpu'", "'cpus'"]),
    "rule-name": (["{dir}/stray.toml"], ["stray.toml", "[[exclude]]", "'btre'", "single, btree"]),
    "rule-option": (["--exclude", "btree"], ['--exclude "btree"', "rmap=btree cpus=32..64"]),
    "rule-option-name": (
        ["--rmap", "single", "--exclude", "rmap=singel"],
        ["that --exclude is about: 'singel'", "did you mean 'single'"],
    ),
    "rule-engine": (["--exclude", "engine=bogus"], ["no engine", "--exclude", "'bogus'", "native"]),
    "include-engine": (["--include", "engine=bogus"], ["no engine", "--include", "'bogus'"]),
    "rule-twice": (
        ["--exclude", "rmap=single rmap=btree"],
        ["each word once", "rmap=single,btree"],
    ),
    "rule-cpus": (["--exclude", "cpus=0"], ["emu: exclude: cpus 0: must be from 1"]),
    "rule-comma": (
        ["--include", "rmap=single,"],
        ["emu: include: rmap: ", "missing beside a comma"],
    ),
    "comma": (["--rmap", "single,"], ["emu: rmap: ", '"single,": a name is missing']),
    "no-cpus": (["{dir}/no-cpus.toml"], ["no-cpus.toml: cpus: at least one number"]),
    "no-repeats": (["{dir}/no-repeats.toml"], ["no-repeats.toml: repeats 0: must be from 1"]),
    "nothing-left": (["--rmap", "single", "--exclude", "rmap=single"], ["no cell is left"]),
    "timeout": (["--timeout", "5"], ["--timeout 5", "with its unit"]),
    "jobs": (["--jobs", "0"], ["--jobs 0", "from 1 to"]),
    "engine-key": (["{dir}/engine.toml"], ["engine.toml", "no key in [virtual] 'cpsu'", "'cpus'"]),
    "engine-no-table": (["{dir}/table.toml"], ["table.toml", "virtual: a table, not 3"]),
    "one-engine-of-two": (["--engine", "native,virtul"], ["did you mean 'virtual'"]),
    "second-engine": (
        ["--engine", "native,virtual", "--topology", "laptop-8c", "--cpus", "4000"],
        ["--cpus 4000", "laptop-8c has"],
    ),
}


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_line_and_status_2(case: str, tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text(BAD_WORKLOAD)
    (tmp_path / "broken.toml").write_text("name = \n")
    (tmp_path / "key.toml").write_text('seed = 1\n[matrix]\nrmpa = "single"\n')
    (tmp_path / "flat.toml").write_text('rmap = "single"\n')
    (tmp_path / "rule.toml").write_text("[[exclude]]\ncpu = 1\n")
    (tmp_path / "stray.toml").write_text(
        '[matrix]\nrmap = ["single", "btree"]\n[[exclude]]\nrmap = "btre"\n'
    )
    (tmp_path / "engine.toml").write_text("[virtual]\ncpsu = 1\n")
    (tmp_path / "table.toml").write_text("virtual = 3\n")
    (tmp_path / "empty.c").touch()
    (tmp_path / "no-cpus.toml").write_text("[matrix]\ncpus = []\n")
    (tmp_path / "no-repeats.toml").write_text("repeats = 0\n")
    arguments, words = BAD_INPUT[case]
    done = emu("run", *QUICK, *(a.format(dir=tmp_path) for a in arguments))
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("emu: ")
    for word in words:
        assert word in done.stderr
    assert Store().ids() == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["show", "nope"],
        ["list", "nope"],
        ["nope"],
        ["show"],
        ["show", "last", "--config", "--json", "-"],
        ["record", "-o", "x.toml", "--each", "time", "--", "true"],
        ["record", "-o", "x.toml", "--", "no-such-command"],
        ["record", "--", "true"],
        ["runs", "--store", "x" * 300],
    ],
)
def test_other_bad_input(arguments: list[str]) -> None:
    done = emu(*arguments)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert ".;" not in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("run", "--json", ""), '--json ""'),
        (("run", "--html", "", "--rmap", "single"), '--html ""'),
        (("run", "--store", ""), '--store ""'),
        (("run", "--rmap="), "--rmap="),
        (("run", ""), 'run ""'),
        (("check", "single", "--scenario", ""), '--scenario ""'),
        (("record", "--name", "", "-o", "x.toml", "--", "true"), '--name ""'),
        (("record", "-o", "x.toml", "--", ""), "'' is no executable"),
    ],
)
def test_words_that_are_empty_are_refused(words: tuple[str, ...], said: str) -> None:
    """Files and stores of no name were taken for none, or for the folder that one was in."""
    done = emu(*words)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith(f"emu: {said}")


@pytest.mark.parametrize(
    "words",
    [
        ("run", "--rmap", "./w\udcff.c"),
        ("run", "--workload", "./w\udcff.toml"),
        ("run", "--json", "w\udcff"),
        ("run", "--html", "w\udcff"),
        ("run", "--store", "w\udcff"),
        ("new", "rmap", "w\udcff.c"),
        ("record", "--name", "w\udcff", "-o", "x.toml", "--", "true"),
        ("check", "btree:node=w\udcff"),
    ],
)
def test_words_that_are_not_utf_8_are_refused(words: tuple[str, ...]) -> None:
    done = emu(*words)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert r"w\xff" in done.stderr
    assert "is no UTF-8" in done.stderr


def test_ids_of_runs_are_whole_in_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are to be typed again, and a folded one cannot be copied."""
    out = io.StringIO()
    monkeypatch.setattr(cli, "stdout_console", lambda: SafeConsole(file=out, width=60))
    run = "20261123-075237-596-b06a"
    names = ("run", "experiment", "engines", "cells", "failed", "status")
    cli._print_table([names, (run, "i_mmap-hygon", "native,virtual", "33/33", "0", "done")])
    assert run in out.getvalue()
    assert max(map(len, out.getvalue().splitlines())) == 60


@pytest.mark.parametrize("name", ["execl", "my own", "my own.toml", "a/execl"])
def test_the_command_that_a_recording_ends_with_runs_it(name: str, tmp_path: Path) -> None:
    """And not the workload of that name which comes with mm-emu."""
    (tmp_path / "a").mkdir()

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [*COMMAND, *words]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    said = run("record", "-o", name, "--", "true").stderr
    told = said.removeprefix(f"{name}: emu ").removesuffix("\n")
    assert told != said
    virtual = ["--engine", "virtual", "--rmap", "single", "--cpus", "1", "--duration", "1ms"]
    done = run(*shlex.split(told), *virtual, "--json", "-")
    assert done.returncode == 0, done.stderr
    (file,) = json.loads(done.stdout)["run"]["files"]
    assert Path(file) == tmp_path / name


def test_commands_that_are_told_can_be_pasted(tmp_path: Path) -> None:
    """Of a design and a scenario whose names have spaces."""
    mine = str(tmp_path / "my own.c")
    said = emu("new", "rmap", mine).stderr.removeprefix(f"{mine}: ")
    check, run = map(shlex.split, said.split("   then   "))
    assert (check, run) == (["emu", "check", mine], ["emu", "run", "--rmap", f"single,{mine}"])
    scenario = explore.Scenario("one", "rmap", 2, "", 0, file="my own.c")
    unit = explore.Unit(DesignFile(mine, tmp_path), DesignFile("spf", tmp_path), scenario)
    again = shlex.split(unit.command("ab"))
    assert again[:3] == ["emu", "check", mine]
    assert again[again.index("--scenario") + 1] == "my own.c:one"


def test_a_folder_whose_name_is_not_utf_8_can_be_worked_in(tmp_path: Path) -> None:
    folder = tmp_path / "f\udcff"
    folder.mkdir()
    (folder / "d.c").write_text((ROOT / "workers/designs/rmap/skeleton.c").read_text())
    (folder / "w.toml").write_text((ROOT / "emu/workloads/execl.toml").read_text())
    options = ["--engine", "virtual", "--topology", "laptop-8c", "--duration", "1ms", "--cpus", "1"]
    own = ["--rmap", "./d.c", "--workload", "./w.toml", "--html", "x.html", "--json", "x.json"]
    environment = os.environ | {"PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run(
        [*COMMAND, "run", *options, *own],
        cwd=folder,
        env=environment | {"PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    files = json.loads((folder / "x.json").read_text())["run"]["files"]
    assert sorted(Path(file).name for file in files) == ["d.c", "w.toml"]
    assert all(r"f\xff" in file for file in files)


def test_a_design_that_does_not_compile(tmp_path: Path) -> None:
    (tmp_path / "mine.c").write_text("#include <emu/rmap.h>\nint x = y;\n")
    done = emu("run", *QUICK, "--rmap", str(tmp_path / "mine.c"))
    assert done.returncode == 2
    assert "mine.c:2:" in done.stderr
    assert done.stderr.count("\n") == 1


CELL_KEYS = {
    *("rmap", "mm", "topology", "cpus", "workload", "engine", "seed", "repeat", "status"),
    *("error", "ops", "seconds", "ops_per_s", "oversubscribed", "latency_ns", "wait_share"),
    *("locks", "lines", "memory", "host"),
}


@pytest.mark.usefixtures("nothing_left")
def test_json_on_stdout_is_only_json_with_all_keys() -> None:
    done = emu("run", *QUICK, "--cpus", "1,2", "--json", "-")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert set(document) == {"run", "cells"}
    assert len(document["cells"]) == 6
    for cell in document["cells"]:
        assert set(cell) >= CELL_KEYS
        assert (cell["status"], cell["error"], cell["lines"]) == ("ok", None, [])
        assert set(cell["memory"]) == {
            "rmap_bytes_per_file",
            "rmap_bytes_per_mapped_file",
            "rmap_bytes_per_used_file",
            "bytes_per_vma",
        }
        assert set(cell["host"]) >= {"wall_s", "events", "peak_rss_bytes"}
        for op in ("exec", "fork", "exit", "mmap", "fault", "walk"):
            latency = cell["latency_ns"][op]
            assert set(latency) >= {"count", "mean", "p50", "p90", "p99", "p999", "max"}
            if latency["count"]:
                order = [latency[key] for key in ("p50", "p90", "p99", "p999", "max")]
                assert order == sorted(order)
                assert order[0] > 0
        for lock in cell["locks"]:
            assert {"name", "file", "acquired", "contended", "wait_ns", "hold_ns"} <= set(lock)
            for of_all in ("acquired", "contended", "wait_ns", "hold_ns"):
                assert lock[of_all] == sum(times[of_all] for times in lock["modes"].values()) >= 0
            assert lock["acquired"] == sum(site["acquired"] for site in lock["sites"])
            assert lock["wait_ns"] == sum(site["wait_ns"] for site in lock["sites"])
            assert (
                lock["wait_min_ns"] * lock["contended"]
                <= lock["wait_ns"]
                <= lock["wait_max_ns"] * lock["contended"]
            )
            if lock["hold_ns"]:
                held_ns = lock["hold_ns"] / lock["acquired"]
                assert lock["hold_min_ns"] - 1 <= held_ns <= lock["hold_max_ns"] + 1
        assert 0 <= cell["wait_share"] <= 1
        assert cell["ops_per_s"] == pytest.approx(cell["ops"] / cell["seconds"])
    assert [cell["rmap"] for cell in document["cells"]] == 2 * [
        "single",
        "numa-trees",
        "numa-locks",
    ]


def test_table_file_store_and_show_agree(own_store: Path, tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    done = emu("run", *QUICK, "--rmap", "single,numa-locks", "--json", str(file))
    assert done.returncode == 0, done.stderr
    for word in ("exec/s", "x single", "waiting", "libc locks/exec", "p99.9", "Where the CPUs"):
        assert word in done.stdout
    assert "\x1b" not in done.stdout
    assert done.stderr == ""
    (run_id,) = Store(own_store).ids()
    for name in ("last", run_id, run_id[:-2], str(file)):
        assert emu("show", name).stdout == done.stdout
    assert emu("show", "last", "--json", "-").stdout == file.read_text()
    assert str(package.load("last")) == done.stdout.rstrip("\n")


def test_an_experiment_file_and_options_over_it(tmp_path: Path) -> None:
    (tmp_path / "e.toml").write_text(
        'duration = "20ms"\nrepeats = 2\nseed = 7\n'
        '[matrix]\nrmap = ["single", "numa-locks"]\ncpus = [1]\n'
    )
    done = emu("run", str(tmp_path / "e.toml"), "--rmap", "single", "--json", "-")
    document = json.loads(done.stdout)
    cells = document["cells"]
    assert [(c["rmap"], c["cpus"], c["seed"], c["repeat"]) for c in cells] == [
        ("single", 1, 7, 0),
        ("single", 1, 8, 1),
    ]
    # What is written back is complete, and as a file of its own it is the same experiment again.
    again = make(flatten(document["run"]["experiment"]))
    assert again == make(
        {"rmap": "single", "cpus": "1", "duration": "20ms", "repeats": 2, "seed": 7}
    )


def test_the_readme_of_a_checkout_is_no_trap() -> None:
    """In a checkout ./emu hides the installed package, which has what the build made."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [*COMMAND, "run", *QUICK, "--rmap", "single", "--cpus", "1", "--json", "-"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["cells"][0]["status"] == "ok"


def test_output_into_a_closed_pipe_is_no_traceback() -> None:
    command = f"{sys.executable} -m emu list topologies | true"
    done = subprocess.run(["bash", "-c", command], cwd="/", capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def unread(arguments: str) -> int:
    """The exit status of a command into a pipe that nobody reads; it says nothing of that."""
    command = f"set -o pipefail; {sys.executable} -m emu {arguments} 2>&1 | true"
    done = subprocess.run(["bash", "-c", command], cwd="/", capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("", ""), arguments
    return done.returncode


@pytest.mark.parametrize(
    ("more", "status"),
    [
        ("--html {page}", 0),
        ("--html {page} --json -", 0),
        ("--timeout 1ms", 1),
        ("--timeout 1ms --json -", 1),
    ],
)
def test_who_reads_no_further_does_not_change_what_is_done(
    more: str, status: int, tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    run = f"run --engine virtual --rmap single --cpus 1 --duration 1ms {more.format(page=page)}"
    assert unread(run) == status
    assert page.exists() == (status == 0)
    for arguments in ("show last", "export last --format json"):
        assert unread(arguments) == 0, arguments


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        *((right, 0) for right in ("list designs", "topology show host", "")),
        *((wrong, 2) for wrong in ("show nope", "nope", "list")),
    ],
)
def test_who_reads_no_further_does_not_change_the_exit_status(arguments: str, status: int) -> None:
    assert unread(arguments) == status


@pytest.mark.parametrize(
    ("line", "status", "said"),
    [
        ("list designs > /dev/full", 1, "emu: standard output: No space left on device\n"),
        ("show nope 2> /dev/full", 2, ""),
    ],
)
def test_a_full_disk_behind_an_output_is_no_traceback(line: str, status: int, said: str) -> None:
    command = f"{sys.executable} -m emu {line}"
    done = subprocess.run(["bash", "-c", command], cwd="/", capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (status, "", said)


def test_a_check_is_not_cut_short_by_who_reads_no_further(tmp_path: Path) -> None:
    report = tmp_path / "rules.json"
    check = f"check single --rule walk,memory --seeds 1 --engine native --json {report}"
    command = f"set -o pipefail; {sys.executable} -m emu {check} | true"
    done = subprocess.run(["bash", "-c", command], cwd="/", capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(json.loads(report.read_bytes())["results"]) == 2


def test_ctrl_c_ends_the_waiting_for_who_reads_a_fifo(tmp_path: Path, own_store: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    run = ("--engine", "virtual", "--rmap", "single", "--cpus", "1", "--duration", "1ms")
    process = start("run", *run, "--json", str(tmp_path / "fifo"))
    store = Store(own_store)
    wait_until(lambda: any(each.status == "done" for each in store.summaries()))
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=10) == ("", "")
    assert process.returncode == 130


def test_what_nohup_ignores_stays_ignored() -> None:
    command = shlex.join((*COMMAND, "run", "--engine", "virtual", "--rmap", "single"))
    line = f"trap '' HUP; exec {command} --cpus 16 --duration 20ms"
    with subprocess.Popen(["bash", "-c", line], cwd="/", stdout=subprocess.DEVNULL) as process:
        wait_until(lambda: children(process.pid))
        process.send_signal(signal.SIGHUP)
        assert process.wait(60) == 0


def test_what_is_wrong_in_a_file_is_told_with_the_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    for line, words in (
        ('rmap = ["single", "numa-lcks"]', ("rmap: no rmap design 'numa-lcks'", "numa-locks")),
        ('rmap = "single:x=1"', ("rmap: single:x=1: ", "has no parameter 'x'", "emu list designs")),
        ('mm = "rbtree"', ("mm: no mm design 'rbtree'", "mmap-sem-rbtree")),
        ('workload = "excl"', ("workload: no workload 'excl'", "execl")),
        ('workload = "./no.toml"', ("workload: no.toml: No such file",)),
        ('topology = "hygn"', ("topology: no topology 'hygn'", "hygon-12x32")),
        ('topology = "laptop-8c"\ncpus = 99', ("cpus: 99: topology laptop-8c has 16 CPUs",)),
    ):
        file.write_text(f"[matrix]\n{line}\n")
        done = emu("run", str(file))
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        for word in (f"emu: {file}: ", *words):
            assert word in done.stderr, line
    # What an option says is not the file's.
    assert "mine.toml" not in emu("run", str(file), "--cpus", "98").stderr
    file.write_text(
        '[[result]]\nid = "x"\nmeasure = "ops_per_s"\ntopology = "hygn"\ncpus = 1\n'
        'workload = "execl"\nmm = "spf"\ndesign = "single"\nvalue = 1.0\nsource = "none"\n'
    )
    done = emu("validate", str(file))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert f"{file}: topology: no topology 'hygn'" in done.stderr


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("engine", ["native", "virtual"])
def test_a_design_that_crashes_in_init_fails_its_cells_alone(engine: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.c"
    assert emu("new", "rmap", str(file)).returncode == 0
    text = file.read_text()
    begin = "struct skeleton *s = rmap_private(mapping, struct skeleton);\n\n\tinit_rwsem("
    assert begin in text
    file.write_text(
        text.replace(begin, begin.replace("\tinit", "\t*(volatile int *)0 = 1;\n\tinit"))
    )
    run = ("run", *QUICK, "--engine", engine, "--cpus", "1", "--rmap", f"{file},single")
    done = emu(*run, "--json", "-")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    for word in (str(file), "1 CPU,", "died: SIGSEGV"):
        assert word in done.stderr
    assert [cell["status"] for cell in json.loads(done.stdout)["cells"]] == ["failed", "ok"]


@pytest.mark.parametrize("arguments", ["runs", "--version", "show nope", "nope"])
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_what_goes_into_a_closed_stream_is_lost(arguments: str, closed: str) -> None:
    usual = emu(*arguments.split())
    command = f"{sys.executable} -m emu {arguments} {closed}"
    done = subprocess.run(["bash", "-c", command], cwd="/", capture_output=True, text=True)
    assert done.returncode == usual.returncode
    assert done.stdout == ("" if ">&-" in closed.split() else usual.stdout)
    assert done.stderr == ("" if "2>&-" in closed.split() else usual.stderr)


def test_output_goes_through_links_and_into_pipes(tmp_path: Path) -> None:
    link, target = tmp_path / "link.json", tmp_path / "target.json"
    link.symlink_to(target.name)
    for there in (False, True):
        done = emu("run", *QUICK, "--rmap", "single", "--cpus", "1", "--json", str(link))
        assert done.returncode == 0, done.stderr
        assert link.readlink() == Path(target.name) and target.is_file() and not target.is_symlink()
        assert json.loads(target.read_bytes())["cells"][0]["status"] == "ok"
        if not there:
            target.write_text("old")
    export = ("export", str(target), "--format", "csv")
    csv = emu(*export).stdout
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with subprocess.Popen(["cat", fifo], stdout=subprocess.PIPE, text=True) as cat:
        assert emu(*export, "-o", str(fifo)).returncode == 0
        assert cat.communicate(timeout=10)[0] == csv
    assert fifo.is_fifo()
    line = f"{shlex.join((*COMMAND, *export))} -o >(cat > {tmp_path}/got; touch {tmp_path}/end)"
    done = subprocess.run(["bash", "-c", line], cwd="/", capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    wait_until((tmp_path / "end").exists)
    assert (tmp_path / "got").read_text() == csv
    assert {path.name for path in tmp_path.iterdir()} == {
        *(link.name, target.name, fifo.name, "got", "end")
    }


def test_a_name_may_be_as_long_as_any(tmp_path: Path) -> None:
    file = tmp_path / ("x" * 255)
    done = emu("run", *QUICK, "--rmap", "single", "--cpus", "1", "--json", str(file))
    assert done.returncode == 0, done.stderr
    assert file.stat().st_size


def test_a_command_is_recorded_only_where_its_workload_can_be_written(tmp_path: Path) -> None:
    done = emu("record", "-o", "/proc/none/x.toml", "--", "touch", str(tmp_path / "ran"))
    assert done.returncode == 2
    assert done.stderr == "emu: --output /proc/none/x.toml: no file can be written there\n"
    assert list(tmp_path.iterdir()) == []


def test_colour_and_bar_only_on_a_terminal() -> None:
    if not shutil.which("script"):
        pytest.skip("script(1) is not here")
    command = f"{sys.executable} -m emu run --duration 1s --repeats 1 --cpus 1"
    done = subprocess.run(
        ["script", "-qec", command, "/dev/null"],
        cwd="/",
        env=os.environ | {"TERM": "xterm-256color"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0
    assert "\x1b[1m" in done.stdout
    assert "1 running" in done.stdout
    # The bar's description of the cell that runs.
    assert re.search(r": (single|numa-trees|numa-locks) on 1", done.stdout)


def test_progress_is_a_line_now_and_then_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    (matrix,) = make({"rmap": "single", "cpus": 4})
    cell = next(matrix.cells({"host": (4,)}))
    with ProgressBar() as bar:
        for done in range(60):
            now = Progress(done=done, total=60, running=[(cell, 0.5)], left_s=200.0 - done)
            bar.update(*cli._how_far(now))
            clock[0] += 1.0
    assert capsys.readouterr().err == "emu: 31 of 60, 1 running, 3 min left: single on 4\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")
@pytest.mark.parametrize(
    ("options", "words"),
    [("ro", ["/dev/shm", "write permission"]), ("size=1m", ["/dev/shm has", "--arena-size"])],
)
def test_dev_shm_that_cannot_be_used(options: str, words: list[str]) -> None:
    command = " ".join([*COMMAND, "run", *QUICK])
    script = f"mount -t tmpfs -o {options} none /dev/shm && exec {command}"
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("no mount namespaces here")
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script], cwd="/", capture_output=True, text=True
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    for word in words:
        assert word in done.stderr


@pytest.mark.parametrize(
    ("limit", "word"),
    [("-v 1500000", "cannot be mapped"), ("-n 100", "ulimit -n"), ("-u 0", "ulimit -u")],
)
def test_limits_of_the_host_are_named(limit: str, word: str) -> None:
    sizes = ["--cpus", "200", "--arena-size", "2G"]
    command = " ".join([*COMMAND, "run", *QUICK, "--rmap", "single", *sizes])
    user = "setpriv --reuid=65534 --regid=65534 --clear-groups " if os.geteuid() == 0 else ""
    if user and "-u" in limit and not shutil.which("setpriv"):
        pytest.skip("setpriv(1) is not here")
    reads = f"{user}{sys.executable} -c 'import emu'"
    if user and "-u" in limit and subprocess.run(["sh", "-c", reads], cwd="/").returncode:
        pytest.skip("root's files are not for other users here, and root has no such limit")
    script = f"ulimit {limit}; exec {user if '-u' in limit else ''}{command}"
    done = subprocess.run(
        ["bash", "-c", script],
        cwd="/",
        env=os.environ | {"XDG_DATA_HOME": "/tmp/emu-test-nobody"},
        capture_output=True,
        text=True,
    )
    shutil.rmtree("/tmp/emu-test-nobody", ignore_errors=True)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert word in done.stderr


# ---- parsers ----


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("1", (1,)),
        ("1,2,4..384", (1, 2, 4, 8, 16, 32, 64, 128, 256, 384)),
        ("4..64", (4, 8, 16, 32, 64)),
        ("3..3", (3,)),
        ("2, 2,1", (2, 1)),
    ],
)
def test_parse_cpus(text: str, numbers: tuple[int, ...]) -> None:
    assert parse_cpus(text) == numbers


@given(st.integers(1, 4096), st.integers(1, 4096))
def test_parse_cpus_range_doubles_and_ends_with_its_end(first: int, last: int) -> None:
    if last < first:
        with pytest.raises(InputError):
            parse_cpus(f"{first}..{last}")
        return
    numbers = parse_cpus(f"{first}..{last}")
    assert (numbers[0], numbers[-1]) == (first, last)
    doubled = numbers if len(numbers) < 2 else numbers[:-1]
    assert all(b == 2 * a for a, b in itertools.pairwise(doubled))


@given(st.text(max_size=12))
def test_parsers_refuse_or_accept_any_text(text: str) -> None:
    for parser in (parse_cpus, parse_duration, parse_size, split_names):
        try:
            parser(text)
        except InputError as error:
            assert str(error)


@given(st.integers(10**6, 3600 * 10**9))
def test_duration_round_trip(ns: int) -> None:
    assert parse_duration(experiment.format_duration(ns)) == ns


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a,b", ["a", "b"]),
        ("a:x=1,y=2,b", ["a:x=1,y=2", "b"]),
        ("a,./b.c:x=1", ["a", "./b.c:x=1"]),
        ("generic:sockets=2,nodes=2,host", ["generic:sockets=2,nodes=2", "host"]),
        ("a,a", ["a"]),
    ],
)
def test_split_names(text: str, names: list[str]) -> None:
    assert split_names(text) == names


def test_each_engine_has_its_own_defaults() -> None:
    (native,) = make({})
    assert (native.engine, native.topology, native.cpus) == ("native", ("host",), ())
    assert (native.duration_ns, native.repeats) == (10**9, 3)
    both = make({"engine": "native,virtual"})
    assert both == make({"engine": ["native", "virtual", "native"]})
    assert both[0] == native
    assert (both[1].engine, both[1].topology) == ("virtual", ("hygon-12x32",))
    assert both[1].cpus == (1, 2, 4, 8, 16, 32, 64, 128, 256, 384)
    assert (both[1].duration_ns, both[1].repeats) == (10**7, 1)


def test_what_is_given_goes_for_both_engines() -> None:
    given = {"topology": "host", "duration": "1s", "repeats": 3, "seed": 5}
    native, virtual = make({"engine": "native,virtual"} | given)
    # Also where what is given is what the native engine would do anyway.
    assert (virtual.topology, virtual.cpus) == (("host",), ())
    assert (virtual.duration_ns, virtual.repeats, virtual.seed) == (10**9, 3, 5)
    assert (native.topology, native.seed) == (("host",), 5)
    assert make({"engine": "virtual", "cpus": 4})[0].cpus == (4,)


def test_a_table_is_for_one_engine_and_options_go_over_it() -> None:
    file = {"engine": ["native", "virtual"], "cpus": 2, "virtual": {"cpus": "4..16", "seed": 9}}
    native, virtual = make(file)
    assert (native.cpus, virtual.cpus) == ((2,), (4, 8, 16))
    assert (native.seed, virtual.seed) == (1, 9)
    native, virtual = make(override(file, {"cpus": "3", "seed": None}))
    assert (native.cpus, virtual.cpus, virtual.seed) == ((3,), (3,), 9)
    assert make(override(file, {"engine": "virtual"})) == (make(file)[1],)
    assert file["virtual"] == {"cpus": "4..16", "seed": 9}


def test_the_description_of_two_engines_makes_them_again() -> None:
    given = {"engine": "native,virtual", "rmap": "single", "native": {"cpus": "1,2"}}
    made = make(given)
    described = describe(made, [{"host": (1, 2)}, {"hygon-12x32": made[1].cpus}], given)
    assert described["engine"] == ["native", "virtual"]
    assert described["matrix"]["rmap"] == ["single"]
    assert "cpus" not in described["matrix"]
    assert described["native"]["duration"] == "1s"
    assert described["virtual"]["duration"] == "10ms"
    assert make(flatten(json.loads(json.dumps(described)))) == made
    assert make(flatten(tomllib.loads(to_toml(described)))) == made


def test_repeats_are_interleaved() -> None:
    matrix = Experiment(rmap=("a", "b"), cpus=(1, 2), repeats=2)
    order = [(c.cpus, c.rmap, c.repeat) for c in matrix.cells({"host": (1, 2)})]
    assert order == [(n, d, r) for n in (1, 2) for r in (0, 1) for d in ("a", "b")]


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        *((0, "0 ns"), (999, "999 ns"), (1234, "1.23 us"), (54_700, "54.7 us"), (2.5e9, "2.50 s")),
        *((9_996, "10.0 us"), (99_960, "100 us"), (999_600, "1.00 ms"), (999.6, "1.00 us")),
        *((1000, "1.00 us"), (9.999e11, "1000 s"), (1.2344e12, "1234 s")),
    ],
)
def test_format_ns(ns: float, text: str) -> None:
    assert format_ns(ns) == text


def test_main_reports_status(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["emu", "show", "nope"])
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 2


@pytest.mark.skipif(
    not (shutil.which("strace") and shutil.which("setarch")),
    reason="recording needs strace and setarch",
)
def test_a_recorded_command_is_a_workload(tmp_path: Path) -> None:
    file = tmp_path / "echo.toml"
    done = emu("record", "-o", str(file), "--", "/bin/echo", "hello")
    assert (done.returncode, done.stdout) == (0, "hello\n"), done.stderr
    ran = emu("run", *QUICK, "--rmap", "single", "--workload", str(file), "--json", "-")
    assert ran.returncode == 0, ran.stderr
    (cell,) = json.loads(ran.stdout)["cells"]
    assert cell["ops"] > 0
    libc = [lock for lock in cell["locks"] if lock["file"] == "libc.so.6"]
    assert libc and libc[0]["acquired"] > cell["ops"]
