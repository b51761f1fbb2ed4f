/* SPDX-License-Identifier: MIT */
/*
 * qspinlock.c - the waiting half of the queued spinlock (qspinlock.h).
 *
 * Who may change what in the word:
 *   locked   the owner clears it; the pending waiter or, while none is pending, the head of the queue sets it
 *   pending  set by a CPU that finds nobody else waiting, cleared by it when it takes the lock
 *   tail     each CPU that queues puts itself there; the head clears it when it is the last
 * Nobody becomes pending while there is a queue, and an unlocked word is only taken by the fast path when all of it is 0.
 */
#include <emu/percpu_sync.h>
#include <emu/qspinlock.h>

#define QSPIN_PENDING (1u << 8)
#define QSPIN_TAIL_SHIFT 16
#define QSPIN_TAIL_MASK (UINT32_MAX << QSPIN_TAIL_SHIFT)

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "spin_unlock() takes the first byte of the word for bits 0-7"
#endif

/* First in line without a queue? Returns true with the lock held, false if there are others to queue behind. */
static bool spin_lock_pending(struct qspinlock *lock, uint32_t val)
{
	uint32_t taken;

	do {
		if (val & ~EMU_QSPIN_LOCKED)
			return false;
		taken = val ? EMU_QSPIN_LOCKED | QSPIN_PENDING : EMU_QSPIN_LOCKED;
	} while (!atomic_compare_exchange_weak_explicit(&lock->val, &val, taken, memory_order_acquire,
							memory_order_relaxed));
	if (!val)
		return true;

	/* Acquire: pairs with the owner's release. Until we clear it, pending keeps all others from the lock. */
	smp_cond_load_acquire(&lock->val, !(VAL & EMU_QSPIN_LOCKED));
	atomic_fetch_add_explicit(&lock->val, EMU_QSPIN_LOCKED - QSPIN_PENDING, memory_order_relaxed);
	return true;
}

static void spin_lock_queued(struct qspinlock *lock)
{
	uint32_t self = (current->cpu + 1) << QSPIN_TAIL_SHIFT;
	struct qspin_node *node = &emu_percpu_sync(current->cpu)->qspin;
	struct qspin_node *next;
	uint32_t val = atomic_load_explicit(&lock->val, memory_order_relaxed);

	/* Nobody knows the node yet; the tail publishes it. */
	atomic_store_explicit(&node->next, NULL, memory_order_relaxed);
	atomic_store_explicit(&node->locked, 0, memory_order_relaxed);

	/* Release our node, acquire that of the waiter in front: its next must be NULL before we write it. */
	while (!atomic_compare_exchange_weak_explicit(&lock->val, &val, (val & ~QSPIN_TAIL_MASK) | self,
						      memory_order_acq_rel, memory_order_relaxed))
		;
	if (val & QSPIN_TAIL_MASK) {
		struct qspin_node *prev = &emu_percpu_sync((val >> QSPIN_TAIL_SHIFT) - 1)->qspin;

		atomic_store_explicit(&prev->next, node, memory_order_release);
		smp_cond_load_acquire(&node->locked, VAL);
	}

	/* Head of the queue: from now on only the tail can change once the owner and the pending waiter are through. */
	val = smp_cond_load_acquire(&lock->val, !(VAL & ~QSPIN_TAIL_MASK));
	if (val == self && atomic_compare_exchange_strong_explicit(&lock->val, &val, EMU_QSPIN_LOCKED,
								   memory_order_acquire, memory_order_relaxed))
		return;
	atomic_fetch_or_explicit(&lock->val, EMU_QSPIN_LOCKED, memory_order_relaxed);

	/* Release: the new head must not find the word as it was before we took the lock. */
	next = smp_cond_load_acquire(&node->next, VAL);
	atomic_store_explicit(&next->locked, 1, memory_order_release);
}

void spin_lock_slowpath(struct qspinlock *lock, uint32_t val)
{
	uint64_t start_ns = emu_clock_ns();

	if (!spin_lock_pending(lock, val))
		spin_lock_queued(lock);
	if (lock->class_id)
		lock_stat_contended(lock->class_id, LOCK_WRITE, emu_clock_ns() - start_ns);
}
