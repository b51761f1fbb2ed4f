/* SPDX-License-Identifier: MIT */
/*
 * percpu_rwsem.c - the slow half of the per-CPU reader/writer lock; its words are in percpu_rwsem.h.
 *
 * Why no reader is inside beside a writer. Take a reader that came in on the fast path: it raised its count (R1), then
 * read 0 in hold (R2). The writer set hold (W1), then looked at that count for the first time (W2). All four are
 * sequentially consistent, so there is one order of them. R2 read 0, so it came before W1; R1 came before R2 and W1
 * before W2: the writer's first look sees the reader's increment or something later. A count never runs ahead of its
 * readers, so when the writer sees zero there, then or at a later look (acquire is enough for those: a word's values
 * are seen in their order), that reader has taken its increment back. A reader that came in on the slow path raised its
 * count while it held `queue` for reading, and the writer took `queue` for writing afterwards.
 *
 * Why nobody waits for ever. The writer waits for counts alone. A count is up while its reader is inside, or for the
 * moment until the reader has seen hold; a reader that sleeps in `queue` has taken its count back first. `queue` hands
 * off in order, so neither readers nor writers can be overtaken for ever.
 *
 * The writer watches one CPU's line after the other instead of sleeping, as mnt_hold_writers() does: readers are inside
 * for microseconds, and would otherwise have to look at hold again on their way out.
 */
#include <emu/percpu_rwsem.h>

void init_percpu_rwsem(struct percpu_rwsem *sem, uint32_t class_id)
{
	init_rwsem(&sem->queue, 0);
	atomic_init(&sem->hold, 0);
	sem->class_id = class_id;
	sem->readers = emu_alloc(emu_nr_cpus() * sizeof(sem->readers[0]), emu_node_id());
	for (uint32_t cpu = 0; cpu < emu_nr_cpus(); cpu++)
		atomic_init(&sem->readers[cpu].count, 0);
}

void destroy_percpu_rwsem(struct percpu_rwsem *sem)
{
	emu_free(sem->readers);
}

EMU_NOINLINE void percpu_down_read_slow(struct percpu_rwsem *sem)
{
	_Atomic uint32_t *count = &sem->readers[current->cpu].count;
	uint64_t start_ns = emu_clock_ns();

	/* Nothing was looked at yet, so relaxed. The writer may go on from here. */
	atomic_fetch_sub_explicit(count, 1, memory_order_relaxed);
	down_read(&sem->queue);
	/* No writer is in `queue`; the next one that is sees this, by the release and acquire of `queue`. */
	atomic_fetch_add_explicit(count, 1, memory_order_relaxed);
	up_read(&sem->queue);
	if (sem->class_id)
		lock_stat_contended(sem->class_id, LOCK_READ, emu_clock_ns() - start_ns);
}

void percpu_down_write(struct percpu_rwsem *sem)
{
	uint64_t start_ns = emu_clock_ns();
	bool waited = false;

	if (!down_write_trylock(&sem->queue)) {
		waited = true;
		down_write(&sem->queue);
	}
	atomic_store_explicit(&sem->hold, 1, memory_order_seq_cst);
	for (uint32_t cpu = 0; cpu < emu_nr_cpus(); cpu++) {
		_Atomic uint32_t *count = &sem->readers[cpu].count;

		/* Sequentially consistent, thereby acquire: the work of readers that were here before. */
		if (atomic_load_explicit(count, memory_order_seq_cst)) {
			waited = true;
			smp_cond_load_acquire(count, VAL == 0);
		}
	}
	if (!sem->class_id)
		return;
	if (waited)
		lock_stat_contended(sem->class_id, LOCK_WRITE, emu_clock_ns() - start_ns);
	lock_stat_acquired(sem->class_id, LOCK_WRITE, sem);
}

bool percpu_down_write_trylock(struct percpu_rwsem *sem)
{
	uint32_t cpu = 0;

	if (!down_write_trylock(&sem->queue))
		return false;
	atomic_store_explicit(&sem->hold, 1, memory_order_seq_cst);
	/* As in percpu_down_write(). */
	while (cpu < emu_nr_cpus() && !atomic_load_explicit(&sem->readers[cpu].count, memory_order_seq_cst))
		cpu++;
	if (cpu < emu_nr_cpus()) {
		/* Release: nothing of ours, but what we know of the last writer, whose 0 this takes the place of. */
		atomic_store_explicit(&sem->hold, 0, memory_order_release);
		up_write(&sem->queue);
		return false;
	}
	if (sem->class_id)
		lock_stat_acquired(sem->class_id, LOCK_WRITE, sem);
	return true;
}

void percpu_up_write(struct percpu_rwsem *sem)
{
	if (sem->class_id)
		lock_stat_release(sem);
	/* Release: pairs with the acquire of the next reader that comes in on the fast path. */
	atomic_store_explicit(&sem->hold, 0, memory_order_release);
	up_write(&sem->queue);
}
