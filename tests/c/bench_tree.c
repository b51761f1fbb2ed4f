/* SPDX-License-Identifier: MIT */
/*
 * bench_tree.c - what one interval_tree_remove() + interval_tree_insert() costs on one CPU.
 *
 * The tree is a file's i_mmap when N/5 processes have mapped the five segments of libc: five distinct
 * starts, so that nearly all comparisons are between equals. Each node lies in an object of its own of a
 * VMA's size.
 *
 *   hot   the five intervals of one process, over and over: all lines used stay in the L1 cache
 *   cold  one of the five of a process drawn at random each time: its lines come from wherever they are
 *
 * Prints lines "name<TAB>ns": per pair, the median over the rounds, each of which has a tree of its own.
 * The argument is the seed of the choice of processes, 1 if not given.
 */
#include <emu/interval_tree.h>

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define SEGMENTS 5u
#define VMA_SIZE 256u
#define ROUNDS 15u

struct bench_vma {
	_Alignas(VMA_SIZE) struct interval_tree_node node;
};

static const uint64_t segment[SEGMENTS][2] = {
	{ 0, 37 }, { 38, 395 }, { 396, 481 }, { 482, 485 }, { 486, 487 },
};

static struct interval_tree_root root;
static uint64_t seed = 1;

bool emu_numa_penalty;

void emu_line_moved_slow(uint32_t *last)
{
	(void)last; /* the penalty is off */
}

void emu_bug(const char *file, int line, const char *expr, const char *fmt, ...)
{
	va_list args;

	fprintf(stderr, "%s:%d: %s: ", file, line, expr);
	va_start(args, fmt);
	vfprintf(stderr, fmt, args);
	va_end(args);
	fputc('\n', stderr);
	abort();
}

/* xorshift64: uniform enough for drawing processes. */
static uint64_t next_random(void)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return seed;
}

static uint64_t clock_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static void move(struct bench_vma *vma)
{
	interval_tree_remove(&vma->node, &root);
	interval_tree_insert(&vma->node, &root);
}

/* Maps everything in the order of the processes, then lets a quarter of them exit and come again. */
static void build(struct bench_vma *vmas, uint32_t processes)
{
	uint32_t i, s;

	root = (struct interval_tree_root){ 0 };
	for (i = 0; i < processes; i++) {
		for (s = 0; s < SEGMENTS; s++) {
			struct bench_vma *vma = &vmas[i * SEGMENTS + s];

			vma->node.start = segment[s][0];
			vma->node.last = segment[s][1];
			interval_tree_insert(&vma->node, &root);
		}
	}
	for (i = 0; i < processes / 4; i++) {
		struct bench_vma *vma = &vmas[next_random() % processes * SEGMENTS];

		for (s = 0; s < SEGMENTS; s++)
			interval_tree_remove(&vma[s].node, &root);
		for (s = 0; s < SEGMENTS; s++)
			interval_tree_insert(&vma[s].node, &root);
	}
}

static double hot_round(struct bench_vma *vmas, uint32_t processes)
{
	struct bench_vma *vma = &vmas[next_random() % processes * SEGMENTS];
	const uint32_t loops = 20000;
	uint64_t begin_ns;
	uint32_t i, s;

	for (i = 0; i < 1000; i++)
		for (s = 0; s < SEGMENTS; s++)
			move(&vma[s]);
	begin_ns = clock_ns();
	for (i = 0; i < loops; i++)
		for (s = 0; s < SEGMENTS; s++)
			move(&vma[s]);
	return (double)(clock_ns() - begin_ns) / (loops * SEGMENTS);
}

static double cold_round(struct bench_vma *vmas, uint32_t processes)
{
	const uint32_t loops = 100000;
	uint32_t *draws = malloc(loops * sizeof(*draws));
	uint64_t begin_ns;
	double pair_ns;
	uint32_t i;

	if (!draws) {
		fprintf(stderr, "bench_tree: out of memory\n");
		exit(1);
	}
	for (i = 0; i < loops; i++)
		draws[i] = (uint32_t)(next_random() % processes) * SEGMENTS + i % SEGMENTS;
	begin_ns = clock_ns();
	for (i = 0; i < loops; i++)
		move(&vmas[draws[i]]);
	pair_ns = (double)(clock_ns() - begin_ns) / loops;
	free(draws);
	return pair_ns;
}

static int compare_doubles(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static void bench(const char *name, double (*round)(struct bench_vma *, uint32_t), uint32_t intervals)
{
	struct bench_vma *vmas = aligned_alloc(VMA_SIZE, intervals * sizeof(*vmas));
	double pair_ns[ROUNDS];
	uint32_t i;

	if (!vmas) {
		fprintf(stderr, "bench_tree: out of memory\n");
		exit(1);
	}
	for (i = 0; i < ROUNDS; i++) {
		build(vmas, intervals / SEGMENTS);
		pair_ns[i] = round(vmas, intervals / SEGMENTS);
	}
	if (!interval_tree_check(&root)) {
		fprintf(stderr, "bench_tree: %s: the tree is corrupted\n", name);
		exit(1);
	}
	qsort(pair_ns, ROUNDS, sizeof(pair_ns[0]), compare_doubles);
	printf("remove_insert_%s_%" PRIu32 "\t%.1f\n", name, intervals, pair_ns[ROUNDS / 2]);
	fflush(stdout);
	free(vmas);
}

int main(int argc, char **argv)
{
	static const uint32_t sizes[] = { 10, 1000, 6000, 100000 };
	uint32_t i;

	if (argc > 1)
		seed = strtoull(argv[1], NULL, 0) | 1;
	for (i = 0; i < ARRAY_SIZE(sizes); i++)
		bench("hot", hot_round, sizes[i]);
	for (i = 0; i < ARRAY_SIZE(sizes); i++)
		bench("cold", cold_round, sizes[i]);
	return 0;
}
