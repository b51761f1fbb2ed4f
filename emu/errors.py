# SPDX-License-Identifier: MIT
"""The two kinds of errors that reach a user. Anything else that is raised is a bug in mm-emu.

The command line prints either as one line on stderr, without a traceback.
"""

import re


class EmuError(Exception):
    """An operating failure: a dead worker, no shared memory, a full disk. Exit status 1."""


class InputError(EmuError):
    """The user's input is wrong. Says what, where, and what would be right. Exit status 2.

    Input is quoted in it, and may come from strangers: control characters are made visible, so that
    it stays one line and tells a terminal nothing.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(re.sub(r"[\x00-\x1f\x7f-\x9f]", lambda m: repr(m[0])[1:-1], message))
