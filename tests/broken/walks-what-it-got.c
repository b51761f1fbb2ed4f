/* SPDX-License-Identifier: MIT */
/*
 * breaks: trylock
 *
 * numa-locks whose trylock walk leaves out the trees that it could not lock.
 */
#define emu_rmap_ops good_rmap_ops
#include "../../workers/designs/rmap/numa-locks.c"
#include "derive.h"

static int wrong_walk(struct address_space *mapping, uint64_t first, uint64_t last, bool try_lock, rmap_walk_fn fn,
		      void *arg)
{
	struct numa_locks *nl = rmap_private(mapping, struct numa_locks);
	int ret = 0;

	if (!try_lock)
		return numa_locks_walk(mapping, first, last, try_lock, fn, arg);
	for (uint32_t node = 0; node < emu_nr_nodes() && !ret; node++) {
		if (!down_read_trylock(&nl->nodes[node]->rwsem))
			continue;
		ret = i_mmap_tree_walk(&nl->nodes[node]->tree, first, last, fn, arg);
		up_read(&nl->nodes[node]->rwsem);
	}
	return ret;
}

DERIVED(numa_locks, "walks-what-it-got", .destroy = numa_locks_destroy, .walk = wrong_walk);
