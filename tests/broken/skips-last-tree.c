/* SPDX-License-Identifier: MIT */
/*
 * breaks: walk
 *
 * numa-locks whose walk leaves out the last node's tree.
 */
#define emu_rmap_ops good_rmap_ops
#include "../../workers/designs/rmap/numa-locks.c"
#include "derive.h"

static int wrong_walk(struct address_space *mapping, uint64_t first, uint64_t last, bool try_lock, rmap_walk_fn fn,
		      void *arg)
{
	struct numa_locks *nl = rmap_private(mapping, struct numa_locks);
	uint32_t locked = 0;
	int ret = 0;

	for (; locked < emu_nr_nodes() - 1; locked++) {
		if (!try_lock) {
			down_read(&nl->nodes[locked]->rwsem);
		} else if (!down_read_trylock(&nl->nodes[locked]->rwsem)) {
			ret = -EAGAIN;
			break;
		}
	}
	for (uint32_t node = 0; node < emu_nr_nodes() - 1 && !ret; node++)
		ret = i_mmap_tree_walk(&nl->nodes[node]->tree, first, last, fn, arg);
	while (locked--)
		up_read(&nl->nodes[locked]->rwsem);
	return ret;
}

DERIVED(numa_locks, "skips-last-tree", .destroy = numa_locks_destroy, .walk = wrong_walk);
