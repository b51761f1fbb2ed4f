/* SPDX-License-Identifier: MIT */
/*
 * rbtree.c - the red-black tree for any callbacks and for none; see rbtree.h for the rules.
 */
#include "rbtree_template.h"

/* No tree of 2^63 nodes is deeper; a corrupted one may be. */
#define RB_DEPTH_MAX 128u

static inline bool rb_needs_insert_fix(struct rb_node *node, struct rb_root *root)
{
	struct rb_node *parent = rb_parent(node);

	if (parent)
		return !rb_is_black(parent);
	root->rb_node->rb_parent_color = RB_BLACK;
	return false;
}

void rb_insert_color(struct rb_node *node, struct rb_root *root)
{
	if (rb_needs_insert_fix(node, root))
		rb_insert_fix(node, root, NULL);
}

void rb_erase(struct rb_node *node, struct rb_root *root)
{
	struct rb_node *parent = rb_unlink(node, root, NULL);

	if (parent)
		rb_erase_fix(parent, root, NULL);
}

void rb_insert_augmented(struct rb_node *node, struct rb_root *root,
			 const struct rb_augment_callbacks *aug)
{
	if (rb_needs_insert_fix(node, root))
		rb_insert_fix(node, root, aug);
}

void rb_erase_augmented(struct rb_node *node, struct rb_root *root,
			const struct rb_augment_callbacks *aug)
{
	struct rb_node *parent = rb_unlink(node, root, aug);

	if (parent)
		rb_erase_fix(parent, root, aug);
}

struct rb_node *rb_first(const struct rb_root *root)
{
	struct rb_node *node = root->rb_node;

	while (node && node->rb_left)
		node = node->rb_left;
	return node;
}

struct rb_node *rb_last(const struct rb_root *root)
{
	struct rb_node *node = root->rb_node;

	while (node && node->rb_right)
		node = node->rb_right;
	return node;
}

struct rb_node *rb_next(const struct rb_node *node)
{
	const struct rb_node *child = node->rb_right;
	struct rb_node *parent;

	if (child) {
		while (child->rb_left)
			child = child->rb_left;
		return (struct rb_node *)child;
	}
	while ((parent = rb_parent(node)) && node == parent->rb_right)
		node = parent;
	return parent;
}

struct rb_node *rb_prev(const struct rb_node *node)
{
	const struct rb_node *child = node->rb_left;
	struct rb_node *parent;

	if (child) {
		while (child->rb_right)
			child = child->rb_right;
		return (struct rb_node *)child;
	}
	while ((parent = rb_parent(node)) && node == parent->rb_left)
		node = parent;
	return parent;
}

/* Black nodes on every path down from node, NULL included; 0: a rule is broken. */
static uint32_t rb_black_height(const struct rb_node *node, const struct rb_node *parent, uint32_t depth)
{
	uint32_t left, right;

	if (!node)
		return 1;
	if (depth == RB_DEPTH_MAX || rb_parent(node) != parent)
		return 0;
	if (!rb_is_black(node) && (!parent || !rb_is_black(parent)))
		return 0;
	if (node->rb_left && node->rb_left == node->rb_right)
		return 0;
	left = rb_black_height(node->rb_left, node, depth + 1);
	if (!left)
		return 0;
	right = rb_black_height(node->rb_right, node, depth + 1);
	if (left != right)
		return 0;
	return left + (rb_is_black(node) ? 1 : 0);
}

uint32_t rb_check(const struct rb_root *root)
{
	return rb_black_height(root->rb_node, NULL, 0);
}
