# SPDX-License-Identifier: MIT
"""Recording: what strace logs of threads, and commands recorded for real where strace is there."""

from __future__ import annotations

import platform
import re
import shutil
import signal
import sys
from pathlib import Path

import pytest
from emu_command import children, emu, start, wait_until

from emu import record, workload
from emu.errors import EmuError, InputError

NEEDS_STRACE = pytest.mark.skipif(
    platform.machine() != "x86_64" or not shutil.which("strace") or not shutil.which("setarch"),
    reason="recording needs Linux on x86-64, strace and setarch",
)

CLONE = "clone3({flags=CLONE_VM|CLONE_FS|CLONE_SIGHAND|CLONE_THREAD|CLONE_SETTLS, stack=0x7}, 88)"


def joined(*lines: str) -> tuple[dict[int, list[str]], int]:
    """The calls by process, and how many threads there were."""
    events, threads = record.log.join_threads(record.log.parse_log(lines))
    return {pid: [f"{e.call}({e.arguments})" for e in own] for pid, own in events.items()}, threads


def test_the_calls_of_threads_are_their_process_s() -> None:
    calls, threads = joined(
        f"10 {CLONE} = 11",
        "11 brk(NULL) = 0x1000",
        "10 brk(0x2000) = 0x2000",
        f"11 {CLONE} = 12",
        "12 mprotect(0x1000, 4096, PROT_READ) = 0",
        "12 exit(0) = ?",
        "12 +++ exited with 0 +++",
        "11 exit(0) = ?",
        "11 +++ exited with 0 +++",
        "10 exit_group(0) = ?",
        "10 +++ exited with 0 +++",
    )
    assert threads == 2
    assert calls == {
        10: ["brk(NULL)", "brk(0x2000)", "mprotect(0x1000, 4096, PROT_READ)", "exit_group(0)"]
    }


@pytest.mark.parametrize(
    ("lines", "error"),
    [
        ([f"10 {CLONE} = 0x7ffff7dd4000"], "clone3 returns 0x7ffff7dd4000, which is no process"),
        ([f"10 {CLONE} = 10"], "thread 10 has started itself"),
        ([f"10 {CLONE} = 11", f"11 {CLONE} = 10"], "thread 1[01] has started itself"),
    ],
)
def test_a_thread_that_cannot_be_is_refused(lines: list[str], error: str) -> None:
    with pytest.raises(EmuError, match=f"^in strace's log {error}$"):
        joined(*lines)


def test_a_line_of_no_process_is_none() -> None:
    assert joined(f"{'1' * 5000} brk(NULL) = 0x1000", "10 brk(NULL) = 0x1000") == (
        {10: ["brk(NULL)"]},
        0,
    )


def test_a_process_begins_once() -> None:
    lines = ("10 execve() = 0", "10 fork() = 11", "11 fork() = 10", "11 exit_group(0) = ?")
    events, threads = record.log.join_threads(record.log.parse_log(lines))
    builder = record.build.Builder(Path(), None, {}, False, threads, {})
    with pytest.raises(
        EmuError, match=r"^process 11 is not in strace's log, or begins twice there$"
    ):
        list(builder.process(11, events | {10: events[10][1:]}))


def test_a_thread_may_log_before_its_clone_has_returned() -> None:
    calls, _ = joined(
        "10 clone3({flags=CLONE_VM|CLONE_THREAD, stack=0x7} <unfinished ...>",
        f"11 {CLONE} = 12",
        "12 brk(NULL) = 0x1000",
        "10 <... clone3 resumed>, 88) = 11",
        "10 exit_group(0) = ?",
    )
    assert calls == {10: ["brk(NULL)", "exit_group(0)"]}


def test_what_is_freed_is_free_before_another_thread_takes_it() -> None:
    calls, _ = joined(
        f"10 {CLONE} = 11",
        "11 munmap(0x1000, 4096 <unfinished ...>",
        "10 mmap(NULL, 4096, PROT_READ, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0) = 0x1000",
        "11 <... munmap resumed>) = 0",
        "10 exit_group(0) = ?",
    )
    assert [call.partition("(")[0] for call in calls[10]] == ["munmap", "mmap", "exit_group"]


def test_a_thread_that_execs_is_refused() -> None:
    with pytest.raises(InputError, match="a thread of process 10 calls execve"):
        joined(f"10 {CLONE} = 11", "10 +++ superseded by execve in pid 11 +++")


THREADS = """\
import threading
def work():
    for _ in range(5):
        bytearray(10**6)
threads = [threading.Thread(target=work) for _ in range(3)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""


@NEEDS_STRACE
def test_a_threaded_program_leads_to_the_maps_of_the_real_one(tmp_path: Path) -> None:
    """record() itself compares with /proc/PID/maps at each exec and at the end."""
    recording = record.record([sys.executable, "-c", THREADS], name="threads")
    assert "# Threads of the command: 3. A process has one task here" in recording.toml
    assert recording.points[-1].list in ("load", "iteration")
    assert any("python" in line for line in recording.points[-1].maps)
    file = tmp_path / "threads.toml"
    file.write_text(recording.toml, encoding="utf-8")
    assert workload.load(file).counting_phase == "iteration"


@NEEDS_STRACE
def test_a_command_may_have_words_that_are_not_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    done = emu("record", "--name", "x", "-o", str(path), "--", "sh", "-c", "true \udcff")
    assert done.returncode == 0
    assert r"-- sh -c 'true \xff'" in path.read_text()


@NEEDS_STRACE
def test_anonymised_neither_files_nor_the_command_are_told(tmp_path: Path) -> None:
    command = tmp_path / "secret-tool"
    shutil.copy(shutil.which("true") or "", command)
    recording = record.record([str(command)], name="x", anonymise=True)
    assert "secret" not in recording.toml
    assert "libc.so" not in recording.toml
    assert "-- COMMAND`" in recording.toml
    files = set(re.findall(r"^(file\d+) = \d+$", recording.toml, re.MULTILINE))
    assert {"file1", "file2"} <= files
    file = tmp_path / "x.toml"
    file.write_text(recording.toml, encoding="utf-8")
    workload.load(file)


GONE = """\
import mmap, os, sys
with open("gone", "w+b") as file:
    file.write(bytes(3 * mmap.PAGESIZE))
    file.flush()
    view = mmap.mmap(file.fileno(), 0)
    os.unlink("gone")
with open("/dev/zero", "r+b") as file:
    zero = mmap.mmap(file.fileno(), 5 * mmap.PAGESIZE)
os.kill(os.getpid(), int(sys.argv[1])) if len(sys.argv) > 1 else os._exit(0)
"""


@NEEDS_STRACE
def test_files_that_are_gone_and_devices_are_as_long_as_their_mappings(tmp_path: Path) -> None:
    recording = record.record([sys.executable, "-c", GONE], name="gone", cwd=tmp_path)
    assert re.search(r"^gone = 3$", recording.toml, re.MULTILINE)
    assert re.search(r"^zero = 5$", recording.toml, re.MULTILINE)
    assert "MAP_SHARED, gone, 0)" in recording.toml


@NEEDS_STRACE
@pytest.mark.parametrize("number", ["9", "11"])
def test_a_command_that_is_killed_is_recorded_until_then(tmp_path: Path, number: str) -> None:
    recording = record.record([sys.executable, "-c", GONE, number], name="killed", cwd=tmp_path)
    assert recording.points == ()  # nobody could look at it at its end
    assert re.search(r"^zero = 5$", recording.toml, re.MULTILINE)
    file = tmp_path / "killed.toml"
    file.write_text(recording.toml, encoding="utf-8")
    workload.load(file)


@NEEDS_STRACE
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_command_and_all_that_it_has_started(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    file = tmp_path / "x.toml"
    process = start("record", "-o", str(file), "--", "sh", "-c", "sleep 300 & sleep 300")

    def family(pid: int) -> list[int]:
        return [pid, *(each for child in children(pid) for each in family(child))]

    # Itself, strace, sh, and twice sleep.
    wait_until(lambda: len(family(process.pid)) == 5)
    pids = family(process.pid)
    process.send_signal(number)
    _, err = process.communicate(timeout=10)
    assert (process.returncode, err) == (130, "")
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
    assert list(tmp_path.iterdir()) == []


def test_what_page_faults_keep_apart_is_compared_as_one() -> None:
    apart = [
        "1000-2000 rw-p 00000000",
        "2000-3000 rw-p 00000000",
        "3000-4000 rw-p 00000000 file",
        "4000-5000 rw-p 00001000 file",
        "6000-7000 rw-p 00000000",
        "7000-8000 r--p 00000000",
    ]
    assert record.verify._joined(apart) == ["1000-3000 rw-p 00000000", *apart[2:]]


@NEEDS_STRACE
def test_a_command_in_this_directory_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(shutil.which("true") or "", tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    assert "mine = " in record.record(["./mine"], name="mine").toml
