# SPDX-License-Identifier: MIT
"""Makes emu/workloads/*.toml anew, and the maps beside this file that the tests check them against.

Run it in the root of a checkout: python tests/data/record_all.py
It needs a C compiler and strace.
"""

import os
import re
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
    "exec-static": (
        "exec",
        ["./execl-static", "5"],
        "a static program replaces itself by itself, each CPU from a file of its own",
        "execl-static: `cc -O2 -static -o execl-static execl.c`. The program's file is private, "
        "its calls take no time of their own and it is not forked: as in the benchmark of "
        "percpu-for-6.6, where separate static binaries exec in a loop.",
    ),
}
_WORK_CALL = """\
[work.call]
time = "5460ns"
source = "UnixBench execl, 32 % of 223 us over 13 calls"

"""
_WAITING = "waiting = 2  # perl and sh of each copy"
EDITS: dict[str, tuple[tuple[str, str], ...]] = {
    # UnixBench's perl and sh, one of each a copy: libc's tree has over 6000 VMAs with 384 copies.
    "execl": (("\n\n# Pages", f"\n{_WAITING}\n\n# Pages"),),
    "exec-static": (
        ("[files]\nexecl-static = 188\n", "[private_files]\nexecl-static = 188\n\n[files]\n"),
        (_WORK_CALL, ""),
        ("share = 0.7", "share = 1.0"),
    ),
}
"""What is changed by hand in a recording."""


def record_one(name: str, folder: Path) -> Recording:
    """Compile and record a workload; `folder` is for its files."""
    each, command, description, remark = COMMANDS[name]
    program = Path(command[0]).name
    source = DATA / f"{program.removesuffix('-static')}.c"
    static = ["-static"] if program.endswith("-static") else []
    compiler = os.environ.get("CC", "cc")
    subprocess.run([compiler, "-O2", *static, "-o", folder / program, source], check=True)
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
        for point in recording.points:
            file = DATA / f"{name}.{point.list}.{point.calls}.{point.image}.maps"
            file.write_text("".join(f"{line}\n" for line in point.maps))
            print(file.name)


if __name__ == "__main__":
    main()
