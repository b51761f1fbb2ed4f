/* SPDX-License-Identifier: MIT */
/*
 * test_rcu.c - RCU on the native machine (see rcu_cases.h). A CPU is a process, or a thread with -DEMU_TEST_THREADS.
 */
#include <emu/control.h>

#include "rcu_cases.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define ARENA_BYTES (UINT64_C(32) << 20)

static void *arena_base;
static void (*cpu_function)(void);

static void cpu_main(uint32_t cpu)
{
	emu_cpu_attach(cpu);
	cpu_function();
	emu_rcu_idle();
}

static void machine_boot(void)
{
	const uint32_t node_of_cpu[CPUS] = { 0 };
	const struct emu_config config = {
		.bytes = sizeof(config), .nr_cpus = CPUS,    .nr_nodes = 1, .nr_files = 1, .nr_lists = 1,
		.nr_calls = 1,		 .oversubscribed = 1, .seed = 1,     .node_of_cpu = node_of_cpu,
	};

	memset(rcu_shared, 0, sizeof(*rcu_shared));
	arena_base = mmap(NULL, ARENA_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT(arena_base != MAP_FAILED, "mmap: %s", strerror(errno));
	ASSERT(!emu_arena_format(arena_base, ARENA_BYTES, &config), "%s", emu_error());
}

#ifdef EMU_TEST_THREADS
static void *thread_main(void *arg)
{
	cpu_main((uint32_t)(uintptr_t)arg);
	return NULL;
}

static void run_cpus(void (*fn)(void))
{
	pthread_t threads[CPUS];

	machine_boot();
	cpu_function = fn;
	for (uintptr_t i = 0; i < CPUS; i++)
		ASSERT(!pthread_create(&threads[i], NULL, thread_main, (void *)i), "pthread_create");
	for (uint32_t i = 0; i < CPUS; i++)
		pthread_join(threads[i], NULL);
	emu_cpu_attach(0);
}
#else
static pid_t start_cpu(uint32_t cpu)
{
	pid_t pid = fork();

	ASSERT(pid >= 0, "fork: %s", strerror(errno));
	if (!pid) {
		alarm(120);
		cpu_main(cpu);
		_exit(0);
	}
	return pid;
}

static void run_cpus(void (*fn)(void))
{
	pid_t pids[CPUS];

	machine_boot();
	cpu_function = fn;
	fflush(stdout);
	for (uint32_t i = 0; i < CPUS; i++)
		pids[i] = start_cpu(i);
	for (uint32_t left = CPUS; left; left--) {
		int status;
		pid_t pid = wait(&status);

		for (uint32_t i = 0; status && i < CPUS; i++)
			if (pids[i] != pid)
				kill(pids[i], SIGKILL);
		ASSERT(!status, "a CPU ended with status %#x", (unsigned int)status);
	}
	emu_cpu_attach(0);
}

/* A reader that claims to be in no section has its object freed under it, and the test can tell. */
static void a_broken_grace_period_is_seen(void)
{
	reader_breaks_the_rule = true;
	run_cpus(hold_and_free);
}

/* fn aborts, with this in its last words. */
static void dies(void (*fn)(void), const char *words)
{
	char text[1024] = "";
	int out[2], status;
	ssize_t n;
	pid_t pid;

	machine_boot();
	ASSERT(!pipe(out), "pipe");
	fflush(stdout);
	pid = fork();
	ASSERT(pid >= 0, "fork");
	if (!pid) {
		dup2(out[1], STDERR_FILENO);
		alarm(20);
		emu_cpu_attach(0);
		fn();
		_exit(0);
	}
	close(out[1]);
	n = read(out[0], text, sizeof(text) - 1);
	close(out[0]);
	ASSERT(waitpid(pid, &status, 0) == pid && WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT, "status %#x",
	       (unsigned int)status);
	ASSERT(n > 0 && strstr(text, words), "'%s'", text);
}

static void sleep_in_a_section(void)
{
	rcu_read_lock();
	emu_futex_wait(&rcu_shared->word, 1);
}

static void end_a_call_in_a_section(void)
{
	rcu_read_lock();
	emu_rcu_quiescent();
}

static void unlock_twice(void)
{
	rcu_read_lock();
	rcu_read_unlock();
	rcu_read_unlock();
}

static void misuse_is_refused(void)
{
	dies(sleep_in_a_section, "sleeps or ends inside 1 read-side sections");
	dies(end_a_call_in_a_section, "a system call ends inside 1 read-side sections");
	dies(unlock_twice, "without rcu_read_lock()");
}
#endif

int main(void)
{
	rcu_shared = mmap(NULL, sizeof(*rcu_shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT(rcu_shared != MAP_FAILED, "mmap");
	TEST(nothing_is_freed_under_a_reader);
	TEST(a_grace_period_waits_for_a_section_and_for_no_sleeper);
#ifndef EMU_TEST_THREADS
	/* The race is what the thread sanitizer would report, rightly. */
	TEST(a_broken_grace_period_is_seen);
	TEST(misuse_is_refused);
#endif
	return test_report();
}
