# SPDX-License-Identifier: MIT
"""Makes emu/workloads/*.toml anew, and the maps beside this file that the tests check them against.

Run it in the root of a checkout: python tests/data/record_all.py
It needs a C compiler and strace.
"""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from emu.record import Each, Recording, record

DATA = Path(__file__).parent
WORKLOADS = DATA.parent.parent / "emu" / "workloads"
ENV = {"PATH": "/usr/bin:/bin", "LC_ALL": "C"}

COMMANDS: dict[str, tuple[Each, list[str], str, str]] = {
    "execl": (
        "exec",
        ["./execl", "5"],
        "a small dynamically linked program replaces itself by itself, as UnixBench execl",
        "execl: `cc -O2 -o execl execl.c`.",
    ),
    "spawn": (
        "fork",
        ["./spawn", "5"],
        "a small dynamically linked program forks children that exit, as UnixBench spawn",
        "spawn: `cc -O2 -o spawn spawn.c`.",
    ),
    "shell": (
        "fork",
        ["./looper", "5", "sh", "shell.sh"],
        "a shell script with two tools in a pipeline, run again and again, as UnixBench shell1",
        "looper: `cc -O2 -o looper looper.c`. shell.sh: `od shell.sh | sort -n -k 1`. The two "
        "tools ran at the same time; here one follows the other.",
    ),
}


def record_one(name: str, folder: Path) -> Recording:
    """Compile and record a workload; `folder` is for its files."""
    each, command, description, remark = COMMANDS[name]
    program = Path(command[0]).name
    source = DATA / f"{program}.c"
    subprocess.run([os.environ.get("CC", "cc"), "-O2", "-o", folder / program, source], check=True)
    shutil.copy(DATA / "shell.sh", folder)
    environment = " ".join(f"{key}={value}" for key, value in ENV.items())
    remark += f" Sources are in tests/data; environment: {environment}."
    return record(
        command,
        name=name,
        description=description,
        each=each,
        cwd=folder,
        env=ENV,
        remark=remark,
    )


def main() -> None:
    """Record all."""
    for name in COMMANDS:
        for old in DATA.glob(f"{name}.*.maps"):
            old.unlink()
        with tempfile.TemporaryDirectory() as folder:
            recording = record_one(name, Path(folder))
        (WORKLOADS / f"{name}.toml").write_text(recording.toml)
        for point in recording.points:
            file = DATA / f"{name}.{point.list}.{point.calls}.{point.image}.maps"
            file.write_text("".join(f"{line}\n" for line in point.maps))
            print(file.name)


if __name__ == "__main__":
    main()
