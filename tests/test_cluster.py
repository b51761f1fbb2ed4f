# SPDX-License-Identifier: MIT
"""`emu run --cluster` with a real scheduler and real workers, processes of this host."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from emu_command import COMMAND, emu, start, wait_until

import emu as package
from emu import cluster, schedule
from emu.cluster import Cluster
from emu.coordinator import StopFlag
from emu.errors import EmuError, InputError
from emu.results import CellResult, Host
from emu.schedule import digest
from emu.store import Store

ROOT = Path(__file__).parents[1]
CELLS = ("--rmap", "single,numa-locks", "--topology", "laptop-8c", "--cpus", "1,2")
VIRTUAL = ("run", "--engine", "virtual", *CELLS, "--repeats", "1", "--duration", "2ms")
LONG = ("run", "--engine", "virtual", "--rmap", "single", "--cpus", "64", "--duration", "60s")


def dask(what: str, folder: Path, *options: str) -> subprocess.Popen[bytes]:
    """A scheduler or a worker; they find each other by a file in the folder."""
    command = [sys.executable, "-m", f"distributed.cli.dask_{what}", "--no-dashboard"]
    command += ["--scheduler-file", str(folder / "scheduler.json"), "--host", "127.0.0.1"]
    with (folder / f"{what}.log").open("ab") as log:
        return subprocess.Popen([*command, *options], stdout=log, stderr=log, cwd=folder)


def address_in(folder: Path) -> str:
    """Where the scheduler listens, once it does."""
    file = folder / "scheduler.json"
    wait_until(lambda: file.exists() and file.read_text().strip().endswith("}"), timeout_s=60)
    return str(json.loads(file.read_text())["address"])


def cells_of(worker: subprocess.Popen[bytes]) -> list[int]:
    """The processes in which it runs cells; its threads start them."""
    found = []
    for file in Path(f"/proc/{worker.pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += [int(pid) for pid in file.read_text().split()]
    return [pid for pid in found if b"emu.cluster" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def stopped_amid_a_cell(worker: subprocess.Popen[bytes]) -> bool:
    """Stop it if it runs a cell, whose answer it can then give to nobody."""
    if cells_of(worker):
        worker.send_signal(signal.SIGSTOP)
        if cells_of(worker):
            return True
        worker.send_signal(signal.SIGCONT)
    return False


def end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Of a scheduler without workers."""
    folder = tmp_path_factory.mktemp("dask")
    scheduler = dask("scheduler", folder, "--port", "0")
    try:
        address_in(folder)
        yield folder
    finally:
        end(scheduler)


@pytest.fixture(scope="module")
def address(folder: Path) -> str:
    return address_in(folder)


@pytest.fixture(scope="module")
def steady(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A worker that is there for all tests; it may measure."""
    process = worker(folder, "--resources", "native=1")
    try:
        wait_until(lambda: registered(folder) > 0, timeout_s=60)
        yield process
    finally:
        end(process)


def worker(folder: Path, *options: str) -> subprocess.Popen[bytes]:
    return dask("worker", folder, "--nthreads", "1", "--no-nanny", *options)


def registered(folder: Path) -> int:
    """How many workers the scheduler has taken since its start."""
    return (folder / "worker.log").read_text().count("Registered to")


def plain(cells: list[CellResult]) -> list[CellResult]:
    """Without what is the host's."""
    for cell in cells:
        cell.host = Host()
    return cells


def test_a_killed_workers_cells_run_elsewhere(
    folder: Path, address: str, steady: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    """And what comes back is what comes out here; what is measured goes where it may."""
    both = ("--engine", "native,virtual", *CELLS, "--repeats", "1", "--duration", "10ms")
    already = registered(folder)
    lost = worker(folder)
    try:
        wait_until(lambda: registered(folder) > already, timeout_s=60)
        run = start("run", *both, "--cluster", address, "--store", str(tmp_path))
        wait_until(lambda: stopped_amid_a_cell(lost), timeout_s=60)
        (cell,) = cells_of(lost)
    finally:
        end(lost)
    _, err = run.communicate(timeout=120)
    assert run.returncode == 0, err
    assert "is lost; its cells run again elsewhere" in err
    assert not Path(f"/proc/{cell}").exists()
    done = Store(tmp_path).load("last")
    assert [cell.status for cell in done.cells] == ["ok"] * 8
    assert {cell.host.node for cell in done.cells} == {os.uname().nodename}
    assert list(done.run.nodes) == [os.uname().nodename]
    here = package.run(
        engine="virtual",
        rmap="single,numa-locks",
        topology="laptop-8c",
        cpus="1,2",
        repeats=1,
        duration="10ms",
    )
    assert plain([c for c in done.cells if c.engine == "virtual"]) == plain(here.cells)


def test_interrupted_and_gone_on_with(address: str, steady: subprocess.Popen[bytes]) -> None:
    command = (*VIRTUAL, "--cluster", address)
    run = start(*command)
    wait_until(lambda: Store().ids() and Store().summaries()[0].done, timeout_s=60)
    run.send_signal(signal.SIGINT)
    out, err = run.communicate(timeout=60)
    assert run.returncode == 130, (out, err)
    assert "Traceback" not in err
    before = package.load("last")
    assert before.run.status == "interrupted"
    assert 0 < len(before.cells) < 4
    run = start(*LONG, "--cluster", address)
    wait_until(lambda: cells_of(steady), timeout_s=60)
    run.kill()
    run.communicate()
    wait_until(lambda: not cells_of(steady), timeout_s=60)
    again = emu(*command, timeout_s=120)
    assert again.returncode == 0, again.stderr
    assert f"going on with run {before.run.id}: {len(before.cells)} of 4 cells" in again.stderr
    assert len(package.load(before.run.id).cells) == 4


def test_files_go_along_and_failures_come_back(
    address: str, steady: subprocess.Popen[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = (ROOT / "workers/designs/rmap/single.c").read_text()
    Path("mine.c").write_text(source)
    options: dict[str, Any] = {"engine": "virtual", "cluster": address, "topology": "laptop-8c"}
    run = package.run(rmap="single,./mine.c", cpus=1, duration="1ms", **options)
    assert [cell.rmap for cell in run.cells] == ["single", "./mine.c"]
    assert run.cells[0].ops == run.cells[1].ops > 0
    failed: list[CellResult] = []
    run = package.run(
        rmap="single", cpus=8, duration="60s", timeout="1s", on_failure=failed.append, **options
    )
    assert [cell.error for cell in run.cells] == ["not done after 1 s (--timeout)"]
    assert [cell.rmap for cell in failed] == ["single"]


def look(address: str, build: str, notices: list[str]) -> None:
    with StopFlag() as stop, Cluster(address, build, notices.append, stop) as there:
        there.look()
        there.explain_waiting("native")


def test_versions_are_compared_first(
    address: str, steady: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    notices: list[str] = []
    look(address, digest(), notices)
    assert notices == []
    with pytest.raises(InputError, match="has another build of mm-emu"):
        look(address, "0", notices)
    ours = cluster._probe()()
    assert {"mm-emu", "Python", "build", "numpy", "msgspec", "distributed"} <= set(ours)

    def pretend(**other: str) -> Callable[[], Callable[[], dict[str, str]]]:
        probe = cluster._probe()
        calls = iter([probe])
        return lambda: next(calls, lambda: ours | other)

    monkeypatch.setattr(cluster, "_probe", pretend(numpy="0.1"))
    look(address, digest(), notices)
    assert len(notices) == 1
    assert f"has numpy {ours['numpy']} (0.1 here)" in notices[0]
    monkeypatch.undo()
    monkeypatch.setattr(cluster, "_probe", pretend(Python="2.7"))
    with pytest.raises(InputError, match=r"has Python 3.* and here is 2.7; install the same"):
        look(address, digest(), notices)


def test_another_build_on_a_worker_is_told_before_a_run_is_begun(
    address: str, steady: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule, "digest", lambda: "0")
    with pytest.raises(InputError, match="has another build of mm-emu"):
        package.run(engine="virtual", rmap="single", cpus=1, duration="1ms", cluster=address)
    assert Store().ids() == []


def test_what_cannot_be_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_CONNECT_S", 0.5)
    options: dict[str, Any] = {"engine": "virtual", "rmap": "single", "cpus": 1, "duration": "1ms"}
    wrong = {
        "tcp://127.0.0.1:9": "--cluster tcp://127.0.0.1:9: no Dask scheduler answers there",
        "what://127.0.0.1:9": "no Dask scheduler answers there",
    }
    for address, message in wrong.items():
        with pytest.raises(InputError, match=message):
            package.run(**options, cluster=address)
        assert Store().ids() == []
    with pytest.raises(InputError, match="--topology host: is another machine on each worker"):
        package.run(**options, topology="host", cluster="tcp://127.0.0.1:9")
    with pytest.raises(InputError, match="--trace: is done on this machine"):
        package.run(**options, trace="x.json", cluster="tcp://127.0.0.1:9")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'mm-emu\[cluster\]'"):
        package.run(**options, cluster="tcp://127.0.0.1:9")


@pytest.mark.parametrize("address", ["nowhere", "http://127.0.0.1:9", "tls://127.0.0.1:9"])
def test_an_address_that_is_none_is_said_at_once_and_in_one_line(address: str) -> None:
    began = time.monotonic()
    cell = ("--engine", "virtual", "--rmap", "single", "--cpus", "1", "--duration", "1ms")
    done = subprocess.run(
        [*COMMAND, "run", *cell, "--cluster", address], cwd="/", capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert f"--cluster {address}: no Dask scheduler answers there" in done.stderr
    assert time.monotonic() - began < 15


def test_a_scheduler_that_goes_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "_GONE_S", 0.0)
    scheduler = dask("scheduler", tmp_path, "--port", "0")
    notices: list[str] = []
    try:
        address = address_in(tmp_path)
        with StopFlag() as stop, Cluster(address, digest(), notices.append, stop) as there:
            there.look()
            there.explain_waiting("virtual")
            there.explain_waiting("virtual")
            assert notices == [f"waiting for a worker: dask worker {address}"]
            end(scheduler)
            with pytest.raises(EmuError, match=r"is gone .*the same command goes on"):
                for _ in range(100):
                    there._looked_s -= 2
                    there.look()
    finally:
        end(scheduler)
