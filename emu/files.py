# SPDX-License-Identifier: MIT
"""Files that users name: to read, never more of one than there is sense in, and to write."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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


def parse_toml(path: Path) -> tuple[dict[str, Any], str]:
    """What a description has, and its text, in UTF-8 with or without a BOM. Raises InputError."""
    try:
        text = read_bytes(path).decode("utf-8-sig").replace("\r\n", "\n")
        return tomllib.loads(text), text
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text (byte {error.start})") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid TOML: {error}") from None


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
            with _ended_by_signals():
                path.write_bytes(data)
    except OSError as error:
        kind = EmuError if error.errno in USED_UP else InputError
        raise kind(f"{path}: {error.strerror}") from None


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Who reads a FIFO may never come: Ctrl-C ends the waiting even where it is only a flag."""
    old = {}
    with contextlib.suppress(ValueError):  # not in the main thread
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                old[number] = signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _regular_target(path: Path) -> Path | None:
    """The file behind all links, there already or not; None: it is no regular one. OSError."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISREG(path.stat().st_mode):
            return None  # and a pipe that /dev/fd/63 leads to has no path
    return Path(os.path.realpath(path))
