/* SPDX-License-Identifier: MIT */
/*
 * test_tree.c - the interval tree and the red-black tree against lists that are searched from end to end.
 *
 * A stand-alone program: all short sequences of operations, then long random ones. The argument is the
 * seed of the random ones; without it the clock gives one. It is printed first.
 */
#include <emu/interval_tree.h>

#include <inttypes.h>
#include <setjmp.h>
#include <string.h>
#include <time.h>

#include "test.h"

/* What the trees need of the machine. */

static jmp_buf *bug_expected; /* NULL: a bug is a failure of the test */
static uint32_t lines_moved;
static uint32_t *line_moved_last;

bool emu_numa_penalty;

void emu_line_moved_slow(uint32_t *last)
{
	lines_moved++;
	line_moved_last = last;
}

void emu_bug(const char *file, int line, const char *expr, const char *fmt, ...)
{
	(void)fmt;
	if (bug_expected)
		longjmp(*bug_expected, 1);
	test_assert_failed(file, line, expr, " in the tree");
}

static uint64_t seed, random_state;

/* xorshift64* */
static uint64_t next_random(void)
{
	random_state ^= random_state >> 12;
	random_state ^= random_state << 25;
	random_state ^= random_state >> 27;
	return random_state * UINT64_C(2685821657736338717);
}

/* In 0..n-1 */
static uint32_t random_below(uint32_t n)
{
	return (uint32_t)((next_random() >> 32) * n >> 32);
}

/* The interval tree and, beside it, its nodes in the order in which they must be found. */

#define NODES_MAX 2000u

struct interval_model {
	struct interval_tree_root root;
	uint32_t n;
	uint16_t order[NODES_MAX]; /* indexes in nodes[]; the unused ones behind the first n */
	struct interval_tree_node nodes[NODES_MAX];
};

static struct interval_model model;

static void model_reset(uint32_t nodes)
{
	uint32_t i;

	memset(&model, 0, sizeof(model));
	for (i = 0; i < nodes; i++)
		model.order[i] = (uint16_t)i;
}

static struct interval_tree_node *model_at(uint32_t at)
{
	return &model.nodes[model.order[at]];
}

/* Gives the first unused node its place in the order. */
static struct interval_tree_node *model_add(uint32_t at, uint64_t start, uint64_t last)
{
	uint16_t index = model.order[model.n];
	struct interval_tree_node *node = &model.nodes[index];

	memmove(&model.order[at + 1], &model.order[at], (model.n - at) * sizeof(model.order[0]));
	model.order[at] = index;
	model.n++;
	/* Nothing that the node was before may matter. */
	memset(node, 0xa5, sizeof(*node));
	node->start = start;
	node->last = last;
	return node;
}

static void model_insert(uint64_t start, uint64_t last)
{
	uint32_t at = model.n;

	while (at && model_at(at - 1)->start > start)
		at--;
	interval_tree_insert(model_add(at, start, last), &model.root);
}

static void model_insert_after(uint32_t prev_at, uint64_t last)
{
	struct interval_tree_node *prev = model_at(prev_at);

	interval_tree_insert_after(model_add(prev_at + 1, prev->start, last), prev, &model.root);
}

static void model_remove(uint32_t at)
{
	uint16_t index = model.order[at];

	interval_tree_remove(&model.nodes[index], &model.root);
	model.n--;
	memmove(&model.order[at], &model.order[at + 1], (model.n - at) * sizeof(model.order[0]));
	model.order[model.n] = index;
}

/* The operations since the tree was empty, for messages. */
struct op {
	char kind; /* i: insert, a: insert_after the one at `at`, r: remove the one at `at` */
	uint32_t at;
	uint64_t start, last;
};

static struct op ops[16];
static uint32_t nr_ops; /* 0: a random sequence, which the seed tells */

static const char *describe(void)
{
	static char text[1024];
	size_t used = 0;
	uint32_t i;

	snprintf(text, sizeof(text), "seed %" PRIu64, seed);
	for (i = 0; i < nr_ops; i++)
		used += (size_t)snprintf(text + used, sizeof(text) - used,
					 "%c at %u [%" PRIu64 ",%" PRIu64 "]; ", ops[i].kind, ops[i].at,
					 ops[i].start, ops[i].last);
	return text;
}

static void check_query(uint64_t start, uint64_t last)
{
	struct interval_tree_node *found = interval_tree_iter_first(&model.root, start, last);
	uint32_t i;

	for (i = 0; i < model.n; i++) {
		struct interval_tree_node *expected = model_at(i);

		if (expected->start > last || expected->last < start)
			continue;
		ASSERT(found == expected, "query [%" PRIu64 ",%" PRIu64 "], position %u: %s", start, last, i,
		       describe());
		found = interval_tree_iter_next(found, start, last);
	}
	ASSERT(!found, "query [%" PRIu64 ",%" PRIu64 "] finds too much: %s", start, last, describe());
}

static void check_order(void)
{
	struct rb_node *rb = rb_first(&model.root.rb);
	uint32_t i;

	ASSERT(interval_tree_check(&model.root), "%s", describe());
	ASSERT(interval_tree_empty(&model.root) == !model.n, "%s", describe());
	for (i = 0; i < model.n; i++, rb = rb_next(rb))
		ASSERT(rb == &model_at(i)->rb, "position %u: %s", i, describe());
	ASSERT(!rb, "%s", describe());
}

/* All sequences of at most `length` operations on at most `intervals` intervals in 0..points-1. */

struct bounds {
	uint32_t points, intervals, length;
};

static uint64_t sequences;

static void all_sequences(const struct bounds *bounds, uint32_t length);

static void after_op(const struct bounds *bounds, uint32_t length, char kind, uint32_t at, uint64_t start,
		     uint64_t last)
{
	uint64_t from, to;

	ops[length] = (struct op){ .kind = kind, .at = at, .start = start, .last = last };
	nr_ops = length + 1;
	sequences++;
	check_order();
	for (from = 0; from <= bounds->points; from++)
		for (to = from; to <= bounds->points; to++)
			check_query(from, to);
	all_sequences(bounds, length + 1);
}

/* The nodes never move, so that the bytes of the model are the tree: a copy of them brings it back. */
static void all_sequences(const struct bounds *bounds, uint32_t length)
{
	struct interval_tree_node nodes[8];
	struct interval_tree_root root = model.root;
	uint16_t order[8];
	uint32_t n = model.n, at;
	uint64_t start, last;

	if (length == bounds->length)
		return;
	memcpy(nodes, model.nodes, sizeof(nodes));
	memcpy(order, model.order, sizeof(order));

#define BACK()                                             \
	do {                                               \
		memcpy(model.nodes, nodes, sizeof(nodes)); \
		memcpy(model.order, order, sizeof(order)); \
		model.root = root;                         \
		model.n = n;                               \
	} while (0)

	for (at = 0; at < n; at++) {
		start = model_at(at)->start;
		last = model_at(at)->last;
		model_remove(at);
		after_op(bounds, length, 'r', at, start, last);
		BACK();
	}
	if (n == bounds->intervals)
		return;
	for (start = 0; start < bounds->points; start++) {
		for (last = start; last < bounds->points; last++) {
			model_insert(start, last);
			after_op(bounds, length, 'i', 0, start, last);
			BACK();
		}
	}
	for (at = 0; at < n; at++) {
		start = model_at(at)->start;
		for (last = start; last < bounds->points; last++) {
			model_insert_after(at, last);
			after_op(bounds, length, 'a', at, start, last);
			BACK();
		}
	}
#undef BACK
}

static void interval_tree_all_short_sequences(void)
{
	/* Fewer points leave time for more operations: with one, only the order among equals is left. */
	static const struct bounds bounds[] = {
		{ .points = 4, .intervals = 6, .length = 5 },
		{ .points = 3, .intervals = 6, .length = 5 },
		{ .points = 2, .intervals = 6, .length = 7 },
		{ .points = 1, .intervals = 7, .length = 7 },
	};
	uint32_t i;

	sequences = 0;
	for (i = 0; i < ARRAY_SIZE(bounds); i++) {
		model_reset(bounds[i].intervals);
		all_sequences(&bounds[i], 0);
	}
	nr_ops = 0;
	printf("%" PRIu64 " sequences, ", sequences);
}

/* Intervals as they come in files, few and many starts, and at the end of the range. */
static void random_interval(uint32_t kind, uint64_t *start, uint64_t *last)
{
	static const uint64_t libc[][2] = {
		{ 0, 37 }, { 38, 395 }, { 396, 481 }, { 482, 485 }, { 486, 487 },
	};
	uint32_t i;

	switch (kind) {
	case 0:
		i = random_below(ARRAY_SIZE(libc));
		*start = libc[i][0];
		*last = libc[i][1];
		break;
	case 1:
		*start = random_below(8);
		*last = *start + random_below(8);
		break;
	case 2:
		*start = next_random() >> 40;
		*last = *start + (next_random() >> (40 + random_below(20)));
		break;
	default:
		*last = UINT64_MAX - random_below(100);
		*start = *last - random_below(100);
		break;
	}
}

static void interval_tree_random(void)
{
	uint32_t kind, i;

	for (kind = 0; kind < 4; kind++) {
		model_reset(NODES_MAX);
		/* Grows to 2,000, stays about there, shrinks to nothing. */
		for (i = 0; i < 12000 || model.n; i++) {
			uint32_t chance = random_below(100);
			uint32_t insert_below = i < 5000 ? 80 : i < 10000 ? 50 : 20;
			uint64_t start, last, unused;

			random_interval(kind, &start, &last);
			if (model.n == NODES_MAX || chance >= insert_below) {
				if (model.n)
					model_remove(random_below(model.n));
			} else if (model.n && chance % 4 == 0) {
				uint32_t at = random_below(model.n);
				uint64_t room = UINT64_MAX - model_at(at)->start;

				model_insert_after(at, model_at(at)->start + (last < room ? last : room));
			} else {
				model_insert(start, last);
			}
			random_interval(kind, &start, &last);
			check_query(start, last);
			if (i % 64 == 0 || model.n < 16) {
				check_order();
				random_interval(kind, &unused, &last);
				check_query(0, start);
				check_query(last, UINT64_MAX);
				check_query(0, UINT64_MAX);
			}
		}
		ASSERT(interval_tree_empty(&model.root), "%s", describe());
	}
}

static void interval_tree_range_ends(void)
{
	model_reset(4);
	model_insert(0, UINT64_MAX);
	model_insert(UINT64_MAX, UINT64_MAX);
	model_insert(0, 0);
	model_insert_after(0, 0);
	check_order();
	check_query(0, 0);
	check_query(1, UINT64_MAX - 1);
	check_query(UINT64_MAX, UINT64_MAX);
	check_query(0, UINT64_MAX);
}

static void interval_tree_tells_the_machine(void)
{
	model_reset(2);
	emu_numa_penalty = true;
	lines_moved = 0;
	model_insert(1, 2);
	ASSERT(lines_moved == 1, "insert: %u lines", lines_moved);
	model_insert_after(0, 3);
	ASSERT(lines_moved == 2, "insert_after: %u lines", lines_moved);
	model_remove(0);
	ASSERT(lines_moved == 3, "remove: %u lines", lines_moved);
	ASSERT(line_moved_last == &model.root.last_node);
	emu_numa_penalty = false;
	model_remove(0);
	ASSERT(lines_moved == 3, "the penalty is off: %u lines", lines_moved);
}

static void interval_tree_refuses_wrong_arguments(void)
{
	static struct interval_tree_node prev, node;
	static struct interval_tree_root root;
	static volatile uint32_t bugs;
	jmp_buf back;

	prev.start = prev.last = 5;
	interval_tree_insert(&prev, &root);
	bug_expected = &back;
	if (setjmp(back)) {
		bugs++;
	} else {
		node.start = 2;
		node.last = 1;
		interval_tree_insert(&node, &root);
	}
	if (setjmp(back)) {
		bugs++;
	} else {
		node.start = 4;
		node.last = 6;
		interval_tree_insert_after(&node, &prev, &root);
	}
	if (setjmp(back)) {
		bugs++;
	} else {
		node.start = 5;
		node.last = 4;
		interval_tree_insert_after(&node, &prev, &root);
	}
	bug_expected = NULL;
	ASSERT(bugs == 3, "%u of 3 found", bugs);
	ASSERT(interval_tree_check(&root));
	ASSERT(root.rb.rb_node == &prev.rb && !prev.rb.rb_left && !prev.rb.rb_right);
}

/* The red-black tree by itself, plain, and augmented with a sum, which changes at every step. */

struct item {
	struct rb_node rb;
	uint32_t key;
	uint64_t weight, sum;
};

static struct item items[NODES_MAX];
static struct item *sorted[NODES_MAX]; /* those in the tree, in order; equal keys as they came */
static uint32_t nr_sorted;
static struct rb_root items_root;
static bool augmented;

static struct item *item_of(const struct rb_node *rb)
{
	return rb_entry(rb, struct item, rb);
}

static uint64_t item_sum(const struct item *item)
{
	return item->weight + (item->rb.rb_left ? item_of(item->rb.rb_left)->sum : 0) +
	       (item->rb.rb_right ? item_of(item->rb.rb_right)->sum : 0);
}

static void sum_propagate(struct rb_node *rb, struct rb_node *stop)
{
	for (; rb != stop; rb = rb_parent(rb))
		item_of(rb)->sum = item_sum(item_of(rb));
}

static void sum_copy(struct rb_node *old, struct rb_node *new_node)
{
	item_of(new_node)->sum = item_of(old)->sum;
}

static void sum_rotate(struct rb_node *old, struct rb_node *new_node)
{
	item_of(new_node)->sum = item_of(old)->sum;
	item_of(old)->sum = item_sum(item_of(old));
}

static const struct rb_augment_callbacks sum_augment = {
	.propagate = sum_propagate,
	.copy = sum_copy,
	.rotate = sum_rotate,
};

static void item_insert(struct item *item)
{
	struct rb_node **link = &items_root.rb_node, *parent = NULL;
	uint32_t at;

	while (*link) {
		parent = *link;
		item_of(parent)->sum += item->weight;
		link = item->key < item_of(parent)->key ? &parent->rb_left : &parent->rb_right;
	}
	item->sum = item->weight;
	rb_link_node(&item->rb, parent, link);
	if (augmented)
		rb_insert_augmented(&item->rb, &items_root, &sum_augment);
	else
		rb_insert_color(&item->rb, &items_root);

	for (at = nr_sorted; at && sorted[at - 1]->key > item->key; at--)
		sorted[at] = sorted[at - 1];
	sorted[at] = item;
	nr_sorted++;
}

static struct item *item_erase(uint32_t at)
{
	struct item *item = sorted[at];

	if (augmented)
		rb_erase_augmented(&item->rb, &items_root, &sum_augment);
	else
		rb_erase(&item->rb, &items_root);
	nr_sorted--;
	memmove(&sorted[at], &sorted[at + 1], (nr_sorted - at) * sizeof(sorted[0]));
	return item;
}

static void check_items(void)
{
	struct rb_node *forward = rb_first(&items_root), *backward = rb_last(&items_root);
	uint32_t i;

	ASSERT(rb_check(&items_root), "%u items, seed %" PRIu64, nr_sorted, seed);
	for (i = 0; i < nr_sorted; i++) {
		ASSERT(forward == &sorted[i]->rb, "%u of %u, seed %" PRIu64, i, nr_sorted, seed);
		ASSERT(backward == &sorted[nr_sorted - 1 - i]->rb, "%u of %u, seed %" PRIu64, i, nr_sorted,
		       seed);
		ASSERT(!augmented || sorted[i]->sum == item_sum(sorted[i]), "%u of %u, seed %" PRIu64, i,
		       nr_sorted, seed);
		forward = rb_next(forward);
		backward = rb_prev(backward);
	}
	ASSERT(!forward && !backward);
}

#define ORDER_MAX 6u

static uint64_t orders;

/* What is in the tree leaves it in every order. */
static void all_removals(void)
{
	struct item saved[ORDER_MAX];
	struct item *saved_sorted[ORDER_MAX];
	struct rb_root root = items_root;
	uint32_t n = nr_sorted, at;

	orders += n == 0;
	memcpy(saved, items, sizeof(saved));
	memcpy(saved_sorted, sorted, sizeof(saved_sorted));
	for (at = 0; at < n; at++) {
		item_erase(at);
		check_items();
		all_removals();
		memcpy(items, saved, sizeof(saved));
		memcpy(sorted, saved_sorted, sizeof(saved_sorted));
		items_root = root;
		nr_sorted = n;
	}
}

/* The items from nr on get keys in every order; `taken` has a bit for each key that is in the tree. */
static void all_insertions(uint32_t nr, uint32_t taken)
{
	struct item saved[ORDER_MAX];
	struct item *saved_sorted[ORDER_MAX];
	struct rb_root root = items_root;
	uint32_t key;

	if (nr == ORDER_MAX) {
		all_removals();
		return;
	}
	memcpy(saved, items, sizeof(saved));
	memcpy(saved_sorted, sorted, sizeof(saved_sorted));
	for (key = 0; key < ORDER_MAX; key++) {
		if (taken & 1u << key)
			continue;
		items[nr].key = key;
		items[nr].weight = 1u << key; /* no two sets have the same sum */
		item_insert(&items[nr]);
		check_items();
		all_insertions(nr + 1, taken | 1u << key);
		memcpy(items, saved, sizeof(saved));
		memcpy(sorted, saved_sorted, sizeof(saved_sorted));
		items_root = root;
		nr_sorted = nr;
	}
}

static void rbtree_all_orders(void)
{
	uint64_t factorial = 720; /* of ORDER_MAX */

	orders = 0;
	items_root.rb_node = NULL;
	nr_sorted = 0;
	augmented = true;
	all_insertions(0, 0);
	ASSERT(orders == factorial * factorial, "%" PRIu64 " orders", orders);
	augmented = false;
	all_insertions(0, 0);
}

static void rbtree_random(void)
{
	static struct item *unused[NODES_MAX];
	uint32_t round, i;

	for (round = 0; round < 4; round++) {
		uint32_t nr_unused = NODES_MAX, keys = round < 2 ? 1u << 30 : 50;

		augmented = round % 2;
		items_root.rb_node = NULL;
		nr_sorted = 0;
		for (i = 0; i < NODES_MAX; i++)
			unused[i] = &items[i];
		for (i = 0; i < 12000 || nr_sorted; i++) {
			uint32_t insert_below = i < 5000 ? 80 : i < 10000 ? 50 : 20;

			if (nr_unused && random_below(100) < insert_below) {
				struct item *item = unused[--nr_unused];

				item->key = random_below(keys);
				item->weight = next_random() >> 16;
				item_insert(item);
			} else if (nr_sorted) {
				unused[nr_unused++] = item_erase(random_below(nr_sorted));
			}
			if (i % 32 == 0 || nr_sorted < 32)
				check_items();
		}
	}
}

static void rbtree_empty(void)
{
	struct rb_root root = { 0 };

	ASSERT(rb_check(&root) == 1);
	ASSERT(!rb_first(&root) && !rb_last(&root));
}

/* Each kind of damage to each node must be noticed. One that cannot be done to that node: false. */

enum damage {
	COLOUR,
	RED_BELOW_RED,
	NO_PARENT,
	OTHER_PARENT,
	CHILD_LOST,
	CHILD_TWICE,
	LOOP,
	RB_DAMAGES, /* the kinds above break the red-black tree, those below the order or the values only */
	CHILDREN_SWAPPED = RB_DAMAGES,
	SUBTREE_LAST_HIGH,
	SUBTREE_LAST_LOW,
	LAST_HIGH,
	START_HIGH,
	START_LOW,
	ALL_DAMAGES,
};

static bool is_red(const struct rb_node *rb)
{
	return rb && !(rb->rb_parent_color & 1);
}

static bool damage(enum damage kind, struct interval_tree_node *node)
{
	struct rb_node *rb = &node->rb, *parent = rb_parent(rb);
	struct rb_node *next = rb_next(rb), *prev = rb_prev(rb);

	switch (kind) {
	case COLOUR:
		rb->rb_parent_color ^= 1;
		return true;
	case RED_BELOW_RED:
		/* Leaves all black heights as they are. */
		if (!is_red(rb->rb_left) || !is_red(rb->rb_right) || !is_red(parent))
			return false;
		rb->rb_parent_color ^= 1;
		rb->rb_left->rb_parent_color ^= 1;
		rb->rb_right->rb_parent_color ^= 1;
		return true;
	case NO_PARENT:
		if (!parent)
			return false;
		rb->rb_parent_color &= 1;
		return true;
	case OTHER_PARENT:
		rb->rb_parent_color = (uintptr_t)rb | (rb->rb_parent_color & 1);
		return true;
	case CHILD_LOST:
		/* Without a red leaf the tree is still one. */
		if (!rb->rb_left || is_red(rb->rb_left))
			return false;
		rb->rb_left = NULL;
		return true;
	case CHILD_TWICE:
		if (!rb->rb_left)
			return false;
		rb->rb_right = rb->rb_left;
		return true;
	case LOOP:
		rb->rb_left = model.root.rb.rb_node;
		return true;
	case CHILDREN_SWAPPED:
		if (!rb->rb_left || !rb->rb_right)
			return false;
		parent = rb->rb_left;
		rb->rb_left = rb->rb_right;
		rb->rb_right = parent;
		return true;
	case SUBTREE_LAST_HIGH:
		node->subtree_last++;
		return true;
	case SUBTREE_LAST_LOW:
		node->subtree_last--;
		return true;
	case LAST_HIGH:
		node->last = node->subtree_last + 1;
		return true;
	case START_HIGH:
		/* With all lasts above all starts, only the order tells. */
		if (!next)
			return false;
		node->start = rb_entry(next, struct interval_tree_node, rb)->start + 1;
		return true;
	case START_LOW:
		if (!prev)
			return false;
		node->start = rb_entry(prev, struct interval_tree_node, rb)->start - 1;
		return true;
	case ALL_DAMAGES:
		break;
	}
	return false;
}

static void checks_find_damage(void)
{
	static struct interval_model intact;
	uint32_t done[ALL_DAMAGES] = { 0 };
	uint32_t round, kind, i;

	for (round = 0; round < 20; round++) {
		uint32_t n = 3 + random_below(60);

		model_reset(n);
		for (i = 0; i < n; i++)
			model_insert(10 * (i * 37 % 64 + 1), 10000 + random_below(1000));
		intact = model;
		for (i = 0; i < n; i++) {
			for (kind = 0; kind < ALL_DAMAGES; kind++) {
				if (damage(kind, &model.nodes[i])) {
					done[kind]++;
					ASSERT(!interval_tree_check(&model.root),
					       "damage %u to %u of %u: %s", kind, i, n, describe());
					ASSERT(kind >= RB_DAMAGES || !rb_check(&model.root.rb),
					       "damage %u to %u of %u: %s", kind, i, n, describe());
				}
				model = intact;
				ASSERT(interval_tree_check(&model.root));
				ASSERT(rb_check(&model.root.rb));
			}
		}
	}
	for (kind = 0; kind < ALL_DAMAGES; kind++)
		ASSERT(done[kind], "damage %u was never done", kind);
}

/* An interval that is its own contradiction is found though all its values fit. */
static void check_finds_empty_interval(void)
{
	model_reset(1);
	model_insert(7, 7);
	model.nodes[0].last = model.nodes[0].subtree_last = 6;
	ASSERT(!interval_tree_check(&model.root));
}

/* A check must come back from what is no tree of any use, too: here a list without end for its stack. */
static void check_survives_deep_chain(void)
{
	const uint32_t length = 1000000;
	struct rb_node *chain = calloc(length, sizeof(*chain));
	struct rb_root root = { .rb_node = chain };
	uint32_t i;

	ASSERT(chain);
	for (i = 0; i < length; i++) {
		chain[i].rb_parent_color = (i ? (uintptr_t)&chain[i - 1] : 0) | 1;
		chain[i].rb_left = i + 1 < length ? &chain[i + 1] : NULL;
	}
	ASSERT(!rb_check(&root));
	free(chain);
}

int main(int argc, char **argv)
{
	seed = argc > 1 ? strtoull(argv[1], NULL, 0) : (uint64_t)time(NULL);
	random_state = seed * UINT64_C(0x9e3779b97f4a7c15) | 1;
	printf("seed %" PRIu64 "\n", seed);

	TEST(interval_tree_all_short_sequences);
	TEST(interval_tree_random);
	TEST(interval_tree_range_ends);
	TEST(interval_tree_tells_the_machine);
	TEST(interval_tree_refuses_wrong_arguments);
	TEST(rbtree_empty);
	TEST(rbtree_all_orders);
	TEST(rbtree_random);
	TEST(checks_find_damage);
	TEST(check_finds_empty_interval);
	TEST(check_survives_deep_chain);
	return test_report();
}
