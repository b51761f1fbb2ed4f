/* SPDX-License-Identifier: MIT */
/*
 * leaks-processes - what init() allocates for a process is never freed.
 *
 * breaks: memory
 */
#define emu_mm_ops good_mm_ops
#include "../../../workers/designs/mm/mmap-lock-maple.c"
#include "derive.h"

static void leaking_init(struct mm_struct *mm)
{
	mmap_lock_init(mm);
	(void)emu_alloc(64, emu_node_id());
}

DERIVED("leaks-processes", MAPLE_HOOKS, .init = leaking_init);
