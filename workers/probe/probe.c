/* SPDX-License-Identifier: MIT */
/*
 * probe.c - measures this host for `emu calibrate`, and is the small program that execs itself in `emu compare-kernel`.
 *
 *   emu-probe ping-pong CPU_A CPU_B HOME SAMPLES  one_way: a line, first touched by CPU HOME, goes from a to b
 *   emu-probe fetch-add CPU,CPU,... SAMPLES     per_op: all CPUs add to one line; elapsed time / operations
 *   emu-probe chase CPU HOME BYTES SAMPLES      load: dependent loads over so much memory, first touched by CPU HOME
 *   emu-probe syscall CPU SAMPLES               null_syscall, futex_wait (until EAGAIN), futex_wake (nobody)
 *   emu-probe wake CPU_A CPU_B SAMPLES          wake_to_run: from b's futex_wake until a runs on; wake: b's call
 *   emu-probe switch CPU SAMPLES                switch: from thread to thread by sched_yield, the call included
 *   emu-probe ipi CPU_A CPU_B SAMPLES           round_trip: membarrier to one running thread
 *   emu-probe fork CPU SAMPLES                  fork_exit: fork, _exit, wait; user, system: of both processes
 *   emu-probe exec CPU MS                       exec: execs itself for so long; user, system; count; elapsed
 *
 * Prints lines "name value", nanoseconds, one a sample. CPUs are the host's numbers. Exit 1 and a line on stderr where
 * the host does not let it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <linux/futex.h>
#include <linux/membarrier.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define LINE 64u
#define MAX_CPUS 4096u
#define SAMPLE_NS 2000000u /* one sample of a fast loop takes about so long */
#define CHUNK 32u	   /* round trips of a ping-pong between two looks at the clock */
#define MAX_CHUNKS 65536u

/* As much bss as UnixBench's execl has. */
static volatile char bss[8 * 1024];

static _Noreturn void fail(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
static _Noreturn void fail(const char *fmt, ...)
{
	va_list args;

	fflush(stdout);
	fprintf(stderr, "emu-probe: ");
	va_start(args, fmt);
	vfprintf(stderr, fmt, args);
	va_end(args);
	fputc('\n', stderr);
	exit(1);
}

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static void print(const char *name, double ns)
{
	printf("%s %.3f\n", name, ns);
}

static uint64_t number(const char *text)
{
	char *end;
	uint64_t value;

	errno = 0;
	value = strtoull(text, &end, 10);
	if (errno || end == text || *end || *text == '-')
		fail("'%s' is not a whole number", text);
	return value;
}

static void pin(uint32_t cpu)
{
	cpu_set_t *set = CPU_ALLOC(MAX_CPUS);

	if (!set || cpu >= MAX_CPUS)
		fail("CPU %u: cannot be pinned to", cpu);
	CPU_ZERO_S(CPU_ALLOC_SIZE(MAX_CPUS), set);
	CPU_SET_S(cpu, CPU_ALLOC_SIZE(MAX_CPUS), set);
	if (sched_setaffinity(0, CPU_ALLOC_SIZE(MAX_CPUS), set))
		fail("CPU %u: %s", cpu, strerror(errno));
	CPU_FREE(set);
}

static long futex(_Atomic uint32_t *word, int op, uint32_t value)
{
	return syscall(SYS_futex, word, op | FUTEX_PRIVATE_FLAG, value, NULL, NULL, 0);
}

static inline void pause_cpu(void)
{
#if defined(__x86_64__)
	__builtin_ia32_pause();
#elif defined(__aarch64__)
	__asm__ volatile("yield");
#endif
}

/* What the threads of a measurement share; each word that is written has a line of its own. */
static struct {
	_Alignas(LINE) _Atomic uint64_t line;
	_Alignas(LINE) _Atomic uint32_t ready;
	_Alignas(LINE) _Atomic uint32_t go;
	_Alignas(LINE) _Atomic uint32_t stop;
	_Alignas(LINE) _Atomic uint32_t word;
	_Alignas(LINE) _Atomic uint64_t woken_ns;
	uint64_t rounds;
} shared;

struct thread {
	pthread_t id;
	uint32_t cpu;
	uint32_t index;
	uint64_t done;
};

static void start(struct thread *threads, uint32_t nr, void *(*fn)(void *))
{
	for (uint32_t i = 0; i < nr; i++) {
		int err = pthread_create(&threads[i].id, NULL, fn, &threads[i]);

		if (err)
			fail("cannot start thread %u: %s", i, strerror(err));
	}
	while (atomic_load(&shared.ready) < nr)
		pause_cpu();
}

static void join(struct thread *threads, uint32_t nr)
{
	for (uint32_t i = 0; i < nr; i++)
		pthread_join(threads[i].id, NULL);
	atomic_store(&shared.ready, 0);
	atomic_store(&shared.go, 0);
	atomic_store(&shared.stop, 0);
}

static void wait_for_go(struct thread *thread)
{
	pin(thread->cpu);
	atomic_fetch_add(&shared.ready, 1);
	while (!atomic_load(&shared.go))
		pause_cpu();
}

/* Of a ping-pong, written by thread 0. */
static uint64_t chunk_began_ns[MAX_CHUNKS + 1];

/* The line holds the number of the turn; thread 0 takes the even ones. */
static void *ping_pong_thread(void *arg)
{
	struct thread *thread = arg;

	wait_for_go(thread);
	for (uint64_t turn = thread->index; turn < 2 * shared.rounds; turn += 2) {
		uint64_t expected = turn;

		/* Spins by loads, so that the line travels once a turn. */
		while (atomic_load_explicit(&shared.line, memory_order_relaxed) != turn)
			;
		if (!atomic_compare_exchange_strong(&shared.line, &expected, turn + 1))
			fail("ping-pong: the line has changed behind its back");
		if (turn % (2 * CHUNK) == 0)
			chunk_began_ns[turn / (2 * CHUNK)] = now_ns();
	}
	return NULL;
}

static int compare_ns(const void *a, const void *b)
{
	uint64_t left = *(const uint64_t *)a, right = *(const uint64_t *)b;

	return (left > right) - (left < right);
}

/* One way, the median of the chunks: whenever another program has one of the CPUs, only one chunk is long. */
static double ping_pong_once(uint32_t cpu_a, uint32_t cpu_b, uint64_t chunks)
{
	struct thread threads[2] = { { .cpu = cpu_a, .index = 0 }, { .cpu = cpu_b, .index = 1 } };

	shared.rounds = chunks * CHUNK + 1;
	atomic_store(&shared.line, 0);
	start(threads, 2, ping_pong_thread);
	atomic_store(&shared.go, 1);
	join(threads, 2);
	for (uint64_t i = 0; i < chunks; i++)
		chunk_began_ns[i] = chunk_began_ns[i + 1] - chunk_began_ns[i];
	qsort(chunk_began_ns, chunks, sizeof(chunk_began_ns[0]), compare_ns);
	return (double)chunk_began_ns[chunks / 2] / (2.0 * CHUNK);
}

static void ping_pong(char **argv)
{
	uint32_t a = (uint32_t)number(argv[0]), b = (uint32_t)number(argv[1]);
	uint64_t samples = number(argv[3]);
	double guess;

	if (a == b)
		fail("ping-pong needs two CPUs");
	pin((uint32_t)number(argv[2])); /* whose node is then the home of the line */
	guess = ping_pong_once(a, b, 8);
	for (uint64_t i = 0; i < samples; i++) {
		uint64_t chunks = 8 + (uint64_t)(4.0 * SAMPLE_NS / (2 * CHUNK * (guess + 1)));

		print("one_way", ping_pong_once(a, b, chunks < MAX_CHUNKS ? chunks : MAX_CHUNKS));
	}
}

static void *fetch_add_thread(void *arg)
{
	struct thread *thread = arg;
	uint64_t done = 0;

	wait_for_go(thread);
	while (!atomic_load_explicit(&shared.stop, memory_order_relaxed))
		for (int i = 0; i < 16; i++, done++)
			atomic_fetch_add(&shared.line, 1);
	thread->done = done;
	return NULL;
}

static void fetch_add(char **argv)
{
	static struct thread threads[MAX_CPUS];
	uint64_t samples = number(argv[1]);
	uint32_t nr = 0;

	for (char *word = strtok(argv[0], ","); word && nr < MAX_CPUS; word = strtok(NULL, ","))
		threads[nr++].cpu = (uint32_t)number(word);
	for (uint64_t i = 0; i < samples; i++) {
		struct timespec while_it_runs = { .tv_nsec = 5000000 };
		uint64_t done = 0, begin, end;

		start(threads, nr, fetch_add_thread);
		begin = now_ns();
		atomic_store(&shared.go, 1);
		nanosleep(&while_it_runs, NULL);
		atomic_store(&shared.stop, 1);
		end = now_ns();
		join(threads, nr);
		for (uint32_t t = 0; t < nr; t++)
			done += threads[t].done;
		if (done) /* else the threads had no CPU meanwhile */
			print("per_op", (double)(end - begin) / (double)done);
	}
}

/* A ring through all lines in random order: each load waits for the one before. */
static void make_ring(char *memory, uint64_t lines)
{
	uint64_t state = 88172645463325252u;
	uint32_t *order = malloc(lines * sizeof(*order));

	if (!order)
		fail("chase: no memory");
	for (uint64_t i = 0; i < lines; i++)
		order[i] = (uint32_t)i;
	for (uint64_t i = lines - 1; i > 0; i--) {
		uint64_t j;
		uint32_t swap;

		state ^= state << 13;
		state ^= state >> 7;
		state ^= state << 17;
		j = state % i; /* below i, not i + 1: one ring, no short ones */
		swap = order[i];
		order[i] = order[j];
		order[j] = swap;
	}
	for (uint64_t i = 0; i < lines; i++)
		*(char **)(void *)(memory + (uint64_t)order[i] * LINE) =
			memory + (uint64_t)order[(i + 1) % lines] * LINE;
	free(order);
}

static void chase(char **argv)
{
	uint32_t cpu = (uint32_t)number(argv[0]), home = (uint32_t)number(argv[1]);
	uint64_t bytes = number(argv[2]), samples = number(argv[3]), lines = bytes / LINE;
	uint64_t loads = lines > 400000 ? 400000 : lines < 4096 ? 400000 : lines * 4;
	char *memory, *at;

	if (lines < 2 || lines > UINT32_MAX)
		fail("chase: %" PRIu64 " bytes", bytes);
	memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED)
		fail("chase: %" PRIu64 " bytes: %s", bytes, strerror(errno));
	madvise(memory, bytes, MADV_HUGEPAGE); /* where it can't, TLB misses are in the figure */
	pin(home);
	make_ring(memory, lines);
	pin(cpu);
	at = memory;
	for (uint64_t i = 0; i < (lines < loads ? lines : loads); i++)
		at = *(char **)(void *)at;
	for (uint64_t sample = 0; sample < samples; sample++) {
		uint64_t begin = now_ns(), end;

		for (uint64_t i = 0; i < loads; i++)
			at = *(char **)(void *)at;
		__asm__ volatile("" : : "r"(at)); /* the loads are wanted */
		end = now_ns();
		print("load", (double)(end - begin) / (double)loads);
	}
}

static double per_call(uint64_t calls, long (*call)(void))
{
	uint64_t begin = now_ns();

	for (uint64_t i = 0; i < calls; i++)
		call();
	return (double)(now_ns() - begin) / (double)calls;
}

static long null_call(void)
{
	return syscall(SYS_getppid);
}

static long wait_call(void)
{
	return futex(&shared.word, FUTEX_WAIT, 1); /* it is 0 */
}

static long wake_call(void)
{
	return futex(&shared.word, FUTEX_WAKE, 1);
}

static void system_call(char **argv)
{
	uint64_t samples = number(argv[1]);

	pin((uint32_t)number(argv[0]));
	for (uint64_t i = 0; i < samples; i++) {
		print("null_syscall", per_call(10000, null_call));
		print("futex_wait", per_call(5000, wait_call));
		print("futex_wake", per_call(5000, wake_call));
	}
}

static void *sleeper_thread(void *arg)
{
	wait_for_go(arg);
	for (uint32_t turn = 0; turn < shared.rounds; turn++) {
		atomic_fetch_add(&shared.ready, 1); /* from here on it may be woken */
		while (atomic_load(&shared.word) == turn)
			futex(&shared.word, FUTEX_WAIT, turn);
		atomic_store(&shared.woken_ns, now_ns());
	}
	return NULL;
}

static void wake(char **argv)
{
	struct thread sleeper = { .cpu = (uint32_t)number(argv[0]) };
	uint64_t samples = number(argv[2]);

	pin((uint32_t)number(argv[1]));
	shared.rounds = samples;
	atomic_store(&shared.word, 0);
	start(&sleeper, 1, sleeper_thread);
	atomic_store(&shared.go, 1);
	for (uint32_t turn = 0; turn < samples; turn++) {
		uint64_t begin, called, ran;

		while (atomic_load(&shared.ready) < turn + 2)
			pause_cpu();
		for (begin = now_ns(); now_ns() - begin < 100000;)
			pause_cpu(); /* time to fall asleep */
		atomic_store(&shared.woken_ns, 0);
		begin = now_ns();
		atomic_store(&shared.word, turn + 1);
		futex(&shared.word, FUTEX_WAKE, 1);
		called = now_ns();
		while (!(ran = atomic_load(&shared.woken_ns)))
			pause_cpu();
		print("wake_to_run", (double)(ran - begin));
		print("wake", (double)(called - begin));
	}
	join(&sleeper, 1);
}

static void *yield_thread(void *arg)
{
	struct thread *thread = arg;
	struct rusage before, after;

	pin(thread->cpu);
	atomic_fetch_add(&shared.ready, 1);
	while (!atomic_load(&shared.go))
		sched_yield();
	getrusage(RUSAGE_THREAD, &before);
	for (uint64_t i = 0; i < shared.rounds; i++)
		sched_yield();
	getrusage(RUSAGE_THREAD, &after);
	thread->done = (uint64_t)(after.ru_nvcsw + after.ru_nivcsw - before.ru_nvcsw - before.ru_nivcsw);
	return NULL;
}

static void context_switch(char **argv)
{
	uint32_t cpu = (uint32_t)number(argv[0]);
	uint64_t samples = number(argv[1]);

	shared.rounds = 5000;
	for (uint64_t i = 0; i < samples; i++) {
		struct thread threads[2] = { { .cpu = cpu }, { .cpu = cpu } };
		uint64_t begin, elapsed, switches;

		start(threads, 2, yield_thread);
		begin = now_ns();
		atomic_store(&shared.go, 1);
		join(threads, 2);
		elapsed = now_ns() - begin;
		switches = threads[0].done + threads[1].done;
		/* Where the scheduler lets a yielding thread run on, this says nothing. */
		if (switches > shared.rounds)
			print("switch", (double)elapsed / (double)switches);
	}
}

static void *spin_thread(void *arg)
{
	wait_for_go(arg);
	while (!atomic_load_explicit(&shared.stop, memory_order_relaxed))
		pause_cpu();
	return NULL;
}

static long membarrier_call(void)
{
	return syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0);
}

static void ipi(char **argv)
{
	struct thread target = { .cpu = (uint32_t)number(argv[1]) };
	uint64_t samples = number(argv[2]);

	pin((uint32_t)number(argv[0]));
	if (syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0))
		fail("membarrier: %s", strerror(errno));
	start(&target, 1, spin_thread);
	atomic_store(&shared.go, 1);
	for (uint64_t i = 0; i < samples; i++)
		print("round_trip", per_call(200, membarrier_call));
	atomic_store(&shared.stop, 1);
	join(&target, 1);
}

static double timeval_ns(struct timeval tv)
{
	return (double)tv.tv_sec * 1e9 + (double)tv.tv_usec * 1e3;
}

static void fork_exit(char **argv)
{
	uint64_t samples = number(argv[1]);
	struct rusage self, children;

	pin((uint32_t)number(argv[0]));
	for (uint64_t i = 0; i < samples; i++) {
		uint64_t begin = now_ns();
		pid_t child = fork();
		int status;

		if (child < 0)
			fail("fork: %s", strerror(errno));
		if (!child)
			_exit(0);
		if (waitpid(child, &status, 0) != child || status)
			fail("fork: the child ended with status %d", status);
		print("fork_exit", (double)(now_ns() - begin));
	}
	getrusage(RUSAGE_SELF, &self);
	getrusage(RUSAGE_CHILDREN, &children);
	print("user", (timeval_ns(self.ru_utime) + timeval_ns(children.ru_utime)) / (double)samples);
	print("system", (timeval_ns(self.ru_stime) + timeval_ns(children.ru_stime)) / (double)samples);
}

/* Whoever asked may be killed, and what is measured takes CPUs. Exec keeps it. */
static void end_with_parent(void)
{
	if (prctl(PR_SET_PDEATHSIG, SIGKILL))
		fail("prctl: %s", strerror(errno));
}

/* exec CPU MS, then, from image to image: exec CPU -  START_NS END_NS COUNT */
static void exec_self(int argc, char **argv)
{
	char text[3][24];
	uint64_t begin, end, count = 0, now = now_ns();

	bss[0] = 1;
	if (argc == 2) {
		end_with_parent();
		pin((uint32_t)number(argv[0])); /* which exec keeps */
		begin = now;
		end = now + number(argv[1]) * 1000000u;
	} else {
		begin = number(argv[2]);
		end = number(argv[3]);
		count = number(argv[4]);
	}
	if (now >= end && count) {
		struct rusage usage;

		getrusage(RUSAGE_SELF, &usage); /* exec does not reset it */
		print("exec", (double)(now - begin) / (double)count);
		print("user", timeval_ns(usage.ru_utime) / (double)count);
		print("system", timeval_ns(usage.ru_stime) / (double)count);
		print("count", (double)count);
		print("elapsed", (double)(now - begin));
		return;
	}
	snprintf(text[0], sizeof(text[0]), "%" PRIu64, begin);
	snprintf(text[1], sizeof(text[1]), "%" PRIu64, end);
	snprintf(text[2], sizeof(text[2]), "%" PRIu64, count + 1);
	execl("/proc/self/exe", "emu-probe", "exec", argv[0], "-", text[0], text[1], text[2], (char *)NULL);
	fail("exec: %s", strerror(errno));
}

static const struct measure {
	const char *name;
	int args;
	void (*fn)(char **argv);
} measures[] = {
	{ "ping-pong", 4, ping_pong }, { "fetch-add", 2, fetch_add }, { "chase", 4, chase },
	{ "syscall", 2, system_call }, { "wake", 3, wake },	      { "switch", 2, context_switch },
	{ "ipi", 3, ipi },	       { "fork", 2, fork_exit },
};

int main(int argc, char **argv)
{
	if (argc > 3 && !strcmp(argv[1], "exec")) {
		exec_self(argc - 2, argv + 2);
		return 0;
	}
	end_with_parent();
	for (size_t i = 0; i < sizeof(measures) / sizeof(measures[0]); i++) {
		if (argc > 1 && !strcmp(argv[1], measures[i].name) && argc == measures[i].args + 2) {
			measures[i].fn(argv + 2);
			return 0;
		}
	}
	fail("no such measurement; see emu calibrate");
}
