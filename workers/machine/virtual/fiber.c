/* SPDX-License-Identifier: MIT */
/*
 * fiber.c - stacks, and what happens when one overflows or a pointer goes wild. The switch is in context.c.
 */
#define _GNU_SOURCE
#include "virtual.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define STACK_BYTES (UINT64_C(128) << 10)

static char *stacks;
static uint64_t guard_bytes;

void fiber_prepare(struct fiber *fiber, void (*entry)(void))
{
	context_prepare(&fiber->sp, fiber->stack + guard_bytes, STACK_BYTES, entry);
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
	if (!vm.span) {
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

void fault_handler(bool on)
{
	context_faults(on ? on_fault : NULL);
}
