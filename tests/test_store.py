# SPDX-License-Identifier: MIT
"""The store loses nothing: killed processes, two at once, a full disk, foreign files."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import multiprocess
import pytest
from emu_command import COMMAND, children, emu, start, wait_until
from kill_and_resume import compare, end, finished, kill_often, rows

import emu as package
from emu import coordinator
from emu.errors import InputError
from emu.experiment import Cell
from emu.histogram import decode, new_hdr
from emu.results import CellResult, Host, Latency, Memory, Phase, RunInfo
from emu.store import Owner, Store

CELL = Cell("single", "mm", "t", 1, "w", "virtual", 1, 0)


def info(run_id: str) -> RunInfo:
    return RunInfo(id=run_id, started="2026-01-01", version="0", command=[], experiment={}, host={})


def result(ops: int = 5) -> CellResult:
    hdr = new_hdr()
    for ns in (100, 200, 1000 * ops):
        hdr.record_value(ns)
    latency = {"exec": Latency(count=3, hdr=hdr.encode().decode()), "fork": Latency()}
    phase = Phase(
        name="p",
        unit="exec",
        ops=ops,
        seconds=1.0,
        counts_ops=True,
        wait_share=0.0,
        latency_ns=latency,
        locks=[],
    )
    return CellResult(
        **{name: getattr(CELL, name) for name in CELL.__dataclass_fields__},
        status="ok",
        ops=ops,
        seconds=1.0,
        ops_per_s=float(ops),
        latency_ns=latency,
        memory=Memory(),
        host=Host(),
        phases=[phase],
    )


def begun(store: Store, run_id: str = "r", cells: int = 1) -> str:
    """A run with cells that are still to be run."""
    store.prepare()
    return store.begin(info(run_id), [CELL] * cells, f"of {run_id}")


# ---- runs and cells ----


def test_runs_are_found_by_prefix_and_last(tmp_path: Path) -> None:
    store = Store(tmp_path / "a" / "b")
    assert store.ids() == []
    with pytest.raises(InputError, match="there is none yet"):
        store.load("last")
    begun(store, "20260101-1")
    with pytest.raises(InputError, match="no run ''"):
        store.remove("")
    for run_id in ("20260101-2", "20260102-1"):
        begun(store, run_id)
    assert store.load("last").run.id == "20260102-1"
    assert store.load("20260102").run.id == "20260102-1"
    with pytest.raises(InputError, match="more than one"):
        store.load("20260101")
    with pytest.raises(InputError, match="20260102-1"):
        store.load("x")


def test_a_result_comes_back_as_it_was_with_its_histograms_beside_it(tmp_path: Path) -> None:
    store = Store(tmp_path)
    begun(store)
    store.save("r", 0, result())
    assert store.load("r").cells == [result()]
    (document,) = rows(store, "SELECT document FROM cell")[0]
    assert json.loads(document)["latency_ns"]["exec"]["hdr"] == ""
    found = rows(store, "SELECT phase, op FROM histogram ORDER BY phase")
    assert found == [("", "exec"), ("p", "exec")]
    assert decode(store.load("r").cells[0].latency_ns["exec"].hdr).get_total_count() == 3


def test_a_finished_cell_is_not_overwritten(tmp_path: Path) -> None:
    store = Store(tmp_path)
    begun(store)
    store.save("r", 0, result(5))
    store.save("r", 0, result(6))
    assert [cell.ops for cell in store.load("r").cells] == [5]
    assert store.claim("r", [0], 1.0) is None


def test_a_cell_that_somebody_else_ended_is_run_again(tmp_path: Path) -> None:
    store = Store(tmp_path)
    begun(store)
    killed = msgspec.structs.replace(result(1), status="failed", error="killed")
    store.save("r", 0, killed, again=True)
    assert [cell.error for cell in store.load("r").cells] == ["killed"]
    assert store.missing("r") == {0}
    assert store.claim("r", [0], 1.0) == 0
    store.save("r", 0, result(2))
    assert [cell.ops for cell in store.load("r").cells] == [2]
    assert store.missing("r") == set()


def test_keys_that_are_added_later_do_not_hurt(tmp_path: Path) -> None:
    store = Store(tmp_path)
    begun(store)
    store.save("r", 0, result())
    with contextlib.closing(sqlite3.connect(tmp_path / "store.sqlite")) as connection, connection:
        connection.execute("UPDATE cell SET document = json_set(document, '$.something_new', 1)")
    assert store.load("r").cells == [result()]


def test_a_run_of_a_file_is_loaded_too(tmp_path: Path) -> None:
    store = Store(tmp_path)
    begun(store)
    store.save("r", 0, result())
    file = tmp_path / "r.json"
    file.write_bytes(store.load("r").to_json())
    assert store.load(str(file)) == store.load("r")
    file.write_text("{")
    with pytest.raises(InputError, match="not the result of a run"):
        store.load(str(file))
    ragged = json.loads(store.load("r").to_json())
    ragged["cells"][0]["node_transfers"] = [[1, 2], [3]]
    file.write_text(json.dumps(ragged))
    with pytest.raises(InputError, match=r"node_transfers is not square - at `\$\.cells\[0\]`"):
        store.load(str(file))


def test_removing_takes_cells_and_histograms_along(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for run_id in ("r", "s"):
        begun(store, run_id)
        store.save(run_id, 0, result())
    assert store.remove("r") == "r"
    assert store.ids() == ["s"]
    assert rows(store, "SELECT DISTINCT run FROM cell UNION SELECT run FROM histogram") == [("s",)]


# ---- claims ----


def test_a_claim_holds_while_its_process_lives(tmp_path: Path) -> None:
    store = Store(tmp_path)
    begun(store, cells=3)
    assert [store.claim("r", [1, 0], 9.0) for _ in range(3)] == [1, 0, None]
    with pytest.raises(InputError, match="still runs"):
        store.remove("r")
    assert store.summaries()[0].status == "running"
    store.end("r", "interrupted")
    assert store.summaries()[0].status == "interrupted"
    assert store.claim("r", [1, 0], 9.0) == 1


@pytest.mark.parametrize(
    ("change", "free"),
    [
        ("start = start + 1", True),  # the number belongs to another process now
        ("pid = 4194303", True),
        ("host = 'elsewhere'", False),
        ("host = 'elsewhere', lease_s = 1", True),
    ],
)
def test_a_claim_of_a_dead_process_counts_for_nothing(
    change: str, free: bool, tmp_path: Path
) -> None:
    store = Store(tmp_path)
    begun(store)
    store.claim("r", [0], 99.0)
    with contextlib.closing(sqlite3.connect(tmp_path / "store.sqlite")) as connection, connection:
        connection.execute(f"UPDATE claim SET {change}")
    assert (store.claim("r", [0], 9.0) == 0) == free


def test_a_process_is_known_by_its_start_too() -> None:
    me = Owner.myself()
    assert me.is_alive(0)
    assert not Owner(me.host, me.pid, me.start + 1).is_alive(time.time() + 9)


CELLS = 40


def matrix(*more: str) -> tuple[str, ...]:
    arguments = ("--engine", "virtual", "--rmap", "single,numa-locks", "--cpus", "1..16")
    return ("run", *arguments, "--duration", "2ms", "--repeats", "4", *more)


def test_killed_twenty_times_equals_an_uninterrupted_run(tmp_path: Path) -> None:
    """Also: what had finished before a kill is never touched again."""
    whole, killed = Store(tmp_path / "whole"), Store(tmp_path / "killed")
    end(matrix(), whole)
    there = kill_often(matrix(), killed, 20, most_s=0.7)
    assert 0 < there < CELLS, "it was never killed in the middle"
    assert f"{there} of {CELLS} cells finished" in end(matrix(), killed)
    assert compare(killed, whole) == CELLS


def test_two_at_once_share_the_cells(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    both = [start(*matrix("--json", "-", "--store", str(store.directory))) for _ in range(2)]
    outputs = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert outputs[0][0] == outputs[1][0]
    assert len(json.loads(outputs[0][0])["cells"]) == CELLS
    assert len(store.ids()) == 1
    assert rows(store, "SELECT * FROM claim") == []


def test_a_store_is_made_by_several_at_once(tmp_path: Path) -> None:
    stores = [Store(tmp_path / str(number)) for number in range(100)]
    together = multiprocess.get_context("fork").Barrier(3)

    def make() -> int:
        for store in stores:
            together.wait(timeout=20)
            store.prepare()
        return len(stores)

    def look() -> int:
        for store in stores:
            together.wait(timeout=20)
            while not (store.directory / "store.sqlite").exists():
                assert store.summaries() == []
            assert store.summaries() == []
        return len(stores)

    with contextlib.ExitStack() as processes:
        at_once = [processes.enter_context(coordinator.Child(work)) for work in (make, make, look)]
        assert [child.result() for child in at_once] == [len(stores)] * 3


def test_cells_of_one_that_was_killed_are_taken_over(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    long = ("run", "--engine", "virtual", "--rmap", "single", "--cpus", "64", "--duration", "60ms")
    first = start(*long, "--store", str(store.directory))
    wait_until(lambda: store.ids() and rows(store, "SELECT * FROM claim"))
    second = start(*long, "--store", str(store.directory))
    wait_until(lambda: children(first.pid))
    first.kill()
    first.communicate()
    _, err = second.communicate(timeout=60)
    assert second.returncode == 0, err
    assert "0 of 1 cell finished" in err
    assert rows(store, "SELECT status FROM cell") == [("ok",)]


def test_native_cells_run_in_turns_over_the_repeats() -> None:
    run = package.run(rmap="single,btree", cpus=[1, 2], repeats=2, duration="10ms")
    assert [(c.cpus, c.repeat, c.rmap) for c in run.cells] == [
        (cpus, repeat, rmap) for cpus in (1, 2) for repeat in (0, 1) for rmap in ("single", "btree")
    ]
    query = "SELECT repeat, cpus, rmap FROM cell ORDER BY finished_s"
    assert rows(Store(), query) == [
        (repeat, cpus, rmap) for repeat in (0, 1) for cpus in (1, 2) for rmap in ("single", "btree")
    ]


def test_native_cells_have_the_host_for_themselves(tmp_path: Path) -> None:
    """Among the runs of a store: while somebody predicts, nobody measures."""
    store = Store(tmp_path / "store")
    store.prepare()
    with store.machine(alone=False) as others:
        assert others.take()
        options = ("--rmap", "single", "--cpus", "1", "--duration", "10ms", "--repeats", "1")
        process = start("run", *options, "--store", str(store.directory))
        wait_until(lambda: store.ids())
        time.sleep(0.5)
        assert rows(store, "SELECT status FROM cell") == [(None,)]
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert rows(store, "SELECT status FROM cell") == [("ok",)]


@pytest.mark.usefixtures("nothing_left")
def test_control_c_ends_virtual_cells_at_once(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    long = ("--cpus", "4,8", "--duration", "60s", "--store", str(store.directory))
    process = start("run", "--engine", "virtual", "--rmap", "single", "--jobs", "2", *long)
    wait_until(lambda: len(children(process.pid)) == 2 and store.ids())
    pids = children(process.pid)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=10)
    assert (process.returncode, err) == (130, "")
    assert "Interrupted after 0 cells" in out
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert rows(store, "SELECT * FROM claim") == []


def test_the_number_of_jobs_does_not_change_the_results() -> None:
    options: dict[str, Any] = {"engine": "virtual", "cpus": "1..8", "duration": "1ms"}
    one, three = (package.run(**options, jobs=jobs, fresh=True) for jobs in (1, 3))
    for field in ("ops", "seconds", "wait_share", "latency_ns.exec.hdr"):
        assert one.array(field).tolist() == three.array(field).tolist()


# ---- what a store refuses ----


def test_directory_and_files_are_private(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    begun(store)
    assert stat.S_IMODE(store.directory.stat().st_mode) == 0o700
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in store.directory.iterdir()}
    assert modes["store.sqlite"] == 0o600


def test_a_symbolic_link_is_refused(tmp_path: Path) -> None:
    real = Store(tmp_path / "real")
    begun(real)
    (tmp_path / "link").symlink_to(real.directory)
    for name in ("other", "third"):
        (tmp_path / name).mkdir()
    (tmp_path / "third" / "host.lock").symlink_to(real.directory / "store.sqlite")
    (tmp_path / "other" / "store.sqlite").symlink_to(real.directory / "store.sqlite")
    for name in ("link", "other", "third"):
        with pytest.raises(InputError, match="is a symbolic link"):
            Store(tmp_path / name).prepare()
    for name in ("link", "other"):
        with pytest.raises(InputError, match="is a symbolic link"):
            Store(tmp_path / name).ids()


def test_a_directory_that_anybody_may_write_is_refused(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store").chmod(0o777)
    with pytest.raises(InputError, match="everybody may write there"):
        Store(tmp_path / "store").prepare()


def test_a_file_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("")
    with pytest.raises(InputError, match="no directory"):
        Store(tmp_path / "store").prepare()


def test_a_newer_store_and_a_foreign_database_are_refused(tmp_path: Path) -> None:
    store = Store(tmp_path)
    begun(store)
    with contextlib.closing(sqlite3.connect(tmp_path / "store.sqlite")) as connection, connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(InputError, match=r"newer mm-emu wrote this store \(version 99"):
        store.ids()
    (tmp_path / "foreign").mkdir()
    foreign = tmp_path / "foreign" / "store.sqlite"
    with contextlib.closing(sqlite3.connect(foreign)) as connection, connection:
        connection.execute("CREATE TABLE x (y)")
    with pytest.raises(InputError, match="not mm-emu's"):
        Store(foreign.parent).prepare()
    foreign.write_bytes(b"no database at all " * 100)
    with pytest.raises(InputError, match="damaged or no store"):
        Store(foreign.parent).prepare()


def test_a_name_that_is_no_text_is_damage(tmp_path: Path) -> None:
    store = Store(tmp_path)
    begun(store)
    with contextlib.closing(sqlite3.connect(tmp_path / "store.sqlite")) as connection, connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    file = tmp_path / "store.sqlite"
    whole = file.read_bytes()
    assert whole.count(b"tablehistogramhistogram") == 1  # in the schema
    file.write_bytes(whole.replace(b"tablehistogramhi", b"tablehistogr\xe1mhi"))
    with pytest.raises(InputError, match="damaged or no store"):
        store.ids()


# ---- a full disk ----

FILL = """
import resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_store import begun, result
from emu.errors import EmuError
from emu.store import Store
store = Store(Path(sys.argv[1]))
begun(store, cells=1000)
size = (store.directory / "store.sqlite").stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100_000, -1))
for number in range(1000):
    try:
        store.save("r", number, result(number))
    except EmuError as error:
        print(number, error)
        break
"""


def test_what_was_saved_before_the_disk_was_full_is_kept(tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk."""
    command = [sys.executable, "-c", FILL, str(tmp_path / "store"), str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    saved, _, message = done.stdout.partition(" ")
    assert "no room to write" in message
    store = Store(tmp_path / "store")
    assert [cell.ops for cell in store.load("r").cells] == list(range(int(saved)))
    assert rows(store, "PRAGMA integrity_check") == [("ok",)]
    store.save("r", int(saved), result())
    assert len(store.load("r").cells) == int(saved) + 1


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")
def test_a_run_on_a_full_disk_ends_with_one_line_and_goes_on_later(tmp_path: Path) -> None:
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("no mount namespaces here")
    disk, kept = tmp_path / "disk", tmp_path / "kept"
    disk.mkdir()
    run = " ".join([*COMMAND, *matrix()])
    mount = f"mount -t tmpfs -o size=400k none {disk}"
    script = f"{mount} && {run} --store {disk}/s; s=$?; cp -r {disk}/s {kept}; exit $s"
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script], cwd="/", capture_output=True, text=True
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr.count("\n") == 1
    assert "no room to write" in done.stderr
    before = finished(Store(kept))
    assert 0 < len(before) < CELLS
    again = emu(*matrix("--store", str(kept)))
    assert again.returncode == 0, again.stderr
    now = finished(Store(kept))
    assert len(now) == CELLS
    assert {number: now[number] for number in before} == before


# ---- commands ----


def test_runs_rm_and_export(own_store: Path, tmp_path: Path) -> None:
    options = ("--engine", "virtual", "--rmap", "single", "--duration", "1ms", "--cpus", "1,2")
    assert emu("runs").stdout.split() == [
        "run",
        "experiment",
        "engines",
        "cells",
        "failed",
        "status",
    ]
    done = emu("run", *options, "--json", "-")
    assert done.returncode == 0, done.stderr
    (run_id,) = Store(own_store).ids()
    assert emu("runs").stdout.splitlines()[1].split() == [
        run_id,
        "-",
        "virtual",
        "2/2",
        "0",
        "done",
    ]
    assert emu("export", "last", "--format", "json").stdout == done.stdout
    file = tmp_path / "cells.csv"
    assert emu("export", run_id, "--format", "csv", "-o", str(file)).returncode == 0
    assert file.read_text() == emu("report", "last", "--format", "csv").stdout
    assert file.read_text().count("predicted") == 2
    bad = emu("export", "last", "--format", "xls")
    assert (bad.returncode, bad.stderr.count("\n")) == (2, 1)
    assert emu("rm", "last", run_id[:-1]).returncode == 0
    assert Store(own_store).ids() == []
    assert emu("rm", run_id).returncode == 2


def test_parquet_needs_pyarrow() -> None:
    package.run(engine="virtual", rmap="single", duration="1ms", cpus=1)
    done = emu("export", "last", "--format", "parquet")
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert "pip install pyarrow" in done.stderr
    else:
        assert done.stdout.startswith("PAR1")
