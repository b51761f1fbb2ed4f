/* SPDX-License-Identifier: MIT */
/*
 * lock_scenarios.h - scenarios of locks and RCU, for `emu check`; and for whoever changes a lock: a file that has a copy of
 * rwsem.c and then `EMU_EXPORT LOCK_SCENARIOS(emu_scenarios);` tries the copy (emu check --scenario ./FILE.c).
 *
 * The words behind the lock are ordinary ones, so a lock that lets two in, or orders too little, is a data race.
 */
#ifndef EMU_LOCK_SCENARIOS_H
#define EMU_LOCK_SCENARIOS_H

#include <emu/percpu_rwsem.h>
#include <emu/rcu.h>
#include <emu/scenario.h>

struct guarded {
	struct rw_semaphore sem;
	struct percpu_rwsem percpu;
	struct qspinlock spin;
	struct osq_lock osq;
	__cacheline_aligned _Atomic(uint64_t *) object;
	__cacheline_aligned uint64_t a, b;
};

static struct guarded *guarded;

static void lock_setup(void)
{
	guarded = emu_zalloc(sizeof(*guarded), 0);
	init_rwsem(&guarded->sem, lock_class("rwsem", NULL));
	init_percpu_rwsem(&guarded->percpu, lock_class("percpu_rwsem", NULL));
	spin_lock_init(&guarded->spin, lock_class("spinlock", NULL));
	osq_lock_init(&guarded->osq);
}

static void lock_setup_no_spin(void)
{
	lock_setup();
	guarded->sem.no_spin = true;
}

static void write_words(void)
{
	guarded->a++;
	guarded->b++;
}

static void read_words(void)
{
	EMU_ASSERT(guarded->a == guarded->b, "a reader sees %llu and %llu", (unsigned long long)guarded->a,
		   (unsigned long long)guarded->b);
}

static void wrote(uint64_t n)
{
	EMU_ASSERT(guarded->a == n && guarded->b == n, "%llu writers of %llu", (unsigned long long)guarded->a,
		   (unsigned long long)n);
}

static void nothing_held(void)
{
	EMU_ASSERT(!atomic_load(&guarded->sem.count), "the rwsem is left at %#llx",
		   (unsigned long long)atomic_load(&guarded->sem.count));
	EMU_ASSERT(!guarded->sem.wait_first, "somebody is left in the wait list");
	EMU_ASSERT(!atomic_load(&guarded->spin.val), "the spinlock is left at %#x", atomic_load(&guarded->spin.val));
}

static void writer(uint32_t cpu)
{
	(void)cpu;
	down_write(&guarded->sem);
	write_words();
	up_write(&guarded->sem);
}

static void writer_twice(uint32_t cpu)
{
	writer(cpu);
	writer(cpu);
}

static void reader(void)
{
	down_read(&guarded->sem);
	read_words();
	up_read(&guarded->sem);
}

static void wrote_all_twice(void)
{
	wrote(2 * 3);
	nothing_held();
}

static void wrote_four(void)
{
	wrote(4);
	nothing_held();
}

static void wrote_five(void)
{
	wrote(5);
	nothing_held();
}

static void mixed(uint32_t cpu)
{
	if (cpu & 1) {
		reader();
		reader();
	} else {
		writer(cpu);
		writer(cpu);
	}
}

static void tried(uint32_t cpu)
{
	if (cpu == 0) {
		writer(cpu);
		writer(cpu);
	} else if (cpu == 1) {
		if (down_write_trylock(&guarded->sem)) {
			write_words();
			up_write(&guarded->sem);
		}
		if (down_read_trylock(&guarded->sem)) {
			read_words();
			up_read(&guarded->sem);
		}
	} else {
		reader();
	}
}

static void downgraded(uint32_t cpu)
{
	if (cpu == 0) {
		down_write(&guarded->sem);
		write_words();
		downgrade_write(&guarded->sem);
		read_words();
		up_read(&guarded->sem);
	} else if (cpu == 1) {
		writer(cpu);
	} else {
		reader();
	}
}

static void spun(uint32_t cpu)
{
	(void)cpu;
	for (int i = 0; i < 2; i++) {
		spin_lock(&guarded->spin);
		write_words();
		spin_unlock(&guarded->spin);
	}
}

static void spin_tried(uint32_t cpu)
{
	if (cpu) {
		spun(cpu);
	} else if (spin_trylock(&guarded->spin)) {
		write_words();
		spin_unlock(&guarded->spin);
	}
}

static void queued(uint32_t cpu)
{
	(void)cpu;
	for (int i = 0; i < 2; i++) {
		if (!osq_lock(&guarded->osq))
			continue;
		write_words();
		osq_unlock(&guarded->osq);
	}
}

static void percpu(uint32_t cpu)
{
	if (cpu == 0) {
		percpu_down_write(&guarded->percpu);
		write_words();
		percpu_up_write(&guarded->percpu);
	} else {
		percpu_down_read(&guarded->percpu);
		read_words();
		percpu_up_read(&guarded->percpu);
	}
}

static void percpu_writers(uint32_t cpu)
{
	if (cpu < 2) {
		percpu(0);
	} else {
		percpu(cpu);
		percpu(cpu);
	}
}

static void percpu_tried(uint32_t cpu)
{
	if (cpu != 1) {
		percpu(cpu);
	} else if (percpu_down_write_trylock(&guarded->percpu)) {
		write_words();
		percpu_up_write(&guarded->percpu);
	}
}

static void rcu_setup(void)
{
	uint64_t *object = emu_zalloc(sizeof(*object), 0);

	lock_setup();
	rcu_assign_pointer(&guarded->object, object);
}

/* What a sleep does, and a preemption outside sections. */
static void rcu_switched(void)
{
	emu_rcu_wake(emu_rcu_sleep());
}

/* One replaces and frees, one has grace periods begin and end, one reads; and each was away before. */
static void rcu_slept(uint32_t cpu)
{
	const uint64_t *object;

	rcu_switched();
	if (cpu == 0) {
		emu_free_rcu(atomic_exchange_explicit(&guarded->object, NULL, memory_order_acq_rel));
		emu_rcu_quiescent();
		rcu_switched();
		emu_rcu_quiescent();
	} else if (cpu == 1) {
		emu_free_rcu(emu_alloc(sizeof(*object), 0));
		emu_rcu_quiescent();
		emu_rcu_quiescent();
	} else {
		rcu_read_lock();
		object = rcu_dereference(&guarded->object);
		/* More work between the two, as a reader has. */
		(void)rcu_dereference(&guarded->object);
		if (object)
			EMU_ASSERT(!*object, "a reader finds %#llx", (unsigned long long)*object);
		rcu_read_unlock();
		emu_rcu_quiescent();
	}
}

#define LOCK(NAME, CPUS, SETUP, CPU, CHECK, HELP)                                                                   \
	{                                                                                                           \
		.name = NAME, .help = HELP, .nr_cpus = CPUS, .kind = EMU_SCENARIO_LOCK, .setup = SETUP, .cpu = CPU, \
		.check = CHECK                                                                                      \
	}

#define LOCK_SCENARIOS(array)                                                                                       \
	const struct emu_scenario array[] = {                                                                       \
		LOCK("rwsem-writers", 3, lock_setup, writer_twice, wrote_all_twice, "three writers, twice each"),   \
		LOCK("rwsem-mixed", 4, lock_setup, mixed, wrote_four, "two writers and two readers, twice each"),   \
		LOCK("rwsem-sleepers", 5, lock_setup_no_spin, writer, wrote_five, "five writers that never spin"),  \
		LOCK("rwsem-mixed-sleepers", 4, lock_setup_no_spin, mixed, wrote_four, "writers that never spin"),  \
		LOCK("rwsem-trylock", 3, lock_setup, tried, nothing_held, "trylocks beside a writer and a reader"), \
		LOCK("rwsem-downgrade", 3, lock_setup, downgraded, nothing_held, "from writer to reader"),          \
		LOCK("spinlock-three", 3, lock_setup, spun, wrote_all_twice, "three CPUs, twice each"),             \
		LOCK("spinlock-trylock", 3, lock_setup, spin_tried, nothing_held, "a trylock beside two CPUs"),     \
		LOCK("osq", 3, lock_setup, queued, NULL, "the spin queue, with waiters that leave it"),             \
		LOCK("percpu-rwsem", 3, lock_setup, percpu, NULL, "a writer and two readers"),                      \
		LOCK("percpu-rwsem-writers", 3, lock_setup, percpu_writers, NULL, "two writers and a reader"),      \
		LOCK("percpu-rwsem-trylock", 3, lock_setup, percpu_tried, NULL,                                     \
		     "a trylock beside a writer and a reader"),                                                     \
		{ .name = "rcu-slept",                                                                              \
		  .help = "one frees, one reads, after they slept",                                                 \
		  .nr_cpus = 3,                                                                                     \
		  .kind = EMU_SCENARIO_LOCK,                                                                        \
		  .setup = rcu_setup,                                                                               \
		  .cpu = rcu_slept,                                                                                 \
		  .rcu = true },                                                                                    \
		{ 0 },                                                                                              \
	}

#endif
