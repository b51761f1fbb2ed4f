# SPDX-License-Identifier: MIT
"""From the text of ``--rmap`` and ``--mm`` to the library to load, the same for all engines."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from emu import _core, coordinator
from emu.arena import run_directory
from emu.coordinator import DesignFile
from emu.errors import InputError
from emu.experiment import unknown

_FOLDERS = {"native": "designs", "virtual": "designs-virtual"}


def find_design(kind: str, text: str, machine: str, cleanup: ExitStack) -> DesignFile:
    """A design from "name", "name:k=v,k=v" or "./file.c:k=v"; ``cleanup`` removes what is compiled.

    Raises InputError for a name or file that is not there, or a file that does not compile.
    """
    name, _, params = text.partition(":")
    if name.endswith(".c"):
        source = Path(name)
        if not source.is_file():
            raise InputError(f"--{kind} {text}: there is no file {source}")
        directory = cleanup.enter_context(run_directory())
        path = coordinator.compile_design(source, machine, directory)
        return DesignFile(text, path, params)
    names = _core.design_names(kind)
    if name not in names:
        raise unknown(f"{kind} design", name, [*names, "./FILE.c"])
    return DesignFile(text, _core.data_path(_FOLDERS[machine], kind, f"{name}.so"), params)
