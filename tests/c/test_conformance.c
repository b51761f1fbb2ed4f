/* SPDX-License-Identifier: MIT */
/*
 * test_conformance.c - the conformance suite under the sanitizers: every rule for every rmap design, as it is and in
 * other ways, and for every mm design. What the suite itself finds, broken designs show (test_check.py); here races and
 * bad memory accesses count.
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

enum { KIND_RMAP, KIND_MM };

static void check_rule(const struct variant *v, const char *mm, uint32_t rule, uint64_t seed)
{
	uint32_t kind = mm ? KIND_MM : KIND_RMAP;
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
	ASSERT(!emu_design_load(KIND_RMAP, path, v->params), "%s", emu_error());
	snprintf(path, sizeof(path), "%s/mm/%s.so", EMU_DESIGNS, mm ? mm : "mmap-sem-rbtree");
	ASSERT(!emu_design_load(KIND_MM, path, NULL), "%s", emu_error());
	ASSERT(!emu_arena_format(base, ARENA_BYTES, &config), "%s", emu_error());
	ASSERT(emu_file_add("data", 64) == 0 && emu_file_add("libpair.so.1", 64) == 1, "files");
	ASSERT(!emu_boot(), "%s", emu_error());
	/* A step of a test of mm designs is several calls. */
	conformance_begin(kind, rule, mm ? 1 + steps / 3 : steps);
	run_cpus(cpu_main);
	why = conformance_end(&totals);
	ASSERT(!why, "%s", why);
	ASSERT(totals.changes || totals.answers || totals.faults, "rule %u did nothing", rule);
	ASSERT(!emu_check_drained(), "%s", emu_error());
	munmap(base, ARENA_BYTES);
}

static void check_rules(const struct variant *v, const char *mm)
{
	const char *name, *text;

	for (uint32_t rule = 0; (name = conformance_rule(mm ? KIND_MM : KIND_RMAP, rule, &text)); rule++) {
		printf(" %s", name);
		fflush(stdout);
		check_rule(v, mm, rule, 1);
	}
	printf("\n");
	test_passed++;
}

static void run(const struct variant *v)
{
	printf("%s%s%s%s:", v->design, v->params ? ":" : "", v->params ? v->params : "",
	       v->penalty ? " with penalty" : "");
	check_rules(v, NULL);
}

static void run_mm(const char *design)
{
	printf("%s:", design);
	check_rules(&(struct variant){ .design = "single" }, design);
}

/* test_conformance [steps [design]] */
int main(int argc, char **argv)
{
	if (argc > 1)
		steps = (uint32_t)strtoul(argv[1], NULL, 10);
	for_each_variant(run, argc > 2 ? argv[2] : NULL);
	for_each_mm_design(run_mm, argc > 2 ? argv[2] : NULL);
	return test_report();
}
