# SPDX-License-Identifier: MIT
"""Workload files, read strictly: each error says where in the file, and what would be right."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from emu import background
from emu.errors import InputError, about, nearest
from emu.files import is_path, parse_toml
from emu.workload.calls import (
    CALL_DTYPE,
    MAP_BRK,
    MAP_FIXED,
    MAP_SPECIAL,
    NAME_PATTERN,
    NO_EXPECT,
    OPS,
    PAGE,
    PROT,
    TASK_SIZE,
    WITHOUT_PROCESS,
    Call,
    CallError,
    parse_call,
    parse_time,
)
from emu.workload.model import CallPlace, File, Phase, Walker, Workload, read_only

MAX_PROCESSES = 64
"""Processes of one CPU that wait for a child: EMU_MM_STACK."""
MAX_NAME = 95
"""Bytes of a file's name: address_space.name without its final 0."""
FOLIO_PAGES = 16
"""Reclaim and migration walk once a folio; page caches have large ones, 64 KiB is taken here."""
WARM_UP_SHARE = 0.1
"""Of the duration, in addition to it."""
TOUCH_FLAGS = {"none": 0, "first": 0x40000000, "all": 0x80000000}
"""EMU_MAP_TOUCH, EMU_MAP_TOUCH_ALL."""
_IMAGE_OPS = ("mmap", "munmap", "mprotect")


def names() -> list[str]:
    """The workloads that come with mm-emu, sorted."""
    return sorted(file.stem for file in folder().glob("[!_]*.toml"))


@about("workload")
def load(name_or_path: str | Path, *, isolate: bool = False) -> Workload:
    """A workload by name or path (has "/" or ends in ".toml"); isolate: without background.

    "execl:kernel=linux-6.5" is execl with the background entries of another kernel.

    Raises InputError that says what is wrong, where, and what would be right.
    """
    text = str(name_or_path)
    if isinstance(name_or_path, Path) or is_path(text):
        return _Reader(Path(text), isolate).read()
    known = names()
    name, _, parameter = text.partition(":")
    if name not in known:
        raise InputError(
            f"no workload '{name}'{nearest(name, known)}; there are: {', '.join(known)}, "
            "or a path to a .toml file"
        )
    key, _, kernel = parameter.partition("=")
    kernels = background.kernels(folder())
    if parameter and not (key == "kernel" and kernel in kernels):
        wrong = "a workload takes kernel=NAME"
        if key == "kernel" and kernel:
            wrong = f"no kernel '{kernel}'{nearest(kernel, kernels)}"
        raise InputError(f"{text}: {wrong}; there are: {', '.join(kernels)}")
    return _Reader(folder() / f"{name}.toml", isolate, kernel).read()


def folder() -> Path:
    """Where the workloads are that come with mm-emu."""
    return Path(__file__).parents[1] / "workloads"


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class _Image(_Table, frozen=True):
    mmap_base: int
    calls: list[str]


class _Program(_Table, frozen=True):
    calls: list[str]


class _Work(_Table, frozen=True):
    time: str
    source: str


class _Cold(_Table, frozen=True):
    share: float
    read: str
    source: str


class _Phase(_Table, frozen=True):
    name: str
    list: str
    kind: Literal["time", "once"] = "time"
    share: float | None = None
    record: bool = True
    unit: str = "iteration"
    first: str | None = None


class _Walker(_Table, frozen=True):
    kind: Literal["truncate", "reclaim", "migrate"]
    file: str
    every: str
    first: int = 0
    last: int | None = None
    at_once: int | None = None
    cpu: int | None = None


class _File(_Table, frozen=True):
    name: str
    load: str
    program: dict[str, Any]
    phase: list[Any]
    files: dict[str, Any] = {}
    image: dict[str, Any] = {}
    description: str = ""
    work_jitter: float = 0.1
    work: dict[str, Any] = {}
    cold: dict[str, Any] = {}
    share: Literal["mm"] | None = None
    touch: Literal["none", "first", "all"] | None = None
    walker: list[Any] = []
    private_files: dict[str, Any] = {}
    waiting: int = 0
    kernel: str = ""
    background: list[Any] = []


_LOCKED_KEYS = ("mmap", "munmap", "mprotect", "brk", "dontneed")
_MAX_LOCKED_NS = 10**9
_WORK_KEYS = ("exec", "fork", "exit", "clone", "thread_exit", "fault", *_LOCKED_KEYS, "call")
_T = TypeVar("_T", bound=_Table)


class _Reader:
    """Reads one file; knows where things stand in it."""

    def __init__(
        self, path: Path, isolate: bool, kernel: str = "", *, is_base: bool = False
    ) -> None:
        self.path = path
        self.isolate = isolate
        self.kernel = kernel
        """Instead of the file's own; "": that one."""
        self.uses = background.Uses()
        self.vma_change_ns = 0
        self.raw, self.text = parse_toml(path)
        self.calls_path = path
        self.line_of_call = _lines_of_calls(self.text)
        if "base" in self.raw and not is_base:
            self.read_base(self.raw.pop("base"))
        self.file_numbers: dict[str, int] = {}
        self.pages: list[int] = []
        self.list_numbers: dict[str, int] = {}
        self.images: dict[str, _Image] = {}
        self.work_ns: dict[str, int] = {}
        self.touch = "none"
        self.alone_ns: dict[str, float] = {}
        """By image: what its calls take of the rest of the kernel."""

    def read_base(self, name: object) -> None:
        """Take over what this file does not say itself. Tables are not mixed."""
        if not isinstance(name, str):
            raise self.error("base", f"the name of a workload or a path, not {name!r}", "base")
        if not is_path(name) and name not in names():
            what = f"no workload '{name}'{nearest(name, names())}; there are: {', '.join(names())}"
            raise self.error("base", what, "base")
        path = self.path.parent / name if is_path(name) else folder() / f"{name}.toml"
        base = _Reader(path, self.isolate, is_base=True)
        if "base" in base.raw:
            raise self.error("base", f"{name} has a base itself", "base")
        if {"image", "program"} & self.raw.keys():
            raise self.error("base", "images and programs are those of the base", "base")
        self.raw = base.raw | self.raw
        self.calls_path, self.line_of_call = base.path, base.line_of_call

    def error(self, place: str, what: str, key: str = "") -> InputError:
        line = line_of_key(self.text, key) if key else None
        where = f"{self.path}:{line}" if line else f"{self.path}"
        return InputError(f"{where}: {f'{place}: ' if place else ''}{what}")

    def table(self, raw: object, kind: type[_T], place: str) -> _T:
        """`raw` as a `kind`, whose keys and types it must have."""
        if not isinstance(raw, dict):
            raise self.error(place, f"this must be a table, not {raw!r}")
        fields = {each.name: each for each in msgspec.structs.fields(kind)}
        for key in raw:
            if key not in fields:
                what = f"unknown key '{key}'{nearest(key, fields)}; valid: {', '.join(fields)}"
                raise self.error(place, what, key)
        for name, each in fields.items():
            if each.required and name not in raw:
                raise self.error(place, f"'{name}' is missing")
        try:
            return msgspec.convert(raw, kind)
        except msgspec.ValidationError as error:
            what, _, where = str(error).partition(" - at `$.")
            where = where.rstrip("`")
            what = f"{where}: {what}" if where else what
            raise self.error(place, what, re.split(r"\W", where)[0]) from None

    def read(self) -> Workload:
        file = self.table(self.raw, _File, "")
        if not 0 <= file.work_jitter < 1:
            what = f"{file.work_jitter:g} is not between 0 and 1 (0.1: each time varies by 10 %)"
            raise self.error("work_jitter", what, "work_jitter")
        if not 0 <= file.waiting < MAX_PROCESSES:
            what = f"{file.waiting} is not from 0 to {MAX_PROCESSES - 1} processes"
            raise self.error("waiting", what, "waiting")
        self.read_files(file.files, "files")
        shared = len(self.pages)
        self.read_files(file.private_files, "private_files")
        if not self.isolate:
            self.read_background(file, self.pages[:shared])
        self.read_work(file.work)
        cold_permille, read_ns = self.read_cold(file.cold)
        self.touch = file.touch or ("first" if file.walker else "none")
        if self.touch == "none" and file.walker:
            raise self.error("touch", 'walkers have nothing to do where touch is "none"', "touch")
        sections = {f"image.{name}": raw for name, raw in file.image.items()}
        sections |= {f"program.{name}": raw for name, raw in file.program.items()}
        self.list_numbers = {section: number for number, section in enumerate(sections)}
        texts = [self.read_section(section, raw) for section, raw in sections.items()]

        lists: list[NDArray[np.void]] = []
        calls: list[tuple[CallPlace, ...]] = []
        parsed: dict[str, list[Call]] = {}
        for section, section_texts in zip(sections, texts, strict=True):
            parsed[section] = self.read_calls(section, section_texts)
            lists.append(self.encode(section, parsed[section]))
            places = (self.place(section, index) for index in range(len(section_texts)))
            calls.append(tuple(map(CallPlace, section_texts, places)))
        self.check_brk(parsed)

        load = self.program(file.load, "load", "load")
        if file.share:
            self.check_threads(file.load, parsed)
        if all(call.op in WITHOUT_PROCESS for each in parsed.values() for call in each):
            lists.append(self.encode("drain", []))
            calls.append(())
        else:
            self.check_load(file.load, parsed[f"program.{file.load}"])
            lists.append(self.encode("drain", [Call("exit")] * (1 + file.waiting)))
            calls.append((CallPlace("exit()", f"{self.path.name}: drain"),) * (1 + file.waiting))
        if file.waiting:
            forks = self.encode("load", [Call("fork")] * file.waiting)
            lists.append(read_only(np.concatenate([lists[load], forks])))
            fork = CallPlace("fork()", f"{self.path.name}: waiting")
            calls.append((*calls[load], *[fork] * file.waiting))
            load = len(lists) - 1
        return Workload(
            name=file.name,
            description=file.description,
            files=tuple(map(File, self.file_numbers, self.pages)),
            lists=tuple(lists),
            list_names=(*sections, "drain", *(["load"] if file.waiting else [])),
            load_list=load,
            phases=tuple(self.read_phases(file.phase, parsed)),
            drain_list=len(sections),
            work_jitter_permille=round(file.work_jitter * 1000),
            calls=tuple(calls),
            share_mm=file.share == "mm",
            touch=self.touch,
            walkers=tuple(self.read_walkers(file.walker)),
            cold_permille=cold_permille,
            read_ns=read_ns,
            private_files=len(file.private_files),
            uses=self.uses.used(),
            vma_change_ns=self.vma_change_ns,
        )

    def read_files(self, files: dict[str, Any], table: str) -> None:
        for name, pages in files.items():
            if name in self.file_numbers:
                what = f"'{name}' is in [files] already"
                raise self.error(f"[{table}]", what, name)
            if not re.fullmatch(NAME_PATTERN, name, re.ASCII) or len(name) > MAX_NAME:
                what = f"'{name}' is no name of a file: letters, digits and . + @ : / - [ ]"
                raise self.error(f"[{table}]", f"{what}, at most {MAX_NAME} of them", name)
            if type(pages) is not int or not 1 <= pages <= TASK_SIZE // PAGE:
                what = (
                    f"'{name}' is {pages!r}; it must be a size in pages, 1 to {TASK_SIZE // PAGE}"
                )
                raise self.error(f"[{table}]", what, name)
            self.file_numbers[name] = len(self.pages)
            self.pages.append(pages)

    def read_background(self, file: _File, shared_pages: list[int]) -> None:
        name = self.kernel or file.kernel
        kernel = background.Kernel()
        if name:
            kernels = background.kernels(folder())
            if name not in kernels:
                what = f"no kernel '{name}'{nearest(name, kernels)}"
                raise self.error("kernel", f"{what}; there are: {', '.join(kernels)}", "kernel")
            kernel = background.read_kernel(folder(), name, parse_time)
        own = background.read(file.background, str(self.path), parse_time)
        entries = background.merge(kernel.entries, own, str(self.path))
        self.vma_change_ns = kernel.vma_change_ns
        self.uses = background.Uses(entries, shared_pages, file.share == "mm")

    def read_work(self, work: dict[str, Any]) -> None:
        for key, raw in work.items():
            if key not in _WORK_KEYS:
                what = f"no kind of work '{key}'{nearest(key, _WORK_KEYS)}"
                raise self.error("[work]", f"{what}; there are: {', '.join(_WORK_KEYS)}", key)
            try:
                self.work_ns[key] = parse_time(self.table(raw, _Work, f"[work.{key}]").time)
            except CallError as error:
                raise self.error(f"[work.{key}] time", str(error)) from None
            if key in _LOCKED_KEYS and self.work_ns[key] > _MAX_LOCKED_NS:
                what = f"{raw['time']} is too long with mmap_lock held; at most 1s"
                raise self.error(f"[work.{key}] time", what)

    def read_cold(self, raw: dict[str, Any]) -> tuple[int, int]:
        """(permille of faults, ns of a read)."""
        if not raw:
            return 0, 0
        cold = self.table(raw, _Cold, "[cold]")
        if not 0.001 <= cold.share <= 1:
            what = f"{cold.share:g} is not between 0.001 and 1 (0.1: one fault in ten)"
            raise self.error("[cold] share", what, "share")
        try:
            return round(cold.share * 1000), parse_time(cold.read)
        except CallError as error:
            raise self.error("[cold] read", str(error), "read") from None

    def read_walkers(self, raw_walkers: Sequence[object]) -> Iterator[Walker]:
        for number, raw in enumerate(raw_walkers):
            place = f"[[walker]] {number + 1}"
            spec = self.table(raw, _Walker, place)
            if spec.file not in self.file_numbers:
                what = f"no file '{spec.file}'{nearest(spec.file, self.file_numbers)}"
                raise self.error(
                    place, f"{what}; [files] has: {', '.join(self.file_numbers)}", "walker"
                )
            file = self.file_numbers[spec.file]
            last = self.pages[file] - 1 if spec.last is None else spec.last
            if not 0 <= spec.first <= last < self.pages[file]:
                what = f"pages {spec.first} to {last} of {spec.file}, which has {self.pages[file]}"
                raise self.error(place, f"{what}: 0 <= first <= last < size", "walker")
            try:
                every_ns = parse_time(spec.every)
            except CallError as error:
                raise self.error(f"{place} every", str(error)) from None
            if every_ns == 0:
                raise self.error(f"{place} every", "0 is no time between two walks", "every")
            if spec.cpu is not None and spec.cpu < 0:
                raise self.error(f"{place} cpu", f"{spec.cpu} is below 0", "cpu")
            at_once = spec.at_once
            if at_once is None:
                at_once = last + 1 if spec.kind == "truncate" else FOLIO_PAGES
            if at_once < 1:
                raise self.error(f"{place} at_once", f"{at_once}; at least 1 page", "at_once")
            yield Walker(spec.kind, file, spec.first, last, at_once, every_ns, spec.cpu)

    def read_section(self, section: str, raw: object) -> list[str]:
        place = f"[{section}]"
        name = section.partition(".")[2]
        if not re.fullmatch(NAME_PATTERN, name, re.ASCII):
            raise self.error(place, f"'{name}' is no name: letters, digits and . + @ : / -")
        if section.startswith("image."):
            image = self.table(raw, _Image, place)
            if image.mmap_base % PAGE or not PAGE <= image.mmap_base <= TASK_SIZE:
                what = f"mmap_base is {image.mmap_base:#x}; it must be a multiple of {PAGE}"
                raise self.error(place, f"{what}, at most {TASK_SIZE:#x}", "mmap_base")
            self.images[name] = image
            texts = image.calls
        else:
            texts = self.table(raw, _Program, place).calls
        if not texts:
            raise self.error(place, "calls is empty")
        return texts

    def place(self, section: str, index: int) -> str:
        line = self.line_of_call.get((section, index))
        name = self.calls_path.name
        return f"{name}{f':{line}' if line else ''}: [{section}] calls[{index}]"

    def call_error(self, section: str, index: int, text: str, what: str) -> InputError:
        return InputError(f"{self.calls_path.parent / self.place(section, index)}: {text}: {what}")

    def read_calls(self, section: str, texts: Sequence[str]) -> list[Call]:
        calls: list[Call] = []
        forks: list[int] = []
        clones: list[int] = []
        for index, text in enumerate(texts):
            try:
                call = self.in_context(section, parse_call(text))
                if call.op == "clone":
                    clones.append(index)
                elif call.op == "thread_exit":
                    if not clones:
                        raise CallError("there is no clone() before it whose thread could end")
                    clones.pop()
                elif clones and call.op in ("exec", "fork", "exit"):
                    raise CallError("not between clone() and thread_exit()")
                if call.op == "fork":
                    forks.append(index)
                elif call.op == "exit" and not forks:
                    raise CallError("there is no fork() before it whose child could exit")
                if len(forks) > MAX_PROCESSES:
                    raise CallError(f"more than {MAX_PROCESSES} processes wait for a child")
                if call.op == "exit":
                    forks.pop()
            except CallError as error:
                raise self.call_error(section, index, text, str(error)) from None
            calls.append(call)
        if clones:
            what = "no thread_exit() of its thread before the list ends"
            raise self.call_error(section, clones[-1], texts[clones[-1]], what)
        if forks:
            raise self.call_error(
                section, forks[-1], texts[forks[-1]], "no exit() of its child before the list ends"
            )
        return calls

    def in_context(self, section: str, call: Call) -> Call:
        """With names looked up, and with the work that belongs to calls of its kind."""
        if section.startswith("image."):
            if call.op not in _IMAGE_OPS:
                raise CallError(f"an image has only {', '.join(_IMAGE_OPS)}")
        elif call.flags & (MAP_SPECIAL | MAP_BRK):
            raise CallError("MAP_SPECIAL and MAP_BRK are for images")
        elif call.op not in WITHOUT_PROCESS:
            kind = "fault" if call.op == "fault_next" else call.op
            if kind in _LOCKED_KEYS:
                call = replace(call, locked_ns=self.work_ns.get(kind, 0))
                kind = "call"
            kind = kind if kind in _WORK_KEYS else "call"
            if work_ns := self.work_ns.get(kind, 0):
                call = replace(call, work_ns=work_ns)
        if call.op == "exec":
            if call.name not in self.images:
                raise CallError(
                    f"no image '{call.name}'{nearest(call.name, self.images)}; "
                    f"there are: {', '.join(self.images)}"
                )
            return replace(call, addr=self.images[call.name].mmap_base)
        if call.op == "mmap" and call.name:
            if call.name not in self.file_numbers:
                raise CallError(
                    f"no file '{call.name}'{nearest(call.name, self.file_numbers)}; "
                    f"[files] has: {', '.join(self.file_numbers)}"
                )
            pages = self.pages[self.file_numbers[call.name]]
            if call.offset >= pages * PAGE:
                raise CallError(
                    f"offset {call.offset:#x} is beyond the end of {call.name} ({pages} pages)"
                )
        return call

    def encode(self, section: str, calls: Sequence[Call]) -> NDArray[np.void]:
        is_image = section.startswith("image.")
        of_call = lru_cache(maxsize=4096)(self.uses.of_call)
        writes = any("fault_write" in _background_ops(call) for call in calls)
        rows: list[tuple[int, ...]] = []
        for call in calls:
            arg, flags, length, work_ns = -1, call.flags, call.length, call.work_ns
            if call.op == "exec":
                arg = self.list_numbers[f"image.{call.name}"]
            elif call.op == "mmap" and call.name:
                arg = self.file_numbers[call.name]
            if call.op in ("exec", "fork") or (call.op == "mmap" and call.name):
                flags |= TOUCH_FLAGS[self.touch]
            if call.op == "pace":
                length, work_ns = work_ns, 0
            first, number, alone_ns = of_call(_background_ops(call, writes), arg)
            self.alone_ns[section] = self.alone_ns.get(section, 0.0) + alone_ns
            if call.op == "exec":
                alone_ns += self.alone_ns[f"image.{call.name}"]
            if not is_image:
                work_ns = max(0, work_ns - round(alone_ns))
            rows.append(
                (
                    *(OPS.index(call.op), call.prot, flags, arg, call.locked_ns),
                    *(call.addr, length, call.offset),
                    *(NO_EXPECT if call.expect is None else call.expect, work_ns),
                    *(NO_EXPECT if call.stride is None else call.stride, call.times),
                    *(first, number, 0),
                )
            )
        return read_only(np.array(rows, dtype=CALL_DTYPE))

    def check_brk(self, lists: Mapping[str, Sequence[Call]]) -> None:
        """A heap begins in one place, and every image has one if any program calls brk."""
        uses_brk = any(call.op == "brk" for calls in lists.values() for call in calls)
        for name in self.images:
            heaps = sum(bool(call.flags & MAP_BRK) for call in lists[f"image.{name}"])
            if heaps > 1 or (uses_brk and not heaps):
                what = f"{heaps} mappings have MAP_BRK; the heap starts at the end of one"
                raise self.error(f"[image.{name}]", what)

    def program(self, name: str, place: str, key: str) -> int:
        number = self.list_numbers.get(f"program.{name}")
        if number is None:
            valid = [s.partition(".")[2] for s in self.list_numbers if s.startswith("program.")]
            what = f"no program '{name}'{nearest(name, valid)}; there are: {', '.join(valid)}"
            raise self.error(place, what, key)
        return number

    def check_load(self, name: str, calls: Sequence[Call]) -> None:
        without = WITHOUT_PROCESS
        first = next((index for index, call in enumerate(calls) if call.op not in without), 0)
        if calls[first].op != "exec":
            raise self.call_error(
                f"program.{name}", first, str(calls[first]), "the program to load starts with exec"
            )

    def check_threads(self, load: str, lists: Mapping[str, Sequence[Call]]) -> None:
        """Only the first exec makes a process that all CPUs share."""
        for section, calls in lists.items():
            for index, call in enumerate(calls):
                if call.op == "exec" and (section, index) != (f"program.{load}", 0):
                    what = "threads share one process (share); only load begins with an exec"
                    raise self.call_error(section, index, str(call), what)

    def read_phases(
        self, raw_phases: Sequence[object], lists: Mapping[str, Sequence[Call]]
    ) -> Iterator[Phase]:
        """The warm-up and those of the file."""
        if not raw_phases:
            raise self.error("[[phase]]", "there is none; a workload needs one to measure")
        phases: list[Phase] = []
        for number, raw in enumerate(raw_phases):
            place = f"[[phase]] {number + 1}"
            spec = self.table(raw, _Phase, place)
            if not spec.name:
                raise self.error(place, "name is empty; a phase needs one")
            place = f"[[phase]] '{spec.name}'"
            if spec.name in ("load", "warm-up", "drain", *(phase.name for phase in phases)):
                raise self.error(place, "this name is taken; names of phases differ")
            once = spec.kind == "once"
            if once and spec.share is not None:
                raise self.error(place, "a phase that runs once has no share of the duration")
            share = 0.0 if once else 1.0 if spec.share is None else spec.share
            if not once and not 0 < share <= 1:
                raise self.error(place, f"share is {share:g}; it must be above 0, at most 1")
            list_number = self.program(spec.list, f"{place} list", "list")
            ops = {call.op for call in lists[f"program.{spec.list}"]}.difference(WITHOUT_PROCESS)
            if "fault_next" in ops:
                ops = (ops | {"fault"}) - {"fault_next"}
            units = ("iteration", *(op for op in OPS if op in ops))
            if spec.unit not in units:
                what = f"unit '{spec.unit}' is no call of program '{spec.list}'"
                raise self.error(
                    place, f"{what}{nearest(spec.unit, units)}; valid: {', '.join(units)}"
                )
            first = (
                None if spec.first is None else self.program(spec.first, f"{place} first", "first")
            )
            phases.append(Phase(spec.name, list_number, once, spec.record, share, spec.unit, first))
        total = sum(phase.share for phase in phases)
        if any(not phase.once for phase in phases) and abs(total - 1) > 1e-6:
            raise self.error("[[phase]]", f"the shares add up to {total:g}; they must add up to 1")
        measured = next((phase for phase in phases if phase.record), None)
        if measured is None:
            raise self.error("[[phase]]", "none has record = true; nothing would be measured")
        share = 0.0 if measured.once else WARM_UP_SHARE
        yield measured._replace(name="warm-up", record=False, share=share)
        yield from phases


def _background_ops(call: Call, writes: bool = False) -> tuple[str, ...]:
    """The kinds of call, in `times` of background entries, that this one is.

    ``writes``: the program of the call writes pages.
    """
    if call.op in ("fault", "fault_next"):
        if not call.prot & PROT["PROT_WRITE"]:
            return ("fault_read",)
        return ("fault_write", "fault_new") if call.op == "fault_next" else ("fault_write",)
    if call.op == "munmap" and writes:
        return ("munmap", "munmap_used")
    if call.op not in background.OPS:
        return ()
    elsewhere = call.flags & (MAP_FIXED | MAP_SPECIAL)
    opened = call.op == "mmap" and call.name and not call.offset and not elsewhere
    return (call.op, "open") if opened else (call.op,)


def _lines_of_calls(text: str) -> dict[tuple[str, int], int]:
    """{(section, index): line} of the calls that are written one string after the other."""
    lines: dict[tuple[str, int], int] = {}
    section, index = "", None
    for number, line in enumerate(text.splitlines(), 1):
        header = re.match(r"\s*\[\s*([^\[\]]+?)\s*\]\s*(#.*)?$", line)
        if header and index is None:
            section = re.sub(r"[\"'\s]", "", header[1])
            continue
        start = 0
        if index is None:
            opening = re.match(r"\s*calls\s*=\s*\[", line)
            if not opening:
                continue
            start, index = opening.end(), 0
        for token in re.finditer(r"#.*|\"(?:[^\"\\]|\\.)*\"|'[^']*'|\]", line[start:]):
            if token[0] == "]":
                index = None
                break
            if token[0][0] in "\"'":
                lines[section, index] = number
                index += 1
    return lines


def line_of_key(text: str, key: str) -> int | None:
    """The line of the first `key =` or `[key]`, `[key.name]`, `[name.key]`."""
    word = rf"[\"']?{re.escape(key)}[\"']?"
    for number, line in enumerate(text.splitlines(), 1):
        if re.match(rf"\s*({word}\s*=|\[(.*[\[.\s])?{word}\s*[.\]])", line):
            return number
    return None
