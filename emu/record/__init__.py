# SPDX-License-Identifier: MIT
"""Records a real command as a workload.

    setarch -R strace -f -y -e trace=mmap,...,execve,clone,... COMMAND

gives what the command's processes ask of the mm, at addresses that are the same every time. What
the kernel maps by itself during execve is in no trace: it is worked out from the ELF headers, in
the order of the kernel's load_elf_binary(). strace holds each process for a moment where it calls
exit_group or execve, and its /proc/PID/maps is read there. The recorded calls, carried out on a
model of an mm, must lead to exactly that, or there is no recording. A process that is killed is
held nowhere; where its program lay, the dynamic loader shows, which is asked to list libraries.

Processes that ran at the same time are put one into the other: a child runs to its end where it was
forked, then its parent goes on. The calls of a process's threads become one sequence, in the order
in which they took effect.

    command.py  from a command to a recording
    strace.py   runs it; log.py reads what strace wrote
    build.py    one stream of calls; elf.py, what the kernel maps by itself
    mm.py       the model; verify.py compares it with the real processes
    write.py    the workload as text
"""

from __future__ import annotations

from emu.record.command import Recording, record
from emu.record.elf import read_elf
from emu.record.write import Each, Point

__all__ = ["Each", "Point", "Recording", "read_elf", "record"]
