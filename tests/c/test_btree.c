/* SPDX-License-Identifier: MIT */
/*
 * test_btree.c - the B-tree against an oracle that is a sorted array: every node size, every kind of change at random.
 *
 * After each change the tree must keep its rules (btree_check) and an iteration must give exactly what the array gives,
 * in its order; at the end of each round no node may be left.
 */
#include "test.h"

#include <emu/btree.h>
#include <emu/control.h>

#include <string.h>
#include <sys/mman.h>

#define ITEMS 1000u
#define ARENA_BYTES (UINT64_C(16) << 20)

static struct btree_item items[ITEMS];
static struct btree_item *spare[ITEMS]; /* not in the tree */
static uint32_t nr_spare;

/* In the order in which an iteration must meet them. */
static struct btree_item *order[ITEMS];
static uint32_t nr;

static struct btree_root root;

static uint32_t below(uint32_t n)
{
	return (uint32_t)(emu_random() % n);
}

static void order_insert(uint32_t at, struct btree_item *item)
{
	memmove(&order[at + 1], &order[at], (nr - at) * sizeof(order[0]));
	order[at] = item;
	nr++;
}

/* Starts from 0 to `starts` - 1; some intervals are very long, so that subtrees are told apart by their summaries. */
static void insert(uint32_t starts)
{
	struct btree_item *item = spare[--nr_spare];
	uint32_t at = nr;

	item->start = below(starts);
	item->last = item->start + (below(20) ? below(8) : below(2 * starts));
	while (at && order[at - 1]->start > item->start)
		at--;
	order_insert(at, item);
	btree_insert(item, &root);
}

static void insert_after(void)
{
	struct btree_item *item = spare[--nr_spare];
	uint32_t at = below(nr);

	item->start = order[at]->start;
	item->last = below(2) ? order[at]->last : item->start + below(50);
	btree_insert_after(item, order[at], &root);
	order_insert(at + 1, item);
}

static void take_out(uint32_t at)
{
	struct btree_item *item = order[at];

	btree_remove(item, &root);
	/* Nobody may look at it any more. */
	memset(item, 0xee, sizeof(*item));
	spare[nr_spare++] = item;
	nr--;
	memmove(&order[at], &order[at + 1], (nr - at) * sizeof(order[0]));
}

static void check_query(uint64_t first, uint64_t last)
{
	struct btree_iter iter;
	struct btree_item *found = btree_iter_first(&iter, &root, first, last);

	for (uint32_t i = 0; i < nr; i++) {
		if (order[i]->start > last || order[i]->last < first)
			continue;
		ASSERT(found == order[i], "[%llu, %llu]: interval %u of %u is missing or out of order",
		       (unsigned long long)first, (unsigned long long)last, i, nr);
		found = btree_iter_next(&iter);
	}
	ASSERT(!found, "[%llu, %llu]: one too many", (unsigned long long)first, (unsigned long long)last);
}

static void check(uint32_t starts)
{
	uint64_t first = below(3 * starts);

	ASSERT(btree_check(&root, NULL), "the tree of %u intervals breaks its rules", nr);
	ASSERT(btree_empty(&root) == !nr, "%u intervals", nr);
	check_query(first, first + below(starts));
	if (!below(16))
		check_query(0, UINT64_MAX);
}

static void begin(uint32_t node_bytes)
{
	btree_init(&root, node_bytes);
	nr = nr_spare = 0;
	for (uint32_t i = 0; i < ITEMS; i++)
		spare[nr_spare++] = &items[i];
}

static void end(void)
{
	ASSERT(btree_empty(&root), "not empty");
	ASSERT(!emu_check_drained(), "%s", emu_error());
}

static const uint32_t node_sizes[] = { 128, 192, 256, 448, BTREE_NODE_BYTES_MAX };

static void random_changes_leave_what_the_oracle_has(void)
{
	for (uint32_t s = 0; s < ARRAY_SIZE(node_sizes); s++) {
		for (uint32_t round = 0; round < 8; round++) {
			/* From all intervals with one start, as of all processes that map a library, to hardly two. */
			uint32_t starts = round % 4 == 0 ? 1 : round % 4 == 1 ? 5 : round % 4 == 2 ? 200 : 100000;
			bool grow = true;

			begin(node_sizes[s]);
			for (uint32_t step = 0; step < 1500; step++) {
				if (nr > ITEMS - 300 || nr > 60 * (round + 1))
					grow = false;
				if (nr < 3 * round)
					grow = true;
				if (!nr || (nr_spare && below(8) < (grow ? 5u : 3u))) {
					if (nr && below(3) == 0)
						insert_after();
					else
						insert(starts);
				} else {
					take_out(below(nr));
				}
				check(starts);
			}
			while (nr) {
				take_out(below(nr));
				check(starts);
			}
			end();
		}
	}
}

/* Ways to empty a tree that always hit the same side, and so always the same kind of borrowing and merging. */
static void a_tree_can_be_filled_and_emptied_from_each_end(void)
{
	for (uint32_t s = 0; s < ARRAY_SIZE(node_sizes); s++) {
		for (uint32_t way = 0; way < 6; way++) {
			uint32_t height, full;

			begin(node_sizes[s]);
			while (nr_spare) {
				struct btree_item *item = spare[--nr_spare];

				item->start = item->last = way % 2 ? nr : ITEMS - nr;
				order_insert(way % 2 ? nr : 0, item);
				btree_insert(item, &root);
				ASSERT(nr % 8 || btree_check(&root, NULL), "after %u insertions", nr);
			}
			ASSERT(btree_check(&root, &full), "full");
			check_query(0, UINT64_MAX);
			/* Split in halves at the end that grows: nodes are at least half full. */
			ASSERT(node_sizes[s] > 128 || full <= 11, "%u levels", full);
			ASSERT(full >= 3, "%u levels", full);
			while (nr) {
				take_out(way < 2 ? 0 : way < 4 ? nr - 1 : nr / 2);
				if (nr % 8)
					continue;
				ASSERT(btree_check(&root, &height) && height <= full, "with %u left", nr);
				check_query(0, UINT64_MAX);
			}
			end();
		}
	}
}

/* A fork copies every interval: each copy just behind its original, whatever splits that causes. */
static void copies_come_right_after_their_originals(void)
{
	for (uint32_t s = 0; s < ARRAY_SIZE(node_sizes); s++) {
		begin(node_sizes[s]);
		while (nr < 5)
			insert(3);
		while (2 * nr <= ITEMS) {
			for (uint32_t at = 0, n = nr; n--; at += 2) {
				struct btree_item *copy = spare[--nr_spare];

				copy->start = order[at]->start;
				copy->last = order[at]->last;
				btree_insert_after(copy, order[at], &root);
				order_insert(at + 1, copy);
				ASSERT(btree_check(&root, NULL), "with %u", nr);
			}
			check_query(0, UINT64_MAX);
		}
		while (nr)
			take_out(below(nr));
		end();
	}
}

int main(void)
{
	const uint32_t node_of_cpu[] = { 0 };
	const struct emu_config config = {
		.bytes = sizeof(config), .nr_cpus = 1, .nr_nodes = 1, .seed = 1, .node_of_cpu = node_of_cpu,
	};
	void *base = mmap(NULL, ARENA_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	ASSERT(base != MAP_FAILED, "mmap");
	ASSERT(!emu_arena_format(base, ARENA_BYTES, &config) && !emu_cpu_attach(0), "%s", emu_error());
	TEST(random_changes_leave_what_the_oracle_has);
	TEST(a_tree_can_be_filled_and_emptied_from_each_end);
	TEST(copies_come_right_after_their_originals);
	munmap(base, ARENA_BYTES);
	return test_report();
}
