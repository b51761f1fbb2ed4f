/* SPDX-License-Identifier: MIT */
/*
 * btree.c - see btree.h.
 *
 *   1. entries     a node's three arrays, moved together
 *   2. summaries   what a parent knows of a child: its smallest start and its largest last, both exact
 *   3. insertion   a full node splits in two halves first; that inserts into the parent, and so on up
 *   4. removal     a node that has become too empty merges with a neighbour or evens out with it; and so on up
 *   5. iteration
 *
 * All leaves are at one depth. A node but the root has from node_min() to `fanout` entries, an inner root two or more.
 */
#include <emu/btree.h>

#include <inttypes.h>

/*
 * An entry is an interval (in a leaf) or a child with its summary. Starts come first and together: a search for a place
 * reads those and one pointer.
 */
struct btree_node {
	struct btree_node *parent; /* NULL: the root */
	uint16_t count, fanout;
	bool is_leaf;
	uint64_t words[]; /* starts, lasts, pointers: `fanout` of each */
};

static inline struct btree_node *btree_top(const struct btree_root *root)
{
	return atomic_load_explicit(&root->node, memory_order_relaxed);
}

static inline void btree_set_top(struct btree_root *root, struct btree_node *node)
{
	atomic_store_explicit(&root->node, node, memory_order_relaxed);
}

/*
 * Entries
 */

static inline uint64_t *node_start(struct btree_node *node, uint32_t at)
{
	return &node->words[at];
}

static inline uint64_t *node_last(struct btree_node *node, uint32_t at)
{
	return &node->words[node->fanout + at];
}

static inline uint64_t *node_word(struct btree_node *node, uint32_t at)
{
	return &node->words[2u * node->fanout + at];
}

static inline struct btree_item *node_item(struct btree_node *node, uint32_t at)
{
	return (struct btree_item *)(uintptr_t)*node_word(node, at);
}

static inline struct btree_node *node_child(struct btree_node *node, uint32_t at)
{
	return (struct btree_node *)(uintptr_t)*node_word(node, at);
}

static inline void node_set(struct btree_node *node, uint32_t at, uint64_t start, uint64_t last, const void *ptr)
{
	*node_start(node, at) = start;
	*node_last(node, at) = last;
	*node_word(node, at) = (uintptr_t)ptr;
}

/* Two children are never the same, nor two intervals. */
static inline uint32_t node_index(struct btree_node *node, const void *ptr)
{
	uint32_t at = 0;

	while (at < node->count && *node_word(node, at) != (uintptr_t)ptr)
		at++;
	EMU_ASSERT(at < node->count, "%p is not in its node", ptr);
	return at;
}

/* How many entries start at or before `start`. */
static inline uint32_t node_upper_bound(struct btree_node *node, uint64_t start)
{
	uint32_t at = 0;

	while (at < node->count && *node_start(node, at) <= start)
		at++;
	return at;
}

/* n entries from `first` of `from` on to `at` of `to`, which may be the same node. Counts stay as they are. */
static void entries_move(struct btree_node *to, uint32_t at, struct btree_node *from, uint32_t first, uint32_t n)
{
	bool upwards = to == from && at > first;

	for (uint32_t i = 0; i < n; i++) {
		/* Up by some places: the last one first, before it is overwritten. */
		uint32_t k = upwards ? n - 1 - i : i;

		*node_start(to, at + k) = *node_start(from, first + k);
		*node_last(to, at + k) = *node_last(from, first + k);
		*node_word(to, at + k) = *node_word(from, first + k);
	}
}

/* Tells n entries from `at` on that this is their node now. */
static void entries_adopt(struct btree_node *node, uint32_t at, uint32_t n)
{
	for (uint32_t i = at; i < at + n; i++) {
		if (node->is_leaf)
			node_item(node, i)->leaf = node;
		else
			node_child(node, i)->parent = node;
	}
}

static void entry_remove(struct btree_node *node, uint32_t at)
{
	entries_move(node, at, node, at + 1, node->count - at - 1u);
	node->count--;
}

static struct btree_node *node_alloc(const struct btree_root *root, bool is_leaf)
{
	struct btree_node *node = emu_alloc(root->node_bytes, emu_node_id());

	node->parent = NULL;
	node->count = 0;
	node->fanout = (uint16_t)((root->node_bytes - sizeof(*node)) / (3 * sizeof(node->words[0])));
	node->is_leaf = is_leaf;
	return node;
}

/*
 * Below that a node is too empty. A third, not a half: so that neither half of a fresh split, nor what a merge leaves
 * (at most node_merge_max()), is only one change away from the next merge or split.
 */
static inline uint32_t node_min(const struct btree_node *node)
{
	return node->fanout < 6u ? 2u : node->fanout / 3u;
}

static inline uint32_t node_merge_max(const struct btree_node *node)
{
	return node->fanout * 3u / 4u;
}

/*
 * Summaries
 */

/* Brings entry `at` of parent, which is node's, up to date. False: it was. */
static bool summary_update(struct btree_node *parent, uint32_t at, struct btree_node *node)
{
	uint64_t start = *node_start(node, 0), last = 0;

	for (uint32_t i = 0; i < node->count; i++)
		if (*node_last(node, i) > last)
			last = *node_last(node, i);
	if (*node_start(parent, at) == start && *node_last(parent, at) == last)
		return false;
	*node_start(parent, at) = start;
	*node_last(parent, at) = last;
	return true;
}

/* node has a new entry [start, last]: lets all above it know. Who knows of as much already has told those above. */
static void summary_widen(struct btree_node *node, uint64_t start, uint64_t last)
{
	struct btree_node *parent;

	for (; (parent = node->parent); node = parent) {
		uint32_t at = node_index(parent, node);

		if (*node_start(parent, at) <= start && *node_last(parent, at) >= last)
			return;
		if (*node_start(parent, at) > start)
			*node_start(parent, at) = start;
		if (*node_last(parent, at) < last)
			*node_last(parent, at) = last;
	}
}

/*
 * Insertion
 */

static void node_insert(struct btree_root *root, struct btree_node *node, uint32_t at, uint64_t start, uint64_t last,
			void *ptr);

/* The upper half of a full node moves to a new one, which is returned, to the right of it. */
static struct btree_node *node_split(struct btree_root *root, struct btree_node *node)
{
	struct btree_node *right = node_alloc(root, node->is_leaf), *parent = node->parent;
	uint32_t keep = node->count / 2u, at = 0;
	uint64_t last = 0;

	right->count = (uint16_t)(node->count - keep);
	entries_move(right, 0, node, keep, right->count);
	entries_adopt(right, 0, right->count);
	node->count = (uint16_t)keep;

	if (parent) {
		at = node_index(parent, node);
	} else {
		parent = node_alloc(root, false);
		parent->count = 1;
		node_set(parent, 0, 0, 0, node);
		node->parent = parent;
		btree_set_top(root, parent);
	}
	summary_update(parent, at, node);
	for (uint32_t i = 0; i < right->count; i++)
		if (*node_last(right, i) > last)
			last = *node_last(right, i);
	/* Those above knew of all this, or learn of it there: parent may be split, and they then look at it anew. */
	node_insert(root, parent, at + 1, *node_start(right, 0), last, right);
	return right;
}

/* Before entry `at` of node. */
static void node_insert(struct btree_root *root, struct btree_node *node, uint32_t at, uint64_t start, uint64_t last,
			void *ptr)
{
	if (node->count == node->fanout) {
		struct btree_node *right = node_split(root, node);

		if (at > node->count) {
			at -= node->count;
			node = right;
		}
	}
	entries_move(node, at + 1, node, at, node->count - at);
	node_set(node, at, start, last, ptr);
	node->count++;
	entries_adopt(node, at, 1);
	summary_widen(node, start, last);
}

void btree_insert(struct btree_item *item, struct btree_root *root)
{
	struct btree_node *node = btree_top(root);
	uint32_t at;

	EMU_ASSERT(item->start <= item->last, "interval [%" PRIu64 ", %" PRIu64 "]", item->start, item->last);
	emu_line_moved(&root->last_node);
	if (!node) {
		node = node_alloc(root, true);
		btree_set_top(root, node);
	}
	/* Into the last child that starts no later: behind all equal starts. */
	for (at = node_upper_bound(node, item->start); !node->is_leaf; at = node_upper_bound(node, item->start))
		node = node_child(node, at ? at - 1 : 0);
	node_insert(root, node, at, item->start, item->last, item);
}

void btree_insert_after(struct btree_item *item, struct btree_item *prev, struct btree_root *root)
{
	EMU_ASSERT(item->start == prev->start && item->start <= item->last,
		   "interval [%" PRIu64 ", %" PRIu64 "] after one from %" PRIu64, item->start, item->last, prev->start);
	emu_line_moved(&root->last_node);
	node_insert(root, prev->leaf, node_index(prev->leaf, prev) + 1, item->start, item->last, item);
}

/*
 * Removal
 */

/* Entry `at` of parent is too empty a node. It has a neighbour: parent has two entries or more. */
static void node_rebalance(struct btree_node *parent, uint32_t at)
{
	uint32_t l = at ? at - 1 : 0;
	struct btree_node *left = node_child(parent, l), *right = node_child(parent, l + 1);
	uint32_t total = (uint32_t)left->count + right->count, keep = total / 2, n;

	if (total <= node_merge_max(left)) {
		entries_move(left, left->count, right, 0, right->count);
		entries_adopt(left, left->count, right->count);
		left->count = (uint16_t)total;
		entry_remove(parent, l + 1);
		emu_free(right);
		summary_update(parent, l, left);
		return;
	}
	if (left->count < keep) {
		n = keep - left->count;
		entries_move(left, left->count, right, 0, n);
		entries_adopt(left, left->count, n);
		entries_move(right, 0, right, n, right->count - n);
	} else {
		n = left->count - keep;
		entries_move(right, n, right, 0, right->count);
		entries_move(right, 0, left, keep, n);
		entries_adopt(right, 0, n);
	}
	left->count = (uint16_t)keep;
	right->count = (uint16_t)(total - keep);
	summary_update(parent, l, left);
	summary_update(parent, l + 1, right);
}

void btree_remove(struct btree_item *item, struct btree_root *root)
{
	struct btree_node *node = item->leaf, *parent, *child;

	emu_line_moved(&root->last_node);
	entry_remove(node, node_index(node, item));
	for (; (parent = node->parent); node = parent) {
		uint32_t at = node_index(parent, node);

		if (node->count < node_min(node))
			node_rebalance(parent, at);
		else if (!summary_update(parent, at, node))
			return; /* nothing changes from here up */
	}
	if (node->count > (node->is_leaf ? 0 : 1))
		return;
	/* An empty leaf, or a root with one child. */
	child = node->is_leaf ? NULL : node_child(node, 0);
	if (child)
		child->parent = NULL;
	btree_set_top(root, child);
	emu_free(node);
}

/*
 * Iteration
 */

/* The first interval that overlaps what is looked for: from entry `at` of node on, below it and to the right. */
static struct btree_item *btree_search(struct btree_iter *iter, struct btree_node *node, uint32_t at)
{
	for (;;) {
		while (at < node->count && *node_last(node, at) < iter->start)
			at++;
		if (at == node->count) {
			struct btree_node *parent = node->parent;

			if (!parent)
				return NULL;
			at = node_index(parent, node) + 1;
			node = parent;
			continue;
		}
		/* All that follow start later still. */
		if (*node_start(node, at) > iter->last)
			return NULL;
		if (node->is_leaf) {
			iter->leaf = node;
			iter->at = at;
			return node_item(node, at);
		}
		node = node_child(node, at);
		at = 0;
	}
}

struct btree_item *btree_iter_first(struct btree_iter *iter, struct btree_root *root, uint64_t start, uint64_t last)
{
	struct btree_node *node = btree_top(root);

	iter->start = start;
	iter->last = last;
	return node ? btree_search(iter, node, 0) : NULL;
}

struct btree_item *btree_iter_next(struct btree_iter *iter)
{
	return btree_search(iter, iter->leaf, iter->at + 1);
}

/*
 * For tests
 */

static bool item_check(struct btree_node *leaf, uint32_t at)
{
	const struct btree_item *item = node_item(leaf, at);

	return item->leaf == leaf && item->start == *node_start(leaf, at) && item->last == *node_last(leaf, at) &&
	       item->start <= item->last;
}

/* Height of the subtree at node, or 0 if something in it is wrong. */
static uint32_t node_check(struct btree_node *node)
{
	uint32_t height = 0;

	if (!node->count || node->count > node->fanout || (node->parent && node->count < node_min(node)) ||
	    (!node->is_leaf && node->count < 2))
		return 0;
	for (uint32_t i = 0; i < node->count; i++) {
		struct btree_node *child;
		uint32_t below;

		if (i && *node_start(node, i) < *node_start(node, i - 1))
			return 0;
		if (node->is_leaf) {
			if (!item_check(node, i))
				return 0;
			continue;
		}
		child = node_child(node, i);
		below = node_check(child);
		if (!below || child->parent != node || (height && below != height) || summary_update(node, i, child))
			return 0;
		/* Order across the border: no start in this child is above the next one's first. */
		if (i + 1u < node->count && *node_start(child, child->count - 1u) > *node_start(node, i + 1))
			return 0;
		height = below;
	}
	return height + 1;
}

bool btree_check(const struct btree_root *root, uint32_t *height)
{
	struct btree_node *node = btree_top(root);
	uint32_t levels = node ? node_check(node) : 0;

	if (height)
		*height = levels;
	return !node || (!node->parent && levels);
}
