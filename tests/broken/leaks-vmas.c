/* SPDX-License-Identifier: MIT */
/*
 * breaks: memory
 *
 * single that allocates something for each new VMA and never frees it.
 */
#define emu_rmap_ops good_rmap_ops
#include "../../workers/designs/rmap/single.c"
#include "derive.h"

static void wrong_insert(struct address_space *mapping, struct vm_area_struct **vmas,
			 struct vm_area_struct **prevs, uint32_t n)
{
	emu_alloc(64, emu_node_id());
	single_insert(mapping, vmas, prevs, n);
}

DERIVED(single, "leaks-vmas", .insert = wrong_insert);
