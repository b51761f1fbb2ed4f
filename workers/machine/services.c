/* SPDX-License-Identifier: MIT */
/*
 * services.c - the services of emu/machine.h that are the same on both engines, and how a run ends badly.
 */
#include "internal.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct emu_arena *emu_arena;
void (*emu_bug_hook)(const char *place, const char *what);

static _Thread_local char error[512];

uint32_t emu_cpu_id(void)
{
	return current->cpu;
}

uint32_t emu_node_id(void)
{
	return current->node;
}

uint32_t emu_nr_cpus(void)
{
	return emu_arena->config.nr_hw_cpus;
}

uint32_t emu_nr_tasks(void)
{
	return emu_arena->config.nr_cpus;
}

uint32_t emu_nr_nodes(void)
{
	return emu_arena->config.nr_nodes;
}

uint32_t emu_cpu_to_node(uint32_t cpu)
{
	return emu_arena->node_of_cpu[cpu];
}

struct emu_percpu_sync *emu_percpu_sync(uint32_t cpu)
{
	return &emu_arena->cpus[cpu].sync;
}

/* splitmix64 (Steele, Lea, Flood 2014). */
uint64_t emu_random(void)
{
	uint64_t z = (emu_this_cpu()->random += UINT64_C(0x9e3779b97f4a7c15));

	z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
	return z ^ (z >> 31);
}

const char *emu_error(void)
{
	return error;
}

uint32_t emu_machine_id(void)
{
	return EMU_MACHINE_ID;
}

int emu_set_error(int err, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(error, sizeof(error), fmt, ap);
	va_end(ap);
	return err;
}

/* The reason, for whoever looks at this CPU's state after it is gone. */
static void leave_word(const char *text)
{
	if (current)
		snprintf(emu_this_cpu()->state.failure, sizeof(emu_this_cpu()->state.failure), "%s", text);
}

void emu_fail(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(error, sizeof(error), fmt, ap);
	va_end(ap);
	if (emu_fail_jmp)
		longjmp(*(jmp_buf *)emu_fail_jmp, 1);
	leave_word(error);
	emu_machine_exit();
}

void emu_bug(const char *file, int line, const char *expr, const char *fmt, ...)
{
	const char *base = strrchr(file, '/');
	char what[256], text[512];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(what, sizeof(what), fmt, ap);
	va_end(ap);
	if (emu_bug_hook) {
		snprintf(text, sizeof(text), "%s:%d: %s", base ? base + 1 : file, line, expr);
		emu_bug_hook(text, what);
	}
	snprintf(text, sizeof(text), "BUG: CPU %d at %llu ns, seed %llu: %s:%d: %s%s%s", current ? (int)current->cpu : -1,
		 current ? (unsigned long long)emu_clock_ns() : 0ULL,
		 emu_arena ? (unsigned long long)emu_arena->config.seed : 0ULL, base ? base + 1 : file, line, expr,
		 what[0] ? ": " : "", what);
	leave_word(text);
	fprintf(stderr, "emu: %s\n", text);
	abort();
}
