"""A progress bar for commands that may take longer than two seconds."""

from __future__ import annotations

import time

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column

from emu.terminal import SafeConsole

_AFTER_S = 2.0
_LINE_EVERY_S = 30.0


class ProgressBar:
    """On a terminal a bar, from 2 s on; elsewhere a line now and then. All of it goes to stderr.

    It has no thread: workers are forked.
    """

    def __init__(self) -> None:
        self._console = SafeConsole(stderr=True)
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._began = self._told = time.monotonic()

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *error: object) -> None:
        self.clear()

    def clear(self) -> None:
        """Take the bar away, so that a line can be printed; the next update brings it back."""
        if self._bar:
            self._bar.stop()
            self._bar = None

    def say(self, line: str) -> None:
        """At once, and not only in the output at the end."""
        self._console.print(f"emu: {line}", soft_wrap=True)

    def update(self, done: float, total: int, what: str) -> None:
        """``done`` of ``total`` are there and ``what`` goes on."""
        now = time.monotonic()
        if not self._console.is_terminal:
            if now - self._told > _LINE_EVERY_S:
                self._told = now
                self.say(f"{int(done)} of {total}, {what}")
            return
        if now - self._began < _AFTER_S:
            return
        if not self._bar:
            self._bar = Progress(
                TextColumn("{task.completed:.0f}/{task.total:.0f}"),
                BarColumn(bar_width=20),
                TimeElapsedColumn(),
                TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
                console=self._console,
                auto_refresh=False,
                transient=True,
            )
            self._task = self._bar.add_task("", total=total)
            self._bar.start()
        self._bar.update(self._task, completed=done, description=what, refresh=True)
