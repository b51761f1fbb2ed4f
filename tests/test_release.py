# SPDX-License-Identifier: MIT
"""What users get: installed in an empty environment, without a compiler, from an empty directory.

By default these are the files that the installed package says it consists of, beside the same
dependencies; with WHEEL=FILE in the environment (`make test-wheel`), that wheel and what pip finds.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from emu._version import __version__

WHEEL = os.environ.get("WHEEL")


def copy_installed(site: Path) -> None:
    """The package alone is copied; dependencies are where they were, and nothing else is."""
    here = Path(sysconfig.get_path("purelib"))
    for file in importlib.metadata.files("mm-emu") or []:
        target = Path(os.path.normpath(site / file))
        target.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix != ".pyc":
            shutil.copy(file.locate(), target)
    others = site.parents[3] / "dependencies"
    others.mkdir()
    for path in here.iterdir():
        if path.name != "emu" and path.suffix != ".pth" and not path.name.startswith("mm_emu"):
            (others / path.name).symlink_to(path)
    (site / "dependencies.pth").write_text(f"{others}\n")


class Installed:
    """An environment of its own; ``folder`` is the empty directory that commands run in."""

    def __init__(self, root: Path) -> None:
        self.venv, self.folder, self.no_tools = root / "venv", root / "empty", root / "bin"
        self.folder.mkdir()
        self.no_tools.mkdir()
        options = [] if WHEEL else ["--without-pip"]
        subprocess.run([sys.executable, "-m", "venv", *options, str(self.venv)], check=True)
        self.python = self.venv / "bin" / "python"
        if WHEEL:
            subprocess.run([self.python, "-m", "pip", "install", "--quiet", WHEEL], check=True)
        else:
            copy_installed(next(self.venv.glob("lib/python3.*/site-packages")))
        self.env = {
            "PATH": str(self.no_tools),
            "HOME": str(self.folder),
            "XDG_DATA_HOME": str(root / "data"),
            "XDG_CACHE_HOME": str(root / "cache"),
        }

    def emu(self, *arguments: str, status: int = 0) -> str:
        """What the command prints; of one that fails, the error."""
        done = subprocess.run(
            [self.python, "-m", "emu", *arguments],
            cwd=self.folder,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done.stderr if status else done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return Installed(tmp_path_factory.mktemp("release"))


def test_the_tag_is_for_every_python_and_one_kind_of_machine() -> None:
    if WHEEL:
        name = Path(WHEEL).name
        assert re.search(rf"^mm_emu-{re.escape(__version__)}-py3-none-manylinux_2_\d+_", name)
    else:
        metadata = importlib.metadata.distribution("mm-emu").read_text("WHEEL") or ""
        assert re.search(r"^Tag: py3-none-linux_\w+$", metadata, flags=re.MULTILINE)
        assert "Root-Is-Purelib: false" in metadata


def test_version_list_and_machines(installed: Installed) -> None:
    assert installed.emu("--version") == f"mm-emu {__version__}\n"
    assert "numa-locks" in installed.emu("list", "designs")
    assert "hygon-12x32" in installed.emu("topology", "show", "hygon-12x32")


def test_run_and_report(installed: Installed) -> None:
    words = "--engine native,virtual --topology host --cpus 1 --rmap single,numa-locks"
    short = "--duration 20ms --repeats 1 --json run.json"
    installed.emu("run", *words.split(), *short.split())
    cells = json.loads((installed.folder / "run.json").read_text())["cells"]
    assert len(cells) == 4
    assert all(cell["ops_per_s"] > 0 for cell in cells)
    installed.emu("report", "last", "--format", "html", "-o", "run.html")
    assert "plotly.js" in (installed.folder / "run.html").read_text()


def test_check_of_a_built_in_design(installed: Installed) -> None:
    words = ["check", "single", "--engine", "virtual", "--seeds", "1"]
    assert " ok" in installed.emu(*words)
    assert installed.emu("check", "single", "--scenario", "turns-2x2", "--schedules", "50")


def test_a_design_of_ones_own_needs_a_compiler_and_says_so(installed: Installed) -> None:
    # The compiler that the package was built with may be here; where the wheel goes it is not.
    (build_json,) = installed.venv.glob("lib/python3.*/site-packages/emu/lib/build.json")
    build = json.loads(build_json.read_text())
    build_json.write_text(json.dumps(build | {"compiler": "/elsewhere/bin/gcc"}))
    installed.emu("new", "rmap", "mine.c")
    error = installed.emu("run", "--rmap", "./mine.c", "--cpus", "1", status=2)
    assert "mine.c cannot be compiled: there is no gcc here" in error
    assert "build-essential" in error
    assert len(error.splitlines()) == 1


def test_manual_and_probe_are_where_they_belong(installed: Installed) -> None:
    assert (installed.venv / "share" / "man" / "man1" / "emu.1").is_file()
    (probe,) = installed.venv.glob("lib/python3.*/site-packages/emu/lib/emu-probe")
    assert os.access(probe, os.X_OK)
