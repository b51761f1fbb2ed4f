/* SPDX-License-Identifier: MIT */
/*
 * sync_machine.h - a machine just large enough to run the locks alone, for test_sync.c and bench_sync.c.
 *
 *   machine_init(nr_cpus)      shared memory, tasks and queue nodes; once
 *   machine_run(n, fn, arg)    starts CPUs 0 .. n-1, each running fn(arg); returns when all are done
 *   machine_sleep_ns(ns)       as emu_futex_wait(), for a time: the task does not run meanwhile
 *   machine_impatient          this CPU's emu_need_resched() says yes once in so many times, 0 = as the load is
 *
 * A CPU is a forked process, or a thread with -DEMU_TEST_THREADS: ThreadSanitizer sees no races between processes,
 * processes share only what a worker's shares. All that CPUs share must come from machine_zalloc(), which gives shared
 * memory at one address on all CPUs and takes nothing back.
 */
#ifndef SYNC_MACHINE_H
#define SYNC_MACHINE_H

#include <emu/percpu_sync.h>
#include <emu/rwsem.h>

#include "test.h"

#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MACHINE_CPUS 16u
#define MACHINE_CLASSES 4u
#define MACHINE_BYTES (UINT64_C(4) << 20)

struct machine {
	_Atomic uint32_t not_started; /* CPUs that the others wait for */
	struct task_struct tasks[MACHINE_CPUS];
	struct emu_percpu_sync sync[MACHINE_CPUS];
	struct lock_stat lock_stats[MACHINE_CPUS][MACHINE_CLASSES * LOCK_MODES]; /* these tests have one call site */
};

struct machine_start {
	void (*fn)(void *arg);
	void *arg;
	uint32_t cpu;
};

static struct machine *machine;
static char *machine_memory;
static size_t machine_used;
static uint32_t machine_host_cpus;
static bool machine_oversubscribed;

static _Thread_local uint32_t machine_spins;
static _Thread_local uint32_t machine_impatient;
static _Thread_local uint64_t machine_random;

_Thread_local struct task_struct *emu_current;
bool emu_numa_penalty;

static inline uint64_t machine_clock_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * UINT64_C(1000000000) + (uint64_t)ts.tv_nsec;
}

/* The time stamp counter where there is one, as in the native engine: the benchmark counts its cost. */
#ifdef __x86_64__
static double machine_ns_per_tick;

uint64_t emu_clock_ns(void)
{
	return (uint64_t)((double)__builtin_ia32_rdtsc() * machine_ns_per_tick);
}

static void machine_calibrate(void)
{
	uint64_t ticks = __builtin_ia32_rdtsc();
	uint64_t start_ns = machine_clock_ns(), now_ns;

	do
		now_ns = machine_clock_ns();
	while (now_ns - start_ns < 5000000);
	machine_ns_per_tick = (double)(now_ns - start_ns) / (double)(__builtin_ia32_rdtsc() - ticks);
}
#else
uint64_t emu_clock_ns(void)
{
	return machine_clock_ns();
}

static void machine_calibrate(void)
{
}
#endif

static inline void *machine_zalloc(size_t size)
{
	void *ptr = machine_memory + machine_used;

	machine_used += (size + EMU_CACHELINE - 1) & ~(size_t)(EMU_CACHELINE - 1);
	ASSERT(machine_used <= MACHINE_BYTES, "machine memory is too small");
	return ptr;
}

static inline void machine_init(void)
{
	long host_cpus = sysconf(_SC_NPROCESSORS_ONLN);

	machine_host_cpus = host_cpus > 0 ? (uint32_t)host_cpus : 1;
	machine_calibrate();
	machine_memory = mmap(NULL, MACHINE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT(machine_memory != MAP_FAILED, "mmap: %s", strerror(errno));
	machine = machine_zalloc(sizeof(*machine));
	for (uint32_t cpu = 0; cpu < MACHINE_CPUS; cpu++) {
		struct task_struct *task = &machine->tasks[cpu];

		emu_sync_init_cpu(&machine->sync[cpu], cpu);
		task->cpu = cpu;
		task->lock_stats = machine_zalloc(sizeof(*task->lock_stats) +
						  MACHINE_CLASSES * LOCK_MODES * EMU_SITES_MAX *
							  sizeof(task->lock_stats->at[0]));
		task->lock_stats->used = machine->lock_stats[cpu];
		atomic_store(&task->on_cpu, 1);
	}
}

/* Becomes `cpu` in the calling process or thread. */
static inline void machine_enter(uint32_t cpu)
{
	emu_current = &machine->tasks[cpu];
	machine_spins = 0;
	machine_impatient = 0;
	machine_random = cpu + 1;
}

/* All CPUs start together: a fork takes longer than a short test. */
static inline void machine_start_line(void)
{
	machine->not_started--;
	while (machine->not_started)
		sched_yield();
}

#ifdef EMU_TEST_THREADS

static inline void *machine_thread(void *ptr)
{
	struct machine_start *start = ptr;

	machine_enter(start->cpu);
	machine_start_line();
	start->fn(start->arg);
	return NULL;
}

static inline void machine_run(uint32_t nr_cpus, void (*fn)(void *arg), void *arg)
{
	struct machine_start starts[MACHINE_CPUS];
	pthread_t threads[MACHINE_CPUS];

	machine_oversubscribed = nr_cpus > machine_host_cpus;
	machine->not_started = nr_cpus;
	for (uint32_t cpu = 0; cpu < nr_cpus; cpu++) {
		starts[cpu] = (struct machine_start){ fn, arg, cpu };
		ASSERT(!pthread_create(&threads[cpu], NULL, machine_thread, &starts[cpu]), "pthread_create");
	}
	for (uint32_t cpu = 0; cpu < nr_cpus; cpu++)
		ASSERT(!pthread_join(threads[cpu], NULL), "pthread_join");
}

#else

/* The child that runs fn(arg) as `cpu`. */
static inline pid_t machine_fork(uint32_t cpu, void (*fn)(void *arg), void *arg)
{
	pid_t pid;

	fflush(stdout);
	pid = fork();
	ASSERT(pid >= 0, "fork: %s", strerror(errno));
	if (!pid) {
		/* A failed test leaves nobody behind. */
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		machine_enter(cpu);
		machine_start_line();
		fn(arg);
		_exit(0);
	}
	return pid;
}

static inline void machine_run(uint32_t nr_cpus, void (*fn)(void *arg), void *arg)
{
	machine_oversubscribed = nr_cpus > machine_host_cpus;
	machine->not_started = nr_cpus;
	for (uint32_t cpu = 0; cpu < nr_cpus; cpu++)
		machine_fork(cpu, fn, arg);
	for (uint32_t cpu = 0; cpu < nr_cpus; cpu++) {
		int status;

		ASSERT(wait(&status) > 0, "wait: %s", strerror(errno));
		ASSERT(status == 0, "a CPU ended with status 0x%x", (unsigned int)status);
	}
}

#endif

struct emu_percpu_sync *emu_percpu_sync(uint32_t cpu)
{
	ASSERT(cpu < MACHINE_CPUS, "no CPU %u", cpu);
	return &machine->sync[cpu];
}

void emu_bug(const char *file, int line, const char *expr, const char *fmt, ...)
{
	va_list args;

	fprintf(stderr, "%s:%d: EMU_ASSERT(%s): ", file, line, expr);
	va_start(args, fmt);
	vfprintf(stderr, fmt, args);
	va_end(args);
	fputc('\n', stderr);
	abort();
}

void emu_futex_wait(_Atomic uint32_t *word, uint32_t expected)
{
	atomic_store_explicit(&current->on_cpu, 0, memory_order_relaxed);
	syscall(SYS_futex, word, FUTEX_WAIT, expected, NULL, NULL, 0);
	atomic_store_explicit(&current->on_cpu, 1, memory_order_relaxed);
	machine_spins = 0;
}

uint32_t emu_futex_wake(_Atomic uint32_t *word, uint32_t n)
{
	long woken = syscall(SYS_futex, word, FUTEX_WAKE, (int)n, NULL, NULL, 0);

	return woken < 0 ? 0 : (uint32_t)woken;
}

static inline void machine_sleep_ns(uint64_t ns)
{
	struct timespec ts = { 0, (long)ns };

	atomic_store_explicit(&current->on_cpu, 0, memory_order_relaxed);
	nanosleep(&ts, NULL);
	atomic_store_explicit(&current->on_cpu, 1, memory_order_relaxed);
}

void emu_spin_wait(const volatile void *addr)
{
	(void)addr;
#ifdef __x86_64__
	__builtin_ia32_pause();
#endif
	if (++machine_spins % 64 == 0)
		sched_yield();
}

void emu_spin_wait_until(const volatile void *addr, uint64_t until_ns)
{
	(void)until_ns;
	emu_spin_wait(addr);
}

/* xorshift64 (Marsaglia 2003). */
static inline uint64_t machine_rand(void)
{
	machine_random ^= machine_random << 13;
	machine_random ^= machine_random >> 7;
	machine_random ^= machine_random << 17;
	return machine_random;
}

bool emu_need_resched(void)
{
	if (machine_impatient)
		return machine_rand() % machine_impatient == 0;
	if (!machine_oversubscribed || machine_spins < 512)
		return false;
	machine_spins = 0;
	return true;
}

void emu_line_moved_slow(uint32_t *last)
{
	*last = current->node + 1;
}

struct lock_stat *lock_stat_first_use(struct task_struct *task, uint32_t place)
{
	uint32_t at = place / EMU_SITES_MAX;

	task->lock_stats->at[place] = (uint16_t)at;
	return &task->lock_stats->used[at];
}

void lock_stat_hold_begin(struct task_struct *task, struct lock_stat *stat, const void *lock)
{
	/* No test holds two locks at once. */
	task->holds[0] = (struct emu_hold){ lock, stat, emu_clock_ns() };
}

void lock_stat_hold_end(struct task_struct *task, const void *lock)
{
	struct lock_stat *stat = task->holds[0].stat;

	if (task->holds[0].lock != lock)
		return;
	lock_stat_time(emu_clock_ns() - task->holds[0].since_ns, ++stat->hold_samples, &stat->hold_ns, &stat->hold_min_ns,
		       &stat->hold_max_ns);
	task->holds[0].lock = NULL;
}

#endif
