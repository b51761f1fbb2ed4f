# SPDX-License-Identifier: MIT
"""The commands that README.md and docs/ show: known, run as they are shown; the man page."""

from __future__ import annotations

import re
import runpy
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest
import typer.main
from emu_command import emu

from emu import (
    background,
    cli_check,
    compare_kernel,
    conformance,
    experiment,
    results,
    validate,
    workload,
)
from emu._version import __version__
from emu.cli import app
from emu.workload import calls, reader

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

# Beginnings of commands that are shown, but not run here, and why.
NOT_RUN = {
    "make run": "is what installs and runs all that is shown below it",
    "make test": "is what runs this",
    "make bench": "takes minutes, and measures",
    "emu calibrate": "measures this machine for half a minute; tests/test_calibrate.py",
    "emu live": "shows what runs at that moment; tests/test_live.py",
    "emu check  ": "all designs in a minute; tests/test_explore.py",
}
# What a command gets on top, after its own options, so that it is as shown and takes a second.
SHORTER = {
    "run": ["--cpus", "2", "--repeats", "1", "--duration", "1ms"],
    "check": ["--seeds", "1", "--engine", "virtual"],
    "check --suite explore": ["--time", "1s", "--schedules", "20"],
}
WRAPPER = """#!{python}
import sys, os
words, shorter = sys.argv[1:], {shorter!r}
key = words[0]
if {{"--suite", "--scenario"}} & set(words):
    key = "check --suite explore"
os.execv(sys.executable, [sys.executable, "-m", "emu", *words, *shorter.get(key, [])])
"""


MANUAL = runpy.run_path(str(ROOT / "docs" / "manual.py"))
COMMANDS = {
    name.removeprefix("emu "): command
    for name, command in MANUAL["commands"](typer.main.get_command(app))
}


def shown(path: Path) -> list[str]:
    """Lines of indented blocks and of those that are marked as a shell's."""
    text = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"^    ((?:emu|make) .*)$", text, flags=re.MULTILINE)


def mentioned(path: Path) -> list[str]:
    """Also those within sentences, whole lines of consoles, and each of a line of several."""
    text = path.read_text()
    inline = re.findall(r"`(emu [a-z][^`]*)`", text)
    console = re.findall(r"^\$ (emu .*)$", text, flags=re.MULTILINE)
    lines = [*shown(path), *console, *inline]
    # What stands behind -- is another's command.
    each = [part.strip() for line in lines for part in re.split(r"[;|]\s", line.split(" -- ")[0])]
    return [line for line in each if line.startswith("emu ")]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_every_command_has_an_example_of_it(name: str) -> None:
    command = COMMANDS[name]
    text = " ".join(f"{command.help}\n{command.epilog or ''}".split())
    assert re.search(rf"Example: .*\bemu {name}\b", text)


def test_the_man_page_says_what_the_commands_say() -> None:
    assert MANUAL["PAGE"].read_text() == MANUAL["page"](), "out of date: make man"
    assert f"mm\\-emu {__version__}" in MANUAL["page"]()


def mapped() -> Iterator[str]:
    """Files that the map of ARCHITECTURE.md names, patterns among them; folders end in "/"."""
    text = (ROOT / "docs" / "ARCHITECTURE.md").read_text()
    block = re.search(r"^## The map\n.*?^```\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert block is not None
    folders: list[tuple[int, str]] = []
    for line in block[1].splitlines():
        indent = len(line) - len(line.lstrip())
        words = line.split()
        while folders and folders[-1][0] >= indent and indent <= 8:
            folders.pop()
        where = folders[-1][1] if folders else ""
        if words[0].endswith("/"):
            folders.append((indent, where + words[0]))
            where += words.pop(0)
        yield from (
            where + word
            for word in (word.strip(",;:") for word in words)
            if word == "*" or re.fullmatch(r"[\w*]+(\.[\w*]+)+", word)
        )


def test_the_map_is_the_tree() -> None:
    """Both ways: each file is in the map, and what the map names is there."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip("no git here")
    files = {line for line in listed.stdout.splitlines() if "/" in line and line[0] != "."}
    files = {line for line in files if (ROOT / line).is_file()}
    names = set(mapped())
    of_name = {name: {f for f in files if is_named(f, name)} for name in names}
    assert {name for name, found in of_name.items() if not found} == set()
    assert files - set().union(*of_name.values()) == set()


def is_named(path: str, name: str) -> bool:
    folder, _, pattern = name.rpartition("/")
    return path.rpartition("/")[0] == folder and fnmatch(path.rpartition("/")[2], pattern)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_commands_and_options_that_are_mentioned_exist(path: Path) -> None:
    unknown = []
    for line in mentioned(path):
        words = shlex.split(line, comments=True)[1:]
        name = next((n for n in COMMANDS if words[: len(n.split())] == n.split()), None)
        if name is None:
            unknown.append(line)
            continue
        own = words[: words.index("--")] if "--" in words else words
        known = {option for param in COMMANDS[name].params for option in param.opts} | {"--help"}
        unknown += [f"{line}: {w}" for w in own if re.match(r"--?[a-z]", w) and w not in known]
    assert unknown == []


def test_what_is_not_run_is_shown() -> None:
    lines = [line for path in PAGES for line in shown(path)]
    assert [start for start in NOT_RUN if not any(li.startswith(start) for li in lines)] == []


def test_the_share_of_holds_that_are_timed_is_the_core_s() -> None:
    header = (ROOT / "workers" / "include" / "emu" / "machine.h").read_text()
    samples = re.findall(r"#define EMU_HOLD_SAMPLE (\d+)u", header)
    told = (ROOT / "docs" / "ARCHITECTURE.md").read_text()
    assert [*re.findall(r"acquisition in (\d+) is timed on the native", told), "1"] == samples


FORMATS = ROOT / "docs" / "workloads.md"


def described_words() -> Iterator[str]:
    """What may stand in a workload or an experiment, as FORMATS has to write it."""
    for table in ("_File", "_Image", "_Program", "_Work", "_Cold", "_Phase", "_Walker"):
        yield from getattr(reader, table).__struct_fields__
    yield from background._Raw.__struct_fields__
    yield from (*background.OPS, *reader._WORK_KEYS)
    yield from (*calls.FLAGS, *calls.PROT)
    yield from (f"{op}(" for op in calls.OPS)
    yield from ("exclude", "include", "matrix", *experiment._READERS, *experiment._DEFAULTS)


def test_every_word_of_a_workload_and_an_experiment_is_described() -> None:
    text = FORMATS.read_text()
    words = set(re.findall(r"\w+\(|[\w-]+", " ".join(re.findall(r"`[^`\n]+`", text))))
    shown = set(re.findall(r"^(?:\[+)?(\w+)", "\n".join(toml_shown()), re.MULTILINE))
    assert set(described_words()) - words - shown == set()


def test_every_field_of_a_run_is_described() -> None:
    """Its JSON has these names, for other programs to go by."""
    text = (ROOT / "docs/python.md").read_text().partition("## JSON of other commands")[0]
    words = set(re.findall(r"\w+", " ".join(re.findall(r"`[^`\n]+`", text))))
    for struct in (results.RunInfo, results.CellResult, results.Latency):
        assert set(struct.__struct_fields__) - words == set()


OTHER_JSON = {
    "`emu check`": cli_check._Report,
    "a result": conformance.RuleResult,
    "its counts": conformance.Counts,
    "`emu validate`": validate.Validation,
    "a point": validate.Point,
    "a calibration": validate.Calibration,
    "an uncertainty, of `run` too": results.Uncertainty,
    "its designs": results.DesignUncertainty,
    "`emu compare-kernel`": compare_kernel.Comparison,
    "a row": compare_kernel.Row,
}


def test_every_field_of_the_other_json_is_described_and_no_more() -> None:
    section = (ROOT / "docs/python.md").read_text().partition("## JSON of other commands")[2]
    described: dict[str, set[str]] = {}
    of = ""
    for first, fields in re.findall(r"^\| (.*?)\s*\| (`.*?`) \|", section, re.MULTILINE):
        of = first or of
        described.setdefault(of, set()).update(re.findall(r"\w+", fields))
    assert described == {of: {*each.__struct_fields__} for of, each in OTHER_JSON.items()}


def toml_shown() -> list[str]:
    return re.findall(r"^```toml\n(.*?)^```", FORMATS.read_text(), re.MULTILINE | re.DOTALL)


def test_the_files_of_the_document_are_read_and_run(tmp_path: Path) -> None:
    whole, entry, matrix = toml_shown()
    path = tmp_path / "example.toml"
    # The entry of the rest of the kernel belongs into a workload.
    path.write_text(f"{whole}\n{entry}")
    loaded = workload.load(path)
    assert (loaded.name, [phase.unit for phase in loaded.phases]) == ("example", ["mmap", "mmap"])
    assert [each.name for each in loaded.uses.entries] == ["pcpu_lock"]
    where = ["--engine", "virtual", "--topology", "laptop-8c", "--cpus", "4", "--duration", "2ms"]
    done = emu("run", "--workload", str(path), *where, "--rmap", "single", "--json", "-")
    assert (done.returncode, done.stderr) == (0, "")
    assert '"kind": "truncate"' in done.stdout
    path.write_text(matrix)
    made = experiment.make(experiment.read_toml(path))
    assert [(each.engine, each.repeats, each.cpus) for each in made] == [
        ("native", 5, (1, 2, 4, 8, 16)),
        ("native", 5, (3,)),
        ("virtual", 1, (1, 2, 4, 8, 16)),
        ("virtual", 1, (3,)),
    ]


@pytest.mark.parametrize(
    "path", [path for path in PAGES if shown(path)], ids=lambda path: path.name
)
def test_commands_run_one_after_another(path: Path, tmp_path: Path) -> None:
    """As a reader types them, in an empty folder, whose store is empty too (conftest)."""
    wrapper = tmp_path / "bin" / "emu"
    wrapper.parent.mkdir()
    wrapper.write_text(WRAPPER.format(python=sys.executable, shorter=SHORTER))
    wrapper.chmod(0o755)
    folder = tmp_path / "empty"
    folder.mkdir()
    lines = [li for li in shown(path) if not any(li.startswith(start) for start in NOT_RUN)]
    if any(li.startswith("emu record") for li in lines) and not shutil.which("strace"):
        pytest.skip("recording needs strace")
    if "emu new " not in path.read_text():
        lines = ["emu new rmap mine.c", *lines]
    if not shutil.which("jq"):
        lines = [line.partition("| jq")[0] for line in lines]
    script = "set -e -o pipefail; PATH=$1:$PATH\n"
    for line in lines:
        began = time.monotonic()
        done = subprocess.run(
            ["bash", "-c", script + line, "bash", str(wrapper.parent)],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        print(f"{time.monotonic() - began:.1f} s: {line}")
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
