/* SPDX-License-Identifier: MIT */
/*
 * rwsem.h - the sleeping reader/writer lock that i_mmap_rwsem and mmap_lock are made of; process-shared.
 *
 *   count  bit 0       a writer holds it
 *          bit 1       somebody is in the wait list
 *          bit 2       the first waiter has asked for the hand-off: nobody else may take the lock
 *          bit 3       a writer has spun for readers in vain: none does again until a writer has had the lock
 *          bits 8-62   number of readers
 *          bit 63      guard against overflow of the readers
 *   owner  the task that holds it for writing, or the last one that took it for reading with bit 0 set; a hint for
 *          spinners, to be followed but not believed
 *
 * Writers try, spin behind the OSQ while the owner runs, or for 10 to 25 us while readers have it, then sleep in the
 * FIFO wait list; a waiter that has waited longer than RWSEM_WAIT_TIMEOUT_NS asks for the hand-off. Readers that find a
 * writer or a waiter queue; when the first waiter is a reader, the first 256 readers in the list are let in together.
 * wait_lock must be held when using the wait list and when setting or clearing bits 1 and 2.
 * Written from an understanding of kernel/locking/rwsem.c as of Linux 6.x; no code from it.
 */
#ifndef EMU_RWSEM_H
#define EMU_RWSEM_H

#include <emu/osq.h>
#include <emu/qspinlock.h>

#define RWSEM_WRITER_LOCKED UINT64_C(1)
#define RWSEM_FLAG_WAITERS (UINT64_C(1) << 1)
#define RWSEM_FLAG_HANDOFF (UINT64_C(1) << 2)
#define RWSEM_FLAG_NO_SPIN (UINT64_C(1) << 3) /* Linux has it in the owner; here readers need not read that */
#define RWSEM_FLAG_READFAIL (UINT64_C(1) << 63)
#define RWSEM_READER_SHIFT 8
#define RWSEM_READER_BIAS (UINT64_C(1) << RWSEM_READER_SHIFT)
#define RWSEM_READER_MASK (~(RWSEM_READER_BIAS - 1) & ~RWSEM_FLAG_READFAIL)
#define RWSEM_LOCK_MASK (RWSEM_WRITER_LOCKED | RWSEM_READER_MASK)
#define RWSEM_READ_FAILED_MASK (RWSEM_WRITER_LOCKED | RWSEM_FLAG_WAITERS | RWSEM_FLAG_HANDOFF | RWSEM_FLAG_READFAIL)

#define RWSEM_READER_OWNED UINT64_C(1)
#define RWSEM_WAIT_TIMEOUT_NS UINT64_C(4000000) /* 4 ms, one tick at HZ=250 */

struct rw_semaphore {
	__cacheline_aligned _Atomic uint64_t count;
	_Atomic uint64_t owner;
	struct osq_lock osq;
	struct qspinlock wait_lock;
	struct rwsem_waiter *wait_first, *wait_last;
	uint32_t last_node; /* --numa-penalty: node + 1 of the last holder; the holder's */
	uint16_t class_id;
	/* As kernels before 3.10 had it: who does not get it at once sleeps, and gets it in order of arrival. */
	bool no_spin;
};

EMU_EXPORT void init_rwsem(struct rw_semaphore *sem, uint32_t class_id);

/* The slow halves of the functions below, not for callers. rwsem_down_*_slow() return with the lock and owner set. */
EMU_EXPORT void rwsem_down_read_slow(struct rw_semaphore *sem, uint64_t count);
EMU_EXPORT void rwsem_down_write_slow(struct rw_semaphore *sem);
EMU_EXPORT void rwsem_wake(struct rw_semaphore *sem);
EMU_EXPORT void rwsem_downgrade_wake(struct rw_semaphore *sem);

/*
 * The owner word orders nothing: what it says may be out of date when it is read. Only a task itself writes its own
 * address there, so to find that is to hold the lock for writing.
 */
static inline void rwsem_set_owner(struct rw_semaphore *sem, uint64_t owner)
{
	atomic_store_explicit(&sem->owner, owner, memory_order_relaxed);
}

static inline bool rwsem_owned_by_current(struct rw_semaphore *sem)
{
	return atomic_load_explicit(&sem->owner, memory_order_relaxed) == (uintptr_t)current;
}

static inline void rwsem_write_acquired(struct rw_semaphore *sem)
{
	emu_line_moved(&sem->last_node);
	if (sem->class_id)
		lock_stat_acquired(sem->class_id, LOCK_WRITE, sem);
}

static inline bool down_write_trylock(struct rw_semaphore *sem)
{
	uint64_t count = 0;

	/* Acquire: pairs with the release of the last writer and of every reader since. */
	if (!atomic_compare_exchange_strong_explicit(&sem->count, &count, RWSEM_WRITER_LOCKED, memory_order_acquire,
						     memory_order_relaxed))
		return false;
	rwsem_set_owner(sem, (uintptr_t)current);
	rwsem_write_acquired(sem);
	return true;
}

static EMU_ALWAYS_INLINE void down_write(struct rw_semaphore *sem)
{
	if (unlikely(!down_write_trylock(sem))) {
		rwsem_down_write_slow(sem);
		rwsem_write_acquired(sem);
	}
}

static inline void up_write(struct rw_semaphore *sem)
{
	EMU_ASSERT(rwsem_owned_by_current(sem), "up_write() by a task that does not hold the lock for writing");
	if (sem->class_id)
		lock_stat_release(sem);
	rwsem_set_owner(sem, 0);
	/* Release: pairs with the acquire of whoever takes the lock next. */
	if (unlikely(atomic_fetch_sub_explicit(&sem->count, RWSEM_WRITER_LOCKED, memory_order_release) &
		     RWSEM_FLAG_WAITERS))
		rwsem_wake(sem);
}

/* From writer to reader without letting another writer in between. */
static inline void downgrade_write(struct rw_semaphore *sem)
{
	EMU_ASSERT(rwsem_owned_by_current(sem), "downgrade_write() by a task that does not hold the lock for writing");
	rwsem_set_owner(sem, (uintptr_t)current | RWSEM_READER_OWNED);
	/* Release: readers may come in from here on and must see what the writer did. */
	if (unlikely(atomic_fetch_add_explicit(&sem->count, RWSEM_READER_BIAS - RWSEM_WRITER_LOCKED,
					       memory_order_release) &
		     RWSEM_FLAG_WAITERS))
		rwsem_downgrade_wake(sem);
}

static inline bool down_read_trylock(struct rw_semaphore *sem)
{
	uint64_t count = 0;

	/* Acquire: pairs with the release of the last writer. */
	while (!atomic_compare_exchange_weak_explicit(&sem->count, &count, count + RWSEM_READER_BIAS,
						      memory_order_acquire, memory_order_relaxed))
		if (count & RWSEM_READ_FAILED_MASK)
			return false;
	rwsem_set_owner(sem, (uintptr_t)current | RWSEM_READER_OWNED);
	if (sem->class_id)
		lock_stat_acquired(sem->class_id, LOCK_READ, sem);
	return true;
}

static EMU_ALWAYS_INLINE void down_read(struct rw_semaphore *sem)
{
	/* Acquire: pairs with the release of the last writer. A reader that fails takes its count back when it queues. */
	uint64_t count = atomic_fetch_add_explicit(&sem->count, RWSEM_READER_BIAS, memory_order_acquire);

	if (unlikely(count & RWSEM_READ_FAILED_MASK))
		rwsem_down_read_slow(sem, count + RWSEM_READER_BIAS);
	else
		rwsem_set_owner(sem, (uintptr_t)current | RWSEM_READER_OWNED);
	if (sem->class_id)
		lock_stat_acquired(sem->class_id, LOCK_READ, sem);
}

static inline void up_read(struct rw_semaphore *sem)
{
	uint64_t count;

	if (sem->class_id)
		lock_stat_release(sem);
	/* Release: a writer that comes after us must not overtake our reads. */
	count = atomic_fetch_sub_explicit(&sem->count, RWSEM_READER_BIAS, memory_order_release);
	EMU_ASSERT((count & RWSEM_READER_MASK) && !(count & RWSEM_WRITER_LOCKED), "up_read() without a reader");
	/* The last one out wakes, and only if there is somebody to wake. */
	count -= RWSEM_READER_BIAS;
	if (unlikely((count & (RWSEM_LOCK_MASK | RWSEM_FLAG_WAITERS)) == RWSEM_FLAG_WAITERS))
		rwsem_wake(sem);
}

/* Held by anybody? Held for writing? For assertions. */
static inline bool rwsem_is_locked(struct rw_semaphore *sem)
{
	return (atomic_load_explicit(&sem->count, memory_order_relaxed) & RWSEM_LOCK_MASK) != 0;
}

static inline bool rwsem_is_write_locked(struct rw_semaphore *sem)
{
	return (atomic_load_explicit(&sem->count, memory_order_relaxed) & RWSEM_WRITER_LOCKED) != 0;
}

#endif
