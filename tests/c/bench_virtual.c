/* SPDX-License-Identifier: MIT */
/*
 * bench_virtual.c - how fast the virtual machine is on this host; lines "name<TAB>ns" for bench.py.
 *
 *   execl_N_D_access, _exec   host ns a modelled access, and an exec, of design D on N CPUs
 *   execl_N_D_slow_down       host time over virtual time: the one figure that is no ns
 *   section_384_on_N_locks    host ns a critical section: each CPU locks, computes 1 us, unlocks, computes 5 us
 *   rwsem_N_writers_virtual   virtual ns per write lock and unlock, for a look at the model itself
 *
 * `bench_virtual execl_384_single` runs one of them, for a profiler.
 */
#include "virtual_machine.h"
#include "execl_program.h"

#include <emu/rwsem.h>

#include <time.h>

static const struct shape hygon = { .sockets = 2, .nodes = 6, .l3 = 4, .cores = 4, .smt = 2 };
static const struct shape large = { .sockets = 16, .nodes = 8, .l3 = 2, .cores = 8, .smt = 2 };

static double host_s(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec * 1e-9;
}

static void execl_on(const struct shape *shape, uint32_t cpus, const char *design, uint64_t ns)
{
	struct emu_config config = { .nr_files = NR_FILES, .nr_lists = NR_LISTS, .nr_calls = EXECL_CALLS,
				     .work_jitter_permille = 100, .seed = 1 };
	struct emu_virtual_stats before, after;
	uint64_t execs = 0;
	double start, took;
	char path[512];

	snprintf(path, sizeof(path), "%s/rmap/%s.so", EMU_DESIGNS, design);
	ASSERT(!emu_design_load(0, path, NULL), "%s", emu_error());
	ASSERT(!emu_design_load(1, EMU_DESIGNS "/mm/mmap-sem-rbtree.so", NULL), "%s", emu_error());
	machine_format(shape, cpus, &config);
	ASSERT(!execl_add(200000), "%s", emu_error());
	machine_model(&config);
	ASSERT(!emu_phase_prepare(LIST_LOAD, 1, 0, 0) && !emu_virtual_run_phase(), "%s", emu_error());
	emu_virtual_stats(&before);
	start = host_s();
	ASSERT(!emu_phase_prepare(LIST_EXECL, 0, 1, ns) && !emu_virtual_run_phase(), "%s", emu_error());
	took = host_s() - start;
	emu_virtual_stats(&after);
	for (uint32_t i = 0; i < cpus; i++)
		execs += emu_cpu_result(i)->counts[EMU_CALL_EXEC];
	printf("execl_%u_%s_access\t%.3f\n", cpus, design, took * 1e9 / (double)(after.accesses - before.accesses));
	printf("execl_%u_%s_exec\t%.0f\n", cpus, design, took * 1e9 / (double)execs);
	printf("execl_%u_%s_slow_down\t%.1f\n", cpus, design, took * 1e12 / (double)(after.now_ps - before.now_ps));
	machine_end();
}

static struct {
	struct rw_semaphore **sems;
	uint32_t n, rounds;
	uint64_t hold_ns, think_ns;
} sections;

static void run_sections(void *arg)
{
	struct rw_semaphore *sem = sections.sems[current->cpu % sections.n];

	(void)arg;
	for (uint32_t i = 0; i < sections.rounds; i++) {
		down_write(sem);
		emu_compute(sections.hold_ns);
		up_write(sem);
		emu_compute(sections.think_ns);
	}
}

/* Host seconds, and virtual ns a section. */
static double time_sections(const struct shape *shape, uint32_t cpus, uint32_t locks, double *virtual_ns)
{
	struct emu_virtual_stats stats;
	double start, took;

	machine_boot(shape, cpus, 1);
	sections.n = locks;
	sections.sems = calloc(locks, sizeof(*sections.sems));
	ASSERT(sections.sems, "memory");
	for (uint32_t i = 0; i < locks; i++) {
		sections.sems[i] = machine_zalloc(sizeof(struct rw_semaphore), 0);
		init_rwsem(sections.sems[i], 0);
	}
	start = host_s();
	ASSERT(!emu_virtual_run(run_sections, NULL), "%s", emu_error());
	took = host_s() - start;
	emu_virtual_stats(&stats);
	*virtual_ns = (double)stats.now_ps / 1000 / cpus / sections.rounds;
	free(sections.sems);
	machine_end();
	return took;
}

static const char *only;

/* Is this one to be run? */
static bool wanted(const char *format, uint32_t n, const char *design)
{
	char name[64];

	snprintf(name, sizeof(name), format, n, design);
	return !only || !strcmp(only, name);
}

int main(int argc, char **argv)
{
	static const uint32_t locks[] = { 1, 12, 384 }, cpus[] = { 1, 2, 8, 32, 64 };
	static const char *const designs[] = { "single", "numa-trees", "numa-locks" };
	const uint64_t ns = 5000000;
	double virtual_ns;

	only = argc > 1 ? argv[1] : NULL;
	for (uint32_t i = 0; i < ARRAY_SIZE(designs); i++)
		if (wanted("execl_%u_%s", 384, designs[i]))
			execl_on(&hygon, 384, designs[i], ns);
	for (uint32_t i = 0; i < ARRAY_SIZE(designs); i++)
		if (wanted("execl_%u_%s", 4096, designs[i]))
			execl_on(&large, 4096, designs[i], ns / 4);

	sections.hold_ns = 1000;
	sections.think_ns = 5000;
	for (uint32_t i = 0; i < ARRAY_SIZE(locks); i++) {
		double took;

		if (!wanted("section_384_on_%u_%s", locks[i], "locks"))
			continue;
		sections.rounds = 1000;
		took = time_sections(&hygon, 384, locks[i], &virtual_ns);
		printf("section_384_on_%u_locks\t%.1f\n", locks[i], took * 1e9 / (384.0 * sections.rounds));
	}

	/* As Long's test of 2019: one small load or so in the section, none outside. */
	sections.hold_ns = 5;
	sections.think_ns = 0;
	sections.rounds = 500;
	for (uint32_t i = 0; i < ARRAY_SIZE(cpus); i++) {
		if (!wanted("rwsem_%u_writers_%s", cpus[i], "virtual"))
			continue;
		time_sections(&hygon, cpus[i], 1, &virtual_ns);
		printf("rwsem_%u_writers_virtual\t%.1f\n", cpus[i], virtual_ns);
	}
	return 0;
}
