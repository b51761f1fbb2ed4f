/* SPDX-License-Identifier: MIT */
/*
 * rcu_cases.h - what test_rcu.c (native) and test_rcu_virtual.c run: RCU frees nothing that a reader still holds, frees
 * what nobody does, and waits for no CPU that sleeps or has ended.
 *
 * The file that includes this defines run_cpus(fn), which runs fn() on CPUs 0 .. CPUS-1 of a fresh machine whose arena is
 * checked (EMU_CHECKED: freed memory is filled with a pattern), and shared_zalloc().
 */
#ifndef RCU_CASES_H
#define RCU_CASES_H

#include "test.h"

#include <emu/rcu.h>

#define CPUS 4u
#define ALIVE UINT64_C(0x616c697665212121)

struct object {
	uint64_t word[8];
};

static struct rcu_shared {
	struct object *_Atomic object;
	_Atomic uint32_t step; /* of a script that two CPUs follow */
	_Atomic uint32_t word;
	_Atomic uint32_t finished;
	_Atomic uint64_t reads;
} *rcu_shared;

static void run_cpus(void (*fn)(void));
static bool reader_breaks_the_rule; /* says that it is in no section, while it is in one */

static struct object *object_new(void)
{
	struct object *object = emu_alloc(sizeof(*object), emu_node_id());

	for (uint32_t i = 0; i < ARRAY_SIZE(object->word); i++)
		object->word[i] = ALIVE;
	return object;
}

static bool object_alive(const struct object *object)
{
	uint64_t alive = 0;

	for (uint32_t i = 0; i < ARRAY_SIZE(object->word); i++)
		alive += object->word[i] == ALIVE;
	return alive == ARRAY_SIZE(object->word);
}

static void await_step(uint32_t step)
{
	smp_cond_load_acquire(&rcu_shared->step, VAL >= step);
}

static void next_step(uint32_t step)
{
	atomic_store_explicit(&rcu_shared->step, step, memory_order_release);
}

/* Many readers, one writer that replaces the object all the time. */
static void replace_and_read(void)
{
	const uint32_t turns = 3000;

	if (current->cpu == 0) {
		rcu_assign_pointer(&rcu_shared->object, object_new());
		for (uint32_t i = 0; i < turns; i++) {
			struct object *old = atomic_load_explicit(&rcu_shared->object, memory_order_relaxed);

			rcu_assign_pointer(&rcu_shared->object, object_new());
			emu_free_rcu(old);
			emu_rcu_quiescent();
			/* Goes on for ever if grace periods do not end while readers come and go. */
			while (emu_rcu->cpus[0].freed + 500 < i) {
				emu_compute(1000);
				ASSERT(!atomic_load(&rcu_shared->finished), "only CPU 0 ends it");
				emu_rcu_quiescent();
			}
		}
		emu_free_rcu(atomic_exchange(&rcu_shared->object, NULL));
		atomic_store(&rcu_shared->finished, 1);
		emu_rcu_quiescent();
		return;
	}
	/* The last CPU leaves early: nobody may wait for it. */
	for (uint32_t i = 0; !atomic_load(&rcu_shared->finished) && !(current->cpu == CPUS - 1 && i > 100); i++) {
		struct object *object;

		rcu_read_lock();
		object = rcu_dereference(&rcu_shared->object);
		if (object) {
			ASSERT(object_alive(object), "a reader found freed memory");
			atomic_fetch_add_explicit(&rcu_shared->reads, 1, memory_order_relaxed);
		}
		rcu_read_unlock();
		emu_rcu_quiescent();
		emu_spin_wait(&rcu_shared->object);
	}
}

static void nothing_is_freed_under_a_reader(void)
{
	run_cpus(replace_and_read);
	emu_rcu_drain();
	ASSERT(emu_rcu->cpus[0].freed == 3001, "%llu of 3001 freed", (unsigned long long)emu_rcu->cpus[0].freed);
}

/*
 * CPU 1 holds an object in a section; CPU 0 frees it and goes through quiescent points as long as it likes. Then the
 * section ends. Others do nothing, and sleep from the start.
 */
static void hold_and_free(void)
{
	struct object *object;

	if (current->cpu > 1) {
		while (!atomic_load(&rcu_shared->word))
			emu_futex_wait(&rcu_shared->word, 0);
		return;
	}
	if (current->cpu == 0) {
		rcu_assign_pointer(&rcu_shared->object, object_new());
		next_step(1);
		await_step(2);
		emu_free_rcu(atomic_exchange(&rcu_shared->object, NULL));
		/* As long as the others need to come to their sleep, if it is to be seen that CPU 1 does not count. */
		for (uint32_t i = 0; reader_breaks_the_rule ? !emu_rcu->cpus[0].freed : i < 100; i++) {
			emu_compute(1000);
			emu_rcu_quiescent();
		}
		ASSERT(!emu_rcu->cpus[0].freed == !reader_breaks_the_rule, "freed: %llu",
		       (unsigned long long)emu_rcu->cpus[0].freed);
		next_step(3);
		await_step(4);
		while (!emu_rcu->cpus[0].freed) {
			emu_compute(1000);
			emu_rcu_quiescent();
		}
		ASSERT(emu_rcu->cpus[0].freed == 1, "%llu freed of 1", (unsigned long long)emu_rcu->cpus[0].freed);
		atomic_store(&rcu_shared->word, 1);
		emu_futex_wake(&rcu_shared->word, CPUS);
		return;
	}
	await_step(1);
	rcu_read_lock();
	object = rcu_dereference(&rcu_shared->object);
	next_step(2);
	if (reader_breaks_the_rule) {
		rcu_read_unlock();
		emu_rcu_idle();
	}
	await_step(3);
#ifdef EMU_CHECKED
	ASSERT(object_alive(object) == !reader_breaks_the_rule, "alive: %d", object_alive(object));
#endif
	if (!reader_breaks_the_rule)
		rcu_read_unlock();
	else
		emu_rcu_online();
	(void)object;
	/* Ends: nobody may wait for it any more. */
	emu_rcu_idle();
	next_step(4);
}

static void a_grace_period_waits_for_a_section_and_for_no_sleeper(void)
{
	reader_breaks_the_rule = false;
	run_cpus(hold_and_free);
}

#endif
