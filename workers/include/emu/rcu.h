/* SPDX-License-Identifier: MIT */
/*
 * rcu.h - read-copy-update: memory that readers without a lock may still look at is freed after a grace period.
 *
 *   rcu_read_lock(), rcu_read_unlock()   a read-side section; costs two additions to a word of this task's own
 *   rcu_dereference(p)                   loads a pointer that a writer may replace meanwhile
 *   rcu_assign_pointer(p, v)             publishes v, with all that was written to it before
 *   emu_free_rcu(ptr)                    emu_free(ptr), once no section that can have found ptr goes on
 *
 * Rules for callers:
 *   - A section ends before its task sleeps, and before its system call ends (asserted).
 *   - What is freed was unlinked before by the caller, so that sections which begin later do not find it.
 *   - The memory comes back to the allocator of the CPU that called emu_free_rcu().
 *
 * How: a CPU says that it is in no section, between two system calls and when it goes to sleep (a virtual one also when
 * it is preempted), by copying the number of the latest grace period to a word of its own (quiescent-state-based RCU).
 * Grace period n is over when every CPU has said n or more, or is idle. What a CPU frees while it has said n waits for the
 * end of n + 2: n + 1 may have begun before, but cannot end until this CPU has spoken again, so n + 2 begins later than
 * the unlinking. Nobody has to run for that: who frees memory looks after grace periods at its own quiescent points.
 */
#ifndef EMU_RCU_H
#define EMU_RCU_H

#include <emu/task.h>

/* What waits for one grace period, filled and freed by one CPU. 512 bytes. */
#define EMU_RCU_BAG 61u
struct emu_rcu_bag {
	struct emu_rcu_bag *next;
	uint64_t target; /* may be freed when this grace period is over */
	uint32_t nr;
	void *ptrs[EMU_RCU_BAG];
};

struct emu_rcu_cpu {
	/* Written by its CPU, read by all who drive grace periods: the period that it knows of, 0 = idle. */
	__cacheline_aligned _Atomic uint64_t seen;
	/* Its CPU's alone: from the oldest to the one that is being filled. */
	__cacheline_aligned struct emu_rcu_bag *first, *last;
	uint64_t freed, waiting; /* objects */
};

/* With so many objects that wait, a CPU waits too: where the host does not run a CPU, no grace period ends. */
#define EMU_RCU_BACKLOG 512u

struct emu_rcu {
	/* Grace periods that have begun and ended: equal, or one goes on. `locked` guards who drives them. */
	__cacheline_aligned _Atomic uint64_t started;
	_Atomic uint64_t done;
	__cacheline_aligned _Atomic uint32_t locked;
	uint32_t nr_cpus;
	uint32_t next_cpu; /* those before it have been through the running grace period */
	struct emu_rcu_cpu cpus[];
};

/* In the arena; set up by the machine. */
extern EMU_EXPORT struct emu_rcu *emu_rcu;

static inline void rcu_read_lock(void)
{
	current->rcu_nesting++;
	/* The compiler may not move the section's loads out of it; the CPU may, see above. */
	atomic_signal_fence(memory_order_seq_cst);
}

static inline void rcu_read_unlock(void)
{
	atomic_signal_fence(memory_order_seq_cst);
	EMU_ASSERT(current->rcu_nesting, "rcu_read_unlock() without rcu_read_lock()");
	current->rcu_nesting--;
}

static inline bool rcu_read_lock_held(void)
{
	return current->rcu_nesting != 0;
}

/* p is the address of an _Atomic pointer. Acquire: pairs with rcu_assign_pointer(). */
#define rcu_dereference(p) atomic_load_explicit((p), memory_order_acquire)
#define rcu_assign_pointer(p, v) atomic_store_explicit((p), (v), memory_order_release)

EMU_EXPORT void emu_free_rcu(void *ptr);

/*
 * For the machine and the system calls. A CPU is idle until it comes online; outside sections alone.
 */
EMU_EXPORT void emu_rcu_init(struct emu_rcu *rcu, uint32_t nr_cpus);
static inline size_t emu_rcu_bytes(uint32_t nr_cpus)
{
	return sizeof(struct emu_rcu) + nr_cpus * sizeof(struct emu_rcu_cpu);
}
EMU_EXPORT void emu_rcu_online(void);
EMU_EXPORT void emu_rcu_idle(void);
/* Around a sleep, online or not: what sleep returns belongs to wake. */
EMU_EXPORT uint64_t emu_rcu_sleep(void);
EMU_EXPORT void emu_rcu_wake(uint64_t was);
EMU_EXPORT void emu_rcu_quiescent_slow(struct emu_rcu_cpu *cpu);
/* Frees all that waits. No CPU runs, or none that could be in a section. */
EMU_EXPORT void emu_rcu_drain(void);

/* The CPU is in no section: between system calls. */
static inline void emu_rcu_quiescent(void)
{
	struct emu_rcu_cpu *cpu = &emu_rcu->cpus[current->nr];
	uint64_t seen = atomic_load_explicit(&cpu->seen, memory_order_relaxed);

	EMU_ASSERT(!current->rcu_nesting, "a system call ends inside %u read-side sections", current->rcu_nesting);
	if (unlikely(cpu->first || seen != atomic_load_explicit(&emu_rcu->started, memory_order_relaxed)))
		emu_rcu_quiescent_slow(cpu);
}

#endif
