/* SPDX-License-Identifier: MIT */
/*
 * rbtree_template.h - the red-black algorithms as always-inline templates, private to workers/tree/.
 *
 * Each user makes an instance with callbacks that are known at compile time (NULL: none), so that none is
 * called through a pointer: rbtree.c for any callbacks (there they are) and for none, interval_tree.c for
 * its own. rb_insert_fix() is what is left to do after rb_link_node() below a red parent; rb_erase_fix()
 * after rb_unlink().
 *
 * The mirror images are one text: `left` is a constant wherever rb_child() is used with it.
 */
#ifndef EMU_RBTREE_TEMPLATE_H
#define EMU_RBTREE_TEMPLATE_H

#include <emu/rbtree.h>

#define RB_BLACK ((uintptr_t)1)
#define RB_TEMPLATE static inline __attribute__((always_inline))

static inline bool rb_is_black(const struct rb_node *node)
{
	return node->rb_parent_color & RB_BLACK;
}

RB_TEMPLATE struct rb_node **rb_child(struct rb_node *node, bool left)
{
	return left ? &node->rb_left : &node->rb_right;
}

static inline void rb_set_parent(struct rb_node *node, struct rb_node *parent)
{
	node->rb_parent_color = (uintptr_t)parent | (node->rb_parent_color & RB_BLACK);
}

static inline void rb_set_black(struct rb_node *node, struct rb_node *parent)
{
	node->rb_parent_color = (uintptr_t)parent | RB_BLACK;
}

static inline void rb_set_red(struct rb_node *node, struct rb_node *parent)
{
	node->rb_parent_color = (uintptr_t)parent;
}

/* Below parent (NULL: at the root), new_node takes the place of old. */
static inline void rb_replace_child(struct rb_node *parent, struct rb_node *old, struct rb_node *new_node,
				    struct rb_root *root)
{
	if (!parent)
		root->rb_node = new_node;
	else if (parent->rb_left == old)
		parent->rb_left = new_node;
	else
		parent->rb_right = new_node;
}

/*
 * Gives the child of `from` on that side to `to`, as its child on the other side: the subtree that changes
 * its parent when `to` moves down past `from`. It is black, or empty, wherever this is called.
 */
RB_TEMPLATE void rb_hand_over_black(struct rb_node *from, struct rb_node *to, bool left)
{
	struct rb_node *subtree = *rb_child(from, left);

	*rb_child(to, !left) = subtree;
	if (subtree)
		rb_set_black(subtree, to);
}

/* A red node below a red parent, which is the `left` child of grand and has no red sibling. */
RB_TEMPLATE void rb_insert_rotate(struct rb_node *node, struct rb_node *parent, struct rb_node *grand,
				  struct rb_root *root, const struct rb_augment_callbacks *aug, bool left)
{
	struct rb_node *top = parent;
	uintptr_t above = grand->rb_parent_color; /* black */

	if (*rb_child(parent, !left) == node) {
		/* Between parent and grand in the order: node itself comes to the top. */
		rb_hand_over_black(node, parent, left);
		*rb_child(node, left) = parent;
		rb_set_red(parent, node);
		if (aug)
			aug->rotate(parent, node);
		top = node;
	}
	rb_hand_over_black(top, grand, !left);
	*rb_child(top, !left) = grand;
	rb_set_red(grand, top);
	top->rb_parent_color = above;
	rb_replace_child(rb_parent(top), grand, top, root);
	if (aug)
		aug->rotate(grand, top);
}

/* `node` is red and so is its parent; all else is in order. */
RB_TEMPLATE void rb_insert_fix(struct rb_node *node, struct rb_root *root,
			       const struct rb_augment_callbacks *aug)
{
	for (;;) {
		struct rb_node *parent = rb_parent(node);
		struct rb_node *grand = rb_parent(parent); /* exists: the root is black */
		bool left = grand->rb_left == parent;
		struct rb_node *uncle = left ? grand->rb_right : grand->rb_left;

		if (!uncle || rb_is_black(uncle)) {
			if (left)
				rb_insert_rotate(node, parent, grand, root, aug, true);
			else
				rb_insert_rotate(node, parent, grand, root, aug, false);
			return;
		}

		/* Red moves up from parent and uncle to grand; values do not change. */
		rb_set_black(parent, grand);
		rb_set_black(uncle, grand);
		parent = rb_parent(grand);
		if (!parent)
			return; /* the root stays black: one level of black more */
		rb_set_red(grand, parent);
		if (rb_is_black(parent))
			return;
		node = grand;
	}
}

/*
 * The `left` subtree of parent has one black too few. True: the tree is in order again. False: now all of
 * the subtree at parent, which is black, has one too few.
 */
RB_TEMPLATE bool rb_erase_rotate(struct rb_node *parent, struct rb_root *root,
				 const struct rb_augment_callbacks *aug, bool left)
{
	struct rb_node *sibling = *rb_child(parent, !left); /* exists: it has that black */
	struct rb_node *inner, *outer;
	uintptr_t above;

	if (!rb_is_black(sibling)) {
		/* Its children are black: with parent, then red, below it, one of them is the sibling. */
		above = parent->rb_parent_color;
		inner = *rb_child(sibling, left);
		rb_hand_over_black(sibling, parent, left);
		*rb_child(sibling, left) = parent;
		rb_set_red(parent, sibling);
		sibling->rb_parent_color = above;
		rb_replace_child(rb_parent(sibling), parent, sibling, root);
		if (aug)
			aug->rotate(parent, sibling);
		sibling = inner;
	}

	above = parent->rb_parent_color;
	inner = *rb_child(sibling, left);
	outer = *rb_child(sibling, !left);
	if (outer && !rb_is_black(outer)) {
		*rb_child(parent, !left) = inner;
		if (inner)
			rb_set_parent(inner, parent); /* may be of either colour */
		*rb_child(sibling, left) = parent;
		rb_set_black(parent, sibling);
		rb_set_black(outer, sibling);
		sibling->rb_parent_color = above;
		rb_replace_child(rb_parent(sibling), parent, sibling, root);
		if (aug)
			aug->rotate(parent, sibling);
		return true;
	}
	if (inner && !rb_is_black(inner)) {
		rb_hand_over_black(inner, sibling, !left);
		*rb_child(inner, !left) = sibling;
		rb_set_black(sibling, inner);
		if (aug)
			aug->rotate(sibling, inner);
		rb_hand_over_black(inner, parent, left);
		*rb_child(inner, left) = parent;
		rb_set_black(parent, inner);
		inner->rb_parent_color = above;
		rb_replace_child(rb_parent(inner), parent, inner, root);
		if (aug)
			aug->rotate(parent, inner);
		return true;
	}
	rb_set_red(sibling, parent);
	if (above & RB_BLACK)
		return false;
	parent->rb_parent_color = above | RB_BLACK;
	return true;
}

/* A black leaf is gone from below parent. */
RB_TEMPLATE void rb_erase_fix(struct rb_node *parent, struct rb_root *root,
			      const struct rb_augment_callbacks *aug)
{
	struct rb_node *node = NULL;

	do {
		if (parent->rb_left == node ? rb_erase_rotate(parent, root, aug, true) :
					      rb_erase_rotate(parent, root, aug, false))
			return;
		node = parent;
		parent = rb_parent(node);
	} while (parent);
}

/* Takes node out. Returns the parent of the place where a black leaf is missing now, NULL: none is. */
RB_TEMPLATE struct rb_node *rb_unlink(struct rb_node *node, struct rb_root *root,
				      const struct rb_augment_callbacks *aug)
{
	struct rb_node *left = node->rb_left, *right = node->rb_right;
	struct rb_node *parent = rb_parent(node);
	struct rb_node *next, *below, *child;
	bool was_black;

	if (!left || !right) {
		child = left ? left : right;
		rb_replace_child(parent, node, child, root);
		was_black = rb_is_black(node);
		if (child) {
			/* An only child is a red leaf and node black: child takes over parent and colour. */
			child->rb_parent_color = node->rb_parent_color;
			was_black = false;
		}
		if (aug && parent)
			aug->propagate(parent, NULL);
		return was_black ? parent : NULL;
	}

	/* The next in order, which has no left child, leaves its place and takes that of node. */
	next = right;
	below = NULL;
	while (next->rb_left) {
		below = next;
		next = next->rb_left;
	}
	child = next->rb_right;
	if (below) {
		below->rb_left = child;
		next->rb_right = right;
		rb_set_parent(right, next);
	} else {
		below = next;
	}
	was_black = rb_is_black(next);
	if (child) {
		rb_set_black(child, below);
		was_black = false;
	}
	next->rb_left = left;
	rb_set_parent(left, next);
	next->rb_parent_color = node->rb_parent_color;
	rb_replace_child(parent, node, next, root);
	if (aug) {
		aug->copy(node, next);
		if (below != next)
			aug->propagate(below, next);
		aug->propagate(next, NULL);
	}
	return was_black ? below : NULL;
}

#endif
