# SPDX-License-Identifier: MIT
"""A user's design: the skeleton, what is said of a wrong one, and the cache of compiled ones."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from emu_command import emu

from emu import coordinator, design
from emu.arena import run_directory
from emu.engines._designs import find_design
from emu.errors import InputError

ROOT = Path(__file__).parents[1]
SKELETON = ROOT / "workers" / "designs" / "rmap" / "skeleton.c"


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A fresh skeleton."""
    file = tmp_path / "mine.c"
    design.write_skeleton("rmap", file)
    return file


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows by a word each time that the compiler makes an object file."""
    made: list[str] = []
    compiler = coordinator.tools._compile

    def counting(command: str, source: Path, arguments: list[str], folder: Path) -> str:
        if "-c" in arguments:
            made.append(source.name)
        return compiler(command, source, arguments, folder)

    monkeypatch.setattr(coordinator.tools, "_compile", counting)
    return made


def compile_it(source: Path, machine: str = "native") -> bytes:
    with run_directory() as directory:
        library = coordinator.compile_design(source, machine, directory)
        assert library.name == f"{source.stem}.so"
        return library.read_bytes()


def folder() -> Path:
    return Path(os.environ["XDG_CACHE_HOME"]) / "mm-emu" / "designs"


def test_the_skeleton_is_the_one_copy_under_the_files_name(mine: Path) -> None:
    wanted = SKELETON.read_text().replace('.name = "skeleton"', '.name = "mine"')
    assert mine.read_text() == wanted
    assert wanted != SKELETON.read_text()


def test_the_mm_skeleton_keeps_the_rules_and_runs(tmp_path: Path) -> None:
    file = tmp_path / "mine.c"
    done = emu("new", "mm", str(file))
    assert f"emu run --mm per-vma-lock,{file}" in done.stderr
    done = emu("check", str(file), "--engine", "virtual", "--seeds", "1")
    assert (done.returncode, done.stdout.count("  ok  ")) == (0, 7), done.stdout
    done = emu("check", str(file), "--schedules", "100", "--scenario", "fault-split,fork-fault")
    assert done.returncode == 0, done.stdout
    assert "nothing found" in done.stdout
    words = f"--mm {file}:spin=0 --workload mmap-page --cpus 2 --engine virtual --duration 1ms"
    done = emu("run", *words.split(), "--json", "-")
    assert done.returncode == 0, done.stderr
    assert f'"mm": "{file}:spin=0"' in done.stdout


def test_new_says_what_to_do_next_and_overwrites_nothing(tmp_path: Path) -> None:
    file = tmp_path / "first.c"
    done = emu("new", "rmap", str(file))
    assert done.returncode == 0
    assert f"emu check {file}" in done.stderr
    assert f"emu run --rmap single,{file}" in done.stderr
    file.write_text("precious")
    again = emu("new", "rmap", str(file))
    assert again.returncode == 2
    assert again.stderr == f"emu: {file} is there already, and nothing is written over it\n"
    assert file.read_text() == "precious"


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("rmmap", "x.c", "no kind of design with a skeleton 'rmmap' (did you mean 'rmap'?)"),
        ("rmap", "x.cc", "a design is one C file, and its name ends in .c"),
        ("rmap", 'q"x.c', "the name goes into C; without quotes"),
        ("mm", "q\\x.c", "the name goes into C"),
        ("rmap", "nosuch/x.c", "No such file or directory"),
    ],
)
def test_new_refuses_in_one_line(tmp_path: Path, kind: str, name: str, message: str) -> None:
    done = emu("new", kind, str(tmp_path / name))
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / name).exists()


def test_what_is_the_same_is_compiled_once(mine: Path, compilations: list[str]) -> None:
    first = compile_it(mine)
    assert compile_it(mine) == first
    assert compilations == ["mine.c"]
    assert compile_it(mine, "virtual") != first
    assert len(compilations) == 2
    mine.write_text(mine.read_text() + "/* another */\n")
    compile_it(mine)
    assert len(compilations) == 3


def test_a_header_of_the_users_own_is_part_of_it(mine: Path, compilations: list[str]) -> None:
    header = mine.with_name("mine.h")
    header.write_text("#define MINE 1\n")
    mine.write_text(mine.read_text() + '#include "mine.h"\nextern int mine[MINE];\n')
    compile_it(mine)
    header.write_text("#define MINE 2\n")
    compile_it(mine)
    compile_it(mine)
    assert len(compilations) == 2


def test_the_cache_is_for_its_user_alone(mine: Path) -> None:
    compile_it(mine)
    for path in (folder().parent, folder()):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    [kept] = folder().iterdir()
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    folder().chmod(0o777)
    compile_it(mine)
    assert stat.S_IMODE(folder().stat().st_mode) == 0o700


@pytest.mark.parametrize("level", ["mm-emu", "designs"])
def test_a_cache_behind_a_symbolic_link_is_refused(mine: Path, tmp_path: Path, level: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    link = folder() if level == "designs" else folder().parent
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(elsewhere)
    with pytest.raises(InputError, match=rf"{link} is a symbolic link, .*XDG_CACHE_HOME"):
        compile_it(mine)
    assert list(elsewhere.iterdir()) == []


def test_a_cache_of_somebody_else_is_refused(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compile_it(mine)
    monkeypatch.setattr(os, "geteuid", lambda: 4242)
    with pytest.raises(InputError, match="belongs to another user"):
        compile_it(mine)


def test_a_kept_library_that_is_a_link_is_not_taken(mine: Path, compilations: list[str]) -> None:
    first = compile_it(mine)
    [kept] = folder().iterdir()
    evil = mine.with_name("evil.so")
    evil.write_bytes(b"evil")
    kept.unlink()
    kept.symlink_to(evil)
    assert compile_it(mine)[:4] == first[:4]
    assert len(compilations) == 2
    assert evil.read_bytes() == b"evil"
    assert not kept.is_symlink()


def test_without_a_cache_it_works_all_the_same(
    mine: Path, compilations: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file" / "below"))
    compile_it(mine)
    compile_it(mine)
    assert len(compilations) == 2


def test_the_cache_is_bounded_and_the_oldest_go(
    mine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(design, "_KEPT", 3)
    cache = design.Cache()
    for age, key in enumerate(("a", "b", "c")):
        cache.put(key, mine)
        os.utime(folder() / f"{key}.so", (1000 + age, 1000 + age))
    assert cache.take("a", mine.with_suffix(".copy"))  # used last now
    cache.put("d", mine)
    assert {path.name for path in folder().iterdir()} == {"a.so", "c.so", "d.so"}


def test_two_at_once_both_get_it(mine: Path) -> None:
    """Each writes a file of its own and puts it there in one piece."""
    command = ["check", str(mine), "--engine", "virtual", "--seeds", "1", "--rule", "7"]
    both = [
        subprocess.Popen([sys.executable, "-m", "emu", *command], cwd="/", stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    for process in both:
        out, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        assert b" ok " in out
    assert [path.suffix for path in folder().iterdir()] == [".so"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "down_write(&s->rwsem);",
            "down_write(&s->rwsem)",
            r"cannot be compiled: .*mine\.c:\d+:\d+: error",
        ),
        (
            "i_mmap_tree_insert(",
            "no_such(",
            r"mine\.c:\d+:\d+: error: implicit declaration of .*no_such",
        ),
        ("<emu/rmap.h>", "<emu/nosuch.h>", r"cannot be compiled: .*nosuch\.h: No such file"),
        (
            ".version = EMU_RMAP_VERSION",
            ".version = 77",
            "rmap interface version 77, this emu has 3",
        ),
        (
            ".size = sizeof(struct skeleton)",
            ".size = 4096",
            "mine: .size is 4096, the arena's slot has 256 bytes",
        ),
        (".walk = skeleton_walk", ".walk = NULL", "mine: required hook .walk is NULL"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(mine: Path, old: str, new: str, message: str) -> None:
    text = mine.read_text()
    assert old in text
    mine.write_text(text.replace(old, new, 1))
    done = emu("check", str(mine), "--engine", "virtual", "--seeds", "1")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert re.search(message, done.stderr), done.stderr


def test_a_design_that_does_not_compile_is_not_kept(mine: Path) -> None:
    mine.write_text("not C")
    with ExitStack() as cleanup, pytest.raises(InputError, match="cannot be compiled"):
        find_design("rmap", str(mine), "native", cleanup)
    assert not list(folder().glob("*"))
