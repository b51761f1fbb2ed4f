/* SPDX-License-Identifier: MIT */
/*
 * test_virtual.c - the virtual machine: order, time, and what it says when it is misused.
 *
 * This file is instrumented as designs are, so that what it does on a CPU costs what it would cost a design.
 */
#include "virtual_machine.h"
#include "execl_program.h"

#include <emu/rwsem.h>

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

static const struct shape hygon = { .sockets = 2, .nodes = 6, .l3 = 2, .cores = 8, .smt = 2 };
static const struct shape small = { .sockets = 1, .nodes = 1, .l3 = 1, .cores = 8, .smt = 1 };

/*
 * Locks
 */

static struct locked {
	struct rw_semaphore sem;
	struct qspinlock spin;
	__cacheline_aligned uint64_t by_sem, by_spin, inside;
	_Atomic uint32_t readers;
	uint32_t nth[384]; /* reader of those that read at that time */
} *locked;

static void take_locks(void *arg)
{
	(void)arg;
	for (int i = 0; i < 20; i++) {
		down_write(&locked->sem);
		ASSERT(!locked->inside++, "two CPUs inside");
		emu_compute(emu_random() % 300);
		locked->by_sem++;
		locked->inside--;
		up_write(&locked->sem);

		spin_lock(&locked->spin);
		locked->by_spin++;
		spin_unlock(&locked->spin);

		down_read(&locked->sem);
		ASSERT(!locked->inside, "a writer beside a reader");
		up_read(&locked->sem);
	}
}

static void locks_exclude_each_other_on_384_cpus(void)
{
	machine_boot(&hygon, 384, 1);
	locked = machine_zalloc(sizeof(*locked), 0);
	init_rwsem(&locked->sem, EMU_CLASS_MMAP_LOCK);
	spin_lock_init(&locked->spin, 0);
	ASSERT(!emu_virtual_run(take_locks, NULL), "%s", emu_error());
	ASSERT(locked->by_sem == 384 * 20 && locked->by_spin == 384 * 20, "%llu, %llu",
	       (unsigned long long)locked->by_sem, (unsigned long long)locked->by_spin);
	machine_end();
}

static void read_for_1_ms(void *arg)
{
	(void)arg;
	if (current->cpu == 0) {
		down_write(&locked->sem);
		emu_compute(5000000);
		up_write(&locked->sem);
		return;
	}
	emu_compute(1000000);
	down_read(&locked->sem);
	locked->nth[current->cpu] = ++locked->readers;
	emu_compute(1000000);
	locked->readers--;
	up_read(&locked->sem);
}

/* As in Linux. The rest comes after them. */
static void waiting_readers_are_let_in_256_at_a_time(void)
{
	uint32_t most = 0;

	machine_boot(&hygon, 384, 1);
	locked = machine_zalloc(sizeof(*locked), 0);
	init_rwsem(&locked->sem, EMU_CLASS_MMAP_LOCK);
	ASSERT(!emu_virtual_run(read_for_1_ms, NULL), "%s", emu_error());
	for (uint32_t i = 1; i < 384; i++) {
		ASSERT(locked->nth[i], "CPU %u has never read", i);
		most = most < locked->nth[i] ? locked->nth[i] : most;
	}
	ASSERT(most == 256, "%u at once", most);
	machine_end();
}

/*
 * Order
 */

static struct tickets {
	_Atomic uint32_t next;
	__cacheline_aligned uint64_t ns[2000];
} *tickets;

static void take_tickets(void *arg)
{
	(void)arg;
	for (int i = 0; i < 20; i++) {
		uint64_t ns;

		emu_compute(emu_random() % 5000);
		/* Stores in flight, of the last turn, would be waited for between the look at the clock and the add. */
		atomic_thread_fence(memory_order_seq_cst);
		ns = emu_clock_ns();
		tickets->ns[atomic_fetch_add_explicit(&tickets->next, 1, memory_order_relaxed)] = ns;
	}
}

static void atomics_take_effect_in_the_order_of_virtual_time(void)
{
	machine_boot(&hygon, 100, 3);
	tickets = machine_zalloc(sizeof(*tickets), 0);
	ASSERT(!emu_virtual_run(take_tickets, NULL), "%s", emu_error());
	ASSERT(tickets->next == 2000, "%u", tickets->next);
	for (int i = 1; i < 2000; i++)
		ASSERT(tickets->ns[i] >= tickets->ns[i - 1], "ticket %d at %llu ns, the one before at %llu", i,
		       (unsigned long long)tickets->ns[i], (unsigned long long)tickets->ns[i - 1]);
	machine_show("tickets");
	machine_end();
}

static struct emu_virtual_event traces[2][400000];

static uint64_t trace_of_execl(const char *design, uint64_t seed, struct emu_virtual_event *events, uint64_t max,
			       struct emu_virtual_stats *stats)
{
	struct emu_config config = { .nr_files = NR_FILES, .nr_lists = NR_LISTS, .nr_calls = EXECL_CALLS,
				     .work_jitter_permille = 100, .seed = seed };
	char path[512];
	uint64_t n;

	snprintf(path, sizeof(path), "%s/rmap/%s.so", EMU_DESIGNS, design);
	ASSERT(!emu_design_load(0, path, NULL), "%s", emu_error());
	ASSERT(!emu_design_load(1, EMU_DESIGNS "/mm/mmap-sem-rbtree.so", NULL), "%s", emu_error());
	machine_format(&hygon, 64, &config);
	ASSERT(!execl_add(50000), "%s", emu_error());
	machine_model(&config);
	emu_virtual_trace(events, max);
	ASSERT(!emu_phase_prepare(LIST_LOAD, 1, 0, 0) && !emu_virtual_run_phase(), "%s", emu_error());
	ASSERT(!emu_phase_prepare(LIST_EXECL, 0, 1, 1000000) && !emu_virtual_run_phase(), "%s", emu_error());
	n = emu_virtual_traced();
	ASSERT(!emu_phase_prepare(LIST_EXIT, 1, 0, 0) && !emu_virtual_run_phase(), "%s", emu_error());
	ASSERT(!emu_check_drained(), "%s", emu_error());
	emu_virtual_stats(stats);
	machine_end();
	return n;
}

static void same_seed_same_trace(void)
{
	static const char *const designs[] = { "single", "numa-trees", "numa-locks" };
	struct emu_virtual_stats a, b;

	for (uint32_t d = 0; d < ARRAY_SIZE(designs); d++) {
		uint64_t n = trace_of_execl(designs[d], 5, traces[0], ARRAY_SIZE(traces[0]), &a);
		/* A different host address of everything. */
		void *shift = mmap(NULL, 12345678, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		uint64_t m = trace_of_execl(designs[d], 5, traces[1], ARRAY_SIZE(traces[1]), &b);

		ASSERT(n > 10000 && n == m, "%s: %llu and %llu events", designs[d], (unsigned long long)n,
		       (unsigned long long)m);
		for (uint64_t i = 0; i < n; i++)
			ASSERT(!memcmp(&traces[0][i], &traces[1][i], sizeof(traces[0][i])), "%s: step %llu differs",
			       designs[d], (unsigned long long)i);
		ASSERT(!memcmp(&a, &b, sizeof(a)), "%s: the statistics differ", designs[d]);
		munmap(shift, 12345678);
		trace_of_execl(designs[d], 6, NULL, 0, &b);
		ASSERT(a.trace_hash != b.trace_hash, "%s: another seed, the same run", designs[d]);
	}
}

/*
 * Time
 */

static struct ping_pong {
	_Atomic uint32_t turn;
	uint32_t cpus[2];
} *ping_pong;
#define ROUNDS 100

/* As core-to-core-latency does it: each side waits with compare-and-exchange. */
static void play(void *arg)
{
	uint64_t *ns = arg;

	for (uint32_t side = 0; side < 2; side++) {
		uint64_t start = 0;

		if (current->cpu != ping_pong->cpus[side])
			continue;
		for (int i = 0; i < ROUNDS; i++) {
			uint32_t mine = side;

			if (i == 10)
				start = emu_clock_ns();
			while (!atomic_compare_exchange_strong(&ping_pong->turn, &mine, !side)) {
				emu_spin_wait(&ping_pong->turn);
				mine = side;
			}
		}
		*ns = (emu_clock_ns() - start) / (2 * (ROUNDS - 10));
	}
}

static void ping_pong_reproduces_the_latency_classes(void)
{
	/* Other CPU, home of the line, for CPU 0; one way, ns, without the few of the operation itself. */
	static const struct {
		const char *name;
		uint32_t other, home;
		double ns;
	} classes[] = {
		{ "SMT sibling", 192, 0, 12 },
		{ "same L3", 1, 0, 38 },
		{ "same L3, homed far away", 1, 11, 38 },
		{ "same node", 8, 0, 137 },
		{ "same node, homed in the other socket", 8, 6, 137 + 2 * 70.5 },
		{ "other node of the socket, homed there", 16, 1, 137 + 2 * 38.5 },
		{ "other node, homed in a third", 16, 2, 137 + 3 * 38.5 },
		{ "same position of the other socket", 96, 0, 137 + 2 * 70.5 },
		{ "other position of the other socket", 112, 0, 137 + 2 * (38.5 + 70.5) },
	};

	for (uint32_t i = 0; i < ARRAY_SIZE(classes); i++) {
		uint64_t ns = 0;

		machine_boot(&hygon, 384, 1);
		ping_pong = machine_zalloc(sizeof(*ping_pong), classes[i].home);
		ping_pong->cpus[1] = classes[i].other;
		ASSERT(!emu_virtual_run(play, &ns), "%s", emu_error());
		/* The mean of transfers that are a tenth longer or shorter. */
		ASSERT((double)ns + 1 > 0.98 * classes[i].ns && (double)ns < 1.02 * classes[i].ns + 10,
		       "%s: %llu ns, %.0f expected", classes[i].name, (unsigned long long)ns, classes[i].ns);
		machine_show("ping-pong");
		machine_end();
	}
}

static void add_up(void *arg)
{
	for (int i = 0; i < 100; i++)
		atomic_fetch_add_explicit((_Atomic uint32_t *)arg, 1, memory_order_relaxed);
}

static void contended_fetch_add_is_limited_by_occupancy(void)
{
	static const uint32_t counts[] = { 2, 8, 32, 128, 384 };

	for (uint32_t i = 0; i < ARRAY_SIZE(counts); i++) {
		struct emu_virtual_stats stats;
		double ns;

		machine_boot(&hygon, counts[i], 1);
		ASSERT(!emu_virtual_run(add_up, machine_zalloc(64, 0)), "%s", emu_error());
		emu_virtual_stats(&stats);
		ns = (double)stats.now_ps / 1000 / (100 * counts[i]);
		ASSERT(ns > 12.5 * 0.9 && ns < 12.5 * 1.3, "%u CPUs: %.1f ns an operation", counts[i], ns);
		machine_show("fetch-add");
		machine_end();
	}
}

/* CPUs 0 to 2 are behind one L3, where CPU 1 has a copy; when another is on its way to CPU 3, CPU 2 reads. */
static struct copies {
	__cacheline_aligned _Atomic uint64_t word;
	__cacheline_aligned uint64_t took_ps[4];
} *copies;

static void read_at(uint64_t ns)
{
	struct emu_virtual_cpu before, after;

	emu_compute(ns);
	emu_virtual_cpu(current->cpu, &before);
	atomic_load_explicit(&copies->word, memory_order_relaxed);
	emu_virtual_cpu(current->cpu, &after);
	copies->took_ps[current->cpu] = after.stall_ps - before.stall_ps;
}

static void copy_and_copy(void *arg)
{
	(void)arg;
	if (current->cpu == 0)
		atomic_store_explicit(&copies->word, 1, memory_order_relaxed);
	else if (current->cpu == 1)
		read_at(10000);
	else if (current->cpu == 3)
		read_at(20000);
	else
		read_at(20050);
}

static void a_copy_on_its_way_elsewhere_is_not_waited_for(void)
{
	const struct shape two = { .sockets = 2, .nodes = 1, .l3 = 1, .cores = 3, .smt = 1 };

	machine_boot(&two, 4, 1);
	copies = machine_zalloc(sizeof(*copies), 0);
	ASSERT(!emu_virtual_run(copy_and_copy, NULL), "%s", emu_error());
	ASSERT(copies->took_ps[3] > 200000, "the far copy takes %llu ps", (unsigned long long)copies->took_ps[3]);
	ASSERT(copies->took_ps[2] == machine_cost.l3_hit_ps, "a hit in the L3 takes %llu ps",
	       (unsigned long long)copies->took_ps[2]);
	machine_end();
}

static void look_at_lines(void *arg)
{
	struct {
		char *memory;
		uint32_t lines;
		uint64_t ns;
	} *look = arg;

	for (int round = 0; round < 3; round++) {
		uint64_t start = emu_clock_ns();

		for (uint32_t i = 0; i < look->lines; i++)
			(void)READ_ONCE(look->memory[i * EMU_CACHELINE]);
		look->ns = (emu_clock_ns() - start) / look->lines;
	}
}

static void caches_have_capacity(void)
{
	struct {
		char *memory;
		uint32_t lines;
		uint64_t ns;
	} look = { NULL, 0, 0 };

	/* Two objects in a row of the same chunk run: 250 KiB = 4000 lines. */
	for (int i = 0; i < 3; i++) {
		static const uint32_t private_lines[3] = { 8192, 1024, 1024 }, l3_lines[3] = { 262144, 262144, 1024 };
		static const uint64_t expected_ns[3] = { 1, 14, 91 };

		machine_cost.private_lines = private_lines[i];
		machine_cost.l3_lines = l3_lines[i];
		machine_boot(&small, 1, 1);
		look.lines = 4000;
		look.memory = machine_zalloc(look.lines * EMU_CACHELINE, 0);
		ASSERT(!emu_virtual_run(look_at_lines, &look), "%s", emu_error());
		ASSERT(look.ns == expected_ns[i], "%llu ns a line, %llu expected", (unsigned long long)look.ns,
		       (unsigned long long)expected_ns[i]);
		machine_show("look");
		machine_end();
	}
	machine_cost.private_lines = 4096;
	machine_cost.l3_lines = 262144;
}

static void wait_for_cpu_0(void *arg)
{
	_Atomic uint32_t *word = arg;

	if (current->cpu == 0) {
		emu_compute(1000000);
		atomic_store_explicit(word, 1, memory_order_release);
	} else {
		smp_cond_load_acquire(word, VAL);
	}
}

static void parked_spinners_cost_nothing(void)
{
	struct emu_virtual_stats stats;
	struct emu_virtual_cpu cpu;

	machine_boot(&hygon, 384, 1);
	ASSERT(!emu_virtual_run(wait_for_cpu_0, machine_zalloc(64, 0)), "%s", emu_error());
	emu_virtual_stats(&stats);
	/* Look, park, look again. */
	ASSERT(stats.accesses < 4 * 384 && stats.switches < 4 * 384, "%llu accesses, %llu switches",
	       (unsigned long long)stats.accesses, (unsigned long long)stats.switches);
	emu_virtual_cpu(383, &cpu);
	ASSERT(cpu.spin_ps > 990000000 && cpu.spin_ps <= cpu.clock_ps, "spun for %llu ps",
	       (unsigned long long)cpu.spin_ps);
	/* A copy for each of the 24 L3 domains leaves the owner after the other. */
	ASSERT(stats.now_ps > 1000000000u + 24 * 12500 && stats.now_ps < 1003000000u, "all awake at %llu ps",
	       (unsigned long long)stats.now_ps);
	machine_show("spinners");
	machine_end();
}

static struct sleepers {
	_Atomic uint32_t word;
	uint64_t woken_ns, wake_ns;
} *sleepers;

static void sleep_and_wake(void *arg)
{
	(void)arg;
	if (current->cpu == 1) {
		while (!atomic_load_explicit(&sleepers->word, memory_order_acquire))
			emu_futex_wait(&sleepers->word, 0);
		sleepers->woken_ns = emu_clock_ns();
	} else {
		emu_compute(50000);
		atomic_store_explicit(&sleepers->word, 1, memory_order_release);
		sleepers->wake_ns = emu_clock_ns();
		ASSERT(emu_futex_wake(&sleepers->word, 10) == 1, "one sleeper");
	}
}

static void a_sleeper_runs_when_it_has_been_woken(void)
{
	uint64_t sum_ns = 0;

	for (uint32_t seed = 1; seed <= 300; seed++) {
		uint64_t ns;

		machine_boot(&small, 2, seed);
		sleepers = machine_zalloc(sizeof(*sleepers), 0);
		ASSERT(!emu_virtual_run(sleep_and_wake, NULL), "%s", emu_error());
		ns = sleepers->woken_ns - sleepers->wake_ns;
		/* 140 for the call, 500 for the IPI, 2000 to 4000 until it runs, and a few lines. */
		ASSERT(ns >= 2640 && ns < 4900, "%llu ns", (unsigned long long)ns);
		sum_ns += ns;
		if (seed == 1)
			machine_show("sleeper");
		machine_end();
	}
	/* On average 3000 until it runs. */
	ASSERT(sum_ns >= 300 * 3640 && sum_ns < 300 * 3900, "%llu ns in all", (unsigned long long)sum_ns);
}

static void count_to_100(void *arg)
{
	uint64_t *own = (uint64_t *)arg + current->cpu * 8;

	emu_compute(700);
	for (int i = 0; i < 100; i++)
		WRITE_ONCE(*own, READ_ONCE(*own) + 1);
}

static void a_cpus_time_is_accounted_for(void)
{
	struct emu_virtual_cpu t;

	machine_boot(&hygon, 32, 1);
	ASSERT(!emu_virtual_run(count_to_100, machine_zalloc(32 * EMU_CACHELINE, 0)), "%s", emu_error());
	/* CPU 3 is on the node of the memory, which is read once; its task's line is on the way to it. */
	emu_virtual_cpu(3, &t);
	ASSERT(t.compute_ps == 700000 && t.stall_ps == 2 * 90000 && !t.spin_ps && !t.sleep_ps, "compute %llu stall %llu",
	       (unsigned long long)t.compute_ps, (unsigned long long)t.stall_ps);
	ASSERT(t.access_ps == 201 * 1000, "access %llu ps", (unsigned long long)t.access_ps);
	machine_end();

	machine_boot(&hygon, 32, 1);
	locked = machine_zalloc(sizeof(*locked), 0);
	init_rwsem(&locked->sem, EMU_CLASS_MMAP_LOCK);
	spin_lock_init(&locked->spin, 0);
	ASSERT(!emu_virtual_run(take_locks, NULL), "%s", emu_error());
	/* The first is through before the others have come. */
	emu_virtual_cpu(0, &t);
	ASSERT(!t.spin_ps && !t.sleep_ps, "CPU 0 waits");
	for (uint32_t i = 1; i < 32; i++) {
		emu_virtual_cpu(i, &t);
		ASSERT(t.access_ps > 20 * 30 * 1000 && t.access_ps < t.clock_ps / 4 &&
			       t.spin_ps + t.sleep_ps > t.clock_ps / 2,
		       "CPU %u: %llu of %llu ps of its own, %llu spinning, %llu asleep", i,
		       (unsigned long long)t.access_ps, (unsigned long long)t.clock_ps,
		       (unsigned long long)t.spin_ps, (unsigned long long)t.sleep_ps);
	}
	machine_end();
}

/*
 * Sharing a CPU
 */

static struct turns {
	_Atomic uint32_t word, told;
	uint64_t end_ns[8];
	uint64_t first_ns[8];
} *turns;

#define SLICE_NS 3000000u
#define SWITCH_NS 1500u

static void compute_5_ms(void *arg)
{
	(void)arg;
	turns->first_ns[current->nr] = emu_clock_ns();
	emu_compute(5000000);
	turns->end_ns[current->nr] = emu_clock_ns();
}

static void tasks_of_a_cpu_take_turns(void)
{
	struct emu_virtual_cpu t;

	machine_share(&small, 2, 5, 1);
	turns = machine_zalloc(sizeof(*turns), 0);
	ASSERT(!emu_virtual_run(compute_5_ms, NULL), "%s", emu_error());
	/* CPU 0 has tasks 0, 2 and 4, CPU 1 has 1 and 3: slices of 3 ms and of the 2 ms that are left. */
	for (uint32_t i = 0; i < 5; i++) {
		uint64_t share = i % 2 ? 2 : 3, before = i / 2;
		uint64_t first = before * SLICE_NS, end = share * SLICE_NS + (before + 1) * 2000000;

		ASSERT(turns->first_ns[i] >= first && turns->first_ns[i] < first + 10000, "task %u begins at %llu ns", i,
		       (unsigned long long)turns->first_ns[i]);
		ASSERT(turns->end_ns[i] >= end && turns->end_ns[i] < end + 20000, "task %u ends at %llu ns", i,
		       (unsigned long long)turns->end_ns[i]);
		emu_virtual_cpu(i, &t);
		ASSERT(t.compute_ps == 5000000000 && t.runqueue_ps > (end - 5000000) * 1000 &&
			       t.runqueue_ps < (end - 5000000) * 1000 + 20000000,
		       "task %u waited %llu ps", i, (unsigned long long)t.runqueue_ps);
	}
	machine_show("turns");
	machine_end();
}

static void no_slice_ends_for_one_alone(void)
{
	machine_share(&small, 2, 3, 1);
	turns = machine_zalloc(sizeof(*turns), 0);
	ASSERT(!emu_virtual_run(compute_5_ms, NULL), "%s", emu_error());
	ASSERT(turns->end_ns[1] < 5001000, "task 1, alone on its CPU, ends at %llu ns",
	       (unsigned long long)turns->end_ns[1]);
	machine_end();
}

/* Task 0 spins until it is told to stop, in a queue; task 2, on the same CPU, can only run after that. */
static void spin_until_told(void *arg)
{
	(void)arg;
	if (current->nr == 0) {
		emu_preempt_disable();
		smp_cond_load_acquire(&turns->word, VAL || emu_need_resched());
		turns->end_ns[0] = emu_clock_ns();
		ASSERT(emu_need_resched() && !turns->word, "stopped for nothing");
		emu_preempt_enable();
		turns->end_ns[3] = emu_clock_ns();
	} else if (current->nr == 2) {
		turns->first_ns[2] = emu_clock_ns();
	}
}

static void need_resched_ends_spinning(void)
{
	machine_share(&small, 2, 3, 1);
	turns = machine_zalloc(sizeof(*turns), 0);
	ASSERT(!emu_virtual_run(spin_until_told, NULL), "%s", emu_error());
	ASSERT(turns->end_ns[0] >= SLICE_NS && turns->end_ns[0] < SLICE_NS + 100, "told at %llu ns",
	       (unsigned long long)turns->end_ns[0]);
	ASSERT(turns->first_ns[2] >= SLICE_NS + SWITCH_NS && turns->first_ns[2] < SLICE_NS + 2 * SWITCH_NS,
	       "the other begins at %llu ns", (unsigned long long)turns->first_ns[2]);
	ASSERT(turns->end_ns[3] > turns->first_ns[2], "went on before the other");
	machine_end();
}

/* As above, but the slice ends between the look at emu_need_resched() and the wait. */
static void spin_and_be_told_late(void *arg)
{
	(void)arg;
	if (current->nr == 0) {
		emu_preempt_disable();
		while (!emu_need_resched()) {
			emu_compute(SLICE_NS + 1000);
			emu_spin_wait(&turns->word);
		}
		turns->end_ns[0] = emu_clock_ns();
		emu_preempt_enable();
	} else if (current->nr == 2) {
		turns->first_ns[2] = emu_clock_ns();
	}
}

static void who_is_told_late_does_not_wait(void)
{
	machine_share(&small, 2, 3, 1);
	turns = machine_zalloc(sizeof(*turns), 0);
	ASSERT(!emu_virtual_run(spin_and_be_told_late, NULL), "%s", emu_error());
	ASSERT(turns->end_ns[0] >= SLICE_NS + 1000 && turns->end_ns[0] < SLICE_NS + 1100, "told at %llu ns",
	       (unsigned long long)turns->end_ns[0]);
	ASSERT(turns->first_ns[2] > turns->end_ns[0], "the other begins at %llu ns",
	       (unsigned long long)turns->first_ns[2]);
	machine_end();
}

static void sleep_5_ms(void *arg)
{
	(void)arg;
	emu_sleep(5000000);
}

/* More of them than a page of the queue holds: two CPUs alone would never need one. */
static void all_tasks_may_sleep_at_once(void)
{
	struct emu_virtual_cpu t;

	machine_share(&small, 2, 4000, 1);
	ASSERT(!emu_virtual_run(sleep_5_ms, NULL), "%s", emu_error());
	for (uint32_t i = 0; i < 4000; i++) {
		emu_virtual_cpu(i, &t);
		ASSERT(t.sleep_ps >= 5000000000 && t.sleep_ps < 20000000000, "task %u slept for %llu ps", i,
		       (unsigned long long)t.sleep_ps);
	}
	machine_end();
}

/* Task 0 has the lock and goes on with the CPU shared; task 1, on a CPU of its own, wants it. */
static void hold_and_lose_the_cpu(void *arg)
{
	(void)arg;
	if (current->nr == 0) {
		down_write(&locked->sem);
		emu_compute(4000000);
		up_write(&locked->sem);
	} else if (current->nr == 1) {
		emu_compute(1000000);
		down_write(&locked->sem);
		up_write(&locked->sem);
	} else {
		emu_compute(4000000);
	}
}

static void a_preempted_owner_releases_its_spinner(void)
{
	struct emu_virtual_cpu t;

	machine_share(&small, 2, 3, 1);
	locked = machine_zalloc(sizeof(*locked), 0);
	init_rwsem(&locked->sem, EMU_CLASS_MMAP_LOCK);
	ASSERT(!emu_virtual_run(hold_and_lose_the_cpu, NULL), "%s", emu_error());
	/* It spins from 1 ms to the end of the owner's slice at 3, and sleeps until the owner is back and done at 7. */
	emu_virtual_cpu(1, &t);
	ASSERT(t.spin_ps > 1990000000 && t.spin_ps < 2010000000, "spun for %llu ps", (unsigned long long)t.spin_ps);
	ASSERT(t.sleep_ps > 3990000000 && t.sleep_ps < 4020000000, "slept for %llu ps", (unsigned long long)t.sleep_ps);
	ASSERT(t.stack_ps[EMU_STACK_OTHER_LOCKS] >= t.spin_ps + t.sleep_ps, "no file's lock");
	machine_end();
}

static void hold_and_sleep(void *arg)
{
	(void)arg;
	if (current->cpu == 0) {
		down_write(&locked->sem);
		emu_compute(100000);
		emu_futex_wait(&turns->word, 0);
		up_write(&locked->sem);
	} else if (current->cpu == 1) {
		emu_compute(10000);
		down_write(&locked->sem);
		up_write(&locked->sem);
	} else {
		emu_compute(1000000);
		atomic_store_explicit(&turns->word, 1, memory_order_release);
		emu_futex_wake(&turns->word, 1);
	}
}

static void a_sleeping_owner_releases_its_spinner(void)
{
	struct emu_virtual_cpu t;

	machine_boot(&small, 3, 1);
	locked = machine_zalloc(sizeof(*locked), 0);
	turns = machine_zalloc(sizeof(*turns), 0);
	init_rwsem(&locked->sem, lock_class("i_mmap_rwsem", "libc.so"));
	ASSERT(!emu_virtual_run(hold_and_sleep, NULL), "%s", emu_error());
	emu_virtual_cpu(1, &t);
	ASSERT(t.spin_ps > 88000000 && t.spin_ps < 92000000, "spun for %llu ps", (unsigned long long)t.spin_ps);
	ASSERT(t.sleep_ps > 900000000, "slept for %llu ps", (unsigned long long)t.sleep_ps);
	ASSERT(t.stack_ps[EMU_STACK_SPINNING] == t.spin_ps && t.stack_ps[EMU_STACK_ASLEEP] >= t.sleep_ps,
	       "a file's lock");
	/* Under the lock it computed for 100 us, and touched a line or two. */
	emu_virtual_cpu(0, &t);
	ASSERT(t.stack_ps[EMU_STACK_TREE_WORK] >= 100000000 && t.stack_ps[EMU_STACK_TREE_WORK] < 101000000,
	       "%llu ps under the lock", (unsigned long long)t.stack_ps[EMU_STACK_TREE_WORK]);
	machine_end();
}

static void locks_exclude_each_other_on_a_shared_machine(void)
{
	struct emu_virtual_stats stats[2];

	machine_cost.time_slice_ps = 20000000;
	for (int i = 0; i < 2; i++) {
		machine_share(&hygon, 24, 100, 1);
		locked = machine_zalloc(sizeof(*locked), 0);
		init_rwsem(&locked->sem, EMU_CLASS_MMAP_LOCK);
		spin_lock_init(&locked->spin, 0);
		ASSERT(!emu_virtual_run(take_locks, NULL), "%s", emu_error());
		ASSERT(locked->by_sem == 100 * 20 && locked->by_spin == 100 * 20, "%llu, %llu",
		       (unsigned long long)locked->by_sem, (unsigned long long)locked->by_spin);
		emu_virtual_stats(&stats[i]);
		machine_end();
	}
	ASSERT(!memcmp(&stats[0], &stats[1], sizeof(stats[0])), "two runs differ");
	machine_cost.time_slice_ps = 3000000000;
}

/* Slices so short that tasks are preempted everywhere; the trees are right and empty afterwards. */
static void designs_work_on_a_shared_machine(void)
{
	static const char *const designs[] = { "single", "numa-trees", "numa-locks", "cpu-locks", "btree", "dynamic",
					       "exclude", "outer-inner", "outer-percpu" };
	uint64_t preempted_ps = 0;

	machine_cost.time_slice_ps = 30000000;
	for (uint32_t d = 0; d < ARRAY_SIZE(designs); d++) {
		struct emu_config config = { .nr_cpus = 50, .nr_files = NR_FILES, .nr_lists = NR_LISTS,
					     .nr_calls = EXECL_CALLS, .work_jitter_permille = 100, .seed = 7 };
		struct emu_virtual_cpu t;
		char path[512];

		snprintf(path, sizeof(path), "%s/rmap/%s.so", EMU_DESIGNS, designs[d]);
		ASSERT(!emu_design_load(0, path, NULL), "%s", emu_error());
		ASSERT(!emu_design_load(1, EMU_DESIGNS "/mm/mmap-sem-rbtree.so", NULL), "%s", emu_error());
		machine_format(&hygon, 18, &config);
		ASSERT(!execl_add(20000), "%s", emu_error());
		machine_model(&config);
		ASSERT(!emu_phase_prepare(LIST_LOAD, 1, 0, 0) && !emu_virtual_run_phase(), "%s: %s", designs[d],
		       emu_error());
		ASSERT(!emu_phase_prepare(LIST_EXECL, 0, 1, 300000) && !emu_virtual_run_phase(), "%s: %s", designs[d],
		       emu_error());
		for (uint32_t i = 0; i < 50; i++) {
			ASSERT(emu_cpu_result(i)->counts[EMU_CALL_EXEC], "%s: task %u did nothing", designs[d], i);
			emu_virtual_cpu(i, &t);
			preempted_ps += t.runqueue_ps;
		}
		ASSERT(!emu_phase_prepare(LIST_EXIT, 1, 0, 0) && !emu_virtual_run_phase(), "%s: %s", designs[d],
		       emu_error());
		ASSERT(!emu_check_drained(), "%s: %s", designs[d], emu_error());
		machine_end();
	}
	ASSERT(preempted_ps > 100000000, "%llu ps in run queues", (unsigned long long)preempted_ps);
	machine_cost.time_slice_ps = 3000000000;
}

static void threads_of_a_core_slow_each_other_down(void)
{
	static const struct shape smt = { .sockets = 1, .nodes = 1, .l3 = 1, .cores = 2, .smt = 2 };

	machine_cost.smt_speed_permille = 625;
	/* CPUs 0 and 2 are core 0, CPU 1 has a core of its own. */
	machine_boot(&smt, 3, 1);
	turns = machine_zalloc(sizeof(*turns), 0);
	ASSERT(!emu_virtual_run(compute_5_ms, NULL), "%s", emu_error());
	ASSERT(turns->end_ns[0] >= 8000000 && turns->end_ns[0] < 8001000 && turns->end_ns[2] >= 8000000 &&
		       turns->end_ns[2] < 8001000,
	       "the two end at %llu and %llu ns", (unsigned long long)turns->end_ns[0],
	       (unsigned long long)turns->end_ns[2]);
	ASSERT(turns->end_ns[1] >= 5000000 && turns->end_ns[1] < 5001000, "the one alone ends at %llu ns",
	       (unsigned long long)turns->end_ns[1]);
	machine_end();

	/* A thread that watches a line leaves the core to the other; noticed after a step of 20 us at the latest. */
	machine_boot(&smt, 4, 1);
	ASSERT(!emu_virtual_run(wait_for_cpu_0, machine_zalloc(64, 0)), "%s", emu_error());
	ASSERT(emu_clock_ns() < 1014000, "the end is at %llu ns", (unsigned long long)emu_clock_ns());
	machine_end();
	machine_cost.smt_speed_permille = 1000;
}

static void sleep_with_a_spinlock(void *arg)
{
	spin_lock(arg);
	task_park();
}

/*
 * Misuse
 */

static void sleeping_under_a_spinlock_is_a_bug(void)
{
	pid_t pid = fork();
	int status;

	if (!pid) {
		close(2);
		machine_boot(&small, 1, 1);
		emu_virtual_run(sleep_with_a_spinlock, machine_zalloc(64, 0));
		_exit(0);
	}
	ASSERT(waitpid(pid, &status, 0) == pid && WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT, "status %#x",
	       (unsigned int)status);
}

static struct rw_semaphore *pair[2];

static void abba(void *arg)
{
	(void)arg;
	down_write(pair[current->cpu]);
	emu_compute(10000);
	down_write(pair[!current->cpu]);
}

static void a_deadlock_is_named(void)
{
	machine_boot(&small, 2, 1);
	for (int i = 0; i < 2; i++) {
		pair[i] = machine_zalloc(sizeof(*pair[i]), 0);
		init_rwsem(pair[i], EMU_CLASS_MMAP_LOCK);
	}
	ASSERT(emu_virtual_run(abba, NULL) == -EDEADLK, "not found");
	ASSERT(strstr(emu_error(), "deadlock: all CPUs wait: CPU 0 ") && strstr(emu_error(), "; CPU 1 ") &&
		       strstr(emu_error(), " in abba>rwsem_down_write_slow"),
	       "%s", emu_error());
	machine_end();
}

static void poll_for_ever(void *arg)
{
	while (!READ_ONCE(*(uint32_t *)arg))
		;
}

static void plain_for_ever(void *arg)
{
	uint32_t *word = arg;

	for (uint32_t i = 0; i < UINT32_MAX; i++)
		word[i % 16] += i;
}

static void a_cpu_that_never_ends_meets_the_event_limit(void)
{
	void (*const bodies[])(void *) = { poll_for_ever, plain_for_ever };

	for (uint32_t i = 0; i < ARRAY_SIZE(bodies); i++) {
		machine_cost.event_limit = 1000000;
		machine_boot(&small, 2, 1);
		ASSERT(emu_virtual_run(bodies[i], machine_zalloc(64, 0)) == -ETIME, "not found");
		ASSERT(strstr(emu_error(), "event limit: 1000000 accesses in which no call ended; CPU ") &&
			       strstr(emu_error(), "_for_ever"),
		       "%s", emu_error());
		ASSERT(emu_virtual_run(bodies[i], NULL) == -EIO, "runs on after it has failed");
		machine_cost.event_limit = 1000000000;
		machine_end();
	}
}

static void compute_for_ever(void *arg)
{
	(void)arg;
	emu_compute(5000);
	/* A volatile local: neither shared memory nor anything that a compiler may leave out. */
	for (volatile uint64_t i = 1; i; i++)
		;
}

static void a_cpu_that_never_looks_up_is_named(void)
{
	machine_boot(&small, 2, 1);
	ASSERT(emu_virtual_run(compute_for_ever, NULL) == -ETIME, "not found");
	ASSERT(strstr(emu_error(), "CPU 0 at 5000 ns has computed for 5 s of the host's time without an access to shared "
				   "memory, in compute_for_ever"), "%s", emu_error());
	machine_end();
}

static void wait_for_the_clock(void *arg)
{
	(void)arg;
	emu_compute(5000);
	while (emu_clock_ns() < 10000)
		;
}

static void a_cpu_that_waits_for_the_clock_is_named(void)
{
	machine_boot(&small, 2, 1);
	ASSERT(emu_virtual_run(wait_for_the_clock, NULL) == -ETIME, "not found");
	ASSERT(strstr(emu_error(), "CPU 0 waits for the clock, which stands at 5000 ns, in wait_for_the_clock"), "%s",
	       emu_error());
	machine_end();
}

static EMU_NOINLINE uint64_t recurse(volatile uint64_t *above)
{
	volatile uint64_t frame[64];

	frame[0] = *above + 1;
	return frame[0] < 1000000 ? recurse(frame) + frame[0] : 0;
}

static void overflow(void *arg)
{
	volatile uint64_t start = 0;

	(void)arg;
	if (current->cpu == 3)
		recurse(&start);
}

static struct flush {
	_Atomic uint64_t cpus;
	uint64_t ns[3]; /* of one to the first, the second, the third mm */
} *flush;

#define MM(n) ((struct mm_struct *)(UINT64_C(0x1000) * ((n) + 1)))

static void flush_from_cpu_0(void *arg)
{
	(void)arg;
	emu_compute(current->nr ? 100000 : 10000);
	if (current->nr)
		return;
	atomic_load(&flush->cpus);
	for (uint64_t i = 0; i < ARRAY_SIZE(flush->ns); i++) {
		uint64_t start_ns = emu_clock_ns();

		emu_tlb_flush(MM(i), &flush->cpus, 4);
		flush->ns[i] = emu_clock_ns() - start_ns;
	}
}

/* Four CPUs, two tasks each: 1 and 2 run the first mm, 3 the second; of the third there are tasks in run queues alone. */
static void a_flush_interrupts_cpus_that_run_the_mm(void)
{
	static const uint64_t mm_of_task[8] = { 0, 0, 0, 1, 2, 2, 0, 0 };

	machine_share(&small, 4, 8, 1);
	flush = machine_zalloc(sizeof(*flush), 0);
	atomic_init(&flush->cpus, 0xf);
	for (uint32_t i = 0; i < 8; i++) {
		emu_cpu_attach(i);
		current->mm = MM(mm_of_task[i]);
	}
	emu_current = NULL;
	ASSERT(!emu_virtual_run(flush_from_cpu_0, NULL), "%s", emu_error());
	ASSERT(flush->ns[0] >= 2800 && flush->ns[0] < 2820, "%llu ns", (unsigned long long)flush->ns[0]);
	ASSERT(flush->ns[1] >= 2300 && flush->ns[1] < 2320, "%llu ns", (unsigned long long)flush->ns[1]);
	ASSERT(flush->ns[2] < 20, "%llu ns", (unsigned long long)flush->ns[2]);
	machine_end();
}

static void all_run(struct mm_struct *mm, uint32_t cpus)
{
	for (uint32_t i = 0; i < cpus; i++) {
		emu_cpu_attach(i);
		current->mm = mm;
	}
	emu_current = NULL;
}

static void flush_once(void *arg)
{
	(void)arg;
	emu_compute(current->nr ? 100000 : 10000);
	if (current->nr)
		return;
	flush->ns[0] = emu_clock_ns();
	emu_tlb_flush(MM(0), &flush->cpus, 4);
	flush->ns[0] = emu_clock_ns() - flush->ns[0];
}

/* As slow as a machine's file may make them, or to thousands of CPUs: together they are more ps than 32 bits hold. */
static void interrupts_add_up(void)
{
	const struct emu_cost_model usual = machine_cost;

	machine_cost.ipi_round_trip_ps = 2100000000;
	machine_cost.ipi_each_ps = 2000000000;
	machine_boot(&small, 4, 1);
	flush = machine_zalloc(sizeof(*flush), 0);
	atomic_init(&flush->cpus, 0xf);
	all_run(MM(0), 4);
	ASSERT(!emu_virtual_run(flush_once, NULL), "%s", emu_error());
	ASSERT(flush->ns[0] >= 6100000 && flush->ns[0] < 6101000, "%llu ns", (unsigned long long)flush->ns[0]);
	machine_end();
	machine_cost = usual;
}

static struct interrupted {
	_Atomic uint64_t cpus;
	_Alignas(EMU_CACHELINE) _Atomic uint32_t go;
	uint64_t go_ns, seen_ns, computed_ns;
} *interrupted;

/* CPU 0 interrupts the others twenty times and then lets CPU 1 go on, which spins; CPU 2 computes. */
static void interrupt_a_spinner(void *arg)
{
	uint64_t start_ns = emu_clock_ns();

	(void)arg;
	if (current->nr == 0) {
		emu_compute(10000);
		atomic_load(&interrupted->cpus);
		for (uint32_t i = 0; i < 20; i++)
			emu_tlb_flush(MM(0), &interrupted->cpus, 4);
		interrupted->go_ns = emu_clock_ns();
		atomic_store(&interrupted->go, 1);
	} else if (current->nr == 1) {
		while (!atomic_load(&interrupted->go))
			emu_spin_wait(&interrupted->go);
		interrupted->seen_ns = emu_clock_ns();
	} else {
		emu_compute(200000);
		atomic_load(&interrupted->cpus);
		interrupted->computed_ns = emu_clock_ns() - start_ns;
	}
}

static void a_spinner_is_late_by_the_interrupt_that_it_is_in(void)
{
	uint64_t handlers_ns = 20 * machine_cost.ipi_handler_ps / 1000;

	machine_boot(&small, 3, 1);
	interrupted = machine_zalloc(sizeof(*interrupted), 0);
	atomic_init(&interrupted->cpus, 0x7);
	all_run(MM(0), 3);
	ASSERT(!emu_virtual_run(interrupt_a_spinner, NULL), "%s", emu_error());
	ASSERT(interrupted->seen_ns - interrupted->go_ns < 1000, "%llu ns",
	       (unsigned long long)(interrupted->seen_ns - interrupted->go_ns));
	ASSERT(interrupted->computed_ns >= 200000 + handlers_ns && interrupted->computed_ns < 201000 + handlers_ns,
	       "%llu ns", (unsigned long long)interrupted->computed_ns);
	machine_end();
}

static void go_wild(void *arg)
{
	emu_compute(1000);
	if (current->cpu == 2)
		*(volatile uint32_t *)(uintptr_t)(0x1234560 + *(uint32_t *)arg) = 1;
}

static void faults_are_reported_with_cpu_time_and_seed(void)
{
	machine_boot(&small, 4, 77);
	ASSERT(emu_virtual_run(overflow, NULL) == -EFAULT, "not found");
	ASSERT(strstr(emu_error(), "stack overflow: CPU 3 at 91 ns, seed 77"), "%s", emu_error());
	machine_end();
	machine_boot(&small, 4, 77);
	ASSERT(emu_virtual_run(go_wild, machine_zalloc(64, 0)) == -EFAULT, "not found");
	ASSERT(strstr(emu_error(), "wild pointer 0x1234560: CPU 2 at 1") && strstr(emu_error(), "seed 77"), "%s",
	       emu_error());
	machine_end();
}

static void nothing_of_libtsan_is_loaded(void)
{
	char line[512];
	FILE *maps = fopen("/proc/self/maps", "r");
	bool ours = false;

	ASSERT(maps, "/proc/self/maps");
	while (fgets(line, sizeof(line), maps)) {
		ASSERT(!strstr(line, "tsan"), "%s", line);
		ours = ours || strstr(line, "libemu-virtual");
	}
	ASSERT(ours, "libemu-virtual is not loaded");
	fclose(maps);
}

int main(void)
{
	TEST(nothing_of_libtsan_is_loaded);
	TEST(locks_exclude_each_other_on_384_cpus);
	TEST(waiting_readers_are_let_in_256_at_a_time);
	TEST(atomics_take_effect_in_the_order_of_virtual_time);
	TEST(same_seed_same_trace);
	TEST(ping_pong_reproduces_the_latency_classes);
	TEST(contended_fetch_add_is_limited_by_occupancy);
	TEST(a_copy_on_its_way_elsewhere_is_not_waited_for);
	TEST(caches_have_capacity);
	TEST(parked_spinners_cost_nothing);
	TEST(a_sleeper_runs_when_it_has_been_woken);
	TEST(a_cpus_time_is_accounted_for);
	TEST(tasks_of_a_cpu_take_turns);
	TEST(no_slice_ends_for_one_alone);
	TEST(need_resched_ends_spinning);
	TEST(who_is_told_late_does_not_wait);
	TEST(all_tasks_may_sleep_at_once);
	TEST(a_flush_interrupts_cpus_that_run_the_mm);
	TEST(interrupts_add_up);
	TEST(a_spinner_is_late_by_the_interrupt_that_it_is_in);
	TEST(a_preempted_owner_releases_its_spinner);
	TEST(a_sleeping_owner_releases_its_spinner);
	TEST(locks_exclude_each_other_on_a_shared_machine);
	TEST(designs_work_on_a_shared_machine);
	TEST(threads_of_a_core_slow_each_other_down);
	TEST(sleeping_under_a_spinlock_is_a_bug);
	TEST(a_deadlock_is_named);
	TEST(a_cpu_that_never_ends_meets_the_event_limit);
	TEST(a_cpu_that_never_looks_up_is_named);
	TEST(a_cpu_that_waits_for_the_clock_is_named);
	TEST(faults_are_reported_with_cpu_time_and_seed);
	return test_report();
}
