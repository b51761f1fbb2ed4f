/* SPDX-License-Identifier: MIT */
/*
 * test_conformance.c - the conformance suite under the sanitizers: every rule for every rmap design, as it is and in
 * other ways. What the suite itself finds, broken designs show (test_check.py); here races and bad memory accesses count.
 */
#define _GNU_SOURCE
#include "native_cpus.h"

#include "../../workers/conformance/conformance.h"

#include <sys/mman.h>

#define ARENA_BYTES (UINT64_C(64) << 20)

static uint32_t steps = 60;

static void cpu_main(uint32_t cpu)
{
	emu_cpu_attach(cpu);
	conformance_cpu(NULL);
}

static void check_rule(const struct variant *v, uint32_t rule, uint64_t seed)
{
	const uint32_t node_of_cpu[CPUS] = { 0, 0, 1, 1 };
	const uint32_t penalty_ns[4] = { 0, 100, 100, 0 };
	const struct emu_config config = {
		.bytes = sizeof(config),
		.nr_cpus = CPUS,
		.nr_nodes = 2,
		.nr_files = 2,
		.oversubscribed = true,
		.numa_penalty = v->penalty,
		.seed = seed,
		.node_of_cpu = node_of_cpu,
		.penalty_ns = penalty_ns,
	};
	struct conformance_totals totals = { .bytes = sizeof(totals) };
	void *base = mmap(NULL, ARENA_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	const char *why;
	char path[512];

	ASSERT(base != MAP_FAILED, "mmap: %s", strerror(errno));
	snprintf(path, sizeof(path), "%s/rmap/%s.so", EMU_DESIGNS, v->design);
	ASSERT(!emu_design_load(0, path, v->params), "%s", emu_error());
	ASSERT(!emu_design_load(1, EMU_DESIGNS "/mm/mmap-sem-rbtree.so", NULL), "%s", emu_error());
	ASSERT(!emu_arena_format(base, ARENA_BYTES, &config), "%s", emu_error());
	ASSERT(emu_file_add("data", 64) == 0 && emu_file_add("libpair.so.1", 64) == 1, "files");
	ASSERT(!emu_boot(), "%s", emu_error());
	conformance_begin(0, rule, steps);
	run_cpus(cpu_main);
	why = conformance_end(&totals);
	ASSERT(!why, "%s", why);
	ASSERT(totals.changes || totals.answers, "rule %u did nothing", rule);
	ASSERT(!emu_check_drained(), "%s", emu_error());
	munmap(base, ARENA_BYTES);
}

static void run(const struct variant *v)
{
	const char *name, *text;

	printf("%s%s%s%s:", v->design, v->params ? ":" : "", v->params ? v->params : "",
	       v->penalty ? " with penalty" : "");
	for (uint32_t rule = 0; (name = conformance_rule(0, rule, &text)); rule++) {
		printf(" %s", name);
		fflush(stdout);
		check_rule(v, rule, 1);
	}
	printf("\n");
	test_passed++;
}

/* test_conformance [steps [design]] */
int main(int argc, char **argv)
{
	if (argc > 1)
		steps = (uint32_t)strtoul(argv[1], NULL, 10);
	for_each_variant(run, argc > 2 ? argv[2] : NULL);
	return test_report();
}
