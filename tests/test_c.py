# SPDX-License-Identifier: MIT
"""Builds and runs the test programs of tests/c, each under the sanitizers."""

from __future__ import annotations

import fcntl
import os
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
}


def cases() -> Iterator[tuple[str, str]]:
    for path in sorted((ROOT / "tests" / "c").glob("test_*.c")):
        on_virtual = '#include "virtual_machine.h"' in path.read_text()
        yield from ((path.stem, kind) for kind in (["virtual"] if on_virtual else ["asan", "tsan"]))


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


def program(build: dict[str, Path], kind: str, name: str) -> Path:
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
            run("cmake", "--build", directory, PATH=path)
        build[kind] = directory / "bin"
    return build[kind] / name


@pytest.mark.parametrize(("name", "kind"), list(cases()))
def test_program(build: dict[str, Path], name: str, kind: str) -> None:
    output = run(
        program(build, kind, name),
        ASAN_OPTIONS="abort_on_error=1",
        # A long history: a suppression looks at the stacks of both sides.
        TSAN_OPTIONS=f"suppressions={SUPPRESSIONS} history_size=7",
    )
    # The last line is printed by programs that got to their end.
    last = output.rstrip().splitlines()[-1]
    assert last.endswith(" passed, 0 failed")
    assert not last.startswith("0 ")
