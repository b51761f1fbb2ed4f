# SPDX-License-Identifier: MIT
"""A short form of tests/fuzz.py, and inputs that it or somebody has found."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from fuzz import PARSERS, edited, fuzz, try_input

from emu import experiment, histogram, hwloc, record, topology, validate, workload
from emu.errors import EmuError, InputError
from emu.report.trace import make_window
from emu.store import Store

SLOW = {"program", "schedule"}
"""Each input is read in a process of its own."""


@pytest.mark.parametrize("name", PARSERS)
def test_damaged_input_is_read_or_refused_with_one_line(name: str) -> None:
    counts = fuzz(PARSERS[name], 1, 4 if name in SLOW else 20)
    assert counts.total() >= 4


@pytest.mark.parametrize("name", sorted(set(PARSERS) - {"schema"}))
def test_what_is_damaged_was_whole(name: str) -> None:
    """Else the fuzzing would see the first lines of a parser only."""
    parser = PARSERS[name]
    assert try_input(parser, parser.seeds()[0]) == "read"


def test_edits_change_the_data() -> None:
    data = b'a = 1\nb = "x"\n'
    assert edited(data, [("value", 0.0, 0.0, b"7")]) == b'7 = 1\nb = "x"\n'
    assert edited(data, [("swap", 0.0, 1.0, b"")]) == b'"x" = 1\nb = "x"\n'
    assert edited(data, [("truncate", 0.5, 1.0, b"")]) == b"a = 1\nb"
    assert edited(data, [("flip", 0.0, 0.99, b"")]) == b'\xe1 = 1\nb = "x"\n'
    assert edited(b"", [("flip", 1.0, 1.0, b"")]) == b""
    assert edited(data, [("cut", 0.0, 0.5, b"")]) == b' = "x"\n'


@pytest.mark.parametrize(
    "text", ["1" * 5000, "1.." + "9" * 5000, "0", "4097", "-1", "1,,2", "\u00b2"]
)
def test_numbers_of_cpus_at_the_edges(text: str) -> None:
    with pytest.raises(InputError, match=r"\A[^\n]+\Z"):
        experiment.parse_cpus(text)


@pytest.mark.parametrize("text", ["2562h", "9223372036s", "1" * 400 + "s", "-1ms", "61m", "nan s"])
def test_times_at_the_edges(text: str) -> None:
    with pytest.raises(InputError, match=r"\A[^\n]+\Z"):
        experiment.parse_duration(text)
    with pytest.raises(workload.CallError):
        workload.parse_time(text)
    with pytest.raises(InputError, match=r"\A[^\n]+\Z"):
        make_window("trace.json", f"{text}+{text}")


def test_offsets_at_the_edges() -> None:
    call = "mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, f, {})"
    last = 2**47 - 2 * 4096
    assert workload.parse_call(call.format(hex(last - 4096))).offset == last - 4096
    for offset in (2**52, 2**63, 2**64 - 4096, 2**64, "0x" + "f" * 400):
        with pytest.raises(workload.CallError):
            workload.parse_call(call.format(offset))


def test_a_family_with_leading_zeros_is_a_number(tmp_path: Path) -> None:
    text = (Path(__file__).parent / "data" / "hwloc" / "two-sockets.xml").read_text()
    file = tmp_path / "m.xml"
    head, tag, rest = text.partition("<info ")
    file.write_text(f'{head}<info name="CPUFamilyNumber" value="019"/>{tag}{rest}')
    assert hwloc.load(file).machine.nr_cpus > 0


def test_an_empty_log_is_no_recording() -> None:
    builder = record.build.Builder(Path(), None, {}, False, 0, {})
    with pytest.raises(EmuError, match="does not begin with an execve"):
        builder.linearize({})


@pytest.mark.parametrize("text", ["", "x", "HIST", "AAAA" * 10, "\u00b2"])
def test_what_is_no_histogram_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="histogram"):
        histogram.decode(text)


@pytest.mark.parametrize(
    ("statement", "says"),
    [
        ("UPDATE run SET id = x'ff'", "is damaged: a run is called"),
        ("UPDATE run SET info = 5", "cannot be read"),
        ("UPDATE run SET info = '{'", "cannot be read"),
        ("DROP TABLE run", "no such table"),
        ("PRAGMA user_version = 99", "a newer mm-emu wrote this store"),
    ],
)
def test_stores_with_other_contents_are_refused(tmp_path: Path, statement: str, says: str) -> None:
    store = Store(tmp_path / "store")
    store.prepare()
    with sqlite3.connect(tmp_path / "store" / "store.sqlite") as database:
        database.execute("INSERT INTO run VALUES ('r', 'f', 'done', '{}')")
        database.execute(statement)
    database.close()
    with pytest.raises(EmuError, match=says):
        store.summaries()


def test_what_is_quoted_from_input_stays_one_line() -> None:
    assert str(InputError("'a\nb\x1b[31m\x9b' is none; é is")) == (
        r"'a\nb\x1b[31m\x9b' is none; é is"
    )


def test_toml_with_a_number_of_thousands_of_digits_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    for text in ("a = " + "9" * 5000, "a = " + "[" * 3000):
        file.write_text(text)
        for read in (experiment.read_toml, topology.load, workload.load, validate.read):
            with pytest.raises(InputError, match=r"x\.toml"):
                read(file)
