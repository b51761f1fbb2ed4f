/* SPDX-License-Identifier: MIT */
/*
 * percpu_rwsem.h - a reader/writer lock whose readers write a line of their own CPU and nothing else.
 *
 *   hold       1: a writer is in, or waits for the readers to go; no new reader comes in by itself
 *   readers[]  a line a CPU: how many readers came in there; a task never changes its CPU and leaves where it came
 *   queue      writers hold it for writing; readers that found `hold` set pass through it for reading
 *
 * Cheap for readers, dear for writers: those look at a line of every CPU. As the kernel's mnt_hold_writers(), a writer
 * raises a flag and waits until every CPU's count is zero; readers that it keeps out sleep in `queue`, which is fair to
 * both. A line a CPU is more memory than the kernel needs, which packs the counters of many locks into one.
 * For a task that holds the lock for reading, percpu_down_read() again is a deadlock, as with every rwsem here.
 */
#ifndef EMU_PERCPU_RWSEM_H
#define EMU_PERCPU_RWSEM_H

#include <emu/rwsem.h>

struct percpu_readers {
	__cacheline_aligned _Atomic uint32_t count;
};

struct percpu_rwsem {
	struct rw_semaphore queue; /* without a class: this lock's own statistics count what happens here */

	/* Away from queue's line, since every reader looks at it and writers alone write it. */
	__cacheline_aligned _Atomic uint32_t hold;
	uint32_t class_id;
	struct percpu_readers *readers; /* [emu_nr_cpus()], constant */
};

/* Allocates; destroy, which nobody may hold the lock for, frees. */
EMU_EXPORT void init_percpu_rwsem(struct percpu_rwsem *sem, uint32_t class_id);
EMU_EXPORT void destroy_percpu_rwsem(struct percpu_rwsem *sem);

EMU_EXPORT void percpu_down_write(struct percpu_rwsem *sem);
EMU_EXPORT void percpu_up_write(struct percpu_rwsem *sem);
/* Never waits. Keeps readers out for a moment even when it fails. */
EMU_EXPORT bool percpu_down_write_trylock(struct percpu_rwsem *sem);

/* Not for callers: `hold` was seen, the count is taken. Returns with the lock. */
EMU_EXPORT void percpu_down_read_slow(struct percpu_rwsem *sem);

static inline void percpu_down_read(struct percpu_rwsem *sem)
{
	/*
	 * Both sequentially consistent, as are the writer's store to hold and its first look at the count: of a reader
	 * and a writer that come at once, at least one sees the other. Reading 0 in hold pairs with the release of the
	 * writer that cleared it.
	 */
	atomic_fetch_add_explicit(&sem->readers[current->cpu].count, 1, memory_order_seq_cst);
	if (unlikely(atomic_load_explicit(&sem->hold, memory_order_seq_cst)))
		percpu_down_read_slow(sem);
	if (sem->class_id)
		lock_stat_acquired(sem->class_id, LOCK_READ, sem);
}

static inline void percpu_up_read(struct percpu_rwsem *sem)
{
	uint32_t old;

	if (sem->class_id)
		lock_stat_release(sem);
	/* Release: pairs with the acquire of the writer that finds the count zero. Nobody need be woken: it watches. */
	old = atomic_fetch_sub_explicit(&sem->readers[current->cpu].count, 1, memory_order_release);
	EMU_ASSERT(old, "percpu_up_read() without a reader on this CPU");
}

#endif
