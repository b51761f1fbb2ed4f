/* SPDX-License-Identifier: MIT */
/*
 * breaks: mapped
 *
 * single whose mapped() believes an empty tree, also between prepare and complete.
 */
#define emu_rmap_ops good_rmap_ops
#include "../../workers/designs/rmap/single.c"
#include "derive.h"

static bool wrong_mapped(struct address_space *mapping)
{
	return !i_mmap_tree_empty(&rmap_private(mapping, struct single)->i_mmap);
}

DERIVED(single, "trusts-empty-tree", .mapped = wrong_mapped);
