/* SPDX-License-Identifier: MIT */
/*
 * rwsem.c - the waiting half of the reader/writer lock; its word and the fast paths are in rwsem.h.
 *
 *   1. spinning    rwsem_spin, rwsem_optimistic_spin: a writer waits on its CPU while another runs, or readers come and go
 *   2. wait list   rwsem_try_write_lock_queued, rwsem_queue_write, rwsem_queue_read: sleep in order of arrival
 *   3. waking up   rwsem_choose under wait_lock, rwsem_wake_chosen after it
 *
 * Orders: count is changed by read-modify-writes alone, so an acquire that reads it is paired with every release that
 * came before, whatever others did to the flags in between. What changes only flags may therefore be relaxed.
 *
 * Nobody sleeps for ever: bit WAITERS is set, under wait_lock, before a waiter looks at count for the last time. So
 * either it finds the lock free, or whoever frees it finds the bit, comes for wait_lock and wakes the first waiter. A
 * reader's count that was only tried may hide from the last holder that the lock is free; that reader looks again when
 * it has taken its count back.
 *
 * A task's waiter is in its task_struct, since the CPUs that walk the list cannot see its stack. It is the task's own
 * again when the task has left the list as a writer, or has seen `waiting` cleared as a reader.
 */
#include <emu/percpu_sync.h>
#include <emu/rwsem.h>

enum rwsem_waiter_type { RWSEM_WAITING_FOR_WRITE, RWSEM_WAITING_FOR_READ };

enum rwsem_wake_type {
	RWSEM_WAKE_ANY,	       /* the lock was seen free: the first waiter, whatever it wants */
	RWSEM_WAKE_READERS,    /* readers hold it: more readers, if the first waiter is one */
	RWSEM_WAKE_READ_OWNED, /* likewise, and the caller is one of those that hold it */
};

/* Whom to wake after wait_lock is dropped. Readers are chained by `next` and have the lock already. */
struct rwsem_chosen {
	struct task_struct *writer;
	struct rwsem_waiter *readers;
};

/* As Linux: more would keep wait_lock, and whoever lets them in, for too long. The rest is let in when these have gone. */
#define RWSEM_READERS_WOKEN_MAX UINT64_C(256)

_Static_assert(sizeof(struct rw_semaphore) == EMU_CACHELINE, "spinners watch count and owner in one line");

void init_rwsem(struct rw_semaphore *sem, uint32_t class_id)
{
	atomic_init(&sem->count, 0);
	atomic_init(&sem->owner, 0);
	osq_lock_init(&sem->osq);
	spin_lock_init(&sem->wait_lock, 0);
	sem->wait_first = sem->wait_last = NULL;
	sem->last_node = 0;
	sem->class_id = (uint16_t)class_id;
	sem->no_spin = false;
}

/* wait_lock must be held. */
static void rwsem_list_add(struct rw_semaphore *sem, struct rwsem_waiter *waiter, enum rwsem_waiter_type type)
{
	waiter->task = current;
	waiter->timeout_ns = emu_clock_ns() + RWSEM_WAIT_TIMEOUT_NS;
	waiter->type = type;
	waiter->handoff_set = false;
	/* Whoever clears it has found the waiter in the list, under wait_lock. */
	atomic_store_explicit(&waiter->waiting, 1, memory_order_relaxed);

	waiter->next = NULL;
	waiter->prev = sem->wait_last;
	if (sem->wait_last)
		sem->wait_last->next = waiter;
	else
		sem->wait_first = waiter;
	sem->wait_last = waiter;
}

/* wait_lock must be held. */
static void rwsem_list_del(struct rw_semaphore *sem, struct rwsem_waiter *waiter)
{
	if (waiter->prev)
		waiter->prev->next = waiter->next;
	else
		sem->wait_first = waiter->next;
	if (waiter->next)
		waiter->next->prev = waiter->prev;
	else
		sem->wait_last = waiter->prev;
}

/*
 * Waking up
 */

/*
 * Takes a read lock for the first waiter, a reader, before the others are counted. False if a writer was faster; the
 * reader then asks for the hand-off if it has waited for too long. wait_lock must be held.
 */
static bool rwsem_claim_for_reader(struct rw_semaphore *sem, struct rwsem_waiter *first)
{
	/* Acquire, for the readers: they synchronise with us alone, through `waiting`. */
	uint64_t count = atomic_fetch_add_explicit(&sem->count, RWSEM_READER_BIAS, memory_order_acquire);
	uint64_t undo = RWSEM_READER_BIAS;

	if (!(count & RWSEM_WRITER_LOCKED)) {
		/* Early, so that writers stop spinning: until the reader runs it cannot say so itself. */
		rwsem_set_owner(sem, (uintptr_t)first->task | RWSEM_READER_OWNED);
		return true;
	}
	if (!first->handoff_set && emu_clock_ns() >= first->timeout_ns) {
		first->handoff_set = true;
		undo -= RWSEM_FLAG_HANDOFF;
	}
	/* Should the writer be gone by now, it has seen WAITERS and comes for wait_lock, which we hold. */
	atomic_fetch_sub_explicit(&sem->count, undo, memory_order_relaxed);
	return false;
}

/* Takes readers out of the list into chosen->readers, in order; returns how many. wait_lock must be held. */
static uint64_t rwsem_take_readers(struct rw_semaphore *sem, struct rwsem_chosen *chosen)
{
	struct rwsem_waiter *waiter, *next, **tail = &chosen->readers;
	uint64_t n = 0;

	for (waiter = sem->wait_first; waiter; waiter = next) {
		next = waiter->next;
		if (waiter->type != RWSEM_WAITING_FOR_READ)
			continue;
		rwsem_list_del(sem, waiter);
		waiter->next = NULL;
		*tail = waiter;
		tail = &waiter->next;
		if (++n == RWSEM_READERS_WOKEN_MAX)
			break;
	}
	return n;
}

/* Chooses whom to wake, the list not being empty, and gives readers their lock. wait_lock must be held. */
static void rwsem_choose(struct rw_semaphore *sem, enum rwsem_wake_type type, struct rwsem_chosen *chosen)
{
	struct rwsem_waiter *first = sem->wait_first;
	bool handoff = first->handoff_set;
	uint64_t delta;

	if (first->type == RWSEM_WAITING_FOR_WRITE) {
		/* It takes the lock itself when it runs; until then others may be faster. */
		if (type == RWSEM_WAKE_ANY)
			chosen->writer = first->task;
		return;
	}
	if (type != RWSEM_WAKE_READ_OWNED && !rwsem_claim_for_reader(sem, first))
		return;

	delta = rwsem_take_readers(sem, chosen) * RWSEM_READER_BIAS;
	if (type != RWSEM_WAKE_READ_OWNED)
		delta -= RWSEM_READER_BIAS; /* the one that was claimed */
	if (!sem->wait_first)
		delta -= RWSEM_FLAG_WAITERS;
	if (handoff)
		delta -= RWSEM_FLAG_HANDOFF;
	atomic_fetch_add_explicit(&sem->count, delta, memory_order_relaxed);
}

/* wait_lock must not be held. */
static void rwsem_wake_chosen(struct rwsem_chosen *chosen)
{
	struct rwsem_waiter *waiter, *next;

	if (chosen->writer)
		task_unpark(chosen->writer);
	for (waiter = chosen->readers; waiter; waiter = next) {
		struct task_struct *task = waiter->task;

		next = waiter->next;
		/* Release: what we know, among it the last writer's work. From here the waiter is its task's again. */
		atomic_store_explicit(&waiter->waiting, 0, memory_order_release);
		task_unpark(task);
	}
}

static void rwsem_wake_type(struct rw_semaphore *sem, enum rwsem_wake_type type)
{
	struct rwsem_chosen chosen = { 0 };

	spin_lock(&sem->wait_lock);
	if (sem->wait_first)
		rwsem_choose(sem, type, &chosen);
	spin_unlock(&sem->wait_lock);
	rwsem_wake_chosen(&chosen);
}

EMU_NOINLINE void rwsem_wake(struct rw_semaphore *sem)
{
	rwsem_wake_type(sem, RWSEM_WAKE_ANY);
}

EMU_NOINLINE void rwsem_downgrade_wake(struct rw_semaphore *sem)
{
	rwsem_wake_type(sem, RWSEM_WAKE_READ_OWNED);
}

/*
 * Spinning
 */

/* Nobody knows which tasks the readers are, nor whether they run: writers give them so long, as in Linux. */
static uint64_t rwsem_readers_ns(uint64_t count)
{
	uint64_t readers = (count & RWSEM_READER_MASK) >> RWSEM_READER_SHIFT;

	return (20 + (readers < 30 ? readers : 30)) * 500;
}

static bool rwsem_has_readers(uint64_t count)
{
	/* Beside a writer's bit they are only tried ones. */
	return !(count & RWSEM_WRITER_LOCKED) && (count & RWSEM_READER_MASK);
}

/*
 * Will the lock be free soon? Not if its writer sleeps, nor if readers have had it for too long. *until_ns: how long is
 * not, 0 while a writer has it; NULL: no time at all.
 */
static bool rwsem_free_soon(struct rw_semaphore *sem, uint64_t *until_ns)
{
	uint64_t owner = atomic_load_explicit(&sem->owner, memory_order_relaxed);
	uint64_t count, now_ns;

	/* Tasks stay for ever, so an owner of long ago may still be looked at. */
	if (!(owner & RWSEM_READER_OWNED)) {
		if (until_ns)
			*until_ns = 0;
		return !owner || task_running((struct task_struct *)(uintptr_t)owner);
	}
	count = atomic_load_explicit(&sem->count, memory_order_relaxed);
	if (!rwsem_has_readers(count))
		return true;
	if (!until_ns || (count & RWSEM_FLAG_NO_SPIN))
		return false;
	now_ns = emu_clock_ns();
	if (!*until_ns)
		*until_ns = now_ns + rwsem_readers_ns(count);
	if (now_ns < *until_ns)
		return true;
	while (rwsem_has_readers(count) &&
	       !atomic_compare_exchange_weak_explicit(&sem->count, &count, count | RWSEM_FLAG_NO_SPIN,
						      memory_order_relaxed, memory_order_relaxed))
		;
	return false;
}

/*
 * Spins until no bit of `busy` is set (true: try now) or it is better to sleep (false). The last look before each
 * wait is at count: that the lock is free is never missed.
 */
static bool rwsem_spin(struct rw_semaphore *sem, uint64_t busy, uint64_t *until_ns)
{
	for (;;) {
		bool go_on = !emu_need_resched() && rwsem_free_soon(sem, until_ns);

		if (!(atomic_load_explicit(&sem->count, memory_order_relaxed) & busy))
			return true;
		if (!go_on)
			return false;
		emu_spin_wait_until(&sem->count, until_ns && *until_ns ? *until_ns : UINT64_MAX);
	}
}

/* For a writer outside the list: may overtake those in it until the first of them asks for the hand-off. */
static bool rwsem_try_write_lock_unqueued(struct rw_semaphore *sem)
{
	uint64_t count = atomic_load_explicit(&sem->count, memory_order_relaxed);

	/* Acquire: pairs with the releases of those who had the lock before. */
	do {
		if (count & (RWSEM_LOCK_MASK | RWSEM_FLAG_HANDOFF))
			return false;
	} while (!atomic_compare_exchange_weak_explicit(&sem->count, &count,
							(count | RWSEM_WRITER_LOCKED) & ~RWSEM_FLAG_NO_SPIN,
							memory_order_acquire, memory_order_relaxed));
	rwsem_set_owner(sem, (uintptr_t)current);
	return true;
}

static bool rwsem_optimistic_spin(struct rw_semaphore *sem)
{
	uint64_t until_ns = 0;
	bool taken = false;

	if (emu_need_resched() || !rwsem_free_soon(sem, &until_ns) || !osq_lock(&sem->osq))
		return false;
	/* What it waited in the queue is not counted. */
	until_ns = 0;
	while (!taken && rwsem_spin(sem, RWSEM_LOCK_MASK | RWSEM_FLAG_HANDOFF, &until_ns))
		taken = rwsem_try_write_lock_unqueued(sem);
	osq_unlock(&sem->osq);
	return taken;
}

/*
 * The wait list
 */

/*
 * For a writer in the list; takes it out if it gets the lock. The hand-off is asked for by the first waiter alone and
 * keeps all others away. wait_lock must be held.
 */
static bool rwsem_try_write_lock_queued(struct rw_semaphore *sem, struct rwsem_waiter *waiter)
{
	bool is_first = sem->wait_first == waiter;
	uint64_t count = atomic_load_explicit(&sem->count, memory_order_relaxed);
	uint64_t taken;

	/* Acquire: pairs with the releases of those who had the lock before. */
	do {
		if (!is_first && ((count & RWSEM_FLAG_HANDOFF) || sem->no_spin))
			return false;
		if (count & RWSEM_LOCK_MASK) {
			if ((count & RWSEM_FLAG_HANDOFF) || !is_first || emu_clock_ns() < waiter->timeout_ns)
				return false;
			taken = count | RWSEM_FLAG_HANDOFF;
		} else {
			taken = (count | RWSEM_WRITER_LOCKED) & ~(RWSEM_FLAG_HANDOFF | RWSEM_FLAG_NO_SPIN);
			if (sem->wait_first == sem->wait_last)
				taken &= ~RWSEM_FLAG_WAITERS;
		}
	} while (!atomic_compare_exchange_weak_explicit(&sem->count, &count, taken, memory_order_acquire,
							memory_order_relaxed));
	if (taken & RWSEM_FLAG_HANDOFF) {
		waiter->handoff_set = true;
		return false;
	}
	rwsem_set_owner(sem, (uintptr_t)current);
	rwsem_list_del(sem, waiter);
	return true;
}

static void rwsem_queue_write(struct rw_semaphore *sem)
{
	struct rwsem_waiter *waiter = &current->waiter;

	spin_lock(&sem->wait_lock);
	rwsem_list_add(sem, waiter, RWSEM_WAITING_FOR_WRITE);
	if (sem->wait_first == waiter)
		atomic_fetch_or_explicit(&sem->count, RWSEM_FLAG_WAITERS, memory_order_relaxed);
	while (!rwsem_try_write_lock_queued(sem, waiter)) {
		bool handoff = waiter->handoff_set;

		spin_unlock(&sem->wait_lock);
		/* With the hand-off the lock is ours as soon as it is free: worth watching a running owner for. */
		if (!handoff || sem->no_spin || !rwsem_spin(sem, RWSEM_LOCK_MASK, NULL))
			task_park();
		spin_lock(&sem->wait_lock);
	}
	spin_unlock(&sem->wait_lock);
}

/* Instead of the lock that was tried, a place in the list. Returns with the lock. */
static void rwsem_queue_read(struct rw_semaphore *sem)
{
	struct rwsem_waiter *waiter = &current->waiter;
	struct rwsem_chosen chosen = { 0 };
	uint64_t delta = -RWSEM_READER_BIAS;
	uint64_t count;

	spin_lock(&sem->wait_lock);
	if (!sem->wait_first) {
		/* Nobody to stand behind, and no writer (any more): what was tried counts. Acquire: the writer's. */
		if (!(atomic_load_explicit(&sem->count, memory_order_acquire) & RWSEM_WRITER_LOCKED)) {
			spin_unlock(&sem->wait_lock);
			rwsem_set_owner(sem, (uintptr_t)current | RWSEM_READER_OWNED);
			return;
		}
		delta += RWSEM_FLAG_WAITERS;
	}
	rwsem_list_add(sem, waiter, RWSEM_WAITING_FOR_READ);
	count = atomic_fetch_add_explicit(&sem->count, delta, memory_order_relaxed) + delta;
	/* Our count may have hidden from the last holder that it was the last. */
	if (!(count & RWSEM_WRITER_LOCKED))
		rwsem_choose(sem, count & RWSEM_READER_MASK ? RWSEM_WAKE_READERS : RWSEM_WAKE_ANY, &chosen);
	spin_unlock(&sem->wait_lock);
	rwsem_wake_chosen(&chosen);

	/* Acquire: pairs with the release of whoever gave us the lock. */
	while (atomic_load_explicit(&waiter->waiting, memory_order_acquire))
		task_park();
}

/*
 * The slow halves
 */

/* `count` as our own reader's count, which it contains, has left it. */
EMU_NOINLINE void rwsem_down_read_slow(struct rw_semaphore *sem, uint64_t count)
{
	uint64_t start_ns = emu_clock_ns();
	uint64_t owner = atomic_load_explicit(&sem->owner, memory_order_relaxed);
	bool alone = (count & RWSEM_READER_MASK) == RWSEM_READER_BIAS;

	EMU_ASSERT(!(count & RWSEM_FLAG_READFAIL), "the number of readers has left its bits");
	EMU_ASSERT(owner != (uintptr_t)current, "down_read() by the task that holds the lock for writing");

	/*
	 * Waiters but no writer: overtake them, as what was tried has succeeded. Not while other readers seem to have
	 * the lock, though: a stream of readers would keep a waiting writer out for ever.
	 */
	if (sem->no_spin || (count & (RWSEM_WRITER_LOCKED | RWSEM_FLAG_HANDOFF)) ||
	    (!alone && (owner & RWSEM_READER_OWNED))) {
		rwsem_queue_read(sem);
	} else {
		rwsem_set_owner(sem, (uintptr_t)current | RWSEM_READER_OWNED);
		if (alone)
			rwsem_wake_type(sem, RWSEM_WAKE_READ_OWNED);
	}
	if (sem->class_id)
		lock_stat_contended(sem->class_id, LOCK_READ, emu_clock_ns() - start_ns);
}

EMU_NOINLINE void rwsem_down_write_slow(struct rw_semaphore *sem)
{
	uint64_t start_ns = emu_clock_ns();

	EMU_ASSERT(!rwsem_owned_by_current(sem), "down_write() by the task that holds the lock already");
	if (sem->no_spin || !rwsem_optimistic_spin(sem))
		rwsem_queue_write(sem);
	if (sem->class_id)
		lock_stat_contended(sem->class_id, LOCK_WRITE, emu_clock_ns() - start_ns);
}
