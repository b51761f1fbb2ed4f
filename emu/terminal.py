# SPDX-License-Identifier: MIT
"""What goes to a terminal. Names come from files that others wrote: none may steer it.

All that is printed and may hold such a name goes through ``printable`` or a ``SafeConsole``.
"""

from __future__ import annotations

import copy
import re
import select
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, TextIO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.measure import Measurement
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

# Control characters but for tab and newline, those that turn the direction of writing, and what
# stands for bytes of a file's name that are not UTF-8, which cannot be written.
_STEERS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)

LOOK: dict[str, Any] = {"pad_edge": False, "padding": (0, 2, 0, 0), "header_style": "bold"}
"""Of every table: columns that a pipe can take apart."""

_ANY_WIDTH = 100_000
"""Of a line that has room for everything."""


def is_read(stream: TextIO) -> bool:
    """False: it is a pipe that nobody reads any more."""
    gone = select.poll()
    gone.register(stream, 0)
    return not gone.poll(0)


def printable(text: str) -> str:
    r"""The text, with what would steer a terminal written out: ``\x1b``."""
    return _STEERS.sub(lambda match: ascii(match[0])[1:-1], text)


class SafeConsole(Console):
    """A console that shows text as it is: no markup, no highlighting, nothing that steers."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """See rich. Before it is measured."""
        return super().render_str(printable(text), **options)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """See rich. The console's own colours are put in later."""
        for segment in super().render(renderable, options):
            if segment.control:
                yield segment
            else:
                yield Segment(printable(segment.text), segment.style)


def stdout_console() -> Console:
    """The one for standard output: plain where that is no terminal."""
    return SafeConsole() if sys.stdout.isatty() else plain_console(sys.stdout)


def plain_console(file: Any) -> Console:
    """A console for a file or a pipe: no colour, and lines are never broken."""
    return SafeConsole(file=file, width=_ANY_WIDTH, no_color=True, force_terminal=False)


class WholeTable(Table):
    """A table in parts, one below the other, where it is wider than the console.

    rich would cut numbers off and leave columns out. Each part begins with the first columns, which
    say what a row is about.
    """

    keys: int = 1
    """How many of the first columns do."""
    tied: Sequence[int] = ()
    """Columns that mean something only beside the one before."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Any]:
        """See rich."""
        for part in self._parts(console, options):
            yield from super(WholeTable, part).__rich_console__(console, options)

    def _parts(self, console: Console, options: ConsoleOptions) -> Iterator[WholeTable]:
        blocks: list[list[int]] = []
        for number in range(self.keys, len(self.columns)):
            if number in self.tied:
                blocks[-1].append(number)
            else:
                blocks.append([number])
        first = list(range(self.keys))
        numbers = first
        for block in blocks:
            wider = self._of([*numbers, *block])
            if numbers != first and wider._width(console, options) > options.max_width:
                yield self._of(numbers)
                numbers = first
            numbers = [*numbers, *block]
        yield self._of(numbers)

    def _of(self, numbers: Sequence[int]) -> WholeTable:
        part = copy.copy(self)
        # Where not even one column fits, it is names that are folded: they are the longest.
        part.columns = [
            replace(self.columns[number], _index=index, no_wrap=False, overflow="fold")
            for index, number in enumerate(numbers)
        ]
        return part

    def _width(self, console: Console, options: ConsoleOptions) -> int:
        return Measurement.get(console, options.update(max_width=_ANY_WIDTH), self).maximum
