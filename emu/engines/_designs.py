# SPDX-License-Identifier: MIT
"""From the text of ``--rmap`` and ``--mm`` to the library to load, the same for all engines."""

from __future__ import annotations

import ctypes
from contextlib import ExitStack
from pathlib import Path

from emu import _core, coordinator
from emu.arena import run_directory
from emu.coordinator import DesignFile, StopFlag
from emu.errors import EmuError, InputError, about, unknown

_FOLDERS = {"native": "designs", "virtual": "designs-virtual"}


def find_design(kind: str, text: str, machine: str, cleanup: ExitStack) -> DesignFile:
    """A design from "name", "name:k=v,k=v" or "./file.c:k=v"; ``cleanup`` removes what is compiled.

    Raises InputError for a name or file that is not there, or a file that does not compile.
    """
    with about(kind):
        return _find(kind, text, machine, cleanup)


def _find(kind: str, text: str, machine: str, cleanup: ExitStack) -> DesignFile:
    name, colon, params = text.partition(":")
    keys = [each.partition("=")[0] for each in params.split(",")]
    if colon and (not params or len(set(keys)) < len(keys)):
        raise InputError(f"--{kind} {text}: behind the colon is each parameter once, as k=v,k=v")
    if name.endswith(".c"):
        source = Path(name)
        if not source.is_file():
            raise InputError(f"--{kind} {text}: there is no file {source}")
        directory = cleanup.enter_context(run_directory())
        path = coordinator.compile_design(source, machine, directory)
        return DesignFile(text, path, params)
    names = _core.design_names(kind)
    if name not in names:
        for other in _core.NAME_OF_KIND:
            if name in _core.design_names(other):
                raise InputError(f"no {kind} design '{name}': it is an {other} design")
        raise unknown(f"{kind} design", name, [*names, "./FILE.c"])
    return DesignFile(text, _core.data_path(_FOLDERS[machine], kind, f"{name}.so"), params)


def kind_of_design(text: str, machine: str) -> str:
    """The kind, "rmap" or "mm": whose list has the name, or which symbol the file exports,
    which is compiled for ``machine`` to see.

    Raises InputError for a name that is in no list, or a file that is not there, does not compile,
    or exports neither symbol or both.
    """
    name = text.partition(":")[0]
    names = {kind: _core.design_names(kind) for kind in _core.NAME_OF_KIND}
    if not name.endswith(".c"):
        for kind, known in names.items():
            if name in known:
                return kind
        raise unknown("design", name, [*names["rmap"], *names["mm"], "./FILE.c"])
    if not Path(name).is_file():
        raise InputError(f"{text}: there is no file {Path(name)}")
    with run_directory() as directory:
        path = coordinator.compile_design(Path(name), machine, directory)
        try:
            kinds = coordinator.in_child(_exported, machine, str(path), stop=StopFlag())
        except EmuError as error:
            raise InputError(f"{name}: {error}") from None
    if len(kinds) != 1:
        wanted = " or ".join(f"`const struct {kind}_ops emu_{kind}_ops`" for kind in names)
        raise InputError(f"{name} defines {'both, not either' if kinds else 'no'} {wanted}")
    return str(kinds[0])


def _exported(machine: str, path: str) -> list[str]:
    _core.load(machine)
    try:
        library = ctypes.CDLL(path)
    except OSError as error:
        raise EmuError(str(error)) from None
    return [kind for kind in _core.NAME_OF_KIND if hasattr(library, f"emu_{kind}_ops")]
