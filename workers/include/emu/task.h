/* SPDX-License-Identifier: MIT */
/*
 * task.h - a task: what runs on a CPU and sleeps in locks.
 *
 * Tasks live in the arena for the whole run, so that a lock's owner word may be followed without a reference.
 *
 *   task_park()      sleep until somebody calls task_unpark(); a token: an unpark that came first is not lost
 *   task_unpark(t)   let t run on; any CPU
 *   task_running(t)  is t on its CPU now? What optimistic spinners ask about a lock's owner
 */
#ifndef EMU_TASK_H
#define EMU_TASK_H

#include <emu/machine.h>

struct mm_struct;
struct lock_stat_table;
struct address_space;
struct emu_call;

/* A timed hold of a lock that this task has now (see stat.h). lock == NULL: free slot. */
struct emu_hold {
	const void *lock;
	void *stat;
	uint64_t since_ns;
};
#define EMU_HOLDS 4

/* A task's place in a rwsem's wait list. The list's wait_lock must be held when using these. */
struct rwsem_waiter {
	struct rwsem_waiter *next, *prev;
	struct task_struct *task;
	uint64_t timeout_ns; /* from then on it may ask for the hand-off */
	uint32_t type;	     /* enum rwsem_waiter_type in rwsem.c */
	bool handoff_set;
	/* Cleared without the lock by whoever grants a read lock; the sleeper watches it. */
	_Atomic uint32_t waiting;
};

struct task_struct {
	/* Written before the first CPU starts. */
	__cacheline_aligned uint32_t cpu; /* the CPU it runs on; several tasks may share one */
	uint32_t node;
	uint32_t nr; /* its own number; below the number of CPUs it equals cpu */

	/* Written by the task alone, read by spinners that ask whether the owner runs. */
	__cacheline_aligned _Atomic uint32_t on_cpu;

	/* Written by any CPU that wakes this task. */
	__cacheline_aligned _Atomic uint32_t wake_token;
	struct rwsem_waiter waiter;

	/* This task's own; nobody else looks. */
	__cacheline_aligned struct mm_struct *mm;
	struct lock_stat_table *lock_stats; /* its process's, as */
	struct emu_site *sites;	      /* the call-site trie [EMU_SITES_MAX] */
	uint32_t site;		      /* node of the call-site trie that is running now */
	uint32_t hold_tick;	      /* counts acquisitions, so that one in EMU_HOLD_SAMPLE is timed */
	uint64_t wait_ns;	      /* all waiting for locks so far, spinning or asleep */
	struct emu_hold holds[EMU_HOLDS];
	uint64_t fault_work_ns;	      /* what a page fault costs beside locks and tables */
	uint64_t vma_change_ns;	      /* what the kernel computes from vma_prepare() to vma_complete(), beside what is here */
	uint64_t work_ahead_ns;	      /* so much of it has been computed, and is part of the work of calls yet to come */
	const struct emu_call *fault_call; /* whose uses of the rest of the kernel a fault makes; NULL: none */
	/* The page that the fault under way has asked the page cache for; NULL: none so far. */
	const struct address_space *fault_file;
	uint64_t fault_page;
	bool fault_missing; /* it must be read yet */
	bool fault_tried;   /* the fault has slept for a page, with nothing held, and begins again */
	uint32_t rcu_nesting;	      /* read-side sections of RCU that this task is in */
};

EMU_EXPORT void task_park(void);
EMU_EXPORT void task_unpark(struct task_struct *task);

static inline bool task_running(struct task_struct *task)
{
	return atomic_load_explicit(&task->on_cpu, memory_order_relaxed) != 0;
}

#endif
