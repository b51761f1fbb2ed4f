# SPDX-License-Identifier: MIT
"""The two kinds of errors that reach a user. Anything else that is raised is a bug in mm-emu.

The command line prints either as one line on stderr, without a traceback.
"""


class EmuError(Exception):
    """An operating failure: a dead worker, no shared memory, a full disk. Exit status 1."""


class InputError(EmuError):
    """The user's input is wrong. Says what, where, and what would be right. Exit status 2."""
