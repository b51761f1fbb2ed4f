/* SPDX-License-Identifier: MIT */
/*
 * breaks: deadlock
 *
 * numa-locks that takes the locks of a change in the order of its arguments.
 */
#define emu_rmap_ops good_rmap_ops
#include "../../workers/designs/rmap/numa-locks.c"
#include "derive.h"

static void lock_once(struct address_space *mapping, struct vm_area_struct *vma, uint64_t *locked)
{
	if (!vma || *locked >> vma->i_mmap_index & 1)
		return;
	*locked |= UINT64_C(1) << vma->i_mmap_index;
	down_write(&tree_of(mapping, vma)->rwsem);
}

static void wrong_prepare(struct address_space *mapping, struct vma_prepare *vp)
{
	uint64_t locked = 0;

	if (vp->insert)
		vp->insert->i_mmap_index = vp->vma->i_mmap_index;
	lock_once(mapping, vp->vma, &locked);
	lock_once(mapping, vp->adj_next, &locked);
	lock_once(mapping, vp->remove, &locked);
	lock_once(mapping, vp->remove2, &locked);
	i_mmap_tree_remove(&tree_of(mapping, vp->vma)->tree, vp->vma);
	if (vp->adj_next)
		i_mmap_tree_remove(&tree_of(mapping, vp->adj_next)->tree, vp->adj_next);
	if (vp->insert)
		i_mmap_tree_insert(&tree_of(mapping, vp->insert)->tree, vp->insert);
}

DERIVED(numa_locks, "argument-order", .destroy = numa_locks_destroy, .prepare = wrong_prepare);
