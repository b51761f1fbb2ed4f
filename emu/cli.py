"""The command ``emu``: options in, tables or JSON out. A thin layer over ``emu.run``, ``emu.load``.

Exit status: 0 done, 1 a cell failed, 2 the input was wrong (one line on stderr), 130 interrupted.
"""

from __future__ import annotations

import errno
import itertools
import os
import re
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, cast, get_args

# Before numpy is loaded: workers are forked from this process, and threads do not survive that.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import typer
from rich.table import Table

from emu import _core, cli_check, cli_host, cli_live, cli_topology, experiment, host, topology
from emu import record as recorder
from emu import validate as validation
from emu import workload as workloads
from emu._version import __version__
from emu.cli_options import StoreOption
from emu.comparison import LAYOUTS, side
from emu.comparison import compare as compare_sides
from emu.coordinator import Interrupted, StopFlag
from emu.errors import USED_UP, EmuError, InputError, unknown
from emu.files import as_utf8, check_output, is_path, write_output
from emu.progress import ProgressBar
from emu.record import Each
from emu.report import html, mail, plot, text
from emu.report.export import EXPORTS
from emu.report.table import cell_name, print_run
from emu.report.trace import DEFAULT_WINDOW
from emu.results import Run
from emu.schedule import Progress
from emu.store import Store
from emu.terminal import LOOK, SafeConsole, printable, stdout_console
from emu.words import counted

_REPORTS = ("html", "text", *plot.FORMATS, *text.FORMATS)

app = typer.Typer(
    name="emu",
    help="Locking designs for i_mmap and mmap_lock, side by side.",
    epilog="Example: emu run --rmap single,numa-locks, and emu COMMAND --help for each",
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(cli_topology.app)
app.command()(cli_check.check)
app.command()(cli_check.new)
app.command()(cli_host.calibrate)
app.command()(cli_host.compare_kernel)
app.command()(cli_live.live)


@app.callback(invoke_without_command=True)
def _top(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    if version:
        typer.echo(f"mm-emu {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command(epilog="Example: emu run --rmap single,numa-locks --engine virtual --cpus 1..384")
def run(
    experiment_name: Annotated[
        str | None,
        typer.Argument(
            metavar="[EXPERIMENT]",
            help="A TOML file with the same words as the options, the name of one that comes with "
            "mm-emu, or a run of the store, to run it again.",
        ),
    ] = None,
    rmap: Annotated[
        str | None,
        typer.Option(
            metavar="A,B|./x.c",
            help="rmap designs; with parameters: name:k=v,k=v.  "
            "Default: single,numa-trees,numa-locks; single if no workload has processes",
        ),
    ] = None,
    mm: Annotated[
        str | None, typer.Option(metavar="C", help="mm designs.  Default: per-vma-lock")
    ] = None,
    topology: Annotated[
        str | None,
        typer.Option(
            metavar="T|FILE|host",
            help="Machines.  Default: host if native, hygon-12x32 if virtual",
        ),
    ] = None,
    cpus: Annotated[
        str | None,
        typer.Option(
            metavar="1,2,4..384",
            help="Numbers of CPUs; a..b doubles from a and ends with b.  Default: this machine's "
            "if native, the topology's if virtual (1..384 on the default topology)",
        ),
    ] = None,
    workload: Annotated[
        str | None, typer.Option(metavar="W|FILE", help="Workloads.  Default: execl")
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(
            metavar="native,virtual",
            help="This machine, a modelled one in virtual time, or both.  Default: native; "
            "both without any option",
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(metavar="N", help="Seed; repeat r runs with N + r.  Default: 1")
    ] = None,
    repeats: Annotated[
        int | None,
        typer.Option(metavar="N", help="Repeats; designs take turns.  Default: 3, 1 if virtual"),
    ] = None,
    duration: Annotated[
        str | None,
        typer.Option(metavar="20ms", help="Measured time of a cell.  Default: 1s, 10ms if virtual"),
    ] = None,
    timeout: Annotated[
        str | None,
        typer.Option(metavar="5m", help="A cell that takes longer fails.  Default: 30m"),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RULE", help='Leave cells out: "rmap=btree cpus=32..384".  May be repeated'
        ),
    ] = None,
    include: Annotated[
        list[str] | None,
        typer.Option(metavar="RULE", help='More cells: "rmap=single cpus=384".  May be repeated'),
    ] = None,
    numa_penalty: Annotated[
        str | None,
        typer.Option(
            metavar="on|off",
            help="Add the topology's extra time when a lock or tree line changes node.  "
            "Default: off",
        ),
    ] = None,
    isolate: Annotated[
        bool | None,
        typer.Option(
            "--isolate",
            help="Without the locks and lines of the rest of the kernel: i_mmap's alone.",
        ),
    ] = None,
    arena_size: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Shared memory, as 512M.  Default: what is needed"),
    ] = None,
    uncertainty: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="Run on N machines more, whose uncertain numbers are drawn within their spread, "
            "and tell how far the speed-ups move (virtual).",
        ),
    ] = 0,
    json_file: Annotated[
        str | None,
        typer.Option("--json", metavar="FILE|-", help="Write JSON; -: to stdout, and no table."),
    ] = None,
    html_file: Annotated[
        Path | None,
        typer.Option(
            "--html",
            metavar="FILE",
            help="Write a report with plots.  Default: none; beside the store without any option",
        ),
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write a trace for ui.perfetto.dev: what each CPU did.  One virtual cell only",
        ),
    ] = None,
    trace_window: Annotated[
        str | None,
        typer.Option(
            metavar="START+LENGTH",
            help=f"What of the measured phase is traced, as 2ms+500us.  Default: {DEFAULT_WINDOW}",
        ),
    ] = None,
    store: StoreOption = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Begin anew where a run could be gone on with.")
    ] = False,
    jobs: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Virtual cells at once.  Default: this machine's CPUs, the last cell beside them",
        ),
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            metavar="tcp://HOST:8786",
            help="Run the cells on the workers of this Dask scheduler.  Default: here",
        ),
    ] = None,
) -> None:
    """Run designs side by side and compare them.

    Without options: three rmap designs, the execl workload, measured on this machine's CPUs and
    predicted for 1 to 384 CPUs of the hygon-12x32 server. With an option: this machine only.

    What an interrupted run of the same experiment has finished is kept; the same command goes on.
    """
    if json_file and json_file != "-":
        check_output("--json", Path(json_file))
    if html_file:
        check_output("--html", html_file)
    options: dict[str, Any] = {
        "rmap": rmap,
        "mm": mm,
        "topology": topology,
        "cpus": cpus,
        "workload": workload,
        "engine": engine,
        "seed": seed,
        "repeats": repeats,
        "duration": duration,
        "timeout": timeout,
        "exclude": exclude or None,
        "include": include or None,
        "numa_penalty": numa_penalty,
        "isolate": isolate,
        "arena_size": arena_size,
    }
    # Until the very end: a second Ctrl-C must not cut off the output.
    stop = StopFlag(restore=False).__enter__()
    with ProgressBar() as bar:
        result = experiment.run(
            experiment_name,
            **options,
            uncertainty=uncertainty,
            store=store,
            fresh=fresh,
            jobs=jobs,
            cluster=cluster,
            progress=lambda now: bar.update(*_how_far(now)),
            on_failure=lambda cell: bar.say(f"{cell_name(cell)}: {cell.error}"),
            trace=trace,
            trace_window=trace_window,
            on_notice=bar.say,
            stop=stop,
        )
    if json_file == "-":
        sys.stdout.buffer.write(result.to_json())
    else:
        if json_file:
            write_output(Path(json_file), result.to_json())
        print_run(result, stdout_console())
        nothing_said = experiment_name is None and all(each is None for each in options.values())
        if html_file is None and nothing_said:
            html_file = Store(store).report_path(result.run.id)
    if html_file and result.cells:
        write_output(html_file, html.page(result).encode())
        where = printable(str(html_file.resolve()))
        print(f"Report: {where}", file=sys.stderr if json_file == "-" else None)
    if result.run.status == "interrupted":
        raise typer.Exit(130)
    if result.failed:
        raise typer.Exit(1)


@app.command("list", epilog="Example: emu list designs")
def list_(
    what: Annotated[str, typer.Argument(metavar="designs|topologies|workloads|experiments")],
) -> None:
    """List what there is to choose from."""
    lists = {
        "designs": _designs,
        "topologies": _topologies,
        "workloads": _workloads,
        "experiments": _experiments,
    }
    if what not in lists:
        raise unknown("list", what, lists)
    _print_table(lists[what]())


@app.command(epilog="Example: emu show last --config > again.toml; emu run again.toml")
def show(
    name: Annotated[
        str, typer.Argument(metavar="RUN", help="Id, beginning of an id, last, or a JSON file.")
    ],
    json_file: Annotated[
        str | None, typer.Option("--json", metavar="-", help="Print the JSON instead.")
    ] = None,
    config: Annotated[
        bool,
        typer.Option("--config", help="Print the experiment as TOML, complete."),
    ] = False,
    store: StoreOption = None,
) -> None:
    """Show the table of a stored run again."""
    result = Store(store).load(name)
    if config and json_file is not None:
        raise InputError("--config and --json: one of them")
    if config:
        sys.stdout.write(_config_of(result))
    elif json_file is None:
        print_run(result, stdout_console())
    elif json_file == "-":
        sys.stdout.buffer.write(result.to_json())
    else:
        raise InputError(f"--json {json_file}: only - here; emu export writes files")


@app.command(epilog="Example: emu runs")
def runs(
    store: StoreOption = None,
) -> None:
    """List the stored runs, oldest first."""
    rows = [("run", "experiment", "engines", "cells", "failed", "status")]
    for each in Store(store).summaries():
        cells = f"{each.done}/{each.total}"
        rows.append((each.id, each.name or "-", each.engines, cells, f"{each.failed}", each.status))
    _print_table(rows)


@app.command(epilog="Example: emu rm 20260131-235959")
def rm(
    names: Annotated[list[str], typer.Argument(metavar="RUN...", help="As emu runs lists them.")],
    store: StoreOption = None,
) -> None:
    """Remove stored runs."""
    where = Store(store)
    for run_id in dict.fromkeys([where.find_id(name) for name in names]):
        where.remove(run_id)


@app.command(epilog="Example: emu export last --format csv -o cells.csv")
def export(
    name: Annotated[
        str, typer.Argument(metavar="RUN", help="Id, beginning of an id, last, or a JSON file.")
    ],
    form: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="|".join(EXPORTS),
            help="json: all that is known; csv and parquet: a row a cell.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Where to.  Default: stdout"),
    ] = None,
    store: StoreOption = None,
) -> None:
    """Write a stored run for other programs."""
    if form not in EXPORTS:
        raise unknown("format", form, EXPORTS)
    data = EXPORTS[form](Store(store).load(name))
    if output is None:
        sys.stdout.buffer.write(data)
    else:
        write_output(output, data)


@app.command(epilog="Example: emu system")
def system() -> None:
    """Show what on this machine matters to measurements, and what disturbs them."""
    about = host.info() | host.state()
    rows = [("what", "is")]
    for key, value in about.items():
        parts = value.items() if isinstance(value, dict) else [("", value)]
        rows += [(f"{key} {part}".strip(), str(each)) for part, each in parts]
    _print_table(rows)
    for line in host.disturbances(about):
        print(line)


@app.command(epilog="Example: emu compare last:single last:numa-locks --layout lkp")
def compare(
    base: Annotated[
        str, typer.Argument(metavar="RUN[:DESIGN]", help="A run, or one of its designs.")
    ],
    other: Annotated[str, typer.Argument(metavar="RUN[:DESIGN]", help="What to compare with it.")],
    layout: Annotated[
        str,
        typer.Option(
            metavar="|".join(LAYOUTS),
            help="As a table with intervals, as the kernel test robot, or as mmtests print it; "
            "~: no difference.",
        ),
    ] = LAYOUTS[0],
    store: StoreOption = None,
) -> None:
    """Compare two runs, or two designs of one: by how much, and is it more than chance?"""
    if layout not in LAYOUTS:
        raise unknown("layout", layout, LAYOUTS)
    load = Store(store).load
    print(printable(compare_sides(side(base, load), side(other, load)).text(layout)))


@app.command(epilog="Example: emu report last --format folded -o waits.folded")
def report(
    name: Annotated[
        str, typer.Argument(metavar="RUN", help="Id, beginning of an id, last, or a JSON file.")
    ],
    form: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="|".join(_REPORTS),
            help="A page with plots; a mail of 72 columns; a plot for a paper; locks as "
            "/proc/lock_stat; cache lines as perf c2c; stacks of waiting for flamegraph.pl and "
            "speedscope; a row a cell; HdrHistogram's percentiles and log.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Where to.  Default: stdout"),
    ] = None,
    cell: Annotated[
        str | None,
        typer.Option(metavar="N|RMAP", help="One cell, from 0, or a design's.  Default: all"),
    ] = None,
    op: Annotated[
        str | None,
        typer.Option(
            metavar="OP", help="One operation, as exec (hgrm and hlog only).  Default: all"
        ),
    ] = None,
    which: Annotated[
        str | None,
        typer.Option(
            "--plot",
            metavar="PLOT",
            help="Of the page's plots (png and svg only): scaling, speed-up, latency, waiting, "
            "time-stacks, transfers, walkers, memory; chosen further as "
            "latency:operation=fork,cpus=64.  Default: the first",
        ),
    ] = None,
    store: StoreOption = None,
) -> None:
    """Write a stored run as a page, for a mail, or in the layout of another tool.

    Example: emu report last --format html -o report.html

    Example: emu report last --format svg --plot speed-up -o speed-up.svg
    """
    if form not in _REPORTS:
        raise unknown("format", form, _REPORTS)
    if which is not None and form not in plot.FORMATS:
        raise InputError(f"--plot {which}: only --format {' and '.join(plot.FORMATS)} have plots")
    if op is not None and form not in text.OF_ONE_OPERATION:
        of_one = " and ".join(text.OF_ONE_OPERATION)
        raise InputError(f"--op {op}: only --format {of_one} have operations to choose from")
    result = Store(store).load(name)
    cells = text.choose(result, cell)
    if form in plot.FORMATS:
        result.cells = [each for _, each in cells]
        data = plot.image(result, form, which)
        if output is not None:
            write_output(output, data)
        elif sys.stdout.isatty():
            raise InputError(f"--format {form}: no terminal shows that; -o plot.{form}")
        else:
            sys.stdout.buffer.write(data)
        return
    if form in ("html", "text"):
        result.cells = [each for _, each in cells]
        written = mail.text(result) if form == "text" else html.page(result)
    else:
        layout = text.OF_ONE_OPERATION.get(form)
        written = layout(cells, op) if layout else text.FORMATS[form](cells)
    if form != "html":
        written = printable(written)
    if not written:
        print(f"emu: {name} has nothing to show as {form}", file=sys.stderr)
    if output is None:
        sys.stdout.write(written)
        return
    write_output(output, written.encode())


@app.command(
    epilog="Example: emu record -o ls.toml -- ls -l",
    context_settings={"allow_interspersed_args": False},
)
def record(
    command: Annotated[list[str], typer.Argument(metavar="COMMAND...", help="What to record.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The workload to write.")
    ],
    name: Annotated[str, typer.Option(metavar="NAME", help="Its name.  Default: the file's")] = "",
    each: Annotated[
        str,
        typer.Option(metavar="run|exec|fork", help="What an iteration is."),
    ] = "run",
    anonymise: Annotated[
        bool,
        typer.Option("--anonymise", help="Files are file1, file2 ...; the command is not told."),
    ] = False,
) -> None:
    """Record a command's memory and process calls with strace, as a workload to run.

    Example: emu record -o build.toml -- make -j4; emu run --workload ./build.toml --cpus 1,2
    """
    if each not in get_args(Each):
        raise unknown("iteration", each, get_args(Each))
    check_output("--output", output)
    recording = recorder.record(
        command, name=name or output.stem, each=cast(Each, each), anonymise=anonymise
    )
    write_output(output, recording.toml.encode())
    # Without either it would be the name of a workload that comes with mm-emu.
    shown = shlex.quote(str(output) if is_path(str(output)) else f"./{output}")
    print(f"{output}: emu run --workload {shown}", file=sys.stderr)


@app.command(epilog="Example: emu validate --row hygon-numa-locks --row emr-wait-share")
def validate(
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="[FILE]",
            help="Results of your own, as TOML; docs/validation.md has the form.  Default: those "
            "that come with mm-emu",
        ),
    ] = None,
    row: Annotated[
        list[str] | None,
        typer.Option(metavar="ID", help="A published result; again for more.  Default: all"),
    ] = None,
    duration: Annotated[
        str, typer.Option(metavar="40ms", help="Measured time of a cell, virtual.")
    ] = validation.DURATION,
    seed: Annotated[int, typer.Option(metavar="N", help="Seed; repeat r runs with N + r.")] = 1,
    repeats: Annotated[
        int, typer.Option(metavar="N", help="Repeats; medians are compared.")
    ] = validation.REPEATS,
    uncertainty: Annotated[
        int,
        typer.Option(
            metavar="N", help="For speed-ups: on N machines more, with drawn uncertain numbers."
        ),
    ] = 0,
    json_file: Annotated[
        str | None,
        typer.Option("--json", metavar="FILE|-", help="Write JSON; -: to stdout, and no table."),
    ] = None,
) -> None:
    """Compare the virtual engine with published results, row by row."""
    if json_file and json_file != "-":
        check_output("--json", Path(json_file))
    if uncertainty:
        experiment.check_draws(uncertainty)
    console = SafeConsole(stderr=True)

    def say(point: validation.Point) -> None:
        if console.is_terminal:
            console.print(
                f"{point.row}: {point.workload} on {counted(point.cpus, 'CPU')}", style="dim"
            )

    with StopFlag() as stop:
        found = validation.run_all(
            row or (),
            file=file,
            duration=duration,
            seed=seed,
            repeats=repeats,
            uncertainty=uncertainty,
            progress=say,
            stop=stop,
        )
    if found.interrupted and not found.points:
        raise typer.Exit(130)
    if json_file == "-":
        sys.stdout.buffer.write(found.to_json())
    else:
        if json_file:
            write_output(Path(json_file), found.to_json())
        validation.print_validation(found, stdout_console())
    if found.interrupted:
        raise typer.Exit(130)
    if any(point.note and "failed" in point.note for point in found.points):
        raise typer.Exit(1)


def _print_table(rows: Sequence[tuple[str, ...]]) -> None:
    """The first row is the heading."""
    table = Table(box=None, **LOOK)
    for heading in rows[0]:
        # The first are names to type.
        table.add_column(heading, overflow="fold", no_wrap=not table.columns)
    for row in rows[1:]:
        table.add_row(*row)
    stdout_console().print(table)


def _config_of(result: Run) -> str:
    """The experiment of a run as a file, with what it was run with in comments."""
    info = result.run
    build = ", ".join(f"{key} {value}" for key, value in info.build.items() if value)
    about = [
        f"run {info.id}, {info.started}, mm-emu {info.version}",
        f"emu {shlex.join(info.command)}",
        f"on {info.host.get('model', '?')}, Linux {info.host.get('kernel', '?')}",
        build,
        *(f"{path}: SHA-256 {digest}" for path, digest in info.files.items()),
    ]
    comments = "".join(f"# {_in_one_line(line)}\n" for line in about if line)
    return printable(comments + experiment.to_toml(info.experiment))


def _experiments() -> list[tuple[str, ...]]:
    names = experiment.names()
    about = [experiment.describe_file(experiment.path_of(name)) for name in names]
    return [("experiment", "what"), *zip(names, about, strict=True)]


def _designs() -> list[tuple[str, ...]]:
    core = _core.load("native")
    rows: list[tuple[str, ...]] = [("kind", "design", "parameters")]
    for number, kind in enumerate(_core.NAME_OF_KIND):
        for name in _core.design_names(kind):
            core.design_load(
                number, os.fsencode(_core.data_path("designs", kind, f"{name}.so")), None
            )
            rows.append((kind, name, "\n".join(core.design_params(kind))))
    core.design_unload()
    return rows


def _topologies() -> list[tuple[str, ...]]:
    names = ("host", *topology.names())
    return [("topology", "machine"), *((name, topology.load(name).summary()) for name in names)]


def _workloads() -> list[tuple[str, ...]]:
    names = workloads.names()
    return [("workload", "what"), *((name, workloads.load(name).description) for name in names)]


def _how_far(now: Progress) -> tuple[float, int, str]:
    """Cells that are done, parts of them included; all cells; and what is going on."""
    what = f"{len(now.running)} running"
    if now.left_s is not None:
        minutes = now.left_s / 60
        what += f", {now.left_s:.0f} s left" if minutes < 2 else f", {minutes:.0f} min left"
    if now.running:
        cell = now.running[0][0]
        what += f": {cell.rmap} on {cell.cpus}"
    return now.done + sum(share for _, share in now.running), now.total, what


def _in_one_line(text: object) -> str:
    return printable(" ".join(str(text).split()))


def _check_words(arguments: list[str]) -> None:
    """What is named goes into descriptions, which are UTF-8. A command to record is not ours."""
    recorded = arguments[:1] == ["record"] and "--" in arguments
    words = arguments[: arguments.index("--")] if recorded else arguments
    for before, word in itertools.pairwise(("emu", *words)):
        if as_utf8(word) != word:
            raise InputError(f"{as_utf8(word)}: is no UTF-8, as what is named here has to be")
        # As of "$VARIABLE" in a script: of a file it would be the folder that one is in.
        if not word or re.fullmatch(r"--[\w-]+=", word):
            what = word or f'{before} ""'
            raise InputError(f"{what}: is empty, where a name or a value belongs")


def _usage_error(error: Exception) -> str | None:
    """The message of an error of the option parser (typer has its own classes for them)."""
    message = getattr(error, "format_message", None)
    return str(message()) if callable(message) else None


def _call(arguments: list[str]) -> int:
    try:
        _check_words(arguments)
        status: Any = app(arguments, prog_name="emu", standalone_mode=False)
        sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except InputError as error:
        print(f"emu: {_in_one_line(error)}", file=sys.stderr)
        return 2
    except EmuError as error:
        print(f"emu: {_in_one_line(error)}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, typer.Abort, Interrupted):
        return 130
    except OSError as error:
        if error.errno not in (*USED_UP, errno.ENAMETOOLONG):
            raise
        where = f"{error.filename}: " if error.filename else ""
        print(f"emu: {_in_one_line(f'{where}{error.strerror}')}", file=sys.stderr)
        # All names that may be too long are the user's.
        return 2 if error.errno == errno.ENAMETOOLONG else 1
    except Exception as error:
        message = _usage_error(error)
        if message is None:
            raise
        if type(error).__name__ == "NoArgsIsHelpError":
            print(message, file=sys.stderr)
        else:
            said = " ".join(message.split()).removesuffix(".")
            print(f"emu: {said}; --help lists what there is", file=sys.stderr)
        return 2


def main() -> None:
    """The entry point of the command."""
    status = _call(sys.argv[1:])
    # Python takes its handlers away before it is gone; what is ignored stays ignored.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.exit(status)
