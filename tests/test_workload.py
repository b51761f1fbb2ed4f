# SPDX-License-Identifier: MIT
"""Workloads: their text is read back as it was written, bad files are refused with their place, and
what was recorded leads to the maps of the real processes.

tests/data/WORKLOAD.PROGRAM.N.IMAGE.maps is /proc/PID/maps of a real process that ran IMAGE, after
load and the first N calls of PROGRAM. The simulation here knows pages, not VMAs, and takes what the
core is given.
"""

from __future__ import annotations

import ctypes
import importlib.util
import itertools
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emu import _core, record, workload
from emu.errors import EmuError, InputError
from emu.workload import CALL_DTYPE, PAGE, TASK_SIZE, Call, CallError, format_call, parse_call

ROOT = Path(__file__).parents[1]
DATA = Path(__file__).parent / "data"
POINTS = sorted(DATA.glob("*.maps"))
SHIPPED = {name: workload.load(name) for name in workload.names()}
THREADS = [name for name in SHIPPED if SHIPPED[name].share_mm]
RECORDED = [
    name
    for name in SHIPPED
    if SHIPPED[name].files and not SHIPPED[name].walkers and name not in THREADS
]
MICRO = [name for name in SHIPPED if not SHIPPED[name].files and name not in THREADS]

# ---- text ----

numbers = st.integers(0, 2**30)
addresses = st.integers(1, 2**34).map(lambda page: page * PAGE)
names = st.from_regex(re.compile(rf"\A{workload.NAME_PATTERN}\Z", re.ASCII))
prots = st.sets(st.sampled_from(sorted(workload.PROT.values()))).map(sum)


@st.composite
def mmaps(draw: st.DrawFn) -> Call:
    anonymous, fixed = draw(st.booleans()), draw(st.sampled_from([0, 0x10, 0x100000]))
    addr = draw(addresses if fixed else st.just(0) | addresses)
    shared = 0 if anonymous else draw(st.sampled_from([0, 1]))
    kinds = [0x100] if anonymous else []  # stacks are no files
    extra = draw(st.sets(st.sampled_from([*kinds, 0x10000000, 0x20000000])).map(sum))
    return Call(
        "mmap",
        addr=addr,
        length=draw(numbers) + 1,
        prot=draw(prots),
        flags=(shared or 2) | fixed | extra | (0x20 if anonymous else 0),
        name="" if anonymous else draw(names),
        offset=draw(numbers) * PAGE,
        expect=draw(st.none() | (st.just(addr) if fixed else addresses)),
    )


calls = st.one_of(
    mmaps(),
    st.builds(Call, st.just("munmap"), addr=addresses, length=numbers.map(lambda n: n + 1)),
    st.builds(
        Call, st.just("mprotect"), addr=addresses, length=numbers.map(lambda n: n + 1), prot=prots
    ),
    st.builds(Call, st.just("brk"), addr=numbers, expect=st.none() | numbers),
    st.builds(Call, st.just("exec"), name=names),
    st.builds(Call, st.just("work"), work_ns=st.integers(0, 10**10)),
    st.builds(Call, st.just("pace"), work_ns=st.integers(1, 10**10)),
    st.sampled_from([Call(op) for op in ("fork", "exit", *workload.MICRO_OPS)]),
)


@given(calls)
def test_a_call_is_read_back_from_its_text(call: Call) -> None:
    assert parse_call(format_call(call)) == call


@given(
    st.text()
    | st.from_regex(
        r"(mmap|munmap|mprotect|brk|exec|fork|exit|work|pace|line_write)\(.{0,80}\)( = .{0,20})?"
    )
)
def test_any_text_is_a_call_or_an_error_of_one_line(text: str) -> None:
    try:
        call = parse_call(text)
    except CallError as error:
        assert str(error)
    else:
        assert parse_call(format_call(call)) == call


def test_lines_of_strace_are_understood() -> None:
    text = (
        "mmap(NULL, 2055640, PROT_READ|PROT_EXEC, MAP_PRIVATE|MAP_DENYWRITE|MAP_POPULATE, "
        "libc.so.6, 0x26000) = 0x7ffff7dc5000"
    )
    assert parse_call(text) == Call(
        "mmap", 0, 2055640, 0x5, 0x2, "libc.so.6", 0x26000, 0x7FFFF7DC5000
    )
    assert parse_call("mprotect(0x7ffff7fa4000, 16384, PROT_NONE) = 0").prot == 0
    assert parse_call("brk(NULL)       = 0x55555557c000").expect == 0x55555557C000
    assert parse_call("work(1.5ms)").work_ns == 1_500_000


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("munmap 4096", "write it like munmap("),
        ("mmpa(NULL, 1)", "did you mean 'mmap'?"),
        ("munmap(0x1000)", "munmap with 1 argument(s); it is munmap(addr, length)"),
        ("munmap(0x1000, 0)", "the length is 0"),
        ("munmap(0x1001, 4096)", "not a multiple of 4096"),
        ("munmap(0x7ffffffff000, 1)", "47 bits"),
        ("munmap(0x1000, 18446744073709551615)", "47 bits"),
        ("munmap(0x1000, 99999999999999999999999)", "length is '9999"),
        ("munmap(0x1000, -1)", "length is '-1'"),
        ("munmap(0x1000, 010)", "length is '010'"),
        ("munmap(0x1000, 4096) = -1", "'= -1'"),
        ("fork() = 7", "fork is followed by nothing"),
        ("mprotect(0x1000, 1, PROT_WRIT)", "did you mean 'PROT_WRITE'?"),
        ("mprotect(0x1000, 1, MAP_PRIVATE)", "PROT_* flags that count: PROT_READ,"),
        ("mmap(NULL, 1, PROT_READ, MAP_PRIVAT, a, 0)", "did you mean 'MAP_PRIVATE'?"),
        ("mmap(NULL, 1, PROT_READ, MAP_HUGETLB|MAP_PRIVATE, a, 0)", "no flag 'MAP_HUGETLB'"),
        ("mmap(NULL, 1, PROT_READ, MAP_FIXED, a, 0)", "MAP_SHARED and MAP_PRIVATE"),
        ("mmap(NULL, 1, PROT_READ, MAP_PRIVATE|MAP_FIXED, a, 0)", "needs an address"),
        ("mmap(0x1000, 1, PROT_READ, MAP_PRIVATE|MAP_FIXED, a, 0) = 0x2000", "cannot return"),
        ("mmap(NULL, 1, PROT_READ, MAP_PRIVATE, a, 0) = 0x7ffffffff000", "the result ends above"),
        ("mmap(NULL, 1, PROT_READ, MAP_PRIVATE, a, 0) = 0x1234", "result 0x1234 is not"),
        ("mmap(NULL, 1, PROT_READ, MAP_PRIVATE, a, 1)", "offset 0x1 is not a multiple"),
        ("mmap(NULL, 1, PROT_READ, MAP_PRIVATE, a, 0x7ffffffff000)", "beyond 47 bits"),
        ("mmap(NULL, 1, PROT_READ, MAP_PRIVATE, a b, 0)", "'a b' is no name of a file"),
        ("mmap(NULL, 1, PROT_READ, MAP_PRIVATE, -1, 0)", "a file is without it"),
        ("mmap(NULL, 1, PROT_READ, MAP_PRIVATE|MAP_ANONYMOUS, a, 0)", "a file is without it"),
        ("mmap(NULL, 1, PROT_READ, MAP_SHARED|MAP_ANONYMOUS, -1, 0)", "name one in [files]"),
        ("exec()", "exec(image)"),
        ("work(150)", "'150' is no time"),
        ("work(11s)", "at most 10s"),
        ("pace(0ns)", "no multiple of 0"),
        ("line_write(1)", "line_write with 1 argument(s); it is line_write()"),
        ("rwsem_read() = 0", "rwsem_read is followed by nothing"),
    ],
)
def test_bad_calls_are_refused(text: str, says: str) -> None:
    with pytest.raises(CallError, match=re.escape(says)) as error:
        parse_call(text)
    assert "\n" not in str(error.value)


# ---- the file ----

GOOD = """\
name = "good"
load = "start"

[files]
"libc.so.6" = 3
[image.app]
mmap_base = 0x7ffff7fff000
calls = [
  "mmap(0x10000, 4096, PROT_READ|PROT_WRITE, MAP_PRIVATE|MAP_FIXED|MAP_BRK, libc.so.6, 0)",  # data
]
[program.start]
calls = ["exec(app)", "brk(NULL) = 0x11000"]
[program."fork+exit"]
calls = [
  # the child
  "fork()", "work(10us)",
  "mmap(NULL, 8192, PROT_READ, MAP_PRIVATE, libc.so.6, 0x2000)",
  "exit()",
]
[work.fork]
time = "5us"
source = "a guess"
[work.call]
time = "7ns"
source = "a guess"
[[phase]]
name = "fork+exit"
list = "fork+exit"
unit = "fork"
"""


def load_text(folder: Path, text: str) -> workload.Workload:
    (folder / "some.toml").write_text(text)
    return workload.load(folder / "some.toml")


def test_a_good_file(tmp_path: Path) -> None:
    good = load_text(tmp_path, GOOD)
    assert (good.name, good.description, good.work_jitter_permille) == ("good", "", 100)
    assert good.files == (("libc.so.6", 3),)
    assert good.list_names == ("image.app", "program.start", "program.fork+exit", "drain")
    assert (good.load_list, good.drain_list) == (1, 3)
    assert good.phases == (
        workload.Phase("warm-up", 2, False, False, workload.WARM_UP_SHARE, "fork"),
        workload.Phase("fork+exit", 2, False, True, 1.0, "fork"),
    )
    assert good.counting_phase == "fork+exit"

    image, start, fork_exit, drain = good.lists
    assert image["work_ns"].tolist() == [0]
    assert (start[0]["arg"], start[0]["addr"]) == (0, 0x7FFFF7FFF000)
    assert start["expect"].tolist() == [workload.NO_EXPECT, 0x11000]
    ops = [workload.OPS.index(op) for op in ("fork", "work", "mmap", "exit")]
    assert fork_exit["op"].tolist() == ops
    assert fork_exit["work_ns"].tolist() == [5000, 10_000, 7, 0]
    assert fork_exit["arg"].tolist() == [-1, -1, 0, -1]
    assert fork_exit[2][["len", "offset", "prot", "flags"]].tolist() == (8192, 0x2000, 1, 2)
    assert drain["op"].tolist() == [workload.OPS.index("exit")]
    assert not fork_exit.flags.writeable

    described = good.describe_call(2, 2)
    assert described == (
        "mmap(NULL, 8192, PROT_READ, MAP_PRIVATE, libc.so.6, 0x2000)",
        "some.toml:17: [program.fork+exit] calls[2]",
    )
    assert str(described) == f"{described.place}: {described.text}"
    assert good.describe_call(0, 0).place == "some.toml:9: [image.app] calls[0]"
    assert good.describe_call(1, 1).place == "some.toml:12: [program.start] calls[1]"
    assert good.describe_call(3, 0) == ("exit()", "some.toml: drain")


BAD = [
    # What is replaced, by what, the place and what the message says.
    ("name =", "nam =", ":1: unknown key 'nam' (did you mean 'name'?); valid: name, load"),
    ('name = "good"', "name = 7", ":1: name: Expected `str`, got `int`"),
    ('name = "good"\n', "", ": 'name' is missing"),
    ('name = "good"', 'name = "good', ": not valid TOML: Illegal character '\\n' (at line 1"),
    ('load = "start"', 'load = "strat"', ":2: load: no program 'strat' (did you mean 'start'?)"),
    ('load = "start"', 'load = "fork+exit"', ":16: [program.fork+exit] calls[0]: fork(): the pro"),
    ("[files]", "work_jitter = 1.0\n[files]", ":4: work_jitter: 1 is not between 0 and 1"),
    ("[files]", "work_jitter = nan\n[files]", ":4: work_jitter: nan is not between 0 and 1"),
    ("[files]", "[file]", ":4: unknown key 'file' (did you mean 'files'?)"),
    ('6" = 3', '6" = 0', ":5: [files]: 'libc.so.6' is 0; it must be a size in pages"),
    ('6" = 3', '6" = true', ":5: [files]: 'libc.so.6' is True"),
    ('6" = 3', '6" = 34359738368', ":5: [files]: 'libc.so.6' is 34359738368"),
    ('6" = 3', '6" = 3\n"a b" = 1', ":6: [files]: 'a b' is no name"),
    ('6" = 3', f'6" = 3\n{"x" * 96} = 1', ":6: [files]: 'xxx"),
    ("[image.app]", "[images.app]", ":6: unknown key 'images' (did you mean 'image'?)"),
    ("[image.app]", '[image."a b"]', ": [image.a b]: 'a b' is no name"),
    ("0x7ffff7fff000", "0x7ffff7fff001", ":7: [image.app]: mmap_base is 0x7ffff7fff001"),
    ("0x7ffff7fff000", "0x800000000000", ":7: [image.app]: mmap_base is 0x800000000000"),
    ("0x7ffff7fff000", '"high"', ":7: [image.app]: mmap_base: Expected `int`, got `str`"),
    ("|MAP_BRK", "", ": [image.app]: 0 mappings have MAP_BRK"),
    ("mmap(0x10000, ", "mmap(0x10000 ", ":9: [image.app] calls[0]: mmap(0x10000 4096, PROT_READ|"),
    ("libc.so.6, 0)", "libc.so.7, 0)", "no file 'libc.so.7' (did you mean 'libc.so.6'?); [files]"),
    ("0x2000)", "0x3000)", ":17: [program.fork+exit] calls[2]: mmap(NULL, 8192, PROT_READ, MAP_"),
    ("0x2000)", "0x3000)", "offset 0x3000 is beyond the end of libc.so.6 (3 pages)"),
    ("0x2000)", "0x2001)", "offset 0x2001 is not a multiple of 4096"),
    ("MAP_PRIVATE, libc", "MAP_PRIVATE|MAP_BRK, libc", "MAP_SPECIAL and MAP_BRK are for images"),
    ("exec(app)", "exec(ap)", ":12: [program.start] calls[0]: exec(ap): no image 'ap' (did you"),
    ("exec(app)", "fork()", ":12: [program.start] calls[0]: fork(): no exit() of its child"),
    ("exec(app)", "work(1s)", ":12: [program.start] calls[1]: brk(NULL) = 0x11000: the program to"),
    ('"brk(NULL) = 0x11000"', '"exit()"', "[program.start] calls[1]: exit(): there is no fork()"),
    ('calls = ["exec(app)", "brk(NULL) = 0x11000"]', "calls = []", "[program.start]: calls is em"),
    ('["exec(app)"', "[7", ":8: [program.start]: calls[0]: Expected `str`, got `int`"),
    ('"fork()", ', "", ":18: [program.fork+exit] calls[2]: exit(): there is no fork() before it"),
    ('  "exit()",\n', "", ":16: [program.fork+exit] calls[0]: fork(): no exit() of its child"),
    ('"fork()",', '"fork()",' * 65, "more than 64 processes wait for a child"),
    ("[program.start]", "[program]\nstart = 7\n[x]", "unknown key 'x'"),
    ("[work.fork]", "[work.frok]", ":20: [work]: no kind of work 'frok' (did you mean 'fork'?)"),
    ('"5us"', '"5"', ": [work.fork] time: '5' is no time; write it like 150us"),
    ('time = "5us"\n', "", ": [work.fork]: 'time' is missing"),
    ('source = "a guess"\n', "", ": [work.fork]: 'source' is missing"),
    ('"5us"', '"5us"\nsauce = 1', ":22: [work.fork]: unknown key 'sauce' (did you mean 'source'?)"),
    ('list = "fork+exit"', 'list = "fork"', ":28: [[phase]] 'fork+exit' list: no program 'fork'"),
    ('unit = "fork"', 'unit = "exec"', "unit 'exec' is no call of program 'fork+exit'"),
    (
        'unit = "fork"',
        'unit = "fokr"',
        "(did you mean 'fork'?); valid: iteration, fork, exit, mmap",
    ),
    ('unit = "fork"', "share = 0.5", "the shares add up to 0.5; they must add up to 1"),
    ('unit = "fork"', "share = 0.0", "'fork+exit': share is 0; it must be above 0, at most 1"),
    ('unit = "fork"', "share = nan", "'fork+exit': share is nan"),
    ('unit = "fork"', 'kind = "once"\nshare = 1.0', "a phase that runs once has no share"),
    ('unit = "fork"', 'kind = "twice"', ":29: [[phase]] 1: kind: Invalid enum value 'twice'"),
    ('unit = "fork"', "record = false", "none has record = true"),
    (
        'unit = "fork"',
        "shares = 1",
        ":29: [[phase]] 1: unknown key 'shares' (did you mean 'share'?",
    ),
    ('name = "fork+exit"', 'name = "warm-up"', "[[phase]] 'warm-up': this name is taken"),
    ('name = "fork+exit"', 'name = ""', "[[phase]] 1: name is empty; a phase needs one"),
    ("[[phase]]", "[phase]", ": phase: Expected `array`, got `object`"),
]


@pytest.mark.parametrize(("old", "new", "says"), BAD, ids=range(len(BAD)))
def test_bad_files_are_refused(tmp_path: Path, old: str, new: str, says: str) -> None:
    assert old in GOOD
    with pytest.raises(InputError) as error:
        load_text(tmp_path, GOOD.replace(old, new, 1))
    message = str(error.value)
    assert message.startswith(f"{tmp_path}/some.toml:")
    assert says in message
    assert "\n" not in message


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no workload 'exelc' \(did you mean 'execl'\?\); there"):
        workload.load("exelc")
    with pytest.raises(InputError, match=r"none\.toml: No such file"):
        workload.load(tmp_path / "none.toml")
    with pytest.raises(InputError, match="Is a directory"):
        workload.load(f"{tmp_path}/")
    (tmp_path / "latin.toml").write_bytes(b'name = "\xe9"')
    with pytest.raises(InputError, match=r"not UTF-8 text \(byte 8\)"):
        workload.load(tmp_path / "latin.toml")


@given(st.data())
@settings(max_examples=200)
def test_a_damaged_file_is_read_or_refused_with_one_line(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Cut a piece out and put another in: whatever it is then, it ends in no other exception."""
    start = data.draw(st.integers(0, len(GOOD)))
    end = data.draw(st.integers(start, min(len(GOOD), start + 30)))
    other = data.draw(st.integers(0, len(GOOD)))
    piece = GOOD[other : other + data.draw(st.integers(0, 20))] + data.draw(st.text(max_size=3))
    try:
        load_text(tmp_path_factory.getbasetemp(), GOOD[:start] + piece + GOOD[end:])
    except InputError as error:
        assert len(str(error).splitlines()) == 1


def test_calls_are_as_the_core_has_them(tmp_path: Path) -> None:
    """CALL_DTYPE and the numbers, against the headers."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if not compiler:
        pytest.skip("no C compiler")
    numbers = {
        "EMU_CALL_NR": len(workload.OPS),
        "EMU_NO_EXPECT": workload.NO_EXPECT,
        "EMU_TASK_SIZE": TASK_SIZE,
        "EMU_PAGE_SIZE": PAGE,
        "sizeof(((struct address_space *)0)->name)": workload.MAX_NAME + 1,
        "sizeof(struct emu_call)": CALL_DTYPE.itemsize,
        "offsetof(struct emu_walker, latency)": ctypes.sizeof(_core.Walker),
        "sizeof(struct page_table)": workload.PAGE_TABLE_BYTES,
        "EMU_FAULT_AROUND": workload.FOLIO_PAGES,
        "EMU_PMD_SIZE": workload.PMD_BYTES,
        "EMU_MAP_TOUCH": workload.TOUCH_FLAGS["first"],
        "EMU_MAP_TOUCH_ALL": workload.TOUCH_FLAGS["all"],
    }
    for number, op in enumerate(workload.OPS):
        numbers[f"EMU_CALL_{op.upper()}"] = number
    for name, bits in (workload.PROT | workload.FLAGS).items():
        numbers[f"EMU_{name}"] = bits
    assert CALL_DTYPE.names is not None and CALL_DTYPE.fields is not None
    for name in CALL_DTYPE.names:
        dtype, offset = CALL_DTYPE.fields[name][:2]
        numbers[f"offsetof(struct emu_call, {name})"] = offset
        numbers[f"sizeof(((struct emu_call *)0)->{name})"] = dtype.itemsize
    checks = "".join(f'_Static_assert({a} == {b}ull, "{a}");\n' for a, b in numbers.items())
    (tmp_path / "check.c").write_text(
        f"#include <emu/control.h>\n#include <emu/pgtable.h>\n{checks}"
    )
    include = ROOT / "workers" / "include"
    done = subprocess.run(
        [compiler, "-fsyntax-only", "-DEMU_MACHINE_NATIVE", f"-I{include}", tmp_path / "check.c"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    internal = (ROOT / "workers" / "machine" / "internal.h").read_text()
    assert f"#define EMU_MM_STACK {workload.MAX_PROCESSES}u" in internal


# ---- what comes with mm-emu ----


@pytest.mark.parametrize("name", [*RECORDED, *MICRO])
def test_every_call_is_found_in_its_line(name: str) -> None:
    shipped = workload.load(name)
    assert shipped.name == name and shipped.description
    lines = (ROOT / "emu" / "workloads" / f"{name}.toml").read_text().splitlines()
    assert lines[0].startswith("# Recorded by `emu record" if name in RECORDED else "# ")
    seen = set()
    for number, calls_of_list in enumerate(shipped.lists):
        for index in range(len(calls_of_list)):
            text, place = shipped.describe_call(number, index)
            if shipped.list_names[number] not in ("drain", "load"):
                line = int(place.split(":")[1])
                assert f'"{text}"' in lines[line - 1]
                assert line not in seen
                seen.add(line)


@pytest.mark.parametrize(
    "text",
    [
        "fault(last+0x4000, 8192, PROT_WRITE)",
        "fault_next(0x10000+cpu*0x8000, 32768)",
        "fault(0x10000, cpus*4096)",
        "dontneed(0x10000, 4096)",
        "pass()",
        "barrier()",
        "clone()",
        "thread_exit()",
    ],
)
def test_calls_of_threads_are_written_as_they_are_read(text: str) -> None:
    assert str(workload.parse_call(text)) == text


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("fault(0x1000+cpu, 4096)", "write it like 0x10000+cpu*0x1000"),
        ("mmap(last, 4096, PROT_READ, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0)", "no mapping before"),
        ("fault_next(0x1000, cpus*0)", "the length is 0"),
        ("mmap(NULL, 4096, PROT_READ, MAP_PRIVATE|MAP_GROWSDOWN, lib, 0)", "for anonymous memory"),
        ("barrier(2)", "barrier with 1 argument"),
        ("clone(4096)", "clone with 1 argument"),
    ],
)
def test_calls_of_threads_that_cannot_be(text: str, what: str) -> None:
    with pytest.raises(workload.CallError, match=re.escape(what)):
        workload.parse_call(text)


def test_a_page_cache_may_lack_pages(tmp_path: Path) -> None:
    shipped = workload.load("fault-file-cold")
    assert (shipped.cold_permille, shipped.read_ns) == (100, 85_000)
    assert workload.load("fault-file").cold_permille == 0
    for line, what in (
        ("share = 2.0", "[cold] share: 2 is not between 0.001 and 1"),
        ("share = nan", "[cold] share: nan is not between"),
        ('share = 0.1\nreed = "1us"', "[cold]: unknown key 'reed' (did you mean 'read'?)"),
    ):
        file = tmp_path / "cold.toml"
        file.write_text(
            f'base = "fault-file"\nname = "x"\n[cold]\n{line}\nread = "1us"\nsource = "x"'
        )
        with pytest.raises(InputError, match=re.escape(what)):
            workload.load(file)
    file.write_text(
        'base = "fault-file"\nname = "x"\n[cold]\nshare = 1.0\nread = "1"\nsource = "x"'
    )
    with pytest.raises(InputError, match="is no time"):
        workload.load(file)


def test_threads_share_what_load_makes(tmp_path: Path) -> None:
    shipped = workload.load("mixed")
    (measured,) = [phase for phase in shipped.phases if phase.record]
    assert shipped.share_mm and measured.first is not None
    assert shipped.list_names[measured.first] == "program.writer"
    text = (ROOT / "emu" / "workloads" / "mixed.toml").read_text()
    bad = tmp_path / "bad.toml"
    bad.write_text(text.replace('"munmap(last, 65536)"', '"exec(threads)"'))
    with pytest.raises(InputError, match="only load begins with an exec"):
        workload.load(bad)
    for calls, what in (
        ('"thread_exit()",', "there is no clone() before it"),
        ('"clone()",', "no thread_exit() of its thread"),
        (
            '"clone()", "fork()", "exit()", "thread_exit()",',
            "not between clone() and thread_exit()",
        ),
    ):
        bad.write_text(text.replace('"munmap(last, 65536)"', f'{calls} "munmap(last, 65536)"'))
        with pytest.raises(InputError, match=re.escape(what)):
            workload.load(bad)
    bad.write_text(text.replace('first = "writer"', 'first = "witer"'))
    with pytest.raises(InputError, match="did you mean 'writer'"):
        workload.load(bad)


def test_a_workload_without_a_process(tmp_path: Path) -> None:
    assert len(MICRO) == 7
    write = workload.load("line-write")
    assert write.files == ()
    pace, call = write.lists[write.phases[0].list]
    assert (workload.OPS[pace["op"]], pace["len"], pace["work_ns"]) == ("pace", 83333, 0)
    assert (workload.OPS[call["op"]], call["work_ns"]) == ("line_write", 0)
    assert len(write.lists[write.drain_list]) == 0
    # Beside processes they cost no [work.call], and are no unit.
    both = load_text(tmp_path, GOOD.replace('"work(10us)"', '"rwsem_read()"'))
    assert both.lists[2]["work_ns"].tolist() == [5000, 0, 7, 0]
    assert len(both.lists[both.drain_list]) == 1
    with pytest.raises(InputError, match="unit 'rwsem_read' is no call"):
        load_text(
            tmp_path,
            GOOD.replace('"work(10us)"', '"rwsem_read()"').replace(
                'unit = "fork"', 'unit = "rwsem_read"'
            ),
        )


FAULTS = ("fault", "fault-file", "fault-own", "mixed", "mmap-page")


def test_what_the_workloads_measure() -> None:
    phases = {
        name: [(p.name, p.unit, p.share) for p in workload.load(name).phases if p.record]
        for name in workload.names()
    }
    assert phases == {
        "execl": [("exec", "exec", 0.7), ("fork+exit", "fork", 0.3)],
        "execl-walkers": [("exec", "exec", 0.7), ("fork+exit", "fork", 0.3)],
        "shell": [("iteration", "iteration", 1.0)],
        "spawn": [("fork+exit", "fork", 1.0)],
        "sysexec": [("iteration", "iteration", 1.0)],
        "exec-static": [("exec", "exec", 1.0)],
        "make": [("iteration", "iteration", 1.0)],
        "malloc-threads": [("iteration", "iteration", 1.0)],
        **{name: [(name, "iteration", 1.0)] for name in MICRO},
        **{name: [(name, "fault" if name in FAULTS else "iteration", 1.0)] for name in THREADS},
        "fault-file-cold": [("fault-file", "fault", 1.0)],
        "tlb-flush": [("tlb-flush", "dontneed", 1.0)],
    }
    ops = np.concatenate(workload.load("shell").lists[-2:-1])["op"].tolist()
    assert [ops.count(workload.OPS.index(op)) for op in ("exec", "fork", "exit")] == [3, 3, 3]


@pytest.mark.parametrize(
    ("name", "low_us", "high_us"),
    [
        *(("execl", 211, 235), ("spawn", 97, 115), ("shell", 911, 1050), ("exec-static", 152, 152)),
        *(("make", 86_000, 88_000), ("malloc-threads", 32_500, 33_500), ("sysexec", 308, 350)),
    ],
)
def test_an_iteration_takes_the_published_time(name: str, low_us: int, high_us: int) -> None:
    """UnixBench's execl and process creation: sysexec one of each, shell three. Else our own."""
    shipped = workload.load(name, isolate=True)
    phase = next(phase for phase in shipped.phases if phase.record)
    assert low_us <= int(shipped.lists[phase.list]["work_ns"].sum()) / 1000 <= high_us


# ---- replay ----


class Page(NamedTuple):
    """What is mapped at an address, as far as /proc/PID/maps or the kernel's merging can tell."""

    prot: int
    shared: bool
    stack: bool
    file: int
    offset: int
    """In pages; of anonymous memory the page's own number."""
    special: int
    """Where the mapping starts, which never joins another; else 0."""
    flags: int
    """Those that keep it from joining a mapping without them."""
    account: bool
    """Private and ever writable: VM_ACCOUNT."""

    def next(self) -> Page:
        return self._replace(offset=self.offset + 1)


@dataclass
class Process:
    """An mm, page by page."""

    mmap_base: int
    start_brk: int = 0
    brk: int = 0
    pages: dict[int, Page] = field(default_factory=dict)

    def fork(self) -> Process:
        return Process(self.mmap_base, self.start_brk, self.brk, dict(self.pages))

    def free(self, count: int) -> int:
        """The highest page below mmap_base where `count` pages are free."""
        start = self.mmap_base // PAGE
        free = 0
        while free < count:
            start -= 1
            free = 0 if start in self.pages else free + 1
        return start

    def do(self, call: np.void) -> int:
        start, count = int(call["addr"]) // PAGE, -(-int(call["len"]) // PAGE)
        match workload.OPS[call["op"]]:
            case "mmap":
                return self.mmap(call, start, count)
            case "munmap":
                assert any(page in self.pages for page in range(start, start + count))
                for page in range(start, start + count):
                    self.pages.pop(page, None)
            case "mprotect":
                prot = int(call["prot"])
                for page in range(start, start + count):
                    old = self.pages[page]
                    uncounted = old.shared or old.flags & workload.MAP_NORESERVE
                    account = old.account or (not uncounted and bool(prot & 2))
                    self.pages[page] = old._replace(prot=prot, account=account)
            case "brk":
                return self.set_brk(int(call["addr"]))
        return 0

    def mmap(self, call: np.void, start: int, count: int) -> int:
        flags = int(call["flags"])
        taken = any(page in self.pages for page in range(start, start + count))
        if flags & workload.MAP_FIXED_NOREPLACE:
            assert not taken
        elif not flags & workload.MAP_FIXED and (taken or not start):
            start = self.free(count)
        shared, prot, file = bool(flags & workload.MAP_SHARED), int(call["prot"]), int(call["arg"])
        counted = not shared and not flags & workload.MAP_NORESERVE
        anonymous = bool(flags & workload.MAP_ANONYMOUS)
        for index in range(count):
            self.pages[start + index] = Page(
                prot=prot,
                shared=shared,
                stack=bool(flags & workload.MAP_GROWSDOWN),
                file=-1 if anonymous else file,
                offset=start + index if anonymous else int(call["offset"]) // PAGE + index,
                special=start if flags & workload.MAP_SPECIAL else 0,
                flags=flags & (workload.MAP_NORESERVE | workload.MAP_STACK),
                account=counted and bool(prot & 2),
            )
        if flags & workload.MAP_BRK:
            self.start_brk = self.brk = (start + count) * PAGE
        return start * PAGE

    def set_brk(self, brk: int) -> int:
        if brk >= self.start_brk:
            for page in range(-(-brk // PAGE), -(-self.brk // PAGE)):
                del self.pages[page]
            for page in range(-(-self.brk // PAGE), -(-brk // PAGE)):
                assert page not in self.pages
                self.pages[page] = Page(3, False, False, -1, page, 0, 0, True)
            self.brk = brk
        return self.brk

    def maps(self, files: Sequence[workload.File]) -> Iterator[str]:
        start: int | None = None
        for page in sorted(self.pages):
            start = page if start is None else start
            here, after = self.pages[page], self.pages.get(page + 1)
            # The heap does not join the bss before it.
            if after == here.next() and (page + 1) * PAGE != self.start_brk:
                continue
            first = self.pages[start]
            begin, end = start * PAGE, (page + 1) * PAGE
            name = files[here.file].name if here.file >= 0 else ""
            if here.stack:
                name = "[stack]"
            elif not name and begin < self.brk and end > self.start_brk:
                name = "[heap]"
            perms = "".join(c if here.prot >> i & 1 else "-" for i, c in enumerate("rwx"))
            offset = first.offset * PAGE if here.file >= 0 else 0
            line = f"{begin:x}-{end:x} {perms}{'s' if here.shared else 'p'} {offset:08x} {name}"
            yield line.rstrip()
            start = None


def run(shipped: workload.Workload, lists: Sequence[np.ndarray]) -> Process:
    """Carry out the lists; every result must be the recorded one."""
    process = Process(0)
    parents: list[Process] = []
    for call in itertools.chain.from_iterable(lists):
        match workload.OPS[call["op"]]:
            case "exec":
                process = Process(int(call["addr"]))
                for mapped in shipped.lists[call["arg"]]:
                    result = process.do(mapped)
                    assert mapped["expect"] in (result, workload.NO_EXPECT)
            case "fork":
                parents.append(process)
                process = process.fork()
            case "exit":
                process = parents.pop() if parents else Process(0)
            case _:
                result = process.do(call)
                assert call["expect"] in (result, workload.NO_EXPECT)
    return process


def lists_of(point: Path) -> tuple[workload.Workload, list[np.ndarray]]:
    """The workload of a point, and what is to be run until it is reached."""
    name, program, count, *_ = point.name.split(".")
    shipped = workload.load(name)
    number = shipped.list_names.index(f"program.{program}")
    lists = [shipped.lists[number][: int(count)]]
    if workload.OPS[lists[0]["op"][0]] != "exec":
        lists.insert(0, shipped.lists[shipped.load_list])
    return shipped, lists


@pytest.mark.parametrize("point", POINTS, ids=lambda point: point.stem)
def test_replay_leads_to_the_maps_of_the_real_process(point: Path) -> None:
    shipped, lists = lists_of(point)
    assert list(run(shipped, lists).maps(shipped.files)) == point.read_text().splitlines()


def test_every_workload_has_a_point() -> None:
    assert {point.name.split(".")[0] for point in POINTS} == set(RECORDED)


def test_a_missing_call_would_be_noticed() -> None:
    """But for one: read-only data of libc are mapped where the room for libc had them already."""
    point = DATA / "execl.exec.14.execl.maps"
    shipped, (calls_of_list,) = lists_of(point)
    real = point.read_text().splitlines()
    unnoticed = []
    for index, call in enumerate(calls_of_list):
        if workload.OPS[call["op"]] in ("mmap", "munmap", "mprotect"):
            try:
                maps = list(run(shipped, [np.delete(calls_of_list, index)]).maps(shipped.files))
            except (AssertionError, KeyError):
                continue
            if maps == real:
                unnoticed.append(shipped.describe_call(shipped.load_list, index).text)
    assert unnoticed == [
        "mmap(0x7ffff7f51000, 339968, PROT_READ, MAP_PRIVATE|MAP_FIXED, libc.so.6, 0x17c000)"
        " = 0x7ffff7f51000"
    ]


@pytest.mark.parametrize("name", [*RECORDED, *MICRO])
def test_phases_can_be_repeated_and_drain(name: str) -> None:
    """After a phase's program the mm is as before it."""
    shipped = workload.load(name)
    load = shipped.lists[shipped.load_list]
    before = list(run(shipped, [load]).maps(shipped.files))
    for phase in shipped.phases:
        again = run(shipped, [load, *[shipped.lists[phase.list]] * 2])
        assert list(again.maps(shipped.files)) == before
    drained = run(shipped, [load, shipped.lists[shipped.drain_list]])
    assert drained.pages == {}


# ---- recording ----

needs_strace = pytest.mark.skipif(
    not (shutil.which("strace") and shutil.which("setarch") and shutil.which("cc")),
    reason="recording needs strace, setarch and a C compiler",
)


def record_all() -> ModuleType:
    spec = importlib.util.spec_from_file_location("record_all", DATA / "record_all.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@needs_strace
def test_a_recording_is_a_workload_that_leads_to_real_maps(tmp_path: Path) -> None:
    """A program on this machine; how many calls it takes depends on its C library."""
    recording = record_all().record_one("execl", tmp_path)
    recorded = load_text(tmp_path, recording.toml)
    shipped = workload.load("execl")
    # By hand: processes that wait, as UnixBench's.
    assert (*recorded.list_names, "load") == shipped.list_names
    assert recorded.phases == shipped.phases
    (point,) = recording.points
    assert (point.image, point.list) == ("execl", "exec")
    calls_of_list = recorded.lists[recorded.load_list][: point.calls]
    assert list(run(recorded, [calls_of_list]).maps(recorded.files)) == list(point.maps)
    assert str(tmp_path) not in recording.toml


@needs_strace
def test_a_whole_command_is_recorded_with_its_children(tmp_path: Path) -> None:
    recording = record.record(["sh", "-c", "true; ls . >/dev/null; :"], name="ls", cwd=tmp_path)
    recorded = load_text(tmp_path, recording.toml)
    phase = next(phase for phase in recorded.phases if phase.record)
    assert (phase.name, phase.unit) == ("iteration", "iteration")
    ops = [workload.OPS[op] for op in recorded.lists[phase.list]["op"]]
    assert [ops.count(op) for op in ("fork", "exec", "exit")] == [2, 2, 2]
    assert {point.list for point in recording.points} == {"iteration"}
    load = recorded.lists[recorded.load_list]
    for point in recording.points:
        process = run(recorded, [load, recorded.lists[phase.list][: point.calls]])
        assert list(process.maps(recorded.files)) == list(point.maps)


@needs_strace
@pytest.mark.parametrize(
    ("command", "each", "says"),
    [
        ([], "run", "there is no command to record"),
        (["./nowhere"], "run", "./nowhere is no executable"),
        (["true"], "fork", "has 0 forks; with --each fork it must do the same at least 4 times"),
    ],
)
def test_commands_that_cannot_be_recorded(
    tmp_path: Path, command: list[str], each: record.Each, says: str
) -> None:
    with pytest.raises(InputError, match=re.escape(says)) as error:
        record.record(command, name="none", each=each, cwd=tmp_path)
    assert "\n" not in str(error.value)


def test_recording_without_strace_names_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    with pytest.raises(InputError, match=r"needs strace.*apt-get install strace"):
        record.record(["true"], name="none")


def test_an_incomplete_recording_is_refused() -> None:
    with pytest.raises(EmuError, match=r"not complete: process 7: 1000-2000 .* only in the real"):
        record.verify._compare([], ["1000-2000 r--p 00000000 x"], "process 7")


# ---- what a workload takes from another ----


def test_a_workload_may_build_on_another(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('base = "spawn"\nname = "mine"\ntouch = "all"\n')
    mine, base = workload.load(path), SHIPPED["spawn"]
    assert (mine.name, mine.touch) == ("mine", "all")
    assert mine.description == base.description
    assert mine.files == base.files
    assert mine.phases == base.phases
    for own, theirs in zip(mine.lists, base.lists, strict=True):
        assert own["addr"].tolist() == theirs["addr"].tolist()
    # A call is found where it stands.
    assert mine.describe_call(1, 0) == base.describe_call(1, 0)
    path.write_text(path.read_text().replace('"spawn"', '"./first.toml"'))
    (tmp_path / "first.toml").write_text((ROOT / "emu/workloads/spawn.toml").read_text())
    assert workload.load(path).files == base.files


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('base = "spawm"', "no workload 'spawm' (did you mean 'spawn'?)"),
        ('base = "./mine.toml"', "base: ./mine.toml has a base itself"),
        ("base = 3", "base: the name of a workload or a path, not 3"),
        ('base = "execl-walkers"', "base: execl-walkers has a base itself"),
        ('base = "spawn"\n[program.x]\ncalls = []', "images and programs are those of the base"),
        ('base = "./none.toml"', "No such file or directory"),
    ],
)
def test_a_base_that_cannot_be(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text + "\n")
    with pytest.raises(InputError) as error:
        workload.load(path)
    assert message in str(error.value)


def test_a_fault_is_written_as_it_is_read() -> None:
    for text in ("fault(0x7ffff7fc0000, 4096)", "fault(0x7ffff7fc0000, 8192, PROT_WRITE)"):
        assert str(workload.parse_call(text)) == text
    with pytest.raises(workload.CallError, match="the length is 0"):
        workload.parse_call("fault(0x1000, 0)")
