# SPDX-License-Identifier: MIT
"""Bugs planted in copies of designs and locks, each of a kind that was really made somewhere.

``python tests/planted.py`` prints which policy finds each after how many schedules.
"""

from __future__ import annotations

import re
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from emu import explore
from emu.coordinator import StopFlag

ROOT = Path(__file__).parents[1]
WORKERS = ROOT / "workers"
FOLDER = Path(__file__).parent / "planted"


@dataclass(frozen=True)
class Bug:
    """What is changed in a copy of ``base``, and what comes of it."""

    name: str
    base: str
    """A file below workers/, or of tests/planted."""
    edits: tuple[tuple[str, str], ...]
    scenario: str
    kinds: tuple[str, ...]
    """What it may show up as."""
    params: str = ""
    part: str = ""
    """The edits are to this header of include/emu, or this file below workers/, which the copy then
    includes."""
    mm: str = ""
    """The mm design, where the base is none."""

    @property
    def is_design(self) -> bool:
        return self.base.startswith("designs/")

    @property
    def of_small_mm(self) -> bool:
        return self.base == "scenarios/mm.c"


RULE, RACE, DEADLOCK, MEMORY = "rule", "data race", "deadlock", "memory"
LEAK, ASSERT, LIVELOCK, ORDER, FAULT = "leak", "assertion", "livelock", "lock order", "fault"
BROKEN = (RULE, RACE, MEMORY, ASSERT, FAULT, LIVELOCK)
"""A tree that two change at once may break in any way."""

SHARDS = "shards=2"
DYNAMIC = "threshold=0,shards=2"


def rmap(
    name: str,
    design: str,
    old: str,
    new: str,
    scenario: str,
    *kinds: str,
    params: str = "",
    part: str = "",
) -> Bug:
    return Bug(name, f"designs/rmap/{design}.c", ((old, new),), scenario, kinds, params, part)


def lock(name: str, file: str, old: str, new: str, scenario: str, *kinds: str) -> Bug:
    header = file if file.endswith(".h") else ""
    base = f"sync/{file.removesuffix('.h')}.c" if header else f"sync/{file}"
    return Bug(name, base, ((old, new),), scenario, kinds, part=header)


def mm(
    name: str, design: str, old: str, new: str, scenario: str, *kinds: str, part: str = ""
) -> Bug:
    return Bug(name, f"designs/mm/{design}.c", ((old, new),), scenario, kinds, part=part)


def small_mm(
    name: str, part: str, old: str, new: str, scenario: str, *kinds: str, design: str
) -> Bug:
    return Bug(name, "scenarios/mm.c", ((old, new),), scenario, kinds, part=part, mm=design)


DESIGNS = [
    rmap(
        "child in its CPU's tree",
        "numa-trees",
        "prevs ? prevs[i]->i_mmap_index : emu_node_id();\n\tdown_write(&nt->i_mmap_rwsem);\n"
        "\tfor (uint32_t i = 0; i < n; i++)\n\t\ti_mmap_tree_insert_after("
        "tree_of(nt, vmas[i]), vmas[i], prevs ? prevs[i] : NULL);",
        "emu_node_id();\n\tdown_write(&nt->i_mmap_rwsem);\n\t(void)prevs;\n"
        "\tfor (uint32_t i = 0; i < n; i++)\n"
        "\t\ti_mmap_tree_insert(tree_of(nt, vmas[i]), vmas[i]);",
        "threads-fork",
        RULE,
    ),
    rmap(
        "child before its parent",
        "single",
        "i_mmap_tree_insert_after(&s->i_mmap, vmas[i], prevs ? prevs[i] : NULL);",
        "{\n\t\tif (prevs)\n\t\t\ti_mmap_tree_remove(&s->i_mmap, prevs[i]);\n"
        "\t\ti_mmap_tree_insert(&s->i_mmap, vmas[i]);\n\t\tif (prevs)\n"
        "\t\t\ti_mmap_tree_insert_after(&s->i_mmap, prevs[i], vmas[i]);\n\t}",
        "fork-truncate",
        RULE,
    ),
    rmap(
        "walk without the lock",
        "single",
        "\tif (!try_lock)\n\t\tdown_read(&s->i_mmap_rwsem);\n"
        "\telse if (!down_read_trylock(&s->i_mmap_rwsem))\n\t\treturn -EAGAIN;\n"
        "\tret = i_mmap_tree_walk(&s->i_mmap, first, last, fn, arg);\n"
        "\tup_read(&s->i_mmap_rwsem);",
        "\t(void)try_lock;\n\tret = i_mmap_tree_walk(&s->i_mmap, first, last, fn, arg);",
        "split-walk",
        *BROKEN,
    ),
    rmap(
        "lock dropped between prepare and complete",
        "single",
        "\tif (vp->insert)\n\t\ti_mmap_tree_insert(&s->i_mmap, vp->insert);\n}",
        "\tif (vp->insert)\n\t\ti_mmap_tree_insert(&s->i_mmap, vp->insert);\n"
        "\tup_write(&s->i_mmap_rwsem);\n\tdown_write(&s->i_mmap_rwsem);\n}",
        "split-walk",
        *BROKEN,
    ),
    rmap(
        "merged VMA stays linked",
        "single",
        "\tif (vp->remove)\n\t\ti_mmap_tree_remove(&s->i_mmap, vp->remove);\n",
        "",
        "adjacent",
        *BROKEN,
    ),
    rmap(
        "merged VMA is freed twice",
        "single",
        "\tif (vp->remove)\n\t\ti_mmap_tree_remove(&s->i_mmap, vp->remove);\n",
        "\tif (vp->remove) {\n\t\ti_mmap_tree_remove(&s->i_mmap, vp->remove);\n"
        "\t\temu_free(vp->remove);\n\t}\n",
        "split-walk",
        MEMORY,
    ),
    rmap(
        "lock kept by a walk that ends early",
        "single",
        "\tup_read(&s->i_mmap_rwsem);\n\treturn ret;",
        "\tif (ret)\n\t\treturn ret;\n\tup_read(&s->i_mmap_rwsem);\n\treturn ret;",
        "exit-reclaim",
        LEAK,
        DEADLOCK,
    ),
    rmap(
        "no lock for a single VMA",
        "single",
        "\tdown_write(&s->i_mmap_rwsem);\n\tfor (uint32_t i = 0; i < n; i++)\n"
        "\t\ti_mmap_tree_remove(&s->i_mmap, vmas[i]);\n\tup_write(&s->i_mmap_rwsem);",
        "\tif (n > 1)\n\t\tdown_write(&s->i_mmap_rwsem);\n\tfor (uint32_t i = 0; i < n; i++)\n"
        "\t\ti_mmap_tree_remove(&s->i_mmap, vmas[i]);\n\tif (n > 1)\n"
        "\t\tup_write(&s->i_mmap_rwsem);",
        "convert",
        *BROKEN,
    ),
    rmap(
        "mapped() believes an empty tree",
        "single",
        "return !i_mmap_tree_empty(&rmap_private(mapping, struct single)->i_mmap) ||\n"
        "\t       single_walk(mapping, 0, UINT64_MAX, false, rmap_found, NULL);",
        "return !i_mmap_tree_empty(&rmap_private(mapping, struct single)->i_mmap);",
        "last-mapping",
        RULE,
    ),
    rmap(
        "trylock walk that waits",
        "single",
        "\telse if (!down_read_trylock(&s->i_mmap_rwsem))\n\t\treturn -EAGAIN;",
        "\telse\n\t\tdown_read(&s->i_mmap_rwsem);\n\t(void)-EAGAIN;",
        "exit-reclaim",
        RULE,
    ),
    rmap(
        "two files' locks in two orders",
        "single",
        "\tdown_write(&s->i_mmap_rwsem);\n\tfor (uint32_t i = 0; i < n; i++)\n"
        "\t\ti_mmap_tree_insert_after(&s->i_mmap, vmas[i], prevs ? prevs[i] : NULL);\n"
        "\tup_write(&s->i_mmap_rwsem);",
        "\tstruct address_space *other = mapping - mapping->id + 1 - mapping->id;\n"
        "\tstruct single *o = rmap_private(other, struct single);\n\n"
        "\tdown_write(&s->i_mmap_rwsem);\n\tif (prevs)\n\t\tdown_write(&o->i_mmap_rwsem);\n"
        "\tfor (uint32_t i = 0; i < n; i++)\n"
        "\t\ti_mmap_tree_insert_after(&s->i_mmap, vmas[i], prevs ? prevs[i] : NULL);\n"
        "\tif (prevs)\n\t\tup_write(&o->i_mmap_rwsem);\n\tup_write(&s->i_mmap_rwsem);",
        "two-files",
        DEADLOCK,
        ORDER,
    ),
    rmap(
        "walker takes tree locks downwards",
        "numa-locks",
        "\tfor (; locked < emu_nr_nodes(); locked++) {\n\t\tif (!try_lock) {\n"
        "\t\t\tdown_read(&nl->nodes[locked]->rwsem);",
        "\tfor (; locked < emu_nr_nodes(); locked++) {\n\t\tif (!try_lock) {\n"
        "\t\t\tdown_read(&nl->nodes[emu_nr_nodes() - 1 - locked]->rwsem);",
        "merge-nodes",
        DEADLOCK,
        ORDER,
    ),
    rmap(
        "walker goes from lock to lock",
        "numa-locks",
        "\tfor (; locked < emu_nr_nodes(); locked++) {\n\t\tif (!try_lock) {\n"
        "\t\t\tdown_read(&nl->nodes[locked]->rwsem);",
        "\tfor (uint32_t node = 0; node < emu_nr_nodes() && !try_lock; node++) {\n"
        "\t\tdown_read(&nl->nodes[node]->rwsem);\n"
        "\t\tret = i_mmap_tree_walk(&nl->nodes[node]->tree, first, last, fn, arg);\n"
        "\t\tup_read(&nl->nodes[node]->rwsem);\n\t\tif (ret || node + 1 == emu_nr_nodes())\n"
        "\t\t\treturn ret;\n\t}\n"
        "\tfor (; locked < emu_nr_nodes(); locked++) {\n\t\tif (!try_lock) {\n"
        "\t\t\tdown_read(&nl->nodes[locked]->rwsem);",
        "merge-nodes",
        RULE,
    ),
    rmap(
        "trylock walk that starts half-way",
        "numa-locks",
        "\t\t\tret = -EAGAIN;\n\t\t\tbreak;\n\t\t}\n\t}\n",
        "\t\t\tret = -EAGAIN;\n\t\t\tbreak;\n\t\t}\n"
        "\t\tif (try_lock && i_mmap_tree_walk(&nl->nodes[locked]->tree, first, last, fn, arg))\n"
        "\t\t\tbreak;\n\t}\n\tif (try_lock && !ret)\n\t\tgoto out;\n",
        "convert",
        RULE,
    ),
    rmap(
        "batch flushed under the wrong lock",
        "numa-locks",
        "\t\tdown_write(&nt->rwsem);\n\t\ti_mmap_tree_remove(&nt->tree, vmas[i]);\n"
        "\t\tcount_vmas(mapping, -1);\n\t\tup_write(&nt->rwsem);",
        "\t\tstruct node_tree *first = tree_of(mapping, vmas[0]);\n\n"
        "\t\tdown_write(&first->rwsem);\n\t\ti_mmap_tree_remove(&nt->tree, vmas[i]);\n"
        "\t\tcount_vmas(mapping, -1);\n\t\tup_write(&first->rwsem);",
        "threads-fork",
        *BROKEN,
    ),
    Bug(
        "tree index not copied on split",
        "designs/rmap/numa-locks.c",
        (
            ("\tif (vp->insert)\n\t\tvp->insert->i_mmap_index = vp->vma->i_mmap_index;\n", ""),
            (
                "i_mmap_tree_insert(&tree_of(mapping, vp->insert)->tree, vp->insert);",
                "i_mmap_tree_insert(&tree_of(mapping, vp->vma)->tree, vp->insert);",
            ),
        ),
        "loader",
        BROKEN,
    ),
    rmap(
        "modifier without the shard's lock",
        "outer-inner",
        "\t\tdown_write(&s->shard[index]->rwsem);\n\t\tfor (uint32_t i = 0; i < n; i++)\n"
        "\t\t\ti_mmap_tree_insert(&s->shard[index]->tree, vmas[i]);\n"
        "\t\tup_write(&s->shard[index]->rwsem);",
        "\t\tfor (uint32_t i = 0; i < n; i++)\n"
        "\t\t\ti_mmap_tree_insert(&s->shard[index]->tree, vmas[i]);",
        "convert",
        *BROKEN,
        params="shards=1",
        part="rmap_shards.h",
    ),
    rmap(
        "walker shares the outer lock with modifiers",
        "outer-inner",
        "\tif (!try_lock)\n\t\tdown_write(&oi->outer);\n"
        "\telse if (!down_write_trylock(&oi->outer))\n\t\treturn -EAGAIN;\n"
        "\tret = rmap_shards_walk(oi->shards, first, last, fn, arg);\n\tup_write(&oi->outer);",
        "\tif (!try_lock)\n\t\tdown_read(&oi->outer);\n"
        "\telse if (!down_read_trylock(&oi->outer))\n\t\treturn -EAGAIN;\n"
        "\tret = rmap_shards_walk(oi->shards, first, last, fn, arg);\n\tup_read(&oi->outer);",
        "convert",
        *BROKEN,
        params=SHARDS,
    ),
    rmap(
        "walk of one shard alone",
        "outer-inner",
        "\tret = rmap_shards_walk(oi->shards, first, last, fn, arg);",
        "\tret = i_mmap_tree_walk(&oi->shards->shard[0]->tree, first, last, fn, arg);",
        "last-mapping",
        RULE,
        params="shards=3",
    ),
    rmap(
        "outer lock given back at prepare",
        "outer-inner",
        "\tdown_read(&oi->outer);\n\trmap_shards_prepare(oi->shards, vp);",
        "\tdown_read(&oi->outer);\n\trmap_shards_prepare(oi->shards, vp);\n"
        "\tup_read(&oi->outer);\n\tdown_read(&oi->outer);",
        "split-walk",
        *BROKEN,
        DEADLOCK,
        ORDER,
        params=SHARDS,
    ),
    rmap(
        "walker does not look again after it waited",
        "dynamic",
        "\t\tif (shards == shards_of(d))\n\t\t\tbreak;\n"
        "\t\t/* Converted while we waited. That happens once. */\n\t\tup_read(&d->rwsem);\n",
        "\t\tbreak;\n",
        "convert",
        RULE,
        params=DYNAMIC,
    ),
    rmap(
        "two convert one after the other",
        "dynamic",
        "\tif (!shards_of(d)) {\n\t\tif (atomic_load_explicit(",
        "\t{\n\t\tif (atomic_load_explicit(",
        "convert",
        *BROKEN,
        LEAK,
        params=DYNAMIC,
    ),
    rmap(
        "conversion turns the order round",
        "dynamic",
        "vma->i_mmap_index = (uint32_t)(i++ * shards->nr / n);",
        "vma->i_mmap_index = (uint32_t)((n - 1 - i++) * shards->nr / n);",
        "fork-truncate",
        RULE,
        params=DYNAMIC,
    ),
    rmap(
        "shards published without release",
        "dynamic",
        "atomic_store_explicit(&d->shards, shards, memory_order_release);",
        "atomic_store_explicit(&d->shards, shards, memory_order_relaxed);",
        "last-mapping",
        RACE,
        params=DYNAMIC,
    ),
    rmap(
        "shards published before they are filled",
        "dynamic",
        "\ti_mmap_tree_walk(&d->tree, 0, UINT64_MAX, count_one, &n);\n",
        "\tatomic_store_explicit(&d->shards, shards, memory_order_release);\n"
        "\tup_write(&d->rwsem);\n\tdown_write(&d->rwsem);\n"
        "\ti_mmap_tree_walk(&d->tree, 0, UINT64_MAX, count_one, &n);\n",
        "convert",
        *BROKEN,
        params=DYNAMIC,
    ),
]

LOCKS = [
    lock(
        "rwsem: unlock without release",
        "rwsem.h",
        "&sem->count, RWSEM_WRITER_LOCKED, memory_order_release)",
        "&sem->count, RWSEM_WRITER_LOCKED, memory_order_relaxed)",
        "rwsem-writers",
        RACE,
    ),
    lock(
        "rwsem: trylock without acquire",
        "rwsem.h",
        "&sem->count, &count, RWSEM_WRITER_LOCKED, memory_order_acquire,",
        "&sem->count, &count, RWSEM_WRITER_LOCKED, memory_order_relaxed,",
        "rwsem-writers",
        RACE,
    ),
    lock(
        "rwsem: readers leave without release",
        "rwsem.h",
        "count = atomic_fetch_sub_explicit(&sem->count, RWSEM_READER_BIAS, memory_order_release);",
        "count = atomic_fetch_sub_explicit(&sem->count, RWSEM_READER_BIAS, memory_order_relaxed);",
        "rwsem-mixed",
        RACE,
    ),
    lock(
        "rwsem: reader count overflows",
        "rwsem.h",
        "#define RWSEM_READER_SHIFT 8\n",
        "#define RWSEM_READER_SHIFT 62\n",
        "rwsem-mixed",
        ASSERT,
        DEADLOCK,
    ),
    lock(
        "rwsem: last reader does not wake",
        "rwsem.h",
        "\tcount -= RWSEM_READER_BIAS;\n\tif (unlikely((count &",
        "\tif (unlikely((count &",
        "rwsem-mixed",
        DEADLOCK,
    ),
    lock(
        "rwsem: reader hides from the last holder",
        "rwsem.c",
        "\tif (!(count & RWSEM_WRITER_LOCKED))\n\t\trwsem_choose(sem, count & RWSEM_READER_MASK ?"
        " RWSEM_WAKE_READERS : RWSEM_WAKE_ANY, &chosen);\n",
        "\t(void)count;\n",
        "rwsem-mixed",
        DEADLOCK,
    ),
    lock(
        "rwsem: waiters are told of too late",
        "rwsem.c",
        "\tif (sem->wait_first == waiter)\n"
        "\t\tatomic_fetch_or_explicit(&sem->count, RWSEM_FLAG_WAITERS, memory_order_relaxed);\n"
        "\twhile (!rwsem_try_write_lock_queued(sem, waiter)) {\n",
        "\twhile (!rwsem_try_write_lock_queued(sem, waiter)) {\n"
        "\t\tif (sem->wait_first == waiter)\n"
        "\t\t\tatomic_fetch_or_explicit(&sem->count, RWSEM_FLAG_WAITERS, memory_order_relaxed);\n",
        "rwsem-sleepers",
        DEADLOCK,
    ),
    lock(
        "rwsem: tried count is not taken back",
        "rwsem.c",
        "\tatomic_fetch_sub_explicit(&sem->count, undo, memory_order_relaxed);\n\treturn false;",
        "\tif (undo != RWSEM_READER_BIAS)\n"
        "\t\tatomic_fetch_sub_explicit(&sem->count, undo, memory_order_relaxed);\n\treturn false;",
        "rwsem-mixed",
        DEADLOCK,
        ASSERT,
    ),
    lock(
        "rwsem: hand-off is never taken back",
        "rwsem.c",
        "taken = (count | RWSEM_WRITER_LOCKED) & ~(RWSEM_FLAG_HANDOFF | RWSEM_FLAG_NO_SPIN);",
        "taken = (count | RWSEM_WRITER_LOCKED) & ~RWSEM_FLAG_NO_SPIN;",
        "rwsem-sleepers",
        DEADLOCK,
        ASSERT,
        LIVELOCK,
        "starvation",
    ),
    lock(
        "rwsem: wait list without its lock",
        "rwsem.c",
        "\tspin_lock(&sem->wait_lock);\n\trwsem_list_add(sem, waiter, RWSEM_WAITING_FOR_WRITE);\n",
        "\trwsem_list_add(sem, waiter, RWSEM_WAITING_FOR_WRITE);\n\tspin_lock(&sem->wait_lock);\n",
        "rwsem-sleepers",
        RACE,
    ),
    lock(
        "rwsem: reader wakes without acquire",
        "rwsem.c",
        "while (atomic_load_explicit(&waiter->waiting, memory_order_acquire))",
        "while (atomic_load_explicit(&waiter->waiting, memory_order_relaxed))",
        "rwsem-mixed",
        RACE,
    ),
    lock(
        "task: park forgets the token",
        "task.c",
        "\tif (atomic_compare_exchange_strong_explicit(token, &old, TASK_ASLEEP,"
        " memory_order_acquire,\n\t\t\t\t\t\t    memory_order_relaxed)) {",
        "\tatomic_store_explicit(token, TASK_ASLEEP, memory_order_relaxed);\n\t(void)old;\n\t{",
        "rwsem-sleepers",
        DEADLOCK,
    ),
    lock(
        "spinlock: unlock without release",
        "qspinlock.h",
        "atomic_store_explicit((_Atomic uint8_t *)&lock->val, 0, memory_order_release);",
        "atomic_store_explicit((_Atomic uint8_t *)&lock->val, 0, memory_order_relaxed);",
        "spinlock-three",
        RACE,
    ),
    lock(
        "spinlock: unlock writes the whole word",
        "qspinlock.h",
        "atomic_store_explicit((_Atomic uint8_t *)&lock->val, 0, memory_order_release);",
        "atomic_store_explicit(&lock->val, 0, memory_order_release);",
        "spinlock-three",
        RACE,
        DEADLOCK,
        ASSERT,
    ),
    lock(
        "spinlock: pending waiter loses the tail",
        "qspinlock.c",
        "atomic_fetch_add_explicit(&lock->val, EMU_QSPIN_LOCKED - QSPIN_PENDING,"
        " memory_order_relaxed);",
        "atomic_store_explicit(&lock->val, EMU_QSPIN_LOCKED, memory_order_relaxed);",
        "spinlock-three",
        RACE,
        DEADLOCK,
        FAULT,
    ),
    lock(
        "osq: the next waiter is read, not taken",
        "osq.c",
        "struct osq_node *next ="
        " atomic_exchange_explicit(&node->next, NULL, memory_order_acquire);",
        "struct osq_node *next = atomic_load_explicit(&node->next, memory_order_acquire);",
        "osq",
        *BROKEN,
        DEADLOCK,
    ),
    lock(
        "percpu rwsem: store buffering",
        "percpu_rwsem.h",
        "\tatomic_fetch_add_explicit(&sem->readers[current->cpu].count, 1, memory_order_seq_cst);\n"
        "\tif (unlikely(atomic_load_explicit(&sem->hold, memory_order_seq_cst)))",
        "\tatomic_fetch_add_explicit(&sem->readers[current->cpu].count, 1, memory_order_relaxed);\n"
        "\tif (unlikely(atomic_load_explicit(&sem->hold, memory_order_acquire)))",
        "percpu-rwsem",
        RACE,
        ASSERT,
    ),
    lock(
        "percpu rwsem: writer skips a CPU",
        "percpu_rwsem.c",
        "\tatomic_store_explicit(&sem->hold, 1, memory_order_seq_cst);\n"
        "\tfor (uint32_t cpu = 0; cpu < emu_nr_cpus(); cpu++) {",
        "\tatomic_store_explicit(&sem->hold, 1, memory_order_seq_cst);\n"
        "\tfor (uint32_t cpu = 0; cpu < 2; cpu++) {",
        "percpu-rwsem",
        RACE,
        ASSERT,
    ),
    lock(
        "percpu rwsem: reader does not take its count back",
        "percpu_rwsem.c",
        "\tatomic_fetch_sub_explicit(count, 1, memory_order_relaxed);\n\tdown_read(&sem->queue);\n",
        "\tdown_read(&sem->queue);\n\tatomic_fetch_sub_explicit(count, 1, memory_order_relaxed);\n",
        "percpu-rwsem",
        DEADLOCK,
    ),
    lock(
        "RCU: the number is read before the CPU is online",
        "rcu.c",
        "\tatomic_exchange_explicit(&this_cpu()->seen, 1, memory_order_acq_rel);\n"
        "\tsay(this_cpu());\n",
        "\tatomic_exchange_explicit(&this_cpu()->seen,\n"
        "\t\tatomic_load_explicit(&emu_rcu->started, memory_order_acquire),"
        " memory_order_acq_rel);\n",
        "rcu-slept",
        MEMORY,
        RACE,
    ),
    lock(
        "RCU: a CPU that is online again knows an old number",
        "rcu.c",
        "memory_order_acq_rel);\n\tsay(this_cpu());\n",
        "memory_order_acq_rel);\n",
        "rcu-slept",
        MEMORY,
        RACE,
    ),
    lock(
        "RCU: an idle CPU is looked at and not told",
        "rcu.c",
        "\t\tseen = atomic_fetch_add_explicit(&cpu->seen, 0, memory_order_acq_rel);",
        "\t\tseen = atomic_load_explicit(&cpu->seen, memory_order_acquire);",
        "rcu-slept",
        MEMORY,
        RACE,
    ),
    Bug("futex word repeats (ABA)", "aba.c", (), "aba", (DEADLOCK,)),
    Bug("freed before readers are done", "rcu.c", (), "rcu-free", (MEMORY, RACE)),
]

MM = [
    mm(
        "per-vma: sequence not looked at under the lock",
        "per-vma-lock",
        "if (atomic_load_explicit(&lock->seq, memory_order_relaxed) != number &&\n",
        "if ((number || !number) &&\n",
        "fault-mprotect",
        *BROKEN,
    ),
    mm(
        "per-vma: detached VMA is used",
        "per-vma-lock",
        " != number &&\n\t    !atomic_load_explicit(&lock->detached, memory_order_relaxed))",
        " != number)",
        "fault-munmap",
        *BROKEN,
    ),
    mm(
        "per-vma: writer does not wait for faults",
        "per-vma-lock",
        "\twhile (atomic_load_explicit(&lock->refcount, memory_order_acquire) != WRITER_WAITS)\n"
        "\t\ttask_park();\n",
        "",
        "fault-mprotect",
        *BROKEN,
    ),
    mm(
        "per-vma: last fault does not wake the writer",
        "per-vma-lock",
        "(WRITER_WAITS | 1))\n",
        "(WRITER_WAITS | 2))\n",
        "fault-mprotect",
        DEADLOCK,
    ),
    mm(
        "per-vma: VMA has moved since it was found",
        "per-vma-lock",
        "if (vma && (addr < vma->vm_start || addr >= vma->vm_end)) {",
        "if (!vma && addr == 1) {",
        "fault-split",
        *BROKEN,
    ),
    mm(
        "per-vma: marks end without release",
        "per-vma-lock",
        "&pv->mm_lock_seq, seq ? seq : 1, memory_order_release);",
        "&pv->mm_lock_seq, seq ? seq : 1, memory_order_relaxed);",
        "fault-mprotect",
        *BROKEN,
    ),
    mm(
        "spf: not looked at again under the table's lock",
        "spf",
        "if (atomic_load_explicit(sequence_of(vma), memory_order_acquire) == sequence)\n",
        "if (vma)\n",
        "fault-munmap",
        *BROKEN,
    ),
    mm(
        "spf: PTE without the table's lock",
        "spf",
        "\tif (!spin_trylock(&table->ptl))\n\t\treturn -ENOENT;\n",
        "\tif (spin_trylock(&table->ptl))\n\t\tspin_unlock(&table->ptl);\n",
        "fault-munmap",
        *BROKEN,
        LEAK,
    ),
    mm(
        "spf: VMA that goes stays even",
        "spf",
        "\tvm_write_begin(vma);\n\tmm_maple_change(mm, vma, to);",
        "\tif (to)\n\t\tvm_write_begin(vma);\n\tmm_maple_change(mm, vma, to);",
        "fault-munmap",
        *BROKEN,
    ),
    mm(
        "spf: PTE table is made where VMAs may be going",
        "spf",
        "\ttable = pte_find(mm, addr, NULL);\n\tif (!table)\n\t\treturn -ENOENT;\n",
        "\ttable = pte_alloc(mm, addr);\n",
        "fault-table",
        *BROKEN,
        LEAK,
    ),
    mm(
        "fault without mmap_lock",
        "mmap-lock-maple",
        "\tdown_read_for_fault(&m->mmap_lock);\n"
        "\terr = fault_in_vma(maple_load(&m->tree, addr), addr, write, busy);\n"
        "\tup_read(&m->mmap_lock);\n",
        "\terr = fault_in_vma(maple_load(&m->tree, addr), addr, write, busy);\n",
        "fault-munmap",
        *BROKEN,
        part="mm_maple.h",
    ),
    mm(
        "mprotect takes mmap_lock for reading",
        "mmap-sem-rbtree",
        "if (range->read) {",
        "if (range->read || !(range->map || range->len || range->unmapped)) {",
        "neighbours",
        *BROKEN,
        LEAK,
        DEADLOCK,
    ),
    mm(
        "address chosen before the lock",
        "mmap-lock-maple",
        "\trange->end = range->start + range->len;\n\treturn 0;",
        "\trange->end = range->start + range->len;\n"
        "\tup_write(&m->mmap_lock);\n\tdown_write(&m->mmap_lock);\n\treturn 0;",
        "free-addresses",
        *BROKEN,
        part="mm_maple.h",
    ),
    mm(
        "free addresses without their lock",
        "pt-extents",
        "\tspin_lock(&me->free_lock);\n\tfound = maple_free_area",
        "\tspin_lock(&me->free_lock);\n\tspin_unlock(&me->free_lock);\n"
        "\tspin_lock_init(&me->free_lock, EMU_CLASS_FREE_AREA);\n\tfound = maple_free_area",
        "free-addresses",
        *BROKEN,
        LEAK,
        DEADLOCK,
        part="mm_extents.h",
    ),
    mm(
        "proposed addresses are taken as free",
        "pt-extents",
        "if (!mm_extents_find(mm, range->start, range->end, NULL))",
        "if (range->len)",
        "fixed-addresses",
        *BROKEN,
        part="mm_extents.h",
    ),
    mm(
        "extent changed without the table's lock",
        "pt-extents",
        "\tspin_lock(&table->ptl);\n\tif (to)\n\t\tvma_set(vma, to);\n\telse\n"
        "\t\trb_erase(&vma->vm_rb, &extents_of(table)->vmas);\n\tspin_unlock(&table->ptl);",
        "\tif (to) {\n\t\tvma_set(vma, to);\n\t\treturn;\n\t}\n\tspin_lock(&table->ptl);\n"
        "\trb_erase(&vma->vm_rb, &extents_of(table)->vmas);\n\tspin_unlock(&table->ptl);",
        "fault-cut",
        *BROKEN,
        part="mm_extents.h",
    ),
    mm(
        "fault does not look again when a change is over",
        "pt-extents",
        "\tif (err != -EFAULT)\n\t\treturn err;\n",
        "\treturn err;\n",
        "fault-split",
        *BROKEN,
        part="mm_extents.h",
    ),
    mm(
        "fork locks nothing",
        "pt-extents",
        "\tif (!range->len) {\n\t\tlock_tables(mm, range);\n\t\treturn 0;",
        "\tif (!range->len) {\n\t\tif (range->end < EMU_TASK_SIZE)\n"
        "\t\t\tlock_tables(mm, range);\n\t\treturn 0;",
        "fork-fault",
        *BROKEN,
        LEAK,
        DEADLOCK,
        part="mm_extents.h",
    ),
    mm(
        "tree node is freed before readers are done",
        "spf",
        "emu_free_rcu(at.node);",
        "emu_free(at.node);",
        "fault-many",
        MEMORY,
        RACE,
        part="tree/maple.c",
    ),
    mm(
        "tree node published without release",
        "per-vma-lock",
        "atomic_store_explicit(at, ptr, memory_order_release);",
        "atomic_store_explicit(at, ptr, memory_order_relaxed);",
        "fault-many",
        RACE,
        part="tree/maple.c",
    ),
    small_mm(
        "munmap leaves a PTE",
        "mm/vma.c",
        "cleared += unmap_page_range(mm, vma->vm_start, vma->vm_end);",
        "cleared += unmap_page_range(mm, vma->vm_start, vma->vm_end - EMU_PAGE_SIZE);",
        "fault-munmap",
        RULE,
        ASSERT,
        design="mmap-lock-maple",
    ),
    Bug(
        "protection changed before the VMA",
        "scenarios/mm.c",
        (
            (
                "\tif (flags == vma->vm_flags)\n\t\treturn;\n",
                "\tif (flags == vma->vm_flags)\n\t\treturn;\n"
                "\tchange_protection(mm, start, end, flags);\n",
            ),
            (
                "\tif (change_protection(mm, start, end, flags))\n"
                "\t\tflush_tlb_range(mm, start, end);\n",
                "",
            ),
        ),
        "fault-mprotect",
        BROKEN,
        part="mm/mmap.c",
        mm="spf",
    ),
    small_mm(
        "faults find a VMA before walkers do",
        "mm/mmap.c",
        "\tvma_link_file(vma);\n\temu_mm->link(mm, vma);\n",
        "\temu_mm->link(mm, vma);\n\tvma_link_file(vma);\n",
        "truncate-map",
        ASSERT,
        design="spf",
    ),
    small_mm(
        "mmap_lock is downgraded while VMAs are still there",
        "mm/mmap.c",
        "\treturn clear_range(mm, start, end, downgraded);\n",
        "\tif (downgraded && emu_mm->downgrade)\n\t\temu_mm->downgrade(mm, downgraded);\n"
        "\treturn clear_range(mm, start, end, NULL);\n",
        "fault-munmap",
        *BROKEN,
        design="mmap-lock-maple",
    ),
    small_mm(
        "munmap frees tables that came after it looked",
        "mm/vma.c",
        "\tuint64_t floor = UINT64_MAX, ceiling = 0;\n",
        "\tuint64_t floor = 0, ceiling = UINT64_MAX;\n",
        "fault-first",
        RACE,
        RULE,
        LEAK,
        design="per-vma-lock",
    ),
    small_mm(
        "grace period ends while a CPU is in it",
        "sync/rcu.c",
        "\treturn !seen || seen >= n;",
        "\treturn !seen || seen >= n || cpu != this_cpu();",
        "fault-many",
        MEMORY,
        RACE,
        design="spf",
    ),
    small_mm(
        "VMA is freed before readers are done",
        "mm/vma.c",
        "\temu_free_rcu(vma);",
        "\temu_free(vma);",
        "fault-munmap",
        MEMORY,
        RACE,
        design="per-vma-lock",
    ),
]

BUGS = DESIGNS + LOCKS + MM


EXPORTED = "EMU_EXPORT const struct emu_scenario emu_scenarios"


def _text(name: str) -> str:
    """Of a file below workers/, which may include its neighbours from anywhere."""
    file = WORKERS / name
    return re.sub(r'#include "(?=[\w./]+\.h")', f'#include "{file.parent}/', file.read_text())


def _of_library(text: str) -> str:
    """Without definitions of the designs in use and RCU's state: the copy uses the library's."""
    return re.sub(r"^(const )?struct \w+ \*emu_\w+;$", "", text, flags=re.MULTILINE)


def _edit(text: str, bug: Bug) -> str:
    for old, new in bug.edits:
        assert text.count(old) >= 1, f"{bug.name}: {old!r} is not there any more"
        text = text.replace(old, new, 1)
    return text


def source(bug: Bug, directory: Path) -> Path:
    """The copy with the bug in it."""
    path = directory / f"{bug.base.rpartition('/')[2].removesuffix('.c')}.c"
    if not bug.edits:
        path.write_text((FOLDER / bug.base).read_text())
        return path
    text = _text(bug.base)
    if bug.of_small_mm:
        # With all that frees and changes VMAs, so that they call each other.
        files = {name: _text(name) for name in ("sync/rcu.c", "mm/vma.c", "mm/mmap.c")}
        files[bug.part] = _edit(files[bug.part], bug)
        text = _of_library("".join([*files.values(), text]))
        path.write_text(text.replace("const struct emu_scenario emu_mm_scenarios", EXPORTED))
        return path
    if bug.part.endswith(".c"):
        text = _edit(_text(bug.part), bug) + text
    elif bug.part:
        header = directory / bug.part
        header.write_text(_edit((WORKERS / "include" / "emu" / bug.part).read_text(), bug))
        text = f'#include "{header}"\n{text}'
    else:
        text = _edit(text, bug)
    if bug.name == "trylock walk that starts half-way":
        text = text.replace("\twhile (locked--)", "out:\n\twhile (locked--)", 1)
    if not bug.is_design:
        text = _of_library(text)
        if bug.base == "sync/task.c":
            # Who parks must use the copy too.
            text += (WORKERS / "sync" / "rwsem.c").read_text()
        text += "\n#include <emu/lock_scenarios.h>\nEMU_EXPORT LOCK_SCENARIOS(emu_scenarios);\n"
    path.write_text(text)
    return path


def units(bug: Bug, directory: Path, cleanup: ExitStack) -> list[explore.Unit]:
    """What finds the bug: its scenario, on the copy."""
    path = source(bug, directory)
    if bug.is_design:
        text = f"{path}:{bug.params}" if bug.params else str(path)
        return explore.make_units([text], explore.find_scenarios(bug.scenario, cleanup), cleanup)
    found = explore.find_scenarios(f"{path}:{bug.scenario}", cleanup)
    return explore.make_units([bug.mm] if bug.mm else [], found, cleanup)


def hunt(
    bug: Bug, directory: Path, policy: str, seconds: float, schedules: int = 0
) -> tuple[explore.Result, explore.Result | None]:
    """Look for the bug by ``policy``; and what a replay finds, in a new process."""
    with ExitStack() as cleanup, StopFlag() as stop:
        (unit,) = units(bug, directory, cleanup)
        unit = replace(unit, policy=policy, schedules=schedules, shorten_seconds=0.3)
        (result,) = explore.check([unit], seconds=seconds, stop=stop, jobs=1)
        if not result.finding or not result.finding.command:
            return result, None
        again = replace(unit, policy="replay", replay=result.finding.schedule, seed=99)
        (replayed,) = explore.check([again], seconds=seconds, stop=stop, jobs=1)
    return result, replayed


def main() -> None:
    wanted = sys.argv[1:]
    print(f"{'bug':52} {'random':>9} {'pct':>9}  found as")
    for bug in BUGS:
        if wanted and not any(word in bug.name for word in wanted):
            continue
        cells, kinds = [], set()
        for policy in ("random", "pct"):
            with tempfile.TemporaryDirectory() as directory:
                finding = hunt(bug, Path(directory), policy, 20.0)[0].finding
            cells.append(f"{finding.after:,}" if finding else "-")
            if finding:
                kinds.add(finding.kind)
        odd = "" if kinds <= set(bug.kinds) else "  NOT AS EXPECTED"
        found = ", ".join(sorted(kinds))
        print(f"{bug.name:52} {cells[0]:>9} {cells[1]:>9}  {found}{odd}", flush=True)


if __name__ == "__main__":
    main()
