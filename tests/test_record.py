# SPDX-License-Identifier: MIT
"""Recording: what strace logs of threads, and commands recorded for real where strace is there."""

from __future__ import annotations

import platform
import re
import shutil
import sys
from pathlib import Path

import pytest

from emu import record, workload
from emu.errors import InputError

NEEDS_STRACE = pytest.mark.skipif(
    platform.machine() != "x86_64" or not shutil.which("strace") or not shutil.which("setarch"),
    reason="recording needs Linux on x86-64, strace and setarch",
)

CLONE = "clone3({flags=CLONE_VM|CLONE_FS|CLONE_SIGHAND|CLONE_THREAD|CLONE_SETTLS, stack=0x7}, 88)"


def joined(*lines: str) -> tuple[dict[int, list[str]], int]:
    """The calls by process, and how many threads there were."""
    events, threads = record._join_threads(record._parse_log(lines))
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
    assert "# 3 threads of the command: a process has one task here" in recording.toml
    assert recording.points[-1].list in ("load", "iteration")
    assert any("python" in line for line in recording.points[-1].maps)
    file = tmp_path / "threads.toml"
    file.write_text(recording.toml, encoding="utf-8")
    assert workload.load(file).counting_phase == "iteration"


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
