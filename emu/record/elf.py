# SPDX-License-Identifier: MIT
"""What the kernel looks at in an executable: its program headers."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

from emu.errors import InputError
from emu.workload import PROT


@dataclass(frozen=True)
class Segment:
    """A PT_LOAD entry of a program header."""

    offset: int
    vaddr: int
    filesz: int
    memsz: int
    prot: int


@dataclass(frozen=True)
class Elf:
    """What load_elf_binary() looks at."""

    fixed: bool
    """ET_EXEC: the addresses are final."""
    segments: tuple[Segment, ...]
    interpreter: str | None
    stack_prot: int


def read_elf(path: str) -> Elf:
    """The program headers of a 64-bit little-endian ELF file. Raises InputError for others."""
    data = Path(path).read_bytes()
    if data[:6] != b"\x7fELF\x02\x01":
        raise InputError(f"{path} is no 64-bit ELF file")
    (kind,) = struct.unpack_from("<H", data, 16)
    (table,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    segments: list[Segment] = []
    interpreter = None
    stack_prot = PROT["PROT_READ"] | PROT["PROT_WRITE"]
    for index in range(count):
        header = struct.unpack_from("<IIQQQQQQ", data, table + index * size)
        p_type, p_flags, offset, vaddr, _, filesz, memsz, _ = header
        # PF_R, PF_W, PF_X = 4, 2, 1
        prot = (p_flags & 4) >> 2 | p_flags & 2 | (p_flags & 1) << 2
        if p_type == 1:  # PT_LOAD
            segments.append(Segment(offset, vaddr, filesz, memsz, prot))
        elif p_type == 3:  # PT_INTERP
            interpreter = data[offset : offset + filesz].rstrip(b"\0").decode()
        elif p_type == 0x6474E551:  # PT_GNU_STACK
            stack_prot |= prot
    if kind not in (2, 3) or not segments:
        raise InputError(f"{path} is no executable")
    return Elf(kind == 2, tuple(segments), interpreter, stack_prot)
