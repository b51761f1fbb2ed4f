# SPDX-License-Identifier: MIT
"""Feeds every parser with damaged input: python tests/fuzz.py --minutes 10 [PARSER...]

Real files and texts are cut, repeated, truncated, lose bits, and get other values for theirs. A
parser may accept what it gets or refuse it with one line (InputError). Anything else is a bug:
another exception, several lines, no end within ten seconds. What led to it is shrunk by hypothesis
and shown; the exit status is then 1. tests/test_fuzz.py has a short form.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import re
import signal
import sqlite3
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import FrameType
from unittest import mock

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from rich.console import Console

from emu import experiment, explore, histogram, hwloc, record, topology, validate, workload
from emu.coordinator import StopFlag
from emu.engines._designs import find_design
from emu.errors import EmuError, InputError
from emu.report import figures, text
from emu.report.table import print_run
from emu.report.trace import make_window
from emu.results import Run, read_run
from emu.store import Store

ROOT = Path(__file__).parents[1]
DATA = Path(__file__).parent / "data"
HANG_S = 10
"""Of CPU time, so that a busy machine is no hang; waiting may take twelve times as long."""

VALUES = (
    *(b"0", b"-1", b"1", b"4096", b"4097", b"1000000", b"4503599627370495", b"4503599627370496"),
    *(b"9223372036854775807", b"9223372036854775808", b"-9223372036854775808", b"1e308", b"1e-320"),
    *(b"18446744073709551616", b"nan", b"inf", b"-inf", b"true", b"[]", b"{}", b'""', b"[[[[]]]]"),
    *(b"'\\u0000'", b'"a\\nb"', b"1979-05-27", b"0x7ffffffff000", b"0xffffffffffffffff", b"2562h"),
    *(
        b"9223372036s",
        b"0-4095",
        b"4096-4097",
        b"0-99999999",
        b"1..99999999",
        b"1,1,1",
        b"\xff\xfe",
    ),
    *(
        b"1" * 400 + b"s",
        b"9" * 5000 + b"M",
        b"1" * 5000,
        b"1" * 400,
        b"a" * 400,
        b"[" * 3000,
        "\u0661\u00b2".encode(),
        b"\x00",
        b"\n",
        b"&x;",
        b"%s",
    ),
)
"""What takes the place of another value."""
_TOKEN = re.compile(rb'"[^"\n]*"|[\w.+-]+|[\[\](){}=,]')

Edit = tuple[str, float, float, bytes]
EDITS: st.SearchStrategy[list[Edit]] = st.lists(
    st.tuples(
        st.sampled_from(
            [
                "value",
                "value",
                "value",
                "swap",
                "cut",
                "repeat",
                "insert",
                "truncate",
                "flip",
                "flip",
            ]
        ),
        st.floats(0, 1),
        st.floats(0, 1),
        st.one_of(st.sampled_from(VALUES), st.binary(max_size=8)),
    ),
    min_size=0,
    max_size=5,
)


def edited(data: bytes, edits: list[Edit]) -> bytes:
    """The data with the edits made, one after the other; places are shares of its length."""
    for what, first, second, payload in edits:
        a, b = sorted((int(first * len(data)), int(second * len(data))))
        match what:
            case "truncate":
                data = data[:a]
            case "cut":
                data = data[:a] + data[min(b, a + 400) :]
            case "repeat":
                data = data[:b] + data[a:b][:4000] + data[b:]
            case "insert":
                data = data[:a] + payload + data[a:]
            case "flip":  # a bit, as a bad disk does
                at = min(int(first * len(data)), len(data) - 1)
                if data:
                    bit = bytes([data[at] ^ 1 << min(int(second * 8), 7)])
                    data = data[:at] + bit + data[at + 1 :]
            case _:
                tokens = list(_TOKEN.finditer(data))
                if not tokens:
                    continue
                token = tokens[min(int(first * len(tokens)), len(tokens) - 1)]
                other = tokens[min(int(second * len(tokens)), len(tokens) - 1)][0]
                new = payload if what == "value" else other
                data = data[: token.start()] + new + data[token.end() :]
    return data


@dataclass(frozen=True)
class Parser:
    """Something that reads input; `parse` gets a file with it, in a directory of its own."""

    seeds: Callable[[], list[bytes]]
    parse: Callable[[Path], object]
    suffix: str = ".toml"
    may_fail: tuple[type[Exception], ...] = (InputError,)


def _files(*patterns: str) -> Callable[[], list[bytes]]:
    """The shipped files, smallest first, none above 30 KB."""

    @cache
    def seeds() -> list[bytes]:
        found = [file.read_bytes() for pattern in patterns for file in ROOT.glob(pattern)]
        return sorted((data for data in found if len(data) < 30000), key=len)

    return seeds


def _text(file: Path) -> str:
    return file.read_bytes().decode(errors="replace")


def _experiment(file: Path) -> None:
    for each in experiment.make(experiment.read_toml(file)):
        cpus = dict.fromkeys(each.topology, (1, 2, 4096))
        list(itertools.islice(each.cells(cpus), 1000))


def _topology(file: Path) -> None:
    machine = topology.load(file)
    machine.to_toml(), machine.summary(), hwloc.dump(machine)
    if machine.nr_cpus <= 64:
        machine.render(), machine.latency_classes()


def _hwloc(file: Path) -> None:
    hwloc.load(file).machine.to_toml()


_OPTIONS: dict[str, Callable[[str], object]] = {
    "cpus": experiment.parse_cpus,
    "duration": experiment.parse_duration,
    "window": lambda text: make_window("trace.json", text),
    "size": experiment.parse_size,
    "names": experiment.split_names,
    "topology": topology.load,
    "rule": lambda text: experiment.make({"exclude": text}),
    "design": lambda text: find_design("rmap", text, "native", contextlib.ExitStack()),
    "time": lambda text: _call_error(workload.parse_time, text),
    "call": lambda text: _call_error(workload.parse_call, text),
}


def _call_error(parse: Callable[[str], object], text: str) -> None:
    try:
        parse(text)
    except workload.CallError as error:
        raise InputError(str(error)) from None


def _options(file: Path) -> None:
    option, _, given_ = _text(file).partition(" ")
    if "/" not in given_ and not given_.endswith(".c"):  # no file of this machine
        _OPTIONS.get(option, experiment.split_names)(given_)


def _option_texts() -> list[bytes]:
    return [
        *(
            b"cpus 1,2,4..384",
            b"duration 20ms",
            b"duration 1.5s",
            b"window 2ms+500us",
            b"size 512M",
            b"names a:x=1,y=2,b",
        ),
        *(b"topology hygon-12x32", b"topology generic:sockets=2,nodes=1,l3=1,cores=4,smt=1"),
        *(b"rule rmap=single cpus=32..384", b"design numa-locks:shards=2", b"time 1.5ms"),
        b"call mmap(NULL, 8192, PROT_READ, MAP_PRIVATE, libc.so.6, 0) = 0x7ffff7fc0000",
        *(
            b"call fault(last+0x1000, cpus*4096, PROT_WRITE)",
            b"call dontneed(0x10000+cpu*4096, 4096)",
        ),
    ]


def _strace(file: Path) -> None:
    """All of record() that comes after strace, without maps and executables."""
    events, threads = record.log.join_threads(record.log.parse_log(_text(file).splitlines()))
    extents = record.log.extents(events)
    builder = record.build.Builder(Path(), None, {}, False, threads, extents)

    def image(event: record.log.Event) -> str:
        """One mapping, which ends where the log says that the heap begins."""
        own = next(own for own in events.values() if any(each is event for each in own))
        heap = next((e.result for e in own if e.call == "brk" and e.order > event.order), "0x3000")
        end = max(int(heap, 16) if re.fullmatch("0x[0-9a-f]{1,12}", heap) else 0, 0x2000)
        start, name = end // 4096 * 4096 - 4096, f"image{len(builder.images)}"
        call = workload.Call("mmap", start, 4096, 1, 0x12 | workload.MAP_BRK, name, 0, start)
        builder.image_paths[name] = name
        builder.files[name] = 1
        builder.images[name] = [record.build.Step(call)]
        return name

    with mock.patch.object(builder, "image", image):
        stream = builder.linearize(events)
    record.verify.verify(stream, builder, {})
    programs = record.write.cut(stream, "run")
    target = file.with_name("recorded.toml")
    target.write_text(record.write.workload_text("x", "", "", builder, programs), encoding="utf-8")
    workload.load(target)


def _scenario(file: Path) -> None:
    """Read by C, in a child: that it dies must not pass for a refusal."""
    try:
        explore.find_program(_text(file).replace("\0", ""))
    except InputError as error:
        assert "a program is made of calls" in str(error), error
        raise


@cache
def _litmus() -> explore.Unit:
    scenario = next(each for each in explore.scenarios() if each.kind == "litmus")
    (unit,) = explore.make_units(["single"], [scenario], contextlib.ExitStack())
    return replace(unit, policy="replay", schedules=1)


def _schedule(file: Path) -> None:
    unit = replace(_litmus(), replay=_text(file).replace("\0", ""))
    try:
        list(explore.check([unit], seconds=2, stop=StopFlag(), jobs=1))
    except InputError as error:
        assert "a schedule" in str(error), error
        raise


def _histogram(file: Path) -> None:
    hdr = histogram.decode(_text(file))
    hdr.get_value_at_percentile(99.0)


@cache
def _histograms() -> list[bytes]:
    found = []
    for values in ((), (1,), (100, 100, 5000), range(1, 100000, 77)):
        hdr = histogram.new_hdr()
        for value in values:
            hdr.record_value(value)
        found.append(hdr.encode())
    return found


def _published(file: Path) -> None:
    read = validate.read(file)
    for row in read.result:
        validate.points(row, read.calibration)


@cache
def _stored() -> tuple[bytes, bytes]:
    """The database and the JSON of a small run."""
    with tempfile.TemporaryDirectory() as folder:
        ran = experiment.run(
            engine="virtual", rmap="single,btree", cpus=[2], workload="spawn", duration="1ms",
            store=folder,
        )  # fmt: skip
        database = sqlite3.connect(Path(folder, "store.sqlite"))
        database.execute("PRAGMA journal_mode = DELETE")
        database.close()
        return Path(folder, "store.sqlite").read_bytes(), ran.to_json()


def _report(run: Run) -> None:
    """All that is made of a stored run."""
    run.rows()
    print_run(run, Console(file=io.StringIO()))
    figures.sections(run)
    for of_cells in (text.lockstat, text.c2c, text.cpus, text.folded, text.comma_separated):
        with contextlib.suppress(InputError):  # "no such cells", say
            of_cells(text.choose(run, None))


def _look_at_store(store: Store) -> None:
    for summary in store.summaries():
        _report(store.load(summary.id))


def _store(file: Path) -> None:
    """A damaged file of the database."""
    folder = file.with_name("store")
    folder.mkdir(mode=0o700)
    file.rename(folder / "store.sqlite")
    _look_at_store(Store(folder))


_STATEMENTS = b"""\
UPDATE run SET info = '{}'; UPDATE run SET status = 5; UPDATE run SET id = x'ff'; DELETE FROM run
UPDATE cell SET document = x'7b'; UPDATE cell SET status = 'what'; UPDATE cell SET document = NULL
UPDATE histogram SET buckets = x'00'; DROP TABLE claim; DROP TABLE histogram; DROP TABLE cell
ALTER TABLE run RENAME COLUMN info TO other; PRAGMA user_version = 1; PRAGMA user_version = -1
UPDATE run SET info = json_set(info, '$.experiment.engine', 7); PRAGMA user_version = 99
UPDATE cell SET document = json_set(document, '$.cpus', -1); DROP TABLE run; UPDATE run SET info = 1
UPDATE cell SET document = json_set(document, '$.phases[0].latency_ns', 3)
UPDATE cell SET number = 'x'
UPDATE cell SET document = json_set(document, '$.ops_per_s', 1e999); UPDATE run SET id = 5
INSERT INTO claim SELECT id, 0, 'h', 1, 1, 9e18 FROM run
INSERT INTO claim SELECT id, 0, 1, 'x', 2, 3 FROM run
UPDATE cell SET document = json_set(document, '$.latency_ns.exec', 'x'); UPDATE histogram SET op = 7
"""


def _schema(file: Path) -> None:
    """What may stand in the tables: statements that anybody may have run on the store."""
    folder = file.with_name("store")
    folder.mkdir(mode=0o700)
    (folder / "store.sqlite").write_bytes(_stored()[0])
    database = sqlite3.connect(folder / "store.sqlite", isolation_level=None)
    for statement in re.split(r"[;\n]", _text(file)):
        if "ATTACH" not in statement.upper() and "VACUUM" not in statement.upper():
            with contextlib.suppress(sqlite3.Error, sqlite3.Warning, ValueError):
                database.execute(statement)
    database.close()
    _look_at_store(Store(folder))


def _run_file(file: Path) -> None:
    _report(read_run(file))


PARSERS: dict[str, Parser] = {
    "experiment": Parser(_files("emu/experiments/*.toml"), _experiment),
    "topology": Parser(_files("topologies/[a-z]*.toml"), _topology),
    "workload": Parser(_files("emu/workloads/[a-z]*.toml", "tests/data/*.toml"), workload.load),
    "hwloc": Parser(_files("tests/data/hwloc/*.xml"), _hwloc, ".xml"),
    "strace": Parser(_files("tests/data/*.strace"), _strace, ".log", (EmuError,)),
    "program": Parser(lambda: [b"0m8.1.8,f/1w0.9", b"0f,e/1f/2w0.0"], _scenario, ".txt"),
    "schedule": Parser(lambda: [b"a5b2c", b"abababc100"], _schedule, ".txt"),
    "options": Parser(_option_texts, _options, ".txt"),
    "histogram": Parser(_histograms, _histogram, ".hdr"),
    "published": Parser(_files("emu/published.toml"), _published),
    "store": Parser(lambda: [_stored()[0]], _store, ".sqlite", (EmuError,)),
    "schema": Parser(lambda: _STATEMENTS.splitlines(), _schema, ".sql", (EmuError,)),
    "run": Parser(lambda: [_stored()[1]], _run_file, ".json"),
}


class Hangs(Exception):
    """A parser has taken too long."""


@contextlib.contextmanager
def _time_limit() -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise Hangs(f"no end after {HANG_S} s")

    timers = ((signal.SIGPROF, signal.ITIMER_PROF, 1), (signal.SIGALRM, signal.ITIMER_REAL, 12))
    before = [signal.signal(number, stop) for number, _, _ in timers]
    try:
        for _, timer, times in timers:
            signal.setitimer(timer, times * HANG_S)
        yield
    finally:
        for (number, timer, _), handler in zip(timers, before, strict=True):
            signal.setitimer(timer, 0)
            signal.signal(number, handler)


def try_input(parser: Parser, data: bytes) -> str:
    """ "read" or "refused". Raises what is wrong with the parser."""
    with tempfile.TemporaryDirectory(prefix="emu-fuzz-") as folder, _time_limit():
        file = Path(folder, "input" + parser.suffix)
        file.write_bytes(data)
        try:
            parser.parse(file)
        except parser.may_fail as error:
            assert str(error) and "\n" not in str(error), f"not one line: {error}"
            return "refused"
    return "read"


def fuzz(parser: Parser, number: int, examples: int) -> Counter[str]:
    """How many inputs were read and refused. Raises what is wrong with the parser, and hypothesis
    then shows the input, the seed's number and its edits. `number`: another one makes others."""
    counts: Counter[str] = Counter()
    seeds = parser.seeds()

    @seed(number)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(st.integers(0, len(seeds) - 1), EDITS)
    def inputs(whole: int, edits: list[Edit]) -> None:
        counts[try_input(parser, edited(seeds[whole], edits))] += 1

    inputs()
    return counts


def main() -> int:
    """Take turns between parsers until the time is over."""
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    arguments.add_argument("--minutes", type=float, default=10)
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("parsers", nargs="*", metavar="PARSER", help=f"of {', '.join(PARSERS)}")
    given_ = arguments.parse_args()
    if unknown := set(given_.parsers) - set(PARSERS):
        arguments.error(f"no parser {', '.join(sorted(unknown))}; there are {', '.join(PARSERS)}")
    names = given_.parsers or list(PARSERS)
    counts: dict[str, Counter[str]] = {name: Counter() for name in names}
    spent_s = dict.fromkeys(names, 0.0)
    broken = False
    deadline = time.monotonic() + 60 * given_.minutes
    for number in itertools.count(given_.seed):
        left = [name for name in names if not counts[name]["broken"]]
        if not left or time.monotonic() > deadline:
            break
        name = min(left, key=lambda each: spent_s[each])  # each has the same time
        began = time.monotonic()
        try:
            counts[name] += fuzz(PARSERS[name], number, 50)
        except Exception:
            traceback.print_exc()
            counts[name]["broken"] += 1
            broken = True
        spent_s[name] += time.monotonic() - began
    for name in names:
        count = counts[name]
        print(
            f"{name:12} {count['read'] + count['refused']:8,} inputs: {count['read']:,} read, "
            f"{count['refused']:,} refused{', BROKEN' if count['broken'] else ''}"
        )
    return int(broken)


if __name__ == "__main__":
    sys.exit(main())
