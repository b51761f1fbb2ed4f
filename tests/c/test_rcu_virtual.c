/* SPDX-License-Identifier: MIT */
/*
 * test_rcu_virtual.c - RCU on the virtual machine (see rcu_cases.h).
 */
#include "virtual_machine.h"

#include "rcu_cases.h"

#include <emu/maple.h>

static void (*cpu_function)(void);

static void on_cpu(void *arg)
{
	(void)arg;
	emu_rcu_online();
	cpu_function();
	emu_rcu_idle();
}

static void run_cpus(void (*fn)(void))
{
	static const struct shape shape = { .sockets = 2, .nodes = 1, .l3 = 1, .cores = 2, .smt = 1 };

	machine_boot(&shape, CPUS, 1);
	rcu_shared = machine_zalloc(sizeof(*rcu_shared), 0);
	cpu_function = fn;
	ASSERT(!emu_virtual_run(on_cpu, NULL), "%s", emu_error());
	emu_cpu_attach(0);
}

static void a_broken_grace_period_is_seen(void)
{
	reader_breaks_the_rule = true;
	run_cpus(hold_and_free);
}

static void read_only(void)
{
	rcu_read_lock();
	for (uint32_t i = 0; i < 1000; i++)
		ASSERT(!rcu_dereference(&rcu_shared->object), "empty");
	rcu_read_unlock();
}

/* More than may wait: the loop in emu_rcu_quiescent() ends once every task has spoken, each for itself. */
static void free_many(void *arg)
{
	(void)arg;
	emu_rcu_online();
	for (uint32_t i = 0; i < 4 * EMU_RCU_BACKLOG; i++) {
		emu_free_rcu(object_new());
		emu_rcu_quiescent();
	}
	emu_rcu_idle();
}

static void tasks_of_one_cpu_speak_for_themselves(void)
{
	static const struct shape shape = { .sockets = 1, .nodes = 1, .l3 = 1, .cores = 1, .smt = 1 };

	machine_share(&shape, 1, 3, 1);
	ASSERT(!emu_virtual_run(free_many, NULL), "%s", emu_error());
	for (uint32_t i = 0; i < 3; i++)
		ASSERT(emu_rcu->cpus[i].freed >= 3 * EMU_RCU_BACKLOG, "task %u freed %llu", i,
		       (unsigned long long)emu_rcu->cpus[i].freed);
	emu_cpu_attach(0);
	emu_rcu_drain();
}

/*
 * A tree's writer and its readers share their CPUs with tasks that free memory: they are preempted anywhere, and grace
 * periods go on meanwhile. What readers may find is not freed.
 */
#define RANGES 64u
static struct shared_tree {
	struct maple_root root;
	_Atomic uint32_t finished;
} *shared_tree;

static void write_tree(void)
{
	for (uint32_t i = 0; i < 1000; i++) {
		uint64_t first = emu_random() % RANGES * 16;

		maple_store(&shared_tree->root, first, first + 15, &shared_tree[first / 16 + 1]);
		emu_rcu_quiescent();
		maple_store(&shared_tree->root, first + emu_random() % 8, first + 8 + emu_random() % 8, NULL);
		emu_rcu_quiescent();
	}
	atomic_store_explicit(&shared_tree->finished, 1, memory_order_relaxed);
}

static void read_tree(void)
{
	uint64_t at = emu_random() % (16 * RANGES);
	void *entry;

	rcu_read_lock();
	entry = maple_load(&shared_tree->root, at);
	rcu_read_unlock();
	ASSERT(!entry || entry == &shared_tree[at / 16 + 1], "a reader was in a node that is freed");
}

static void tree_task(void *arg)
{
	(void)arg;
	emu_rcu_online();
	if (!current->nr)
		write_tree();
	while (!atomic_load_explicit(&shared_tree->finished, memory_order_relaxed)) {
		if (current->cpu)
			read_tree();
		else
			emu_free_rcu(object_new());
		emu_rcu_quiescent();
	}
	emu_rcu_idle();
}

static void a_preempted_writer_frees_nothing_that_is_found(void)
{
	static const struct shape shape = { .sockets = 1, .nodes = 1, .l3 = 1, .cores = 2, .smt = 1 };
	const uint64_t slice_ps = machine_cost.time_slice_ps;

	for (uint64_t seed = 1; seed <= 10; seed++) {
		machine_cost.time_slice_ps = 1000000 + seed * 77777;
		machine_share(&shape, 2, 6, seed);
		shared_tree = machine_zalloc((RANGES + 1) * sizeof(*shared_tree), 0);
		ASSERT(!emu_virtual_run(tree_task, NULL), "seed %llu: %s", (unsigned long long)seed, emu_error());
		emu_cpu_attach(0);
		emu_rcu_drain();
		machine_end();
	}
	machine_cost.time_slice_ps = slice_ps;
}

/* Sections of many CPUs at once move no line, but for each CPU's first copy of what it reads. */
static void sections_share_nothing(void)
{
	struct emu_virtual_stats stats;

	run_cpus(read_only);
	emu_virtual_stats(&stats);
	ASSERT(stats.transfers < CPUS, "%llu transfers", (unsigned long long)stats.transfers);
}

int main(void)
{
	TEST(nothing_is_freed_under_a_reader);
	TEST(a_grace_period_waits_for_a_section_and_for_no_sleeper);
	TEST(a_broken_grace_period_is_seen);
	TEST(tasks_of_one_cpu_speak_for_themselves);
	TEST(a_preempted_writer_frees_nothing_that_is_found);
	TEST(sections_share_nothing);
	return test_report();
}
