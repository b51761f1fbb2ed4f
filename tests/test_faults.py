# SPDX-License-Identifier: MIT
"""Whatever ends a run, it says why, and leaves no process, no socket and no shared memory."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from emu_command import COMMAND, children, cpu_ticks, start, wait_until
from mm_machine import Machine

import emu
from emu import coordinator
from emu.coordinator import CellFailed
from emu.errors import InputError
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
    # The cell; the command has a table to print then.
    wait_until(lambda: gone(workers))
    assert time.monotonic() - since < LIMIT_S
    out, err = process.communicate(timeout=20)
    assert process.returncode == 1
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
def test_a_worker_that_dies_between_two_phases_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """ZeroMQ knows by then that there is nobody to send the next phase to."""
    send = coordinator.workers.Workers._send

    def kill_and_send(self: Any, message: Any) -> None:
        victim = self._processes[1].pid
        os.kill(victim, signal.SIGKILL)
        os.waitid(os.P_PID, victim, os.WEXITED | os.WNOWAIT)
        time.sleep(0.2)
        send(self, message)

    monkeypatch.setattr(coordinator.workers.Workers, "_send", kill_and_send)
    run = emu.run(rmap="single", cpus=2, duration="40ms", repeats=1)
    (cell,) = run.cells
    assert cell.error is not None
    assert re.search(r"^CPU 1 \(pid \d+\) was killed by SIGKILL, in phase load", cell.error)


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize(
    ("number", "how"), [(signal.SIGSTOP, "was stopped by"), (signal.SIGKILL, "died:")]
)
def test_who_looks_at_the_arena_may_be_killed_or_stopped(
    monkeypatch: pytest.MonkeyPatch, number: signal.Signals, how: str
) -> None:
    def strike(core: Any, plan: Any, name: str) -> None:
        os.kill(os.getpid(), number)

    monkeypatch.setattr(coordinator.cell, "gather", strike)
    run = emu.run(rmap="single", cpus=2, duration="40ms", repeats=1)
    (cell,) = run.cells
    words = rf"after phase exec the arena cannot be looked at: who looked {how} {number.name}"
    assert cell.error == words
    assert run.run.status == "stopped"
    assert "Stopped after 1 cell; the same command goes on from there." in str(run)


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize(
    ("number", "how"), [(signal.SIGSTOP, "stopped"), (signal.SIGKILL, "killed")]
)
def test_a_cpu_of_a_check_may_be_killed_or_stopped(number: signal.Signals, how: str) -> None:
    def strike() -> None:
        os.kill(os.getpid(), number)

    machine = Machine("single")
    with pytest.raises(CellFailed, match=f"CPU 0 was {how} by {number.name}") as failed:
        coordinator.on_cpus(
            machine.core, 1, strike, progress=lambda: None, doing=lambda _: None, hang_s=LIMIT_S
        )
    assert failed.value.outside


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize(
    ("scribble", "error"),
    [
        (
            "current->sites[i].parent = i > 1, current->sites[1].function = (char *)8;",
            "the arena cannot be looked at: .*SIGSEGV",
        ),
        ("current->sites[i].parent = i;", "the call sites of CPU 0 are damaged"),
        ("memset((void *)0x200000000000, 0x5a, 1024);", r"CPU \d \(pid \d+\) was killed by SIG"),
    ],
    ids=["pointer", "loop", "header"],
)
def test_a_design_that_writes_over_the_arena_fails_its_cell_and_no_other(
    own_store: Path, tmp_path: Path, scribble: str, error: str
) -> None:
    good = (ROOT / "workers" / "designs" / "rmap" / "single.c").read_text()
    place = "struct vm_area_struct **prevs, uint32_t n)\n{\n"
    assert good.count(place) == 1
    file = tmp_path / "bad.c"
    loop = f"for (uint32_t i = 1; i < EMU_SITES_MAX; i++) {{ {scribble} }}"
    late = f"static int calls;\n\tif (++calls > 500) {loop}\n"
    file.write_text("#include <string.h>\n" + good.replace(place, place + late))
    options = ("--cpus", "2", "--duration", "300ms", "--repeats", "1")
    process = start("run", "--rmap", f"{file},single", *options)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    run = Store(own_store).load("last")
    assert [cell.status for cell in run.cells] == ["failed", "ok"]
    said = run.cells[0].error or ""
    assert re.search(error, said), said
    assert said in err


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize(
    ("number", "end"),
    [(signal.SIGKILL, "died: SIGKILL"), (signal.SIGSTOP, "was stopped by SIGSTOP")],
)
def test_a_child_that_ends_in_the_middle_of_its_answer(number: signal.Signals, end: str) -> None:
    def answers(send: Any) -> bytes:
        send(b"first")
        threading.Timer(0.2, os.kill, (os.getpid(), number)).start()
        return bytes(1 << 24)  # more than the pipe takes

    with coordinator.Child(answers, talks=True) as child:
        assert child.result() == b"first"
        time.sleep(0.5)
        with pytest.raises(CellFailed, match=f"the virtual machine {end}"):
            child.result()


@pytest.mark.usefixtures("nothing_left")
def test_a_process_apart_that_is_stopped_is_named() -> None:
    before = children(os.getpid())

    def stops_it() -> bool:
        for pid in set(children(os.getpid())).difference(before):
            os.kill(pid, signal.SIGSTOP)
        return False

    with pytest.raises(CellFailed, match="the process of the cell was stopped by SIGSTOP"):
        # Times its argument for two seconds, whatever number that is.
        coordinator.run_apart("timeit", b"", stops_it)


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
    assert "Interrupted after 0 cells; the same command goes on" in out


@pytest.mark.usefixtures("nothing_left")
def test_control_c_reaches_everybody_and_finished_cells_are_kept(own_store: Path) -> None:
    """As a terminal does it: the signal goes to the whole process group, twice."""
    store = Store(own_store)
    options = ("--rmap", "single", "--cpus", str(CPUS), "--duration", "200ms", "--repeats", "900")
    process = start("run", *options, "--json", "-")
    wait_until(
        lambda: process.poll() is not None or (store.ids() and len(store.load("last").cells) >= 2)
    )
    assert process.poll() is None, process.communicate()
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


def test_a_signal_while_the_command_loads_is_no_traceback(tmp_path: Path) -> None:
    # Something that it loads takes for ever.
    (tmp_path / "typer.py").write_text("import time\nprint('here', flush=True)\ntime.sleep(60)\n")
    with subprocess.Popen(
        [*COMMAND, "runs"],
        cwd="/",
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout and process.stdout.readline() == "here\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=10)
    assert (process.returncode, err) == (130, "")


def test_what_a_killed_coordinator_leaves_goes_with_the_next_run() -> None:
    process = long_run()
    workers = in_the_middle(process)
    folders = (Path("/dev/shm"), Path("/tmp"))
    mine = [path for folder in folders for path in folder.glob(f"emu-{process.pid}-*")]
    assert len(mine) == 2  # the arena and the directory of the sockets
    process.kill()
    process.communicate()
    wait_until(lambda: gone(workers), LIMIT_S)
    emu.run(engine="virtual", rmap="single", cpus=1, duration="1ms")
    assert not any(path.exists() for path in mine)


def strike_a_virtual_cell(rmap: str, number: signal.Signals) -> str:
    """What a run says whose first cell was struck."""
    options = ("--rmap", rmap, "--cpus", "64", "--duration", "2s", "--jobs", "1")
    process = start("run", "--engine", "virtual", *options)

    def cell() -> int | None:
        """What was before it, the rehearsal, took no time."""
        for pid in children(process.pid):
            with contextlib.suppress(OSError):
                if cpu_ticks(pid) > 20:
                    return pid
        return None

    wait_until(lambda: cell() or process.poll() is not None)
    victim = cell()
    assert victim is not None
    since = time.monotonic()
    os.kill(victim, number)
    _, err = end(process, since)
    assert process.returncode == 1
    return err


@pytest.mark.usefixtures("nothing_left")
def test_a_virtual_cell_that_is_killed_twice_is_not_tried_for_ever() -> None:
    """As it is by the kernel, each time, where memory does not suffice."""
    assert "SIGKILL" in strike_a_virtual_cell("single", signal.SIGKILL)
    (run,) = Store().ids()
    assert Store().missing(run) == {0}
    err = strike_a_virtual_cell("single", signal.SIGKILL)
    assert Store().ids() == [run]
    assert Store().missing(run) == set()
    (cell,) = emu.load("last").cells
    assert cell.error is not None
    assert cell.error in err
    words = r"SIGKILL, for the second time, so .*single.*64.* not tried again; .* need [\d,]+ MiB"
    assert re.search(words, cell.error)


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_virtual_cell_that_is_killed_or_stopped_ends_the_run(number: signal.Signals) -> None:
    err = strike_a_virtual_cell("single,btree", number)
    cells = Store()
    assert number.name in err
    assert err.count("\n") == 1
    assert emu.load("last").run.status == "stopped"
    assert cells.missing(emu.load("last").run.id) == {0, 1}


@pytest.mark.parametrize("stopped", [False, True])
def test_a_compiler_that_hangs_goes_with_its_children(
    stopped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "cc"
    tool.write_text(
        f"#!/bin/sh\nsleep 61.25{1 + stopped} & {'kill -STOP $$' if stopped else 'wait'}\n"
    )
    tool.chmod(0o755)
    monkeypatch.setattr(coordinator.tools, "_COMPILE_S", 0.5)
    with pytest.raises(InputError, match="was not done after"):
        coordinator.tools._compile(str(tool), tmp_path / "mine.c", [], tmp_path)
    wait_until(lambda: not running(f"sleep 61.25{1 + stopped}"), LIMIT_S)


def running(line: str) -> bool:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if path.read_bytes().replace(b"\0", b" ").decode(errors="replace").strip() == line:
                return True
    return False


def test_threads_that_run_out_are_an_error_before_zeromq_needs_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def none_left(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", none_left)
    with pytest.raises(InputError, match=r"no process can be started \(.*ulimit -u"):
        coordinator.workers._expect_threads(2)


def test_no_deadline_goes_by_the_wall_clock() -> None:
    """It may jump. It says when something was, in names and claims, and nothing waits for it."""
    uses = {
        path.name
        for path in (ROOT / "emu").rglob("*.py")
        if re.search(r"time\.time\(|time\.time_ns\(|datetime\.now", path.read_text())
    }
    assert uses <= {"arena.py", "store.py", "results.py", "live.py"}
    source = "".join(path.read_text() for path in (ROOT / "workers").rglob("*.c"))
    assert not re.search(r"CLOCK_REALTIME|gettimeofday|\btime\(NULL", source)


def test_faults_at_random_moments() -> None:
    """The short form of what can be run for as long as one likes: tests/faults.py --count 500."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "faults.py"), "--count", "4", "--first", "3"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 faults without a violation, 0 with one" in done.stdout


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
    monkeypatch.setattr(coordinator.workers, "HANG_S", 1.5)
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
