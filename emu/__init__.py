"""mm-emu: locking designs for i_mmap and mmap_lock, side by side.

>>> import emu
>>> run = emu.run(rmap="single,numa-locks", cpus="1,2", duration="100ms")
>>> print(run)                  # the table that `emu run` prints
>>> run.array("ops_per_s")      # one number a cell
>>> run.to_pandas()             # a row a cell
>>> emu.load("last")            # a stored run
>>> emu.compare("last:single", "last:numa-locks")
>>> emu.check("numa-locks", schedules=1000)    # what `emu check` prints
"""

import contextlib
import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emu._version import __version__

if TYPE_CHECKING:
    from emu.checking import Checked, check
    from emu.errors import EmuError, InputError
    from emu.experiment import compare, load, run
    from emu.results import CellResult, Run

__all__ = [
    "CellResult",
    "Checked",
    "EmuError",
    "InputError",
    "Run",
    "__version__",
    "check",
    "compare",
    "load",
    "run",
]

# A checkout in the current directory hides the installed package; what only the build makes (and
# what lies elsewhere in the checkout) is then found in the installed one.
if not (Path(__file__).parent / "lib").is_dir():
    import importlib.metadata

    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        __path__.append(str(importlib.metadata.distribution("mm-emu").locate_file("emu")))

_HOME = {
    "CellResult": "emu.results",
    "Checked": "emu.checking",
    "EmuError": "emu.errors",
    "InputError": "emu.errors",
    "Run": "emu.results",
    "check": "emu.checking",
    "compare": "emu.experiment",
    "load": "emu.experiment",
    "run": "emu.experiment",
}


def __getattr__(name: str) -> Any:
    # On first use: the command line has to say how many threads numpy may make before it is loaded.
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'emu' has no attribute {name!r}")
