/* SPDX-License-Identifier: MIT */
/*
 * test_threads.c - every mm design in EMU_DESIGNS/mm under threads, on the native machine (see thread_cases.h).
 */
#define _GNU_SOURCE
#include <emu/control.h>

#include "native_cpus.h"
#include "thread_cases.h"

#include <sys/mman.h>

#define ARENA_BYTES (UINT64_C(128) << 20)

static void cpu_main(uint32_t cpu)
{
	emu_cpu_attach(cpu);
	thread_main();
	emu_rcu_idle();
}

static void run_threads(const char *design)
{
	const uint32_t node_of_cpu[CPUS] = { 0, 0, 1, 1 };
	const struct emu_config config = {
		.bytes = sizeof(config), .nr_cpus = CPUS,    .nr_nodes = 2, .nr_files = NR_FILES, .nr_lists = NR_LISTS,
		.nr_calls = 4,		 .oversubscribed = 1, .seed = 1,     .node_of_cpu = node_of_cpu,
	};
	char path[512];
	void *arena;

	arena = mmap(NULL, ARENA_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT(arena != MAP_FAILED, "mmap: %s", strerror(errno));
	memset(shared, 0, sizeof(*shared));
	snprintf(path, sizeof(path), "%s/mm/%s", EMU_DESIGNS, design);
	ASSERT(!emu_design_load(0, EMU_DESIGNS "/rmap/single.so", NULL), "%s", emu_error());
	ASSERT(!emu_design_load(1, path, NULL), "%s", emu_error());
	ASSERT(!emu_arena_format(arena, ARENA_BYTES, &config), "%s", emu_error());
	boot_threads();
	run_cpus(cpu_main);
	check_threads();
	munmap(arena, ARENA_BYTES);
}

static void run(const char *design)
{
	char file[300];

	snprintf(file, sizeof(file), "%s.so", design);
	printf("%s ... ", design);
	fflush(stdout);
	run_threads(file);
	printf("ok\n");
	test_passed++;
}

/* test_threads [calls per CPU [design]] */
int main(int argc, char **argv)
{
	if (argc > 1)
		calls_per_cpu = (uint32_t)strtoul(argv[1], NULL, 10);
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT(shared != MAP_FAILED, "mmap");
	for_each_mm_design(run, argc > 2 ? argv[2] : NULL);
	return test_report();
}
