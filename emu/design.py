# SPDX-License-Identifier: MIT
"""A user's own design: the skeleton to begin with, and the cache of compiled ones."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
import tempfile
from pathlib import Path

from emu import _core
from emu.errors import InputError, unknown

SKELETONS = ("rmap", "mm")
"""Kinds of design that have a skeleton."""

_KEPT = 64
"""Compiled designs that the cache keeps: those that were used last. One has some 50 KiB."""


def write_skeleton(kind: str, file: Path) -> None:
    """Write the commented skeleton of a design; its name is the file's.

    Raises InputError where something is there already or nothing can be written.
    """
    if kind not in SKELETONS:
        raise unknown("kind of design with a skeleton", kind, SKELETONS)
    if file.suffix != ".c":
        raise InputError(f"{file}: a design is one C file, and its name ends in .c")
    if re.search(r'["\\\x00-\x1f\x7f]', file.stem):
        raise InputError(f"{file}: the name goes into C; without quotes, \\ and control characters")
    text = _core.data_path("skeletons", f"{kind}.c").read_text()
    # The comments' word for it stays; what a report calls the design is the file's name.
    text = text.replace('.name = "skeleton"', f'.name = "{file.stem}"')
    try:
        with file.open("x") as output:
            output.write(text)
    except FileExistsError:
        raise InputError(f"{file} is there already, and nothing is written over it") from None
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}") from None


class Cache:
    """Compiled designs by key, in the user's cache folder, for this user alone."""

    def __init__(self) -> None:
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        self.folder = Path(base).expanduser() / "mm-emu" / "designs"

    def _prepare(self) -> bool:
        """Is there a folder to use? It is made where it is missing and can be.

        Raises InputError for one that somebody else could put libraries into.
        """
        for folder in (self.folder.parent, self.folder):
            with contextlib.suppress(OSError):
                folder.mkdir(parents=True, mode=0o700)
            try:
                info = folder.lstat()
            except OSError:
                return False
            reason = (
                "is a symbolic link"
                if stat.S_ISLNK(info.st_mode)
                else "is no folder"
                if not stat.S_ISDIR(info.st_mode)
                else "belongs to another user"
                if info.st_uid != os.geteuid()
                else ""
            )
            if reason:
                raise InputError(
                    f"{folder} {reason}, so no compiled design is loaded from there; "
                    "remove it or set XDG_CACHE_HOME"
                )
            if stat.S_IMODE(info.st_mode) & 0o077:
                folder.chmod(0o700)
        return True

    def take(self, key: str, output: Path) -> bool:
        """Copy what is kept under ``key`` to ``output``; False: nothing is. Raises InputError."""
        if not self._prepare():
            return False
        kept = self.folder / f"{key}.so"
        try:
            fd = os.open(kept, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return False
        with os.fdopen(fd, "rb") as source, output.open("wb") as target:
            info = os.fstat(fd)
            if not stat.S_ISREG(info.st_mode) or info.st_uid != os.geteuid():
                return False
            shutil.copyfileobj(source, target)
        with contextlib.suppress(OSError):
            os.utime(kept)
        return True

    def put(self, key: str, library: Path) -> None:
        """Keep a copy, in one piece, and let the oldest go. Where that cannot be done, nothing."""
        if not self._prepare():
            return
        with contextlib.suppress(OSError):
            fd, name = tempfile.mkstemp(prefix=".new-", dir=self.folder)
            try:
                with os.fdopen(fd, "wb") as target, library.open("rb") as source:
                    shutil.copyfileobj(source, target)
                Path(name).replace(self.folder / f"{key}.so")
            except OSError:
                Path(name).unlink(missing_ok=True)
                raise
            by_age = sorted(self.folder.iterdir(), key=lambda path: path.lstat().st_mtime)
            for path in by_age[:-_KEPT]:
                path.unlink(missing_ok=True)
