/* SPDX-License-Identifier: MIT */
/*
 * breaks: fork-order
 *
 * numa-locks that puts a forked child into the tree of the node where fork runs.
 */
#define emu_rmap_ops good_rmap_ops
#include "../../workers/designs/rmap/numa-locks.c"
#include "derive.h"

static void wrong_insert(struct address_space *mapping, struct vm_area_struct **vmas,
			 struct vm_area_struct **prevs, uint32_t n)
{
	(void)prevs;
	numa_locks_insert(mapping, vmas, NULL, n);
}

DERIVED(numa_locks, "child-elsewhere", .destroy = numa_locks_destroy, .insert = wrong_insert);
