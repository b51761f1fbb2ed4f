/* SPDX-License-Identifier: MIT */
/*
 * qspinlock.h - a queued spinlock: a test-and-set fast path, an MCS queue of waiting CPUs behind it.
 *
 *   word   bits 0-7    locked (1)
 *          bit  8      pending: the first waiter spins on the word itself, without a queue node
 *          bits 16-31  tail: CPU number + 1 of the last waiter in the queue, 0 = no queue
 *
 * A waiter's queue node is its CPU's (one suffices: a CPU waits for one spinlock at a time, since who waits or holds is
 * not preempted and there are no interrupts). FIFO but for the pending waiter, who came first.
 */
#ifndef EMU_QSPINLOCK_H
#define EMU_QSPINLOCK_H

#include <emu/stat.h>

struct qspinlock {
	_Atomic uint32_t val;
	uint16_t class_id; /* lock_class(); 0 = not counted */
};

#define EMU_QSPIN_LOCKED 1u

static inline void spin_lock_init(struct qspinlock *lock, uint32_t class_id)
{
	atomic_init(&lock->val, 0);
	lock->class_id = (uint16_t)class_id;
}

EMU_EXPORT void spin_lock_slowpath(struct qspinlock *lock, uint32_t val);

static inline bool spin_trylock(struct qspinlock *lock)
{
	uint32_t val = 0;

	emu_preempt_disable();
	/* Acquire: pairs with the release in spin_unlock() of the last owner. */
	if (!atomic_compare_exchange_strong_explicit(&lock->val, &val, EMU_QSPIN_LOCKED, memory_order_acquire,
						     memory_order_relaxed)) {
		emu_preempt_enable();
		return false;
	}
	if (lock->class_id)
		lock_stat_acquired(lock->class_id, LOCK_WRITE, lock);
	return true;
}

static EMU_ALWAYS_INLINE void spin_lock(struct qspinlock *lock)
{
	uint32_t val = 0;

	emu_preempt_disable();
	if (unlikely(!atomic_compare_exchange_strong_explicit(&lock->val, &val, EMU_QSPIN_LOCKED,
							      memory_order_acquire, memory_order_relaxed)))
		spin_lock_slowpath(lock, val);
	if (lock->class_id)
		lock_stat_acquired(lock->class_id, LOCK_WRITE, lock);
}

static inline void spin_unlock(struct qspinlock *lock)
{
	if (lock->class_id)
		lock_stat_release(lock);
	/* Only the locked byte is the owner's: waiters may be changing pending and tail right now. */
	atomic_store_explicit((_Atomic uint8_t *)&lock->val, 0, memory_order_release);
	emu_preempt_enable();
}

#endif
