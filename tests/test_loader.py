# SPDX-License-Identifier: MIT
"""A design that does not fit is refused in one line that names what is wrong."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from emu import _core

SKELETON = Path(__file__).parent.parent / "workers" / "designs" / "rmap" / "skeleton.c"


def compile_design(folder: Path, source: str) -> Path:
    """Compile as `emu` does: recorded compiler and flags, installed headers."""
    info = _core.build_info()
    file, library = folder / "mine.c", folder / "mine.so"
    file.write_text(source)
    command = [info["compiler"], *info["flags"], *info["machines"]["native"], "-shared"]
    command += [f"-I{_core.data_path('include')}", "-o", str(library), str(file)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return library


def load(library: Path, params: str | None = None, kind: str = "rmap") -> None:
    core = _core.load("native")
    encoded = None if params is None else params.encode()
    core.design_load(_core.NAME_OF_KIND.index(kind), str(library).encode(), encoded)


@pytest.fixture(scope="module")
def skeleton() -> str:
    return SKELETON.read_text()


def test_the_skeleton_loads_and_takes_its_parameter(tmp_path: Path, skeleton: str) -> None:
    load(compile_design(tmp_path, skeleton), "spin=0")
    assert _core.load("native").design_params("rmap") == [
        "spin=0: 1: writers spin on a running owner before they sleep",
        "batch=exit: VMAs of one file under one hold of its lock: "
        "none, or up to 8 at exit, in fork, in exec",
    ]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            ".version = EMU_RMAP_VERSION",
            ".version = 77",
            "skeleton: rmap interface version 77, this emu has 3",
        ),
        (
            ".machine = EMU_MACHINE_ID",
            ".machine = 9",
            "skeleton: compiled for machine 9, this engine is machine 1",
        ),
        (
            ".size = sizeof(struct skeleton)",
            ".size = 4096",
            "skeleton: .size is 4096, the arena's slot has 256 bytes",
        ),
        (
            "\t.walk = skeleton_walk,\n",
            "\t.walk = NULL,\n",
            "skeleton: required hook .walk is NULL",
        ),
        ('.name = "skeleton"', ".name = NULL", "emu_rmap_ops has no name"),
        (
            "emu_rmap_ops = {",
            "emu_other_ops = {",
            "does not define `const struct rmap_ops emu_rmap_ops`",
        ),
    ],
)
def test_a_wrong_design_is_refused(
    tmp_path: Path, skeleton: str, old: str, new: str, message: str
) -> None:
    assert old in skeleton
    library = compile_design(tmp_path, skeleton.replace(old, new))
    with pytest.raises(_core.CoreError) as caught:
        load(library)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ("spins=1", "skeleton has no parameter 'spins'"),
        ("spin=2", "skeleton: parameter spin must be a number from 0 to 1, not '2'"),
        ("spin=yes", "skeleton: parameter spin must be a number from 0 to 1, not 'yes'"),
        ("spin", "skeleton: parameter spin must be a number from 0 to 1, not ''"),
    ],
)
def test_a_wrong_parameter_is_refused(
    tmp_path: Path, skeleton: str, params: str, message: str
) -> None:
    library = compile_design(tmp_path, skeleton)
    with pytest.raises(_core.CoreError) as caught:
        load(library, params)
    assert message in str(caught.value)


def test_a_file_that_is_no_library_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.so").write_text("not a library")
    with pytest.raises(_core.CoreError, match=r"mine\.so"):
        load(tmp_path / "mine.so")
