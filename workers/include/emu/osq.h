/* SPDX-License-Identifier: MIT */
/*
 * osq.h - the optimistic spin queue: an MCS queue whose waiters may leave it.
 *
 * Writers that spin on a sleeping lock's owner queue here, so that one of them at a time watches the owner and the
 * rest watch a line of their own. A waiter leaves when its CPU has something better to do (emu_need_resched()). One
 * node per CPU, in the arena (percpu_sync.h); who is in the queue or at its head is not preempted and must not sleep.
 */
#ifndef EMU_OSQ_H
#define EMU_OSQ_H

#include <emu/machine.h>

struct osq_lock {
	_Atomic uint32_t tail; /* CPU number + 1 of the last waiter, 0 = free */
};

/* A CPU's place in a queue. Neighbours write prev, next and nudge; the CPU in front writes locked. */
struct osq_node {
	__cacheline_aligned struct osq_node *_Atomic next;
	struct osq_node *_Atomic prev;
	_Atomic uint32_t locked;
	_Atomic uint32_t nudge; /* says nothing: written to wake who watches this line for a change of lock->tail */
	uint32_t cpu;		/* constant: number + 1 */
};

static inline void osq_lock_init(struct osq_lock *lock)
{
	atomic_init(&lock->tail, 0);
}

static inline bool osq_is_locked(struct osq_lock *lock)
{
	return atomic_load_explicit(&lock->tail, memory_order_relaxed) != 0;
}

/* True: at the head of the queue. False: left it because this CPU had to stop spinning. Acquire. */
EMU_EXPORT bool osq_lock(struct osq_lock *lock);
EMU_EXPORT void osq_unlock(struct osq_lock *lock);

#endif
