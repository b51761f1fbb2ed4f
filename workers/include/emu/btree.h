/* SPDX-License-Identifier: MIT */
/*
 * btree.h - closed intervals [start, last] in a B+-tree of wide nodes, with the largest last of each subtree.
 *
 * The same order as in interval_tree.h: by start, equal starts in order of insertion. But keys are in the nodes, and a
 * node has many: a search looks at few lines, and at no interval that is not in its result. The price: a change shifts
 * entries, and a split or merge writes to every interval that it moves, which knows its leaf so that it can be removed
 * although its key is not unique.
 * The caller's lock guards all of it, but for btree_empty(). Insertions may allocate, removals free.
 */
#ifndef EMU_BTREE_H
#define EMU_BTREE_H

#include <emu/machine.h>

struct btree_item {
	uint64_t start; /* first, and */
	uint64_t last;	/* last point of the interval; start <= last */
	struct btree_node *leaf; /* the tree's */
};

struct btree_root {
	struct btree_node *_Atomic node; /* atomic for btree_empty() alone; NULL: empty */
	uint32_t node_bytes;
	uint32_t last_node; /* --numa-penalty: node + 1 of the last CPU that changed it */
};

/* At least, since a node that is split must leave two entries to each half. */
#define BTREE_NODE_BYTES_MIN 128u
#define BTREE_NODE_BYTES_MAX 1024u

static inline void btree_init(struct btree_root *root, uint32_t node_bytes)
{
	EMU_ASSERT(node_bytes >= BTREE_NODE_BYTES_MIN && node_bytes <= BTREE_NODE_BYTES_MAX, "nodes of %u bytes",
		   node_bytes);
	atomic_init(&root->node, NULL);
	root->node_bytes = node_bytes;
	root->last_node = 0;
}

/* Without the lock too. */
static inline bool btree_empty(const struct btree_root *root)
{
	return !atomic_load_explicit(&root->node, memory_order_relaxed);
}

EMU_EXPORT void btree_insert(struct btree_item *item, struct btree_root *root);
/* Inserts item, whose start is that of prev, as the very next after prev in the order of iteration. */
EMU_EXPORT void btree_insert_after(struct btree_item *item, struct btree_item *prev, struct btree_root *root);
EMU_EXPORT void btree_remove(struct btree_item *item, struct btree_root *root);

/* Where an iteration is. The tree must not change meanwhile. */
struct btree_iter {
	uint64_t start, last; /* what is looked for */
	struct btree_node *leaf;
	uint32_t at;
};

/* The intervals that overlap [start, last], in order of start; NULL at the end. */
EMU_EXPORT struct btree_item *btree_iter_first(struct btree_iter *iter, struct btree_root *root, uint64_t start,
					       uint64_t last);
EMU_EXPORT struct btree_item *btree_iter_next(struct btree_iter *iter);

/* For tests: do order, fill, links and summaries all hold? *height (may be NULL): levels of nodes, 0 = empty. */
EMU_EXPORT bool btree_check(const struct btree_root *root, uint32_t *height);

#endif
