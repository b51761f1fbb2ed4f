# SPDX-License-Identifier: MIT
"""Options that several commands have."""

from pathlib import Path
from typing import Annotated

import typer

StoreOption = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Where runs are kept.  Default: the user's data folder"),
]
