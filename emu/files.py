# SPDX-License-Identifier: MIT
"""Files that users name, and others may have written: never more of one than there is sense in."""

from __future__ import annotations

import os
from pathlib import Path

from emu.errors import InputError

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


def as_utf8(name: str) -> str:
    r"""The name as a description can hold it: bytes of it that are not UTF-8 as ``\xff``."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
