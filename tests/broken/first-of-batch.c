/* SPDX-License-Identifier: MIT */
/*
 * breaks: walk
 *
 * single that links the first VMA of several, as a design would that thinks it is only ever given one.
 */
#define emu_rmap_ops good_rmap_ops
#include "../../workers/designs/rmap/single.c"
#include "derive.h"

static void wrong_insert(struct address_space *mapping, struct vm_area_struct **vmas,
			 struct vm_area_struct **prevs, uint32_t n)
{
	single_insert(mapping, vmas, prevs, n ? 1 : 0);
}

DERIVED(single, "first-of-batch", .insert = wrong_insert);
