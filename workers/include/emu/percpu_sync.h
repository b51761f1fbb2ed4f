/* SPDX-License-Identifier: MIT */
/*
 * percpu_sync.h - the places in queues that a CPU brings to the locks it waits for.
 *
 * A lock word names a waiter by its CPU number, so each CPU has one node of each kind, in the arena. One suffices: a
 * CPU waits for one spinlock and in one optimistic spin queue at a time, there being no interrupts.
 *
 * The machine allocates a struct emu_percpu_sync a CPU, cache-line aligned, calls emu_sync_init_cpu() on each before
 * the first CPU starts, and finds it again in emu_percpu_sync(). Only locks use what is inside.
 */
#ifndef EMU_PERCPU_SYNC_H
#define EMU_PERCPU_SYNC_H

#include <emu/osq.h>

/* A CPU's place in the queue of a qspinlock. The CPU behind writes next, the CPU in front writes locked. */
struct qspin_node {
	__cacheline_aligned struct qspin_node *_Atomic next;
	_Atomic uint32_t locked;
};

struct emu_percpu_sync {
	struct osq_node osq;
	struct qspin_node qspin;
};

/* CPU `cpu`'s nodes. Given by the machine. */
EMU_EXPORT struct emu_percpu_sync *emu_percpu_sync(uint32_t cpu);

static inline void emu_sync_init_cpu(struct emu_percpu_sync *sync, uint32_t cpu)
{
	atomic_init(&sync->osq.next, NULL);
	atomic_init(&sync->osq.prev, NULL);
	atomic_init(&sync->osq.locked, 0);
	atomic_init(&sync->osq.nudge, 0);
	sync->osq.cpu = cpu + 1;
	atomic_init(&sync->qspin.next, NULL);
	atomic_init(&sync->qspin.locked, 0);
}

#endif
