# SPDX-License-Identifier: MIT
"""The arithmetic of ``emu validate`` on rows and cells made up here, and its data."""

from __future__ import annotations

import json
import re
import signal
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from emu_command import children, emu, start, wait_until

from emu import _core, topology, validate, workload
from emu.coordinator import Interrupted
from emu.errors import InputError
from emu.results import CellResult, Host, Latency, Lock, Memory, Run, RunInfo
from emu.validate import Calibration, Point, Result


def a_cell(rmap: str, ops: int, *, cpus: int = 4, wait_ns: int = 0, mean: float = 0) -> CellResult:
    latencies = {op: Latency() for op in _core.LAT_NAMES}
    latencies["micro"] = Latency(count=ops, mean=mean)
    locks = [
        Lock(name=name, file=file, acquired=1, contended=1, wait_ns=wait_ns, hold_ns=0, sites=[])
        for name, file in (("i_mmap_rwsem", "a"), ("i_mmap_rwsem", "b"), ("other", None))
    ]
    return CellResult(
        rmap=rmap,
        mm="m",
        topology="t",
        cpus=cpus,
        workload="w",
        engine="virtual",
        seed=1,
        repeat=0,
        status="ok",
        ops=ops,
        seconds=0.5,
        ops_per_s=ops / 0.5,
        latency_ns=latencies,
        locks=locks,
        memory=Memory(),
        host=Host(),
    )


def a_row(measure: Any, **given: Any) -> Result:
    default = {
        "id": "row",
        "measure": measure,
        "topology": "t",
        "cpus": 4,
        "workload": "execl",
        "design": "b",
        "value": 1.0,
        "source": "s",
    }
    return Result(**(default | given))


def a_run(*cells: CellResult) -> Run:
    info = RunInfo(id="i", started="", version="", command=[], experiment={}, host={})
    return Run(run=info, cells=list(cells))


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (a_row("ratio", baseline="a"), 3.0),
        (a_row("ops_per_s"), 600.0),
        (a_row("ns_per_op"), 1e9 / 600),
        (a_row("latency_cycles"), 240.0),
        (a_row("lock_share", lock="i_mmap_rwsem"), 2 * 10**8 / (4 * 0.5e9)),
    ],
)
def test_what_is_measured(row: Result, expected: float) -> None:
    cells = [a_cell("a", 100), a_cell("b", 300, wait_ns=10**8, mean=100)]
    assert validate.measured(row, cells) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("published", "bound", "emulated", "ratio"),
    [
        ([2.0], "", 3.0, 1.5),
        ([2.0], "at least", 3.0, 1.0),
        ([2.0], "at least", 1.0, 0.5),
        ([4.0, 5.0], "", 4.5, 1.0),
        ([4.0, 5.0], "", 10.0, 2.0),
        ([4.0, 5.0], "", 2.0, 0.5),
    ],
)
def test_the_ratio(published: list[float], bound: str, emulated: float, ratio: float) -> None:
    point = Point(
        row="r",
        measure="ratio",
        topology="t",
        cpus=1,
        workload="w",
        design="d",
        published=published,
        bound=bound,
    )
    validate.compare(point, [99.0, emulated, 0.0])
    assert (point.emulated, point.ratio) == (emulated, ratio)
    assert point.repeats == [99.0, emulated, 0.0]


def test_rows_become_points_and_what_cannot_run_is_said() -> None:
    rows = [
        a_row("ops_per_s", id="many", cpus=[1, 2], value=[100.0, 300.0]),
        a_row("ops_per_s", id="two", workload=["execl", "nosuch"], value=[300.0, 1.0]),
        a_row("ratio", id="fails", baseline="a"),
    ]
    asked: list[Mapping[str, object]] = []

    def run_cells(options: Mapping[str, object]) -> Run:
        asked.append(options)
        cells = []
        for repeat, ops in enumerate((75, 1, 99)):
            cells += [a_cell("a", 50), a_cell("b", ops)]
            cells[-2].repeat = cells[-1].repeat = repeat
        if "a" in options["rmap"]:  # type: ignore[operator]
            cells[0].status, cells[0].error = "failed", "why"
        return a_run(*cells)

    calibrations = [Calibration("p", ["many:2"], "h")]
    found = validate.validate(
        rows, calibrations, run_cells, duration="7ms", seed=3, repeats=3, uncertainty=5
    )
    assert [(p.row, p.cpus, p.workload, p.ratio, p.calibrated_on) for p in found.points] == [
        ("many", 1, "execl", 1.5, False),
        ("many", 2, "execl", 0.5, True),
        ("two", 4, "execl", 0.5, False),
        ("two", 4, "nosuch", None, False),
        ("fails", 4, "execl", None, False),
    ]
    assert found.points[3].note == "no workload nosuch"
    assert found.points[4].note == "a failed: why"
    assert [options["rmap"] for options in asked] == [["b"], ["b"], ["b"], ["a", "b"]]
    given = {(each["duration"], each["seed"], each["repeats"]) for each in asked}
    assert given == {("7ms", 3, 3)}
    assert found.points[0].repeats == [150.0, 2.0, 198.0]
    assert [options.get("uncertainty") for options in asked] == [None, None, None, 5]


def test_what_was_done_before_an_interrupt_is_kept() -> None:
    rows = [a_row("ops_per_s", cpus=[1, 2, 3], value=[100.0, 300.0, 1.0])]

    def run_cells(options: Mapping[str, object]) -> Run:
        if options["cpus"] == 2:
            raise Interrupted
        return a_run(a_cell("b", 75))

    found = validate.validate(rows, [], run_cells, repeats=1)
    assert found.interrupted
    assert [(p.cpus, p.ratio) for p in found.points] == [(1, 1.5)]


def test_the_published_data_fits_what_there_is() -> None:
    file = validate.read()
    ids = [row.id for row in file.result]
    assert len(set(ids)) == len(ids) >= 10
    for row in file.result:
        topology.load(row.topology)
        for point in validate.points(row):
            name = point.workload.partition(":")[0]
            assert name in workload.names()
            assert point.cpus <= topology.load(row.topology).nr_cpus
    for each in file.calibration:
        assert {on.partition(":")[0] for on in each.on} <= set(ids)
    with pytest.raises(InputError, match="no published result 'hygon'"):
        validate.choose(file.result, ["hygon"])


def test_every_key_of_a_row_is_described() -> None:
    text = (Path(__file__).parents[1] / "docs" / "validation.md").read_text()
    about = text[text.index("`emu validate mine.toml`") : text.index("| row | CPUs")]
    missing = [name for name in Result.__struct_fields__ if not re.search(rf"\b{name}\b", about)]
    assert missing == []


def test_a_file_that_does_not_add_up_is_refused(tmp_path: Path) -> None:
    row = """
    [[result]]
    id = "x"
    measure = "ratio"
    topology = "t"
    cpus = [1, 2]
    workload = "w"
    design = "d"
    baseline = "b"
    value = [1.0, 2.0]
    source = "s"
    """
    path = tmp_path / "published.toml"
    path.write_text(row)
    assert len(validate.read(path).result) == 1
    for old, new, words in (
        ("[1.0, 2.0]", "[1.0]", "x: as many values as cpus, 2"),
        ('baseline = "b"', "", "x: a ratio needs a baseline"),
        ('measure = "ratio"', 'measure = "speed"', "Invalid enum value 'speed'"),
    ):
        path.write_text(row.replace(old, new))
        with pytest.raises(InputError, match=words):
            validate.read(path)


def test_the_command_gives_a_table_and_json() -> None:
    arguments = ("validate", "--row", "static-exec-1", "--duration", "5ms")
    shown = emu(*arguments, timeout_s=120)
    assert shown.returncode == 0, shown.stderr
    assert "static-exec-1" in shown.stdout and "Calibrated on published results" in shown.stdout
    done = emu(*arguments, "--json", "-", timeout_s=120)
    (point,) = json.loads(done.stdout)["points"]
    assert point["published"] == [9500.0]
    assert len(set(point["repeats"])) == validate.REPEATS
    assert point["emulated"] == statistics.median(point["repeats"])
    spread = (max(point["repeats"]) - min(point["repeats"])) / 2 / point["emulated"]
    assert f"{spread:.1%}" in shown.stdout
    assert point["ratio"] == pytest.approx(point["emulated"] / 9500)
    assert 0.5 < point["ratio"] < 2
    other = emu(*arguments, "--seed", "2", "--repeats", "1", "--json", "-", timeout_s=120)
    assert json.loads(other.stdout)["points"][0]["repeats"] == [point["repeats"][1]]
    row = ("--row", "static-exec-1")
    for wrong in (("--row", "nosuch"), (*row, "--seed", "-1"), (*row, "--repeats", "0")):
        refused = emu("validate", *wrong)
        assert refused.returncode == 2
        assert len(refused.stderr.strip().splitlines()) == 1


def test_results_of_one_s_own_in_the_form_of_the_document(tmp_path: Path) -> None:
    text = (Path(__file__).parents[1] / "docs" / "validation.md").read_text()
    (shown,) = re.findall(r"^```toml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    path = tmp_path / "mine.toml"
    path.write_text(shown.replace("cpus = 128", "cpus = [2, 4]").replace("4.2", "[4.2, 1.0]"))
    done = emu("validate", str(path), "--duration", "1ms", "--json", "-")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert [(p["row"], p["cpus"], p["published"]) for p in found["points"]] == [
        ("my-server", 2, [4.2]),
        ("my-server", 4, [1.0]),
    ]
    assert all(p["ratio"] > 0 for p in found["points"])
    assert found["calibrations"] == []
    assert "Calibrated" not in emu("validate", str(path), "--duration", "1ms").stdout
    for name, words in ((path.parent / "none.toml", "No such file"), (path, "no published result")):
        wrong = emu("validate", str(name), "--row", "hygon")
        assert wrong.returncode == 2 and words in wrong.stderr
        assert len(wrong.stderr.strip().splitlines()) == 1


def test_a_signal_ends_it_cleanly() -> None:
    process = start("validate", "--row", "hygon-numa-locks")
    wait_until(lambda: children(process.pid))
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=10)
    assert (process.returncode, out, err) == (130, "", "")
