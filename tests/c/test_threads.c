/* SPDX-License-Identifier: MIT */
/*
 * test_threads.c - every mm design in EMU_DESIGNS/mm under threads, on the native machine (see thread_cases.h). A CPU is a
 * process, or a thread with -DEMU_TEST_THREADS.
 */
#define _GNU_SOURCE
#include <emu/control.h>

#include "thread_cases.h"

#include <dirent.h>
#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define ARENA_BYTES (UINT64_C(128) << 20)

static void cpu_main(uint32_t cpu)
{
	emu_cpu_attach(cpu);
	thread_main();
	emu_rcu_idle();
}

#ifdef EMU_TEST_THREADS
static void *pthread_start(void *arg)
{
	cpu_main((uint32_t)(uintptr_t)arg);
	return NULL;
}

static void run_cpus(void)
{
	pthread_t threads[CPUS];

	for (uintptr_t i = 0; i < CPUS; i++)
		ASSERT(!pthread_create(&threads[i], NULL, pthread_start, (void *)i), "pthread_create");
	for (uint32_t i = 0; i < CPUS; i++)
		pthread_join(threads[i], NULL);
}
#else
static void run_cpus(void)
{
	pid_t pids[CPUS];

	fflush(stdout);
	for (uint32_t i = 0; i < CPUS; i++) {
		pids[i] = fork();
		ASSERT(pids[i] >= 0, "fork: %s", strerror(errno));
		if (!pids[i]) {
			alarm(120); /* a lost wake-up must not hang the tests */
			cpu_main(i);
			_exit(0);
		}
	}
	for (uint32_t left = CPUS; left; left--) {
		int status;
		pid_t pid = wait(&status);

		/* The others would wait for it at the end. */
		for (uint32_t i = 0; status && i < CPUS; i++)
			if (pids[i] != pid)
				kill(pids[i], SIGKILL);
		ASSERT(!status, "a CPU ended with status %#x", (unsigned int)status);
	}
}
#endif

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
	run_cpus();
	check_threads();
	munmap(arena, ARENA_BYTES);
}

static int is_design(const struct dirent *entry)
{
	size_t len = strlen(entry->d_name);

	return len > 3 && !strcmp(entry->d_name + len - 3, ".so");
}

/* test_threads [calls per CPU [design.so]] */
int main(int argc, char **argv)
{
	struct dirent **designs;
	int n = scandir(EMU_DESIGNS "/mm", &designs, is_design, alphasort);

	ASSERT(n > 0, "no designs in %s", EMU_DESIGNS "/mm");
	if (argc > 1)
		calls_per_cpu = (uint32_t)strtoul(argv[1], NULL, 10);
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT(shared != MAP_FAILED, "mmap");
	for (int i = 0; i < n; i++) {
		char path[512];

		snprintf(path, sizeof(path), "%s/mm/%s", EMU_DESIGNS, designs[i]->d_name);
		ASSERT(dlopen(path, RTLD_NOW), "%s", dlerror());
	}
	for (int i = 0; i < n; i++) {
		if (argc <= 2 || !strcmp(argv[2], designs[i]->d_name)) {
			printf("%s ... ", designs[i]->d_name);
			fflush(stdout);
			run_threads(designs[i]->d_name);
			printf("ok\n");
			test_passed++;
		}
		free(designs[i]);
	}
	free(designs);
	return test_report();
}
