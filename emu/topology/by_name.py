# SPDX-License-Identifier: MIT
"""A machine by what a user calls it: a name, a file, `generic:sockets=2,...` or `host`."""

from __future__ import annotations

from pathlib import Path

import msgspec

from emu.errors import InputError, about, nearest
from emu.files import is_path
from emu.topology.cpu_list import MAX_CPUS
from emu.topology.files import folder, read_machine, shape_of
from emu.topology.machine import Topology
from emu.topology.shapes import check_size, from_layout, from_structure
from emu.topology.tables import Layout
from emu.topology.this_machine import host, host_file

ALSO_CALLED = {
    "altra-q80-30-1s": "altra-q80-1s",
    "hygon-12n-384": "hygon-12x32",
    "hygon-7280-8n-128": "hygon-7280-2s",
    "laptop-8c-5800u": "laptop-8c",
    "xeon-8275cl-2s-clx": "xeon-8275cl-2s",
    "xeon-8375c-2s-icx": "xeon-8375c-2s",
    "xeon-8570-2s-emr": "xeon-8570-2s",
}
"""Names that these machines have in the tables of measurements that their files were made from."""


def names() -> list[str]:
    """The machines that come with mm-emu, sorted."""
    return sorted(file.stem for file in folder().glob("*.toml") if not file.stem.startswith("_"))


@about("topology")
def load(name_or_path: str | Path) -> Topology:
    """A machine by name or path (has "/" or ends in ".toml"), `generic:sockets=2,...` or `host`.

    Raises InputError that says what is wrong and what would be right.
    """
    text = str(name_or_path)
    if text == "host":
        return host(calibrated=host_file())
    if text == "generic" or text.startswith("generic:"):
        return _generic(text)
    if isinstance(name_or_path, Path) or is_path(text):
        return check(Path(text))
    text = ALSO_CALLED.get(text, text)
    known = names()
    if text not in known:
        raise InputError(
            f"no topology '{text}'{nearest(text, known)}; there are: {', '.join(known)}, "
            "generic:sockets=2,..., host, or a path to a .toml file"
        )
    return check(folder() / f"{text}.toml")


def check(path: str | Path) -> Topology:
    """Reads a topology file strictly. Raises InputError with file, place and reason."""
    machine = read_machine(Path(path))
    shape = shape_of(machine)
    origin = f"confidence {shape.confidence}, {machine.sources[shape.source]}"
    if isinstance(shape, Layout):
        return from_layout(machine, origin, shape, f"{path}: [layout]")
    return from_structure(machine.name, machine.description, origin, machine, shape)


_GENERIC = {
    "sockets": "sockets",
    "nodes": "nodes_per_socket",
    "l3": "l3_per_node",
    "cores": "cores_per_l3",
    "smt": "smt",
}
"""Parameter of `generic:` -> field of Structure."""


def _generic(text: str) -> Topology:
    machine = read_machine(folder() / "_generic.toml")
    assert machine.structure is not None, "the file is ours"
    given: dict[str, int] = {}
    for part in filter(None, text.removeprefix("generic").removeprefix(":").split(",")):
        key, _, number = (word.strip() for word in part.partition("="))
        if key not in _GENERIC:
            raise InputError(
                f"{text}: no parameter '{key}'{nearest(key, _GENERIC)}; "
                f"there are: {', '.join(_GENERIC)}"
            )
        if _GENERIC[key] in given:
            raise InputError(f"{text}: {key} is given twice")
        is_number = number.isascii() and number.isdigit() and len(number) <= len(str(MAX_CPUS))
        if not (is_number and 1 <= int(number) <= MAX_CPUS):
            raise InputError(
                f"{text}: {key} must be a whole number from 1 to {MAX_CPUS}, not '{number}'"
            )
        given[_GENERIC[key]] = int(number)
    structure = msgspec.structs.replace(machine.structure, **given)
    check_size(structure, text)
    name = "generic:" + ",".join(
        f"{key}={getattr(structure, field)}" for key, field in _GENERIC.items()
    )
    return from_structure(name, machine.description, "as asked for", machine, structure)
