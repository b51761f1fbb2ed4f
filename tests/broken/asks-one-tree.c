/* SPDX-License-Identifier: MIT */
/*
 * breaks: mapped
 *
 * numa-locks whose mapped() looks into the tree of its own node only.
 */
#define emu_rmap_ops good_rmap_ops
#include "../../workers/designs/rmap/numa-locks.c"
#include "derive.h"

static bool wrong_mapped(struct address_space *mapping)
{
	struct numa_locks *nl = rmap_private(mapping, struct numa_locks);

	return !i_mmap_tree_empty(&nl->nodes[emu_node_id()]->tree);
}

DERIVED(numa_locks, "asks-one-tree", .destroy = numa_locks_destroy, .mapped = wrong_mapped);
