# SPDX-License-Identifier: MIT
"""The store: a directory with an SQLite database of runs and their cells.

A cell's row is written in one transaction as soon as the cell is done: the JSON document of its
result, the columns that it is found by, and its histograms in HdrHistogram's compressed encoding.
A process that is killed at any point leaves what was committed, and nothing else.

Processes share a store by claims. Who wants to run a cell claims it first; a claim of a process
that is gone counts for nothing. A process is known by host, number and start time; what cannot be
looked up from here (another host or container) is believed until its lease is over.

No connection is kept: every call opens one and closes it, so none is ever carried across a fork.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import os
import platform
import sqlite3
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from emu.errors import EmuError, InputError
from emu.files import is_path
from emu.results import CellResult, Run, RunInfo, Uncertainty, read_run

if TYPE_CHECKING:
    from emu.experiment import Cell

_FILE = "store.sqlite"
_LOCK_FILE = "host.lock"
_SCHEMA_VERSION = 1
_APPLICATION_ID = 0x656D7531  # "emu1"
_BUSY_S = 30.0

_SCHEMA = """
CREATE TABLE run (
    id TEXT PRIMARY KEY,
    fingerprint TEXT NOT NULL,      -- of all that decides about the results
    status TEXT NOT NULL,           -- RunInfo.status
    info BLOB NOT NULL              -- RunInfo as JSON
);
CREATE TABLE cell (
    run TEXT NOT NULL REFERENCES run ON DELETE CASCADE,
    number INTEGER NOT NULL,        -- in the order of the matrix
    rmap TEXT NOT NULL, mm TEXT NOT NULL, topology TEXT NOT NULL, cpus INTEGER NOT NULL,
    workload TEXT NOT NULL, engine TEXT NOT NULL, seed INTEGER NOT NULL, repeat INTEGER NOT NULL,
    status TEXT,                    -- NULL: still to be run
    again INTEGER NOT NULL DEFAULT 0,   -- so often it did not fail by itself: run it again
    ops_per_s REAL,
    finished_s REAL,                -- seconds since 1970
    document BLOB,                  -- CellResult as JSON, without the histograms
    PRIMARY KEY (run, number)
);
CREATE INDEX cell_by_what ON cell (rmap, mm, topology, cpus, workload, engine);
CREATE TABLE histogram (
    run TEXT NOT NULL, number INTEGER NOT NULL,
    phase TEXT NOT NULL,            -- '': the whole cell
    op TEXT NOT NULL,
    buckets BLOB NOT NULL,          -- HdrHistogram V2, compressed; ns
    PRIMARY KEY (run, number, phase, op),
    FOREIGN KEY (run, number) REFERENCES cell ON DELETE CASCADE
) WITHOUT ROWID;
CREATE TABLE claim (
    run TEXT NOT NULL, number INTEGER NOT NULL,
    host TEXT NOT NULL, pid INTEGER NOT NULL, start INTEGER NOT NULL,
    lease_s REAL NOT NULL,          -- seconds since 1970
    PRIMARY KEY (run, number),
    FOREIGN KEY (run, number) REFERENCES cell ON DELETE CASCADE
);
"""
_UNFINISHED = "(status IS NULL OR again)"


@dataclass(frozen=True)
class Owner:
    """A process that claims cells. ``start`` is in clock ticks after the host's boot."""

    host: str
    pid: int
    start: int

    @classmethod
    def myself(cls) -> Owner:
        """This process."""
        return cls(_host(), os.getpid(), _start_of(os.getpid()) or 0)

    def is_alive(self, lease_s: float) -> bool:
        """Does it still run, as far as can be known?"""
        if self.host == _host():
            return _start_of(self.pid) == self.start
        return time.time() < lease_s


def _host() -> str:
    """What has one set of process numbers: host, boot, namespace."""
    boot = namespace = ""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = str(Path("/proc/self/ns/pid").readlink())
    return f"{platform.node()} {boot} {namespace}"


def _start_of(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, IndexError):
        return None


def _error_name(error: Exception) -> str:
    """What SQLite calls it; "" where it has no name for it."""
    return getattr(error, "sqlite_errorname", "") or ""


def _is_busy(error: Exception) -> bool:
    return _error_name(error).startswith("SQLITE_BUSY")


def _log_ahead(connection: sqlite3.Connection) -> None:
    """Have it keep a write-ahead log. Of two who ask for that at once SQLite lets neither wait."""
    give_up = time.monotonic() + _BUSY_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if not _is_busy(error) or time.monotonic() > give_up:
                raise
        time.sleep(0.01)


class Summary(msgspec.Struct, frozen=True):
    """A line of ``emu runs``."""

    id: str
    name: str
    status: str
    """As RunInfo.status, but for "killed": it says that it runs, and nobody runs it."""
    done: int
    failed: int
    total: int
    engines: str


class Store:
    """See the module. Methods raise InputError for a store or run that cannot be used, and EmuError
    when it cannot be written (a full disk, say); what was written before is then still there.
    """

    def __init__(self, directory: Path | None = None) -> None:
        if directory is None:
            data = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
            directory = Path(data).expanduser() / "mm-emu" / "runs"
        self.directory = directory

    # ---- the database ----

    def prepare(self) -> None:
        """Make directory and database, of modes 0700 and 0600, if they are not there."""
        path = self.directory / _FILE
        try:
            self.directory.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                self.directory.mkdir(mode=0o700)
            self._check_directory()
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
            tempfile.TemporaryFile(dir=self.directory).close()
        except OSError as error:
            raise InputError(
                f"{self.directory}: {error.strerror}; --store names another directory for results"
            ) from None
        with self._open(write=True):
            pass

    def _check_directory(self) -> None:
        """Nobody else may lead us elsewhere."""
        files = (_FILE, f"{_FILE}-wal", f"{_FILE}-shm", f"{_FILE}-journal", _LOCK_FILE)
        for path in (self.directory, *(self.directory / name for name in files)):
            try:
                info = path.lstat()
            except FileNotFoundError:
                continue
            if stat.S_ISLNK(info.st_mode):
                raise InputError(
                    f"{path} is a symbolic link, to {path.readlink()}; "
                    "a store is a directory of its own: --store"
                )
            if path == self.directory and not stat.S_ISDIR(info.st_mode):
                raise InputError(f"{path} is no directory; --store names one")
            if info.st_uid != os.geteuid():
                raise InputError(f"{path} belongs to another user; --store names one of your own")
            if info.st_mode & stat.S_IWOTH:
                raise InputError(f"{path}: everybody may write there; chmod o-w, or --store")

    @contextlib.contextmanager
    def _open(self, *, write: bool = False) -> Iterator[sqlite3.Connection]:
        """A connection for one transaction; it is rolled back when an error leaves the block."""
        self._check_directory()
        connection = None
        try:
            connection = sqlite3.connect(
                self.directory / _FILE, timeout=_BUSY_S, isolation_level=None
            )
            self._set_up(connection)
            connection.execute("BEGIN IMMEDIATE" if write else "BEGIN")
            yield connection
            connection.execute("COMMIT")
        except (sqlite3.Error, UnicodeDecodeError) as error:
            raise self._error(error) from None
        finally:
            if connection:
                # Closing ends a transaction, too. The error before it is the one to tell.
                with contextlib.suppress(sqlite3.Error):
                    connection.close()

    def _set_up(self, connection: sqlite3.Connection) -> None:
        """Make the tables in a new file, check the version of an old one."""
        connection.execute("PRAGMA foreign_keys = ON")
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            _log_ahead(connection)
            connection.execute("BEGIN IMMEDIATE")
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version == 0 and connection.execute("SELECT * FROM sqlite_schema").fetchone():
                raise InputError(f"{self.directory / _FILE} is a database, but not mm-emu's")
            if version == 0:
                for statement in _SCHEMA.split(";\n"):
                    connection.execute(statement)
                connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
                connection.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
                version = _SCHEMA_VERSION
            connection.execute("COMMIT")
        if version > _SCHEMA_VERSION:
            raise InputError(
                f"{self.directory}: a newer mm-emu wrote this store (version {version}, this one "
                f"knows {_SCHEMA_VERSION}); use that one, or --store"
            )

    def _error(self, error: sqlite3.Error | UnicodeDecodeError) -> EmuError:
        name = _error_name(error)
        where = self.directory / _FILE
        # What SQLite says of a damaged name may be no text.
        no_text = isinstance(error, UnicodeDecodeError)
        if no_text or name == "SQLITE_NOTADB" or name.startswith("SQLITE_CORRUPT"):
            return InputError(f"{where} is damaged or no store: {error}")
        if _is_busy(error):
            return EmuError(f"{where}: another process has kept it locked for {_BUSY_S:.0f} s")
        if name == "SQLITE_FULL" or name.startswith("SQLITE_IOERR"):
            return EmuError(
                f"{where}: no room to write ({error}); what had finished is kept: make room, and "
                "the same command goes on"
            )
        return EmuError(f"{where}: {error}")

    @contextlib.contextmanager
    def machine(self, *, alone: bool) -> Iterator[MachineLock]:
        """The lock by which a native cell has the host for itself among runs of this store."""
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            fd = os.open(self.directory / _LOCK_FILE, flags, 0o600)
        except OSError as error:
            raise EmuError(f"{self.directory / _LOCK_FILE}: {error.strerror}") from None
        try:
            yield MachineLock(fd, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        finally:
            os.close(fd)

    # ---- running ----

    def find(self, fingerprint: str) -> str | None:
        """The latest run with this fingerprint that is not finished."""
        with self._open() as connection:
            return self._find(connection, fingerprint)

    @staticmethod
    def _find(connection: sqlite3.Connection, fingerprint: str) -> str | None:
        row = connection.execute(
            "SELECT id FROM run WHERE fingerprint = ? AND (status != 'done' OR EXISTS "
            f"(SELECT 1 FROM cell WHERE run = run.id AND {_UNFINISHED})) ORDER BY id DESC LIMIT 1",
            (fingerprint,),
        ).fetchone()
        return str(row[0]) if row else None

    def begin(
        self, info: RunInfo, cells: Sequence[Cell], fingerprint: str, *, fresh: bool = False
    ) -> str:
        """The id of a run to work on: the unfinished one of this fingerprint, else a new one.

        ``fresh``: a new one in any case.
        """
        with self._open(write=True) as connection:
            found = None if fresh else self._find(connection, fingerprint)
            if found:
                connection.execute("UPDATE run SET status = 'running' WHERE id = ?", (found,))
                return found
            connection.execute(
                "INSERT INTO run VALUES (?, ?, 'running', ?)",
                (info.id, fingerprint, msgspec.json.encode(info)),
            )
            connection.executemany(
                "INSERT INTO cell (run, number, rmap, mm, topology, cpus, workload, engine, seed, "
                "repeat) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (
                        *(info.id, number, cell.rmap, cell.mm, cell.topology, cell.cpus),
                        *(cell.workload, cell.engine, cell.seed, cell.repeat),
                    )
                    for number, cell in enumerate(cells)
                ],
            )
            return info.id

    def missing(self, run: str) -> set[int]:
        """Numbers of the cells that have not finished."""
        with self._open() as connection:
            query = f"SELECT number FROM cell WHERE run = ? AND {_UNFINISHED}"
            return {number for (number,) in connection.execute(query, (run,))}

    def claim(self, run: str, numbers: Sequence[int], lease_s: float) -> int | None:
        """The first of these cells that nobody has, now claimed for this process; None: none left.

        ``lease_s``: how long to believe that we run it where that cannot be looked up.
        """
        me = Owner.myself()
        with self._open(write=True) as connection:
            query = f"SELECT number FROM cell WHERE run = ? AND {_UNFINISHED}"
            free = {number for (number,) in connection.execute(query, (run,))}
            claims = connection.execute(
                "SELECT number, host, pid, start, lease_s FROM claim WHERE run = ?", (run,)
            )
            for number, host, pid, start, until_s in claims:
                if Owner(host, pid, start).is_alive(until_s):
                    free.discard(number)
            for number in numbers:
                if number in free:
                    connection.execute(
                        "INSERT OR REPLACE INTO claim VALUES (?, ?, ?, ?, ?, ?)",
                        (run, number, me.host, me.pid, me.start, time.time() + lease_s),
                    )
                    return number
        return None

    def times_again(self, run: str, number: int) -> int:
        """How often somebody killed or stopped a process of this cell, and it is to run again."""
        with self._open() as connection:
            query = "SELECT again FROM cell WHERE run = ? AND number = ?"
            row = connection.execute(query, (run, number)).fetchone()
            return int(row[0]) if row else 0

    def save(self, run: str, number: int, result: CellResult, *, again: bool = False) -> None:
        """Keep a result and give the claim back. A cell that has finished is left as it is."""
        document = msgspec.to_builtins(result)
        histograms = [
            (run, number, phase, op, base64.b64decode(latency["hdr"]))
            for phase, op, latency in _latencies(document)
            if latency["hdr"]
        ]
        for _, _, latency in _latencies(document):
            latency["hdr"] = ""
        with self._open(write=True) as connection:
            changed = connection.execute(
                "UPDATE cell SET status = ?, again = iif(?, again + 1, 0), ops_per_s = ?, "
                "finished_s = ?, document = ? "
                f"WHERE run = ? AND number = ? AND {_UNFINISHED}",
                (
                    *(result.status, again, result.ops_per_s, time.time()),
                    *(msgspec.json.encode(document), run, number),
                ),
            ).rowcount
            if changed:
                key = (run, number)
                connection.execute("DELETE FROM histogram WHERE run = ? AND number = ?", key)
                connection.executemany("INSERT INTO histogram VALUES (?, ?, ?, ?, ?)", histograms)
                connection.execute("DELETE FROM claim WHERE run = ? AND number = ?", key)

    def end(self, run: str, status: str, *, refused: bool = False) -> None:
        """This process works on the run no more: give all claims back and say how it ended.

        The run is done only when all cells are; while others work on it, it stays "running". A run
        that was ``refused`` before any cell had finished is removed.
        """
        me = Owner.myself()
        with self._open(write=True) as connection:
            connection.execute(
                "DELETE FROM claim WHERE run = ? AND host = ? AND pid = ? AND start = ?",
                (run, me.host, me.pid, me.start),
            )
            if not self._is_live(connection, run):
                connection.execute("UPDATE run SET status = ? WHERE id = ?", (status, run))
                if refused:
                    finished = "SELECT 1 FROM cell WHERE run = run.id AND cell.status IS NOT NULL"
                    connection.execute(
                        f"DELETE FROM run WHERE id = ? AND NOT EXISTS ({finished})", (run,)
                    )

    def add_uncertainty(self, run: str, found: list[Uncertainty]) -> None:
        """Keep the intervals of a run's speed-ups with what is said of the whole run."""
        self._change(run, lambda info: setattr(info, "uncertainty", found))

    def add_node(self, run: str, name: str, about: dict[str, Any]) -> None:
        """Keep what a host is that measured cells of a run."""
        self._change(run, lambda info: info.nodes.update({name: about}))

    def _change(self, run: str, change: Callable[[RunInfo], None]) -> None:
        with self._open(write=True) as connection:
            (info,) = connection.execute("SELECT info FROM run WHERE id = ?", (run,)).fetchone()
            with self._reading(run):
                decoded = msgspec.json.decode(info, type=RunInfo)
            change(decoded)
            connection.execute(
                "UPDATE run SET info = ? WHERE id = ?", (msgspec.json.encode(decoded), run)
            )

    @staticmethod
    def _is_live(connection: sqlite3.Connection, run: str) -> bool:
        claims = connection.execute(
            "SELECT host, pid, start, lease_s FROM claim WHERE run = ?", (run,)
        ).fetchall()
        return any(Owner(*owner).is_alive(float(lease_s)) for *owner, lease_s in claims)

    # ---- reading ----

    def ids(self) -> list[str]:
        """The runs, oldest first."""
        if not (self.directory / _FILE).exists():
            return []
        with self._open() as connection:
            ids = [run for (run,) in connection.execute("SELECT id FROM run ORDER BY id")]
        for run in ids:
            if not isinstance(run, str):  # SQLite's columns take any type
                raise InputError(f"{self.directory / _FILE} is damaged: a run is called {run!r}")
        return ids

    def summaries(self) -> list[Summary]:
        """All runs in short, oldest first."""
        if not self.ids():
            return []
        with self._open() as connection:
            found = []
            for run, status, info in connection.execute("SELECT id, status, info FROM run"):
                with self._reading(run):
                    raw = msgspec.json.decode(info, type=RunInfo)
                counts: Mapping[str, int] = dict(
                    connection.execute(
                        "SELECT coalesce(status, ''), count(*) FROM cell WHERE run = ? GROUP BY 1",
                        (run,),
                    ).fetchall()
                )
                if status == "running" and not self._is_live(connection, run):
                    status = "killed"
                engines = raw.experiment.get("engine", "")
                found.append(
                    Summary(
                        id=run,
                        name=str(raw.experiment.get("name", "")),
                        status=status,
                        done=sum(n for state, n in counts.items() if state),
                        failed=counts.get("failed", 0),
                        total=sum(counts.values()),
                        engines=",".join(
                            map(str, engines if isinstance(engines, list) else [engines])
                        ),
                    )
                )
            return sorted(found, key=lambda summary: summary.id)

    @contextlib.contextmanager
    def _reading(self, run: str) -> Iterator[None]:
        """Around what reads documents of a run: TypeError, where there is none in its column."""
        try:
            yield
        except (msgspec.MsgspecError, UnicodeDecodeError, TypeError) as error:
            raise InputError(f"run {run} in {self.directory} cannot be read: {error}") from None

    def find_id(self, name: str) -> str:
        """A run's id from the id, its beginning, or "last". Raises InputError for none or many."""
        ids = self.ids()
        if name == "last":
            found = ids[-1:]
        else:
            # Every id begins with nothing: of a single run "" would be the name.
            found = [name] if name in ids else [i for i in ids if name and i.startswith(name)]
        if len(found) == 1:
            return found[0]
        if found:
            raise InputError(f"{name!r} begins more than one run: {', '.join(found)}")
        known = f"the latest are {', '.join(ids[-3:])}" if ids else "there is none yet"
        raise InputError(f"no run {name!r} in {self.directory}; {known}")

    def load(self, name: str) -> Run:
        """A run by its id, the beginning of its id, "last", or the path of a JSON file.

        Raises InputError when there is no such run or more than one.
        """
        if is_path(name, ".json"):
            return read_run(Path(name))
        run = self.find_id(name)
        with self._open() as connection:
            status, info = connection.execute(
                "SELECT status, info FROM run WHERE id = ?", (run,)
            ).fetchone()
            documents = connection.execute(
                "SELECT number, document FROM cell WHERE run = ? AND document IS NOT NULL "
                "ORDER BY number",
                (run,),
            ).fetchall()
            buckets: dict[int, dict[tuple[str, str], bytes]] = {}
            for number, phase, op, blob in connection.execute(
                "SELECT number, phase, op, buckets FROM histogram WHERE run = ?", (run,)
            ):
                buckets.setdefault(number, {})[phase, op] = blob
        with self._reading(run):
            decoded = msgspec.json.decode(info, type=RunInfo)
            cells = [_result(document, buckets.get(number, {})) for number, document in documents]
            decoded.status = msgspec.convert(status, str)
        return Run(run=decoded, cells=cells)

    def remove(self, name: str) -> str:
        """Remove a run; its id. Raises InputError when it still runs."""
        run = self.find_id(name)
        with self._open(write=True) as connection:
            if self._is_live(connection, run):
                raise InputError(f"run {run} still runs; stop it first")
            connection.execute("DELETE FROM run WHERE id = ?", (run,))
        with contextlib.suppress(OSError):
            self.report_path(run).unlink()
        return run

    def report_path(self, run: str) -> Path:
        """Where the report of a run lies for which nobody has named a file."""
        return self.directory / f"{run}.html"


@dataclass(frozen=True)
class MachineLock:
    """Made by ``Store.machine``."""

    _fd: int
    _how: int

    def take(self) -> bool:
        """Try to get it, or keep it; False: somebody else measures here."""
        try:
            fcntl.flock(self._fd, self._how | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def _latencies(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(phase, operation, latency) of a cell's document; phase "": the whole cell."""
    parts = [("", document), *((phase["name"], phase) for phase in document["phases"])]
    for name, part in parts:
        for op, latency in part["latency_ns"].items():
            yield name, op, latency


def _result(document: bytes, buckets: Mapping[tuple[str, str], bytes]) -> CellResult:
    cell = msgspec.json.decode(document, type=CellResult)
    parts = {"": cell.latency_ns} | {phase.name: phase.latency_ns for phase in cell.phases}
    for (phase, op), blob in buckets.items():
        if op in parts.get(phase, {}):
            parts[phase][op].hdr = base64.b64encode(blob).decode()
    return cell
