/* SPDX-License-Identifier: MIT */
/*
 * native.c - the native machine: host clock, host futexes, host memory. One OS process (or thread, in tests) a CPU.
 */
#define _GNU_SOURCE
#include "internal.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#ifdef __x86_64__
#include <cpuid.h>
#endif

/* Spins of a CPU of an oversubscribed host between two yields, and until it should rather sleep. */
#define SPINS_PER_YIELD 64u
#define SPINS_TO_RESCHED 1024u

_Thread_local struct task_struct *emu_current;
bool emu_numa_penalty;
_Thread_local void *emu_fail_jmp;

static _Thread_local uint32_t spins;

/* Set by emu_machine_init(), before the workers are forked. */
static struct {
	bool tsc;
	double ns_per_tick;
	uint64_t epoch; /* ticks or nanoseconds at the start */
	double loops_per_ns;
} host;

static uint64_t raw_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC_RAW, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

#ifdef __x86_64__
static uint64_t ticks(void)
{
	return __builtin_ia32_rdtsc();
}

/* Linux compares the CPUs' TSCs with each other and with other clocks, and takes one that is off from this list. */
static bool linux_trusts_tsc(void)
{
	FILE *file = fopen("/sys/devices/system/clocksource/clocksource0/available_clocksource", "re");
	char name[32];
	bool found = false;

	if (!file)
		return false;
	while (!found && fscanf(file, "%31s", name) == 1)
		found = !strcmp(name, "tsc");
	fclose(file);
	return found;
}

/* Invariant: the same rate in all power states. */
static bool ticks_usable(void)
{
	unsigned int a, b, c, d;

	return __get_cpuid(0x80000007, &a, &b, &c, &d) && (d & (1u << 8)) && linux_trusts_tsc();
}
#else
static uint64_t ticks(void)
{
	return 0;
}

static bool ticks_usable(void)
{
	return false;
}
#endif

uint64_t emu_clock_ns(void)
{
	if (likely(host.tsc))
		return (uint64_t)((double)(ticks() - host.epoch) * host.ns_per_tick);
	return raw_ns() - host.epoch;
}

/* A chain of dependent multiplications: takes CPU time, no memory, and cannot be optimised away. */
static EMU_NOINLINE uint64_t work_loop(uint64_t n)
{
	uint64_t x = n | 1;

	while (n--)
		x = x * UINT64_C(6364136223846793005) + 1;
	return x;
}

static _Thread_local volatile uint64_t work_sink;

void emu_compute(uint64_t ns)
{
	work_sink = work_loop((uint64_t)((double)ns * host.loops_per_ns));
}

void emu_tlb_flush(const struct mm_struct *mm, const _Atomic uint64_t *cpus, uint32_t nr_bits)
{
	(void)mm;
	(void)cpus;
	(void)nr_bits;
}

/* About 25 ms, once in the life of the conductor. */
void emu_machine_init(void)
{
	const uint64_t probe = 200000;

	if (host.loops_per_ns > 0)
		return;
	if (ticks_usable()) {
		uint64_t t0 = ticks(), ns0 = raw_ns(), ns1;

		do {
			ns1 = raw_ns();
		} while (ns1 - ns0 < 20000000);
		host.ns_per_tick = (double)(ns1 - ns0) / (double)(ticks() - t0);
		host.tsc = true;
	}
	host.epoch = host.tsc ? ticks() : raw_ns();
	/* The fastest of several: whatever disturbs makes it slower. */
	for (int i = 0; i < 8; i++) {
		uint64_t start = raw_ns();
		double rate;

		work_sink = work_loop(probe);
		rate = (double)probe / (double)(raw_ns() - start);
		if (rate > host.loops_per_ns)
			host.loops_per_ns = rate;
	}
}

void emu_futex_wait(_Atomic uint32_t *word, uint32_t expected)
{
	struct task_struct *task = current;
	uint64_t rcu = emu_rcu_sleep();

	/* Spinners on a lock that this task owns stop spinning from here on. */
	atomic_store_explicit(&task->on_cpu, 0, memory_order_relaxed);
	syscall(SYS_futex, word, FUTEX_WAIT, expected, NULL, NULL, 0);
	atomic_store_explicit(&task->on_cpu, 1, memory_order_relaxed);
	emu_rcu_wake(rcu);
	spins = 0;
}

void emu_sleep(uint64_t ns)
{
	struct timespec left = { (time_t)(ns / 1000000000), (long)(ns % 1000000000) };
	struct task_struct *task = current;
	uint64_t rcu = emu_rcu_sleep();

	atomic_store_explicit(&task->on_cpu, 0, memory_order_relaxed);
	while (nanosleep(&left, &left) && errno == EINTR)
		;
	atomic_store_explicit(&task->on_cpu, 1, memory_order_relaxed);
	emu_rcu_wake(rcu);
}

uint32_t emu_futex_wake(_Atomic uint32_t *word, uint32_t n)
{
	long woken = syscall(SYS_futex, word, FUTEX_WAKE, n > INT_MAX ? INT_MAX : (int)n, NULL, NULL, 0);

	return woken < 0 ? 0 : (uint32_t)woken;
}

void emu_spin_wait(const volatile void *addr)
{
	(void)addr;
#ifdef __x86_64__
	__builtin_ia32_pause();
#else
	atomic_signal_fence(memory_order_seq_cst);
#endif
	spins++;
	/* Without oversubscription too a host thread may have taken the owner's CPU: do not keep it from running. */
	if (unlikely(spins % (emu_arena && emu_arena->config.oversubscribed ? SPINS_PER_YIELD : 4096u) == 0))
		sched_yield();
}

void emu_spin_wait_until(const volatile void *addr, uint64_t until_ns)
{
	(void)until_ns;
	emu_spin_wait(addr);
}

void emu_wait_unwatched(void)
{
	emu_spin_wait(NULL);
}

bool emu_need_resched(void)
{
	if (likely(!emu_arena->config.oversubscribed || spins < SPINS_TO_RESCHED))
		return false;
	spins = 0;
	return true;
}

void emu_line_moved_slow(uint32_t *last)
{
	uint32_t node = current->node;
	uint32_t from = *last;
	uint64_t until;

	*last = node + 1;
	if (!from || from == node + 1)
		return;
	until = emu_clock_ns() + emu_arena->penalty_ns[(from - 1) * emu_arena->config.nr_nodes + node];
	while (emu_clock_ns() < until)
		;
}

void emu_machine_bind(void *base, uint64_t bytes, int32_t host_node)
{
#ifdef SYS_mbind
	unsigned long mask[16] = { 0 };

	if (!bytes || (uint32_t)host_node >= 8 * sizeof(mask))
		return;
	mask[(uint32_t)host_node / (8 * sizeof(long))] = 1UL << ((uint32_t)host_node % (8 * sizeof(long)));
	/* 1 = MPOL_PREFERRED: a full node is slow, not an error. */
	if (syscall(SYS_mbind, base, bytes, 1, mask, 8 * sizeof(mask), 0))
		fprintf(stderr, "emu: mbind to node %d: %s; memory stays where the host puts it\n", host_node,
			strerror(errno));
#else
	(void)base;
	(void)bytes;
	(void)host_node;
#endif
}

void emu_machine_lock_seen(const void *lock, uint32_t class_id)
{
	(void)lock;
	(void)class_id;
}

uint32_t emu_machine_first_cpu(uint32_t cpu)
{
	return cpu;
}

void emu_machine_held(const void *lock, uint32_t class_id, uint32_t site, uint64_t since_ns)
{
	(void)lock;
	(void)class_id;
	(void)site;
	(void)since_ns;
}

void emu_machine_called(uint32_t op, uint64_t start_ns)
{
	(void)op;
	(void)start_ns;
}

void emu_machine_lock_held(uint32_t class_id, bool held)
{
	(void)class_id;
	(void)held;
}

void emu_machine_exit(void)
{
	_exit(1);
}
