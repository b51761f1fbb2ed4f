# SPDX-License-Identifier: MIT
"""What goes to a terminal. Names come from files that others wrote: none may steer it.

All that is printed and may hold such a name goes through ``printable`` or a ``SafeConsole``.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

# Control characters but for tab and newline, those that turn the direction of writing, and what
# stands for bytes of a file's name that are not UTF-8, which cannot be written.
_STEERS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


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
    return SafeConsole(file=file, width=200, no_color=True, force_terminal=False)
