# SPDX-License-Identifier: MIT
"""Cells on other hosts: `emu run --cluster` sends them to the workers of a Dask scheduler.

Dask moves orders there and answers back, and gives the orders of a lost worker to another. A cell
itself runs in a process that has nothing to do with Dask, started afresh for it: this module as a
program, an ``Order`` on its stdin, an ``Answer`` on its stdout. It has no threads, so that it may
fork; it dies with the worker, and when the order is cancelled there.

Cells of the native engine go to workers that declare the resource ``native=1``, one at a time, and
have that host for themselves among all cells that come by clusters. Cells that are compared with
each other, designs and repeats, go to one and the same worker.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import importlib.metadata
import importlib.util
import logging
import os
import platform
import re
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import msgspec

from emu import coordinator, host
from emu.coordinator import CellFailed, Deadline, StopFlag
from emu.errors import EmuError, InputError
from emu.experiment import Cell, Experiment, own_file
from emu.results import CellResult
from emu.store import MachineLock

_CONNECT_S = 10
_CLOSE_S = 2
_GONE_S = 15.0
"""How long the scheduler may be away."""
_LOOK_S = 1.0
"""Between two looks at the list of workers."""
_TICK_S = 0.1
_ATTEMPTS = 3
"""So often a cell is run whose process was killed or whose worker was lost."""
_TEXTS = ("rmap", "mm", "topology", "workload")


class Order(msgspec.Struct):
    """A cell to run. ``files``: contents of the user's own files, by their names in the cell."""

    build: str
    """The digest of the installation that sends it."""
    experiment: Experiment
    cell: Cell
    files: dict[str, bytes]


class Answer(msgspec.Struct):
    """What became of it."""

    node: str
    """The name of the host it ran on."""
    result: CellResult | None = None
    own: bool = True
    """False: somebody else killed or stopped a process of it."""
    wrong: str | None = None
    """It cannot be run, and this is why: for the user."""
    about: dict[str, Any] = {}
    """``host.info()`` and, of the native engine, ``host.state()``."""


# ---- on the worker ----


def run_order(order: bytes) -> bytes:
    """Run by Dask, in a thread of a worker: the answer to an order."""
    from distributed import get_worker

    worker = get_worker()
    key = worker.get_current_task()

    def is_unwanted() -> bool:
        task = worker.state.tasks.get(key)
        return task is None or task.state == "cancelled"

    return coordinator.run_apart("emu.cluster", order, is_unwanted)


def main() -> None:
    """The program that runs one order; its argument is the number of the process that wants it."""
    from emu.workers.cpu import be_a_child

    be_a_child(int(sys.argv[1]))
    order = msgspec.json.decode(sys.stdin.buffer.read(), type=Order)
    # Whatever else is printed here belongs into the worker's log.
    answer_to = os.dup(1)
    os.dup2(2, 1)
    answer = answer_order(order)
    with os.fdopen(answer_to, "wb") as file:
        file.write(msgspec.json.encode(answer))


def answer_order(order: Order) -> Answer:
    """Run the cell of an order here, whatever comes of it."""
    from emu.schedule import digest

    answer = Answer(node=platform.node(), about=host.info())
    if order.build != digest():
        answer.wrong = f"{answer.node} has another build of mm-emu; install the same on all hosts"
        return answer
    native = order.cell.engine == "native"
    if native:
        answer.about |= host.state()
    try:
        with (
            StopFlag() as stop,
            tempfile.TemporaryDirectory(prefix="emu-order-") as directory,
            _host_lock(stop, alone=native),
        ):
            experiment, cell = _at_home(order, Path(directory))
            deadline = Deadline(stop, order.experiment.timeout_ns)
            answer.result, answer.own = _run_cell(experiment, cell, deadline)
            for name in _TEXTS:
                setattr(answer.result, name, getattr(order.cell, name))
            answer.result.host.node = answer.node
    except InputError as error:
        answer.wrong = str(error)
    except CellFailed as error:
        answer.own = not error.outside
        answer.result = failed_result(order.cell, str(error))
    return answer


def _run_cell(experiment: Experiment, cell: Cell, deadline: Deadline) -> tuple[CellResult, bool]:
    from emu import engines

    machine = engines.get(cell.engine)(experiment)
    try:
        machine.prepare([cell], deadline)
        if isinstance(machine, engines.OneByOne):
            meter = host.LoadMeter.start()
            result, own = machine.run(cell, deadline, lambda _share, _look: None)
            result.host.other_cpus, result.host.stolen_cpus = meter.read()
            return result, own
        job = machine.start(cell)
        try:
            while not job.ready():
                coordinator.first_ready([job.child], _TICK_S)
                deadline.check()
        except CellFailed as error:
            return job.fail(error)
        except BaseException:
            job.close()
            raise
        return job.finish()
    finally:
        machine.close()


@contextlib.contextmanager
def _host_lock(stop: StopFlag, *, alone: bool) -> Iterator[None]:
    """By which a native cell has the host for itself. On a directory that every host has: no file
    is left, and none is shared with other hosts.
    """
    fd = os.open("/dev/shm", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        lock = MachineLock(fd, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        while not lock.take():
            stop.check()
            time.sleep(_TICK_S)
        yield
    finally:
        os.close(fd)


def _at_home(order: Order, directory: Path) -> tuple[Experiment, Cell]:
    """The cell, and an experiment of it alone, with the user's files where they are here."""
    here: dict[str, str] = {}
    for number, (name, content) in enumerate(order.files.items()):
        folder = directory / str(number)
        folder.mkdir()
        path = folder / Path(name).name
        path.write_bytes(content)
        here[name] = str(path)
    words: dict[str, Any] = {}
    for key in _TEXTS:
        name, colon, parameters = getattr(order.cell, key).partition(":")
        words[key] = here.get(name, name) + colon + parameters
    cell = replace(order.cell, **words)
    alone: dict[str, Any] = {key: (word,) for key, word in words.items()}
    return replace(order.experiment, **alone, cpus=(cell.cpus,), exclude=()), cell


def failed_result(cell: Cell, error: str) -> CellResult:
    """Of a cell that brought nothing back."""
    return CellResult.of(cell, status="failed", error=error)


# ---- here ----


def check_installed() -> None:
    """Raises InputError without dask.distributed."""
    if importlib.util.find_spec("distributed") is None:
        raise InputError("--cluster needs dask.distributed: pip install 'mm-emu[cluster]'")


def make_order(build: str, experiment: Experiment, cell: Cell) -> bytes:
    """The order of a cell, with the user's files that it names."""
    files = {}
    for text in (getattr(cell, key) for key in _TEXTS):
        if path := own_file(text):
            files[text.partition(":")[0]] = path.read_bytes()
    return msgspec.json.encode(Order(build=build, experiment=experiment, cell=cell, files=files))


class Cluster:
    """A Dask scheduler and what it has of ours. A context manager: at its end nothing of ours runs.

    Raises InputError when nobody answers or a worker has another version, EmuError when the
    scheduler goes away.
    """

    def __init__(
        self, address: str, build: str, notice: Callable[[str], None], stop: StopFlag
    ) -> None:
        check_installed()
        # Its log is for whoever runs a cluster; what matters for us is said in our words.
        logging.getLogger("distributed").setLevel(logging.CRITICAL)
        distributed: Any = importlib.import_module("distributed")
        self._address, self._build, self._notice, self._stop = address, build, notice, stop
        self._workers: dict[str, _Worker] = {}
        self._orders: dict[int, _Sent] = {}
        self._attempts: Counter[int] = Counter()
        self._home: dict[tuple[object, ...], str] = {}
        self._looked_s = self._heard_s = time.monotonic() - _LOOK_S
        self._told = ""
        # One that cannot connect tries for 20 s more to close when it is collected, and complains.
        self._client: Any = distributed.Client.__new__(distributed.Client)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of versions: see below
                self._client.__init__(
                    address, timeout=_CONNECT_S, set_as_default=False, name="mm-emu"
                )
        except (OSError, ValueError, TypeError) as error:
            self._client.status = "closed"
            reason = re.sub(r"\s+", " ", str(error)) or type(error).__name__
            raise InputError(
                f"--cluster {address}: no Dask scheduler answers there ({reason}); "
                "`dask scheduler` prints its address"
            ) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(Exception):
            if self._orders and self._client.status == "running":
                self._client.cancel([sent.future for sent in self._orders.values()], force=True)
        with contextlib.suppress(Exception):
            self._client.close(timeout=_CLOSE_S)

    @property
    def threads(self) -> int:
        """Cells that the workers can run at once."""
        return sum(worker.threads for worker in self._workers.values())

    @property
    def running(self) -> list[int]:
        """Numbers of the orders that have not been answered."""
        return list(self._orders)

    def look(self, *, at_once: bool = False) -> None:
        """See now and then which workers there are; new ones are asked for their versions."""
        now = time.monotonic()
        if not at_once and now - self._looked_s < _LOOK_S:
            return
        self._looked_s = now
        try:
            found = self._client.scheduler_info(n_workers=-1)["workers"]
            self._heard_s = now
            new = [address for address in found if address not in self._workers]
            versions = self._client.run(_probe(), workers=new, on_error="return") if new else {}
        except Exception as error:
            if now - self._heard_s < _GONE_S:
                return
            raise EmuError(
                f"the scheduler at {self._address} is gone ({type(error).__name__}); what had "
                "finished is kept: the same command goes on"
            ) from None
        for address in new:
            self._check(address, versions.get(address))
        for address in set(self._workers) - set(found):
            self._notice(f"worker {address} is lost; its cells run again elsewhere")
        self._workers = {address: _Worker.of(info) for address, info in found.items()}
        self._home = {k: home for k, home in self._home.items() if home in found}
        for sent in self._orders.values():
            if sent.worker and sent.worker not in found and not sent.is_over():
                sent.is_lost = True
                sent.future.cancel(force=True)

    def _check(self, address: str, versions: object) -> None:
        if isinstance(versions, BaseException):
            raise InputError(
                f"worker {address} cannot be asked ({type(versions).__name__}: {versions})"
            )
        if not isinstance(versions, Mapping):
            return  # gone again already
        ours = _probe()()
        for name in ("mm-emu", "Python"):
            if versions[name] != ours[name]:
                raise InputError(
                    f"worker {address} has {name} {versions[name]}, and here is {ours[name]}; "
                    "install the same on all hosts"
                )
        if versions["build"] != self._build:
            raise InputError(
                f"worker {address} has another build of mm-emu {ours['mm-emu']}; make one wheel "
                "(pip wheel .) and install it on all hosts"
            )
        others = [name for name in ours if name not in ("mm-emu", "Python", "build")]
        differ = [
            f"{name} {versions.get(name)} ({ours[name]} here)"
            for name in others
            if versions.get(name) != ours[name]
        ]
        if differ:
            self._notice(f"note: worker {address} has {', '.join(differ)}")

    def place(self, cell: Cell) -> str | None:
        """The worker for a cell, "" for any; None: there is no room now."""
        if cell.engine != "native":
            most = self.threads + len(self._workers)
            return "" if len(self._orders) < most else None
        busy = {sent.worker for sent in self._orders.values()}
        key = (cell.workload, cell.topology, cell.mm, cell.cpus)
        home = self._home.get(key)
        if home is None:
            free = [a for a, each in self._workers.items() if each.native and a not in busy]
            home = min(free, key=lambda a: (list(self._home.values()).count(a), a), default=None)
            if home is None:
                return None
            self._home[key] = home
        return home if home not in busy else None

    def explain_waiting(self, engine: str) -> None:
        """Say, once, why nothing runs."""
        if engine == "native" and not any(each.native for each in self._workers.values()):
            why = (
                "cells of the native engine wait for a worker that declares the resource native=1: "
                f"dask worker {self._address} --nthreads 1 --resources native=1"
            )
        elif not self._workers:
            why = f"waiting for a worker: dask worker {self._address}"
        else:
            why = ""
        if why and why != self._told:
            self._notice(why)
        self._told = why

    def send(self, number: int, order: bytes, cell: Cell, worker: str) -> None:
        """Have it run on the worker, "" for any."""
        self._attempts[number] += 1
        placed: dict[str, Any] = {}
        if worker:
            placed = {"workers": [worker], "resources": {"native": 1}}
        future = self._client.submit(
            run_order, order, key=f"emu-{os.urandom(8).hex()}", pure=False, **placed
        )
        self._orders[number] = _Sent(future, cell, worker)

    def answers(self) -> Iterator[tuple[int, Answer | None]]:
        """Orders that are over, with their answers; None: it was lost, send it again."""
        for number, sent in list(self._orders.items()):
            if not sent.is_over():
                continue
            del self._orders[number]
            answer = self._answer(sent)
            if answer and answer.wrong:
                raise InputError(answer.wrong)
            if (answer is None or not answer.own) and self._attempts[number] < _ATTEMPTS:
                answer = None
            elif answer is None:
                error = f"its worker was lost {self._attempts[number]} times"
                answer = Answer("", failed_result(sent.cell, error))
            elif not answer.own:
                answer.own = True
            yield number, answer

    def _answer(self, sent: _Sent) -> Answer | None:
        from distributed import KilledWorker

        if sent.is_lost or sent.future.status in ("cancelled", "lost"):
            return None
        if sent.future.status == "finished":
            answer = msgspec.json.decode(sent.future.result(), type=Answer)
            sent.future.release()
            return answer
        error = sent.future.exception()
        if isinstance(error, KilledWorker):
            return None
        if isinstance(error, CellFailed):
            return Answer("", failed_result(sent.cell, str(error)), own=not error.outside)
        raise EmuError(f"a worker could not run a cell: {type(error).__name__}: {error}")


class _Sent:
    """An order that is with the scheduler; ``worker`` "": wherever it likes."""

    def __init__(self, future: Any, cell: Cell, worker: str) -> None:
        self.future, self.cell, self.worker = future, cell, worker
        self.is_lost = False

    def is_over(self) -> bool:
        return self.is_lost or self.future.status != "pending"


class _Worker:
    def __init__(self, threads: int, native: bool) -> None:
        self.threads, self.native = threads, native

    @classmethod
    def of(cls, info: Mapping[str, Any]) -> _Worker:
        return cls(int(info["nthreads"]), info.get("resources", {}).get("native", 0) >= 1)


def _probe() -> Callable[[], dict[str, str]]:
    """What tells the versions where it is run. Sent whole, so mm-emu need not be there."""
    names = ["distributed", "dask", *_libraries(importlib.metadata.requires("mm-emu") or ())]

    def probe() -> dict[str, str]:
        import importlib.metadata
        import platform

        found = {}
        for name in ["mm-emu", *names]:
            try:
                found[name] = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                found[name] = "missing"
        found["Python"] = ".".join(platform.python_version_tuple()[:2])
        try:
            from emu.schedule import digest

            found["build"] = digest()
        except ImportError:
            found["build"] = "missing"
        return found

    return probe


def _libraries(requirements: Sequence[str]) -> list[str]:
    """Names of what mm-emu cannot do without."""
    return [re.split(r"[^\w.-]", each, maxsplit=1)[0] for each in requirements if ";" not in each]


if __name__ == "__main__":
    main()
