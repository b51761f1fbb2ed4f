/* SPDX-License-Identifier: MIT */
/*
 * interval_tree.c - see interval_tree.h. Cache lines cost most: no step looks at a node it can do without.
 *
 * subtree_last is the largest last of the node and all below it. An insertion raises it on the way down. A
 * removal can only lower it, and only where it was the removed node's: the way up ends at the first node
 * that has its value from its own last or from a child in which it did not fall.
 */
#include <emu/interval_tree.h>

#include <inttypes.h>

#include "rbtree_template.h"

static inline struct interval_tree_node *interval_entry(const struct rb_node *rb)
{
	return rb_entry(rb, struct interval_tree_node, rb);
}

/*
 * Recomputes a value that was right before and can only have fallen since. That it has not is mostly seen
 * without a look at the children, whose lines may be cold. Returns whether it fell.
 */
static inline bool interval_lower(struct interval_tree_node *node)
{
	uint64_t old = node->subtree_last, last = node->last;
	const struct interval_tree_node *child;

	if (last == old)
		return false;
	if (node->rb.rb_right) {
		child = interval_entry(node->rb.rb_right);
		if (child->subtree_last == old)
			return false;
		if (child->subtree_last > last)
			last = child->subtree_last;
	}
	if (node->rb.rb_left) {
		child = interval_entry(node->rb.rb_left);
		if (child->subtree_last == old)
			return false;
		if (child->subtree_last > last)
			last = child->subtree_last;
	}
	node->subtree_last = last;
	return true;
}

static inline void interval_propagate(struct rb_node *rb, struct rb_node *stop)
{
	while (rb != stop && interval_lower(interval_entry(rb)))
		rb = rb_parent(rb);
}

static inline void interval_copy(struct rb_node *old, struct rb_node *new_node)
{
	interval_entry(new_node)->subtree_last = interval_entry(old)->subtree_last;
}

/* The old one has lost new_node and what stays with it, so its value can only fall here too. */
static inline void interval_rotate(struct rb_node *old, struct rb_node *new_node)
{
	interval_copy(old, new_node);
	interval_lower(interval_entry(old));
}

static const struct rb_augment_callbacks interval_augment = {
	.propagate = interval_propagate,
	.copy = interval_copy,
	.rotate = interval_rotate,
};

/* Links the node as the last step of an insertion. */
static inline void interval_link(struct interval_tree_node *node, struct rb_node *parent,
				 struct rb_node **link, struct interval_tree_root *root)
{
	node->subtree_last = node->last;
	rb_link_node(&node->rb, parent, link);
	if (!parent)
		rb_set_black(&node->rb, NULL);
	else if (!rb_is_black(parent))
		rb_insert_fix(&node->rb, &root->rb, &interval_augment);
}

void interval_tree_insert(struct interval_tree_node *node, struct interval_tree_root *root)
{
	const uint64_t start = node->start, last = node->last;
	struct rb_node **link = &root->rb.rb_node;
	struct rb_node *parent = NULL;

	EMU_ASSERT(start <= last, "interval [%" PRIu64 ", %" PRIu64 "]", start, last);
	emu_line_moved(&root->last_node);
	while (*link) {
		struct interval_tree_node *at = interval_entry(*link);

		parent = &at->rb;
		if (at->subtree_last < last)
			at->subtree_last = last;
		/*
		 * The hint is for the compiler: a branch lets the CPU guess the way and load ahead, where a
		 * conditional move would make each level wait for the one above.
		 */
		if (unlikely(start < at->start))
			link = &parent->rb_left;
		else
			link = &parent->rb_right;
	}
	interval_link(node, parent, link, root);
}

void interval_tree_insert_after(struct interval_tree_node *node, struct interval_tree_node *prev,
				struct interval_tree_root *root)
{
	const uint64_t last = node->last;
	struct rb_node **link = &prev->rb.rb_right;
	struct rb_node *parent = &prev->rb, *up;

	EMU_ASSERT(node->start == prev->start && node->start <= last,
		   "interval [%" PRIu64 ", %" PRIu64 "] after one from %" PRIu64, node->start, last,
		   prev->start);
	emu_line_moved(&root->last_node);
	while (*link) {
		parent = *link;
		link = &parent->rb_left;
	}
	for (up = parent; up && interval_entry(up)->subtree_last < last; up = rb_parent(up))
		interval_entry(up)->subtree_last = last;
	interval_link(node, parent, link, root);
}

void interval_tree_remove(struct interval_tree_node *node, struct interval_tree_root *root)
{
	struct rb_node *parent;

	emu_line_moved(&root->last_node);
	parent = rb_unlink(&node->rb, &root->rb, &interval_augment);
	if (parent)
		rb_erase_fix(parent, &root->rb, &interval_augment);
}

static inline bool interval_reaches(const struct rb_node *rb, uint64_t start)
{
	return rb && interval_entry(rb)->subtree_last >= start;
}

/*
 * The first one from rb down that overlaps [start, last]; interval_reaches(rb, start) holds. Where the
 * left subtree reaches start, the first node in it that does is the answer; if it begins behind last, so
 * do all that follow.
 */
static struct interval_tree_node *interval_search(struct rb_node *rb, uint64_t start, uint64_t last)
{
	for (;;) {
		struct interval_tree_node *node = interval_entry(rb);

		if (interval_reaches(rb->rb_left, start)) {
			rb = rb->rb_left;
			continue;
		}
		if (node->start > last)
			return NULL;
		if (node->last >= start)
			return node;
		rb = rb->rb_right; /* it must be here */
	}
}

struct interval_tree_node *interval_tree_iter_first(struct interval_tree_root *root, uint64_t start,
						    uint64_t last)
{
	if (!interval_reaches(root->rb.rb_node, start))
		return NULL;
	return interval_search(root->rb.rb_node, start, last);
}

struct interval_tree_node *interval_tree_iter_next(struct interval_tree_node *node, uint64_t start,
						   uint64_t last)
{
	for (;;) {
		const struct rb_node *rb = &node->rb;
		struct rb_node *parent;

		if (interval_reaches(rb->rb_right, start))
			return interval_search(rb->rb_right, start, last);
		while ((parent = rb_parent(rb)) && rb == parent->rb_right)
			rb = parent;
		if (!parent)
			return NULL;
		node = interval_entry(parent);
		if (node->start > last)
			return NULL;
		if (node->last >= start)
			return node;
	}
}

bool interval_tree_check(const struct interval_tree_root *root)
{
	const struct interval_tree_node *prev = NULL;
	const struct rb_node *rb;

	/* First: only a tree in which all links are right can be walked. */
	if (!rb_check(&root->rb))
		return false;
	for (rb = rb_first(&root->rb); rb; rb = rb_next(rb)) {
		const struct interval_tree_node *node = interval_entry(rb);
		uint64_t largest = node->last;

		if (rb->rb_left && interval_entry(rb->rb_left)->subtree_last > largest)
			largest = interval_entry(rb->rb_left)->subtree_last;
		if (rb->rb_right && interval_entry(rb->rb_right)->subtree_last > largest)
			largest = interval_entry(rb->rb_right)->subtree_last;
		if (node->start > node->last || node->subtree_last != largest)
			return false;
		if (prev && prev->start > node->start)
			return false;
		prev = node;
	}
	return true;
}
