# SPDX-License-Identifier: MIT
"""Faults at random moments of small real runs, and what must hold after each.

``python tests/faults.py --count 500 --seed 1`` prints the counts by kind; exit status 1 when a rule
was broken. Fault number N of a seed is always the same; ``--only N`` does it alone.

After each: a result that is right, or one line that says why not and exit status 1, 2 or 130;
nothing left behind (processes, shared memory, sockets, temporary files), the store whole with all
that had finished; and the same command goes on and completes. Where the process that was killed is
``emu`` itself, its workers are gone at once, and its arena and directories with the next run.

As root it has file systems of its own, in a mount namespace, so that they can be filled up, and
another user's process slots; otherwise these kinds are left out, and the list says so.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import resource
import shutil
import signal
import sqlite3
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent
COMMAND = [sys.executable, "-m", "emu"]
LIMIT_S = 90.0
"""A run that has not ended by then hangs; without a fault it takes two seconds."""
OTHER_USER = 61_000 + os.getpid() % 4000
AS_OTHER_USER = [
    *("setpriv", f"--reuid={OTHER_USER}", "--clear-groups", "--bounding-set=-all,+dac_override"),
    *("--inh-caps=-all,+dac_override", "--ambient-caps=-all,+dac_override"),
]
"""Root has no limit on processes. This one may read the interpreter wherever it lies."""
MIB = 1 << 20
_INSIDE = "EMU_FAULTS_INSIDE"
_FULL = (1, 2)
"""Exit statuses of a run that could not be finished."""


class Violation(Exception):
    """A rule was broken."""


@dataclass(frozen=True)
class Scenario:
    """A run to break. ``exact``: its figures are the same each time."""

    name: str
    options: tuple[str, ...]
    exact: bool = False


SCENARIOS = (
    Scenario(
        "native",
        ("--rmap", "single,numa-locks", "--cpus", "3", "--duration", "60ms", "--repeats", "2"),
    ),
    Scenario(
        "virtual",
        (
            *("--engine", "virtual", "--rmap", "single,outer-percpu", "--cpus", "2,6"),
            *("--duration", "2ms", "--jobs", "2"),
        ),
        exact=True,
    ),
    Scenario("both", ("both.toml",)),
    Scenario("design", ("--rmap", "./mine.c", "--cpus", "2", "--duration", "50ms")),
)
BOTH = """\
engine = ["native", "virtual"]
duration = "40ms"
repeats = 1

[matrix]
rmap = ["single", "dynamic"]
topology = "host"
cpus = [2]
"""


@dataclass
class Run:
    """One run of a scenario, in folders of its own."""

    scenario: Scenario
    folder: Path
    chance: random.Random
    env: dict[str, str]
    process: subprocess.Popen[str]
    struck: bool = False

    def alive(self) -> bool:
        return self.process.poll() is None

    def descendants(self) -> list[int]:
        return descendants(self.process.pid)


def descendants(pid: int) -> list[int]:
    found, todo = [], [pid]
    while todo:
        parent = todo.pop()
        with contextlib.suppress(OSError):
            text = Path(f"/proc/{parent}/task/{parent}/children").read_text()
            todo += [int(child) for child in text.split()]
            found += [int(child) for child in text.split()]
    return found


# ---- the faults ----


@dataclass(frozen=True)
class Fault:
    """``strike`` is called once, at the moment; False: there was nothing to strike yet."""

    name: str
    strike: Callable[[Run], bool] = lambda run: True
    allowed: tuple[int, ...] = (0, *_FULL)
    limits: Callable[[random.Random], dict[int, int]] = lambda chance: {}
    """Given to the process as it starts: resource limits."""
    end: Callable[[Run], None] = lambda run: None
    """What makes the fault good again, once the run has ended."""
    needs: Callable[[], bool] = lambda: True
    other_user: bool = False


def is_in_vfork(pid: int) -> bool:
    """Has a child of vfork(2) not got to its program yet? Its parent can do nothing if it stops."""
    with contextlib.suppress(OSError):
        parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        return Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[0] == "D"
    return False


def to_child(number: signal.Signals) -> Callable[[Run], bool]:
    def strike(run: Run) -> bool:
        found = [pid for pid in run.descendants() if not is_in_vfork(pid)]
        if not found:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(run.chance.choice(found), number)
        return True

    return strike


def to_emu(number: signal.Signals) -> Callable[[Run], bool]:
    def strike(run: Run) -> bool:
        run.process.send_signal(number)
        return True

    return strike


def to_group(number: signal.Signals) -> Callable[[Run], bool]:
    def strike(run: Run) -> bool:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(run.process.pid, number)
        return True

    return strike


def pause_emu(run: Run) -> bool:
    run.process.send_signal(signal.SIGSTOP)
    time.sleep(run.chance.uniform(0.05, 1.0))
    run.process.send_signal(signal.SIGCONT)
    return True


def fill(where: Path) -> None:
    """Leave no byte."""
    with contextlib.suppress(OSError), (where / "filler").open("ab", buffering=0) as file:
        for size in (MIB, 4096, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(b"x" * size)


def fill_shm(run: Run) -> bool:
    fill(Path("/dev/shm"))
    return True


def fill_disk(run: Run) -> bool:
    fill(run.folder / "disk")
    return True


def empty(where: Path) -> None:
    (where / "filler").unlink(missing_ok=True)


def take_cpus(run: Run) -> bool:
    """Leave one, to some of the processes or all of them."""
    cpus = sorted(os.sched_getaffinity(0))
    everybody = [run.process.pid, *run.descendants()]
    chosen = run.chance.sample(everybody, run.chance.randint(1, len(everybody)))
    for pid in chosen:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{pid}/task").iterdir():
                os.sched_setaffinity(int(task.name), {run.chance.choice(cpus)})
    return True


def jump(run: Run) -> bool:
    seconds = run.chance.choice((-86400 * 400, -3600, -40, 40, 3600, 86400 * 400))
    (run.folder / "jump").write_bytes(struct.pack("=q", seconds))
    return True


def damage(run: Run) -> bool:
    """Write over the arena of a native cell whose CPUs run: its first 2 KiB, its first MiB, or
    anywhere."""
    for pid in (run.process.pid, *run.descendants()):
        if len(descendants(pid)) < 2:
            continue
        for file in Path("/dev/shm").glob(f"emu-{pid}-*"):
            with contextlib.suppress(OSError, ValueError), file.open("r+b") as arena:
                size = arena.seek(0, os.SEEK_END)
                end, most = run.chance.choice(((2 << 10, 20), (MIB, 1000), (32 * MIB, 20_000)))
                for _ in range(run.chance.randint(1, most)):
                    arena.seek(run.chance.randrange(0, min(size, end), 8))
                    arena.write(struct.pack("=Q", run.chance.getrandbits(64) & damage_mask(run)))
                return True
    return False


def damage_mask(run: Run) -> int:
    return (1 << run.chance.choice((0, 1, 8, 32, 48, 64))) - 1


def own_namespace() -> bool:
    return bool(os.environ.get(_INSIDE))


def other_user() -> bool:
    """Can another user run the command?"""
    if os.geteuid() or not shutil.which("setpriv"):
        return False
    command = [*AS_OTHER_USER, *COMMAND, "--version"]
    return subprocess.run(command, capture_output=True, check=False, cwd="/").returncode == 0


FAULTS = (
    Fault("kill a worker", to_child(signal.SIGKILL), (0, 1)),
    Fault("crash a worker", to_child(signal.SIGSEGV), (0, 1)),
    Fault("stop a worker", to_child(signal.SIGSTOP), (0, 1)),
    Fault("kill emu", to_emu(signal.SIGKILL), (0, -signal.SIGKILL)),
    Fault("kill the whole group", to_group(signal.SIGKILL), (0, -signal.SIGKILL)),
    Fault("interrupt emu", to_emu(signal.SIGINT), (0, 130)),
    Fault("end the whole group", to_group(signal.SIGTERM), (0, 1, 130)),
    Fault("stop emu for a while", pause_emu, (0,)),
    Fault("fill /dev/shm", fill_shm, end=lambda run: empty(Path("/dev/shm")), needs=own_namespace),
    Fault(
        "fill the store's disk",
        fill_disk,
        end=lambda run: empty(run.folder / "disk"),
        needs=own_namespace,
    ),
    Fault(
        "no large files", limits=lambda chance: {resource.RLIMIT_FSIZE: chance.randint(0, 30 * MIB)}
    ),
    Fault(
        "no file descriptors",
        limits=lambda chance: {resource.RLIMIT_NOFILE: chance.randint(10, 60)},
    ),
    Fault(
        "no process slots",
        limits=lambda chance: {resource.RLIMIT_NPROC: chance.randint(1, 12)},
        needs=other_user,
        other_user=True,
    ),
    Fault("take CPUs away", take_cpus, (0,)),
    Fault("jump the wall clock", jump, (0,)),
    Fault("damage the arena", damage),
)


# ---- a run ----


def options(scenario: Scenario) -> list[str]:
    return ["run", *scenario.options, "--store", "disk/store", "--json", "out.json"]


def begin(
    scenario: Scenario, folder: Path, chance: random.Random, fault: Fault | None, shim: Path | None
) -> Run:
    limits = fault.limits(chance) if fault else {}

    def before() -> None:
        for what, limit in limits.items():
            resource.setrlimit(what, (limit, limit))

    env = os.environ | {
        "TMPDIR": str(folder / "tmp"),
        "XDG_DATA_HOME": str(folder / "data"),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "HOME": str(folder),
    }
    if shim:
        env |= {"LD_PRELOAD": str(shim), "CLOCK_JUMP": str(folder / "jump")}
    prefix = AS_OTHER_USER if fault and fault.other_user else []
    process = subprocess.Popen(
        [*prefix, *COMMAND, *options(scenario)],
        cwd=folder,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=(folder / "out").open("w"),
        stderr=(folder / "err").open("w"),
        text=True,
        start_new_session=True,
        preexec_fn=before if limits else None,
    )
    return Run(scenario, folder, chance, env, process)


def prepare(scenario: Scenario, folder: Path, other: bool) -> None:
    for name in ("tmp", "data", "cache", "disk"):
        (folder / name).mkdir()
    (folder / "jump").write_bytes(struct.pack("=q", 0))
    (folder / "both.toml").write_text(BOTH)
    shutil.copy(ROOT / "workers" / "designs" / "rmap" / "single.c", folder / "mine.c")
    if own_namespace():
        size = "size=6m,mode=0700"
        subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", folder / "disk"], check=True)
    if other:
        folder.chmod(0o755)
        for path in (folder, *folder.iterdir()):
            os.chown(path, OTHER_USER, OTHER_USER)


def finished(folder: Path) -> dict[tuple[str, int], bytes]:
    """What the store has of finished cells, by run and number."""
    path = folder / "disk" / "store" / "store.sqlite"
    if not path.is_file() or not path.stat().st_size:
        return {}
    query = "SELECT run, number, document FROM cell WHERE status IS NOT NULL AND NOT again"
    with contextlib.closing(sqlite3.connect(path, timeout=20)) as connection:
        try:
            rows = connection.execute(query).fetchall()
            return {(run, number): document for run, number, document in rows}
        except sqlite3.OperationalError as error:
            if "no such table" in str(error):
                return {}
            raise


def check_store(folder: Path) -> None:
    path = folder / "disk" / "store" / "store.sqlite"
    if path.is_file():
        with contextlib.closing(sqlite3.connect(path, timeout=20)) as connection:
            answer = connection.execute("PRAGMA integrity_check").fetchall()
            if answer != [("ok",)]:
                raise Violation(f"the store is damaged: {answer}")
            if broken := connection.execute("PRAGMA foreign_key_check").fetchall():
                raise Violation(f"the store has rows of nothing: {broken}")


def in_session(session: int) -> list[str]:
    """Processes of the run that are left."""
    found = []
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                fields = (path / "stat").read_text().rpartition(")")[2].split()
                if int(fields[3]) == session and fields[0] != "Z":
                    found.append(f"{path.name} {(path / 'cmdline').read_bytes()!r}")
    return found


def leavings(folder: Path, pids: set[int]) -> list[str]:
    """Files and directories of the run in places that are not for results."""
    found = [str(path) for path in (folder / "tmp").iterdir()]
    for path in Path("/dev/shm").iterdir():
        match = re.fullmatch(r"emu-(\d+)-.*", path.name)
        if path.name != "filler" and (own_namespace() or (match and int(match[1]) in pids)):
            found.append(str(path))
    known = re.compile(r"store\.sqlite(-wal|-shm)?|host\.lock")
    if (folder / "disk" / "store").is_dir():
        for path in (folder / "disk" / "store").iterdir():
            if not known.fullmatch(path.name):
                found.append(str(path))
    found += [str(path) for path in folder.glob(".out.json*")]
    return found


def tell(folder: Path) -> str:
    return (folder / "err").read_text(errors="replace").strip()


def check_end(run: Run, fault: Fault | None, allowed: tuple[int, ...]) -> None:
    status, words = run.process.returncode, tell(run.folder)
    if status not in allowed:
        raise Violation(f"exit status {status}; {words[-2000:]}")
    if "Traceback" in words or "Traceback" in (run.folder / "out").read_text():
        raise Violation(f"a traceback: {words[-3000:]}")
    if status in _FULL and not words:
        raise Violation(f"exit status {status} without a word")
    for line in words.splitlines():
        if not line.startswith("emu: "):
            raise Violation(f"a line that is not ours: {words[-2000:]}")
    if status == 0:
        check_result(run)


def check_result(run: Run) -> None:
    out = json.loads((run.folder / "out.json").read_bytes())
    bad = [cell["error"] for cell in out["cells"] if cell["status"] != "ok"]
    if bad or out["run"]["status"] != "done":
        raise Violation(f"exit status 0, run {out['run']['status']}, cells that failed: {bad}")
    if run.scenario.exact:
        reference = EXACT.setdefault(run.scenario.name, figures(out))
        if figures(out) != reference:
            raise Violation("figures differ from those of a run without a fault")


def figures(out: dict[str, Any]) -> list[Any]:
    keys = ("rmap", "cpus", "ops", "seconds", "locks", "lines", "latency_ns", "time_stack")
    return [[cell[key] for key in keys] for cell in out["cells"]]


EXACT: dict[str, list[Any]] = {}
TAKES_S: dict[str, float] = {}


def wait_gone(run: Run) -> None:
    """No process of the run is left; those of a killed parent get a moment to be killed."""
    give_up = time.monotonic() + (0 if run.process.returncode >= 0 else 5)
    while left := in_session(run.process.pid):
        if time.monotonic() > give_up:
            for line in left:
                os.kill(int(line.split()[0]), signal.SIGKILL)
            raise Violation(f"processes are left: {left}")
        time.sleep(0.02)


def wait(run: Run) -> None:
    try:
        run.process.wait(LIMIT_S)
    except subprocess.TimeoutExpired:
        state = [Path(f"/proc/{pid}/stat").read_text() for pid in run.descendants()]
        os.killpg(run.process.pid, signal.SIGKILL)
        run.process.wait()
        raise Violation(f"no end after {LIMIT_S:.0f} s; children: {state}") from None


def takes_s(scenario: Scenario) -> float:
    """How long the command takes without a fault; it must do all."""
    if scenario.name not in TAKES_S:
        with workplace(scenario, False) as folder:
            began = time.monotonic()
            run = begin(scenario, folder, random.Random(0), None, None)
            wait(run)
            TAKES_S[scenario.name] = time.monotonic() - began
            check_end(run, None, (0,))
            wait_gone(run)
    return TAKES_S[scenario.name]


def one(number: int, seed: int, kinds: list[Fault], shim: Path | None) -> tuple[str, str, str]:
    """(kind, scenario, what came of it). Raises Violation, with what was done in front."""
    chance = random.Random(f"{seed}/{number}")
    fault = kinds[number % len(kinds)]
    scenario = chance.choice(SCENARIOS)
    with workplace(scenario, fault.other_user) as folder:
        try:
            return fault.name, scenario.name, _one(scenario, fault, folder, chance, shim)
        except Violation as violation:
            raise Violation(f"{number} ({fault.name}, {scenario.name}): {violation}") from None


def _one(
    scenario: Scenario, fault: Fault, folder: Path, chance: random.Random, shim: Path | None
) -> str:
    usual_s = takes_s(scenario)
    is_jump = fault.strike is jump
    run = begin(scenario, folder, chance, fault, shim if is_jump else None)
    pids: set[int] = {run.process.pid}
    # Python starts in the first third; there is most to break in the second.
    moment = time.monotonic() + chance.triangular(0.0, usual_s, 0.6 * usual_s)
    try:
        while run.alive() and (time.monotonic() < moment or not run.struck):
            time.sleep(0.005)
            if time.monotonic() >= moment:
                run.struck = fault.strike(run)
        kept: dict[tuple[str, int], bytes] = {}
        with contextlib.suppress(sqlite3.Error):  # where nobody can write, we cannot look either
            kept = finished(folder)
        wait(run)
    finally:
        if run.alive():
            os.killpg(run.process.pid, signal.SIGKILL)
            run.process.wait()
        fault.end(run)
    status = run.process.returncode
    wait_gone(run)
    # Before its own code runs Python answers a signal itself.
    early = status in (-signal.SIGINT, -signal.SIGTERM, 1) and not (folder / "disk/store").exists()
    if not (early and fault.name in ("interrupt emu", "end the whole group")):
        # A compiler that is killed has not compiled the user's file.
        check_end(run, fault, (*fault.allowed, *(_FULL if scenario.name == "design" else ())))
    if status >= 0 and (left := leavings(folder, pids)):
        raise Violation(f"left behind with exit status {status}: {left}")
    check_store(folder)
    after = finished(folder)
    if lost := {cell for cell in kept if after.get(cell) != kept[cell]}:
        raise Violation(f"finished cells were lost or changed: {lost}")
    # Cells that failed by themselves, as one whose worker crashed, count as finished.
    failed = status == 1 and fault.name in ("crash a worker", "damage the arena")
    resumed = begin(scenario, folder, chance, Fault("", other_user=fault.other_user), None)
    wait(resumed)
    wait_gone(resumed)
    check_end(resumed, None, (0, 1) if failed else (0,))
    check_store(folder)
    again = finished(folder)
    if lost := {cell for cell in after if again.get(cell) != after[cell]}:
        raise Violation(f"going on changed finished cells: {lost}")
    pids.add(resumed.process.pid)
    if left := leavings(folder, pids):
        raise Violation(f"left behind by both: {left}")
    return "not reached" if not run.struck and not fault.limits(random.Random(0)) else f"{status}"


@contextlib.contextmanager
def workplace(scenario: Scenario, other: bool) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    try:
        prepare(scenario, folder, other)
        yield folder
    finally:
        if own_namespace():  # whatever is there is ours
            for path in Path("/dev/shm").iterdir():
                path.unlink(missing_ok=True)
            subprocess.run(["umount", "-l", folder / "disk"], check=False)
        shutil.rmtree(folder, ignore_errors=True)


def build_shim(folder: Path) -> Path | None:
    """The wall clock that can jump; None without a compiler."""
    path = folder / "clock_jump.so"
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not compiler:
        return None
    files = ("-o", str(path), str(HERE / "clock_jump.c"))
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", *files, "-ldl"], check=True)
    folder.chmod(0o755)
    return path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=len(FAULTS))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="number of the first fault")
    parser.add_argument("--only", type=int, help="this one alone")
    given = parser.parse_args()
    if not os.geteuid() and not own_namespace():
        script = 'mount -t tmpfs -o size=96m,mode=1777 tmpfs /dev/shm && exec "$@"'
        trial = ["unshare", "-m", "sh", "-c", script, "sh", "true"]
        with contextlib.suppress(OSError):
            if subprocess.run(trial, capture_output=True, check=False).returncode == 0:
                again = [*trial[:-1], sys.executable, *sys.argv]
                os.execvpe(again[0], again, os.environ | {_INSIDE: "1"})
    with tempfile.TemporaryDirectory(prefix="faults-") as tools:
        return _run(given, build_shim(Path(tools)))


def _run(given: argparse.Namespace, shim: Path | None) -> int:
    kinds = [fault for fault in FAULTS if fault.needs() and (shim or fault.strike is not jump)]
    for fault in FAULTS:
        if fault not in kinds:
            print(f"left out here: {fault.name}", flush=True)
    counts: Counter[tuple[str, str]] = Counter()
    broken = []
    numbers = (
        [given.only] if given.only is not None else range(given.first, given.first + given.count)
    )
    for number in numbers:
        try:
            name, scenario_name, outcome = one(number, given.seed, kinds, shim)
        except KeyboardInterrupt:  # what there is so far
            break
        except Violation as violation:
            broken.append(str(violation))
            print(f"VIOLATION {violation}", flush=True)
        else:
            counts[name, outcome] += 1
            if given.only is not None:
                print(name, scenario_name, outcome)
    for fault in kinds:
        outcomes = {o: n for (name, o), n in sorted(counts.items()) if name == fault.name}
        words = ", ".join(f"{n} ended with {outcome}" for outcome, n in outcomes.items())
        print(f"{fault.name:24} {sum(outcomes.values()):4}: {words}")
    print(f"{sum(counts.values())} faults without a violation, {len(broken)} with one")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
