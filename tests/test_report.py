# SPDX-License-Identifier: MIT
"""`emu report`: every format of a real run read back, and of a made-up one to the letter."""

from __future__ import annotations

import csv
import io
import re
import sys
import xml.etree.ElementTree
from collections import Counter
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from emu_command import emu
from hdrh.log import HistogramLogReader

import emu as package
from emu.errors import InputError
from emu.histogram import decode, new_hdr
from emu.report import figures, mail, plot, table, text
from emu.results import (
    ByCpu,
    CellResult,
    Host,
    Latency,
    Line,
    LineSite,
    Lock,
    LockTimes,
    Memory,
    Phase,
    Run,
    RunInfo,
    Site,
    Wait,
    read_run,
)
from emu.terminal import SafeConsole, plain_console


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return package.run(
        rmap="single,numa-locks",
        cpus="1,2",
        duration="20ms",
        repeats=1,
        isolate=True,
        store=tmp_path_factory.mktemp("store"),
    )


def made_latency() -> Latency:
    hdr = new_hdr()
    for ns in (100, 100, 200, 1000):
        hdr.record_value(ns)
    return Latency(count=5, mean=350.0, p50=200, max=2**40, overflow=1, hdr=hdr.encode().decode())


def made_cell(**changes: object) -> CellResult:
    locks = [
        Lock(
            name="mmap_lock",
            file=None,
            acquired=4,
            contended=0,
            wait_ns=0,
            hold_ns=2000,
            sites=[Site(site="", acquired=4, contended=0, wait_ns=0)],
        ),
        Lock(
            name="i_mmap_rwsem",
            file="a;b.so",
            acquired=10,
            contended=4,
            wait_ns=8000,
            hold_ns=15000,
            wait_min_ns=700,
            wait_max_ns=5100,
            hold_min_ns=9,
            hold_max_ns=2500,
            sites=[
                Site(site="mmap_region>vma_link_file", acquired=6, contended=3, wait_ns=6000),
                Site(site="", acquired=4, contended=1, wait_ns=2000),
            ],
        ),
    ]
    latency = made_latency()
    latencies = {"exec": latency, "fork": Latency()}
    phase = Phase(
        name="all",
        unit="exec",
        ops=5,
        seconds=0.02,
        counts_ops=True,
        wait_share=0.25,
        latency_ns=latencies,
        locks=locks,
    )
    cell = CellResult(
        rmap="outer-inner:shards=2,by=cpu",
        mm="mmap-sem-rbtree",
        topology="t",
        cpus=2,
        workload="w",
        engine="virtual",
        seed=1,
        repeat=0,
        status="ok",
        ops=5,
        seconds=0.02,
        ops_per_s=250.0,
        wait_share=0.25,
        latency_ns=latencies,
        locks=locks,
        lines=[
            Line(
                symbol="i_mmap_rwsem a;b.so",
                transfers=8,
                remote_transfers=2,
                wait_ns=600,
                sites=[
                    LineSite(
                        site="mmap_region>down_write",
                        field="+0..8 count",
                        access="modify",
                        transfers=4,
                        remote_transfers=1,
                        wait_ns=500,
                    )
                ],
            ),
            Line(symbol="task", transfers=0, remote_transfers=0, wait_ns=200),
        ],
        waits=[
            Wait(
                kind="spin",
                symbol="osq_node",
                field="+16..24 locked/nudge",
                site="mmap_region>osq_lock",
                count=2,
                wait_ns=7000,
            )
        ],
        node_transfers=[[6, 0], [2, 0]],
        memory=Memory(rmap_bytes_per_file=128, bytes_per_vma=256),
        host=Host(wall_s=0.5),
        phases=[phase],
    )
    for name, value in changes.items():
        setattr(cell, name, value)
    return cell


def made_run(*cells: CellResult) -> Run:
    info = RunInfo(id="x", started="", version="0", command=[], experiment={}, host={})
    return Run(run=info, cells=list(cells))


FAILED: dict[str, object] = {
    "status": "failed",
    "error": "it, broke",
    "locks": [],
    "lines": [],
    "latency_ns": {},
}
FAILED |= {"waits": [], "node_transfers": []}


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A file with a cell, its repeat, and one that failed."""
    path = tmp_path / "made.json"
    run = made_run(made_cell(), made_cell(repeat=1), made_cell(repeat=2, **FAILED))
    path.write_bytes(run.to_json())
    return path


def report(path: Path, *arguments: str) -> str:
    done = emu("report", str(path), *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


# ---- to the letter ----

HEADING = "virtual: outer-inner:shards=2,by=cpu, mmap-sem-rbtree, t, 2 CPUs, w, repeat"

LOCKSTAT = f"""\
cell 0: {HEADING} 0
phase all, 0.020000 s; times in microseconds, shares of a lock's waiting
--------------------------------------------------------------------------------------------------------------------------------------------------------------------------
         class name     contentions   waittime-min   waittime-max waittime-total   waittime-avg   acquisitions   holdtime-min   holdtime-max holdtime-total   holdtime-avg
--------------------------------------------------------------------------------------------------------------------------------------------------------------------------

i_mmap_rwsem a;b.so:              4          0.700          5.100          8.000          2.000             10          0.009          2.500         15.000          1.500
-------------------
i_mmap_rwsem a;b.so               3                                        6.000          2.000              6   75.0%  mmap_region>vma_link_file
i_mmap_rwsem a;b.so               1                                        2.000          2.000              4   25.0%  -

          mmap_lock:              0          0.000          0.000          0.000          0.000              4          0.000          0.000          2.000          0.500
          ---------
          mmap_lock               0                                        0.000          0.000              4    0.0%  -
"""  # noqa: E501


def test_lockstat_to_the_letter(made: Path) -> None:
    assert report(made, "--format", "lockstat", "--cell", "0") == LOCKSTAT


def test_lockstat_has_writers_and_readers_apart_where_there_were_readers() -> None:
    def lock(name: str, **modes: LockTimes) -> Lock:
        acquired = sum(times.acquired for times in modes.values())
        sites = [Site(site="", acquired=acquired, contended=1, wait_ns=6000)]
        return Lock(
            name=name,
            file=None,
            acquired=acquired,
            contended=1,
            wait_ns=6000,
            hold_ns=1000,
            modes=modes,
            sites=sites,
        )

    wrote = LockTimes(acquired=5, contended=0, wait_ns=0, hold_ns=1000)
    read = LockTimes(acquired=3, contended=1, wait_ns=6000, hold_ns=0)
    locks = [lock("both", write=wrote, read=read), lock("w", write=wrote), lock("r", read=read)]
    cells = text.choose(made_run(made_cell(locks=locks)), None)
    rows = re.findall(r"^ *(\S+): +(\d+)((?: +\S+){4}) +(\d+)", text.lockstat(cells), re.MULTILINE)
    assert [(name, int(contended), int(acquired)) for name, contended, _, acquired in rows] == [
        ("both-W", 0, 5),
        ("both-R", 1, 3),
        ("w", 1, 5),
        ("r-R", 1, 3),
    ]


C2C = f"""\
cell 0: {HEADING} 0
all phases, 2 lines waited for; times in nanoseconds
---------------------------------------------------------------------------------
Index    Wait     Wait total   Wait avg  Transfers     Remote  Remote  Cache line
---------------------------------------------------------------------------------
    0  75.00%            600       75.0          8          2  25.00%  i_mmap_rwsem a;b.so
       83.33%            500      125.0          4          1  25.00%    +0..8 count modify mmap_region>down_write
    1  25.00%            200        0.0          0          0   0.00%  task
------------------------------------------------------
Waiting     Wait total     Wait avg      Count  On, in
------------------------------------------------------
   spin           7000       3500.0          2  osq_node +16..24 locked/nudge mmap_region>osq_lock
---------------------------
To node    from 0    from 1
---------------------------
      0         6         0
      1         2         0
"""  # noqa: E501


def test_c2c_to_the_letter(made: Path) -> None:
    assert report(made, "--format", "c2c", "--cell", "0") == C2C


CPUS = """\
cell 0: virtual: outer-inner:shards=2,by=cpu, mmap-sem-rbtree, t, 3 CPUs, w, repeat 0
phase all, 0.020000 s; shares of the time of each line's CPUs
                execs   transfers      remote    own work line stalls
all                 6          60           6      50.00%      50.00%
node 0              3          30           1      37.50%      62.50%
node 1              3          30           5      75.00%      25.00%
CPU 0               1          10           1      25.00%      75.00%
CPU 1               3          30           5      75.00%      25.00%
CPU 2               2          20           0      50.00%      50.00%
"""


def test_cpus_to_the_letter(tmp_path: Path) -> None:
    by_cpu = ByCpu(
        node=[0, 1, 0],
        ops=[1, 3, 2],
        transfers=[10, 30, 20],
        remote_transfers=[1, 5, 0],
        time_ps={"own_work": [100, 300, 200], "line_stalls": [300, 100, 200]},
    )
    path = tmp_path / "cpus.json"
    path.write_bytes(made_run(made_cell(cpus=3, by_cpu=by_cpu), made_cell()).to_json())
    first, second = report(path, "--format", "cpus").split("\n\n")
    assert first + "\n" == CPUS
    assert second.splitlines()[1].startswith("No CPUs: only the virtual engine")


def test_the_table_of_a_run_shows_time_stacks(made: Path) -> None:
    stack = {"own_work": 0.25, "line_stalls": 0.75}
    latency = {op: Latency() for op in ("exec", "fork", "exit")}
    cell = made_cell(time_stack=stack, latency_ns=latency)
    shown = str(made_run(cell)).splitlines()
    at = shown.index("Where the time went:")
    assert shown[at + 1].split() == ["rmap", "own", "work", "line", "stalls"]
    assert shown[at + 2].split()[1:] == ["25.0%", "75.0%"]
    # 5 operations on 2 CPUs.
    assert shown[at + 3].startswith(f"Few operations a CPU: {cell.rmap} 2.5. So beginning and end")
    cell.ops *= 2
    assert "Few operations" not in str(made_run(cell))
    cell.time_stack = {}
    assert "Where the time went" not in str(made_run(cell))


INCONSISTENT: dict[str, tuple[dict[str, object], str]] = {
    "no-time": ({"ops": 0, "seconds": 0.0, "ops_per_s": 0.0}, "`float` > 0 - at `$.cells[1].sec"),
    "no-cpus": ({"cpus": 0}, ">= 1 - at `$.cells[1].cpus`"),
    "no-phases": ({"phases": []}, "one phase counts_ops, not 0 - at `$.cells[1].phases`"),
    "rate": ({"ops_per_s": 1e308}, "< 1000000000000.0 - at `$.cells[1].ops_per_s`"),
    "other-rate": ({"ops_per_s": 251.0}, "not ops / seconds - at `$.cells[1].ops_per_s`"),
    "share": ({"time_stack": {"lunch": 1.0}}, "not those of `$.cells[0]` - at `$.cells[1].time"),
    "no-latencies": ({"latency_ns": {}}, "not those of `$.cells[0]` - at `$.cells[1].latency_ns`"),
    "too-much": (
        {"memory": Memory(bytes_per_vma=2**64)},
        "<= 9223372036854775807 - at `$.cells[1].memory.bytes_per_vma`",
    ),
    "less-than-nothing": ({"repeat": -1}, ">= 0 - at `$.cells[1].repeat`"),
}


@pytest.mark.parametrize("case", INCONSISTENT)
def test_a_result_that_contradicts_itself_is_refused_in_one_line(case: str, tmp_path: Path) -> None:
    changes, says = INCONSISTENT[case]
    path = tmp_path / "run.json"
    path.write_bytes(made_run(made_cell(), made_cell(**changes)).to_json())
    for words in (("show", str(path)), ("report", str(path), "--format", "html")):
        done = emu(*words)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert done.stderr.startswith(f"emu: {path} is not the result of a run: ")
        assert says in done.stderr


def test_the_phase_that_counts_has_execs_even_if_none(tmp_path: Path) -> None:
    cell = made_cell()
    cell.phases[0].latency_ns = {}
    path = tmp_path / "run.json"
    path.write_bytes(made_run(cell).to_json())
    with pytest.raises(InputError, match=r"no `exec` in latency_ns - at `.*phases`"):
        read_run(path)


def test_lists_by_cpu_are_of_one_length(tmp_path: Path) -> None:
    by_cpu = ByCpu(node=[0], ops=[1], transfers=[2], remote_transfers=[3], time_ps={"own": [4]})
    path = tmp_path / "run.json"
    whole = made_run(made_cell(by_cpu=by_cpu)).to_json()
    for name in ("node", "ops", "transfers", "remote_transfers", "own"):
        short = re.sub(rb'("%s": )\[\s*\d+\s*\]' % name.encode(), rb"\1[]", whole, count=1)
        assert short != whole
        path.write_bytes(short)
        with pytest.raises(InputError, match="by_cpu has lists of different lengths"):
            read_run(path)


def test_the_text_of_a_rate_with_a_long_unit_fits_its_columns() -> None:
    cells = [made_cell(), made_cell(rmap="single")]
    for cell in cells:
        cell.phases[0].unit = "iteration"
    assert "iteration/s" in mail.text(made_run(*cells))


NAMES = ("single", *(f"outer-inner:shards=64,by={by}" for by in ("cpu", "vma", "mm")), "btree")


@pytest.mark.parametrize("width", [40, 80, 250, None])
@pytest.mark.parametrize("cpus", [(1, 2), (1, 2, 3, 4)])
def test_tables_are_whole_on_narrow_terminals(width: int | None, cpus: tuple[int, ...]) -> None:
    rates = {
        (name, number): 1000.0 * (1 + place) + number
        for place, name in enumerate(NAMES)
        for number in cpus
    }
    made = (made_cell(rmap=n, cpus=number, ops_per_s=r) for (n, number), r in rates.items())
    run, out = made_run(*made), io.StringIO()
    if width:
        table.print_run(run, SafeConsole(file=out, width=width, force_terminal=True, no_color=True))
    else:
        table.print_run(run, plain_console(out))
    shown = re.sub("\x1b\\[[0-9;]*m", "", out.getvalue())
    assert "…" not in shown
    for rate in rates.values():
        assert f"{rate:,.0f}" in shown
    if len(cpus) > 3:
        lines = shown.replace("x single", "x").splitlines()
        headings = [words for words in map(str.split, lines) if words[:1] == ["CPUs"]]
        assert all(words[1] != "x" for words in headings), "x single has its design before it"
        if width != 40:  # there names are folded
            assert [word for words in headings for word in words if word in NAMES] == list(NAMES)
            assert len(headings) == 1 or width == 80


def test_too_few_repeats_are_told_without_a_promise() -> None:
    shown = str(made_run(made_cell(latency_ns={}), made_cell(rmap="single", latency_ns={})))
    assert "how far repeats spread is seen from 3 of them on." in shown


def test_a_failed_cell_says_so(made: Path) -> None:
    for form in ("lockstat", "c2c", "cpus"):
        assert report(made, "--format", form).endswith(
            f"\n\ncell 2: {HEADING} 2\nFAILED: it, broke\n"
        )


def test_folded_adds_repeats_up_and_keeps_frames_apart(made: Path) -> None:
    first = "outer-inner:shards=2,by=cpu;2 CPUs"
    assert report(made, "--format", "folded").splitlines() == [
        f"{first};i_mmap_rwsem a,b.so;mmap_region;vma_link_file 12000",
        f"{first};i_mmap_rwsem a,b.so 4000",
        f"{first};(by function);mmap_region;down_write;stall i_mmap_rwsem a,b.so 1000",
        f"{first};(by function);stall i_mmap_rwsem a,b.so 200",
        f"{first};(by function);stall task 400",
        f"{first};(by function);mmap_region;osq_lock;spin osq_node 14000",
    ]


def test_folded_begins_with_what_else_differs() -> None:
    cells = text.choose(made_run(made_cell(), made_cell(workload="v", engine="native")), None)
    starts = {line.partition(";outer")[0] for line in text.folded(cells).splitlines()}
    assert starts == {"virtual;w", "native;v"}


NO_LATENCY = "0,0.0,0,0,0,0,0,"
CSV = (
    "cell,rmap,mm,topology,cpus,workload,engine,kind,seed,repeat,status,ops,seconds,"
    "ops_per_s,wait_share,oversubscribed,numa_penalty,lock_acquired,lock_contended,"
    "lock_wait_ns,lock_hold_ns,"
    + "".join(
        f"{op}_count,{op}_mean_ns,{op}_p50_ns,{op}_p90_ns,{op}_p99_ns,{op}_p999_ns,{op}_max_ns,"
        for op in (
            *("iteration", "exec", "fork", "exit", "mmap", "munmap", "mprotect", "brk"),
            *("fault", "walk", "micro"),
        )
    )
    + "rmap_bytes_per_file,rmap_bytes_per_mapped_file,rmap_bytes_per_used_file,bytes_per_vma,"
    "wall_s,error\n"
    '0,"outer-inner:shards=2,by=cpu",mmap-sem-rbtree,t,2,w,virtual,predicted,1,0,ok,5,0.02,'
    "250.0,0.25,0,0,14,4,8000,17000,"
    + NO_LATENCY
    + "5,350.0,200,0,0,0,1099511627776,"
    + 9 * NO_LATENCY
    + "128,0,0,256,0.5,\n"
)


def test_csv_to_the_letter(made: Path) -> None:
    assert report(made, "--format", "csv", "--cell", "0") == CSV


HGRM = f"""\
#[exec of cell 0: {HEADING} 0, ns]
       Value     Percentile TotalCount 1/(1-Percentile)

      100.00 0.000000000000          2           1.00
      100.00 0.100000000000          2           1.11
      100.00 0.190000000000          2           1.23
      100.00 0.271000000000          2           1.37
      100.00 0.343900000000          2           1.52
      100.00 0.409510000000          2           1.69
      100.00 0.468559000000          2           1.88
      200.00 0.521703100000          3           2.09
      200.00 0.569532790000          3           2.32
      200.00 0.612579511000          3           2.58
      200.00 0.651321559900          3           2.87
      200.00 0.686189403910          3           3.19
      200.00 0.717570463519          3           3.54
      200.00 0.745813417167          3           3.93
     1003.00 0.771232075450          4           4.37
     1003.00 1.000000000000          4
#[Mean    =       350.50, StdDeviation   =       378.35]
#[Max     =      1003.00, TotalCount     =         4.00]
#[Buckets =           31, SubBuckets     =          256]
#[Beyond the range = 1]
"""


def test_hgrm_to_the_letter(made: Path) -> None:
    assert report(made, "--format", "hgrm", "--cell", "0") == HGRM


# ---- read back ----


def floats(line: str) -> list[float]:
    return [float(word) for word in re.findall(r"(?<= )[\d.]+(?= |$)", line)]


def test_lockstat_read_back(real: Run) -> None:
    sections = text.lockstat(text.choose(real, None)).split("\n\ncell ")
    assert len(sections) == len(real.cells) == 4
    for section, cell in zip(sections, real.cells, strict=True):
        cpus = "1 CPU," if cell.cpus == 1 else f"{cell.cpus} CPUs,"
        assert f"{cell.rmap}, {cell.mm}, {cell.topology}, {cpus}" in section
        classes = [line.split(":") for line in re.findall(r"^.*: +\d.*$", section, re.MULTILINE)]
        classes = [pair for pair in classes if pair[0].strip().startswith(("mmap", "i_mmap"))]
        assert len(classes) == len(cell.locks)
        columns = [floats(line) for _, line in classes]
        assert sum(row[0] for row in columns) == sum(lock.contended for lock in cell.locks)
        assert sum(row[3] for row in columns) == pytest.approx(
            sum(lock.wait_ns for lock in cell.locks) / 1000
        )
        assert sum(row[5] for row in columns) == sum(lock.acquired for lock in cell.locks)
        assert sum(row[8] for row in columns) == pytest.approx(
            sum(lock.hold_ns for lock in cell.locks) / 1000
        )
        assert all(low <= avg <= high for _, low, high, _, avg, *_ in columns)
        sites = [line for line in section.splitlines() if re.search(r"%  \S+$", line)]
        assert len(sites) == sum(len(lock.sites) for lock in cell.locks)
        acquired = sum(int(line.split("%")[0].split()[-2]) for line in sites)
        assert acquired == sum(lock.acquired for lock in cell.locks)


def test_c2c_read_back(tmp_path: Path) -> None:
    matrix = ["--rmap", "single,numa-locks", "--cpus", "16", "--duration", "1ms"]
    file = tmp_path / "run.json"
    assert emu("run", "--engine", "virtual", *matrix, "--json", str(file)).returncode == 0
    run = read_run(file)
    assert report(file, "--format", "c2c") == text.c2c(text.choose(run, None))
    sections = text.c2c(text.choose(run, None)).split("\n\n")
    for section, cell in zip(sections, run.cells, strict=True):
        shown = [row for row in section.splitlines()[5:] if re.match(r" *\d+ +[\d.]+% ", row)]
        rows = [line.split(maxsplit=7) for line in shown]
        assert cell.lines
        assert [row[7] for row in rows] == [line.symbol for line in cell.lines]
        assert [int(row[2]) for row in rows] == [line.wait_ns for line in cell.lines]
        assert [int(row[4]) for row in rows] == [line.transfers for line in cell.lines]
        assert [int(row[5]) for row in rows] == [line.remote_transfers for line in cell.lines]
        assert sum(float(row[1].rstrip("%")) for row in rows) == pytest.approx(100, abs=0.2)


def test_c2c_shows_who_pulled_the_lines_and_from_which_node(tmp_path: Path) -> None:
    where = ["--topology", "hygon-12x32", "--cpus", "96", "--workload", "execl"]
    file = tmp_path / "run.json"
    what = ["--rmap", "single", "--duration", "2ms", "--json", str(file)]
    assert emu("run", "--engine", "virtual", *where, *what).returncode == 0
    (cell,) = read_run(file).cells
    matrix = np.array(cell.node_transfers)
    assert matrix.shape == (12, 12)
    # CPUs 0 to 95 are on the first six nodes, and so is the traffic.
    assert matrix[6:].sum() == matrix[:, 6:].sum() == 0 < matrix[:6, :6].min()
    assert matrix.sum() == sum(line.transfers for line in cell.lines)
    remote = matrix.sum() - np.trace(matrix)
    assert remote == sum(line.remote_transfers for line in cell.lines)
    for line in cell.lines:
        for name in ("transfers", "remote_transfers", "wait_ns"):
            of_sites = sum(getattr(site, name) for site in line.sites)
            assert of_sites <= getattr(line, name)
        # A few sites are most of the line; of folios each page is one.
        if not line.symbol.startswith("folio "):
            assert sum(site.wait_ns for site in line.sites) > 0.5 * line.wait_ns - 100
    shown = text.c2c([(0, cell)])
    assert re.search(r"\+0\.\.8 count (load|modify) \S+>single_\w+", shown)
    assert re.search(r"^ +2( +[1-9]\d*){6}( +0){6}$", shown, re.MULTILINE)
    stacks = text.folded([(0, cell)]).splitlines()
    assert all(re.fullmatch(r"[^;]+(;[^;]+)+ \d+", stack) for stack in stacks)
    stalled = sum(int(s.rpartition(" ")[2]) for s in stacks if ";stall " in s)
    assert stalled == sum(line.wait_ns for line in cell.lines)


def test_c2c_of_the_native_engine_says_why_it_is_empty(real: Run) -> None:
    shown = text.c2c(text.choose(real, "single"))
    assert shown.count("only the virtual engine knows them") == 2


def test_folded_read_back(real: Run) -> None:
    waits: Counter[tuple[str, str]] = Counter()
    for line in text.folded(text.choose(real, None)).splitlines():
        stack, _, wait = line.rpartition(" ")
        rmap, cpus, lock, *frames = stack.split(";")
        assert lock.startswith(("i_mmap", "mmap_lock"))
        assert all(re.fullmatch(r"\w+", frame) for frame in frames)
        waits[rmap, cpus] += int(wait)
    for cell in real.cells:
        wait_ns = sum(lock.wait_ns for lock in cell.locks)
        assert waits[cell.rmap, f"{cell.cpus} CPUs"] == wait_ns


def test_csv_read_back(real: Run) -> None:
    rows = list(csv.DictReader(io.StringIO(text.comma_separated(text.choose(real, None)))))
    assert [int(row["cell"]) for row in rows] == [0, 1, 2, 3]
    for row, cell in zip(rows, real.cells, strict=True):
        assert (row["rmap"], int(row["cpus"]), int(row["ops"])) == (cell.rmap, cell.cpus, cell.ops)
        assert float(row["ops_per_s"]) == cell.ops_per_s
        assert int(row["lock_wait_ns"]) == sum(lock.wait_ns for lock in cell.locks)
        assert int(row["lock_acquired"]) == sum(lock.acquired for lock in cell.locks)
        assert int(row["exec_p99_ns"]) == cell.latency_ns["exec"].p99
        assert int(row["fork_count"]) == cell.latency_ns["fork"].count


def test_hgrm_read_back(real: Run) -> None:
    shown = text.hgrm(text.choose(real, None))
    parts = re.findall(r"^#\[(\w+) of cell (\d+): .*\]\n((?:.+\n|\n(?!#))*)", shown, re.MULTILINE)
    used = {
        (op, str(number))
        for number, cell in enumerate(real.cells)
        for op, latency in cell.latency_ns.items()
        if latency.count
    }
    assert {(op, number) for op, number, _ in parts} == used
    for op, number, body in parts:
        latency = real.cells[int(number)].latency_ns[op]
        # From 10 ms on a value fills its column, so that its line does not begin with a space.
        rows = [line for line in body.splitlines() if line and line[0] != "#"]
        points = [floats(f" {row}") for row in rows[1:]]
        assert points[-1][1:] == [1.0, latency.count - latency.overflow]
        hdr = decode(latency.hdr)
        for value, share, *_ in points:
            assert value >= hdr.get_value_at_percentile(share * 100 - 1e-6)
        assert [point[0] for point in points] == sorted(point[0] for point in points)
        assert f"TotalCount     = {latency.count - latency.overflow:>12.2f}]" in body


def test_hgrm_of_one_operation(real: Run) -> None:
    heads = re.findall(r"^#\[(\w+) of", text.hgrm(text.choose(real, None), "exec"), re.MULTILINE)
    assert heads == ["exec"] * 4


def test_hlog_read_back(real: Run, tmp_path: Path) -> None:
    path = tmp_path / "run.hlog"
    path.write_text(text.hlog(text.choose(real, None)))
    reader = HistogramLogReader(str(path), new_hdr())
    with closing(reader):
        end_s = 0.0
        for number, cell in enumerate(real.cells):
            for name, latency in cell.latency_ns.items():
                if not latency.hdr:
                    continue
                read = reader.get_next_interval_histogram()
                assert read.get_tag() == f"{number}:{name}"
                assert read.get_total_count() == latency.count - latency.overflow > 0
                # Its percentiles are edges of buckets, ours no more than the largest value.
                assert min(read.get_value_at_percentile(50), latency.max) == latency.p50
                assert read.get_start_time_stamp() == pytest.approx(end_s * 1000, abs=1e-3)
                length_ms = read.get_end_time_stamp() - read.get_start_time_stamp()
                assert length_ms == pytest.approx(cell.seconds * 1000, abs=1e-3)
            end_s += cell.seconds
        assert reader.get_next_interval_histogram() is None
    (line,) = text.hlog(text.choose(real, "1"), "fork").splitlines()[3:]
    assert line.startswith("Tag=1:fork,0.000000,")
    slowest_ms = float(line.split(",")[3])
    assert slowest_ms == pytest.approx(real.cells[1].latency_ns["fork"].max / 1e6)


# ---- the command ----


def test_a_stored_run_into_a_file(tmp_path: Path) -> None:
    real = package.run(rmap="single,numa-locks", cpus=32, duration="1ms", engine="virtual")
    for form, of in text.FORMATS.items():
        file = tmp_path / form
        done = emu("report", "last", "--format", form, "-o", str(file))
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert file.read_text() == of(text.choose(real, None))


def test_cells_are_chosen_by_number_or_design(made: Path) -> None:
    rows = {
        which: [
            line.split(",")[0]
            for line in report(made, "--format", "csv", *which.split()).splitlines()[1:]
        ]
        for which in ("", "--cell 1", "--cell outer-inner:shards=2,by=cpu")
    }
    assert list(rows.values()) == [["0", "1", "2"], ["1"], ["0", "1", "2"]]


def test_nothing_to_show_is_said(made: Path, tmp_path: Path) -> None:
    (tmp_path / "none.json").write_bytes(made_run().to_json())
    for form in text.FORMATS:
        done = emu("report", str(tmp_path / "none.json"), "--format", form)
        assert (done.returncode, done.stdout) == (0, "")
        assert done.stderr.endswith(f"has nothing to show as {form}\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--format", "cvs"], ["no format 'cvs'", "did you mean 'csv'", "lockstat"]),
        (["--format", "csv", "--cell", "3"], ["--cell 3", "3 cells"]),
        (["--format", "csv", "--cell", "single"], ["'single'", "outer-inner"]),
        (["--format", "csv", "--op", "exec"], ["--op exec", "hgrm and hlog"]),
        (["--format", "hgrm", "--op", "exce"], ["did you mean 'exec'", "fork"]),
        (["--format", "csv", "-o", "/proc/none/x"], ["/proc/none/x", "No such file"]),
        (["--format", "csv", "-o", "/"], ["/: "]),
        ([], ["--format"]),
    ],
)
def test_bad_input(made: Path, arguments: list[str], words: list[str]) -> None:
    done = emu("report", str(made), *arguments)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    for word in words:
        assert word in done.stderr


@pytest.mark.parametrize("hdr", ["x", "====", "HISTFAAA", "é"])
def test_buckets_that_cannot_be_read(hdr: str, tmp_path: Path) -> None:
    cell = made_cell(latency_ns={"exec": Latency(count=1, hdr=hdr)})
    (tmp_path / "bad.json").write_bytes(made_run(cell).to_json())
    done = emu("report", str(tmp_path / "bad.json"), "--format", "hgrm")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "exec of cell 0" in done.stderr


# ---- plots as images ----


@pytest.fixture(scope="module")
def with_walkers(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return package.run(
        store=tmp_path_factory.mktemp("store"),
        engine="virtual",
        rmap="single,outer-inner:shards=64,by=cpu",
        workload="execl-walkers",
        topology="laptop-8c",
        cpus="2,4",
        repeats=2,
        duration="2ms",
    )


def test_every_plot_becomes_an_image(with_walkers: Run) -> None:
    (section,) = figures.sections(with_walkers)
    keys = [figure.key for figure in section.figures]
    assert set(keys) >= {"scaling", "speed-up", "latency", "waiting", "transfers", "walkers"}
    for key in keys:
        picture = plot.image(with_walkers, "png", key)
        assert picture.startswith(b"\x89PNG")
        assert len(picture) > 10_000, key
    drawn = plot.image(with_walkers, "svg", None)
    assert drawn == plot.image(with_walkers, "svg", "scaling:section=1")
    text = xml.etree.ElementTree.fromstring(drawn).itertext()
    words = " ".join(" ".join(text).split())
    assert "Throughput execl-walkers on laptop-8c, mm per-vma-lock, predicted" in words
    assert "single outer-inner:shards=64,by=cpu" in words


def test_a_plot_is_chosen_by_the_words_of_the_page(with_walkers: Run) -> None:
    which = "transfers:design=outer-inner:shards=64,by=cpu,cpus=2"
    _, figure, variant = plot.find(with_walkers, which)
    assert figure.key == "transfers"
    assert variant.choice == {"Design": "outer-inner:shards=64,by=cpu", "CPUs": "2"}
    assert plot.find(with_walkers, "latency:cpus=4")[2].choice["CPUs"] == "4"
    wrong = {
        "scalng": "no plot 'scalng' (did you mean 'scaling'?)",
        "scaling:section=2": "no section 2; there are 1: execl-walkers on laptop-8c",
        "scaling:cpus=2": "scaling is not chosen by cpus, but by section",
        "latency:cpus=3": "no cpus in this plot '3'",
        "latency:64": 'words as "latency:operation=fork,cpus=64"',
    }
    for which, message in wrong.items():
        with pytest.raises(InputError, match=re.escape(message)):
            plot.find(with_walkers, which)


def test_images_from_the_command(with_walkers: Run, tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    file.write_bytes(with_walkers.to_json())
    out = tmp_path / "x.svg"
    done = emu("report", str(file), "--format", "svg", "--plot", "memory", "-o", str(out))
    assert (done.returncode, done.stderr) == (0, "")
    assert b"<svg" in out.read_bytes()
    bad = emu("report", str(file), "--format", "text", "--plot", "memory")
    assert (bad.returncode, bad.stderr.count("\n")) == (2, 1)


def test_images_need_matplotlib(with_walkers: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r"pip install 'mm-emu\[plots\]'"):
        plot.image(with_walkers, "png", None)


def test_mm_designs_are_compared_where_there_is_one_rmap_design(
    tmp_path: Path,
) -> None:
    run = package.run(
        engine="virtual",
        rmap="single",
        mm="mmap-sem-rbtree,per-vma-lock",
        workload="fault",
        topology="laptop-8c",
        cpus=2,
        duration="1ms",
        store=tmp_path,
    )
    (section,) = figures.sections(run)
    assert section.title == "fault on laptop-8c, rmap single"
    names = [trace["name"] for trace in section.figures[0].variants[0].traces]
    assert names == ["mmap-sem-rbtree", "per-vma-lock"]
    assert re.search(r"mm +fault/s +spread +x mmap-sem-rbtree", str(run))
    assert re.search(r"per-vma-lock +[\d,]+ +- +\d\.\d\d", mail.text(run))
    assert [cell.mm for cell in run.cells] == names
