/* SPDX-License-Identifier: MIT */
/*
 * breaks: trylock
 *
 * single whose trylock walk waits for the lock.
 */
#define emu_rmap_ops good_rmap_ops
#include "../../workers/designs/rmap/single.c"
#include "derive.h"

static int wrong_walk(struct address_space *mapping, uint64_t first, uint64_t last, bool try_lock, rmap_walk_fn fn,
		      void *arg)
{
	(void)try_lock;
	return single_walk(mapping, first, last, false, fn, arg);
}

DERIVED(single, "trylock-waits", .walk = wrong_walk);
