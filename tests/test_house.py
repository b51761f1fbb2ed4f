# SPDX-License-Identifier: MIT
"""House rules that a machine can check."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from emu import _core

ROOT = Path(__file__).parents[1]
AT_THE_ROOT = {
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "Makefile",
    "README.md",
    "docs",
    "emu",
    "pyproject.toml",
    "tests",
    "topologies",
    "workers",
}


def tracked(*suffixes: str) -> list[Path]:
    """Files of the project: those of git where there is git, else all outside build folders."""
    done = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        paths = [ROOT / line for line in done.stdout.splitlines()]
    else:
        ignored = {".venv", "build", "dist", "__pycache__", ".hypothesis"}
        paths = [path for path in ROOT.rglob("*") if not ignored & set(path.parts)]
        paths = [path for path in paths if not any(part.endswith("_cache") for part in path.parts)]
    return sorted(path for path in paths if path.is_file() and path.suffix in suffixes)


C_FILES = tracked(".c", ".h")
PYTHON_FILES = tracked(".py")


def test_the_lists_are_not_empty() -> None:
    assert len(C_FILES) > 20
    assert len(PYTHON_FILES) > 15


def test_nothing_else_at_the_root() -> None:
    names = {path.relative_to(ROOT).parts[0] for path in tracked(".md", ".toml", ".py", ".c", "")}
    assert {name for name in names if not name.startswith(".")} <= AT_THE_ROOT


def test_c_files_begin_with_licence_and_header() -> None:
    bad = []
    for path in C_FILES:
        lines = path.read_text().splitlines()
        if lines[0] != "/* SPDX-License-Identifier: MIT */" or not lines[1].startswith("/*"):
            bad.append(str(path.relative_to(ROOT)))
    assert bad == []


def test_c_lines_are_not_too_long() -> None:
    """clang-format asks for 120 columns; a comment may stick out a little. Python: see ruff."""
    bad = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in C_FILES
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if len(line.expandtabs(8)) > 128
    ]
    assert bad == []


ENGINES = r"#\s*(el)?if.*\bEMU_MACHINE_(NATIVE|VIRTUAL)\b"


def test_only_machine_h_knows_the_engine() -> None:
    """All #ifdef on the machine are in one header; what is compiled twice is the same text."""
    bad = [
        str(path.relative_to(ROOT))
        for path in C_FILES
        if path.name != "machine.h" and re.search(ENGINES, path.read_text())
    ]
    assert bad == []


def plain_c(path: Path) -> Iterator[str]:
    text = re.sub(r"/\*.*?\*/", "", path.read_text(), flags=re.DOTALL)
    for pattern in (r"\b__sync_\w+", r"\basm\b", r"\b__asm__\b", r"\btypedef\s+struct\b"):
        yield from re.findall(pattern, text)


def test_what_is_compiled_twice_is_plain_c11() -> None:
    folders = ("sync", "tree", "mm", "designs", "conformance")
    bad = {
        str(path.relative_to(ROOT)): found
        for path in C_FILES
        if path.is_relative_to(ROOT / "workers")
        and path.relative_to(ROOT / "workers").parts[0] in folders
        and (found := list(plain_c(path)))
    }
    assert bad == {}


@pytest.mark.parametrize("kind", ["rmap", "mm"])
def test_every_design_is_installed_under_its_name(kind: str) -> None:
    sources = {path.stem for path in (ROOT / "workers" / "designs" / kind).glob("*.c")}
    assert sources - {"skeleton"} == set(_core.design_names(kind))
    for name in _core.design_names(kind):
        source = (ROOT / "workers" / "designs" / kind / f"{name}.c").read_text()
        assert f'.name = "{name}"' in source


def test_every_module_is_installed() -> None:
    here = {path.relative_to(ROOT) for path in PYTHON_FILES if path.parts[-2] != "tests"}
    here = {path for path in here if path.parts[0] == "emu"} | {Path("emu/workers/cpu.py")}
    installed = {
        Path(str(file)) for file in importlib.metadata.files("mm-emu") or [] if file.suffix == ".py"
    }
    assert here == {path for path in installed if path.parts[0] == "emu"}


def test_nothing_but_the_package_is_in_site_packages() -> None:
    tops = {Path(str(file)).parts[0] for file in importlib.metadata.files("mm-emu") or []}
    assert {top for top in tops if top != ".." and not top.endswith(".dist-info")} == {"emu"}
    assert not list(_core.data_path("workers").rglob("*.c"))


def test_only_the_coordinator_starts_processes() -> None:
    """But for `emu record`, which runs strace, and `emu calibrate` its probe: no CPU of ours."""
    allowed = ("coordinator/", "record/strace.py", "calibrate.py")
    starters = {"subprocess", "multiprocess", "multiprocessing"}
    bad = []
    for path in PYTHON_FILES:
        name = str(path.relative_to(ROOT))
        if name.startswith("emu/") and not name.removeprefix("emu/").startswith(allowed):
            for node in ast.walk(ast.parse(path.read_text())):
                names: list[str] = []
                if isinstance(node, ast.Import):
                    names = [alias.name.partition(".")[0] for alias in node.names]
                elif isinstance(node, ast.ImportFrom) and node.module:
                    names = [node.module.partition(".")[0]]
                elif isinstance(node, ast.Attribute) and node.attr in ("fork", "posix_spawn"):
                    of = node.value.id if isinstance(node.value, ast.Name) else ""
                    names = [node.attr] if of == "os" else []
                bad += [f"{name}: {n}" for n in names if n in {*starters, "fork"}]
    assert bad == []


def test_markdown_has_one_title() -> None:
    bad = []
    for path in tracked(".md"):
        text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
        if len(re.findall(r"^# ", text, flags=re.MULTILINE)) != 1:
            bad.append(str(path.relative_to(ROOT)))
    assert bad == []


def test_ci_script_can_be_run() -> None:
    assert (ROOT / ".ci" / "run").stat().st_mode & stat.S_IXUSR


def test_makefile_help_lists_every_target() -> None:
    text = (ROOT / "Makefile").read_text()
    phony = next(line for line in text.splitlines() if line.startswith(".PHONY:")).split()[1:]
    described = re.findall(r"^([a-z0-9-]+):.*## ", text, flags=re.MULTILINE)
    assert sorted(described) == sorted(phony)


def test_headers_are_installed_as_they_are() -> None:
    source = ROOT / "workers" / "include" / "emu"
    installed = _core.data_path("include", "emu")
    names = {path.name for path in source.glob("*.h")}
    assert names == {path.name for path in installed.glob("*.h")}
    for name in names:
        assert (source / name).read_bytes() == (installed / name).read_bytes()
