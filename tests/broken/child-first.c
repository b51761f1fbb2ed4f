/* SPDX-License-Identifier: MIT */
/*
 * breaks: fork-order
 *
 * single that links a forked child just before its parent.
 */
#define emu_rmap_ops good_rmap_ops
#include "../../workers/designs/rmap/single.c"
#include "derive.h"

static void wrong_insert(struct address_space *mapping, struct vm_area_struct **vmas,
			 struct vm_area_struct **prevs, uint32_t n)
{
	struct single *s = rmap_private(mapping, struct single);

	down_write(&s->i_mmap_rwsem);
	for (uint32_t i = 0; i < n; i++) {
		if (prevs)
			i_mmap_tree_remove(&s->i_mmap, prevs[i]);
		i_mmap_tree_insert(&s->i_mmap, vmas[i]);
		if (prevs)
			i_mmap_tree_insert(&s->i_mmap, prevs[i]);
	}
	up_write(&s->i_mmap_rwsem);
}

DERIVED(single, "child-first", .insert = wrong_insert);
