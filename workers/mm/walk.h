/* SPDX-License-Identifier: MIT */
/*
 * walk.h - what walks the i_mmap of a file: truncate, reclaim, migration.
 *
 * Each takes the pages first (invalidate_lock, taken_first, taken_end), which stands for their folio locks: faults on
 * them wait, and no fault that has not mapped one of them yet will. Then it walks. `taken` is called once, after that and
 * before the pages are let go: whatever PTE of theirs is still there, the walk has missed.
 */
#ifndef EMU_MM_WALK_H
#define EMU_MM_WALK_H

#include <emu/mm.h>

enum emu_walk_kind {
	EMU_WALK_TRUNCATE, /* the pages go, and all that processes have of them */
	EMU_WALK_RECLAIM,  /* the pages go, private copies stay; gives up where a lock is not free */
	EMU_WALK_MIGRATE,  /* the pages get another place: two walks */
	EMU_WALK_NR
};

struct emu_walk {
	enum emu_walk_kind kind;
	struct address_space *mapping;
	uint64_t first, last; /* pages */
	int (*taken)(const struct emu_walk *walk);

	/* Out. */
	uint64_t vmas; /* that the walk visited; of migration, the first of the two */
	uint64_t pages; /* PTEs that were changed */
	uint64_t ns;	/* without `taken` */
};

/*
 * 0; -EAGAIN: reclaim gave up, nothing was done; -EOPNOTSUPP: the rmap design has no index of this file; what `taken`
 * returned. The caller holds no lock.
 */
EMU_EXPORT int emu_walk(struct emu_walk *walk);

/* A `taken` (machine/walker.c): is any page that the walk should have changed still mapped as it was, by any process? */
EMU_EXPORT int emu_walk_check(const struct emu_walk *walk);

#endif
