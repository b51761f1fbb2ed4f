/* SPDX-License-Identifier: MIT */
/*
 * breaks: walk
 *
 * single that forgets to unlink the last VMA of a batch of three or more.
 */
#define emu_rmap_ops good_rmap_ops
#include "../../workers/designs/rmap/single.c"
#include "derive.h"

static void wrong_remove(struct address_space *mapping, struct vm_area_struct **vmas, uint32_t n)
{
	single_remove(mapping, vmas, n > 2 ? n - 1 : n);
}

DERIVED(single, "keeps-removed", .remove = wrong_remove);
