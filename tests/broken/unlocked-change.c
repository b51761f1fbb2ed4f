/* SPDX-License-Identifier: MIT */
/*
 * breaks: atomic
 *
 * single that gives the lock away between prepare and complete.
 */
#define emu_rmap_ops good_rmap_ops
#include "../../workers/designs/rmap/single.c"
#include "derive.h"

static void wrong_prepare(struct address_space *mapping, struct vma_prepare *vp)
{
	single_prepare(mapping, vp);
	up_write(&rmap_private(mapping, struct single)->i_mmap_rwsem);
}

static void wrong_complete(struct address_space *mapping, struct vma_prepare *vp)
{
	down_write(&rmap_private(mapping, struct single)->i_mmap_rwsem);
	single_complete(mapping, vp);
}

DERIVED(single, "unlocked-change", .prepare = wrong_prepare, .complete = wrong_complete);
