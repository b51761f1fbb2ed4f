# SPDX-License-Identifier: MIT
"""Files that users name: to read, never more of one than there is sense in, and to write."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from pathlib import Path

from emu.errors import USED_UP, EmuError, InputError

MIB = 1 << 20
MAX_BYTES = 128 * MIB
"""Of a description of anything: room for a program of a million calls."""


def read_bytes(path: Path, most: int = MAX_BYTES) -> bytes:
    """All of a file. Raises OSError, and InputError for more than ``most`` bytes."""
    with path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise InputError(f"{path}: larger than {most // MIB} MiB, which no such file is")
    return data


def read_text(path: Path) -> str:
    """A description, in UTF-8. Raises OSError, UnicodeDecodeError, InputError."""
    return read_bytes(path).decode("utf-8").replace("\r\n", "\n")


def is_path(text: str, *suffixes: str) -> bool:
    """Is it a path (has "/", or ends so), not the name of what comes with mm-emu or is stored?"""
    return "/" in text or text.endswith(suffixes or ".toml")


def as_utf8(name: str) -> str:
    r"""The name as a description can hold it: bytes of it that are not UTF-8 as ``\xff``."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees the old contents or all of the new. May raise OSError.

    A link is replaced, not followed: for what users name there is ``write_output``.
    """
    fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=".emu-")
    try:
        with os.fdopen(fd, "wb") as file:
            os.fchmod(fd, 0o644)
            file.write(data)
        Path(temporary).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
        raise


def check_output(option: str, path: Path) -> None:
    """Can ``write_output`` write there? Better asked before the work. Raises InputError."""
    try:
        target = _regular_target(path)
    except OSError as error:
        raise InputError(f"{option} {path}: {error.strerror}") from None
    where = target.parent if target else path
    if where.is_dir() != bool(target) or not os.access(where, os.W_OK):
        raise InputError(f"{option} {path}: no file can be written there")


def write_output(path: Path, data: bytes) -> None:
    """Write what a user asked for where they said: through links, and into a FIFO or a device.

    A regular file is written as ``write_atomically`` does. Raises InputError, and EmuError where
    there is no room.
    """
    try:
        target = _regular_target(path)
        if target:
            write_atomically(target, data)
        else:
            path.write_bytes(data)
    except OSError as error:
        kind = EmuError if error.errno in USED_UP else InputError
        raise kind(f"{path}: {error.strerror}") from None


def _regular_target(path: Path) -> Path | None:
    """The file behind all links, there already or not; None: it is no regular one. OSError."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISREG(path.stat().st_mode):
            return None  # and a pipe that /dev/fd/63 leads to has no path
    return Path(os.path.realpath(path))
