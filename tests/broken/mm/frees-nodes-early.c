/* SPDX-License-Identifier: MIT */
/*
 * frees-nodes-early - faults walk the tree without a lock, but its nodes are freed as soon as they are replaced.
 *
 * breaks: rcu
 */
#include <emu/rcu.h>
#define emu_free_rcu emu_free
#include "../../../workers/tree/maple.c"
#undef emu_free_rcu
#define emu_mm_ops good_mm_ops
#include "../../../workers/designs/mm/mmap-lock-maple.c"
#include "derive.h"

/* Takes its time. */
static void *slow_load(struct maple_root *root, uint64_t at)
{
	struct maple_node *node = rcu_dereference(&root->node);

	while (node) {
		void *ptr;

		emu_compute(10000);
		ptr = slot_load(node, slot_of(node, at));
		if (node->is_leaf)
			return ptr;
		node = ptr;
	}
	return NULL;
}

static int lockless_fault(struct mm_struct *mm, uint64_t addr, bool write, struct address_space **busy)
{
	int err;

	rcu_read_lock();
	err = fault_in_vma(slow_load(&mm_private(mm, struct mm_maple)->tree, addr), addr, write, busy);
	rcu_read_unlock();
	return err;
}

DERIVED("frees-nodes-early", MAPLE_HOOKS, .fault = lockless_fault);
