# SPDX-License-Identifier: MIT
"""Follows docs/writing-a-design.md: its code is taken over, its commands print what it shows."""

from __future__ import annotations

import re
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

from emu_command import COMMAND

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "writing-a-design.md"
DEFINITION = re.compile(
    r"(?:^/\*(?:(?!\*/).)*\*/\n)?"
    r"^(?:static [^\n;={]*?\b(\w+)\([^{;]*\)\n\{.*?^\}|struct (\w+) \{.*?^\};)\n",
    flags=re.MULTILINE | re.DOTALL,
)
"""A function or struct with the comment above it."""


@dataclass
class Block:
    """A fenced block of the page."""

    language: str
    text: str


def blocks() -> list[Block]:
    found = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL)
    return [Block(language, text) for language, text in found]


def definitions(text: str) -> dict[str, str]:
    return {match[1] or match[2]: match[0] for match in DEFINITION.finditer(text)}


def edit(source: str, block: str) -> str:
    """As the reader does: what is there already is replaced, what is new comes before the rest."""
    new = ""
    for name, text in definitions(block).items():
        there = definitions(source)
        if name in there:
            source = source.replace(there[name], new + ("\n" if new else "") + text)
            new = ""
        else:
            new += ("\n" if new else "") + text
    assert not new
    return source


def shape(output: str) -> list[str]:
    """Without what depends on the compiler: numbers, widths, which file or page it was; and on the
    host: whether any walk was refused in real processes."""
    output = re.sub(r"^run .*", "run", output, flags=re.MULTILINE)
    output = re.sub(r"of (data|libpair\.so\.1)|\(an? (overlap|hole)\)|pages?", "", output)
    # None of few on a busy host.
    output = re.sub(r"^(\S+ +native .*), \d+ refused", r"\1", output, flags=re.MULTILINE)
    output = re.sub(r"deadlock: CPU \d+ waits in .*; again", "deadlock; again", output)
    return [
        re.sub(r"\s+", " ", re.sub(r"\d[\d.,]*( [munk]?s)?", "N", line)).strip()
        for line in output.splitlines()
    ]


def test_the_page_does_what_it_says(tmp_path: Path) -> None:
    mine = tmp_path / "mine.c"
    seen = []
    for block in blocks():
        if block.language == "c":
            source = edit(mine.read_text(), block.text)
            for name in definitions(block.text):
                assert definitions(source)[name] == definitions(block.text)[name]
            if source.count("lock_once(") == 1:
                source = source.replace(definitions(source)["lock_once"], "")
            mine.write_text(source)
            continue
        assert block.language == "console"
        for shown in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
            command, _, wanted = shown.partition("\n")
            program, *arguments = shlex.split(command)
            assert program == "emu"
            done = subprocess.run(
                [*COMMAND, *arguments],
                cwd=tmp_path,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=300,
                check=False,
            )
            seen.append((command, wanted, done.stdout))
            assert done.returncode == (1 if "FAILED" in wanted else 0), done.stdout
            printed = shape(done.stdout)
            if wanted.endswith("\n...\n"):  # the page leaves out the rest
                wanted = wanted.removesuffix("...\n")
                printed = printed[: wanted.count("\n")]
            assert printed == shape(wanted), (command, done.stdout)
    assert len(seen) == 7


def test_the_result_is_numa_locks(tmp_path: Path) -> None:
    """Function by function, but for names, the skeleton's parameter, and the count of VMAs with
    which the posted patches answer mapped()."""
    source = (ROOT / "workers" / "designs" / "rmap" / "skeleton.c").read_text()
    for block in blocks():
        if block.language == "c":
            source = edit(source, block.text)
    ours, theirs = (
        definitions(source),
        definitions((ROOT / "workers" / "designs" / "rmap" / "numa-locks.c").read_text()),
    )

    def plain(text: str) -> str:
        text = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
        text = re.sub(r"\tif \(vp->remove\)\n\t\tcount_vmas\(.*\n", "", text)
        text = re.sub(r"^.*(no_spin|vma_count|count_vmas).*\n", "", text, flags=re.MULTILINE)
        text = re.sub(r"\{(\n\t\t[^\n]*\n)\t\}", r"\1", text)  # round one statement
        text = text.replace("numa_locks", "skeleton").replace("nl->", "s->").replace("*nl ", "*s ")
        return re.sub(r"\s+", "", text.replace("inline ", ""))

    for name in ("count_vmas", "numa_locks_mapped"):
        assert "vma_count" in theirs.pop(name)
    for name, text in theirs.items():
        assert plain(ours[name.replace("numa_locks", "skeleton")]) == plain(text)
