# SPDX-License-Identifier: MIT
"""The host: what it is, and what on it disturbs a measurement.

Read from /proc and /sys; what a host does not tell is left out, and nothing is changed.
"""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emu.words import counted

_CPU = "/sys/devices/system/cpu"
_LOADED_SHARE = 0.1
"""Load per CPU from which on other programs are worth mentioning."""


def info() -> dict[str, Any]:
    """What the host is."""
    model, hypervisor = "unknown", False
    for line in _read("/proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name" and model == "unknown":
            model = value.strip()
        hypervisor = hypervisor or (key.strip() == "flags" and "hypervisor" in value.split())
    found = {
        "cpus": len(os.sched_getaffinity(0)),
        "model": model,
        "kernel": platform.release(),
        "machine": platform.machine(),
    }
    return found | ({"hypervisor": True} if hypervisor else {})


def state() -> dict[str, Any]:
    """What decides how steadily the host computes, as `pyperf system show` lists it."""
    found = {
        "governor": _of_all_cpus("cpufreq/scaling_governor"),
        "turbo": _turbo(),
        "smt": {"0": "off", "1": "on"}.get(_read(f"{_CPU}/smt/active")),
        "isolated_cpus": _read(f"{_CPU}/isolated"),
        "nohz_full": _read(f"{_CPU}/nohz_full").replace("(null)", ""),
        "transparent_hugepages": _chosen("/sys/kernel/mm/transparent_hugepage/enabled"),
        "numa_balancing": {"0": "off", "1": "on", "2": "on"}.get(
            _read("/proc/sys/kernel/numa_balancing")
        ),
        "mitigations": _mitigations(),
        "clocksource": _read("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
        "aslr": _read("/proc/sys/kernel/randomize_va_space"),
        "load": _read("/proc/loadavg").split(" ")[0],
        "uptime_s": _read("/proc/uptime").split(".")[0],
    }
    return {key: value for key, value in found.items() if value}


def disturbances(of: Mapping[str, Any]) -> list[str]:
    """What of a host's ``info() | state()`` disturbs a measurement: a sentence each."""
    return list(_disturbances(of))


def disturbances_of_run(of: Mapping[str, Any], nodes: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What disturbed a run's native cells: on the hosts of its cluster, else on its host."""
    if not nodes:
        return disturbances(of)
    return [f"{name}: {line}" for name, about in nodes.items() for line in disturbances(about)]


def _disturbances(of: Mapping[str, Any]) -> Iterator[str]:
    governor = of.get("governor", "performance")
    if governor != "performance":
        yield f"The frequency governor is {governor}; `cpupower frequency-set -g performance`."
    if of.get("turbo") == "on":
        yield "Turbo is on: the clock depends on temperature and on how many CPUs are busy."
    if of.get("smt") == "on":
        yield "SMT is on: emulated CPUs may share a core."
    if of.get("numa_balancing") == "on":
        yield "NUMA balancing is on and moves pages; `sysctl kernel.numa_balancing=0`."
    if of.get("transparent_hugepages") == "always":
        yield 'Transparent huge pages are "always": khugepaged may run; "madvise" is steadier.'
    if of.get("clocksource", "tsc") not in ("tsc", "arch_sys_counter", "kvm-clock"):
        yield f"The clock source is {of['clocksource']}, which is slow to read."
    if of.get("hypervisor"):
        yield "This is a virtual machine: others may take its CPUs away."
    with contextlib.suppress(ValueError):
        load, cpus = float(of.get("load", 0)), int(of.get("cpus", 1))
        if load > _LOADED_SHARE * cpus:
            yield f"Other programs run: the load was {load:g} on {counted(cpus, 'CPU')}."


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace").strip()
    except OSError:
        return ""


def _chosen(path: str) -> str:
    """The word in brackets of "always [madvise] never"."""
    return _read(path).partition("[")[2].partition("]")[0]


def _of_all_cpus(name: str) -> str:
    """What the file says for each CPU: one word, or "powersave (2), performance (6)"."""
    words = Counter(_read(f"{_CPU}/cpu{cpu}/{name}") for cpu in sorted(os.sched_getaffinity(0)))
    del words[""]
    if len(words) < 2:
        return next(iter(words), "")
    return ", ".join(f"{word} ({count})" for word, count in words.items())


def _turbo() -> str | None:
    if text := _read(f"{_CPU}/intel_pstate/no_turbo"):
        return "off" if text == "1" else "on"
    return {"0": "off", "1": "on"}.get(_read(f"{_CPU}/cpufreq/boost"))


def _mitigations() -> dict[str, str]:
    folder = Path(f"{_CPU}/vulnerabilities")
    with contextlib.suppress(OSError):
        found = {path.name: _read(str(path)) for path in sorted(folder.iterdir())}
        return {name: text for name, text in found.items() if text and text != "Not affected"}
    return {}


@dataclass(frozen=True)
class LoadMeter:
    """What else kept the host's CPUs busy since ``start``."""

    began_s: float
    busy_s: float
    stolen_s: float
    own_s: float

    @classmethod
    def start(cls) -> LoadMeter:
        """Begin to watch."""
        return cls(time.monotonic(), *_busy_s(), _own_s())

    def read(self) -> tuple[float, float]:
        """(CPUs that others kept busy, CPUs that the hypervisor kept away), on average.

        Our own children count once they have been waited for.
        """
        busy_s, stolen_s = _busy_s()
        elapsed_s = max(time.monotonic() - self.began_s, 1e-3)
        others_s = busy_s - self.busy_s - (_own_s() - self.own_s)
        return max(0.0, others_s) / elapsed_s, (stolen_s - self.stolen_s) / elapsed_s


def _busy_s() -> tuple[float, float]:
    """CPU time of all that ran, and of what the hypervisor kept, since the boot."""
    fields = [int(field) for field in _read("/proc/stat").partition("\n")[0].split()[1:9]]
    if len(fields) < 8:
        return 0.0, 0.0
    user, nice, system, _, _, irq, softirq, steal = fields
    ticks = os.sysconf("SC_CLK_TCK")
    return (user + nice + system + irq + softirq) / ticks, steal / ticks


def _own_s() -> float:
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
