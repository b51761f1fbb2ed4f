/* SPDX-License-Identifier: MIT */
/*
 * native_cpus.h - CPUs of the native machine for a test, and the rmap designs to test, in the ways that are worth it.
 *
 *   run_cpus(fn)               fn(cpu) on CPUS CPUs; returns when all are done
 *   for_each_variant(fn, only) fn on every design in EMU_DESIGNS/rmap, and on variants; only (may be NULL): one design's
 *   for_each_mm_design(fn, only) fn on every design in EMU_DESIGNS/mm
 *
 * A CPU is a process, or with -DEMU_TEST_THREADS a thread, so that the thread sanitizer sees them all.
 */
#ifndef NATIVE_CPUS_H
#define NATIVE_CPUS_H

#include "test.h"

#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <execinfo.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define CPUS 4u

#ifdef EMU_TEST_THREADS
static void (*cpu_function)(uint32_t cpu);

static void *cpu_thread(void *arg)
{
	cpu_function((uint32_t)(uintptr_t)arg);
	return NULL;
}

static void run_cpus(void (*fn)(uint32_t cpu))
{
	pthread_t threads[CPUS];

	cpu_function = fn;
	for (uintptr_t i = 0; i < CPUS; i++)
		ASSERT(!pthread_create(&threads[i], NULL, cpu_thread, (void *)i), "pthread_create");
	for (uint32_t i = 0; i < CPUS; i++)
		pthread_join(threads[i], NULL);
}
#else
static uint32_t this_cpu;

/* A lost wake-up must not hang the tests. Where each CPU is says more than that one was late. */
static void on_watchdog(int number)
{
	void *stack[32];
	int depth = backtrace(stack, 32);

	dprintf(STDERR_FILENO, "CPU %u (pid %d) is here:\n", this_cpu, getpid());
	backtrace_symbols_fd(stack, depth, STDERR_FILENO);
	signal(number, SIG_DFL);
	raise(number);
}

static void run_cpus(void (*fn)(uint32_t cpu))
{
	pid_t pids[CPUS];
	void *none;

	fflush(stdout);
	for (uint32_t i = 0; i < CPUS; i++) {
		pids[i] = fork();
		ASSERT(pids[i] >= 0, "fork: %s", strerror(errno));
		if (!pids[i]) {
			this_cpu = i;
			backtrace(&none, 1); /* loads what it needs, which a handler may not */
			signal(SIGALRM, on_watchdog);
			alarm(120);
			fn(i);
			_exit(0);
		}
	}
	for (uint32_t left = CPUS; left; left--) {
		int status;
		pid_t pid = wait(&status);

		ASSERT(pid > 0, "wait: %s", strerror(errno));
		if (status) {
			/* The others would wait for it at the end: where are they? */
			for (uint32_t i = 0; i < CPUS; i++)
				if (pids[i] != pid)
					kill(pids[i], SIGALRM);
			while (wait(NULL) > 0)
				;
			ASSERT(!status, "a CPU ended with status %#x", status);
		}
	}
}
#endif

/* Every design is run as it is; some in other ways too. */
static const struct variant {
	const char *design, *params;
	bool penalty;
	uint32_t rounds; /* 0: one. As many short runs, for what happens once a run */
} variants[] = {
	{ "single", "batch=none", false, 0 },
	{ "single", "batch=exit+fork", false, 0 },
	{ "numa-locks", NULL, true, 0 },
	{ "cpu-locks", "cpus=1", false, 0 },
	{ "cpu-locks", "cpus=3", false, 0 },
	{ "outer-inner", "shards=3,by=vma", true, 0 },
	{ "outer-inner", "shards=4,by=mm,batch=exit+fork", false, 0 },
	{ "outer-percpu", "shards=3,by=vma", false, 0 },
	{ "outer-percpu", "shards=1", false, 0 },
	{ "dynamic", "threshold=0,shards=3", false, 0 },
	{ "dynamic", "threshold=300,batch=exit+fork", false, 0 },
	{ "dynamic", "threshold=2", false, 40 },
	{ "exclude", "files=all", false, 0 },
	{ "btree", "node=128,batch=exit+fork", false, 0 },
	{ "btree", "node=512", true, 0 },
};

static int is_design(const struct dirent *entry)
{
	size_t len = strlen(entry->d_name);

	return len > 3 && !strcmp(entry->d_name + len - 3, ".so");
}

/* The names of all designs of a kind. They stay open: a sanitizer names functions only of what it saw loaded before. */
static int find_designs(const char *kind, struct dirent ***designs)
{
	char path[512];
	int n;

	snprintf(path, sizeof(path), "%s/%s", EMU_DESIGNS, kind);
	n = scandir(path, designs, is_design, alphasort);
	ASSERT(n > 0, "no designs in %s", path);
	for (int i = 0; i < n; i++) {
		snprintf(path, sizeof(path), "%s/%s/%s", EMU_DESIGNS, kind, (*designs)[i]->d_name);
		ASSERT(dlopen(path, RTLD_NOW), "%s", dlerror());
		*strrchr((*designs)[i]->d_name, '.') = '\0';
	}
	return n;
}

/* A test may run the designs of one kind only. */
__attribute__((unused)) static void for_each_mm_design(void (*fn)(const char *design), const char *only)
{
	struct dirent **designs;
	int n = find_designs("mm", &designs);

	for (int i = 0; i < n; i++) {
		if (!only || !strcmp(designs[i]->d_name, only))
			fn(designs[i]->d_name);
		free(designs[i]);
	}
	free(designs);
}

__attribute__((unused)) static void for_each_variant(void (*fn)(const struct variant *v), const char *only)
{
	struct dirent **designs;
	int n = find_designs("rmap", &designs);

	for (int i = 0; i < n; i++) {
		char *design = designs[i]->d_name;

		if (!only || !strcmp(design, only)) {
			fn(&(struct variant){ .design = design });
			for (size_t v = 0; v < sizeof(variants) / sizeof(variants[0]); v++)
				if (!strcmp(design, variants[v].design))
					fn(&variants[v]);
		}
		free(designs[i]);
	}
	free(designs);
}

#endif
