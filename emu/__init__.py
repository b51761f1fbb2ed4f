"""mm-emu: locking designs for i_mmap and mmap_lock, side by side.

>>> import emu
>>> run = emu.run(rmap="single,numa-locks", cpus="1,2", duration="100ms")
>>> print(run)                  # the table that `emu run` prints
>>> run.array("ops_per_s")      # one number a cell
>>> emu.load("last")            # a stored run
"""

import importlib.metadata
from pathlib import Path

# A checkout in the current directory hides the installed package; what only the build makes (and
# what lies elsewhere in the checkout) is then found in the installed one.
if not (Path(__file__).parent / "lib").is_dir():
    try:
        __path__.append(str(importlib.metadata.distribution("mm-emu").locate_file("emu")))
    except importlib.metadata.PackageNotFoundError:
        pass

from emu._version import __version__
from emu.errors import EmuError, InputError
from emu.experiment import load, run
from emu.results import CellResult, Run

__all__ = ["CellResult", "EmuError", "InputError", "Run", "__version__", "load", "run"]
