/* SPDX-License-Identifier: MIT */
/*
 * breaks: deadlock
 *
 * numa-locks that takes a lock for each VMA of a change, also where two are in one tree.
 */
#define emu_rmap_ops good_rmap_ops
#include "../../workers/designs/rmap/numa-locks.c"
#include "derive.h"

static void wrong_prepare(struct address_space *mapping, struct vma_prepare *vp)
{
	struct numa_locks *nl = rmap_private(mapping, struct numa_locks);

	if (vp->adj_next && vp->adj_next->i_mmap_index == vp->vma->i_mmap_index)
		down_write(&nl->nodes[vp->vma->i_mmap_index]->rwsem);
	numa_locks_prepare(mapping, vp);
}

DERIVED(numa_locks, "locks-twice", .destroy = numa_locks_destroy, .prepare = wrong_prepare);
