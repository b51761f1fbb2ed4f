# SPDX-License-Identifier: MIT
"""Records a window of a phase on the virtual machine, for ``report.trace``."""

from __future__ import annotations

import ctypes
from functools import cache

import numpy as np

from emu import _core
from emu.report.trace import Slice, Trace, Window

_ROOM = 1 << 20
"""Slices that a trace has room for, 64 bytes each."""


class Recorder:
    """Records from its making on; ``finish`` when the phase is over and its names still known."""

    def __init__(self, core: _core.Core, window: Window) -> None:
        self._core = core
        self._start_ns: int = core.clock_ns()
        self._slices = np.empty(_ROOM, _core.SLICE_DTYPE)
        first_ns = self._start_ns + window.first_ns
        last_ns = first_ns + window.length_ns
        core.virtual_slices(self._slices.ctypes.data, _ROOM, first_ns, last_ns)

    def finish(self) -> Trace:
        """Stop recording and give names to everything."""
        core, start_ns = self._core, self._start_ns
        full_ns = ctypes.c_uint64()
        number = core.virtual_sliced(ctypes.byref(full_ns))
        core.virtual_slices(None, 0, 0, 0)

        @cache
        def lock(class_id: int) -> str:
            name, file = core.lock_class_name(class_id)
            return f"{name} {file}" if file else name

        @cache
        def stack(number: int) -> str:
            return core.text_of("virtual_stack_path", number)

        @cache
        def symbol(offset: int) -> str:
            return core.text_of("virtual_symbol", offset)

        site = cache(core.cpu_site_path)
        trace = Trace(full_ns=full_ns.value - start_ns if full_ns.value else None)
        for record in self._slices[:number].tolist():
            start, end, at, cpu, number, what, site_id, stack_id, _ = record
            kind = _core.SLICE_KINDS[number]
            args = {}
            if kind == "call":
                name = _core.CALL_NAMES[what]
            else:
                if kind in ("spin", "sleep"):
                    name = kind
                    args["on"] = symbol(at)
                else:
                    name = f"{kind} {lock(what)}"
                    args["lock"] = lock(what)
                if kind == "hold":
                    args["at"] = hex(at)
                args["site"] = site(cpu, site_id)
                args["stack"] = stack(stack_id)
            trace.slices.append(Slice(cpu, start - start_ns, end - start_ns, kind, name, args))
        return trace
