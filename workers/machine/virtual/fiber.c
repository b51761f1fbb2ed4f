/* SPDX-License-Identifier: MIT */
/*
 * fiber.c - stacks, and what happens when one overflows, a pointer goes wild, or a fiber stays where the machine cannot
 * see it. The switch is in context.c.
 */
#define _GNU_SOURCE
#include "virtual.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#ifndef sigev_notify_thread_id
/* glibc has the field, and named it in 2.38. */
#define sigev_notify_thread_id _sigev_un._tid
#endif

#define STACK_BYTES (UINT64_C(128) << 10)
/* Stacks begin at different lines of their pages: else their innermost frames would be in few sets of the host's cache. */
#define STACK_LINES 32u
/* Seconds of this host's CPU in one fiber without an event: what lies between two is microseconds. */
#define STUCK_S 5

static char *stacks;
static uint64_t guard_bytes;

void fiber_prepare(struct fiber *fiber, void (*entry)(void))
{
	context_prepare(&fiber->sp, fiber->stack + guard_bytes, STACK_BYTES - fiber->nr % STACK_LINES * 64, entry);
}

/* One mapping, a guard page below each stack; nothing is resident before it is used. */
int fibers_create(uint32_t n)
{
	uint64_t each;

	guard_bytes = (uint64_t)sysconf(_SC_PAGESIZE);
	each = guard_bytes + STACK_BYTES;
	stacks = mmap(NULL, n * each, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (stacks == MAP_FAILED) {
		stacks = NULL;
		return -errno;
	}
	for (uint32_t i = 0; i < n; i++) {
		vm.fibers[i].stack = stacks + i * each;
		/* The host limits the number of mappings (vm.max_map_count): beyond it, stacks go unguarded. */
		if (mprotect(vm.fibers[i].stack, guard_bytes, PROT_NONE) && errno != ENOMEM)
			return -errno;
	}
	return 0;
}

void fibers_destroy(uint32_t n)
{
	if (stacks)
		munmap(stacks, n * (guard_bytes + STACK_BYTES));
	stacks = NULL;
	for (uint32_t i = 0; i < n; i++)
		context_free(&vm.fibers[i].sp);
}

/* Runs on its own stack, leaves by switching away; the run is over, the process is not. */
static void on_fault(int number, siginfo_t *info, void *context)
{
	const char *at = info->si_addr;
	(void)context;

	/* Not on a fiber: not ours. The instruction runs again and meets the old handler. */
	if (!vm.in_phase) {
		fault_handler(false);
		return;
	}
	if (at >= vm.fiber->stack && at < vm.fiber->stack + guard_bytes)
		emu_set_error(-EFAULT, "stack overflow: CPU %u at %llu ns, seed %llu: more than %llu KiB", vm.cpu,
			      (unsigned long long)(vm.clock / 1000), (unsigned long long)emu_arena->config.seed,
			      (unsigned long long)(STACK_BYTES >> 10));
	else
		emu_set_error(-EFAULT, "wild pointer %p: CPU %u at %llu ns, seed %llu%s", (const void *)at, vm.cpu,
			      (unsigned long long)(vm.clock / 1000), (unsigned long long)emu_arena->config.seed,
			      number == SIGBUS ? " (SIGBUS)" : "");
	sched_fail(-EFAULT);
}

/* Comes every second of CPU time, in the middle of anything; only a loop that has no events sees it STUCK_S times. */
static void on_tick(int number)
{
	static uint64_t last_events;
	static uint32_t unchanged_s;
	uint64_t events = vm.accesses + vm.switches + vm.clock;
	(void)number;

	unchanged_s = events == last_events ? unchanged_s + 1 : 0;
	last_events = events;
	if (!vm.in_phase || unchanged_s < STUCK_S)
		return;
	unchanged_s = 0;
	/* Events are counted where accesses are charged. */
	if (vm.span)
		computes_for_ever(STUCK_S);
	else
		charge();
}

/* Counts the CPU time of this thread alone: a stopped or waiting host does not end a run. */
static void tick(bool on)
{
	static struct sigaction old_action;
	static timer_t timer;
	struct sigaction action = { .sa_handler = on_tick, .sa_flags = SA_ONSTACK | SA_NODEFER | SA_RESTART };
	struct sigevent event = { .sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGVTALRM };
	const struct itimerspec second = { .it_interval.tv_sec = 1, .it_value.tv_sec = 1 };
	static bool ticking;

	if (on) {
		event.sigev_notify_thread_id = (pid_t)syscall(SYS_gettid);
		sigaction(SIGVTALRM, &action, &old_action);
		ticking = !timer_create(CLOCK_THREAD_CPUTIME_ID, &event, &timer) && !timer_settime(timer, 0, &second, NULL);
	} else {
		if (ticking)
			timer_delete(timer);
		sigaction(SIGVTALRM, &old_action, NULL);
	}
}

void fault_handler(bool on)
{
	context_faults(on ? on_fault : NULL);
	tick(on);
}
