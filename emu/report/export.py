# SPDX-License-Identifier: MIT
"""A run as a file for other programs."""

from __future__ import annotations

import io
from collections.abc import Callable

from emu.errors import InputError
from emu.report.text import choose, comma_separated
from emu.results import Run


def _csv(run: Run) -> bytes:
    return comma_separated(choose(run, None)).encode()


def _parquet(run: Run) -> bytes:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise InputError("--format parquet needs pyarrow: pip install pyarrow") from None
    out = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(run.rows()), out)
    return out.getvalue()


EXPORTS: dict[str, Callable[[Run], bytes]] = {
    "csv": _csv,
    "json": Run.to_json,
    "parquet": _parquet,
}
