# SPDX-License-Identifier: MIT
"""Programs of the system that are asked something: the compiler, git, addr2line."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from emu import _core
from emu.design import Cache
from emu.errors import InputError

_COMPILE_S = 60


def compile_design(source: Path, machine: str, directory: Path) -> Path:
    """Compile a user's design as the built-in ones were; the shared object, in ``directory``.

    What was compiled before from the same text, headers included, with the same compiler and flags
    is taken from the user's cache.

    Raises InputError with the compiler's first error, or when the cache is not the user's own.
    """
    info = _core.build_info()
    compiler = _compiler(info, source)
    output = Path(tempfile.mkdtemp(dir=directory)) / f"{source.stem}.so"
    compiled = output.with_suffix(".o")
    # A forgotten function is the compiler's to report, with its line, and not the loader's.
    flags = [*info["flags"], *info["machines"][machine], "-Werror=implicit-function-declaration"]
    flags.append(f"-I{_core.data_path('include')}")
    links = info["links"][machine]
    # Without line markers, which name the folder; the bytes of the file itself are part of the key.
    text = _compile(compiler, source, [*flags, "-E", "-P", str(source)], output.parent)
    parts = [compiler, info["compiler_id"], *_identity(compiler), machine, *flags[:-1], *links]
    key = hashlib.sha256("\0".join([*parts, text]).encode() + source.read_bytes()).hexdigest()
    cache = Cache()
    if cache.take(key, output):
        return output
    # In two steps: what makes the compiler call the virtual machine would link another library.
    _compile(compiler, source, [*flags, "-c", "-o", str(compiled), str(source)], output.parent)
    _compile(compiler, source, ["-shared", "-o", str(output), str(compiled), *links], output.parent)
    cache.put(key, output)
    return output


def _compiler(info: dict[str, Any], source: Path) -> str:
    """The path of the build's own; where a wheel was built elsewhere, of the one of that name here.

    Raises InputError when there is none.
    """
    built_with = info["compiler"]
    found = shutil.which(built_with) or shutil.which(Path(built_with).name)
    if not found:
        raise InputError(
            f"{source} cannot be compiled: there is no {Path(built_with).name} here; "
            "Debian's compiler is in the package build-essential, and built-in designs need none"
        )
    return found


def _identity(compiler: str) -> list[str]:
    """What changes when another compiler is installed under the same name."""
    info = Path(compiler).stat()
    return [str(info.st_size), str(info.st_mtime_ns)]


def _compile(compiler: str, source: Path, arguments: list[str], folder: Path) -> str:
    """Run the compiler, its temporary files in ``folder``; what it printed. Raises InputError."""
    try:
        process = subprocess.Popen(
            [compiler, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env=os.environ | {"TMPDIR": str(folder)},
            process_group=0,
        )
    except OSError as error:
        raise InputError(f"{source} cannot be compiled with {compiler}: {error}") from None
    with process:
        try:
            out, err = process.communicate(timeout=_COMPILE_S)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)  # it has children of its own
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            raise InputError(
                f"{source} cannot be compiled: {compiler} was not done after {_COMPILE_S} s"
            ) from None
    if process.returncode:
        lines = err.splitlines() or [f"{compiler} ended with status {process.returncode}"]
        first = next((line for line in lines if "error" in line), lines[0])
        raise InputError(f"{source} cannot be compiled: {first}")
    return out


def commit_of(directory: Path) -> str | None:
    """The git commit that is checked out in a directory, "+changes" behind it if there are any."""
    words = []
    for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"]):
        try:
            done = subprocess.run(
                ["git", "--no-optional-locks", "-C", str(directory), *command],
                capture_output=True,
                text=True,
                timeout=5,
                check=True,
            )
        except (OSError, subprocess.SubprocessError):
            return None
        words.append(done.stdout.strip())
    return words[0] + ("+changes" if words[1] else "")


def source_lines(file: str, offsets: Sequence[int]) -> list[str]:
    """ "file.c:line" of offsets in a library, "" where unknown; [] without binutils."""
    tool = shutil.which("addr2line")
    if not tool or not Path(file).is_file():
        return []
    try:
        done = subprocess.run(
            [tool, "-e", file, *map(hex, offsets)],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    matches = (re.search(r"([^/]+:\d+)", line) for line in done.stdout.splitlines())
    return [match[1] if match else "" for match in matches]
