# SPDX-License-Identifier: MIT
"""What ends a cell before its time: a signal, its deadline, its own failure."""

from __future__ import annotations

import contextlib
import signal
import time
from types import FrameType, TracebackType
from typing import Any, Self

from emu.errors import EmuError

HANG_S = 10.0
"""A CPU that does nothing for so long after its time is up hangs. A busy host takes far less."""


class Interrupted(Exception):
    """SIGINT or SIGTERM came. Not an error: what has finished is kept."""


class CellFailed(EmuError):
    """A cell cannot be finished. ``outside``: somebody else killed or stopped a worker."""

    def __init__(self, message: str, *, outside: bool = False) -> None:
        super().__init__(message)
        self.outside = outside


class StopFlag:
    """Turns SIGINT, SIGTERM and SIGHUP into a flag that is looked at where it is safe to stop.

    A context manager. In another than the main thread signals are left alone, and so is one that is
    ignored, as by nohup. ``restore``: give the signals back at the end; a program that is about to
    exit does not want them any more.
    """

    _SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self, *, restore: bool = True) -> None:
        self._restore = restore
        self._set = False
        self._old: dict[int, Any] = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._set = True

    def check(self) -> None:
        """Raises Interrupted once a signal has come."""
        if self._set:
            raise Interrupted

    def __enter__(self) -> Self:
        with contextlib.suppress(ValueError):
            for number in self._SIGNALS:
                if signal.getsignal(number) is signal.SIG_IGN:
                    continue
                self._old[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._restore:
            for number, handler in self._old.items():
                signal.signal(number, handler)


class Deadline(StopFlag):
    """A StopFlag that also fails the cell once its time is up."""

    def __init__(self, stop: StopFlag, timeout_ns: int) -> None:
        super().__init__()
        self._stop, self._timeout_s = stop, timeout_ns / 1e9
        self._end_s = time.monotonic() + self._timeout_s

    def check(self) -> None:
        """Raises Interrupted once a signal has come, CellFailed once the time is up."""
        self._stop.check()
        if time.monotonic() > self._end_s:
            raise CellFailed(f"not done after {self._timeout_s:g} s (--timeout)")
