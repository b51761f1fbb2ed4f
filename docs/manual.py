# SPDX-License-Identifier: MIT
"""Writes the man page, docs/emu.1, from what the commands say of themselves with --help.

``make man`` runs it. What no command says is below: files, exit status.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main

from emu._version import __version__
from emu.cli import app

PAGE = Path(__file__).with_name("emu.1")

DESCRIPTION = """\
mm-emu runs designs of the locks around i_mmap and mmap_lock in user space: on this machine's CPUs
(native engine, measured), or on a model of a machine that one doesn't have, in virtual time
(virtual engine, predicted). Results are kept in a store and can be shown, compared and exported.
"""

EPILOGUE = """\
.SH EXIT STATUS
.TP
0
Done.
.TP
1
A cell failed, or a check found something.
.TP
2
The input was wrong; one line on stderr says what, where and what would be right.
.TP
130
Interrupted. Finished cells are kept, and the same command goes on with the run.
.SH FILES
.TP
\\fI$XDG_DATA_HOME/mm\\-emu/runs\\fR
The store, where no \\fB\\-\\-store\\fR says another. $XDG_DATA_HOME is ~/.local/share by default.
.TP
\\fI$XDG_CACHE_HOME/mm\\-emu/designs\\fR
Compiled designs of the user's own. $XDG_CACHE_HOME is ~/.cache by default.
.SH SEE ALSO
.BR lstopo (1),
.BR strace (1),
.BR perf\\-c2c (1)
"""


def escaped(text: str) -> str:
    """As roff text: nothing of it is a request or an escape, and a hyphen can be copied."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return re.sub(r"^(?=[.'])", r"\\&", text, flags=re.MULTILINE)


def filled(text: str) -> str:
    """One paragraph; `code` is bold."""
    line = " ".join(text.split())
    return re.sub(r"`([^`]+)`", r"\\fB\1\\fR", escaped(line))


def commands(command: Any, path: tuple[str, ...] = ("emu",)) -> Iterator[tuple[str, Any]]:
    """Every command that does something, with all its words, in the order of --help."""
    below = getattr(command, "commands", None)
    if below is None:
        yield " ".join(path), command
        return
    for name, child in below.items():
        yield from commands(child, (*path, name))


def synopsis(param: Any) -> str:
    """An option or argument, as ``--cpus N`` or ``FILE.c``."""
    if param.param_type_name == "argument":
        return str(param.metavar or param.name)
    value = "" if param.is_flag else f" {param.metavar or param.name.upper()}"
    return ", ".join(param.opts) + value


def described(param: Any) -> str:
    """What it says of itself, and its default."""
    text = " ".join((param.help or "").split())
    shown = param.param_type_name == "option" and param.show_default
    if shown and param.default not in (None, False) and "Default:" not in text:
        text += f"  Default: {param.default}"
    return text


def section(name: str, command: Any) -> Iterator[str]:
    """A command: its synopsis, what it does, examples, arguments and options."""
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    words = [name, "[OPTIONS]", *(synopsis(argument) for argument in arguments)]
    yield f".SS {escaped(name)}"
    yield f".B {escaped(' '.join(words))}"
    for paragraph in f"{command.help}\n\n{command.epilog or ''}".strip().split("\n\n"):
        example = paragraph.removeprefix("Example: ")
        if example != paragraph:
            yield f".P\nExample:\n.RS\n.nf\n{escaped(' '.join(example.split()))}\n.fi\n.RE"
        else:
            yield f".P\n{filled(textwrap.dedent(paragraph))}"
    for param in command.params:
        if not param.hidden:
            yield f".TP\n\\fB{escaped(synopsis(param))}\\fR\n{filled(described(param)) or '.br'}"


def page() -> str:
    """The whole page."""
    root = typer.main.get_command(app)
    parts = [
        '.\\" SPDX-License-Identifier: MIT',
        '.\\" Written by docs/manual.py: `make man`.',
        f'.TH EMU 1 "" "mm\\-emu {__version__}" "User Commands"',
        ".SH NAME\nemu \\- "
        + escaped(str(root.help).rstrip(".").replace("Locking", "run locking")),
        ".SH SYNOPSIS\n.B emu\n[\\-\\-version] [\\-\\-help]",
        ".br\n.B emu\n\\fICOMMAND\\fR [OPTIONS]",
        f".SH DESCRIPTION\n{filled(DESCRIPTION)}",
        ".SH COMMANDS\nEach has \\fB\\-\\-help\\fR.",
        *(text for name, command in commands(root) for text in section(name, command)),
    ]
    return "\n".join(parts) + "\n" + EPILOGUE


if __name__ == "__main__":
    PAGE.write_text(page())
