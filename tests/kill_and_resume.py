# SPDX-License-Identifier: MIT
"""Kill a run at random moments, go on with it each time, and compare with one that nobody killed.

    python tests/kill_and_resume.py --kills 20 --store DIR -- i_mmap-hygon --cpus 1,64

DIR gets two stores, ``whole`` and ``killed``. What had finished before a kill must never be touched
again, and in the end both stores must hold the same cells and histograms. tests/test_store.py does
this with a small experiment.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import sqlite3
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from emu_command import COMMAND, children, start

from emu.store import Store


def rows(store: Store, query: str) -> list[tuple[Any, ...]]:
    """What the database of a store has."""
    with (
        contextlib.closing(sqlite3.connect(store.directory / "store.sqlite")) as connection,
        connection,
    ):
        return connection.execute(query).fetchall()


def contents(store: Store) -> tuple[list[Any], list[Any]]:
    """Documents and histograms of the only run, without what the host's time is in."""
    (run,) = store.ids()
    documents = []
    for number, text in rows(store, "SELECT number, document FROM cell ORDER BY number"):
        document = json.loads(text)
        del document["host"]
        documents.append((number, document))
    query = f"SELECT number, phase, op, buckets FROM histogram WHERE run = '{run}' ORDER BY 1, 2, 3"
    return documents, rows(store, query)


def finished(store: Store) -> dict[int, float]:
    """When each cell was finished, in seconds since 1970, by its number."""
    if not store.ids():
        return {}
    return dict(rows(store, "SELECT number, finished_s FROM cell WHERE status IS NOT NULL"))


def kill_often(
    arguments: Sequence[str], store: Store, kills: int, *, most_s: float, seed: int = 1
) -> int:
    """Start ``emu`` and kill it, again and again; how many cells are there then.

    Every other kill comes while it starts, within ``most_s``; the others soon after a cell or two.
    """
    chance = random.Random(seed)
    before: dict[int, float] = {}
    for turn in range(kills):
        process = start(*arguments, "--store", str(store.directory))
        if turn % 2:
            time.sleep(chance.uniform(0, most_s))
        else:
            wanted = len(before) + chance.choice((0, 0, 1))
            while process.poll() is None:
                if children(process.pid) and len(finished(store)) >= wanted:
                    break
                time.sleep(0.02)
            time.sleep(chance.uniform(0, 0.05))
        process.kill()
        process.communicate()
        now = finished(store)
        assert {number: now[number] for number in before} == before, "a finished cell was touched"
        before = now
    return len(before)


def end(arguments: Sequence[str], store: Store) -> str:
    """Run it to its end; what it says. Finished cells must stay as they are."""
    before = finished(store)
    command = [*COMMAND, *arguments, "--store", str(store.directory)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == 0, done.stderr
    now = finished(store)
    assert {number: now[number] for number in before} == before, "a finished cell was touched"
    return done.stderr


def compare(killed: Store, whole: Store) -> int:
    """They must be equal; the number of cells."""
    assert contents(killed) == contents(whole), "the stores differ"
    assert rows(killed, "PRAGMA integrity_check") == [("ok",)]
    (summary,) = killed.summaries()
    assert (summary.status, summary.done) == ("done", summary.total)
    return summary.total


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--store", type=Path, required=True, help="a directory for two stores")
    parser.add_argument("experiment", nargs="+", help="what `emu run` gets")
    options = parser.parse_args()
    arguments = ["run", *options.experiment]
    whole, killed = Store(options.store / "whole"), Store(options.store / "killed")
    there = kill_often(arguments, killed, options.kills, most_s=3.0, seed=options.seed)
    print(f"killed {options.kills} times, {there} cells are there", flush=True)
    end(arguments, killed)
    end(arguments, whole)
    print(f"all {compare(killed, whole)} cells are equal to those of a run that nobody killed")


if __name__ == "__main__":
    main()
