# SPDX-License-Identifier: MIT
"""Builds and runs the programs of tests/c: all under the sanitizers, some for aarch64 in QEMU."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BUILDS = {
    "asan": ["-DEMU_SANITIZE=address,undefined", "-DEMU_CHECKED=ON"],
    "tsan": ["-DEMU_SANITIZE=thread", "-DEMU_TEST_THREADS=ON"],
    # The virtual machine has the thread sanitizer's hooks for itself, and stacks of its own.
    "virtual": ["-DEMU_CHECKED=ON"],
    "aarch64": [
        "-DEMU_CHECKED=ON",
        "-DCMAKE_SYSTEM_NAME=Linux",
        "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
        "-DCMAKE_C_COMPILER=aarch64-linux-gnu-gcc",
    ],
}


# Only one thread: there is nothing for the thread sanitizer to see.
SEQUENTIAL = ("test_btree", "test_tree")


def cases() -> Iterator[tuple[str, str]]:
    for path in sorted((ROOT / "tests" / "c").glob("test_*.c")):
        if '#include "virtual_machine.h"' in path.read_text():
            yield path.stem, "virtual"
            continue
        yield path.stem, "asan"
        if path.stem not in SEQUENTIAL:
            yield path.stem, "tsan"


SUPPRESSIONS = ROOT / "tests" / "c" / "tsan.supp"


def run(*command: str | Path, **env: str) -> str:
    done = subprocess.run(
        [str(word) for word in command],
        env=os.environ | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="session")
def build() -> dict[str, Path]:
    """The folder of programs of each build that was asked for; filled by ``program``."""
    return {}


def program(build: dict[str, Path], kind: str, name: str, *targets: str) -> Path:
    """The program; its build makes ``targets``, or everything."""
    if kind == "virtual":
        targets = tuple(name for name, of in cases() if of == kind)
    if kind not in build:
        directory = ROOT / "build" / kind
        scripts = sysconfig.get_path("scripts")
        path = f"{scripts}:{os.environ['PATH']}"
        options = ["-DEMU_TESTS=ON", "-DEMU_WERROR=ON", *BUILDS[kind]]
        directory.mkdir(parents=True, exist_ok=True)
        # Tests run in several processes, and the folder is everyone's.
        with (directory / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            where = ["-S", str(ROOT / "workers"), "-B", str(directory), "-G", "Ninja"]
            run("cmake", *where, *options, PATH=path)
            run("cmake", "--build", directory, "--target", *(targets or ["all"]), PATH=path)
        build[kind] = directory / "bin"
    return build[kind] / name


def assert_passed(output: str) -> None:
    # The last line is printed by programs that got to their end.
    last = output.rstrip().splitlines()[-1]
    assert last.endswith(" passed, 0 failed")
    assert not last.startswith("0 ")


@pytest.mark.parametrize(("name", "kind"), list(cases()))
def test_program(build: dict[str, Path], name: str, kind: str) -> None:
    output = run(
        program(build, kind, name),
        ASAN_OPTIONS="abort_on_error=1",
        # A long history: a suppression looks at the stacks of both sides.
        TSAN_OPTIONS=f"suppressions={SUPPRESSIONS} history_size=7",
    )
    assert_passed(output)


# Which of their tests: those of the stack switch, the hooks, atomics and futexes. All programs and
# all their tests take minutes: `make test-aarch64`.
AARCH64_SHORT = {
    "test_machine": "_",
    "test_rcu": "_",
    "test_rcu_virtual": "_",
    "test_virtual": "libtsan atomics ping_pong fetch_add capacity spinners sleeper turns faults",
}
AARCH64_ALL = os.environ.get("AARCH64") == "all"
AARCH64_CASES = dict.fromkeys((name for name, _ in cases()), "_") if AARCH64_ALL else AARCH64_SHORT
QEMU = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
AARCH64_ROOT = Path("/usr/aarch64-linux-gnu")
needs_aarch64 = pytest.mark.skipif(
    not (
        QEMU
        and shutil.which("aarch64-linux-gnu-gcc")
        and (AARCH64_ROOT / "include" / "stdio.h").exists()
    ),
    reason="not run for aarch64: apt install gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user",
)


def aarch64_program(build: dict[str, Path], name: str) -> Path:
    return program(build, "aarch64", name, *([] if AARCH64_ALL else AARCH64_SHORT))


def run_on_aarch64(build: dict[str, Path], name: str) -> str:
    """What it prints. On x86-64, QEMU keeps to its order of memory: no missing barrier is found."""
    path = aarch64_program(build, name)
    return run(str(QEMU), "-L", AARCH64_ROOT, path, TESTS=AARCH64_CASES[name])


@needs_aarch64
@pytest.mark.parametrize("name", AARCH64_CASES)
def test_program_on_aarch64(build: dict[str, Path], name: str) -> None:
    assert_passed(run_on_aarch64(build, name))


@needs_aarch64
def test_no_atomic_access_bypasses_the_hooks_on_aarch64(build: dict[str, Path]) -> None:
    """Neither as an instruction nor as a call of libgcc, which leaves the choice to run time."""
    root = aarch64_program(build, "test_virtual").parents[1]
    guests = [
        path
        for target in ("guest-virtual", "test_virtual-guest")
        for path in root.glob(f"CMakeFiles/{target}.dir/**/*.o")
    ]
    assert len(guests) > 10
    atomic = re.compile(r"\t(ldax?[pr]|ldxr|ldxp|stlx?r|stxr|stxp|cas|ldadd|swp)|__aarch64_")

    def has_atomics(path: Path) -> bool:
        return bool(atomic.search(run("aarch64-linux-gnu-objdump", "-dr", path)))

    assert not [path.name for path in guests if has_atomics(path)]
    # The same files without hooks have them: this test can find some.
    assert has_atomics(root / "lib" / "libemu-native.so")


@needs_aarch64
def test_virtual_results_are_those_of_this_machine(build: dict[str, Path]) -> None:
    """The model's own. The compiler gives large code other accesses on another processor."""

    def results(output: str) -> list[str]:
        return [line for line in output.splitlines() if line.startswith("virtual result of ")]

    there = results(run_on_aarch64(build, "test_virtual"))
    tests = AARCH64_CASES["test_virtual"]
    here = results(run(program(build, "virtual", "test_virtual"), TESTS=tests))
    assert len(there) > 20
    assert there == here
