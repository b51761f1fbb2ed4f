"""The command ``emu``, and ``python -m emu``: what has to be right before all of it is loaded."""

from __future__ import annotations

import io
import os
import signal
import sys
from types import FrameType
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_STDOUT = 1


def _end(number: int, frame: FrameType | None) -> None:
    os._exit(130)


class _Stream(io.FileIO):
    """Once nobody reads on, what is written goes nowhere: the work is done to its end, and the exit
    status tells of it. So it does once a full disk behind stdout has been told; behind stderr, at
    once."""

    def write(self, data: ReadableBuffer) -> int:
        """See io."""
        try:
            return super().write(data)
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            if isinstance(error, BrokenPipeError) or self.fileno() != _STDOUT:
                return memoryview(data).nbytes
            error.filename = "standard output"
            raise


def _outlives_its_reader(stream: TextIO) -> TextIO:
    raw = _Stream(stream.fileno(), "wb", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream is sys.stderr or stream.isatty(),
    )


def main() -> None:
    """The entry point of the command."""
    # One that is closed is None, and its number would go to the next file that is opened. This one
    # takes the lowest that is free.
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode, closefd=False))
    sys.stdout, sys.stderr = map(_outlives_its_reader, (sys.stdout, sys.stderr))
    # Loading takes a while: until the command looks after Ctrl-C, there is nothing to tidy up.
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)
    from emu.cli import main as command

    signal.signal(signal.SIGINT, before)
    # Who is not asked to end with SIGINT tidies up as well.
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, signal.default_int_handler)
    command()


if __name__ == "__main__":
    main()
