"""The command ``emu``: options in, tables or JSON out. A thin layer over ``emu.run``, ``emu.load``.

Exit status: 0 done, 1 a cell failed, 2 the input was wrong (one line on stderr), 130 interrupted.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Annotated, Any, cast, get_args

# Before numpy is loaded: workers are forked from this process, and threads do not survive that.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from emu import _core, cli_host, cli_topology, experiment, topology
from emu import record as recorder
from emu import workload as workloads
from emu._version import __version__
from emu.coordinator import StopFlag
from emu.errors import EmuError, InputError
from emu.experiment import unknown
from emu.record import Each
from emu.report import text
from emu.report.table import cell_name, plain_console, print_run
from emu.results import CellResult, Store, write_atomically

_PROGRESS_AFTER_S = 2.0

app = typer.Typer(
    name="emu",
    help="Locking designs for i_mmap and mmap_lock, side by side.",
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(cli_topology.app)
app.command()(cli_host.calibrate)
app.command()(cli_host.compare_kernel)


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


@app.command()
def run(
    experiment_file: Annotated[
        Path | None,
        typer.Argument(metavar="[EXPERIMENT.toml]", help="The same words as the options, in TOML."),
    ] = None,
    rmap: Annotated[
        str | None,
        typer.Option(
            metavar="A,B|./x.c",
            help="rmap designs; with parameters: name:k=v,k=v.  "
            "Default: single,numa-trees,numa-locks",
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
    numa_penalty: Annotated[
        str | None,
        typer.Option(
            metavar="on|off",
            help="Add the topology's extra time when a lock or tree line changes node.  "
            "Default: off",
        ),
    ] = None,
    arena_size: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Shared memory, as 512M.  Default: what is needed"),
    ] = None,
    json_file: Annotated[
        str | None,
        typer.Option("--json", metavar="FILE|-", help="Write JSON; -: to stdout, and no table."),
    ] = None,
    store: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where runs are kept.  Default: the user's data folder"),
    ] = None,
) -> None:
    """Run designs side by side and compare them.

    Without options: three rmap designs, the execl workload, measured on this machine's CPUs and
    predicted for 1 to 384 CPUs of the hygon-12x32 server. With an option: this machine only.
    """
    if json_file and json_file != "-":
        _check_writable(Path(json_file))
    # Until the very end: a second Ctrl-C must not cut off the output.
    stop = StopFlag(restore=False).__enter__()
    with _ProgressBar() as bar:
        result = experiment.run(
            experiment_file,
            rmap=rmap,
            mm=mm,
            topology=topology,
            cpus=cpus,
            workload=workload,
            engine=engine,
            seed=seed,
            repeats=repeats,
            duration=duration,
            numa_penalty=numa_penalty,
            arena_size=arena_size,
            store=store,
            progress=bar.update,
            on_failure=bar.say_failure,
            stop=stop,
        )
    if json_file == "-":
        sys.stdout.buffer.write(result.to_json())
    else:
        if json_file:
            write_atomically(Path(json_file), result.to_json())
        print_run(result, _console())
    if result.run.status == "interrupted":
        raise typer.Exit(130)
    if result.failed:
        raise typer.Exit(1)


@app.command("list")
def list_(
    what: Annotated[str, typer.Argument(metavar="designs|topologies|workloads")],
) -> None:
    """List what there is to choose from."""
    lists = {"designs": _designs, "topologies": _topologies, "workloads": _workloads}
    if what not in lists:
        raise experiment.unknown("list", what, lists)
    rows = lists[what]()
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for heading in rows[0]:
        table.add_column(heading, overflow="fold")
    for row in rows[1:]:
        table.add_row(*row)
    _console().print(table)


@app.command()
def show(
    name: Annotated[
        str, typer.Argument(metavar="RUN", help="Id, beginning of an id, last, or a JSON file.")
    ],
    json_file: Annotated[
        str | None, typer.Option("--json", metavar="-", help="Print the JSON instead.")
    ] = None,
    store: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where runs are kept.  Default: the user's data folder"),
    ] = None,
) -> None:
    """Show the table of a stored run again."""
    result = Store(store).load(name)
    if json_file is None:
        print_run(result, _console())
    elif json_file == "-":
        sys.stdout.buffer.write(result.to_json())
    else:
        raise InputError(f"--json {json_file}: only - here; the run is a JSON file in the store")


@app.command(epilog="Example: emu report last --format folded -o waits.folded")
def report(
    name: Annotated[
        str, typer.Argument(metavar="RUN", help="Id, beginning of an id, last, or a JSON file.")
    ],
    form: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="|".join(text.FORMATS),
            help="Locks as /proc/lock_stat; cache lines as perf c2c; stacks of waiting for "
            "flamegraph.pl and speedscope; a row a cell; HdrHistogram's percentiles.",
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
        typer.Option(metavar="OP", help="One operation, as exec (hgrm only).  Default: all"),
    ] = None,
    store: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where runs are kept.  Default: the user's data folder"),
    ] = None,
) -> None:
    """Write a stored run in the layout of another tool."""
    if form not in text.FORMATS:
        raise unknown("format", form, text.FORMATS)
    if op is not None and form != "hgrm":
        raise InputError(f"--op {op}: only --format hgrm has operations to choose from")
    cells = text.choose(Store(store).load(name), cell)
    written = text.hgrm(cells, op) if form == "hgrm" else text.FORMATS[form](cells)
    if not written:
        print(f"emu: {name} has nothing to show as {form}", file=sys.stderr)
    if output is None:
        sys.stdout.write(written)
        return
    try:
        write_atomically(output, written.encode())
    except OSError as error:
        raise InputError(f"{output}: {error.strerror}") from None


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
) -> None:
    """Record a command's memory and process calls with strace, as a workload to run."""
    if each not in get_args(Each):
        raise unknown("iteration", each, get_args(Each))
    recording = recorder.record(command, name=name or output.stem, each=cast(Each, each))
    try:
        output.write_text(recording.toml)
    except OSError as error:
        raise InputError(f"{output}: {error.strerror}") from None
    print(f"{output}: emu run --workload {output}", file=sys.stderr)


def _console() -> Console:
    if sys.stdout.isatty():
        return Console(highlight=False)
    return plain_console(sys.stdout)


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


def _check_writable(path: Path) -> None:
    """Better now than after the run. Raises InputError."""
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise InputError(f"--json {path}: no file can be written there")


class _ProgressBar:
    """A bar on stderr, from 2 s on, on a terminal only. It has no thread: workers are forked."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._began = time.monotonic()

    def __enter__(self) -> _ProgressBar:
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar:
            self._bar.stop()

    def update(self, done: int, total: int, cell: experiment.Cell, share: float) -> None:
        if not self._console.is_terminal or time.monotonic() - self._began < _PROGRESS_AFTER_S:
            return
        if not self._bar:
            self._bar = Progress(
                TextColumn("{task.completed:.0f}/{task.total:.0f}"),
                BarColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.description}"),
                console=self._console,
                auto_refresh=False,
                transient=True,
            )
            self._task = self._bar.add_task("", total=total)
            self._bar.start()
        self._bar.update(self._task, completed=done + share, description=str(cell), refresh=True)

    def say_failure(self, cell: CellResult) -> None:
        """At once, and not only in the table at the end."""
        self._console.print(f"emu: {cell_name(cell)}: {cell.error}", soft_wrap=True, markup=False)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _usage_error(error: Exception) -> str | None:
    """The message of an error of the option parser (typer has its own classes for them)."""
    message = getattr(error, "format_message", None)
    return str(message()) if callable(message) else None


def _call(arguments: list[str]) -> int:
    try:
        status: Any = app(arguments, prog_name="emu", standalone_mode=False)
        sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except InputError as error:
        print(f"emu: {_one_line(error)}", file=sys.stderr)
        return 2
    except EmuError as error:
        print(f"emu: {_one_line(error)}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except BrokenPipeError:
        # Whoever read our output has enough; nobody is left to complain to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        message = _usage_error(error)
        if message is None:
            raise
        if type(error).__name__ == "NoArgsIsHelpError":
            print(message, file=sys.stderr)
        else:
            print(f"emu: {' '.join(message.split())}; --help lists what there is", file=sys.stderr)
        return 2


def main() -> None:
    """The entry point of the command."""
    status = _call(sys.argv[1:])
    # Python takes its handlers away before it is gone; what is ignored stays ignored.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.exit(status)
