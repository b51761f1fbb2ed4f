/* SPDX-License-Identifier: MIT */
/*
 * osq.c - the optimistic spin queue (osq.h).
 *
 * lock->tail is only ever changed by read-modify-writes that acquire and release, so whoever reads a CPU number there
 * also sees everything that was done to the queue before, above all the nodes as their owners set them up.
 *
 * A node is its owner's again as soon as osq_lock() returned false or osq_unlock() returned: nobody then has its address
 * any more but for a nudge, which says nothing.
 *
 * To leave, a waiter first takes itself out of prev->next, so that the CPU in front can no longer hand the lock to it.
 * From then until it has linked the CPU behind it to the one in front, or has set the tail back, the CPU in front cannot
 * go either: it finds no next but is not the tail. So prev stays where it is while it is being written to.
 */
#include <emu/percpu_sync.h>
#include <emu/task.h>

static struct osq_node *osq_node_of(uint32_t tail)
{
	return &emu_percpu_sync(tail - 1)->osq;
}

/*
 * Cuts the queue behind `node`. Returns the next waiter, which then waits for the caller to tell it what it has become;
 * or NULL if there was none, with the tail set to new_tail.
 */
static struct osq_node *osq_cut(struct osq_lock *lock, struct osq_node *node, uint32_t new_tail)
{
	for (;;) {
		uint32_t tail = node->cpu;

		/* A next waiter that wants to leave takes itself out of here: by exchange, one of the two gets it. */
		if (atomic_load_explicit(&node->next, memory_order_relaxed)) {
			struct osq_node *next = atomic_exchange_explicit(&node->next, NULL, memory_order_acquire);

			if (next)
				return next;
		}
		if (atomic_load_explicit(&lock->tail, memory_order_relaxed) == tail &&
		    atomic_compare_exchange_strong_explicit(&lock->tail, &tail, new_tail, memory_order_acq_rel,
							    memory_order_relaxed))
			return NULL;
		/* Somebody is just coming (will write next) or leaving (will write next, or the tail and nudge). */
		emu_spin_wait(&node->next);
	}
}

/* Returns false once `node` is out of the queue, true if it was given the lock before that. */
static bool osq_leave(struct osq_lock *lock, struct osq_node *node)
{
	struct osq_node *prev, *next;

	for (;;) {
		struct osq_node *self = node;

		prev = atomic_load_explicit(&node->prev, memory_order_relaxed);
		if (atomic_load_explicit(&prev->next, memory_order_relaxed) == node &&
		    atomic_compare_exchange_strong_explicit(&prev->next, &self, NULL, memory_order_acq_rel,
							    memory_order_relaxed))
			break;
		/*
		 * prev is about to give us the lock, or leaves and is about to give us its own prev: either writes
		 * our line. (That our new prev then knows us is written to its line; to miss it is to leave later.)
		 */
		if (atomic_load_explicit(&node->locked, memory_order_acquire))
			return true;
		emu_spin_wait(&node->locked);
	}

	next = osq_cut(lock, node, prev->cpu);
	if (next) {
		/* next may be leaving as well: it must find its new prev no later than the new prev finds it. */
		atomic_store_explicit(&next->prev, prev, memory_order_relaxed);
		atomic_store_explicit(&prev->next, next, memory_order_release);
	} else {
		/* prev may be in osq_cut(), where it cannot watch the tail and its own line at once. */
		atomic_store_explicit(&prev->nudge, node->cpu, memory_order_relaxed);
	}
	return false;
}

bool osq_lock(struct osq_lock *lock)
{
	struct osq_node *node = &emu_percpu_sync(current->cpu)->osq;
	struct osq_node *prev;
	uint32_t tail;

	/* The node is the CPU's, and those behind wait for this task to go on. */
	emu_preempt_disable();
	/* Nobody knows the node yet; the exchange below publishes it. */
	atomic_store_explicit(&node->next, NULL, memory_order_relaxed);
	atomic_store_explicit(&node->locked, 0, memory_order_relaxed);

	/* Acquire: the last holder's release, or the node of the waiter in front. */
	tail = atomic_exchange_explicit(&lock->tail, node->cpu, memory_order_acq_rel);
	if (!tail)
		return true;

	prev = osq_node_of(tail);
	atomic_store_explicit(&node->prev, prev, memory_order_relaxed);
	/* Release: from here on prev may write to our prev and locked. */
	atomic_store_explicit(&prev->next, node, memory_order_release);

	if (smp_cond_load_acquire(&node->locked, VAL || emu_need_resched()))
		return true;
	if (osq_leave(lock, node))
		return true;
	emu_preempt_enable();
	return false;
}

void osq_unlock(struct osq_lock *lock)
{
	struct osq_node *node = &emu_percpu_sync(current->cpu)->osq;
	struct osq_node *next = osq_cut(lock, node, 0);

	/* Release: pairs with the acquire of the next waiter's look at its own line. */
	if (next)
		atomic_store_explicit(&next->locked, 1, memory_order_release);
	emu_preempt_enable();
}
