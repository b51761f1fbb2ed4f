# SPDX-License-Identifier: MIT
"""The process of one emulated CPU: pin, attach, serve the coordinator, run phases.

It is forked from the coordinator with arena, core and designs in place, and talks with it over
ZeroMQ between phases only. Inside a phase it is in C and comes back when the phase is over.

Messages are structs in msgpack. Worker to coordinator: Ready, then Done or Failed for each phase.
Coordinator to worker: RunPhase, Stop.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import zmq

_PR_SET_PDEATHSIG = 1


class Ready(msgspec.Struct, tag=True, frozen=True):
    """The worker is attached to its CPU and waits for orders."""


class Done(msgspec.Struct, tag=True, frozen=True):
    """The phase is over on this CPU."""


class Failed(msgspec.Struct, tag=True, frozen=True):
    """The phase failed on this CPU; one line why."""

    error: str


class RunPhase(msgspec.Struct, tag=True, frozen=True):
    """Run the phase that is prepared in the arena."""


class Stop(msgspec.Struct, tag=True, frozen=True):
    """Exit."""


FromWorker = Ready | Done | Failed
FromCoordinator = RunPhase | Stop


@dataclass(frozen=True)
class WorkerPlan:
    """What a worker is told when it is forked. ``host_cpu`` is where it is pinned.

    ``bound``: both ends of a pipe; it ends when the coordinator listens at ``address``.
    """

    cpu: int
    host_cpu: int
    address: str
    stderr_path: Path
    parent_pid: int
    bound: tuple[int, int]


def be_a_child(parent_pid: int) -> None:
    """Leave the terminal's signals to the parent, and never outlive it."""
    faulthandler.disable()  # the coordinator tells how a worker died
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:
        os._exit(1)


def main(plan: WorkerPlan, core: Any) -> None:
    """The worker's life; ``core`` is the emu._core.Core that the coordinator has loaded."""
    be_a_child(plan.parent_pid)
    with plan.stderr_path.open("ab", buffering=0) as file:
        os.dup2(file.fileno(), 2)

    with contextlib.suppress(OSError):  # the host may have taken that CPU away meanwhile
        os.sched_setaffinity(0, {plan.host_cpu})
    core.cpu_attach(plan.cpu)

    reader, writer = plan.bound
    os.close(writer)
    os.read(reader, 1)
    os.close(reader)
    context = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.IDENTITY, b"%d" % plan.cpu)
    socket.setsockopt(zmq.RECONNECT_IVL, 20)
    socket.setsockopt(zmq.LINGER, 1000)
    socket.connect(plan.address)
    try:
        _serve(socket, core)
    finally:
        context.destroy()


def _serve(socket: zmq.Socket[bytes], core: Any) -> None:
    from emu._core import CoreError

    def send(message: FromWorker) -> None:
        socket.send(msgspec.msgpack.encode(message))

    decoder = msgspec.msgpack.Decoder(FromCoordinator)
    send(Ready())
    while isinstance(decoder.decode(socket.recv()), RunPhase):
        try:
            core.phase_run()
        except CoreError as error:
            send(Failed(str(error)))
        else:
            send(Done())
