/* SPDX-License-Identifier: MIT */
/*
 * test_maple.c - the tree of ranges (emu/maple.h) against an array that has an entry for each point; and read by several
 * CPUs without a lock while one changes it. A CPU is a thread here: the machine's services are the native ones.
 */
#include "test.h"

#include <emu/control.h>
#include <emu/maple.h>

#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>

#ifdef __SANITIZE_THREAD__
#define THREADS_ONLY true /* that sanitizer has nothing to say of the others */
#else
#define THREADS_ONLY false
#endif

#define CPUS 4u
#define ARENA_BYTES (UINT64_C(64) << 20)
#define POINTS 1200u

static void *arena_base;
static struct maple_root tree;
static char entries[64]; /* their addresses are the entries */
static uint8_t model[POINTS]; /* by point: 0 = none, else index of the entry + 1 */

static void machine_boot(uint64_t seed)
{
	const uint32_t node_of_cpu[CPUS] = { 0 };
	const struct emu_config config = {
		.bytes = sizeof(config), .nr_cpus = CPUS,    .nr_nodes = 1, .nr_files = 1, .nr_lists = 1,
		.nr_calls = 1,		 .oversubscribed = 1, .seed = seed,  .node_of_cpu = node_of_cpu,
	};

	arena_base = mmap(NULL, ARENA_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT(arena_base != MAP_FAILED, "mmap: %s", strerror(errno));
	ASSERT(!emu_arena_format(arena_base, ARENA_BYTES, &config), "%s", emu_error());
	emu_cpu_attach(0);
	maple_init(&tree);
	memset(model, 0, sizeof(model));
}

static void machine_end(void)
{
	maple_store(&tree, 0, UINT64_MAX, NULL);
	ASSERT(maple_empty(&tree), "a tree without entries has no nodes");
	emu_cpu_attach(0);
	emu_rcu_drain();
	munmap(arena_base, ARENA_BYTES);
}

static void *entry_of(uint8_t number)
{
	return number ? &entries[number - 1] : NULL;
}

static void store(uint32_t first, uint32_t last, uint8_t number)
{
	while (number && ((first && model[first - 1] == number) || (last + 1 < POINTS && model[last + 1] == number)))
		number = number % sizeof(entries) + 1;
	maple_store(&tree, first, last, entry_of(number));
	memset(&model[first], number, last - first + 1);
	emu_rcu_quiescent();
}

static void check_neighbours(uint32_t at)
{
	uint32_t next = at, before = at;
	void *found;

	while (next < POINTS && !model[next])
		next++;
	found = maple_find(&tree, at);
	ASSERT(found == (next < POINTS ? entry_of(model[next]) : NULL), "after %u", at);
	/* The range at `at` is not before it. */
	while (before && model[before - 1] == model[at] && model[at])
		before--;
	while (before && !model[before - 1])
		before--;
	found = maple_find_before(&tree, at);
	ASSERT(found == (before ? entry_of(model[before - 1]) : NULL), "before %u", at);
}

static int64_t model_free_area(uint64_t len, uint64_t low, uint64_t high)
{
	uint64_t run = 0;

	for (uint64_t at = high; at-- > low;) {
		run = at < POINTS && model[at] ? 0 : run + 1;
		if (run == len)
			return (int64_t)at;
	}
	return -ENOMEM;
}

static void check_all(void)
{
	for (uint32_t at = 0; at < POINTS; at++)
		ASSERT(maple_load(&tree, at) == entry_of(model[at]), "at %u", at);
	ASSERT(!maple_load(&tree, UINT64_MAX) && maple_check(&tree, NULL), "a broken tree");
}

static void check_some(void)
{
	uint32_t at = (uint32_t)(emu_random() % POINTS);
	uint64_t len = 1 + emu_random() % 40, low = emu_random() % POINTS, high = low + emu_random() % (POINTS + 50);
	int64_t found = maple_free_area(&tree, len, low, high), expected = model_free_area(len, low, high);

	ASSERT(found == expected, "%llu in %llu to %llu: %lld, not %lld", (unsigned long long)len,
	       (unsigned long long)low, (unsigned long long)high, (long long)found, (long long)expected);
	check_neighbours(at);
}

/* Short ranges, as many as fit; long ones, which cut across leaves; and holes. */
static void random_stores(uint32_t longest, uint32_t holes_of_8, uint64_t seed, uint32_t least_height)
{
	uint32_t highest = 0;

	machine_boot(seed);
	for (uint32_t i = 0; i < 3000; i++) {
		uint32_t first = (uint32_t)(emu_random() % POINTS), last = first + (uint32_t)(emu_random() % longest);
		uint32_t height;

		last = last < POINTS ? last : POINTS - 1;
		store(first, last, emu_random() % 8 < holes_of_8 ? 0 : (uint8_t)(1 + emu_random() % sizeof(entries)));
		ASSERT(maple_check(&tree, &height), "broken by store %u", i);
		highest = height > highest ? height : highest;
		check_some();
		if (i % 64 == 0)
			check_all();
	}
	check_all();
	ASSERT(highest >= least_height, "%u levels", highest);
	/* And down again. */
	while (!maple_empty(&tree)) {
		uint32_t first = (uint32_t)(emu_random() % POINTS), last = first + 40;

		store(first, last < POINTS ? last : POINTS - 1, 0);
		ASSERT(maple_check(&tree, NULL), "broken");
		check_some();
	}
	for (uint32_t at = 0; at < POINTS; at++)
		ASSERT(!model[at], "an empty tree, but not the model");
	machine_end();
}

static void as_the_model_does(void)
{
	for (uint64_t seed = 1; seed <= 6; seed++) {
		random_stores(2, 1, seed, 3);
		random_stores(8, 4, seed, 2);
		random_stores(POINTS, 2, seed, 1);
		random_stores(60, 0, seed, 1);
	}
}

/* Every tree of up to five ranges over six points, by every order of stores: no case is left to chance. */
static void all_small_trees(void)
{
	machine_boot(1);
	for (uint32_t code = 0; code < 21 * 21 * 21 * 2 * 2 * 2; code++) {
		uint32_t left = code;

		for (uint32_t s = 0; s < 3; s++) {
			uint32_t pair = left % 21, first = 0;

			left /= 21;
			while (pair >= 6 - first)
				pair -= 6 - first++;
			store(first, first + pair, left & 1 ? 0 : (uint8_t)(1 + s));
			left >>= 1;
		}
		for (uint32_t at = 0; at < 8; at++) {
			ASSERT(maple_load(&tree, at) == entry_of(model[at]), "code %u at %u", code, at);
			check_neighbours(at);
		}
		ASSERT(maple_check(&tree, NULL), "code %u", code);
		store(0, 7, 0);
		ASSERT(maple_empty(&tree), "code %u", code);
	}
	machine_end();
}

/* All addresses that there are. */
static void the_ends_of_the_space(void)
{
	machine_boot(1);
	maple_store(&tree, 0, 0, &entries[0]);
	maple_store(&tree, UINT64_MAX, UINT64_MAX, &entries[1]);
	ASSERT(maple_load(&tree, 0) == &entries[0] && maple_load(&tree, UINT64_MAX) == &entries[1] &&
		       !maple_load(&tree, 1) && !maple_load(&tree, UINT64_MAX - 1),
	       "ends");
	ASSERT(maple_free_area(&tree, 10, 0, INT64_MAX) == INT64_MAX - 10, "free");
	maple_store(&tree, 0, UINT64_MAX, &entries[2]);
	ASSERT(maple_load(&tree, 77) == &entries[2] && maple_free_area(&tree, 1, 0, INT64_MAX) == -ENOMEM, "full");
	machine_end();
}

/*
 * Readers beside a writer. Even numbers of ten points never change; in the odd ones the writer stores one of the two
 * entries that belong there, or none. And ranges of a hundred points change as a whole.
 */
#define STABLE(n) ((n) % 2 == 0)
static _Atomic bool stop;

static void *reader(void *arg)
{
	uint64_t reads = 0;

	emu_cpu_attach((uint32_t)(uintptr_t)arg);
	while (!atomic_load_explicit(&stop, memory_order_relaxed) || !reads) {
		uint32_t n = (uint32_t)(emu_random() % (POINTS / 10));
		char *entry;

		rcu_read_lock();
		entry = maple_load(&tree, n * 10 + emu_random() % 10);
		rcu_read_unlock();
		if (STABLE(n))
			ASSERT(entry == &entries[n % 60], "a reader lost range %u", n);
		else
			ASSERT(!entry || entry == &entries[n % 60] || entry == &entries[n % 60 + 1],
			       "range %u has the entry of another", n);
		if (++reads % 16 == 0)
			emu_rcu_quiescent();
	}
	emu_rcu_idle();
	return NULL;
}

static void readers_need_no_lock(void)
{
	pthread_t threads[CPUS];

	machine_boot(1);
	for (uint32_t n = 0; n < POINTS / 10; n++)
		maple_store(&tree, n * 10, n * 10 + 9, &entries[n % 60]);
	atomic_store(&stop, false);
	for (uintptr_t i = 1; i < CPUS; i++)
		ASSERT(!pthread_create(&threads[i], NULL, reader, (void *)i), "pthread_create");
	for (uint32_t i = 0; i < 20000 || !emu_rcu->cpus[0].freed; i++) {
		uint32_t n = (uint32_t)(emu_random() % (POINTS / 10)) | 1;
		uint32_t first = n * 10 + (uint32_t)(emu_random() % 10), last = n * 10 + (uint32_t)(emu_random() % 10);
		uint32_t which = (uint32_t)(emu_random() % 3);

		maple_store(&tree, first < last ? first : last, first < last ? last : first,
			    which ? &entries[n % 60 + which - 1] : NULL);
		emu_rcu_quiescent();
	}
	atomic_store(&stop, true);
	for (uint32_t i = 1; i < CPUS; i++)
		pthread_join(threads[i], NULL);
	ASSERT(maple_check(&tree, NULL), "broken");
	machine_end();
}

int main(void)
{
	if (!THREADS_ONLY) {
		TEST(all_small_trees);
		TEST(the_ends_of_the_space);
		TEST(as_the_model_does);
	}
	TEST(readers_need_no_lock);
	return test_report();
}
