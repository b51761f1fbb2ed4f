/* SPDX-License-Identifier: MIT */
/*
 * maple.h - which entry has a point: a B-tree of ranges that readers walk without a lock while one writer changes it.
 *
 * The tree partitions [0, UINT64_MAX] into ranges, each with an entry (any pointer) or with none. A range that grows is
 * stored anew as a whole; so neighbours have different entries. Nodes have 256 bytes: 16 ranges in a leaf, 10 children
 * with the largest gap of each in an inner node. What readers can see of a node never changes, but for pointers to
 * children: a change builds new nodes beside the old ones, publishes all of them with one store, and frees the old ones by
 * RCU. So a reader sees every maple_store() wholly or not at all.
 *
 * Rules for callers:
 *   - maple_load() in an RCU read-side section, or with the writers' lock held. Nothing else without that lock.
 *   - What entries point to is freed by emu_free_rcu() if readers look at it.
 *   - Changes allocate, and are made by a CPU that is online (rcu.h).
 */
#ifndef EMU_MAPLE_H
#define EMU_MAPLE_H

#include <emu/rcu.h>

struct maple_root {
	struct maple_node *_Atomic node; /* NULL: no entry anywhere */
};

static inline void maple_init(struct maple_root *root)
{
	atomic_init(&root->node, NULL);
}

static inline bool maple_empty(const struct maple_root *root)
{
	return !atomic_load_explicit(&root->node, memory_order_relaxed);
}

/* The entry at `at`, or NULL. */
EMU_EXPORT void *maple_load(struct maple_root *root, uint64_t at);

/* The points first to last have this entry from now on, NULL: none. */
EMU_EXPORT void maple_store(struct maple_root *root, uint64_t first, uint64_t last, void *entry);

/* The first entry whose range ends at `at` or later, and the last one whose range ends before; NULL: none. */
EMU_EXPORT void *maple_find(struct maple_root *root, uint64_t at);
EMU_EXPORT void *maple_find_before(struct maple_root *root, uint64_t at);

/* The highest len points without entry in [low, high): the first of them, or -ENOMEM. 0 < len, low <= high <= INT64_MAX. */
EMU_EXPORT int64_t maple_free_area(struct maple_root *root, uint64_t len, uint64_t low, uint64_t high);

/* For tests: do order, fill, gaps and depth hold? *height (may be NULL): levels of nodes, 0 = empty. */
EMU_EXPORT bool maple_check(const struct maple_root *root, uint32_t *height);

#endif
