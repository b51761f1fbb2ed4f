# SPDX-License-Identifier: MIT
"""The HTML report: its data, that nothing gets out of its text, and that a browser shows it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from browser import FOUND, Browser
from emu_command import emu, wait_until
from test_report import made_cell, made_run

import emu as package
from emu import topology
from emu.histogram import new_hdr
from emu.report import figures, html
from emu.report.designs import Designs
from emu.results import (
    Bottleneck,
    CellResult,
    DesignUncertainty,
    Latency,
    Memory,
    Run,
    Uncertainty,
    Walker,
)

HOSTILE = '</script><script>alert("x")</script><img src=x onerror=alert(1)>&amp;\u2028'


class Page(HTMLParser):
    """Elements with their attributes, and the text of scripts by id."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def latency_of(values_ns: list[int], overflow: int = 0, max_ns: int | None = None) -> Latency:
    hdr = new_hdr()
    for ns in values_ns:
        hdr.record_value(ns)
    longest = max(values_ns) if max_ns is None else max_ns
    count = len(values_ns) + overflow
    return Latency(count=count, max=longest, overflow=overflow, hdr=hdr.encode().decode())


def by_choice(figure: figures.Figure | None) -> dict[tuple[str, ...], figures.Variant]:
    assert figure
    return {tuple(each.choice.values()): each for each in figure.variants}


def sweep(*cells: CellResult) -> figures.Sweep:
    return figures.Sweep(list(cells), Designs(cells))


# ---- the data ----


def test_scaling_has_medians_and_intervals() -> None:
    cells = [
        made_cell(rmap="a", cpus=cpus, repeat=repeat, ops_per_s=rate)
        for cpus, rates in ((1, (10.0, 20.0, 30.0)), (2, (40.0, 40.0, 40.0)))
        for repeat, rate in enumerate(rates)
    ]
    [trace] = figures.scaling(sweep(*cells)).variants[0].traces
    assert trace["x"] == [1, 2]
    assert trace["y"] == [20.0, 40.0]
    below, above = trace["error_y"]["arrayminus"], trace["error_y"]["array"]
    assert 0 < below[0] <= 10
    assert 0 < above[0] <= 10
    assert (below[1], above[1]) == (0, 0)


def test_one_repeat_has_no_interval() -> None:
    figure = figures.scaling(sweep(made_cell()))
    assert "error_y" not in figure.variants[0].traces[0]
    assert "no intervals" in figure.about


def test_speed_up_is_against_the_first_design() -> None:
    cells = [
        made_cell(rmap="base", cpus=1, ops_per_s=10.0),
        made_cell(rmap="base", cpus=2, ops_per_s=10.0),
        made_cell(rmap="other", cpus=2, ops_per_s=35.0),
    ]
    figure = figures.speed_up(sweep(*cells))
    assert figure
    [trace] = figure.variants[0].traces
    assert (trace["name"], trace["x"], trace["y"]) == ("other", [2], [3.5])
    assert figures.speed_up(sweep(*cells[:2])) is None


def test_speed_up_is_against_single_wherever_it_stands_as_in_the_tables() -> None:
    cells = [made_cell(rmap=name, ops_per_s=rate) for name, rate in (("a", 30.0), ("single", 10.0))]
    figure = figures.speed_up(sweep(*cells))
    assert figure
    assert figure.title == "Speed-up over single"
    [trace] = figure.variants[0].traces
    assert (trace["name"], trace["y"]) == ("a", [3.0])


def test_percentiles_are_those_of_the_histogram() -> None:
    values = [100] * 90 + [5_000] * 9 + [70_000]
    x, y = figures.percentile_curve([made_cell(latency_ns={"exec": latency_of(values)})], "exec")
    curve = dict(zip(x, y, strict=True))
    assert (x[0], x[-1]) == (1, 100)
    assert y[0] == 100
    assert curve[10] == 100
    assert curve[100] == pytest.approx(5_000, rel=0.01)
    assert y == sorted(y)


def test_percentiles_add_repeats_up_and_know_of_overflow() -> None:
    cells = [
        made_cell(latency_ns={"exec": latency_of([100] * 4)}),
        made_cell(latency_ns={"exec": latency_of([900] * 4, overflow=8, max_ns=2**40)}),
    ]
    x, y = figures.percentile_curve(cells, "exec")
    assert x[-1] == 16
    assert y[0] == 100
    assert y[-1] == 2**40
    assert figures.percentile_curve(cells, "fork") == ([], [])


def test_names_of_percentiles() -> None:
    names = [figures.percentile_name(nines) for nines in range(6)]
    assert names == ["0%", "90%", "99%", "99.9%", "99.99%", "99.999%"]


def test_a_time_axis_shows_units_within_its_range() -> None:
    axis = figures.time_axis("exec", [900.0, 4_000_000.0])
    assert axis["ticktext"] == ["1 µs", "10 µs", "100 µs", "1 ms"]
    low, high = axis["range"]
    assert 10**low < 900
    assert 10**high > 4_000_000
    narrow = figures.time_axis("exec", [1500.0, 4000.0])["ticktext"]
    assert narrow == ["1.5 µs", "2 µs", "3 µs", "4 µs", "5 µs"]


def test_waiting_is_a_share_of_all_cpus_time() -> None:
    shares = figures.waiting_by_lock_and_site([made_cell(), made_cell()])
    time_ns = 2 * 0.02e9
    assert shares["i_mmap_rwsem of a;b.so in vma_link_file"] == pytest.approx(6000 / time_ns)
    assert shares["i_mmap_rwsem of a;b.so in -"] == pytest.approx(2000 / time_ns)


def test_small_waits_are_added_up() -> None:
    cell = made_cell()
    site = cell.locks[1].sites[0]
    cell.locks[1].sites = [
        type(site)(site=f"f{number}", acquired=1, contended=1, wait_ns=100_000 + number)
        for number in range(12)
    ]
    [variant] = figures.waiting(sweep(cell)).variants
    names = [trace["name"] for trace in variant.traces]
    assert names[0].endswith("f11")
    assert names[-1] == "others"
    shares = sum(trace["x"][0] for trace in variant.traces)
    assert shares == pytest.approx(sum(range(100_000, 100_012)) / (2 * 0.02e9), rel=1e-4)


def test_time_stacks_are_means_of_the_repeats() -> None:
    cells = [
        made_cell(time_stack={"own_work": 0.4, "spinning": 0.6}),
        made_cell(time_stack={"own_work": 0.2, "spinning": 0.8}),
    ]
    [variant] = figures.time_stacks(sweep(*cells)).variants
    values = {trace["name"]: trace["x"] for trace in variant.traces}
    assert values == {"own work": [0.3], "spinning": [0.7]}


def test_transfers_are_by_node_pair_per_repeat() -> None:
    cells = [made_cell(), made_cell(node_transfers=[[8, 4], [2, 0]])]
    found = by_choice(figures.transfers(sweep(*cells)))
    assert found["outer-inner:shards=2,by=cpu", "2"].traces[0]["z"] == [[7, 2], [2, 0]]
    assert figures.transfers(sweep(made_cell(node_transfers=[]))).variants == []
    # Without a largest value of its own the scale would go below 0 where nothing moved.
    (quiet,) = figures.transfers(sweep(made_cell(node_transfers=[[0]]))).variants
    assert (quiet.traces[0]["zmin"], quiet.traces[0]["zmax"]) == (0, 1)


def test_memory_is_left_out_where_there_are_no_files() -> None:
    assert figures.memory(sweep(made_cell(memory=Memory()))).variants == []
    taken = Memory(rmap_bytes_per_file=128)
    (variant,) = figures.memory(sweep(made_cell(memory=taken))).variants
    assert [trace["x"] for trace in variant.traces] == [[128], [0], [0], [0]]


def test_transfers_of_a_damaged_file_are_drawn_as_they_are() -> None:
    cells = [made_cell(node_transfers=[[2**63, 0], [0, 0]]), made_cell(node_transfers=[[1]])]
    (variant,) = figures.transfers(sweep(*cells)).variants
    assert variant.traces[0]["z"][0][0] == pytest.approx(2**63)


def test_walkers_pay() -> None:
    def cell(cpus: int, p50: int, done: int = 3) -> CellResult:
        walker = Walker(
            kind="rmap",
            file="/lib/libc.so.6",
            cpu=0,
            first=0,
            last=1,
            at_once=1,
            every_ns=1,
            done=done,
            refused=0,
            lost=0,
            vmas=9,
            pages=9,
            latency_ns=Latency(count=done, p50=p50, p99=2 * p50),
        )
        return made_cell(cpus=cpus, walkers=[walker])

    found = by_choice(figures.walkers(sweep(cell(1, 1000), cell(2, 4000), cell(4, 0, done=0))))
    median, tail = found["1: rmap of libc.so.6",].traces
    assert (median["x"], median["y"]) == ([1, 2], [1000, 4000])
    assert (tail["x"], tail["y"]) == ([1, 2], [2000, 8000])


def test_engines_are_told_apart() -> None:
    run = made_run(made_cell(engine="native"), made_cell())
    kinds = [(section.engine, section.kind) for section in figures.sections(run)]
    assert kinds == [("native", "measured"), ("virtual", "predicted")]


def test_a_design_looks_the_same_in_every_section() -> None:
    run = made_run(
        made_cell(rmap="a", workload="w1"),
        made_cell(rmap="b", workload="w1"),
        made_cell(rmap="b", workload="w2"),
    )
    first, second = (section.figures[0].variants[0].traces for section in figures.sections(run))
    assert first[1]["line"] == second[0]["line"] != first[0]["line"]


# ---- the page ----


def hostile_run() -> Run:
    cells = [
        made_cell(
            rmap=rmap, workload=HOSTILE, topology=HOSTILE, mm=HOSTILE, cpus=cpus, note=HOSTILE
        )
        for rmap in ("single", HOSTILE)
        for cpus in (1, 2)
    ]
    cells[0].locks[1].file = f"/lib/{HOSTILE}"
    run = made_run(*cells, made_cell(rmap=HOSTILE, status="failed", error=HOSTILE, phases=[]))
    run.run.command = ["run", "--rmap", HOSTILE]
    run.run.experiment = {"name": HOSTILE, "rmap": [HOSTILE]}
    run.run.host = {"model": HOSTILE}
    run.run.files = {HOSTILE: HOSTILE}
    run.run.status = "done"
    return run


def test_no_name_gets_out_of_its_text() -> None:
    page = Page(html.page(hostile_run()))
    assert len(page.named("script")) == 3
    assert page.named("img") == []
    assert not [key for _, found in page.elements for key in found if key.startswith("on")]
    assert any(HOSTILE in text for text in page.text)


def test_only_the_pages_own_scripts_may_run() -> None:
    page = Page(html.page(made_run(made_cell())))
    policies = [each for each in page.named("meta") if "http-equiv" in each]
    [policy] = policies
    content = policy["content"] or ""
    assert "default-src 'none'" in content
    assert content.count("'sha256-") == 2
    assert "script-src 'sha256-" in content


def test_the_page_needs_nothing_else() -> None:
    written = html.page(made_run(made_cell()))
    page = Page(written)
    for _, attributes in page.elements:
        for key in ("src", "href"):
            assert (attributes.get(key) or "#").startswith(("#", "data:"))
    assert len(written.encode()) < 8e6


def test_every_figure_is_labelled() -> None:
    page = Page(html.page(made_run(made_cell(engine="native"), made_cell())))
    labels = [each["aria-label"] or "" for each in page.named("div") if each.get("class") == "plot"]
    assert {label.split(", ")[1].split(":")[0] for label in labels} == {"measured", "predicted"}


def test_a_run_without_a_good_cell_has_a_page() -> None:
    cell = made_cell(status="failed", error="it broke", phases=[])
    written = html.page(made_run(cell))
    assert "it broke" in written
    assert "No cell of these ran to its end." in written


def test_each_machine_is_drawn_from_its_own_file(tmp_path: Path) -> None:
    text = (topology.files.folder() / "laptop-8c.toml").read_text()
    for folder in ("a", "b", "c"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "m.toml").write_text(text.replace("Ryzen", f"machine {folder}"))
    names = ["./b/m.toml", "../c/m.toml", str(tmp_path / "a" / "m.toml"), "laptop-8c"]
    run = made_run(*(made_cell(topology=name) for name in names))
    run.run.files = {str(tmp_path / folder / "m.toml"): "" for folder in ("a", "b", "c")}
    drawn = [re.findall("machine [abc]|Ryzen", each)[0] for each in machines_of(html.page(run))]
    assert drawn == ["machine b", "machine c", "machine a", "Ryzen"]


def machines_of(page: str) -> list[str]:
    """What is said of each."""
    return page.partition('id="machines"')[2].partition('id="cells"')[0].split("<h3>")[1:]


def test_what_is_not_known_of_the_machine_is_told() -> None:
    run = made_run(made_cell(bottleneck=Bottleneck(name="lru_lock", kind="lock", share=0.31)))
    assert "HOW SURE" not in html.page(run)
    design = DesignUncertainty(
        rmap="b", median=2.0, p10=1.25, p90=3.0, min=1.0, max=4.0, hangs_on={"c2c.l3_ns": 0.9}
    )
    run.run.uncertainty = [
        Uncertainty(
            topology="t",
            cpus=2,
            workload="w",
            mm="m",
            baseline="a",
            draws=20,
            seed=1,
            designs=[design],
        )
    ]
    written = html.page(run)
    assert "HOW SURE: w on 2 CPUs of t, 20 draws" in written
    assert "1.25" in written
    assert "lru_lock 31%" in written


def test_everything_of_the_configuration_is_there() -> None:
    run = made_run(made_cell())
    run.run.experiment = {"seed": 7, "matrix": {"rmap": ["single"]}}
    run.run.command = ["run", "--rmap", "a b"]
    written = html.page(run)
    assert "seed = 7" in written
    assert "emu run --rmap &#x27;a b&#x27;" in written
    assert "emu run again.toml" in written


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report that the command has written."""
    folder = tmp_path_factory.mktemp("html")
    done = emu(
        *("run", "--engine", "virtual", "--rmap", "single,numa-locks", "--cpus", "1,8,40"),
        *("--duration", "1ms", "--repeats", "2", "--store", str(folder / "store")),
        *("--html", str(folder / "report.html")),
    )
    assert done.returncode == 0, done.stderr
    assert f"Report: {folder / 'report.html'}" in done.stdout
    return folder


def test_emu_report_writes_the_same(real: Path) -> None:
    again = real / "again.html"
    store = ("--store", str(real / "store"))
    done = emu("report", "last", "--format", "html", "-o", str(again), *store)
    assert (done.returncode, done.stdout) == (0, "")
    assert again.read_bytes() == (real / "report.html").read_bytes()


def test_a_place_that_cannot_be_written_is_refused_before_the_run() -> None:
    done = emu("run", "--html", "/nowhere/report.html")
    assert done.returncode == 2
    assert done.stderr == "emu: --html /nowhere/report.html: no file can be written there\n"


def test_a_run_takes_its_report_with_it(tmp_path: Path) -> None:
    from emu.store import Store

    store = Store(tmp_path / "store")
    run = package.run(
        engine="virtual", rmap="single", cpus="1", duration="1ms", store=store.directory
    )
    report = store.report_path(run.run.id)
    report.write_text("a report")
    store.remove(run.run.id)
    assert not report.exists()


# ---- in a browser ----


@pytest.fixture
def browser() -> Iterator[Browser]:
    if FOUND is None:
        pytest.skip("no chromium here: apt install chromium")
    with Browser() as found:
        yield found
        assert found.errors == []
        assert {url.partition(":")[0] for url in found.requests} <= {"file", "data", "blob"}


DRAWN = """[...document.querySelectorAll(".plot")].map((plot) => {
    const marks = ".scatterlayer .trace, .bars .point, .heatmaplayer image";
    return [plot.id, plot.querySelectorAll(marks).length];
})"""


@pytest.mark.parametrize("width", [1400, 400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_plot_is_drawn_and_fits(
    browser: Browser, real: Path, width: int, scheme: str
) -> None:
    browser.look_as(width, scheme)
    browser.open(real / "report.html")
    drawn = dict(browser.run(DRAWN))
    assert set(drawn) == {
        *("scaling-0", "speed-up-0", "latency-0", "waiting-0"),
        *("time-stacks-0", "transfers-0", "memory-0"),
    }
    assert min(drawn.values()) > 0, drawn
    assert browser.run("document.documentElement.scrollWidth <= window.innerWidth")
    colour = browser.run("getComputedStyle(document.body).backgroundColor")
    assert (sum(json.loads(f"[{colour[4:-1]}]")) > 380) == (scheme == "light")


SHOWN = '[...document.querySelectorAll("#table tbody tr")].filter((row) => !row.hidden).length'


def test_cells_are_filtered_and_sorted_with_the_keyboard(browser: Browser, real: Path) -> None:
    browser.look_as(1400, "light")
    browser.open(real / "report.html")
    assert browser.run(SHOWN) == 12
    browser.run('document.getElementById("filter").focus()')
    browser.type("NUMA 40")
    assert browser.run(SHOWN) == 2
    assert browser.run('document.getElementById("count").textContent') == "2 of 12 cells"
    browser.run('document.getElementById("clear").focus()')
    browser.press("Enter", 13)
    assert browser.run(SHOWN) == 12
    browser.run("""{
        const select = [...document.querySelectorAll(".filters select")].at(-1);
        select.value = "8";
        select.dispatchEvent(new Event("change"));
    }""")
    assert browser.run(SHOWN) == 4
    sort = '[...document.querySelectorAll("thead button")].find((b) => b.textContent === "ops/s")'
    browser.run(f"{sort}.focus()")
    rates = (
        '[...document.querySelectorAll("#table tbody tr")].map((r) => +r.cells[4].dataset.value)'
    )
    browser.press("Enter", 13)
    assert browser.run(rates) == sorted(browser.run(rates))
    browser.press("Enter", 13)
    assert browser.run(rates) == sorted(browser.run(rates), reverse=True)
    assert browser.run(f"{sort}.parentElement.ariaSort") == "descending"


def test_plots_can_be_changed(browser: Browser, real: Path) -> None:
    browser.look_as(1400, "light")
    browser.open(real / "report.html")
    figure = 'document.getElementById("waiting-0").closest("figure")'
    values = 'JSON.stringify(document.getElementById("waiting-0").data.map((t) => t.x))'
    before = browser.run(values)
    browser.run(f"""{{
        const select = {figure}.querySelector("select");
        select.value = "8";
        select.dispatchEvent(new Event("change"));
    }}""")
    assert browser.run(values) != before
    browser.run('document.querySelector("#scaling-0 ~ .legend button").focus()')
    browser.press("Enter", 13)
    away = 'document.getElementById("scaling-0").data.map((trace) => trace.visible)'
    assert browser.run(away) == [False, True]
    browser.run(f'{figure}.querySelector("summary").click()')
    rows = browser.run(f'{figure}.querySelectorAll("tbody tr").length')
    assert rows == 2
    assert re.fullmatch(r"\d+\.\d\d%", browser.run(f'{figure}.querySelector("td").textContent'))
    browser.run('document.getElementById("theme").click()')
    assert browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 28)"


def test_latencies_are_said_with_their_units(browser: Browser, real: Path) -> None:
    browser.look_as(1400, "light")
    browser.open(real / "report.html")
    figure = 'document.getElementById("latency-0").closest("figure")'
    browser.run(f'{figure}.querySelector("summary").click()')
    cells = "(row) => [...row.cells].map((cell) => cell.innerText)"
    shown = browser.run(f'[...{figure}.querySelectorAll("tbody tr")].map({cells})')
    assert shown[0][0] == "0%"
    percents = [float(row[0].removesuffix("%")) for row in shown]
    assert percents == sorted(percents) and 90 <= percents[-1] < 100
    said = [cell for row in shown for cell in row[1:] if cell != "-"]
    assert len(said) > 20
    assert all(re.fullmatch(r"[\d.]+ (ns|µs|ms)", cell) for cell in said)
    # The same percentiles for all designs, up to where the first curve ends.
    assert not any("-" in row for row in shown[:12])
    of_point = 'document.getElementById("latency-0").data[0].customdata[0]'
    assert re.fullmatch(r"0%: [\d.]+ (ns|µs|ms)", browser.run(of_point))


def test_a_plot_is_saved_as_svg(browser: Browser, real: Path, tmp_path: Path) -> None:
    browser.look_as(1400, "dark")
    browser.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    browser.open(real / "report.html")
    browser.run('document.querySelector("#scaling-0 ~ .below .save").click()')
    saved = tmp_path / "scaling-0.svg"
    wait_until(saved.exists)
    drawn = saved.read_text()
    assert drawn.startswith("<svg")
    assert "numa-locks" in drawn


def test_hostile_names_are_shown_as_they_are(browser: Browser, tmp_path: Path) -> None:
    report = tmp_path / "hostile.html"
    report.write_text(html.page(hostile_run()), encoding="utf-8")
    browser.look_as(1400, "light")
    browser.open(report)
    assert browser.run('document.querySelectorAll("img").length') == 0
    legend = browser.run('document.querySelector("#scaling-0 ~ .legend").textContent')
    assert HOSTILE in legend
    axis = browser.run('document.querySelector("#memory-0 .yaxislayer-above").textContent')
    assert "<script>" in axis
