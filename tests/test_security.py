# SPDX-License-Identifier: MIT
"""What docs/security.md promises: private, not guessable, no code from data, no steering."""

from __future__ import annotations

import ast
import os
import re
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from emu_command import children, start, wait_until
from rich.table import Table

import emu as package
from emu import arena, cli, experiment, terminal, topology, validate, workload
from emu.errors import InputError
from emu.results import read_run
from emu.store import Store

ROOT = Path(__file__).parents[1]
SOURCES = [*sorted((ROOT / "emu").rglob("*.py")), ROOT / "workers" / "cpu.py"]
ESCAPE = "\x1b]0;owned\x07\x1b[2Jx"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.fixture(params=[0o000, 0o022])
def a_lax_umask(request: pytest.FixtureRequest) -> Iterator[None]:
    old = os.umask(request.param)
    yield
    os.umask(old)


# ---- private ----


@pytest.mark.usefixtures("a_lax_umask")
def test_arena_sockets_and_store_are_for_the_user_alone(tmp_path: Path) -> None:
    store = tmp_path / "store"
    options = ("--rmap", "single", "--cpus", "2", "--duration", "30s", "--repeats", "1")
    process = start("run", *options, "--store", str(store))
    try:
        wait_until(lambda: len(children(process.pid)) == 2 or process.poll() is not None)
        ours = [Path(each) for each in ("/dev/shm", "/tmp")]
        (segment,), (directory,) = [list(each.glob(f"emu-{process.pid}-*")) for each in ours]
        wait_until(lambda: (directory / "coordinator").exists())
        assert mode(segment) == 0o600
        assert mode(directory) == 0o700
        assert mode(store) == 0o700
        assert {mode(path) for path in store.iterdir()} == {0o600}
        # Nobody else reaches it through the directory; and it says so itself.
        assert stat.S_ISSOCK((directory / "coordinator").lstat().st_mode)
        assert mode(directory / "coordinator") == 0o600
        for path in (segment, directory):
            assert re.fullmatch(rf"emu-{process.pid}-[0-9a-f]{{16}}", path.name)
    finally:
        process.kill()
        process.communicate()


def test_names_come_from_the_system_s_own_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def token_hex(count: int) -> str:
        asked.append(count)
        return "ab" * count

    monkeypatch.setattr("secrets.token_hex", token_hex)
    with arena.run_directory() as path:
        assert path.name == f"emu-{os.getpid()}-{'ab' * 8}"
    assert asked == [8]


# ---- planted ----


@pytest.mark.parametrize("kind", ["link", "file"])
def test_what_is_in_the_place_of_shared_memory_is_refused(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A link the C library refuses by itself; a file that somebody else made, and has open, we."""
    victim = tmp_path / "victim"
    victim.write_text("mine")
    name = f"emu-{os.getpid()}-{'0' * 16}"
    monkeypatch.setattr(arena, "_random_name", lambda: name)
    planted = Path("/dev/shm") / name
    if kind == "link":
        planted.symlink_to(victim)
    else:
        planted.write_text("theirs")
    try:
        with pytest.raises(InputError, match="no shared memory can be made"):
            arena.Arena.create(1 << 20)
        assert planted.is_symlink() == (kind == "link")
        assert planted.read_text() == ("mine" if kind == "link" else "theirs")
    finally:
        planted.unlink(missing_ok=True)
    assert victim.read_text() == "mine"


@pytest.mark.parametrize("kind", ["link", "folder"])
def test_what_is_in_the_place_of_a_socket_directory_is_refused(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(arena, "_random_name", lambda: "planted")
    monkeypatch.setattr(arena, "_LONGEST_PARENT", 1000)
    if kind == "link":
        (tmp_path / "planted").symlink_to(elsewhere)
    else:
        (tmp_path / "planted").mkdir()
    with pytest.raises(InputError, match="File exists"), arena.run_directory():
        pass
    assert list(elsewhere.iterdir()) == []
    assert (tmp_path / "planted").exists()


@pytest.mark.parametrize(
    "name", ["", "store.sqlite", "store.sqlite-wal", "store.sqlite-shm", "host.lock"]
)
def test_a_link_in_the_place_of_a_store_is_refused(name: str, tmp_path: Path) -> None:
    directory, victim = tmp_path / "store", tmp_path / "victim"
    if name:
        directory.mkdir(mode=0o700)
        victim.write_text("mine")
        (directory / name).symlink_to(victim)
    else:
        victim.mkdir()
        directory.symlink_to(victim)
    with pytest.raises(InputError, match="is a symbolic link"):
        Store(directory).prepare()
    assert victim.is_dir() or victim.read_text() == "mine"


def test_a_store_that_others_may_change_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "store")
    store.prepare()
    store.directory.chmod(0o702)
    with pytest.raises(InputError, match="everybody may write there"):
        store.ids()
    store.directory.chmod(0o700)
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(InputError, match="belongs to another user"):
        store.ids()


# ---- no code from data ----


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]


def test_nothing_unpickles_what_came_from_elsewhere() -> None:
    """The package multiprocess does, between a process and its own fork, over a pipe."""
    unpickle = {"pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "yaml"}
    used = {(path.name, name) for path in SOURCES for name in imported(path)}
    assert {(path, name) for path, name in used if name in unpickle} == set()
    assert {path for path, name in used if name == "multiprocess"} == {"processes.py"}
    text = (ROOT / "emu" / "coordinator" / "processes.py").read_text()
    assert not re.search(r"multiprocess\.(managers|connection\.(Client|Listener)|Manager)", text)
    for path in SOURCES:
        assert "allow_pickle" not in path.read_text(), path
        calls = [
            node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)
        ]
        names = {node.func.id for node in calls if isinstance(node.func, ast.Name)}
        assert not names & {"eval", "exec", "compile", "__import__"}, path


def test_zeromq_is_bound_to_files_alone() -> None:
    text = "".join(path.read_text() for path in SOURCES)
    # Addresses that are made; what is printed of Dask's has a name in capitals.
    made = set(re.findall(r"f[\"'](\w+)://", text))
    assert made & {"tcp", "udp", "pgm", "ws", "ipc"} == {"ipc"}
    assert len(re.findall(r"\.bind\(|\.bind_to_random_port\(", text)) == 1


def test_a_run_opens_no_port(tmp_path: Path) -> None:
    options = ("--rmap", "single", "--cpus", "2", "--duration", "30s", "--repeats", "1")
    process = start("run", *options, "--store", str(tmp_path / "store"))
    try:
        wait_until(lambda: len(children(process.pid)) == 2 or process.poll() is not None)
        wait_until(lambda: list(Path("/tmp").glob(f"emu-{process.pid}-*/coordinator")))
        open_files = [
            str(link.readlink())
            for pid in (process.pid, *children(process.pid))
            for link in Path(f"/proc/{pid}/fd").iterdir()
        ]
        inodes = {match[1] for name in open_files if (match := re.match(r"socket:\[(\d+)", name))}
        net = Path("/proc/net")
        lines = [x for t in ("tcp", "tcp6", "udp", "udp6") for x in text_of(net / t).splitlines()]
        assert inodes
        assert inodes & {line.split()[9] for line in lines[1:] if len(line.split()) > 9} == set()
    finally:
        process.kill()
        process.communicate()


def text_of(path: Path) -> str:
    return path.read_text() if path.exists() else ""


# ---- nothing that steers ----


def test_what_steers_a_terminal_is_written_out() -> None:
    assert terminal.printable("a\tb\nc é") == "a\tb\nc é"
    assert terminal.printable("\x1b[2J\x9b\r\x7f") == r"\x1b[2J\x9b\r\x7f"
    assert terminal.printable("\u202egnp.exe") == r"\u202egnp.exe"


def test_a_console_shows_names_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    for console in (terminal.plain_console(sys.stdout), terminal.SafeConsole(file=sys.stdout)):
        table = Table()
        table.add_column("[b]head[/b]", no_wrap=True)
        table.add_row(f"[red]{ESCAPE}[/]")
        console.print(table)
        console.print("[/nothing] :smile:", style="bold")
        out = capsys.readouterr().out
        assert r"[red]\x1b]0;owned\x07\x1b[2Jx[/]" in out
        assert "[b]head[/b]" in out
        assert "[/nothing] :smile:" in out
        assert not set(out) & {"\x07", "\x1b"}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that somebody sent, with names of designs and files that steer."""
    folder = tmp_path_factory.mktemp("hostile")
    run = package.run(
        rmap=["single", "btree"], cpus=2, duration="20ms", repeats=1, store=folder / "store"
    )
    text = run.to_json().decode()
    for name in ("single", "btree", "libc.so.6", "execl"):
        text = text.replace(name, name + r"\u001b]0;owned\u0007[/red]\u202e<b>")
    path = folder / "hostile.json"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("words", "shows"),
    [
        (("report", "--format", "text"), True),
        (("report", "--format", "lockstat"), True),
        (("report", "--format", "c2c"), False),
        (("report", "--format", "folded"), False),
        (("report", "--format", "csv"), True),
        (("report", "--format", "hgrm"), False),
        (("show",), True),
        (("show", "--config"), True),
        (("compare", "--layout", "lkp"), True),
    ],
)
def test_hostile_names_reach_no_terminal(
    words: tuple[str, ...], shows: bool, hostile: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command, *options = words
    names = [str(hostile)] * (2 if command == "compare" else 1)
    assert cli._call([command, *names, *options]) == 0
    steers_not(capsys.readouterr(), shows)


def test_machines_steer_no_terminal_and_their_xml_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What somebody calls a machine is printed, and comes back through hwloc's format and TOML."""
    mine, xml, back = (tmp_path / name for name in ("mine.toml", "mine.xml", "back.toml"))
    text = (ROOT / "topologies" / "laptop-8c.toml").read_text()
    for name in ('name = "laptop-8c', 'description = "AMD'):
        assert name in text
        text = text.replace(name, name + r"owned\u001b[31m\u009b\u202e")
    mine.write_text(text)
    for words, shows in (
        (("show", str(mine)), True),
        (("check", str(mine)), False),
        (("export", str(mine)), True),
        (("export", str(mine), "-o", str(xml)), False),
        (("import", str(xml)), False),
        (("import", str(xml), "-o", str(back)), False),
    ):
        assert cli._call(["topology", *words]) == 0
        steers_not(capsys.readouterr(), shows)
    assert topology.load(str(back)).nr_cpus == topology.load("laptop-8c").nr_cpus
    named = topology.load(str(mine))
    assert "\x9b" in named.name
    mine.write_text(named.to_toml())
    assert topology.load(str(mine)).name == named.name


def test_an_error_steers_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli._call(["run", "--workload", "./\x1bowned\u202e.toml"]) == 2
    steers_not(capsys.readouterr(), True)


def steers_not(output: tuple[str, str], shows: bool) -> None:
    out = "".join(output)
    assert ("owned" in out) or not shows
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", out)


# ---- not without end ----


@pytest.mark.parametrize(
    "read",
    [workload.load, experiment.read_toml, read_run, lambda path: package.topology.load(path)],
)
def test_a_file_without_end_is_refused(read: object, tmp_path: Path) -> None:
    assert callable(read)
    path = tmp_path / "endless.toml"
    path.symlink_to("/dev/zero")
    with pytest.raises(InputError, match="larger than"):
        read(path)


@pytest.mark.parametrize(
    ("read", "file"),
    [
        (experiment.read_toml, experiment.path_of("laptop")),
        (workload.load, workload.reader.folder() / "execl.toml"),
        (package.topology.load, package.topology.files.folder() / "laptop-8c.toml"),
        (validate.read, Path(validate.__file__).with_name("published.toml")),
    ],
)
def test_a_byte_order_mark_is_no_part_of_a_file(
    read: Callable[[Path], object], file: Path, tmp_path: Path
) -> None:
    marked = tmp_path / file.name
    marked.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    read(marked)
