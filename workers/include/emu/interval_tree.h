/* SPDX-License-Identifier: MIT */
/*
 * interval_tree.h - a red-black tree of closed intervals [start, last], with the largest last of each subtree.
 *
 * Equal starts go to the right: an interval is found after all with the same start that were in the tree before it.
 * The caller's lock guards all of it.
 */
#ifndef EMU_INTERVAL_TREE_H
#define EMU_INTERVAL_TREE_H

#include <emu/rbtree.h>

struct interval_tree_node {
	struct rb_node rb;
	uint64_t start; /* first, and */
	uint64_t last;	/* last point of the interval; start <= last */
	uint64_t subtree_last;
};

struct interval_tree_root {
	struct rb_root rb;
	uint32_t last_node; /* --numa-penalty: node + 1 of the last CPU that changed it */
};

EMU_EXPORT void interval_tree_insert(struct interval_tree_node *node, struct interval_tree_root *root);
/* Inserts node, whose start is that of prev, as the very next after prev in the order of iteration. */
EMU_EXPORT void interval_tree_insert_after(struct interval_tree_node *node, struct interval_tree_node *prev,
					   struct interval_tree_root *root);
EMU_EXPORT void interval_tree_remove(struct interval_tree_node *node, struct interval_tree_root *root);

/* The intervals that overlap [start, last], in order of start; NULL at the end. */
EMU_EXPORT struct interval_tree_node *interval_tree_iter_first(struct interval_tree_root *root, uint64_t start,
							       uint64_t last);
EMU_EXPORT struct interval_tree_node *interval_tree_iter_next(struct interval_tree_node *node, uint64_t start,
							      uint64_t last);

static inline bool interval_tree_empty(const struct interval_tree_root *root)
{
	return !root->rb.rb_node;
}

/* For tests: do order, red-black rules and subtree_last all hold? */
EMU_EXPORT bool interval_tree_check(const struct interval_tree_root *root);

#endif
