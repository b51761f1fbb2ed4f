# SPDX-License-Identifier: MIT
"""Whatever ends a run, it says why, and leaves no process, no socket and no shared memory."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from conftest import left_behind
from emu_command import children, cpu_ticks, start, wait_until

import emu
from emu import coordinator
from emu.results import Run
from emu.store import Store

ROOT = Path(__file__).parents[1]
CPUS = 4
LIMIT_S = 3.0


def in_the_middle(process: subprocess.Popen[str]) -> list[int]:
    """Wait until all workers run a phase; their pids, by CPU."""
    wait_until(lambda: len(children(process.pid)) == CPUS or process.poll() is not None)
    workers = children(process.pid)
    wait_until(lambda: process.poll() is not None or all(cpu_ticks(pid) > 20 for pid in workers))
    assert process.poll() is None, process.communicate()
    return workers


def gone(pids: list[int]) -> bool:
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


def end(process: subprocess.Popen[str], since: float) -> tuple[str, str]:
    """Its output, once it has ended within the limit."""
    out, err = process.communicate(timeout=20)
    assert time.monotonic() - since < LIMIT_S
    return out, err


def long_run(*arguments: str) -> subprocess.Popen[str]:
    options = ("--rmap", "single", "--cpus", str(CPUS), "--duration", "60s", "--repeats", "1")
    return start("run", *options, *arguments)


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP, signal.SIGSEGV])
def test_a_worker_that_is_killed_or_stopped_fails_the_cell(number: signal.Signals) -> None:
    process = long_run()
    workers = in_the_middle(process)
    victim = workers[2]
    cpu = workers.index(victim)
    since = time.monotonic()
    os.kill(victim, number)
    out, err = end(process, since)
    assert process.returncode == 1
    assert gone(workers)
    how = "stopped" if number == signal.SIGSTOP else "killed"
    # CPU, process, signal, phase, the call and its place in the workload's file.
    assert re.search(
        rf"CPU {cpu} \(pid {victim}\) was {how} by {number.name}, in phase [\w-]+ "
        r"(during|between two calls, the last was) \w+\(.*\).* \(execl\.toml:\d+: \[program",
        err,
    )
    assert err.count("\n") == 1
    assert "FAILED" in out
    run = emu.load("last")
    assert [cell.status for cell in run.cells] == ["failed"]
    # What somebody else has done is no result: the same command would run the cell again.
    outside = number != signal.SIGSEGV
    assert run.run.status == ("stopped" if outside else "done")
    assert Store().missing(run.run.id) == ({0} if outside else set())
    assert run.cells[0].error is not None
    assert run.cells[0].error in err


@pytest.mark.usefixtures("nothing_left")
def test_all_workers_killed_at_once() -> None:
    process = long_run()
    workers = in_the_middle(process)
    since = time.monotonic()
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    _, err = end(process, since)
    assert process.returncode == 1
    assert "was killed by SIGKILL" in err


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_coordinator_ends_it_cleanly(number: signal.Signals) -> None:
    process = long_run()
    workers = in_the_middle(process)
    since = time.monotonic()
    process.send_signal(number)
    out, err = end(process, since)
    assert process.returncode == 130
    assert gone(workers)
    assert err == ""
    assert "Interrupted after 0 cells" in out


@pytest.mark.usefixtures("nothing_left")
def test_control_c_reaches_everybody_and_finished_cells_are_kept(own_store: Path) -> None:
    """As a terminal does it: the signal goes to the whole process group, twice."""
    store = Store(own_store)
    options = ("--rmap", "single", "--cpus", str(CPUS), "--duration", "200ms", "--repeats", "900")
    process = start("run", *options, "--json", "-")
    wait_until(lambda: store.ids() and len(store.load("last").cells) >= 2)
    since = time.monotonic()
    for _ in range(2):
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.05)
    out, err = end(process, since)
    assert process.returncode == 130
    assert err == ""
    stored = store.load("last")
    assert stored.run.status == "interrupted"
    assert len(stored.cells) >= 2
    assert all(cell.ok for cell in stored.cells)
    assert out.encode() == stored.to_json()


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("delay_s", [0.05, 0.2, 0.4, 0.6, 0.8, 1.0, 1.3])
def test_a_signal_at_any_time_leaves_nothing(delay_s: float) -> None:
    """While Python starts, in the rehearsal, between the forks, in the first cell."""
    process = start("run", "--cpus", "60", "--duration", "20s", "--repeats", "1")
    time.sleep(delay_s)
    since = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, err = end(process, since)
    # Before the command has begun Python itself answers, with its traceback.
    assert process.returncode in (130, -signal.SIGINT, 1)
    if process.returncode == 1:
        assert "KeyboardInterrupt" in err


def test_what_a_killed_coordinator_leaves_goes_with_the_next_run() -> None:
    process = long_run()
    workers = in_the_middle(process)
    before = left_behind()
    process.kill()
    process.communicate()
    wait_until(lambda: gone(workers), LIMIT_S)
    left = {path for path in left_behind() - before if f"emu-{process.pid}-" in path}
    assert len(left) == 2  # the arena and the directory of the sockets
    emu.run(rmap="single", cpus=1, duration="10ms", repeats=1)
    assert not left & left_behind()


def run_design(source: str, folder: Path) -> Run:
    path = folder / "mine.c"
    path.write_text(source)
    return emu.run(rmap=[str(path)], cpus=2, duration="20ms", repeats=1)


@pytest.fixture
def single() -> str:
    return (ROOT / "workers" / "designs" / "rmap" / "single.c").read_text()


def with_first(text: str, old: str, new: str) -> str:
    assert old in text
    return text.replace(old, new, 1)


@pytest.mark.usefixtures("nothing_left")
def test_a_design_that_hangs_is_named(
    single: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coordinator, "_HANG_S", 1.5)
    sleep = "static _Atomic uint32_t never;\n\n\tfor (;;)\n\t\temu_futex_wait(&never, 0);"
    run = run_design(with_first(single, "down_write(&s->i_mmap_rwsem);", sleep), tmp_path)
    (cell,) = run.cells
    assert cell.error is not None
    assert re.search(
        r"CPU \d \(pid \d+\) hangs: nothing for \d s, in phase load during", cell.error
    )


@pytest.mark.usefixtures("nothing_left")
def test_a_broken_invariant_is_told_in_its_own_words(single: str, tmp_path: Path) -> None:
    line = 'EMU_ASSERT(mapping->nr_pages == 0, "as the %s wants", "test");\n\tdown_write('
    run = run_design(with_first(single, "down_write(", line), tmp_path)
    (cell,) = run.cells
    assert cell.error is not None
    assert re.search(r"killed by SIGABRT: BUG: CPU \d at \d+ ns, seed 1: mine.c:\d+", cell.error)
    assert "as the test wants" in cell.error


@pytest.mark.usefixtures("nothing_left")
def test_a_design_that_leaks_does_not_pass_the_drain(single: str, tmp_path: Path) -> None:
    leak = "emu_alloc(64, emu_node_id());\n\tdown_write(&s->i_mmap_rwsem);"
    run = run_design(with_first(single, "down_write(&s->i_mmap_rwsem);", leak), tmp_path)
    (cell,) = run.cells
    assert cell.error is not None
    assert re.fullmatch(r"after the drain phase the arena leaks \d+ objects", cell.error)
