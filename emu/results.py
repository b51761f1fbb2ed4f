"""What a run measured, as it is written in JSON, and the store that keeps runs.

The fields are the JSON's keys. Keys may be added, never renamed. Times are nanoseconds where the
name ends in ``_ns`` and seconds where it ends in ``_s``.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from emu.errors import InputError


class Latency(msgspec.Struct, kw_only=True):
    """Latencies of one operation; all ns but ``count`` and ``overflow`` (beyond the range)."""

    count: int = 0
    mean: float = 0.0
    p50: int = 0
    p90: int = 0
    p99: int = 0
    p999: int = 0
    max: int = 0
    overflow: int = 0
    hdr: str = ""
    """The buckets in HdrHistogram's exchange format; "" where there are none."""


class Site(msgspec.Struct, kw_only=True):
    """What one call site ("mmap_region>vma_link_file") did to a lock."""

    site: str
    acquired: int
    contended: int
    wait_ns: int


class Lock(msgspec.Struct, kw_only=True):
    """A lock class. ``hold_ns`` is scaled up from the acquisitions that were timed."""

    name: str
    file: str | None
    acquired: int
    contended: int
    wait_ns: int
    hold_ns: int
    sites: list[Site]


class Walker(msgspec.Struct, kw_only=True):
    """A walker. ``vmas`` were visited and ``pages`` unmapped or moved in the walks ``done``.

    ``refused``: reclaim found a lock taken. ``lost``: the rmap design has no index of the file.
    """

    kind: str
    file: str
    cpu: int
    first: int
    last: int
    at_once: int
    every_ns: int
    done: int
    refused: int
    lost: int
    vmas: int
    pages: int
    latency_ns: Latency


class Line(msgspec.Struct, kw_only=True):
    """A cache line (virtual engine)."""

    symbol: str
    transfers: int
    remote_transfers: int
    wait_ns: int


class Memory(msgspec.Struct, kw_only=True):
    """What a design's index costs."""

    rmap_bytes_per_file: int = 0
    bytes_per_vma: int = 0


class Host(msgspec.Struct, kw_only=True):
    """What the cell cost the host. ``events``: system calls emulated."""

    wall_s: float = 0.0
    events: int = 0
    peak_rss_bytes: int = 0
    start_s: float = 0.0
    """From the first fork until all CPUs were ready."""
    accesses: int = 0
    """Memory accesses that were modelled (virtual engine)."""


class Phase(msgspec.Struct, kw_only=True):
    """A phase that was recorded. ``ops`` counts ``unit``."""

    name: str
    unit: str
    ops: int
    seconds: float
    counts_ops: bool
    """Is this the phase that the cell's ops, locks and wait_share are from?"""
    wait_share: float
    latency_ns: dict[str, Latency]
    locks: list[Lock]
    walkers: list[Walker] = []


class CellResult(msgspec.Struct, kw_only=True):
    """One cell: what was run, and what came out."""

    rmap: str
    mm: str
    topology: str
    cpus: int
    workload: str
    engine: str
    seed: int
    repeat: int
    status: str
    error: str | None = None
    ops: int = 0
    seconds: float = 0.0
    ops_per_s: float = 0.0
    oversubscribed: bool = False
    note: str | None = None
    numa_penalty: bool = False
    latency_ns: dict[str, Latency]
    wait_share: float = 0.0
    locks: list[Lock] = []
    lines: list[Line] = []
    walkers: list[Walker] = []
    memory: Memory
    host: Host
    phases: list[Phase] = []

    @property
    def ok(self) -> bool:
        """Did the cell run to its end?"""
        return self.status == "ok"


class RunInfo(msgspec.Struct, kw_only=True):
    """What is said once for all cells of a run."""

    id: str
    started: str
    version: str
    command: list[str]
    status: str = "running"
    """"running", "done" or "interrupted"; a run that is killed stays "running"."""
    experiment: dict[str, Any]
    """The whole matrix with every default filled in: as TOML it would run the same again."""
    host: dict[str, Any]


class Run(msgspec.Struct, kw_only=True):
    """The results of an experiment. ``print(run)`` shows the table that ``emu run`` prints."""

    run: RunInfo
    cells: list[CellResult]

    def __str__(self) -> str:
        from emu.report.table import plain_text

        return plain_text(self)

    def array(self, field: str) -> NDArray[Any]:
        """A field of every cell as an array; "latency_ns.exec.p99" looks inside.

        Raises InputError for a field that cells do not have.
        """
        return np.array([_dig(cell, field) for cell in self.cells])

    def to_json(self) -> bytes:
        """The JSON document, with a newline at the end."""
        return msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n"

    @property
    def failed(self) -> list[CellResult]:
        """The cells that failed."""
        return [cell for cell in self.cells if not cell.ok]


def _dig(value: Any, field: str) -> Any:
    for name in field.split("."):
        try:
            value = value[name] if isinstance(value, dict) else getattr(value, name)
        except (KeyError, AttributeError):
            names = list(value) if isinstance(value, dict) else list(value.__struct_fields__)
            raise InputError(
                f"no field {name!r} in a result; there are {', '.join(names)}"
            ) from None
    return value


def new_run_id() -> str:
    """A name that sorts by time and is never given twice: "20260131-235959-017-1a2b"."""
    now = time.time()
    date = time.strftime("%Y%m%d-%H%M%S", time.localtime(now))
    return f"{date}-{int(now * 1000) % 1000:03d}-{secrets.token_hex(2)}"


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees the old contents or all of the new. May raise OSError."""
    fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(fd, "wb") as file:
            os.fchmod(fd, 0o644)
            file.write(data)
        Path(temporary).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
        raise


def read_run(path: Path) -> Run:
    """A run from its JSON file. Raises InputError when it cannot be read or is not one."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Run)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not the result of a run: {error}") from None


class Store:
    """A directory of runs, one JSON file each, each written in one piece."""

    def __init__(self, directory: Path | None = None) -> None:
        if directory is None:
            data = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
            directory = Path(data).expanduser() / "mm-emu" / "runs"
        self.directory = directory

    def prepare(self) -> None:
        """Make the directory. Raises InputError when nothing can be written there."""
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            probe = self.directory / f".probe-{secrets.token_hex(4)}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise InputError(
                f"{self.directory}: {error.strerror}; --store names another directory for results"
            ) from None

    def save(self, run: Run) -> Path:
        """Write the run, over what was written of it before. May raise OSError."""
        path = self.directory / f"{run.run.id}.json"
        write_atomically(path, run.to_json())
        return path

    def ids(self) -> list[str]:
        """The runs, oldest first."""
        return sorted(path.stem for path in self.directory.glob("[!.]*.json"))

    def load(self, name: str) -> Run:
        """A run by its id, the beginning of its id, "last", or the path of a file.

        Raises InputError when there is no such run or more than one.
        """
        if name.endswith(".json") or "/" in name:
            return read_run(Path(name))
        ids = self.ids()
        if name == "last":
            found = ids[-1:]
        else:
            found = [name] if name in ids else [i for i in ids if i.startswith(name)]
        if len(found) == 1:
            return read_run(self.directory / f"{found[0]}.json")
        if found:
            raise InputError(f"{name!r} begins more than one run: {', '.join(found)}")
        known = f"the latest are {', '.join(ids[-3:])}" if ids else "there is none yet"
        raise InputError(f"no run {name!r} in {self.directory}; {known}")
