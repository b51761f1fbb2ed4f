# SPDX-License-Identifier: MIT
"""Watching a run: what is shown, that it changes nothing, and that nothing is left of it."""

from __future__ import annotations

import io
import os
import pty
import re
import select
import shlex
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from emu_command import COMMAND, emu, start, wait_until

import emu as package
from emu import cli_live, live
from emu.results import Host
from emu.store import Owner, Store
from emu.terminal import SafeConsole

LONG = ("--rmap", "single", "--cpus", "64", "--workload", "execl")
VIRTUAL = ("run", *LONG, "--engine", "virtual", "--duration", "2s", "--isolate")


def files(store: Path) -> set[str]:
    return {path.name for path in store.iterdir()} - {"store.sqlite-wal", "store.sqlite-shm"}


def is_claimed(store: Path) -> bool:
    return any(each.status == "running" for each in Store(store).summaries())


def test_nothing_runs(own_store: Path) -> None:
    done = emu("live")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith(f"emu: nothing runs in {own_store}; ")
    package.run(engine="virtual", rmap="single", cpus=1, duration="1ms")
    done = emu("live")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    done = emu("live", "last")
    assert re.fullmatch(r"emu: run \S+ does not go on now\n", done.stderr)
    assert files(own_store) == {"store.sqlite", "host.lock"}


@pytest.mark.parametrize("columns", [40, 60, 100])
def test_no_heading_is_cut_off_on_a_narrow_terminal(columns: int) -> None:
    """The tables of nodes and of locks stood beside each other, whatever room there was."""
    nodes = [live.NodeRate(node, 32, 12_345.0) for node in range(3)]
    inside = live.Inside("exec", "iterations", 0.29, 0.5, nodes, [live.HotLock("pcpu_lock", 0.5)])
    cell = live.CellState("virtual", "single", 96, "execl", 0, inside=inside)
    console = SafeConsole(file=io.StringIO(), width=columns)
    console.print(*cli_live._inside(cell, inside))
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    for heading in ("node", "CPUs", "iterations/s", "waited for", "of all time"):
        assert heading in shown
    assert ("of all time" in shown.split("node", 1)[1].splitlines()[0]) == (columns == 100)


def test_a_predicted_cell_is_seen_from_inside(own_store: Path) -> None:
    run = start(*VIRTUAL)
    wait_until(lambda: is_claimed(own_store))
    seen = start("live")
    assert seen.stdout
    inside = (
        r"single, execl on 64 CPUs \(virtual\): [\d.,k]+ iterations/s, \d+% waiting, most for \w"
    )
    lines = [seen.stdout.readline()]
    while not re.search(inside, lines[-1]):
        assert lines[-1].startswith("run ") and len(lines) < 9, lines
        lines.append(seen.stdout.readline())
    run.send_signal(signal.SIGINT)
    assert run.wait(timeout=20) == 130
    run.communicate()
    out, err = seen.communicate(timeout=20)
    assert (seen.returncode, err) == (0, "")
    last = out.splitlines()[-1]
    assert re.fullmatch(r"run \S+: interrupted, 0 of 1 cell; emu show \S+", last)
    assert files(own_store) == {"store.sqlite", "host.lock"}


def test_what_is_watched_comes_out_the_same(
    own_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"engine": "virtual", "rmap": "single", "cpus": 64, "duration": "9ms"}
    alone = package.run(**options)
    monkeypatch.setattr(live, "PERIOD_S", 0.02)
    monkeypatch.setattr(live, "_FRESH_S", 60)
    published = []
    with live.Watcher(own_store) as watcher:
        watcher.snapshots()
        watched = package.run(
            **options, fresh=True, progress=lambda _: published.extend(watcher.snapshots())
        )
    assert any(cell.inside for each in published for cell in each.running)
    for cell in (*alone.cells, *watched.cells):
        cell.host = Host()
    assert watched.cells == alone.cells


def test_a_measured_cell_is_seen_from_inside(own_store: Path) -> None:
    options = ("--rmap", "single", "--cpus", "2", "--repeats", "1", "--duration", "4s")
    run = start("run", *options)
    wait_until(lambda: is_claimed(own_store))
    with live.Watcher(own_store) as watcher:

        def nodes() -> list[live.NodeRate]:
            cells = [cell for each in watcher.snapshots() for cell in each.running]
            return [node for cell in cells if cell.inside for node in cell.inside.nodes]

        wait_until(lambda: sum(node.per_s for node in nodes()) > 0)
    run.send_signal(signal.SIGINT)
    assert run.wait(timeout=20) == 130
    run.communicate()
    assert files(own_store) == {"store.sqlite", "host.lock"}


def test_who_reads_no_further_ends_the_watching(own_store: Path) -> None:
    run = start(*VIRTUAL)
    wait_until(lambda: is_claimed(own_store))
    line = f"set -o pipefail; {shlex.join(COMMAND)} live | head -1"
    done = subprocess.run(["bash", "-c", line], cwd="/", capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stdout.count("\n"), done.stderr) == (0, 1, "")
    assert run.poll() is None, "the run goes on"
    run.terminate()
    run.communicate(timeout=20)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_dashboard_and_signals(own_store: Path, number: signal.Signals) -> None:
    run = start(*VIRTUAL)
    wait_until(lambda: is_claimed(own_store))
    terminal, theirs = pty.openpty()
    watching = subprocess.Popen(
        [*COMMAND, "live"], stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    )
    os.close(theirs)
    shown = b""
    give_up = time.monotonic() + 20
    while b"waited for" not in shown:
        assert time.monotonic() < give_up, shown.decode()
        if select.select([terminal], [], [], 0.1)[0]:
            shown += os.read(terminal, 65536)
    watching.send_signal(number)
    give_up = time.monotonic() + 20
    # Read on: it cannot end while the terminal takes no more.
    while watching.poll() is None or select.select([terminal], [], [], 0)[0]:
        assert time.monotonic() < give_up, "it goes on"
        if select.select([terminal], [], [], 0.1)[0]:
            try:
                shown += os.read(terminal, 65536)
            except OSError:  # nobody has the other end any more
                break
    assert watching.wait(timeout=20) == 130
    os.close(terminal)
    text = shown.decode()
    assert "Traceback" not in text
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l"), "the cursor is back"
    assert "watched" not in files(own_store)
    assert run.poll() is None, "the run goes on"
    run.terminate()
    run.communicate(timeout=20)


def test_what_a_killed_process_left_is_not_shown_and_goes(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.prepare()
    me = Owner.myself()
    with live.Publisher(tmp_path, "r", "name") as publisher, live.Watcher(tmp_path) as watcher:

        def publish() -> None:
            publisher.publish(done=1, failed=0, total=2, left_s=None, running=list)

        publish()
        assert not list(tmp_path.glob("live-*"))
        assert watcher.snapshots() == []
        publish()
        (snapshot,) = watcher.snapshots()
        assert (snapshot.run, snapshot.done, snapshot.total) == ("r", 1, 2)
        (path,) = tmp_path.glob("live-*.json")
        text = path.read_text().replace(f'"start":{me.start}', '"start":1')
        (tmp_path / "live-1.json").write_text(text)
        (tmp_path / "live-2.json").write_text("{")
        assert len(watcher.snapshots()) == 1
        with live.Publisher(tmp_path, "s", ""):
            assert {each.name for each in tmp_path.glob("live-*")} == {path.name}
    assert not list(tmp_path.glob("live-*"))
    assert not live.is_watched(tmp_path)


def test_a_line_says_what_is_known() -> None:
    cell = live.CellState("native", "single", 2, "execl", 0)
    snapshot = live.Snapshot("r", "", Owner.myself(), 0.0, 3, 1, 8, 30.0, [cell], [])
    from emu.cli_live import line

    assert line([snapshot]) == "run r: 3 of 8 cells, 1 failed; 1 running; 30 s left"
    cell.inside = live.Inside(
        "p", "iterations", 1.0, 0.5, [live.NodeRate(0, 2, 1234.0)], [live.HotLock("l", 0.4)]
    )
    assert line([snapshot]).endswith(
        "; single, execl on 2 CPUs (native): 1,234 iterations/s, 50% waiting, most for l (40%)"
    )
