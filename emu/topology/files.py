# SPDX-License-Identifier: MIT
"""Reads topology files strictly: what is wrong is said with file, place and reason."""

from __future__ import annotations

import math
from pathlib import Path
from typing import get_args, get_type_hints

import msgspec

from emu.errors import InputError, nearest
from emu.files import parse_toml
from emu.topology.shapes import check_size, from_layout
from emu.topology.tables import COMMON, SECTIONS, Cost, Layout, Machine, Structure, Table

MAX_STORES = 16
"""The virtual machine's store buffer (EMU_STORES_MAX)."""


def folder() -> Path:
    """Installed inside the package; beside it in a source checkout."""
    here = Path(__file__).parents[1]
    installed = here / "topologies"
    return installed if installed.is_dir() else here.parent / "topologies"


def read_machine(path: Path) -> Machine:
    """A file, checked, with the numbers that all machines share. Raises InputError."""
    raw = parse_toml(path)[0]
    common = parse_toml(folder() / "_common-costs.toml")[0]
    # The file's own numbers win over those for all machines, and the remarks go with the numbers.
    own_numbers = {
        f"{section}.{name}"
        for section in COMMON
        if isinstance(own := raw.get(section, {}), dict)
        for name in own
    }
    for section in (*COMMON, "notes", "sources"):
        own = raw.get(section, {})
        if isinstance(own, dict):
            raw[section] = own | {
                key: default
                for key, default in common[section].items()
                if key not in own and key not in own_numbers
            }
    _check_keys(raw, Machine, "", path)
    try:
        machine = msgspec.convert(raw, Machine)
    except msgspec.ValidationError as error:
        what, _, place = str(error).partition(" - at `$.")
        place = place.rstrip("`") or "top level"
        valid = "; one of H, M, L, U" if place.endswith(".confidence") else ""
        raise InputError(f"{path}: {place}: {what}{valid}") from error
    _check_meaning(machine, path)
    return machine


def _check_keys(raw: object, table: type[Table], place: str, path: Path) -> None:
    """Refuses unknown and missing keys, in words that msgspec does not have."""
    if not isinstance(raw, dict):
        raise InputError(f"{path}: {place} must be a table, not {raw!r}")
    hints = get_type_hints(table)
    for key in raw:
        if key not in hints:
            raise InputError(
                f"{path}: unknown key '{key}' in {f'[{place}]' if place else 'the top level'}"
                f"{nearest(key, hints)}; valid: {', '.join(hints)}"
            )
    for field in msgspec.structs.fields(table):
        dotted = f"{place}.{field.name}" if place else field.name
        inner = next((t for t in (field.type, *get_args(field.type)) if _is_table(t)), None)
        if field.name not in raw:
            if field.required:
                raise InputError(
                    f"{path}: {f'section [{dotted}]' if inner and not place else dotted} is missing"
                )
        elif inner:
            _check_keys(raw[field.name], inner, dotted, path)


def _is_table(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, Table)


def shape_of(machine: Machine) -> Structure | Layout:
    """The one of the two that it has."""
    shape = machine.layout or machine.structure
    assert shape is not None, "_check_meaning() has seen to it"
    return shape


def _check_meaning(machine: Machine, path: Path) -> None:
    if (machine.structure is None) == (machine.layout is None):
        raise InputError(f"{path}: section [structure] or [layout] is missing, or both are there")
    numbers = machine.numbers()
    for key, why in _needed(machine, path).items():
        if key not in numbers:
            raise InputError(f"{path}: {key} is missing: needed since {why}")
    for key, cost in numbers.items():
        if not math.isfinite(cost.value) or (cost.value == 0 and not key.startswith("c2c.per_")):
            raise InputError(f"{path}: {key}.value is {cost.value:g}; it must be a number above 0")
        if cost.value > (most := _most(key)):
            raise InputError(f"{path}: {key}.value is {cost.value:g}; at most {most:g}")
        if key == "core.smt_speed" and cost.value > 1:
            raise InputError(
                f"{path}: {key}.value is {cost.value:g}; at most 1, one thread's speed"
            )
        if key == "core.outstanding_stores" and not (
            cost.value == int(cost.value) and cost.value <= MAX_STORES
        ):
            raise InputError(
                f"{path}: {key}.value is {cost.value:g}; a whole number from 1 to {MAX_STORES}"
            )
        if key.startswith("idle."):
            state, _, kind = key.removesuffix("_ns").rpartition("_")
            other = f"{state}_{'residency' if kind == 'exit' else 'exit'}_ns"
            if other not in numbers:
                raise InputError(f"{path}: {key} without {other}: a state has both")
        if key.startswith("slit.") and not (
            cost.value == int(cost.value) and 10 <= cost.value <= 254
        ):
            raise InputError(
                f"{path}: {key}.value is {cost.value:g}; a distance is a whole number, 10-254"
            )
    shape = shape_of(machine)
    rated: list[tuple[str, Cost | Structure | Layout]] = [
        ("layout" if machine.layout else "structure", shape),
        *numbers.items(),
    ]
    for key, item in rated:
        if item.source not in machine.sources:
            raise InputError(
                f"{path}: {key}.source is '{item.source}'{nearest(item.source, machine.sources)}; "
                f"[sources] has: {', '.join(machine.sources)}"
            )
        if item.confidence in "LU" and not machine.note(key):
            either = " or ".join(f'"{name}"' for name in dict.fromkeys((key, key.split(".")[0])))
            raise InputError(
                f"{path}: {key} has confidence {item.confidence} but no reason; "
                f"add {either} to [notes]"
            )
    places = [*SECTIONS, "structure", "layout", *numbers]
    for key in machine.notes:
        if key not in places:
            raise InputError(
                f"{path}: [notes] has '{key}', which is no number or section{nearest(key, places)}"
            )


def _most(key: str) -> float:
    """What a machine's number may be: no real one comes near, and the engines' words hold it."""
    if key.startswith(("clock.", "slit.", "measured.")):
        return 1e12
    if key.endswith("_kib"):
        return 2**26
    if key == "kernel.work_scale":
        return 1000
    return 1e9 if key == "kernel.time_slice_ns" else 2e6


def _needed(machine: Machine, path: Path) -> dict[str, str]:
    """The numbers that a machine of this shape needs, and why."""
    if machine.layout:
        most = from_layout(machine, "", machine.layout, f"{path}: [layout]").most()
        return {key: why for key, why in _needed_by(most).items() if not key.startswith("slit.")}
    assert machine.structure is not None
    check_size(machine.structure, str(path))
    return _needed_by(machine.structure)


def _needed_by(s: Structure) -> dict[str, str]:
    needed: dict[str, str] = {}
    if s.smt > 1:
        needed["c2c.smt_ns"] = f"smt = {s.smt}"
    if s.cores_per_l3 > 1:
        needed["c2c.l3_ns"] = f"cores_per_l3 = {s.cores_per_l3}"
    if s.sockets * s.nodes_per_socket * s.l3_per_node > 1:
        needed["c2c.base_ns"] = "there is more than one L3"
    if s.nodes_per_socket > 1:
        for key in ("slit.same_socket", "c2c.per_die_hop_ns", "dram.same_socket_ns"):
            needed[key] = f"nodes_per_socket = {s.nodes_per_socket}"
    if s.sockets > 1:
        for key in ("slit.socket_linked", "c2c.per_socket_cross_ns", "dram.remote_ns"):
            needed[key] = f"sockets = {s.sockets}"
        if s.nodes_per_socket > 1:
            needed["slit.socket_other"] = (
                f"sockets = {s.sockets}, nodes_per_socket = {s.nodes_per_socket}"
            )
    return needed
