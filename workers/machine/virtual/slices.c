/* SPDX-License-Identifier: MIT */
/*
 * slices.c - what each CPU did when, for a trace of a window of time (emu_virtual_slices()).
 *
 * A slice is written when it ends: a system call, a wait for a lock and the spinning and sleeping in it, a hold of a
 * lock. All times are those of emu_clock_ns(), so that sums of slices are the sums of the lock statistics. The caller
 * gives the memory; when that is used up, nothing more is written and the time is kept. Off, a slice costs a look at
 * `first_ns`, and no access to memory costs anything.
 */
#include "virtual.h"

static struct {
	struct emu_virtual_slice *slices;
	uint64_t nr, max, full_ns;
	uint64_t first_ns, end_ns; /* the window; empty while off */
} trace;

void emu_virtual_slices(struct emu_virtual_slice *slices, uint64_t n, uint64_t first_ns, uint64_t end_ns)
{
	trace.slices = slices;
	trace.max = n;
	trace.nr = trace.full_ns = 0;
	trace.first_ns = slices ? first_ns : UINT64_MAX;
	trace.end_ns = slices ? end_ns : 0;
}

uint64_t emu_virtual_sliced(uint64_t *full_ns)
{
	*full_ns = trace.full_ns;
	return trace.nr;
}

static void slice(uint32_t kind, uint32_t what, uint64_t at, uint32_t site, uint64_t start_ns)
{
	uint64_t end_ns = emu_clock_ns();

	if (likely(start_ns >= trace.end_ns) || end_ns < trace.first_ns || !vm.span)
		return;
	if (trace.nr == trace.max) {
		if (!trace.full_ns)
			trace.full_ns = end_ns;
		return;
	}
	trace.slices[trace.nr++] = (struct emu_virtual_slice){
		.start_ns = start_ns,
		.end_ns = end_ns,
		.at = at,
		.task = vm.nr,
		.kind = kind,
		.what = what,
		.site = site,
		.stack = stack_here(),
	};
}

void emu_machine_called(uint32_t op, uint64_t start_ns)
{
	slice(EMU_SLICE_CALL, op, 0, current->site, start_ns);
	limit_events();
}

void emu_waited(uint32_t class_id, uint64_t wait_ns)
{
	slice(EMU_SLICE_WAIT, class_id, 0, current->site, emu_clock_ns() - wait_ns);
}

void emu_machine_held(const void *lock, uint32_t class_id, uint32_t site, uint64_t since_ns)
{
	slice(EMU_SLICE_HOLD, class_id, (uint64_t)((uintptr_t)lock - (uintptr_t)emu_arena), site, since_ns);
}

void slice_waited(uint64_t offset, enum emu_site_kind kind, uint64_t start_ns)
{
	slice(kind == EMU_SITE_SPIN ? EMU_SLICE_SPIN : EMU_SLICE_SLEEP, 0,
	      offset + vm.base - (uintptr_t)emu_arena, current->site, start_ns);
}
