# SPDX-License-Identifier: MIT
"""The two kinds of errors that reach a user. Anything else that is raised is a bug in mm-emu.

The command line prints either as one line on stderr, without a traceback.
"""

import contextlib
import difflib
import errno
import re
from collections.abc import Iterable, Iterator

USED_UP = (
    *(errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM),
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO),
)
"""What the host may run out of at any place, which is no bug of ours."""


class EmuError(Exception):
    """An operating failure: a dead worker, no shared memory, a full disk. Exit status 1."""


class InputError(EmuError):
    """The user's input is wrong. Says what, where, and what would be right. Exit status 2.

    Input is quoted in it, and may come from strangers: control characters are made visible, so that
    it stays one line and tells a terminal nothing.
    """

    key = ""
    """The word of an experiment that is wrong, or whose value is; "": none, or it is not known."""

    def __init__(self, message: str = "") -> None:
        super().__init__(re.sub(r"[\x00-\x1f\x7f-\x9f]", lambda m: repr(m[0])[1:-1], message))


@contextlib.contextmanager
def about(key: str) -> Iterator[None]:
    """What is wrong in here is the value of this word of an experiment."""
    try:
        yield
    except InputError as error:
        error.key = error.key or key
        raise


def nearest(wrong: str, valid: Iterable[str]) -> str:
    """ " (did you mean 'x'?)" for the name that ``wrong`` is most like, "" when it is like none."""
    close = difflib.get_close_matches(wrong, list(valid), n=1, cutoff=0.5)
    return f" (did you mean '{close[0]}'?)" if close else ""


def unknown(what: str, name: str, names: Iterable[str]) -> InputError:
    """The error for a name that is not there: lists those that are."""
    valid = list(names)
    return InputError(f"no {what} '{name}'{nearest(name, valid)}; there are: {', '.join(valid)}")
