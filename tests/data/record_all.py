# SPDX-License-Identifier: MIT
"""Makes emu/workloads/*.toml anew, and the maps beside this file that the tests check them against.

Run it in the root of a checkout: python tests/data/record_all.py [NAME...]
It needs a C compiler, strace and, for make, make.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
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
    "sysexec": (
        "fork",
        ["./looper", "5", "/bin/true"],
        "a process forks children that exec a small program and exit, as UnixBench sysexec",
        "looper: `cc -O2 -o looper looper.c`.",
    ),
    "exec-static": (
        "exec",
        ["./execl-static", "5"],
        "a static program replaces itself by itself, each CPU from a file of its own",
        "execl-static: `cc -O2 -static -o execl-static execl.c`. The program's file is private, "
        "its calls take no time of their own and it is not forked: as in the benchmark of "
        "percpu-for-6.6, where separate static binaries exec in a loop.",
    ),
    "make": (
        "fork",
        ["./looper", "5", "make", "-s", "-B", "-f", "build.mk"],
        "a small make build, three C files compiled and linked, again and again",
        "looper: `cc -O2 -o looper looper.c`. gcc 12.2, GNU make 4.3, ld 2.40; built are the "
        "files in build/.",
    ),
    "malloc-threads": (
        "run",
        ["./malloc-threads", "4", "4"],
        "a program with four threads that allocate and free, each from a heap of its own",
        "malloc-threads: `cc -O2 -pthread -o malloc-threads malloc-threads.c`.",
    ),
}
_WORK_CALL = """\
[work.call]
time = "5460ns"
source = "UnixBench execl, 32 % of 223 us over 13 calls"

"""
_MAKE_CALL = """\
# In place of execl's, so that an iteration takes what the build took: 87 ms of CPU time, user and
# system, the least of 40 runs in a VM on an AMD EPYC; the entries above and below have 3.4 of them.
[work.call]
time = "149us"
source = "own measurement: 83.6 ms over 561 calls"

"""
_MALLOC_CALL = """\
# In place of execl's, so that an iteration takes what the program took: 33 ms of CPU time, user and
# system, the least of 40 runs in a VM on an AMD EPYC; the entries above and below have 0.3 of them.
[work.call]
time = "109us"
source = "own measurement: 32.7 ms over 300 calls"

"""
_WAITING = "waiting = 2  # perl and sh of each copy"
EDITS: dict[str, tuple[tuple[str, str], ...]] = {
    # UnixBench's perl and sh, one of each a copy: libc's tree has over 6000 VMAs with 384 copies.
    "execl": (("\n\n# Pages", f"\n{_WAITING}\n\n# Pages"),),
    "sysexec": (("\n\n# Pages", f"\n{_WAITING}\n\n# Pages"),),
    "exec-static": (
        ("[files]\nexecl-static = 188\n", "[private_files]\nexecl-static = 188\n\n[files]\n"),
        (_WORK_CALL, ""),
        ("share = 0.7", "share = 1.0"),
    ),
    "make": ((_WORK_CALL, _MAKE_CALL),),
    "malloc-threads": ((_WORK_CALL, _MALLOC_CALL),),
}
"""What is changed by hand in a recording."""


def record_one(name: str, folder: Path) -> Recording:
    """Compile and record a workload; `folder` is for its files."""
    each, command, description, remark = COMMANDS[name]
    program = Path(command[0]).name
    source = DATA / f"{program.removesuffix('-static')}.c"
    options = ["-static"] if program.endswith("-static") else ["-pthread"]
    compiler = os.environ.get("CC", "cc")
    subprocess.run([compiler, "-O2", *options, "-o", folder / program, source], check=True)
    for file in (DATA / "shell.sh", *(DATA / "build").iterdir()):
        shutil.copy(file, folder)
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


def main(names: Iterable[str]) -> None:
    """Record these, or all."""
    for name in names or COMMANDS:
        for before in DATA.glob(f"{name}.*.maps"):
            before.unlink()
        with tempfile.TemporaryDirectory() as folder:
            recording = record_one(name, Path(folder))
        text = recording.toml
        for old, new in EDITS.get(name, ()):
            if old not in text:
                raise SystemExit(f"{name}: the recording has no {old!r}")
            text = text.replace(old, new)
        if name == "exec-static":
            text = re.sub(r"\n# Not recorded.*?\n]\n", "", text, flags=re.DOTALL)
            text = re.sub(r'\n\[\[phase]]\nname = "fork.*', "", text, flags=re.DOTALL)
        (WORKLOADS / f"{name}.toml").write_text(text)
        last = {(point.list, point.image): point for point in recording.points}
        for point in last.values():
            file = DATA / f"{name}.{point.list}.{point.calls}.{point.image}.maps"
            file.write_text("".join(f"{line}\n" for line in point.maps))
            print(file.name)


if __name__ == "__main__":
    main(sys.argv[1:])
