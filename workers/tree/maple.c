/* SPDX-License-Identifier: MIT */
/*
 * maple.c - see maple.h.
 *
 *   1. nodes     what is in them, and what they are made of: items
 *   2. walking   one descent; a path for the writer
 *   3. storing   the items of the leaves that change, as new leaves; then their parents, level by level, until a level
 *                where one pointer replaces one
 *   4. asking    neighbours, gaps
 *
 * All leaves are at one depth. Of two neighbouring ranges in a leaf one has an entry, and no leaf but the last ends with a
 * range that has none: so a gap never goes over the border of two leaves, and is found in one.
 */
#include <emu/maple.h>

#include <errno.h>

#define LEAF_SLOTS 16u
#define INNER_SLOTS 10u
#define LEAF_MIN 5u
#define INNER_MIN 3u
#define DEPTH_MAX 24u
/* Two cut leaves with a range between, and one more for each reason to take a neighbour in. */
#define ITEMS_MAX (5 * LEAF_SLOTS)

struct maple_node {
	uint32_t count;
	uint32_t is_leaf;
	union {
		/* last[i] is the last point of slot i. That of the last slot is known from the parent. */
		struct {
			uint64_t last[LEAF_SLOTS - 1];
			void *_Atomic slot[LEAF_SLOTS];
		} leaf;
		struct {
			uint64_t last[INNER_SLOTS - 1];
			void *_Atomic slot[INNER_SLOTS];
			uint64_t gap[INNER_SLOTS]; /* the writer's alone: the longest range without entry below */
		} inner;
	};
};

_Static_assert(sizeof(struct maple_node) == 256, "a node has four lines");

/* What goes into a slot. The first point is the one after the item before it. */
struct item {
	uint64_t last;
	void *ptr;
	uint64_t gap;
};

/* A level's part that is built anew: all that is in [first, last]. */
struct part {
	uint64_t first, last;
	uint32_t nr;
	struct item items[ITEMS_MAX];
};

static inline uint64_t *lasts(struct maple_node *node)
{
	return node->is_leaf ? node->leaf.last : node->inner.last;
}

static inline void *_Atomic *slots(struct maple_node *node)
{
	return node->is_leaf ? node->leaf.slot : node->inner.slot;
}

/* Acquire: pairs with publish(). The writer needs no order, but this costs it nothing. */
static inline void *slot_load(struct maple_node *node, uint32_t at)
{
	return atomic_load_explicit(&slots(node)[at], memory_order_acquire);
}

static inline uint64_t slot_last(struct maple_node *node, uint32_t at, uint64_t node_last)
{
	return at + 1 < node->count ? lasts(node)[at] : node_last;
}

static inline uint32_t slot_of(struct maple_node *node, uint64_t point)
{
	const uint64_t *last = lasts(node);
	uint32_t at = 0;

	while (at + 1 < node->count && point > last[at])
		at++;
	return at;
}

static struct maple_node *node_of_items(const struct item *items, uint32_t nr, bool is_leaf)
{
	struct maple_node *node = emu_alloc(sizeof(*node), emu_node_id());

	node->count = nr;
	node->is_leaf = is_leaf;
	for (uint32_t i = 0; i < nr; i++) {
		/* Nobody else knows the node yet. */
		atomic_store_explicit(&slots(node)[i], items[i].ptr, memory_order_relaxed);
		if (i + 1 < nr)
			lasts(node)[i] = items[i].last;
		if (!is_leaf)
			node->inner.gap[i] = items[i].gap;
	}
	return node;
}

static uint64_t items_gap(const struct item *items, uint32_t nr, uint64_t first, bool is_leaf)
{
	uint64_t gap = 0;

	for (uint32_t i = 0; i < nr; i++) {
		uint64_t length = is_leaf ? (items[i].ptr ? 0 : items[i].last - first + 1) : items[i].gap;

		/* All points there are do not fit into 64 bits. */
		if (is_leaf && !items[i].ptr && !length)
			length = UINT64_MAX;
		gap = length > gap ? length : gap;
		first = items[i].last + 1;
	}
	return gap;
}

/*
 * Walking
 */

void *maple_load(struct maple_root *root, uint64_t at)
{
	struct maple_node *node = rcu_dereference(&root->node);

	while (node) {
		void *ptr = slot_load(node, slot_of(node, at));

		if (node->is_leaf)
			return ptr;
		node = ptr;
	}
	return NULL;
}

/* A node on the way to a point, the slot that was taken, and what the node covers. */
struct step {
	struct maple_node *node;
	uint32_t slot;
	uint64_t first, last;
};

/* The way to a point, from the root, level 0, on; returns the leaf's level. The tree is not empty. */
static uint32_t walk(struct maple_root *root, uint64_t point, struct step path[DEPTH_MAX])
{
	struct step *at = path;

	*at = (struct step){ atomic_load_explicit(&root->node, memory_order_relaxed), 0, 0, UINT64_MAX };
	for (;;) {
		struct maple_node *node = at->node;

		at->slot = slot_of(node, point);
		if (node->is_leaf)
			return (uint32_t)(at - path);
		EMU_ASSERT(at + 1 < path + DEPTH_MAX, "a tree of more than %u levels", DEPTH_MAX);
		at[1].node = slot_load(node, at->slot);
		at[1].first = at->slot ? lasts(node)[at->slot - 1] + 1 : at->first;
		at[1].last = slot_last(node, at->slot, at->last);
		at++;
	}
}

/*
 * Storing
 */

static void part_add(struct part *part, uint64_t last, void *ptr, uint64_t gap, bool is_leaf)
{
	if (is_leaf && part->nr && part->items[part->nr - 1].ptr == ptr) {
		part->items[part->nr - 1].last = last;
		return;
	}
	EMU_ASSERT(part->nr < ITEMS_MAX, "%u items", part->nr);
	part->items[part->nr++] = (struct item){ last, ptr, gap };
}

/* The slots [from, to) of a node. */
static void part_add_slots(struct part *part, const struct step *at, uint32_t from, uint32_t to)
{
	for (uint32_t i = from; i < to; i++)
		part_add(part, slot_last(at->node, i, at->last), slot_load(at->node, i),
			 at->node->is_leaf ? 0 : at->node->inner.gap[i], at->node->is_leaf);
}

/* A neighbour joins, in front of the rest. */
static void part_prepend(struct part *part, const struct step *at)
{
	struct part both = { .first = at->first, .last = part->last };

	part_add_slots(&both, at, 0, at->node->count);
	for (uint32_t i = 0; i < part->nr; i++)
		part_add(&both, part->items[i].last, part->items[i].ptr, part->items[i].gap, at->node->is_leaf);
	*part = both;
}

/*
 * Takes neighbours in until no leaf ends with a gap that goes on, and no node is too small. `left` and `right` are the
 * ways to the first and the last node of the part at this level, and change with it.
 */
static void part_complete(struct maple_root *root, struct part *part, uint32_t level, bool is_leaf, struct step *left,
			  struct step *right)
{
	uint32_t least = is_leaf ? LEAF_MIN : INNER_MIN;

	for (;;) {
		bool open = is_leaf && part->last != UINT64_MAX && !part->items[part->nr - 1].ptr;

		if (!open && part->nr >= least)
			return;
		if (part->last != UINT64_MAX) {
			walk(root, part->last + 1, right);
			part->last = right[level].last;
			part_add_slots(part, &right[level], 0, right[level].node->count);
		} else if (part->first) {
			walk(root, part->first - 1, left);
			part_prepend(part, &left[level]);
		} else {
			return;
		}
	}
}

/* Makes nodes of a part: at most `capacity` items each, evenly. The items of the level above take its place. */
static void part_build(struct part *part, bool is_leaf)
{
	uint32_t capacity = is_leaf ? LEAF_SLOTS : INNER_SLOTS, nr_nodes, left = part->nr, from = 0, n = 0;
	uint64_t first = part->first;

	/* So many that each of them can leave an item to the next one. */
	nr_nodes = left <= capacity ? 1 : (left - 1 + capacity - 2) / (capacity - 1);
	for (; nr_nodes; nr_nodes--) {
		uint32_t nr = (left + nr_nodes - 1) / nr_nodes;
		struct item made;

		if (is_leaf && nr_nodes > 1 && !part->items[from + nr - 1].ptr)
			nr--;
		made.last = part->items[from + nr - 1].last;
		made.gap = items_gap(&part->items[from], nr, first, is_leaf);
		made.ptr = node_of_items(&part->items[from], nr, is_leaf);
		from += nr;
		left -= nr;
		first = made.last + 1;
		/* Nodes are fewer than items: what is overwritten has been used. */
		part->items[n++] = made;
	}
	part->nr = n;
}

/*
 * The nodes of a level from the way `left` to the way `right` will be on no way any more. They are still found until the
 * new ones are published, but no grace period can end before this CPU is preempted or its system call ends.
 */
static void free_level(struct maple_root *root, uint32_t level, const struct step *left, const struct step *right)
{
	struct step path[DEPTH_MAX];
	struct step at = left[level];

	for (;;) {
		emu_free_rcu(at.node);
		if (at.node == right[level].node)
			return;
		walk(root, at.last + 1, path);
		at = path[level];
	}
}

/* A child's longest gap is another now: in its parent, and on. */
static void gap_propagate(struct step *path, uint32_t level, uint64_t gap)
{
	for (;;) {
		struct maple_node *node = path[level].node;

		if (node->inner.gap[path[level].slot] == gap)
			return;
		node->inner.gap[path[level].slot] = gap;
		for (uint32_t i = 0; i < node->count; i++)
			gap = node->inner.gap[i] > gap ? node->inner.gap[i] : gap;
		if (!level--)
			return;
	}
}

/* With release: whoever finds the new nodes finds them complete. */
static void publish(void *_Atomic *at, void *ptr)
{
	atomic_store_explicit(at, ptr, memory_order_release);
}

static void set_root(struct maple_root *root, struct maple_node *node)
{
	atomic_store_explicit(&root->node, node, memory_order_release);
}

/* The items of the leaves around [first, last], which is an item of its own now. */
static void leaf_part(struct maple_root *root, struct part *part, uint64_t first, uint64_t last, void *entry,
		      struct step *left, struct step *right, uint32_t *level)
{
	uint64_t end;
	uint32_t at;

	*level = walk(root, first, left);
	walk(root, last, right);
	left += *level;
	right += *level;
	part->first = left->first;
	part->last = right->last;
	part->nr = 0;
	part_add_slots(part, left, 0, left->slot);
	at = left->slot;
	if (first != (at ? lasts(left->node)[at - 1] + 1 : left->first))
		part_add(part, first - 1, slot_load(left->node, at), 0, true);
	part_add(part, last, entry, 0, true);
	at = right->slot;
	end = slot_last(right->node, at, right->last);
	if (end != last)
		part_add(part, end, slot_load(right->node, at), 0, true);
	part_add_slots(part, right, at + 1, right->node->count);
}

static void store_first(struct maple_root *root, uint64_t first, uint64_t last, void *entry)
{
	struct part part = { .last = UINT64_MAX };

	if (!entry)
		return;
	if (first)
		part_add(&part, first - 1, NULL, 0, true);
	part_add(&part, last, entry, 0, true);
	if (last != UINT64_MAX)
		part_add(&part, UINT64_MAX, NULL, 0, true);
	set_root(root, node_of_items(part.items, part.nr, true));
}

static void store(struct maple_root *root, uint64_t first, uint64_t last, void *entry)
{
	struct step left[DEPTH_MAX], right[DEPTH_MAX];
	struct maple_node *top = atomic_load_explicit(&root->node, memory_order_relaxed);
	struct part part, above;
	bool is_leaf = true;
	uint32_t level;

	EMU_ASSERT(first <= last, "points %#llx to %#llx", (unsigned long long)first, (unsigned long long)last);
	if (!top) {
		store_first(root, first, last, entry);
		return;
	}
	leaf_part(root, &part, first, last, entry, left, right, &level);
	for (;; level--, is_leaf = false) {
		struct step *up;

		part_complete(root, &part, level, is_leaf, left, right);
		if (part.nr == 1 && !part.first && part.last == UINT64_MAX && (!is_leaf || !part.items[0].ptr)) {
			/* Nothing but a gap; or an only child, which becomes the root. */
			do
				free_level(root, level, left, right);
			while (level--);
			break;
		}
		free_level(root, level, left, right);
		part_build(&part, is_leaf);
		if (!level)
			break;
		up = &left[level - 1];
		if (part.nr == 1 && up->node == right[level - 1].node && up->slot == right[level - 1].slot) {
			publish(&slots(up->node)[up->slot], part.items[0].ptr);
			gap_propagate(left, level - 1, part.items[0].gap);
			return;
		}
		/* One level up: the new nodes between those that stay. */
		above = (struct part){ .first = up->first, .last = right[level - 1].last };
		part_add_slots(&above, up, 0, up->slot);
		for (uint32_t i = 0; i < part.nr; i++)
			part_add(&above, part.items[i].last, part.items[i].ptr, part.items[i].gap, false);
		part_add_slots(&above, &right[level - 1], right[level - 1].slot + 1, right[level - 1].node->count);
		part = above;
	}
	while (part.nr > 1)
		part_build(&part, false);
	set_root(root, part.items[0].ptr);
}

void maple_store(struct maple_root *root, uint64_t first, uint64_t last, void *entry)
{
	/* A preempted task is in no section: a grace period might end while what free_level() gave away is still found. */
	emu_preempt_disable();
	store(root, first, last, entry);
	emu_preempt_enable();
}

/*
 * Asking
 */

void *maple_find(struct maple_root *root, uint64_t at)
{
	struct step path[DEPTH_MAX], *leaf;
	void *entry;

	if (maple_empty(root))
		return NULL;
	leaf = &path[walk(root, at, path)];
	entry = slot_load(leaf->node, leaf->slot);
	/* After a gap comes an entry, in this leaf if anywhere. */
	if (!entry && leaf->slot + 1 < leaf->node->count)
		entry = slot_load(leaf->node, leaf->slot + 1);
	return entry;
}

void *maple_find_before(struct maple_root *root, uint64_t at)
{
	struct step path[DEPTH_MAX], *leaf;

	if (maple_empty(root))
		return NULL;
	leaf = &path[walk(root, at, path)];
	if (leaf->slot) {
		void *entry = slot_load(leaf->node, leaf->slot - 1);

		if (entry)
			return entry;
		if (leaf->slot > 1)
			return slot_load(leaf->node, leaf->slot - 2);
	}
	if (!leaf->first)
		return NULL;
	/* The leaf before ends with an entry. */
	leaf = &path[walk(root, leaf->first - 1, path)];
	return slot_load(leaf->node, leaf->slot);
}

static int64_t highest_gap(struct maple_node *node, uint64_t node_first, uint64_t node_last, uint64_t len, uint64_t low,
			   uint64_t high)
{
	for (uint32_t i = slot_of(node, high - 1) + 1; i--;) {
		uint64_t first = i ? lasts(node)[i - 1] + 1 : node_first, last = slot_last(node, i, node_last);

		if (last < low)
			break;
		if (node->is_leaf) {
			uint64_t from = first > low ? first : low, to = last < high ? last + 1 : high;

			if (!slot_load(node, i) && to > from && to - from >= len)
				return (int64_t)(to - len);
		} else if (node->inner.gap[i] >= len) {
			int64_t found = highest_gap(slot_load(node, i), first, last, len, low, high);

			if (found >= 0)
				return found;
		}
	}
	return -ENOMEM;
}

int64_t maple_free_area(struct maple_root *root, uint64_t len, uint64_t low, uint64_t high)
{
	struct maple_node *node = atomic_load_explicit(&root->node, memory_order_relaxed);

	if (high - low < len)
		return -ENOMEM;
	return node ? highest_gap(node, 0, UINT64_MAX, len, low, high) : (int64_t)(high - len);
}

/*
 * Checking
 */

static bool check_node(struct maple_node *node, uint64_t first, uint64_t last, uint32_t levels_left, uint64_t *gap)
{
	struct item items[LEAF_SLOTS];
	bool whole = !first && last == UINT64_MAX;
	uint32_t least = whole ? (node->is_leaf ? 1 : 2) : node->is_leaf ? LEAF_MIN : INNER_MIN;
	uint64_t at = first;

	if (node->is_leaf != (levels_left == 1) || node->count < least ||
	    node->count > (node->is_leaf ? LEAF_SLOTS : INNER_SLOTS))
		return false;
	for (uint32_t i = 0; i < node->count; i++) {
		items[i] = (struct item){ slot_last(node, i, last), slot_load(node, i),
					  node->is_leaf ? 0 : node->inner.gap[i] };
		if (items[i].last < at || items[i].last > last)
			return false;
		if (node->is_leaf) {
			if (i && items[i].ptr == items[i - 1].ptr)
				return false;
		} else {
			uint64_t below;

			if (!items[i].ptr || !check_node(items[i].ptr, at, items[i].last, levels_left - 1, &below) ||
			    below != items[i].gap)
				return false;
		}
		at = items[i].last + 1;
	}
	if (node->is_leaf && last != UINT64_MAX && !items[node->count - 1].ptr)
		return false;
	*gap = items_gap(items, node->count, first, node->is_leaf);
	return true;
}

bool maple_check(const struct maple_root *root, uint32_t *height)
{
	struct maple_node *top = atomic_load_explicit(&root->node, memory_order_relaxed), *node;
	uint32_t levels = 0;
	uint64_t gap;

	for (node = top; node; node = node->is_leaf ? NULL : slot_load(node, 0))
		levels++;
	if (height)
		*height = levels;
	return !top || check_node(top, 0, UINT64_MAX, levels, &gap);
}
