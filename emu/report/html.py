# SPDX-License-Identifier: MIT
"""The HTML report: one file with everything in it, that works without a network.

``emu.report.figures`` says what is drawn; here it becomes a page, with the table of all cells, the
machines and the configuration. Names come from users' files and may be anything: in HTML they are
escaped, in JSON no ``<`` remains, and the page's policy runs no script but the two that are in it.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import os
import shlex
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from string import Template

import msgspec
import numpy as np

from emu import experiment, host, topology
from emu.errors import InputError
from emu.files import is_path
from emu.report.figures import Figure, Section, sections
from emu.report.table import print_uncertainty
from emu.results import KIND, CellResult, Run
from emu.stats import unstable
from emu.terminal import plain_console
from emu.words import counted

_PAGE = Path(__file__).parent / "page"
_FILTERS = ("kind", "workload", "topology", "mm", "rmap", "CPUs", "status")
_WHAT = {"native": "measured on this host", "virtual": "predicted by a model of the machine"}


def page(run: Run) -> str:
    """The report of a run."""
    import plotly.offline

    info = run.run
    found = sections(run)
    kinds = dict.fromkeys(section.engine for section in found)
    what = "; ".join(f"{engine} engine: {_WHAT.get(engine, engine)}" for engine in kinds)
    name = str(info.experiment.get("name", "")) or "designs side by side"
    plots = {
        _id(number, figure): [
            {"choice": each.choice, "traces": each.traces, "layout": each.layout}
            for each in figure.variants
        ]
        for number, section in enumerate(found)
        for figure in section.figures
    }
    scripts = {
        "plotly": _newlines(plotly.offline.get_plotlyjs()),
        "script": _newlines((_PAGE / "page.js").read_text(encoding="utf-8")),
    }
    contents = [
        *(
            (f"s{number}", f"{section.title} ({section.kind})")
            for number, section in enumerate(found)
        ),
        *([("how-sure", "How sure")] if run.run.uncertainty else []),
        ("machines", "Machines"),
        ("cells", "All cells"),
        ("configuration", "Configuration"),
    ]
    template = Template((_PAGE / "page.html").read_text(encoding="utf-8"))
    return template.substitute(
        policy=_policy(scripts.values()),
        title=_text(f"mm-emu: {name}, {info.id}"),
        heading=_text(f"mm-emu: {name}"),
        summary=_text(
            f"Run {info.id} of {info.started}, {counted(len(run.cells), 'cell')}, "
            f"mm-emu {info.version}; {what}."
        ),
        style=(_PAGE / "page.css").read_text(encoding="utf-8"),
        contents="".join(f'<a href="#{key}">{_text(title)}</a>' for key, title in contents),
        messages="".join(_messages(run)),
        sections="".join(_section(number, each) for number, each in enumerate(found))
        + _how_sure(run),
        machines="".join(_machines(run)),
        cells=_cells(run),
        configuration="".join(_configuration(run)),
        footer=_text(f"Made by mm-emu {info.version}. Plots: plotly.js, MIT licence."),
        figures=_json(plots),
        **scripts,
    )


def _text(value: object) -> str:
    """Escaped, for content and for attributes in double quotes."""
    return html.escape(str(value))


def _newlines(text: str) -> str:
    """As a browser reads it, of which the policy has the digest."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _policy(scripts: Iterable[str]) -> str:
    digests = (base64.b64encode(hashlib.sha256(each.encode()).digest()) for each in scripts)
    allowed = " ".join(f"'sha256-{digest.decode()}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )


def _json(value: object) -> str:
    """JSON in which HTML finds neither an element's end nor anything else."""
    text = msgspec.json.encode(value).decode()
    for letter in "<>&":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


def _id(number: int, figure: Figure) -> str:
    return f"{figure.key}-{number}"


def _kind(engine: str) -> str:
    kind = KIND.get(engine, engine)
    return f'<span class="kind {_text(kind)}">{_text(kind)} ({_text(engine)})</span>'


def _messages(run: Run) -> Iterator[str]:
    """What a reader has to know before looking at any figure."""
    if run.run.status != "done":
        yield f'<p class="message bad">The run is not complete: {_text(run.run.status)}.</p>'
    for cell in run.failed:
        cpus = counted(cell.cpus, "CPU")
        what = f"{cell.rmap}, {cell.mm} on {cpus}, {cell.workload} ({cell.engine})"
        yield f'<p class="message bad">Failed: {_text(what)}: {_text(cell.error)}</p>'
    lines = unstable(run.cells)
    if any(cell.engine == "native" for cell in run.cells):
        lines += host.disturbances_of_run(run.run.host, run.run.nodes)
    for line in lines:
        yield f'<p class="message">{_text(line)}</p>'


# ---- figures ----


def _section(number: int, section: Section) -> str:
    figures = "".join(_figure(number, section, figure) for figure in section.figures)
    note = f'<p class="note">{_text(section.note)}</p>' if section.note else ""
    if not figures:
        note += '<p class="message bad">No cell of these ran to its end.</p>'
    return (
        f'<details class="sweep" id="s{number}"{" open" if number < 2 else ""}>'
        f"<summary><h2>{_text(section.title)}</h2> {_kind(section.engine)}</summary>"
        f'{note}<div class="figures">{figures}</div></details>\n'
    )


def _figure(number: int, section: Section, figure: Figure) -> str:
    key = _id(number, figure)
    title = f"{figure.title}, {section.kind}: {section.title}"
    return (
        f'<figure><figcaption><div class="top"><h3>{_text(figure.title)}</h3> '
        f"{_kind(section.engine)}</div><p>{_text(figure.about)}</p>{_choices(figure)}</figcaption>"
        f'<div class="plot" id="{key}" role="img" aria-label="{_text(title)}"></div>'
        '<p class="none" hidden>There is nothing for this choice.</p>'
        '<div class="legend" role="group" aria-label="What is shown"></div>'
        '<div class="below"><details><summary>As numbers</summary>'
        f'<div class="scroll" tabindex="0" role="region" aria-label="Numbers: {_text(title)}">'
        '</div></details><button type="button" class="save">Save as SVG</button></div></figure>\n'
    )


def _choices(figure: Figure) -> str:
    """A list to choose from for whatever variants differ in."""
    last = figure.variants[-1].choice
    lists = []
    for name in last:
        values = list(dict.fromkeys(each.choice[name] for each in figure.variants))
        options = "".join(_option(value, selected=value == last[name]) for value in values)
        lists.append(
            f'<label>{_text(name)} <select name="{_text(name)}">{options}</select></label>'
        )
    return f'<div class="choices">{"".join(lists)}</div>' if lists else ""


def _option(value: str, *, selected: bool = False) -> str:
    mark = " selected" if selected else ""
    return f'<option value="{_text(value)}"{mark}>{_text(value)}</option>'


def _how_sure(run: Run) -> str:
    """Intervals of the speed-ups where the machine's numbers were varied."""
    if not run.run.uncertainty:
        return ""
    out = io.StringIO()
    print_uncertainty(run.run.uncertainty, plain_console(out))
    return (
        f'<section id="how-sure"><h2>How sure {_kind("virtual")}</h2>'
        f'<pre tabindex="0">{_text(out.getvalue().strip())}</pre></section>'
    )


# ---- machines ----


def _machines(run: Run) -> Iterator[str]:
    """Each machine as boxes, and its whole description."""
    for name in dict.fromkeys(cell.topology for cell in run.cells):
        yield f"<h3>{_text(name)}</h3>"
        if name == "host":
            about = [str(run.run.host.get(key, "?")) for key in ("model", "cpus", "kernel")]
            yield _definitions(zip(("CPU", "CPUs", "Linux"), about, strict=True))
            continue
        try:
            machine = topology.load(_found(name, run))
        except InputError as error:
            yield f'<p class="note">It cannot be drawn: {_text(error)}</p>'
            continue
        yield f'<p class="note">{_text(machine.summary())}</p>'
        yield f'<div class="machine">{"".join(_boxes(machine))}</div>'
        yield "<details><summary>Distances, latencies and their sources</summary>"
        yield f'<pre tabindex="0">{_text(machine.render())}</pre></details>'


def _found(name: str, run: Run) -> str:
    """The file that a topology of the user's own came from; several may differ in folder only."""
    if not is_path(name):
        return name
    end = tuple(part for part in Path(os.path.normpath(name)).parts if part != "..")
    return next((path for path in run.run.files if Path(path).parts[-len(end) :] == end), name)


def _boxes(machine: topology.Topology) -> Iterator[str]:
    for socket in np.unique(machine.socket_of_cpu).tolist():
        inside = machine.socket_of_cpu == socket
        nodes = []
        for node in np.unique(machine.node_of_cpu[inside]).tolist():
            cpus = np.flatnonzero(machine.node_of_cpu == node).tolist()
            caches = len(np.unique(machine.l3_of_cpu[cpus]))
            nodes.append(
                f'<div class="node"><b>node {node}</b>{counted(len(cpus), "CPU")}, {caches} L3<br>'
                f"{_text(topology.format_cpu_list(cpus))}</div>"
            )
        yield (
            f'<div class="socket"><b>socket {socket}</b><div class="nodes">{"".join(nodes)}</div>'
            "</div>"
        )


# ---- the table ----


def _cells(run: Run) -> str:
    columns: list[tuple[str, bool]] = [
        *(("cell", True), ("kind", False), ("rmap", False), ("CPUs", True), ("ops/s", True)),
        *(("waiting", True), ("exec p50 µs", True), ("exec p99 µs", True), ("bytes/VMA", True)),
        *(("bottleneck", False), ("repeat", True), ("workload", False), ("topology", False)),
        ("mm", False),
        *(("status", False), ("error", False)),
    ]
    names = [name for name, _ in columns]
    rows = [_row(number, cell) for number, cell in enumerate(run.cells)]
    filters = []
    for name in _FILTERS:
        values = list(dict.fromkeys(row[names.index(name)][0] for row in rows))
        if len(values) > 1:
            options = '<option value="">all</option>' + "".join(map(_option, values))
            filters.append(
                f'<label>{_text(name)} <select data-column="{names.index(name)}">{options}'
                "</select></label>"
            )
    head = "".join(
        f'<th scope="col"{_number(number)}><button type="button">{_text(name)}</button></th>'
        for name, number in columns
    )
    body = "".join(
        "<tr>"
        + "".join(
            f"<td{_number(number) or (' class=error' if name == 'error' else '')}"
            f"{f' data-value={chr(34)}{_text(key)}{chr(34)}' if number else ''}>{_text(shown)}</td>"
            for (name, number), (shown, key) in zip(columns, row, strict=True)
        )
        + "</tr>\n"
        for row in rows
    )
    return (
        '<div class="filters"><label>Filter <input id="filter" type="search" '
        'placeholder="words, as numa 64"></label>'
        f'{"".join(filters)}<button id="clear" type="button">Clear</button>'
        '<span id="count" role="status"></span></div>'
        '<div class="scroll" tabindex="0" role="region" aria-label="All cells">'
        f'<table id="table"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _number(number: bool) -> str:
    return ' class="number"' if number else ""


def _row(number: int, cell: CellResult) -> list[tuple[str, str]]:
    """What each column shows, and what it is sorted by."""

    def value(shown: float | None, form: str) -> tuple[str, str]:
        return ("-", "") if shown is None else (format(shown, form), repr(shown))

    latency = cell.latency_ns.get("exec")
    known = latency if latency and latency.count else None
    kind = KIND.get(cell.engine, cell.engine)
    limit = f"{cell.bottleneck.name} {cell.bottleneck.share:.0%}" if cell.bottleneck else "-"
    texts = (cell.workload, cell.topology, cell.mm, cell.status, cell.error or "")
    return [
        value(number, "d"),
        (kind, kind),
        (cell.rmap, cell.rmap),
        value(cell.cpus, "d"),
        value(cell.ops_per_s if cell.ok else None, ",.0f"),
        value(cell.wait_share if cell.ok else None, ".1%"),
        value(known.p50 / 1000 if known else None, ",.1f"),
        value(known.p99 / 1000 if known else None, ",.1f"),
        value(cell.memory.bytes_per_vma if cell.ok else None, ",d"),
        (limit, limit),
        value(cell.repeat, "d"),
        *((text, text) for text in texts),
    ]


# ---- the configuration ----


def _configuration(run: Run) -> Iterator[str]:
    info = run.run
    yield "<p>To run it again, on this machine and on any other with mm-emu:</p>"
    yield (
        f'<pre tabindex="0">emu run {_text(shlex.quote(info.id))}   # where it is stored\n'
        "emu run again.toml   # elsewhere, with the file below</pre>"
    )
    rows = [("Started by", shlex.join(["emu", *info.command])), ("Run", info.id)]
    rows += [(str(key), _listed(value)) for key, value in info.build.items() if value]
    rows += [(f"host {key}", str(value)) for key, value in info.host.items() if value]
    rows += [
        (f"{name} {key}", str(value))
        for name, about in info.nodes.items()
        for key, value in about.items()
        if value
    ]
    rows += [(path, f"SHA-256 {digest}") for path, digest in info.files.items()]
    yield _definitions(rows)
    yield "<h3>again.toml: every default filled in</h3>"
    yield f'<pre tabindex="0">{_text(experiment.to_toml(info.experiment))}</pre>'


def _listed(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _definitions(rows: Iterable[Sequence[str]]) -> str:
    inside = "".join(f"<dt>{_text(key)}</dt><dd>{_text(value)}</dd>" for key, value in rows)
    return f"<dl>{inside}</dl>"
