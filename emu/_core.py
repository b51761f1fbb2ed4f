"""The core, by ctypes: the C side of ``workers/include/emu/control.h``, and where its files are.

The core is one shared library a machine (engine), loaded with ``RTLD_GLOBAL`` so that a design
that is loaded later finds the library's functions. One process loads one machine.

Nothing here starts a process or knows of cells: see ``coordinator``.
"""

from __future__ import annotations

import _ctypes
import contextlib
import ctypes
import errno
import functools
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import emu
from emu.errors import EmuError

NAME_OF_KIND = ("rmap", "mm")

LAT_NAMES = (
    "iteration",
    "exec",
    "fork",
    "exit",
    "mmap",
    "munmap",
    "mprotect",
    "brk",
    "fault",
    "walk",
    "micro",
)
"""Names of ``enum emu_latency_op``, in its order; checked against the library when it is loaded."""

CALL_NAMES = (
    "exec",
    "fork",
    "exit",
    "mmap",
    "munmap",
    "mprotect",
    "brk",
    "fault",
    "fault_next",
    "dontneed",
    "pass",
    "clone",
    "thread_exit",
    "work",
    "pace",
    "barrier",
    "line_write",
    "line_fetch_add",
    "line_cmpxchg",
    "line_ping_pong",
    "rwsem_write",
    "rwsem_read",
    "rwsem_mixed",
)
"""Names of ``enum emu_call_op``."""

STACK_NAMES = (
    "own_work",
    "tree_work",
    "line_stalls",
    "spinning",
    "asleep",
    "runqueue",
    "other_locks",
)
"""Names of ``enum emu_stack_share`` (virtual engine), in its order."""

SITES_MAX = 128
LOCK_MODES = ("write", "read")
"""Names of ``enum lock_mode``, in its order."""

HIST_COUNTS = 4096
HIST_MAX_NS = 2**38 - 1

HIST_DTYPE = np.dtype(
    [
        ("total", np.uint64),
        ("overflow", np.uint64),
        ("sum_ns", np.uint64),
        ("max_ns", np.uint64),
        ("counts", np.uint32, (HIST_COUNTS,)),
    ]
)
"""``struct emu_hist``."""

LOCK_STAT_DTYPE = np.dtype(
    [
        ("acquired", np.uint64),
        ("contended", np.uint64),
        ("wait_ns", np.uint64),
        ("wait_min_ns", np.uint64),
        ("wait_max_ns", np.uint64),
        ("hold_ns", np.uint64),
        ("hold_min_ns", np.uint64),
        ("hold_max_ns", np.uint64),
        ("hold_samples", np.uint32),
        ("place", np.uint32),
    ]
)
"""``struct lock_stat``."""


class Config(ctypes.Structure):
    """``struct emu_config``."""

    _fields_ = (
        ("bytes", ctypes.c_uint32),
        ("nr_cpus", ctypes.c_uint32),
        ("nr_nodes", ctypes.c_uint32),
        ("nr_hw_cpus", ctypes.c_uint32),
        ("nr_files", ctypes.c_uint32),
        ("nr_lists", ctypes.c_uint32),
        ("nr_calls", ctypes.c_uint32),
        ("oversubscribed", ctypes.c_uint32),
        ("numa_penalty", ctypes.c_uint32),
        ("work_jitter_permille", ctypes.c_uint32),
        ("vma_change_ns", ctypes.c_uint32),
        ("strict", ctypes.c_uint32),
        ("nr_walkers", ctypes.c_uint32),
        ("share_mm", ctypes.c_uint32),
        ("seed", ctypes.c_uint64),
        ("node_of_cpu", ctypes.POINTER(ctypes.c_uint32)),
        ("penalty_ns", ctypes.POINTER(ctypes.c_uint32)),
        ("host_node_of_node", ctypes.POINTER(ctypes.c_int32)),
        ("nr_backgrounds", ctypes.c_uint32),
        ("nr_uses", ctypes.c_uint32),
        ("nr_background_classes", ctypes.c_uint32),
        ("nr_private_files", ctypes.c_uint32),
    )


class Walker(ctypes.Structure):
    """``struct emu_walker`` without its histogram, which follows."""

    _fields_ = (
        ("kind", ctypes.c_uint32),
        ("cpu", ctypes.c_uint32),
        ("file", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
        ("first", ctypes.c_uint64),
        ("last", ctypes.c_uint64),
        ("at_once", ctypes.c_uint64),
        ("every_ns", ctypes.c_uint64),
        ("done", ctypes.c_uint64),
        ("refused", ctypes.c_uint64),
        ("lost", ctypes.c_uint64),
        ("vmas", ctypes.c_uint64),
        ("pages", ctypes.c_uint64),
        ("due_ns", ctypes.c_uint64),
        ("next", ctypes.c_uint64),
    )


class Memory(ctypes.Structure):
    """``struct emu_memory``: bytes."""

    _fields_ = tuple(
        (name, ctypes.c_uint64) for name in ("cold_file", "mapped_file", "used_file", "vma")
    )


class PhaseStatus(ctypes.Structure):
    """``struct emu_phase_status``."""

    _fields_ = (
        ("open", ctypes.c_uint32),
        ("armed", ctypes.c_uint32),
        ("done", ctypes.c_uint32),
        ("failed", ctypes.c_uint32),
        ("start_ns", ctypes.c_uint64),
        ("deadline_ns", ctypes.c_uint64),
    )


class CpuResult(ctypes.Structure):
    """``struct emu_cpu_result``."""

    _fields_ = (
        ("iterations", ctypes.c_uint64),
        ("start_ns", ctypes.c_uint64),
        ("end_ns", ctypes.c_uint64),
        ("wait_ns", ctypes.c_uint64),
        ("counts", ctypes.c_uint64 * len(CALL_NAMES)),
    )


class CpuState(ctypes.Structure):
    """``struct emu_cpu_state``."""

    _fields_ = (
        ("op", ctypes.c_uint32),
        ("list", ctypes.c_uint32),
        ("index", ctypes.c_uint32),
        ("iterations", ctypes.c_uint64),
        ("failure", ctypes.c_char * 256),
    )


IDLE_STATES_MAX = 4
"""``EMU_IDLE_STATES_MAX``."""


class IdleState(ctypes.Structure):
    """``struct emu_idle_state``."""

    _fields_ = (
        ("empties", ctypes.c_uint32),
        ("residency_ps", ctypes.c_uint64),
        ("exit_ps", ctypes.c_uint64),
    )


class CostModel(ctypes.Structure):
    """``struct emu_cost_model`` (virtual engine)."""

    _fields_ = (
        ("bytes", ctypes.c_uint32),
        ("nr_cpus", ctypes.c_uint32),
        ("nr_nodes", ctypes.c_uint32),
        ("outstanding_stores", ctypes.c_uint32),
        ("node_of_cpu", ctypes.POINTER(ctypes.c_uint32)),
        ("l3_of_cpu", ctypes.POINTER(ctypes.c_uint32)),
        ("core_of_cpu", ctypes.POINTER(ctypes.c_uint32)),
        ("leg_ps", ctypes.POINTER(ctypes.c_uint32)),
        ("dram_ps", ctypes.POINTER(ctypes.c_uint32)),
        ("private_lines", ctypes.c_uint32),
        ("l3_lines", ctypes.c_uint32),
        ("access_ps", ctypes.c_uint32),
        ("l3_hit_ps", ctypes.c_uint32),
        ("smt_ps", ctypes.c_uint32),
        ("c2c_l3_ps", ctypes.c_uint32),
        ("c2c_base_ps", ctypes.c_uint32),
        ("atomic_ps", ctypes.c_uint32),
        ("occupancy_ps", ctypes.c_uint32),
        ("futex_wait_ps", ctypes.c_uint32),
        ("futex_wake_ps", ctypes.c_uint32),
        ("wake_to_run_ps", ctypes.c_uint32),
        ("ipi_send_ps", ctypes.c_uint32),
        ("ipi_round_trip_ps", ctypes.c_uint32),
        ("ipi_each_ps", ctypes.c_uint32),
        ("ipi_handler_ps", ctypes.c_uint32),
        ("context_switch_ps", ctypes.c_uint32),
        ("smt_speed_permille", ctypes.c_uint32),
        ("nr_idle_states", ctypes.c_uint32),
        ("idle_states", IdleState * IDLE_STATES_MAX),
        ("time_slice_ps", ctypes.c_uint64),
        ("event_limit", ctypes.c_uint64),
    )


class VirtualStats(ctypes.Structure):
    """``struct emu_virtual_stats``."""

    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in (
            "accesses",
            "syncs",
            "switches",
            "misses",
            "transfers",
            "remote_transfers",
            "dram",
            "now_ps",
            "trace_hash",
        )
    )


class VirtualCpu(ctypes.Structure):
    """``struct emu_virtual_cpu``."""

    _fields_ = (
        *(
            (name, ctypes.c_uint64)
            for name in (
                "compute_ps",
                "stall_ps",
                "spin_ps",
                "sleep_ps",
                "runqueue_ps",
                "transfers",
                "remote_transfers",
            )
        ),
        ("stack_ps", ctypes.c_uint64 * len(STACK_NAMES)),
        ("clock_ps", ctypes.c_uint64),
        ("access_ps", ctypes.c_uint64),
    )


class VirtualLine(ctypes.Structure):
    """``struct emu_virtual_line``."""

    _fields_ = (
        ("wait_ps", ctypes.c_uint64),
        ("transfers", ctypes.c_uint64),
        ("remote_transfers", ctypes.c_uint64),
        ("symbol", ctypes.c_char * 120),
    )


class ExploreConfig(ctypes.Structure):
    """``struct emu_explore_config``."""

    _fields_ = (
        ("bytes", ctypes.c_uint32),
        ("scenario", ctypes.c_uint32),
        ("policy", ctypes.c_uint32),
        ("depth", ctypes.c_uint32),
        ("max_steps", ctypes.c_uint32),
        ("preemptions", ctypes.c_uint32),
        ("sc", ctypes.c_uint32),
        ("seed", ctypes.c_uint64),
        ("replay", ctypes.c_char_p),
    )


class ExploreStatus(ctypes.Structure):
    """``struct emu_explore_status``."""

    _fields_ = (
        ("schedules", ctypes.c_uint64),
        ("cut", ctypes.c_uint64),
        ("steps", ctypes.c_uint64),
        ("longest", ctypes.c_uint64),
        ("preemptions_cut", ctypes.c_uint64),
        ("done", ctypes.c_uint32),
        ("found", ctypes.c_uint32),
        ("by", ctypes.c_uint32),
        ("outcomes", ctypes.c_uint32),
    )


class ExploreFailure(ctypes.Structure):
    """``struct emu_explore_failure``."""

    _fields_ = (("kind", ctypes.c_uint32), ("text", ctypes.c_char * 1024))


class ExploreEvent(ctypes.Structure):
    """``struct emu_explore_event``."""

    _fields_ = (
        ("step", ctypes.c_uint32),
        ("cpu", ctypes.c_uint8),
        ("kind", ctypes.c_uint8),
        ("order", ctypes.c_uint8),
        ("is_stale", ctypes.c_uint8),
        ("addr", ctypes.c_uint64),
        ("before", ctypes.c_uint64),
        ("after", ctypes.c_uint64),
        ("pcs", ctypes.c_uint64 * 4),
        ("decisions", ctypes.c_uint32),
        ("others", ctypes.c_uint32),
        ("name", ctypes.c_char * 64),
    )


SITE_KINDS = ("load", "store", "modify", "spin", "sleep")
"""``enum emu_site_kind``."""

SITE_DTYPE = np.dtype(
    [
        *((name, np.uint32) for name in ("line", "stack", "kind", "offset")),
        *((name, np.uint64) for name in ("count", "remote", "wait_ps")),
    ]
)
"""``struct emu_virtual_site``."""

SLICE_KINDS = ("call", "wait", "spin", "sleep", "hold")
"""``enum emu_slice_kind``."""

SLICE_DTYPE = np.dtype(
    [
        *((name, np.uint64) for name in ("start_ns", "end_ns", "at")),
        *((name, np.uint32) for name in ("task", "kind", "what", "site", "stack", "unused")),
    ]
)
"""``struct emu_virtual_slice``."""


class CoreError(EmuError):
    """A function of the core failed. ``errno`` is positive."""

    def __init__(self, message: str, errno: int) -> None:
        super().__init__(message)
        self.errno = errno


_U32, _U64, _I64, _INT = ctypes.c_uint32, ctypes.c_uint64, ctypes.c_int64, ctypes.c_int
_PTR, _STR = ctypes.c_void_p, ctypes.c_char_p

# name: (result, arguments...). A result of _INT or _I64 below 0 is an error number.
_PROTOTYPES: dict[str, tuple[Any, ...]] = {
    "emu_error": (_STR,),
    "emu_machine_id": (_U32,),
    "emu_design_load": (_INT, _U32, _STR, _STR),
    "emu_design_unload": (None,),
    "emu_design_params": (_INT, _U32, _STR, ctypes.c_size_t),
    "emu_arena_overhead": (_U64, ctypes.POINTER(Config)),
    "emu_arena_format": (_INT, _PTR, _U64, ctypes.POINTER(Config)),
    "emu_file_add": (_INT, _STR, _U64),
    "emu_file_cold": (_INT, _U32, _U32, _U64),
    "emu_list_add": (_INT, _PTR, _U32),
    "emu_walker_add": (_INT, _U32, _U32, _U32, _U64, _U64, _U64, _U64),
    "emu_walker": (_PTR, _U32),
    "emu_walk_name": (_STR, _U32),
    "emu_background_add": (_INT, _PTR),
    "emu_use_add": (_INT, _PTR),
    "emu_boot": (_INT,),
    "emu_cpu_attach": (_INT, _U32),
    "emu_phase_prepare": (_INT, _U32, _U32, _U32, _U64),
    "emu_phase_first": (_INT, _U32),
    "emu_phase_run": (_INT,),
    "emu_phase_open": (_INT,),
    "emu_phase_status": (ctypes.POINTER(PhaseStatus),),
    "emu_cpu_state": (ctypes.POINTER(CpuState), _U32),
    "emu_cpu_result": (ctypes.POINTER(CpuResult), _U32),
    "emu_cpu_faults": (_U64, _U32),
    "emu_cpu_hists": (_PTR, _U32),
    "emu_lock_stats": (_PTR,),
    "emu_lock_waits": (None, _PTR, _U32),
    "emu_site_path": (_INT, _U32, _STR, ctypes.c_size_t),
    "emu_nr_lock_classes": (_U32,),
    "emu_lock_class_name": (_INT, _U32, ctypes.POINTER(_STR), ctypes.POINTER(_STR)),
    "emu_cpu_site_path": (_INT, _U32, _U32, _STR, ctypes.c_size_t),
    "emu_maps": (_I64, _STR, _U64),
    "emu_list_run": (_INT, _U32, ctypes.POINTER(_U32)),
    "emu_file_vmas": (_U64, _U32),
    "emu_measure_memory": (_INT, ctypes.POINTER(Memory)),
    "emu_check_drained": (_INT,),
    "emu_op_name": (_STR, _U32),
    "emu_call_name": (_STR, _U32),
    "emu_clock_ns": (_U64,),
}


_VIRTUAL_PROTOTYPES: dict[str, tuple[Any, ...]] = {
    "emu_virtual_config": (_INT, ctypes.POINTER(CostModel)),
    "emu_virtual_run_phase": (_INT,),
    "emu_virtual_run_uncharged": (_INT,),
    "emu_virtual_run": (_INT, _PTR, _PTR),
    "emu_virtual_stats": (None, ctypes.POINTER(VirtualStats)),
    "emu_virtual_cpu": (None, _U32, ctypes.POINTER(VirtualCpu)),
    "emu_virtual_lines": (_U32, ctypes.POINTER(VirtualLine), _U32),
    "emu_virtual_sites": (_U32, _PTR, _U32),
    "emu_virtual_field": (_INT, _U32, _U32, _STR, ctypes.c_size_t),
    "emu_virtual_stack_path": (_INT, _U32, _STR, ctypes.c_size_t),
    "emu_virtual_node_transfers": (None, _PTR),
    "emu_virtual_slices": (None, _PTR, _U64, _U64, _U64),
    "emu_virtual_sliced": (_U64, ctypes.POINTER(_U64)),
    "emu_virtual_symbol": (_INT, _U64, _STR, ctypes.c_size_t),
    "emu_virtual_stack": (_INT, _U32, _STR, ctypes.c_size_t),
    "emu_virtual_end": (None,),
}
"""What the virtual machine has besides."""

_EXPLORE_PROTOTYPES: dict[str, tuple[Any, ...]] = {
    "emu_explore_scenarios": (_INT, _STR),
    "emu_explore_scenario": (_INT, _U32, _STR, ctypes.c_size_t),
    "emu_explore_start": (_INT, ctypes.POINTER(ExploreConfig)),
    "emu_explore_slice": (_INT, _U64, _U64),
    "emu_explore_status": (None, ctypes.POINTER(ExploreStatus)),
    "emu_explore_failure": (None, ctypes.POINTER(ExploreFailure)),
    "emu_explore_schedule": (_INT, _STR, ctypes.c_size_t),
    "emu_explore_shorten": (_INT, _U64),
    "emu_explore_record": (_INT,),
    "emu_explore_event": (_INT, _U32, ctypes.POINTER(ExploreEvent)),
    "emu_explore_critical": (_INT, _U32),
    "emu_explore_place": (_INT, _U64, _STR, ctypes.c_size_t),
    "emu_explore_name": (_INT, _U64, _STR, ctypes.c_size_t),
    "emu_explore_outcome": (_INT, _U32, ctypes.POINTER(_U64), ctypes.POINTER(_U64)),
    "emu_explore_end": (None,),
}
"""What the exploring machine has besides."""


def data_path(*parts: str) -> Path:
    """The path of an installed file or folder, such as ``data_path("lib", "build.json")``.

    A checkout in the current directory hides the installed package but has none of what the build
    makes; ``emu.__path__`` then leads on to the installed one.

    Raises EmuError when no directory of the package has it.
    """
    for base in emu.__path__:
        path = Path(base).joinpath(*parts)
        if path.exists():
            return path
    raise EmuError(
        f"{Path(*parts)} is not installed beside {Path(__file__).parent}; "
        "`make build` or `pip install .` builds and installs it"
    )


@functools.cache
def build_info() -> dict[str, Any]:
    """How the core was compiled: compiler, flags for all machines and for each."""
    info: dict[str, Any] = json.loads(data_path("lib", "build.json").read_text())
    return info


def design_names(kind: str) -> list[str]:
    """The built-in designs of ``kind`` ("rmap" or "mm"), sorted."""
    return sorted(path.stem for path in data_path("designs", kind).glob("*.so"))


class Core:
    """A loaded core. Method ``name`` calls the C function ``emu_<name>``; or raises CoreError."""

    def __init__(self, machine: str) -> None:
        path = data_path("lib", f"libemu-{machine}.so")
        try:
            self._lib = ctypes.CDLL(str(path), mode=os.RTLD_GLOBAL | os.RTLD_NOW)
        except OSError as error:
            raise EmuError(f"{path} cannot be loaded: {error}") from None
        self.machine = machine
        more = {"virtual": _VIRTUAL_PROTOTYPES, "explore": _EXPLORE_PROTOTYPES}
        prototypes = _PROTOTYPES | more.get(machine, {})
        for name, (result, *arguments) in prototypes.items():
            function = getattr(self._lib, name)
            function.restype = result
            function.argtypes = arguments
        ops = tuple(self._text(self._lib.emu_op_name(i)) for i in range(len(LAT_NAMES)))
        calls = tuple(self._text(self._lib.emu_call_name(i)) for i in range(len(CALL_NAMES)))
        if ops != LAT_NAMES or calls != CALL_NAMES:
            raise EmuError(f"{path} is not of this version: it names {ops} and {calls}")

    @staticmethod
    def _text(raw: bytes | None) -> str:
        return (raw or b"").decode(errors="replace")

    def _check(self, result: int, what: str) -> int:
        if result < 0:
            reason = self._text(self._lib.emu_error()) or os.strerror(-result)
            raise CoreError(f"{what}{reason}", -result)
        return result

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._lib, f"emu_{name}")
        if function.restype not in (_INT, _I64):
            return function

        def checked(*arguments: Any) -> int:
            return self._check(function(*arguments), "")

        return checked

    def text_of(self, function: str, *arguments: int) -> str:
        """What a function that fills ``(buf, size)`` and returns the length needed has to say."""
        call = getattr(self._lib, f"emu_{function}")
        size = 4096
        while True:
            buffer = ctypes.create_string_buffer(size)
            length = self._check(call(*arguments, buffer, size), "")
            if length < size:
                return self._text(buffer.value)
            size = length + 1

    def maps(self) -> str:
        """The VMAs of the attached CPU's current mm, one a line."""
        return self.text_of("maps")

    def design_params(self, kind: str) -> list[str]:
        """One line "name=value: help" a parameter of the loaded design."""
        return self.text_of("design_params", NAME_OF_KIND.index(kind)).splitlines()

    def hists(self, cpus: int) -> NDArray[np.void]:
        """The histograms of the first CPUs, ``[process, op]`` by LAT_NAMES: a view of the arena."""
        first, last = self._lib.emu_cpu_hists(0), self._lib.emu_cpu_hists(cpus - 1)
        rows = cpus if last > first else 1
        size = HIST_DTYPE.itemsize
        memory = (ctypes.c_uint8 * (last - first + size * len(LAT_NAMES))).from_address(first)
        strides = ((last - first) // max(rows - 1, 1), size)
        return np.ndarray((rows, len(LAT_NAMES)), HIST_DTYPE, memory, strides=strides)

    def faults(self, cpu: int) -> int:
        """Page faults of a CPU in this phase."""
        faults: int = self._lib.emu_cpu_faults(cpu)
        return faults

    def memory(self) -> dict[str, int]:
        """What the rmap design takes of the arena, as results have it. After check_drained()."""
        memory = Memory()
        self._check(self._lib.emu_measure_memory(ctypes.byref(memory)), "")
        return {
            "rmap_bytes_per_file": memory.cold_file,
            "rmap_bytes_per_mapped_file": memory.mapped_file,
            "rmap_bytes_per_used_file": memory.used_file,
            "bytes_per_vma": memory.vma,
        }

    def walker(self, number: int) -> tuple[Walker, NDArray[np.void]]:
        """What a walker has done in the last phase, and its latencies, one HIST_DTYPE: views."""
        address = self._lib.emu_walker(number)
        histogram = _view(address + ctypes.sizeof(Walker), HIST_DTYPE, (1,))
        return Walker.from_address(address), histogram

    def lock_stats(self) -> NDArray[np.void]:
        """The lock statistics of all CPUs together, ``[class, mode, site]``, until the next call.

        Modes are LOCK_MODES, ``site_path`` knows these sites. Raises CoreError where a CPU's are
        damaged.
        """
        address = self._lib.emu_lock_stats()
        if not address:
            raise CoreError(self._text(self._lib.emu_error()), errno.EINVAL)
        shape = (self._lib.emu_nr_lock_classes(), len(LOCK_MODES), SITES_MAX)
        return _view(address, LOCK_STAT_DTYPE, shape)

    def lock_waits(self) -> NDArray[np.uint64]:
        """What all CPUs have waited in this phase so far, ns by class; also while they run."""
        wait_ns = np.zeros(self._lib.emu_nr_lock_classes(), np.uint64)
        self._lib.emu_lock_waits(wait_ns.ctypes.data, len(wait_ns))
        return wait_ns

    def lock_class_name(self, class_id: int) -> tuple[str, str | None]:
        """Name and file of a lock class; no file: None."""
        name, file = _STR(), _STR()
        self._check(
            self._lib.emu_lock_class_name(class_id, ctypes.byref(name), ctypes.byref(file)), ""
        )
        return self._text(name.value), self._text(file.value) or None

    def site_path(self, site: int) -> str:
        """The path "a>b>c" of a call site of ``lock_stats``."""
        return self.text_of("site_path", site)

    def cpu_site_path(self, cpu: int, site: int) -> str:
        """The path "a>b>c" of a call site of the CPU."""
        return self.text_of("cpu_site_path", cpu, site)

    def list_run(self, number: int) -> tuple[int, str] | None:
        """Run a call list once on the attached CPU; (index of the failed call, reason) or None."""
        failed = _U32()
        result = self._lib.emu_list_run(number, ctypes.byref(failed))
        if result < 0:
            return failed.value, self._text(self._lib.emu_error()) or os.strerror(-result)
        return None


def _view(address: int, dtype: np.dtype[np.void], shape: tuple[int, ...]) -> NDArray[np.void]:
    length = dtype.itemsize * math.prod(shape)
    memory = (ctypes.c_uint8 * length).from_address(address)
    return np.ctypeslib.as_array(memory).view(dtype).reshape(shape)


_loaded: dict[str, Core] = {}


def load(machine: str) -> Core:
    """The core for ``machine``: "native", "virtual" or "explore"; a process loads one alone.

    Raises EmuError when another machine is loaded already or the library does not fit.
    """
    if machine not in _loaded:
        if _loaded:
            raise EmuError(f"one process runs one machine, and {next(iter(_loaded))} is loaded")
        _loaded[machine] = Core(machine)
    return _loaded[machine]


def unload() -> None:
    """In the child of a process that loads a machine: begin without one, its designs included.

    Nothing that came from ``load`` may be used any more.
    """
    while _loaded:
        _, core = _loaded.popitem()
        core.design_unload()
        path, handle = core._lib._name, core._lib._handle
        _ctypes.dlclose(handle)
        with contextlib.suppress(OSError):
            ctypes.CDLL(path, mode=os.RTLD_NOLOAD)
            raise EmuError(f"{path} stays loaded")


def make_config(
    *,
    node_of_cpu: list[int],
    nr_nodes: int,
    nr_files: int,
    nr_lists: int,
    nr_calls: int,
    seed: int,
    nr_walkers: int = 0,
    oversubscribed: bool = False,
    work_jitter_permille: int = 0,
    vma_change_ns: int = 0,
    nr_hw_cpus: int = 0,
    strict: bool = False,
    share_mm: bool = False,
    penalty_ns: list[list[int]] | None = None,
    host_node_of_node: list[int] | None = None,
    nr_backgrounds: int = 0,
    nr_uses: int = 0,
    nr_background_classes: int = 0,
    nr_private_files: int = 0,
) -> Config:
    """A ``struct emu_config``; it keeps the arrays that it points to alive."""
    cpus = len(node_of_cpu)
    config = Config(
        bytes=ctypes.sizeof(Config),
        nr_cpus=cpus,
        nr_nodes=nr_nodes,
        nr_hw_cpus=nr_hw_cpus,
        nr_files=nr_files,
        nr_lists=nr_lists,
        nr_calls=nr_calls,
        oversubscribed=oversubscribed,
        numa_penalty=penalty_ns is not None,
        work_jitter_permille=work_jitter_permille,
        vma_change_ns=vma_change_ns,
        strict=strict,
        share_mm=share_mm,
        nr_walkers=nr_walkers,
        seed=seed & (2**64 - 1),
        nr_backgrounds=nr_backgrounds,
        nr_uses=nr_uses,
        nr_background_classes=nr_background_classes,
        nr_private_files=nr_private_files,
    )
    config.node_of_cpu = (_U32 * cpus)(*node_of_cpu)
    if penalty_ns is not None:
        flat = [ns for row in penalty_ns for ns in row]
        config.penalty_ns = (_U32 * len(flat))(*flat)
    if host_node_of_node is not None:
        config.host_node_of_node = (ctypes.c_int32 * nr_nodes)(*host_node_of_node)
    return config
