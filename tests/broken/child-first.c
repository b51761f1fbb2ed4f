/* SPDX-License-Identifier: MIT */
/*
 * breaks: fork-order
 *
 * single that links a forked child just before its parent.
 */
#define emu_rmap_ops good_rmap_ops
#include "../../workers/designs/rmap/single.c"
#include "derive.h"

static void wrong_insert_after(struct address_space *mapping, struct vm_area_struct *vma, struct vm_area_struct *prev)
{
	struct single *s = rmap_private(mapping, struct single);

	down_write(&s->i_mmap_rwsem);
	i_mmap_tree_remove(&s->i_mmap, prev);
	i_mmap_tree_insert(&s->i_mmap, vma);
	i_mmap_tree_insert(&s->i_mmap, prev);
	up_write(&s->i_mmap_rwsem);
}

DERIVED(single, "child-first", .insert_after = wrong_insert_after);
