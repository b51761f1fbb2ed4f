/* SPDX-License-Identifier: MIT */
/*
 * rbtree.h - an intrusive red-black tree, augmented where wanted. The caller's lock guards all of it.
 *
 * To insert, the caller walks down from root->rb_node itself (it knows the order), then calls rb_link_node() and
 * rb_insert_color() or, for an augmented tree, rb_insert_augmented(). Before rb_insert_augmented() the caller must have
 * brought the augmented values on the path from the root to the new node up to date (top-down, as it walked).
 * rb_erase_augmented() brings them up to date itself.
 */
#ifndef EMU_RBTREE_H
#define EMU_RBTREE_H

#include <emu/machine.h>

struct rb_node {
	uintptr_t rb_parent_color; /* parent's address; bit 0 set = black */
	struct rb_node *rb_right;
	struct rb_node *rb_left;
};

struct rb_root {
	struct rb_node *rb_node;
};

/*
 * Keeps a value of each subtree (the largest end, the largest gap) in its top node.
 *   propagate  recompute from `node` up to but not including `stop` (NULL: through the root); may end early where a
 *              node's value did not change
 *   copy       new takes old's place: give it old's value
 *   rotate     new has become old's parent: new takes old's value, old is recomputed
 */
struct rb_augment_callbacks {
	void (*propagate)(struct rb_node *node, struct rb_node *stop);
	void (*copy)(struct rb_node *old, struct rb_node *new_node);
	void (*rotate)(struct rb_node *old, struct rb_node *new_node);
};

#define rb_entry(ptr, type, member) container_of(ptr, type, member)
#define rb_parent(n) ((struct rb_node *)((n)->rb_parent_color & ~(uintptr_t)1))

static inline void rb_link_node(struct rb_node *node, struct rb_node *parent, struct rb_node **link)
{
	node->rb_parent_color = (uintptr_t)parent; /* red */
	node->rb_left = node->rb_right = NULL;
	*link = node;
}

EMU_EXPORT void rb_insert_color(struct rb_node *node, struct rb_root *root);
EMU_EXPORT void rb_erase(struct rb_node *node, struct rb_root *root);
EMU_EXPORT void rb_insert_augmented(struct rb_node *node, struct rb_root *root, const struct rb_augment_callbacks *aug);
EMU_EXPORT void rb_erase_augmented(struct rb_node *node, struct rb_root *root, const struct rb_augment_callbacks *aug);

/* In order; NULL at the end. */
EMU_EXPORT struct rb_node *rb_first(const struct rb_root *root);
EMU_EXPORT struct rb_node *rb_last(const struct rb_root *root);
EMU_EXPORT struct rb_node *rb_next(const struct rb_node *node);
EMU_EXPORT struct rb_node *rb_prev(const struct rb_node *node);

/* For tests: black height if all red-black rules and parent links hold, 0 if one does not. An empty tree: 1. */
EMU_EXPORT uint32_t rb_check(const struct rb_root *root);

#endif
