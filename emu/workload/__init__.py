# SPDX-License-Identifier: MIT
"""Workloads: what the emulated processes do. Files, programs and phases, in one TOML file.

A program is a list of system calls, one string each, written as strace writes them:

    [program.example]
    calls = [
      "exec(example)",                        # becomes [image.example]
      "brk(NULL) = 0x555555558000",
      "mmap(NULL, 8192, PROT_READ, MAP_PRIVATE, libc.so.6, 0) = 0x7ffff7fc0000",
      "fault(0x7ffff7fc0000, 4096)",         # touches each page; a third argument PROT_WRITE writes
      "munmap(0x7ffff7fc0000, 8192)",
      "work(150us)",                          # computing, no call
      "pace(1ms)",                            # computing until the phase has lasted n x 1ms
      "barrier()",                            # waits for all CPUs; when one has ended its part of
                                              # the phase, all do
      "mmap(NULL, 4096, PROT_READ|PROT_WRITE, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0)",
      "fault(last+0, 4096, PROT_WRITE)",      # last: where this CPU's latest mapping is
      "clone()",                              # a thread begins: the task goes on as that one ...
      "thread_exit()",                        # ... and, when it has ended, as the one before
      "pass()",                               # hands that to the next CPU, gets one from before
      "dontneed(0x10000+cpu*4096, 4096)",     # cpu*: so much further for each task
      "fault(0x10000, cpus*4096)",            # cpus*: so many bytes for each task
      "fault_next(0x10000, cpus*4096)",       # the next page that is not there; after the last one,
                                              # all are given back by dontneed, and so on
      "fork()",                               # from here on the child runs ...
      "exit()",                               # ... and here the parent again
    ]

The file of an mmap is named, not a descriptor; -1 is anonymous memory. What follows "=" is the
address that the real kernel returned; a replay checks it. Flags that mean nothing to the mm
(IGNORED_FLAGS) are skipped.

    [image.NAME]    what the kernel maps during execve, in its order, after the old mm has gone.
                    MAP_BRK: the heap starts at the end of this mapping. MAP_SPECIAL: vdso, vvar;
                    the file only names them
    [files]         name = size in pages
    [private_files] the same, but each CPU has a file of its own by that name
    [work.OP]       the rest of the kernel and of user space, with its source: time to compute
                    inside each exec, fork, exit, clone or thread_exit; (fault) inside each page
                    fault that a program's fault() or fault_next() makes; inside each mmap, munmap,
                    mprotect or brk of a program, with mmap_lock held; or (call) before each of
                    these and every other call of a program
    [cold]          a page cache that does not hold all: the share of the faults in files that find
                    their page missing, and sleep, holding no lock, while it is read; the time of a
                    read and its source. As if pages were evicted as fast as they are read; each
                    fault reads for itself
    waiting         processes that each CPU's process leaves behind when it is loaded, forked from
                    one another: they keep their mappings and do nothing until the end
    load            the program that a CPU starts with; it leaves one process, or none where no
                    program has any: line_write(), rwsem_read() and the others of MICRO_OPS
    share           "mm": all CPUs are threads of one process, which the exec that load begins with
                    makes on CPU 0; all of them go on with the rest of load
    touch           which pages a program uses of the files that it maps, by exec, fork or mmap:
                    "first", the first page of each mapping, with what a fault brings along; "all",
                    every 16th page; or "none", which makes no faults but those of fault(). Writes
                    where it may, else reads. Default: "first" with walkers, else "none"
    [[walker]]      a background task that walks a file every so often, on one of the CPUs (cpu,
                    modulo their number; default: walkers on CPUs 0, 1 ...) between two calls of its
                    program. kind: "truncate", "reclaim" or "migrate"; file; every; first and last,
                    in pages, if not the whole file; at_once, the pages of one walk, the next walk
                    having the next pages: all for truncate, else 16, a folio of 64 KiB
    kernel          whose locks besides i_mmap's the calls take, and whose time to change a VMA:
                    "linux", or none; see background.py
    [[background]]  more of these locks and lines
    [[phase]]       a program that runs again and again for a share of the duration (kind "time"),
                    or once. unit: the operation that counts, "iteration" or a call of the program.
                    first: the program that CPU 0 runs instead

    base            another workload, by name or path: what is not said here is as there

A run is: load, a warm-up with the first phase's program, the phases, and exit.

    reader.py   a file, and a workload by name
    model.py    a workload that has been read
    calls.py    calls and their text
"""

from __future__ import annotations

from emu.workload.calls import (
    CALL_DTYPE,
    FLAGS,
    MAP_ANONYMOUS,
    MAP_BRK,
    MAP_FIXED,
    MAP_FIXED_NOREPLACE,
    MAP_GROWSDOWN,
    MAP_NORESERVE,
    MAP_PRIVATE,
    MAP_SHARED,
    MAP_SPECIAL,
    MAP_STACK,
    MICRO_OPS,
    NAME_PATTERN,
    NO_EXPECT,
    OPS,
    PAGE,
    PROT,
    TASK_SIZE,
    Call,
    CallError,
    format_call,
    page_up,
    parse_call,
    parse_time,
)
from emu.workload.model import (
    PAGE_TABLE_BYTES,
    PMD_BYTES,
    WALKER_KINDS,
    File,
    Phase,
    Workload,
)
from emu.workload.reader import (
    FOLIO_PAGES,
    MAX_NAME,
    MAX_PROCESSES,
    TOUCH_FLAGS,
    WARM_UP_SHARE,
    folder,
    line_of_key,
    load,
    names,
)

__all__ = [
    "CALL_DTYPE",
    "FLAGS",
    "FOLIO_PAGES",
    "MAP_ANONYMOUS",
    "MAP_BRK",
    "MAP_FIXED",
    "MAP_FIXED_NOREPLACE",
    "MAP_GROWSDOWN",
    "MAP_NORESERVE",
    "MAP_PRIVATE",
    "MAP_SHARED",
    "MAP_SPECIAL",
    "MAP_STACK",
    "MAX_NAME",
    "MAX_PROCESSES",
    "MICRO_OPS",
    "NAME_PATTERN",
    "NO_EXPECT",
    "OPS",
    "PAGE",
    "PAGE_TABLE_BYTES",
    "PMD_BYTES",
    "PROT",
    "TASK_SIZE",
    "TOUCH_FLAGS",
    "WALKER_KINDS",
    "WARM_UP_SHARE",
    "Call",
    "CallError",
    "File",
    "Phase",
    "Workload",
    "folder",
    "format_call",
    "line_of_key",
    "load",
    "names",
    "page_up",
    "parse_call",
    "parse_time",
]
