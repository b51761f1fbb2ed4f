# SPDX-License-Identifier: MIT
"""`emu run --trace`: the trace of a window, checked against what the same run says of itself."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from emu_command import emu

from emu import _core, coordinator, topology, workload
from emu.coordinator import DesignFile, Plan, StopFlag
from emu.engines import _slices
from emu.engines.virtual import run_cell
from emu.report.trace import Slice, Window, nested

ONE_CELL = ("--engine", "virtual", "--topology", "hygon-12x32", "--workload", "execl")
Event = dict[str, Any]


def ns(us: float) -> int:
    """Exact: the file has three digits after the point."""
    found = round(us * 1000)
    assert found / 1000 == us
    return found


def traced(tmp_path: Path, *arguments: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The trace, and the cell."""
    trace, run = tmp_path / "trace.json", tmp_path / "run.json"
    what = ("--trace", str(trace), "--json", str(run))
    done = emu("run", *ONE_CELL, *arguments, *what, timeout_s=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    (cell,) = json.loads(run.read_text())["cells"]
    return json.loads(trace.read_text()), cell


def slices(document: dict[str, Any]) -> list[Event]:
    events = [event for event in document["traceEvents"] if event["ph"] == "X"]
    return [event for event in events if event["cat"] != "window"]


def check_nesting(events: list[Event]) -> None:
    """On each track a slice is inside another one or after it."""
    tracks = defaultdict(list)
    for number, event in enumerate(events):
        start = ns(event["ts"])
        tracks[event["tid"]].append((start, -start - ns(event["dur"]), number))
    for track in tracks.values():
        open_until: list[int] = []
        for start, minus_end, _ in sorted(track):
            while open_until and open_until[-1] <= start:
                open_until.pop()
            assert not open_until or -minus_end <= open_until[-1]
            open_until.append(-minus_end)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    """A window that covers all of the phase."""
    arguments = ("--rmap", "single", "--cpus", "48", "--duration", "1ms", "--seed", "7")
    directory = tmp_path_factory.mktemp("trace")
    return traced(directory, *arguments, "--trace-window", "0us+1s")


def test_slices_nest_on_every_track(whole: tuple[dict[str, Any], dict[str, Any]]) -> None:
    events = slices(whole[0])
    assert len(events) > 5000
    assert {event["cat"] for event in events} == {"call", "wait", "spin", "hold"}
    check_nesting(events)


def test_an_exclusive_lock_is_held_by_one_cpu_at_a_time(
    whole: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    held = defaultdict(list)
    for event in slices(whole[0]):
        if event["cat"] == "hold":
            start = ns(event["ts"])
            held[event["args"]["lock"], event["args"]["at"]].append(
                (start, start + ns(event["dur"]))
            )
    libc = [spans for (name, _), spans in held.items() if name == "i_mmap_rwsem libc.so.6"]
    assert len(libc) == 1
    assert len(libc[0]) > 500
    for spans in held.values():
        for (_, end), (start, _) in pairwise(sorted(spans)):
            assert start >= end


def test_sums_are_those_of_the_lock_statistics(
    whole: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    document, cell = whole
    times: Counter[tuple[str, str]] = Counter()
    numbers: Counter[tuple[str, str]] = Counter()
    sites: Counter[tuple[str, str]] = Counter()
    calls: Counter[str] = Counter()
    for event in slices(document):
        if event["cat"] == "call":
            calls[event["name"]] += 1
        if event["cat"] in ("hold", "wait"):
            key = event["cat"], event["args"]["lock"]
            times[key] += ns(event["dur"])
            numbers[key] += 1
            if event["cat"] == "wait":
                sites[event["args"]["lock"], event["args"]["site"]] += ns(event["dur"])
    assert {op: calls[op] for op in ("exec", "mmap", "munmap", "mprotect", "brk")} == {
        op: cell["latency_ns"][op]["count"] for op in ("exec", "mmap", "munmap", "mprotect", "brk")
    }
    assert sum(lock["wait_ns"] for lock in cell["locks"]) > 1_000_000
    for lock in cell["locks"]:
        name = f"{lock['name']} {lock['file']}" if lock["file"] else lock["name"]
        assert numbers["hold", name] == lock["acquired"]
        assert times["hold", name] == lock["hold_ns"]
        assert numbers["wait", name] == lock["contended"]
        assert times["wait", name] == lock["wait_ns"]
        for site in lock["sites"]:
            assert sites[name, site["site"]] == site["wait_ns"]


def test_spinning_and_sleeping_are_inside_waits(
    whole: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    events = slices(whole[0])
    waits = defaultdict(list)
    for event in events:
        if event["cat"] == "wait":
            start = ns(event["ts"])
            waits[event["tid"]].append((start, start + ns(event["dur"])))
    inside = 0
    spins = [event for event in events if event["cat"] in ("spin", "sleep")]
    for event in spins:
        start, end = ns(event["ts"]), ns(event["ts"]) + ns(event["dur"])
        inside += any(a <= start and end <= b for a, b in waits[event["tid"]])
        assert event["args"]["on"]
        assert event["args"]["stack"]
    # The allocator spins too, on locks without statistics.
    assert inside > 0.9 * len(spins) > 100


def test_readers_that_find_a_writer_sleep(tmp_path: Path) -> None:
    what = ("--workload", "rwsem-mixed", "--rmap", "single", "--cpus", "64", "--duration", "1ms")
    events = slices(traced(tmp_path, *what, "--trace-window", "100us+100us")[0])
    check_nesting(events)
    asleep = [event for event in events if event["cat"] == "sleep"]
    assert len(asleep) > 10
    (site,) = {event["args"]["site"] for event in asleep if "read" in event["args"]["site"]}
    assert site == "emu_rwsem_read"
    stacks = [event["args"]["stack"] for event in asleep]
    assert any(stack.startswith("emu_rwsem_read>rwsem_down_read_slow") for stack in stacks)


def test_cpus_are_in_groups_of_their_nodes(whole: tuple[dict[str, Any], dict[str, Any]]) -> None:
    document = whole[0]
    assert document["displayTimeUnit"] == "ns"
    assert "incomplete" not in document["otherData"]
    names = {
        (event["name"], event["pid"], event.get("tid")): event["args"].get("name")
        for event in document["traceEvents"]
        if event["ph"] == "M"
    }
    assert names["process_name", 0, None] == "node 0"
    assert names["process_name", 2, None] == "node 2"
    assert names["thread_name", 2, 47] == "CPU 47"
    for event in slices(document):
        assert event["pid"] == event["tid"] // 16
    assert {event["tid"] for event in slices(document)} == set(range(48))


def test_a_window_has_what_overlaps_it_and_the_run_is_the_same(
    whole: tuple[dict[str, Any], dict[str, Any]], tmp_path: Path
) -> None:
    arguments = ("--rmap", "single", "--cpus", "48", "--duration", "1ms", "--seed", "7")
    document, cell = traced(tmp_path, *arguments, "--trace-window", "300us+200us")

    def key(event: Event) -> str:
        return json.dumps(event, sort_keys=True)

    first, last = 300_000, 500_000
    expected = [
        event
        for event in slices(whole[0])
        if ns(event["ts"]) < last and ns(event["ts"]) + ns(event["dur"]) >= first
    ]
    assert sorted(map(key, slices(document))) == sorted(map(key, expected))
    windows = [each for each in document["traceEvents"] if each.get("cat") == "window"]
    assert [(each["ts"], each["dur"], each["pid"]) for each in windows] == [(300, 200, 3)]
    assert not [each for each in whole[0]["traceEvents"] if each.get("cat") == "window"]
    del cell["host"], whole[1]["host"]
    assert cell == whole[1]


def test_locks_released_out_of_order_are_drawn_in_pieces() -> None:
    def a_slice(name: str, start: int, end: int) -> Slice:
        return Slice(0, start, end, "hold", name, {})

    # In the order of their ends: "a" ends while "b", which began later, goes on.
    track = [a_slice("a", 10, 30), a_slice("c", 20, 40), a_slice("b", 20, 40), a_slice("d", 40, 40)]
    drawn = [(each.name, start, end) for each, start, end in nested(track)]
    assert drawn == [
        ("a", 10, 30),
        ("b", 20, 30),
        ("c", 20, 30),
        ("b", 30, 40),
        ("c", 30, 40),
        ("d", 40, 40),
    ]


def run_with_little_room(plan: Plan, file: Path) -> tuple[int, int | None, int]:
    """Slices, when there was no more room, and the latest end."""
    _slices._ROOM = 1000
    machine = topology.load("hygon-12x32")
    trace = run_cell(plan, machine, Window(file, 0, 10**9)).trace
    assert trace
    return len(trace.slices), trace.full_ns, max(each.end_ns for each in trace.slices)


def test_a_full_buffer_says_when(tmp_path: Path) -> None:
    plan = Plan(
        machine="virtual",
        rmap=DesignFile("single", _core.data_path("designs-virtual", "rmap", "single.so")),
        mm=DesignFile("mm", _core.data_path("designs-virtual", "mm", "mmap-sem-rbtree.so")),
        workload=workload.load("execl"),
        node_of_cpu=[0] * 8,
        nr_nodes=12,
        host_cpu_of_cpu=[],
        host_node_of_node=None,
        penalty_ns=None,
        oversubscribed=False,
        seed=1,
        duration_ns=10**6,
        arena_bytes=0,
    )
    with StopFlag() as stop:
        number, full_ns, latest = coordinator.in_child(
            run_with_little_room, plan, tmp_path / "x", stop=stop
        )
    assert number == 1000
    assert full_ns is not None
    # Ends are in order but for what CPUs may do ahead of each other.
    assert 0 < latest <= full_ns + 1000


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--rmap", "single,numa-locks", "--cpus", "4"), ["one cell", "2 of virtual"]),
        (("--rmap", "single", "--cpus", "1..4"), ["one cell", "3 of virtual"]),
        (("--rmap", "single", "--cpus", "2", "--engine", "native"), ["one cell", "of native"]),
        (("--rmap", "single", "--cpus", "2", "--trace-window", "5"), ['"2ms+500us"']),
        (("--rmap", "single", "--cpus", "2", "--trace-window", "0us+0us"), ["0us+0us"]),
        (("--rmap", "single", "--cpus", "2", "--trace", "/proc/none/x"), ["/proc/none/x"]),
    ],
)
def test_bad_input(tmp_path: Path, arguments: tuple[str, ...], words: list[str]) -> None:
    done = emu("run", *ONE_CELL, "--trace", str(tmp_path / "t.json"), *arguments, "--repeats", "1")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    for word in ("--trace", *words):
        assert word in done.stderr
    assert not (tmp_path / "t.json").exists()


def test_a_window_after_the_phase_is_remarked_on(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    window = ("--trace", str(path), "--trace-window", "5s+1s")
    done = emu("run", *ONE_CELL, "--rmap", "single", "--cpus", "2", *window)
    assert done.returncode == 0
    assert re.search(
        r"--trace \S+: nothing is in the window; the phase took \d+\.\d+ us", done.stderr
    )
    assert slices(json.loads(path.read_text())) == []


@pytest.mark.usefixtures("nothing_left")
def test_a_trace_for_which_there_is_no_room_is_one_line() -> None:
    cell = ("--rmap", "single", "--cpus", "1", "--duration", "1ms")
    done = emu("run", *ONE_CELL, *cell, "--trace", "/dev/full")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "emu: /dev/full: No space left on device\n"


def test_a_window_needs_a_file() -> None:
    done = emu("run", *ONE_CELL, "--trace-window", "0us+1ms", "--cpus", "1")
    assert done.returncode == 2
    assert re.search(r"--trace-window 0us\+1ms: --trace", done.stderr)
