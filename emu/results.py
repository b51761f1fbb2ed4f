"""What a run measured, as it is written in JSON and kept in the store.

The fields are the JSON's keys. Keys may be added, never renamed. Times are nanoseconds where the
name ends in ``_ns`` and seconds where it ends in ``_s``.
"""

from __future__ import annotations

import html
import math
import secrets
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from emu.errors import InputError
from emu.files import MIB, read_bytes

if TYPE_CHECKING:
    from emu.experiment import Cell

KIND = {"native": "measured", "virtual": "predicted"}
"""What the figures of an engine are."""
Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
"""Of anything, ns and bytes too; this and other bounds are looked at where a result is read."""


class Latency(msgspec.Struct, kw_only=True):
    """Latencies of one operation; all ns but ``count`` and ``overflow`` (beyond the range)."""

    count: Count = 0
    mean: float = 0.0
    p50: Count = 0
    p90: Count = 0
    p99: Count = 0
    p999: Count = 0
    max: Count = 0
    overflow: Count = 0
    hdr: str = ""
    """The buckets in HdrHistogram's exchange format; "" where there are none."""


class Site(msgspec.Struct, kw_only=True):
    """What one call site ("mmap_region>vma_link_file") did to a lock."""

    site: str
    acquired: Count
    contended: Count
    wait_ns: Count


class LockTimes(msgspec.Struct, kw_only=True):
    """``hold_ns`` is scaled up from the acquisitions that were timed.

    The shortest and the longest of the waits that there were, and of the holds that were timed.
    """

    acquired: Count
    contended: Count
    wait_ns: Count
    hold_ns: Count
    wait_min_ns: Count = 0
    wait_max_ns: Count = 0
    hold_min_ns: Count = 0
    hold_max_ns: Count = 0


class Lock(LockTimes, kw_only=True):
    """A lock class, however it was taken; ``modes``: as "write" and as "read", if there was that.

    Runs of earlier versions have no modes.
    """

    name: str
    file: str | None
    modes: dict[str, LockTimes] = {}
    sites: list[Site]


class Walker(msgspec.Struct, kw_only=True):
    """A walker. ``vmas`` were visited and ``pages`` unmapped or moved in the walks ``done``.

    ``refused``: reclaim found a lock taken. ``lost``: the rmap design has no index of the file.
    """

    kind: str
    file: str
    cpu: Count
    first: Count
    last: Count
    at_once: Count
    every_ns: Count
    done: Count
    refused: Count
    lost: Count
    vmas: Count
    pages: Count
    latency_ns: Latency


class LineSite(msgspec.Struct, kw_only=True):
    """What one stack of functions did to 8 bytes of a line (virtual engine)."""

    site: str
    """"outer>inner", by the functions themselves: no annotation is needed."""
    field: str
    """The bytes of the object, and what they are if that is known: "+0..8 count"."""
    access: str
    """"load", "store" or "modify" (an atomic read-modify-write)."""
    transfers: Count
    remote_transfers: Count
    wait_ns: Count


class Line(msgspec.Struct, kw_only=True):
    """The cache lines of one name (virtual engine)."""

    symbol: str
    transfers: Count
    """Lines that came out of another CPU's cache; remote: of another node's."""
    remote_transfers: Count
    wait_ns: Count
    """Stalls on these lines, where they came from memory too."""
    sites: list[LineSite] = []
    """Who did that: the sites with most of it; others are left out."""


class Wait(msgspec.Struct, kw_only=True):
    """Spinning or sleeping on a word, by stack of functions, whatever lock it was (virtual)."""

    kind: str
    """"spin" or "sleep"."""
    symbol: str
    field: str
    site: str
    count: Count
    wait_ns: Count


class Bottleneck(msgspec.Struct, kw_only=True):
    """What the CPUs waited for most. ``share``: of all CPU time of the phase that counts."""

    name: str
    """Of the lock with its file, or of the line."""
    kind: str
    """"lock" or "line"."""
    share: float


class ByCpu(msgspec.Struct, kw_only=True):
    """What each CPU did in the phase that counts operations: lists by CPU (virtual engine)."""

    node: list[Count]
    ops: list[Count]
    transfers: list[Count]
    """Cache lines that it got from other CPUs; ``remote_transfers``: from other nodes."""
    remote_transfers: list[Count]
    time_ps: dict[str, list[Count]]
    """By share of the time stack. A CPU's add up to the phase's length times its tasks."""

    def __post_init__(self) -> None:
        lists = (self.ops, self.transfers, self.remote_transfers, *self.time_ps.values())
        if any(len(each) != len(self.node) for each in lists):
            raise ValueError("by_cpu has lists of different lengths")


class Memory(msgspec.Struct, kw_only=True):
    """What a design's index costs: bytes of the arena, of the file that takes most."""

    rmap_bytes_per_file: Count = 0
    """Of a file that was never mapped."""
    rmap_bytes_per_mapped_file: Count = 0
    """Once it is mapped, by one process."""
    rmap_bytes_per_used_file: Count = 0
    """After the run: with what the design has put up for a file in use."""
    bytes_per_vma: Count = 0
    """A VMA with its share of an index."""


class Host(msgspec.Struct, kw_only=True):
    """What the cell cost the host. ``events``: system calls emulated."""

    wall_s: float = 0.0
    events: Count = 0
    peak_rss_bytes: Count = 0
    start_s: float = 0.0
    """From the first fork until all CPUs were ready."""
    accesses: Count = 0
    """Memory accesses that were modelled (virtual engine)."""
    other_cpus: float = 0.0
    """CPUs of the host that were busy with something else meanwhile (native engine)."""
    stolen_cpus: float = 0.0
    """CPUs that the hypervisor kept from the host meanwhile (native engine)."""
    node: str = ""
    """The name of the host, where it was one of a cluster."""


class Phase(msgspec.Struct, kw_only=True):
    """A phase that was recorded. ``ops`` counts ``unit``."""

    name: str
    unit: str
    ops: Count
    seconds: float
    counts_ops: bool
    """Is this the phase that the cell's ops, locks and wait_share are from?"""
    wait_share: float
    latency_ns: dict[str, Latency]
    locks: list[Lock]
    time_stack: dict[str, float] = {}
    """Where the time of all tasks went: shares that add up to 1 (virtual engine)."""
    walkers: list[Walker] = []


class CellResult(msgspec.Struct, kw_only=True):
    """One cell: what was run, and what came out."""

    rmap: str
    mm: str
    topology: str
    cpus: Annotated[int, Meta(ge=1, le=65_535)]
    workload: str
    engine: str
    seed: int
    repeat: Count
    status: str
    error: str | None = None
    ops: Count = 0
    seconds: float = 0.0
    ops_per_s: Annotated[float, Meta(ge=0, lt=1e12)] = 0.0
    oversubscribed: bool = False
    note: str | None = None
    numa_penalty: bool = False
    latency_ns: dict[str, Latency]
    wait_share: float = 0.0
    time_stack: dict[str, float] = {}
    locks: list[Lock] = []
    lines: list[Line] = []
    walkers: list[Walker] = []
    bottleneck: Bottleneck | None = None
    """None: nothing was waited for, as far as the engine sees lines."""
    waits: list[Wait] = []
    """The longest; of all recorded phases, as are lines."""
    node_transfers: list[list[Count]] = []
    """[to][from]: lines that went from node to node, recorded phases (virtual engine)."""
    by_cpu: ByCpu | None = None
    memory: Memory
    host: Host
    phases: list[Phase] = []

    def __post_init__(self) -> None:
        if any(len(row) != len(self.node_transfers) for row in self.node_transfers):
            raise ValueError("node_transfers is not square")

    @classmethod
    def of(cls, cell: Cell, **known: Any) -> CellResult:
        """The result of a cell, as far as it is ``known``; without operations so far."""
        empty: dict[str, Any] = {"latency_ns": {}, "memory": Memory(), "host": Host()}
        return cls(
            rmap=cell.rmap,
            mm=cell.mm,
            topology=cell.topology,
            cpus=cell.cpus,
            workload=cell.workload,
            engine=cell.engine,
            seed=cell.seed,
            repeat=cell.repeat,
            **(empty | known),
        )

    @property
    def ok(self) -> bool:
        """Did the cell run to its end?"""
        return self.status == "ok"


_MAX_BYTES = 1024 * MIB
"""Of a run as a file; one cell of 384 CPUs has some 200 KiB."""
_PART_OF_LOCKS = ("osq_node", "qspin_node", "task")
"""Lines that waiters for locks spin on: their wait is the lock's."""


def find_bottleneck(cell: CellResult, line_waits: Mapping[str, int]) -> Bottleneck | None:
    """The lock or line with the longest waits in the phase that counts.

    A lock that nobody waits for may still hold all up, where all write its line: readers count
    themselves there. What waiters do with that line is part of their wait: the longer one counts.
    ``line_waits``: ns by name of the line, as far as the engine knows.
    """
    time_ns = cell.cpus * cell.seconds * 1e9
    locks = {f"{lock.name} {lock.file or ''}".strip(): lock.wait_ns for lock in cell.locks}
    waits = [(max(ns, line_waits.get(name, 0)), "lock", name) for name, ns in locks.items()]
    waits += [
        (ns, "line", name)
        for name, ns in line_waits.items()
        if name not in locks and name not in _PART_OF_LOCKS
    ]
    longest = max(waits, default=None)
    if longest is None or longest[0] <= 0 or not time_ns:
        return None
    return Bottleneck(name=longest[2], kind=longest[1], share=longest[0] / time_ns)


class DesignUncertainty(msgspec.Struct, kw_only=True):
    """The speed-up of a design over the first one, over all draws."""

    rmap: str
    p10: float
    median: float
    p90: float
    min: float
    max: float
    hangs_on: dict[str, float]
    """The topology's numbers it hangs on most: their rank correlations with it, strongest first."""


class Uncertainty(msgspec.Struct, kw_only=True):
    """What is not known of the machine, as intervals of the speed-ups (``emu.uncertainty``)."""

    topology: str
    cpus: int
    workload: str
    mm: str
    baseline: str
    draws: Annotated[int, Meta(ge=2, le=2**63 - 1)]
    seed: int
    designs: list[DesignUncertainty]


class RunInfo(msgspec.Struct, kw_only=True):
    """What is said once for all cells of a run."""

    id: str
    started: str
    version: str
    command: list[str]
    status: str = "running"
    """"running", "done", "interrupted", or "stopped" when somebody else killed or stopped a worker;
    a run that is killed stays "running"."""
    experiment: dict[str, Any]
    """The whole matrix with every default filled in: as TOML it would run the same again."""
    host: dict[str, Any]
    """The machine that it began on; with the native engine also what ``emu system`` shows."""
    build: dict[str, Any] = {}
    """Compiler, flags, digest of the core, and the commit of the checkout where there is one."""
    files: dict[str, str] = {}
    """Absolute path and SHA-256 of the user's own designs, workloads and topologies."""
    nodes: dict[str, dict[str, Any]] = {}
    """With --cluster: the hosts that measured native cells, by name, as ``host``."""
    uncertainty: list[Uncertainty] = []
    """With --uncertainty only."""


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
        return np.array([dig(cell, field) for cell in self.cells])

    def rows(self) -> list[dict[str, Any]]:
        """A flat row for each cell: what was run, throughput, locks, latencies, memory."""
        from emu.report.text import choose, row

        return [row(number, cell) for number, cell in choose(self, None)]

    def to_pandas(self) -> Any:
        """The rows as a pandas.DataFrame. Raises InputError without pandas."""
        try:
            import pandas
        except ImportError:
            raise InputError("pandas is not installed: pip install pandas") from None
        return pandas.DataFrame(self.rows())

    def _repr_html_(self) -> str:
        """What a notebook shows: the tables as they are printed."""
        return f"<pre>{html.escape(str(self))}</pre>"

    def to_json(self) -> bytes:
        """The JSON document, with a newline at the end."""
        return msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n"

    @property
    def failed(self) -> list[CellResult]:
        """The cells that failed."""
        return [cell for cell in self.cells if not cell.ok]


def dig(value: Any, field: str, of: str = "result") -> Any:
    """What is found by names with dots between, in ``of``. Raises InputError."""
    for name in field.split("."):
        try:
            value = value[name] if isinstance(value, dict) else getattr(value, name)
        except (KeyError, AttributeError):
            names = value if isinstance(value, dict) else _field_names(value)
            there = f"there are {', '.join(names)}" if names else f"there is {value!r:.40}"
            raise InputError(f"no field {name!r} in a {of}; {there}") from None
    return value


def _field_names(value: Any) -> Iterable[str]:
    names: Iterable[str] = getattr(value, "__struct_fields__", ())
    return names or getattr(value, "__dataclass_fields__", ())


def new_run_id() -> str:
    """A name that sorts by time and is never given twice: "20260131-235959-017-1a2b"."""
    now = time.time()
    date = time.strftime("%Y%m%d-%H%M%S", time.localtime(now))
    return f"{date}-{int(now * 1000) % 1000:03d}-{secrets.token_hex(2)}"


def read_run(path: Path) -> Run:
    """A run from its JSON file. Raises InputError when it cannot be read or is not one."""
    try:
        run = msgspec.json.decode(read_bytes(path, _MAX_BYTES), type=Run)
        _check(run)
        return run
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    except ValueError as error:  # msgspec's errors are of this kind
        raise InputError(f"{path} is not the result of a run: {error}") from None


def _check(run: Run) -> None:
    """Is what reports rely on there? Raises ValueError with the place.

    Cells that stand side by side have the same operations, shares and walkers.
    """
    like: dict[object, tuple[str, object]] = {}
    for number, cell in enumerate(run.cells):
        if not cell.ok:
            continue
        place = f"$.cells[{number}]"
        counting = [phase for phase in cell.phases if phase.counts_ops]
        if len(counting) != 1:
            raise ValueError(f"one phase counts_ops, not {len(counting)} - at `{place}.phases`")
        if not cell.seconds > 0:
            raise ValueError(f"Expected `float` > 0 - at `{place}.seconds`")
        if not math.isclose(cell.ops_per_s * cell.seconds, cell.ops, rel_tol=1e-6):
            raise ValueError(f"it is not ops / seconds - at `{place}.ops_per_s`")
        if "exec" not in counting[0].latency_ns:
            raise ValueError(f"no `exec` in latency_ns - at `{place}.phases`")
        walkers = [(walker.kind, walker.file) for walker in cell.walkers]
        for what, of, value in (
            ("latency_ns", None, set(cell.latency_ns)),
            ("time_stack", cell.engine, set(cell.time_stack)),
            ("walkers", (cell.engine, cell.workload, cell.topology), walkers),
        ):
            first, expected = like.setdefault((what, of), (place, value))
            if value != expected:
                raise ValueError(f"not those of `{first}` - at `{place}.{what}`")
